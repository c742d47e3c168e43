r"""Losses and Taylor coefficients along the same random paths, so that their difference has a small error.

For one draw (λ, r, ξ) the loss is a function φ(ε) of one number. The loss and its Taylor coefficients are averaged over
the same draws:

$$ L_{NFM}(\varepsilon) - P_p(\varepsilon) \approx \frac1N \sum_{draws} \Big[\varphi(\varepsilon)
   - \sum_{k \le p} \tfrac{\varphi^{(k)}(0)}{k!} \varepsilon^k\Big] \qquad \text{(book: eq-pathwise-error)} $$

The coefficients of the outputs are computed first, by nested forward mode. For a piecewise-linear head two tangents
suffice, because `f(g + ε e¹ + ε² e²) = f + ε J e¹ + ε² J e²` up to the first kink. The loss is then expanded along this
polynomial. No coefficient describes a piecewise-linear head beyond its first kink: all orders together give the loss of
the linearised head, which is therefore returned as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add

import torch
from torch import Tensor

from ..calculus.derivatives import curve_coefficients
from ..calculus.engine import Linearization, linearize
from ..setting.draws import Draw, antithetic
from ..setting.pointwise import PointwiseLoss
from ..setting.problem import Path, Problem


@dataclass(frozen=True)
class PathSample:
    """Losses and Taylor coefficients along random paths. Computed in float64, with antithetic pairs averaged.

    Attributes:
        eps: the scales ε, `(E,)`.
        losses: φ(ε), `(replicates, n, E)`.
        coefficients: `φ^(k)(0)/k!`, `(replicates, n, p + 1)`.
        linearised: losses of the head linearised at the features, `(replicates, n, E)`; `None` for a curved head.
        evaluations: number of evaluations of the head at each ε.
    """

    eps: Tensor
    losses: Tensor
    coefficients: Tensor
    linearised: Tensor | None
    evaluations: int

    def polynomial(self, order: int) -> Tensor:
        """The Taylor polynomials of this order along the paths, `(replicates, n, E)`."""
        powers = self.eps ** torch.arange(order + 1, dtype=self.eps.dtype, device=self.eps.device).unsqueeze(1)
        return self.coefficients[..., : order + 1] @ powers

    def relative_error(self, approximation: Tensor) -> tuple[Tensor, Tensor]:
        """`(loss - approximation) / loss` and its standard error by the delta method, each `(E,)`.

        Args:
            approximation: an approximation of the losses, `(replicates, n, E)`.
        """
        loss, _ = stratified(self.losses)
        ratio, _ = stratified((self.losses - approximation) / loss)
        return ratio, stratified((self.losses * (1 - ratio) - approximation) / loss)[1]

    @staticmethod
    def joined(samples: Sequence[PathSample]) -> PathSample:
        """Join the samples of several layers, with equal scales, order and replicates, so that losses are averaged."""
        linear = [s.linearised for s in samples if s.linearised is not None]
        return PathSample(
            eps=samples[0].eps,
            losses=torch.cat([s.losses for s in samples], 1),
            coefficients=torch.cat([s.coefficients for s in samples], 1),
            linearised=torch.cat(linear, 1) if len(linear) == len(samples) else None,
            evaluations=sum(s.evaluations for s in samples),
        )


def stratified(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over replicates and samples, and its standard error from the variance between the replicates.

    Args:
        values: `(replicates, n, *out)` with at least two independent replicates.

    Example:
        >>> mean, stderr = stratified(torch.tensor([[[1.0], [5.0]], [[3.0], [5.0]]]))
        >>> float(mean), float(stderr)
        (3.5, 0.5)
    """
    replicates, n = values.shape[:2]
    return values.mean((0, 1)), (values.var(0).sum(0) / replicates).sqrt() / n


def _in_double(loss: PointwiseLoss) -> PointwiseLoss:
    """The same loss, computed in float64 from outputs of any precision."""

    def function(outputs: Tensor, labels: Tensor) -> Tensor:
        return loss.function(outputs.double(), labels.double() if labels.is_floating_point() else labels)

    return replace(loss, function=function, closed_gradient=None, closed_hessian=None)


def _polynomial(coefficients: Sequence[Tensor], eps: Tensor) -> Tensor:
    """The value at ε of a polynomial, by Horner's rule."""
    value = coefficients[-1]
    for c in reversed(coefficients[:-1]):
        value = c + eps * value
    return value


