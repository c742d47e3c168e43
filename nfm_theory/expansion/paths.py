r"""The loss along one draw, φ(ε) = ℓ(f_k(g_i + e_i(ε)), y_i), and its Taylor remainder without cancellation.

For every draw (λ, r, ξ) the loss is a smooth function of the number ε, so that

$$ \varphi(\varepsilon) - \sum_{k \le p} \frac{\varphi^{(k)}(0)}{k!} \varepsilon^k
   = \frac{\varepsilon^{p+1}}{p!} \int_0^1 (1-t)^p \varphi^{(p+1)}(t\varepsilon)\,dt
   \qquad \text{(book: eq-integral-remainder)} $$

The right side has no difference of nearly equal numbers. Lagrange's form of the remainder bounds it by the extremes of
φ^(p+1).
"""

from __future__ import annotations

from functools import cached_property
from math import factorial

import torch
from torch import Tensor

from ..calculus.derivatives import curve_coefficients, curve_derivatives, directional_derivatives, gauss_newton_forms
from ..calculus.engine import Linearization, linearize
from ..setting.ambient import undisturbed
from ..setting.draws import Draw
from ..setting.problem import Path, Problem
from ..setting.results import Interval


def taylor_coefficients(path: Path, order: int) -> Tensor:
    """`φ^(k)(0)/k!` of every row for k = 0..order, by forward mode, `(rows, order + 1)`."""
    losses = lambda h: path.problem.losses(h, path.anchor)  # noqa: E731
    return torch.stack(curve_coefficients(losses, path.parts, order=order), dim=-1)


def series_coefficients(path: Path, order: int) -> Tensor:
    """The same numbers from one recording of the losses, `(rows, order + 1)`; order ≥ 3 (book: eq-order-p).

    Taylor coefficients pass through the operations one by one, and the highest is collapsed (`Linearization.series`).
    The cost grows like order², that of nested differentiation like 2^order.
    """
    problem = path.problem
    at = linearize(lambda h: problem.losses(h, path.anchor).unsqueeze(1), path.first, order=order)
    given = [z.unsqueeze(0) for z in (path.linear, path.quadratic) if z is not None]
    lower, highest = at.series(given, torch.ones_like(at.outputs), order)
    return torch.stack([at.outputs.squeeze(1), *(z[0, :, 0] for z in lower), highest[0]], dim=-1)


def second_order_coefficients(path: Path) -> Tensor:
    r"""`φ^(k)(0)/k!`, k = 0, 1, 2, from separate derivatives of the loss and of the head, `(rows, 3)`.

    With `e = ε e¹ + ε² e²`: φ' = a·J e¹ and φ''/2 = ½ (J e¹)ᵀF(J e¹) + ½ a·∇²f[e¹, e¹] + a·J e². The expectations of
    these terms are R1, R2 and R3. The function is an independent check of `taylor_coefficients`.
    """
    problem, labels = path.problem, path.problem.labels[path.anchor]
    outputs, tangent, output_second = directional_derivatives(problem.head, path.first, path.linear, 2)
    slope = problem.loss.gradient(outputs, labels)
    curvature = problem.loss.hessian(outputs, labels)
    second = gauss_newton_forms(curvature, tangent) / 2 + (slope * output_second).sum(-1) / 2
    if path.quadratic is not None:
        second = second + (slope * directional_derivatives(problem.head, path.first, path.quadratic, 1)[1]).sum(-1)
    return torch.stack([problem.loss(outputs, labels), (slope * tangent).sum(-1), second], dim=-1)


