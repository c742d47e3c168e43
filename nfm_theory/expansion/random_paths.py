r"""Losses and Taylor coefficients along the same random paths, so that their difference has a small error.

For one draw (λ, r, ξ) the loss is a function φ(ε) of one number. Its coefficients at 0 are averaged over the very draws
that give the loss:

$$ L_{NFM}(\varepsilon) - P_p(\varepsilon) \approx \frac1N \sum_{draws} \Big[\varphi(\varepsilon)
   - \sum_{k \le p} \tfrac{\varphi^{(k)}(0)}{k!} \varepsilon^k\Big] \qquad \text{(book: eq-pathwise-error)} $$

The coefficients of the outputs come first: by nested forward mode, or, where the head is piecewise linear, from two
tangents, because there `f(g + ε e¹ + ε² e²) = f + ε J e¹ + ε² J e²` up to the first kink. The loss is then expanded
along this polynomial. What a piecewise-linear head does beyond its kinks is in no coefficient; the loss of the
linearised head, which is what all orders together describe, is returned beside the loss itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from math import factorial

import torch
from torch import Tensor

from ..calculus.derivatives import scalar_derivatives
from ..calculus.engine import Linearization, linearize
from ..setting.draws import Draw, antithetic
from ..setting.pointwise import PointwiseLoss
from ..setting.problem import Path, Problem


@dataclass(frozen=True)
class PathSample:
    """What random paths say; all in float64, antithetic pairs averaged.

    Attributes:
        eps: scales, `(E,)`.
        losses: φ(ε), `(replicates, n, E)`.
        coefficients: `φ^(k)(0)/k!`, `(replicates, n, p + 1)`.
        linearised: the losses with the head linearised at the features, `(replicates, n, E)`; `None` for a curved head.
        evaluations: of the head at each ε.
    """

    eps: Tensor
    losses: Tensor
    coefficients: Tensor
    linearised: Tensor | None
    evaluations: int

    def polynomial(self, order: int) -> Tensor:
        """The Taylor polynomials of the rows, `(replicates, n, E)`.

        Args:
            order: at most that of the coefficients.
        """
        powers = self.eps ** torch.arange(order + 1, dtype=self.eps.dtype, device=self.eps.device).unsqueeze(1)
        return self.coefficients[..., : order + 1] @ powers

    def relative_error(self, approximation: Tensor) -> tuple[Tensor, Tensor]:
        """`(loss - approximation) / loss` at every ε with its standard error (delta method), `(E,)` each.

        Args:
            approximation: of the loss by rows, `(replicates, n, E)`.
        """
        loss, _ = stratified(self.losses)
        ratio, _ = stratified((self.losses - approximation) / loss)
        return ratio, stratified((self.losses * (1 - ratio) - approximation) / loss)[1]

    @staticmethod
    def joined(samples: Sequence[PathSample]) -> PathSample:
        """Several layers as one: their losses are averaged.

        Args:
            samples: with the same scales, order and replicates.
        """
        linear = [s.linearised for s in samples]
        return PathSample(
            eps=samples[0].eps,
            losses=torch.cat([s.losses for s in samples], 1),
            coefficients=torch.cat([s.coefficients for s in samples], 1),
            linearised=None if any(part is None for part in linear) else torch.cat(linear, 1),
            evaluations=sum(s.evaluations for s in samples),
        )


def stratified(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over replicates and samples, and its standard error from the spread of the replicates of each sample.

    Args:
        values: `(replicates, n, *out)`, replicates independent; at least two.

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

    return replace(loss, function=function, slope=None, bend=None)


def _coefficients(path: Callable[[Tensor], Tensor], order: int, like: Tensor) -> list[Tensor]:
    """Taylor coefficients at 0 of a function of one number."""
    derivatives = scalar_derivatives(path, like.new_zeros(()), order)
    return [d / factorial(k) for k, d in enumerate(derivatives)]


def _polynomial(coefficients: Sequence[Tensor], eps: Tensor) -> Tensor:
    """Horner's rule."""
    value = coefficients[-1]
    for c in reversed(coefficients[:-1]):
        value = c + eps * value
    return value


