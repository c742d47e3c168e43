r"""The loss by a deterministic rule (all pairs, nodes of λ, nodes of the noise), and the error of the rule.

The error is measured, since nothing is known about the head: it may have kinks and jumps. The rule is compared with a
second one, in λ and in the noise separately, and the differences are added up without their signs: over all pairs and
over all nodes of the other variable. Differences of opposite sign therefore cannot hide each other. The second rule of
a bounded law has nodes at its ends, so that a kink between an end and the first Gauss node is seen, too.

If the error is too large, finer rules follow: twice as many Gauss nodes, which is best for smooth heads, and composite
rules, whose panels are halved again and again. A kink harms only the panels that it crosses.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack

from ..setting.branches import Branches
from ..setting.draws import Draw
from ..setting.problem import Problem
from ..setting.quadrature import Grid, NoiseRule, Quadrature, noise_rule, rule_points
from ..setting.results import Estimate
from ..setting.rules import PANEL_ORDER, RuleKind
from .as_trained import training_loss
from .monte_carlo import DEFAULT_SAMPLES, monte_carlo_loss

#: The measured difference of two rules, times this number, counts as the error.
SAFETY = 4.0
#: Number of panels of the coarsest composite rule.
FIRST_PANELS = 4
#: Largest number of evaluations of the head that one finer rule may take, for all ε together.
REFINED_ROWS = 1_000_000
#: Two rules whose relative difference is smaller than this show that the head is smooth.
_SMOOTH = 1e-10
#: The differences of neighboring rules fall faster than this if the head is smooth.
_FAST = 1 / 32
#: Largest number of parts that are kept apart when two rules are compared, in all.
_MOST_PARTS = 4_000_000
#: Multiples of the machine precision that count as rounding.
_ROUNDING = 100.0


@dataclass(frozen=True)
class _Sums:
    """What a rule gives: the losses `(E,)`, the mean absolute losses `(E,)`, and the losses in parts `(parts, E)`."""

    total: Tensor
    size: Tensor
    parts: tuple[Tensor, ...]


@dataclass(frozen=True)
class _Attempt:
    """A rule with its losses, the mean absolute losses and the errors, each `(E,)`."""

    grid: Grid
    total: Tensor
    size: Tensor
    lam_error: Tensor
    noise_error: Tensor
    words: str = ""

    @property
    def error(self) -> Tensor:
        """The error of the rule in both variables."""
        return self.lam_error + self.noise_error

    def __getitem__(self, chosen: Tensor) -> _Attempt:
        """The same at some of the scales."""
        names = ("total", "size", "lam_error", "noise_error")
        return replace(self, **{name: getattr(self, name)[chosen] for name in names})


def _sums(problem: Problem, grid: Grid, eps: Tensor, cells: Sequence[tuple[int, int]] = ()) -> _Sums:
    """Sum a rule up at every ε of `eps` `(E,)`, in float64.

    With gradients enabled each block is recomputed in the backward pass, so that memory does not grow with the grid;
    within a transform of `torch.func`, which refuses that, the activations of all blocks are kept.

    Args:
        problem: the setting.
        grid: the rule.
        eps: scales.
        cells: numbers of equal cells into which the nodes of λ and of the noise are divided, one pair for each set.
            Every pair of samples and every pair of cells is one part.
    """
    from torch.utils.checkpoint import checkpoint  # PyTorch 2.6 loads SymPy with it

    def rows(draw: Draw) -> Tensor:
        if not grid.unmixed:
            return problem.mixed_label_losses(draw).unsqueeze(-1)
        path = problem.path(draw)
        return torch.stack([path(e) for e in eps], dim=-1)

    recomputed = torch.is_grad_enabled() and peek_interpreter_stack() is None
    pairs, lams, noises = grid.shape
    zero = torch.zeros(1, dtype=torch.float64, device=eps.device)
    total, size, start = torch.zeros_like(zero), zero.expand(len(eps)), 0
    parts = [zero.new_zeros(pairs * first * second, len(eps)) for first, second in cells]
    for draw, weights in problem.blocks(grid, title="exact loss"):
        values = checkpoint(rows, draw, use_reentrant=False) if recomputed else rows(draw)
        total = total + torch.tensordot(weights, values.double(), dims=1)
        seen = values.detach().double() * weights.unsqueeze(-1)
        size = size + seen.abs().sum(0)
        row = torch.arange(start, start + len(draw), device=eps.device)
        node, pair = row // noises % lams, row // (noises * lams)
        for part, (first, second) in zip(parts, cells, strict=True):
            place = (pair * first + node * first // lams) * second + row % noises * second // noises
            part.index_add_(0, place, seen.expand(-1, len(eps)))
        start += len(draw)
    return _Sums(total.expand(len(eps)), size, tuple(parts))


def _witnesses(num: int) -> list[int]:
    """Numbers of nodes of the rules that a rule with `num` nodes is compared with.

    The first two are odd if `num` is even: two rules with an even number of nodes have a wide gap in common, around 0.
    """
    if num < 4:
        return [3 if num == 2 else 2]
    fewer = 3 * num // 4
    fewer -= (num - fewer + 1) % 2
    return list(dict.fromkeys([num - 1, fewer, num // 2 + 1]))


def _rounding(problem: Problem, grid: Grid, size: Tensor) -> Tensor:
    """The error by rounding, `(E,)`."""
    return _ROUNDING * torch.finfo(problem.features.dtype).eps * grid.rule.amplification * size


def _features(problem: Problem) -> int:
    """The number of elements of each noise."""
    return math.prod(problem.feature_shape)


def _noise_rule(problem: Problem, num: int, kind: RuleKind) -> NoiseRule:
    """A rule of the noise: all combinations of one-dimensional nodes."""
    return noise_rule("tensor", _features(problem), *problem.noises, num_nodes=num, kind=kind)


def _difference(
    problem: Problem, part: Tensor, num: int, others: Iterator[tuple[int, Grid]], cells: tuple[int, int], eps: Tensor
) -> Tensor:
    """The sum over all parts of the largest difference from the other rules, `(E,)`.

    The error by a kink is about proportional to the inverse square of the number of nodes, so that the differences are
    scaled by it. One other rule can be wrong by the same amount, hence there are three. If the differences fall much
    faster with the number of nodes than a kink allows, the rule with the most nodes decides alone.
    """
    differences: list[Tensor] = []
    for count, other in others:
        (found,) = _sums(problem, other, eps, [cells]).parts
        differences.append((found - part).abs() * min(1.0, (count / num) ** 2))
        if (differences[0].sum(0) <= _SMOOTH * part.abs().sum(0)).all():
            break
    if not differences:
        return torch.zeros_like(part[0])
    largest = torch.stack(differences).amax(0).sum(0)
    nearest, *farther = (one.sum(0) for one in differences)
    if len(farther) == 2:
        smooth = (nearest <= _FAST * farther[0]) & (farther[0] <= farther[1])
        largest = torch.where(smooth, nearest, largest)
    return SAFETY * largest


def _gauss(problem: Problem, grid: Grid, num_noise: int, eps: Tensor) -> _Attempt:
    """The losses by Gauss rules."""
    pairs, lams, noises = grid.shape
    chunks = max(1, min(noises, _MOST_PARTS // (pairs * len(eps))))
    found = _sums(problem, grid, eps, [(1, chunks), (lams, 1)])
    at_lam = ((num, replace(grid, num_lam=num, lam_kind="closed")) for num in _witnesses(grid.num_lam))
    lam_grids = (other for other in at_lam if other[1].shape[1] != lams)  # none if λ has a few values only
    at_noise = ((num, replace(grid, rule=_noise_rule(problem, num, "closed"))) for num in _witnesses(num_noise))
    noise_grids = (other for other in at_noise if other[1].shape[2] != noises)
    with torch.no_grad():
        lam_error = _difference(problem, found.parts[0], grid.num_lam, lam_grids, (1, chunks), eps)
        noise_error = _difference(problem, found.parts[1], num_noise, noise_grids, (lams, 1), eps)
        lam_error = lam_error + _rounding(problem, grid, found.size)
    return _Attempt(grid, found.total, found.size, lam_error, noise_error)


def _panel_grids(problem: Problem, grid: Grid, rows: int) -> Iterator[tuple[int, Grid]]:
    """Composite rules with 4, 8, 16, .. panels of each variable, of at most `rows` rows each."""
    panels, before = FIRST_PANELS, 0
    while True:
        finer = replace(grid, num_lam=panels, lam_kind="panels")
        pairs, lams, _ = finer.shape
        size = pairs * lams * rule_points("tensor", _features(problem), *problem.noises, panels, "panels")
        if size > rows or size == before:  # too large, or nothing is continuous
            return
        yield panels, replace(finer, rule=_noise_rule(problem, panels, "panels"))
        panels, before = 2 * panels, size


def _composite(problem: Problem, grid: Grid, eps: Tensor, rows: int) -> Iterator[_Attempt]:
    """Composite rules of 8, 16, .. panels. The error is the change from rules with fewer panels.

    The changes are added up without signs over all pairs and over the panels of the coarsest rule. If the panels are
    halved, the error by a kink falls by four on average, but not always. Therefore three earlier rules are compared, or
    two if the changes fall much faster than kinks allow.
    """
    earlier: list[Tensor] = []
    cells, last = (1, 1), None
    for panels, finer in _panel_grids(problem, grid, rows):
        _, lams, noises = finer.shape
        if not earlier:
            cells = (
                lams // PANEL_ORDER if lams % PANEL_ORDER == 0 else lams,
                FIRST_PANELS if noises % FIRST_PANELS == 0 else 1,
            )
        found = _sums(problem, finer, eps, [cells])
        (now,) = found.parts
        if earlier:
            change = (now - earlier[-1]).abs().sum(0)
            fast = last is not None and bool((change <= _FAST * last).all())
            others = (earlier[1:] or earlier)[: -3 if fast else -4 : -1]  # the coarsest rule is only a start
            changes = [(now - one).abs() / 4**k for k, one in enumerate(others)]
            last, change = change, SAFETY * torch.stack(changes).amax(0).sum(0)
            rounding = _rounding(problem, finer, found.size)
            words = f", {panels} panels of each variable"
            yield _Attempt(finer, found.total, found.size, change, rounding, words)
        earlier.append(now)


def _more_nodes(
    problem: Problem, first: _Attempt, eps: Tensor, limit: Tensor, num: tuple[int, int], rows: int
) -> _Attempt | None:
    """Twice as many Gauss nodes of the variables whose error is above the limit; `None` if that is too much work."""
    num_lam, num_noise = (
        count * (2 if bool((part > limit / 2).any()) else 1)
        for count, part in zip(num, (first.lam_error, first.noise_error), strict=True)
    )
    larger = replace(first.grid, num_lam=num_lam)
    pairs, lams, _ = larger.shape
    if pairs * lams * rule_points("tensor", _features(problem), *problem.noises, num_noise) > rows:
        return None
    return _gauss(problem, replace(larger, rule=_noise_rule(problem, num_noise, "gauss")), num_noise, eps)


@torch.no_grad()
def _refined(problem: Problem, first: _Attempt, eps: Tensor, limit: Tensor, quadrature: Quadrature) -> _Attempt:
    """The first of the finer rules whose error is small enough, otherwise the one with the smallest error."""
    rows, num = min(quadrature.max_rows, REFINED_ROWS // len(eps)), (quadrature.num_lam, quadrature.num_noise)
    more = _more_nodes(problem, first, eps, limit, num, rows // 4)
    best = first if more is None or more.error.max() >= first.error.max() else more
    if (best.error <= limit).all():
        return best
    for attempt in _composite(problem, first.grid, eps, rows):
        best = attempt if attempt.error.max() < best.error.max() else best
        if (attempt.error <= limit).all():
            break
    return best


def _sampled_error(problem: Problem, value: Tensor, eps: Tensor, form: str, rows: int) -> Tensor:
    """The error of a cubature, which is not the law itself: its distance from Monte Carlo, and the error of that."""
    n = len(problem.features)
    samples = max(200 * n, min(rows, DEFAULT_SAMPLES))
    generator = torch.Generator(eps.device).manual_seed(0)
    if form == "mixed":
        other = training_loss([problem], samples=samples, permute=False, generator=generator)
    else:
        shared = isinstance(problem, Branches) and problem.shared_noise
        variate = "none" if shared else "quadratic"
        other = monte_carlo_loss(problem, eps, samples=samples, control_variate=variate, generator=generator)
    return (other.value - value).abs().double() + other.error.double()


def exact_loss(problem: Problem, eps: Tensor, form: str, quadrature: Quadrature) -> Estimate:
    """The loss of one problem at every ε of `eps` `(E,)`, with the error of the rule.

    Args:
        problem: the setting.
        eps: scales, `(E,)`.
        form: `"unmixed"` or `"mixed"`.
        quadrature: rule and number of nodes, and the relative error above which finer rules are tried.

    Raises:
        GridTooLargeError: if the rule needs more rows than `quadrature` allows.
    """
    grid = problem.grid(
        rule=quadrature.rule, degree=3, num_lam=quadrature.num_lam, num_noise=quadrature.num_noise,
        max_rows=quadrature.max_rows, unmixed=form == "unmixed",
    )  # fmt: skip
    dtype, name = problem.features.dtype, f"deterministic, {grid.rule.name}"
    if grid.rule.name.startswith("cubature"):
        value = _sums(problem, grid, eps).total.to(dtype)
        error = _sampled_error(problem, value.detach(), eps, form, grid.rows).to(dtype)
        return Estimate(value, torch.zeros_like(error), grid.rows, name, quadrature_error=error)
    found = _gauss(problem, grid, quadrature.num_noise, eps)
    value, error, rows = found.total, found.error, grid.rows
    if quadrature.rtol is not None:
        limit = max(quadrature.rtol, 1e3 * torch.finfo(dtype).eps) * found.size
        todo = error > limit
        if todo.any():
            rough = found[todo]
            best = _refined(problem, rough, eps[todo], limit[todo], quadrature)
            if best is not rough:
                total = _sums(problem, best.grid, eps[todo]).total if value.requires_grad else best.total
                value, error = value.index_put((todo,), total), error.index_put((todo,), best.error)
                rows, name = best.grid.rows, name + best.words
    value, error = value.to(dtype), error.to(dtype)
    return Estimate(value, torch.zeros_like(error), rows, name, quadrature_error=error)
