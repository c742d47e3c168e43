r"""The loss along one draw, φ(ε) = ℓ(f_k(g_i + e_i(ε)), y_i): its Taylor remainder without cancellation.

For every draw (λ, r, ξ) the loss is a smooth function of the one number ε, so that

$$ \varphi(\varepsilon) - \sum_{k \le p} \frac{\varphi^{(k)}(0)}{k!} \varepsilon^k
   = \frac{\varepsilon^{p+1}}{p!} \int_0^1 (1-t)^p \varphi^{(p+1)}(t\varepsilon)\,dt
   \qquad \text{(book: eq-integral-remainder)} $$

with no difference of nearly equal numbers on the right, and Lagrange's form bounds it by the extremes of φ^(p+1).
"""

from __future__ import annotations

from math import factorial

import torch
from scipy import special
from torch import Tensor

from .curvature import directional_derivatives, gauss_newton_forms, scalar_derivatives
from .draws import Draw
from .engine import Linearization
from .problem import Problem
from .results import Interval


def taylor_coefficients(problem: Problem, draw: Draw, order: int) -> Tensor:
    """`φ^(k)(0)/k!` of every row for k = 0..order by forward mode, `(rows, order + 1)`."""
    zero = torch.zeros((), dtype=problem.features.dtype, device=problem.features.device)
    derivatives = scalar_derivatives(problem.path(draw), zero, order)
    return torch.stack([d / factorial(k) for k, d in enumerate(derivatives)], dim=-1)


def second_order_coefficients(problem: Problem, draw: Draw) -> Tensor:
    r"""`φ^(k)(0)/k!`, k = 0, 1, 2, from the derivatives of loss and head apart, `(rows, 3)`.

    With `e = ε e¹ + ε² e²`: φ' = a·J e¹ and φ''/2 = ½ (J e¹)ᵀF(J e¹) + ½ a·∇²f[e¹, e¹] + a·J e². The second
    witness of `taylor_coefficients`, and what R1, R2 and R3 are before the expectation is taken.
    """
    first, linear, quadratic = problem.perturbation(draw)
    outputs, tangent, bend = directional_derivatives(problem.head, first, linear, 2)
    labels = problem.labels[draw.anchor]
    slope = problem.loss.gradient(outputs, labels)
    curvature = problem.loss.hessian(outputs, labels)
    second = torch.einsum("bk,bkl,bl->b", tangent, curvature, tangent) / 2 + (slope * bend).sum(-1) / 2
    if quadratic is not None:
        second = second + (slope * directional_derivatives(problem.head, first, quadratic, 1)[1]).sum(-1)
    return torch.stack([problem.loss(outputs, labels), (slope * tangent).sum(-1), second], dim=-1)


def sweep_coefficients(problem: Problem, at: Linearization, slope: Tensor, draw: Draw, order: int = 2) -> Tensor:
    """`second_order_coefficients` of whole sweeps over the samples, `(rows, order + 1)`, for one tangent a row.

    The recording of the head and its adjoint are shared by all rows of a sample, so that a row costs about one forward
    pass at order 2, and none at order 1.

    Args:
        problem: the setting.
        at: the head at the features, `linearize(problem.head, problem.features)`.
        slope: ∂ℓ/∂u at the features, `(n, K)`; the adjoint of the same tensor is computed once.
        draw: rows whose anchors are 0, .., n - 1, again and again.
        order: 0, 1 or 2.
    """
    n, labels = len(problem.features), problem.labels
    _, linear, quadratic = (None if e is None else e.unflatten(0, (-1, n)) for e in problem.perturbation(draw))
    pulled = at.pullback(slope)
    columns = [problem.loss(at.outputs, labels).expand(len(linear), n), (at.enter(linear) * pulled).sum(-1)]
    if order == 2:
        tangents, bends = at.sweep(linear, slope)
        curvature = problem.loss.hessian(at.outputs, labels)
        second = (gauss_newton_forms(curvature, tangents.permute(1, 2, 0)).T + bends) / 2
        columns.append(second if quadratic is None else second + (at.enter(quadratic) * pulled).sum(-1))
    return torch.stack(columns[: order + 1], dim=-1).flatten(0, 1)


def _at_points(problem: Problem, draw: Draw, points: Tensor, order: int) -> Tensor:
    """φ^(order) of every row at every point, `(points, rows)`, in one batch."""
    rows, index = len(draw), torch.arange(len(draw), device=draw.lam.device)
    path = problem.path(draw[index.repeat(len(points))])
    return scalar_derivatives(path, points.repeat_interleave(rows), order)[-1].reshape(len(points), rows)


def integral_remainder(
    problem: Problem, draw: Draw, eps: float | Tensor, *, order: int = 2, num_nodes: int = 4
) -> Tensor:
    """Remainder of the order-p Taylor polynomial of every row at `eps`, without cancellation, `(rows,)`.

    Args:
        problem: the setting.
        draw: rows.
        eps: ε, a number.
        order: p ≥ 0.
        num_nodes: Gauss-Jacobi nodes in t; they are exact while φ is a polynomial of degree `p + 2 num_nodes`.
    """
    nodes, weights = special.roots_jacobi(num_nodes, order, 0)
    at = torch.as_tensor(eps, dtype=problem.features.dtype, device=problem.features.device)
    points, weights = (torch.from_numpy(a).to(at) for a in ((nodes + 1) / 2, weights / weights.sum()))
    mean = weights @ _at_points(problem, draw, at * points, order + 1)
    return mean * at ** (order + 1) / factorial(order + 1)


def lagrange_interval(
    problem: Problem, draw: Draw, eps: float | Tensor, *, order: int = 2, num_points: int = 33
) -> Interval:
    """`[min, max]` of φ^(order+1) on [0, ε] for every row (book: eq-lagrange).

    `(order + 1)! remainder / ε^(order + 1)` of the row must lie in it: a check of the expansion with no Monte-Carlo
    error at all. The extremes are taken over `num_points` equidistant points and widened by the largest step between
    neighbours.

    Args:
        problem: the setting (`build_problem`).
        draw: rows.
        eps: ε, a number.
        order: p ≥ 0.
        num_points: points on [0, ε].
    """
    points = torch.linspace(0, float(eps), num_points, dtype=problem.features.dtype, device=problem.features.device)
    values = _at_points(problem, draw, points, order + 1)
    slack = (values[1:] - values[:-1]).abs().amax(0)
    return Interval(values.amin(0) - slack, values.amax(0) + slack)