def output_coefficients(at: Linearization, path: Path, order: int) -> list[Tensor]:
    """Taylor coefficients of the outputs `f(g_i + e_i(ε))` of every row, `order + 1` times `(rows, K)`.

    Args:
        at: the head at the features, `linearize(problem.head, problem.features)`.
        path: of rows whose anchors, for a piecewise-linear head, are 0, .., n - 1, again and again.
        order: highest power of ε.
    """
    first, linear, quadratic = path.first, path.linear, path.quadratic
    if not at.piecewise_linear:

        def outputs(eps: Tensor) -> Tensor:
            return path.problem.head(first + eps * (linear if quadratic is None else linear + eps * quadratic))

        return _coefficients(outputs, order, first)
    n = len(at.outputs)
    known = [at.outputs.repeat(len(first) // n, 1)]
    for part in (linear, quadratic)[:order]:
        if part is not None:
            known.append(at.sweep(part.unflatten(0, (-1, n)), None)[0].flatten(0, 1))
    return known + [torch.zeros_like(known[0])] * (order + 1 - len(known))


def jets(at: Linearization, path: Path, order: int) -> tuple[Tensor, list[Tensor]]:
    """`φ^(k)(0)/k!` of every row for k = 0..order, `(rows, order + 1)`, and the coefficients of the outputs behind it.

    `paths.taylor_coefficients` gives the same numbers by nested differentiation.

    Args:
        at: the head linearised at the features.
        path: rows of perturbations.
        order: highest power of ε, ≥ 2.
    """
    outputs, problem = output_coefficients(at, path, order), path.problem
    labels = problem.labels[path.anchor]
    along = _coefficients(lambda eps: problem.loss(_polynomial(outputs, eps), labels), order, outputs[0])
    return torch.stack(along, dim=-1), outputs


def _concatenated(draws: Sequence[Draw]) -> Draw:
    """The rows of several draws of one law."""
    columns = {f.name: [getattr(draw, f.name) for draw in draws] for f in fields(Draw)}
    return Draw(**{name: None if parts[0] is None else torch.cat(parts) for name, parts in columns.items()})


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
    problem: Problem,
    eps: Tensor,
    order: int,
    *,
    replicates: int,
    generator: torch.Generator | None = None,
) -> PathSample:
    """Losses and Taylor coefficients along `replicates` random paths from every sample, noise taken with both signs.

    Args:
        problem: the setting.
        eps: scales, `(E,)`.
        order: highest power of ε, at least 2.
        replicates: paths from each sample, at least 2.
        generator: random generator of the draws.

    Raises:
        ValueError: for fewer than two replicates, or an order below 2.
    """
    if replicates < 2 or order < 2:
        raise ValueError(f"Expected replicates >= 2 and order >= 2, got {replicates} and {order}.")
    problem = problem.changed(loss=_in_double(problem.loss), features=problem.features.detach())
    at = linearize(problem.head, problem.features, differentiable=False)
    n, scales = len(problem.features), eps.to(problem.features)
    signs = 1 if problem.noises == (None, None) else 2
    block = problem.block_rows()
    parts: list[list[Tensor]] = []
    todo, together = replicates, max(1, block // n)  # tiny problems take many sweeps at once
    while todo:
        count = min(together, todo)
        draw = _concatenated([problem.draw(n, 1, generator=generator) for _ in range(count)])
        both = [draw, antithetic(draw)][:signs]
        found = [_sweep(problem, at, rows, scales, order, block) for rows in both]
        parts.append([(sum(part) / signs).unflatten(0, (count, -1)) for part in zip(*found, strict=True)])
        todo -= count
    losses, coefficients, linear = (torch.cat(part) for part in zip(*parts, strict=True))
    return PathSample(
        eps.double(), losses, coefficients, linear if at.piecewise_linear else None, replicates * signs * n
    )