def output_coefficients(at: Linearization, path: Path, order: int) -> list[Tensor]:
    """Taylor coefficients of the outputs `f(g_i + e_i(ε))` of every row: `order + 1` tensors `(rows, K)`.

    `at` is the head linearized at the features. If it is piecewise linear, the anchors of the rows must be the numbers
    0, .., n - 1, repeated.
    """
    if not at.piecewise_linear:
        return curve_coefficients(path.problem.head, path.parts, order=order)
    n = len(at.outputs)
    known = [at.outputs.repeat(len(path) // n, 1)]
    known += [at.sweep(part.unflatten(0, (-1, n)), None)[0].flatten(0, 1) for part in path.parts[1 : order + 1]]
    return known + [torch.zeros_like(known[0])] * (order + 1 - len(known))


def jets(at: Linearization, path: Path, order: int) -> tuple[Tensor, list[Tensor]]:
    """`φ^(k)(0)/k!` of every row for k = 0..order, `(rows, order + 1)`, and `output_coefficients`.

    The first result equals that of `paths.taylor_coefficients`.
    """
    outputs, problem = output_coefficients(at, path, order), path.problem
    labels = problem.labels[path.anchor]
    along = curve_coefficients(lambda u: problem.loss(u, labels), outputs, order=order)
    return torch.stack(along, dim=-1), outputs


def _concatenated(draws: Sequence[Draw]) -> Draw:
    """Several draws of one law as a single draw."""
    anchor, lam, index = (torch.cat([getattr(draw, name) for draw in draws]) for name in ("anchor", "lam", "index"))
    noises = ([getattr(draw, name) for draw in draws] for name in ("add", "mult"))
    additive, mult = (None if parts[0] is None else torch.cat(parts) for parts in noises)
    return Draw(anchor, lam, index, additive, mult)


def _sweep(
    problem: Problem, at: Linearization, draw: Draw, eps: Tensor, order: int, block: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses `(rows, E)`, coefficients `(rows, order + 1)`, losses of the linearised head (no columns if curved)."""
    losses = []
    for rows in torch.arange(len(draw), device=draw.lam.device).split(block):
        path = problem.path(draw[rows])
        losses.append(torch.stack([path(e) for e in eps], dim=-1))
    if not at.piecewise_linear:  # nested differentiation: each order doubles the memory
        parts = torch.arange(len(draw), device=draw.lam.device).split(max(1, block >> order))
        return (
            torch.cat(losses),
            torch.cat([jets(at, problem.path(draw[rows]), order)[0] for rows in parts]),
            draw.lam.new_zeros(len(draw), 0),
        )
    coefficients, outputs = jets(at, problem.path(draw), order)
    labels = problem.labels[draw.anchor]
    linear = torch.stack([problem.loss(_polynomial(outputs[:3], e), labels) for e in eps], dim=-1)
    return torch.cat(losses), coefficients, linear


@torch.no_grad()
def sample_paths(
    problem: Problem, eps: Tensor, order: int, *, replicates: int, generator: torch.Generator | None = None
) -> PathSample:
    """Losses and Taylor coefficients along random paths from every sample, each path with both signs of the noise.

    Args:
        problem: the problem of one layer.
        eps: the scales ε, `(E,)`.
        order: highest power of ε, at least 2.
        replicates: number of paths from each sample, at least 2.
        generator: random generator of the draws.

    Raises:
        ValueError: for fewer than two replicates, or an order below 2.
    """
    if replicates < 2 or order < 2:
        raise ValueError(f"Expected replicates >= 2 and order >= 2, got {replicates} and {order}.")
    problem = problem._changed(loss=_in_double(problem.loss), features=problem.features.detach())
    at = linearize(problem.head, problem.features, differentiable=False)
    n, scales = len(problem.features), eps.to(problem.features)
    signs = 1 if problem.noises == (None, None) else 2
    block = problem.block_rows()
    parts: list[list[Tensor]] = []
    todo, together = replicates, max(1, block // n)  # several replicates at once for small problems
    while todo:
        count = min(together, todo)
        draw = _concatenated([problem.draw(n, 1, generator=generator) for _ in range(count)])
        both = [draw, antithetic(draw)][:signs]
        found = [_sweep(problem, at, rows, scales, order, block) for rows in both]
        parts.append([(reduce(add, part) / signs).unflatten(0, (count, -1)) for part in zip(*found, strict=True)])
        todo -= count
    losses, coefficients, linear = (torch.cat(part) for part in zip(*parts, strict=True))
    return PathSample(
        eps.double(), losses, coefficients, linear if at.piecewise_linear else None, replicates * signs * n
    )