class Polynomials:
    """`taylor_coefficients` for many rows of each sample, faster up to order 2.

    Everything that the rows of a sample have in common is computed once: the gradient of the loss in the features and
    the recording of the head. A row then costs about one forward pass at order 2, and almost nothing at order 1.
    """

    def __init__(self, problem: Problem):
        self.problem = problem
        with torch.enable_grad():
            self._features = problem.features.detach().requires_grad_()
            rows = torch.arange(len(self._features), device=self._features.device)
            self._losses = problem.losses(self._features, rows)
        self.losses = self._losses.detach()

    @cached_property
    def gradient(self) -> Tensor:
        """The gradient of the loss in the features, `(n, d)`."""
        with torch.enable_grad():
            return torch.autograd.grad(self._losses.sum(), self._features)[0].flatten(1)

    @cached_property
    def _head(self) -> tuple[Linearization, Tensor, Tensor]:
        """The head at the features, with the gradient and the Hessian of the loss in the outputs."""
        loss, labels = self.problem.loss, self.problem.labels
        at = linearize(self.problem.head, self.problem.features, differentiable=False)
        return at, loss.gradient(at.outputs, labels).detach(), loss.hessian(at.outputs, labels).detach()

    def _slopes(self, along: Tensor) -> Tensor:
        """`a·J e`, `(m, n)`, for perturbations e `(m, n, *feature)`."""
        return torch.einsum("mnd,nd->mn", along.flatten(2), self.gradient)

    def __call__(self, path: Path, order: int) -> Tensor:
        """`φ^(k)(0)/k!` for k = 0..order, `(rows, order + 1)`.

        Args:
            path: the losses of rows whose anchors are 0, .., n - 1, repeated.
            order: highest power of ε, ≥ 0. Orders above 2 use `taylor_coefficients`.
        """
        if order > 2:
            return taylor_coefficients(path, order)
        n = len(self.losses)
        linear = path.linear.unflatten(0, (-1, n))
        quadratic = None if path.quadratic is None else path.quadratic.unflatten(0, (-1, n))
        columns = [self.losses.expand(len(linear), n)]
        if order >= 1:
            columns.append(self._slopes(linear))
        if order >= 2:
            at, slope, curvature = self._head
            tangents, hessian_forms = at.sweep(linear, slope)
            second = (gauss_newton_forms(curvature, tangents.permute(1, 2, 0)).T + hessian_forms) / 2
            columns.append(second if quadratic is None else second + self._slopes(quadratic))
        return torch.stack(columns, dim=-1).flatten(0, 1)


def _at_points(problem: Problem, draw: Draw, points: Tensor, order: int) -> Tensor:
    """φ^(order) of every row at every point, `(points, rows)`, in one batch."""
    rows, index = len(draw), torch.arange(len(draw), device=draw.lam.device)
    path = problem.path(draw[index.repeat(len(points))])
    jets = path.jets(points.repeat_interleave(rows))
    derived = curve_derivatives(lambda h: problem.losses(h, path.anchor), jets, order=order)[-1]
    return derived.reshape(len(points), rows)


@undisturbed()
def integral_remainder(
    problem: Problem, draw: Draw, eps: float | Tensor, *, order: int = 2, num_nodes: int = 4
) -> Tensor:
    """Remainder of the order-p Taylor polynomial of every row at `eps`, without cancellation, `(rows,)`.

    Args:
        problem: the problem of one layer.
        draw: the rows.
        eps: ε, a number.
        order: p ≥ 0.
        num_nodes: number of Gauss-Jacobi nodes in t. They are exact if φ is a polynomial of degree
            `p + 2 num_nodes` or less.
    """
    from scipy.special import roots_jacobi

    nodes, weights = roots_jacobi(num_nodes, order, 0)
    at = torch.as_tensor(eps, dtype=problem.features.dtype, device=problem.features.device)
    points, weights = (torch.from_numpy(a).to(at) for a in ((nodes + 1) / 2, weights / weights.sum()))
    mean = weights @ _at_points(problem, draw, at * points, order + 1)
    return mean * at ** (order + 1) / factorial(order + 1)


@undisturbed()
def lagrange_interval(
    problem: Problem, draw: Draw, eps: float | Tensor, *, order: int = 2, num_points: int = 33
) -> Interval:
    """The range `[min, max]` of φ^(p+1) on [0, ε] for every row (book: eq-lagrange).

    The number `(p + 1)! remainder / ε^(p + 1)` of the row must lie in this interval. This checks the expansion without
    any Monte-Carlo error. The extremes are those over `num_points` equidistant points; the interval is then widened by
    the largest difference between neighboring points.

    Args:
        problem: the problem of one layer.
        draw: the rows.
        eps: ε, a number.
        order: p ≥ 0.
        num_points: number of points on [0, ε].
    """
    points = torch.linspace(0, float(eps), num_points, dtype=problem.features.dtype, device=problem.features.device)
    values = _at_points(problem, draw, points, order + 1)
    slack = (values[1:] - values[:-1]).abs().amax(0)
    return Interval(values.amin(0) - slack, values.amax(0) + slack)
