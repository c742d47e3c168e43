r"""Lower bounds of linear functions of a network's outputs over a ball, by linear relaxation (theory §5).

| method | bounds of the inputs of the activations | bounds of the outputs |
|---|---|---|
| `"interval"` | intervals | intervals |
| `"crown-ibp"` | intervals | one backward pass through the enclosing lines; the better of it and intervals |
| `"crown"` | backward passes; the better of them and intervals | the same as for `"crown-ibp"` |

A backward pass carries the inequality `c·f(x) >= C·z + constant` from the outputs to the input, step by step (Zhang et
al. 2018, CROWN; Gowal et al. 2018, intervals). The bound is exact if no activation is loose on the ball, because the
ball then lies in one linear region.

Everything is computed in float64, and every bound is moved outwards by a bound of its rounding error (`rounding`). In a
backward pass the error of step k, of the pass and of the network itself, is at most `|C_k|·E_k`. Here C_k are the
coefficients of the step's output, and E_k is a multiple of the unit roundoff and of the sizes of everything that is
summed in the step. So the bounds hold for the network in exact arithmetic, and as it computes in its own precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ..setting.checks import one_of
from ..setting.options import progress_bar
from .affine_step import Affine
from .balls import Ball, Norm, check_ball
from .max_pooling import MaxPool, WindowLines
from .relaxations import Lines, Scalar, Step
from .rounding import in_double, sum_error

Relaxation = Literal["interval", "crown-ibp", "crown"]
RELAXATIONS = get_args(Relaxation)
#: Largest number of coefficients that a backward pass carries at once.
BLOCK_NUMBERS = 2**24
#: More than all that can be lost where numbers are so small that they round to 0.
TINY = 1e-130
#: Largest number of activations for which the method "auto" is "crown".
FEW_ACTIVATIONS = 4096


@dataclass(frozen=True)
class Relaxed:
    """Lower bounds of linear functions over balls, from `relaxed_minimum` or `region_minimum`.

    Attributes:
        lower: lower bounds, `(b, J)`.
        inside: True if no activation is loose, so that the bounds are exact, `(b,)`.
        loose: number of loose activations, `(b,)`; for `region_minimum`, 1 if the ball leaves the linear region.
    """

    lower: Tensor
    inside: Tensor
    loose: Tensor


class _Chain:
    """A network as steps, with the inputs of every step at the centers, and what is known of the steps on the balls.

    Attributes:
        values: inputs of every step at the centers, and the outputs at the end.
        lines: lines that enclose the activations.
        errors: bounds E of the rounding error of each step, `(b, *out)`; `linear_bounds` says how they are used.
    """

    def __init__(self, steps: Sequence[Step], ball: Ball):
        self.steps, self.ball = list(steps), ball
        self.values = [ball.center]
        for step in self.steps:
            self.values.append(step(self.values[-1]))
            if len(self.values[-1]) != len(ball.center):
                raise ValueError(f"certificate: {step.module!r} changes the number of samples; keep them apart.")
        self.lines: dict[int, Lines | WindowLines] = {}
        self.errors: dict[int, Tensor] = {}

    def rounding(self, count: int) -> float:
        """Relative error of a sum of `count` products in a pass through all steps, whose results are added up."""
        return sum_error(count + len(self.steps) + 8)

    def backward(self, c: Tensor, start: int, slopes: dict[int, Tensor] | None = None, stop: int = 0):
        """Carry coefficients `c`, `(J, b, *shape)`, from the input of step `start` back to that of step `stop`.

        Returns the coefficients there, the constants of the inequality and a bound of the rounding error, `(J, b)`.
        """
        constant = c.new_zeros(c.shape[:2])
        error = constant
        for k in range(start - 1, stop - 1, -1):
            step = self.steps[k]
            if k in self.errors:
                error = error + (c.abs() * self.errors[k]).flatten(2).sum(2)
            if isinstance(step, Affine):
                c, extra = step.pull(c, self.values[k])
            else:
                c, extra = self.lines[k].pull(c, None if slopes is None else slopes.get(k))
            constant = constant + extra
        return c, constant, error

    def minimum(self, c: Tensor, start: int, slopes: dict[int, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Lower bounds over the ball of linear functions of the input of step `start`, and the rounding in them."""
        c, constant, error = self.backward(c, start, slopes)
        size = (c.abs() * self.ball.size).flatten(2).sum(2)
        error = 1.001 * (error + self.rounding(c[0, 0].numel()) * size) + TINY
        return self.ball.minimum(c) + constant - error, error

    def affine_errors(self, k: int, size: Tensor) -> tuple[Tensor, Tensor]:
        """E of an affine step in a backward pass and in an interval, for an input with entries up to `size`."""
        step = self.steps[k]
        assert isinstance(step, Affine)
        magnitude = step.magnitude(size)
        own = step.network_error(magnitude, size)
        across, ahead = self.rounding(magnitude[0].numel()), self.rounding(4 * size[0].numel())
        return across * magnitude + own, ahead * magnitude + own

    def activation_errors(self, k: int, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """E of an activation on `[lo, hi]`, and the part of it that is the network's own rounding."""
        step, lines, size = self.steps[k], self.lines[k], torch.maximum(lo.abs(), hi.abs())
        assert not isinstance(step, Affine)
        if isinstance(step, MaxPool):
            own = torch.zeros_like(self.values[k + 1])
        else:
            own = step.network_error(1 + size + torch.maximum(step(hi).abs(), step(lo).abs()), hi)
        entries, offsets = lines.magnitudes(size)
        count = own[0].numel()
        windows = count if isinstance(step, MaxPool) else 2
        return self.rounding(windows) * entries + self.rounding(count) * offsets + own, own

    def units(self, k: int):
        """Unit coefficients of the input of step k, in blocks `(J, b, *shape)`."""
        shape, b = self.values[k].shape[1:], len(self.ball.center)
        size = shape.numel()
        widest = max(value[0].numel() for value in self.values[: k + 1])
        for block in torch.arange(size, device=self.values[k].device).split(max(1, BLOCK_NUMBERS // (widest * b))):
            unit = self.values[k].new_zeros(len(block), 1, size)
            unit[torch.arange(len(block)), 0, block] = 1.0
            yield unit.expand(-1, b, -1).unflatten(2, shape).contiguous()

    def bounds(self, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """Bounds of the input of step k by backward passes: lower, upper, and the rounding, each `(b, *shape)`."""
        found = []
        for unit in self.units(k):
            (below, error), (above, other) = self.minimum(unit, k), self.minimum(-unit, k)
            found.append((below, -above, torch.maximum(error, other)))
        lower, upper, error = (torch.cat(part).T.reshape(self.values[k].shape) for part in zip(*found, strict=True))
        return lower, upper, error


def _interval(chain: _Chain, method: str) -> tuple[list[tuple[Tensor, Tensor]], int]:
    """Fill `chain.lines` and `chain.errors`.

    Returns the intervals of the inputs of all steps and of the outputs, and the number of steps up to the last
    activation.
    """
    ball = chain.ball
    (lo, hi), behind = ball.limits, 0
    squares = torch.ones_like(ball.center) if ball.norm == "l2" else None  # squared row norms of the affine map so far
    drift, mixed = torch.zeros_like(lo), False
    found = [(lo, hi)]
    for k, step in enumerate(progress_bar(chain.steps, title="bounds")):
        if isinstance(step, Affine):
            chain.errors[k], error = chain.affine_errors(k, torch.maximum(lo.abs(), hi.abs()))
            middle, spread = step((lo + hi) / 2), step.spread((hi - lo) / 2) + error
            lo, hi = middle - spread, middle + spread
            if squares is not None:
                squares = None if mixed and step.mixes else step.row_squares(squares)
                mixed |= step.mixes
                drift = 1.001 * step.spread(drift) + error
            if squares is not None:
                radius = ball.radius.reshape(-1, *[1] * (lo.ndim - 1))
                reach = radius * squares.sqrt() * (1 + chain.rounding(2 * squares[0].numel())) + drift + TINY
                lo, hi = (
                    torch.maximum(lo, chain.values[k + 1] - reach),
                    torch.minimum(hi, chain.values[k + 1] + reach),
                )
            found.append((lo, hi))
            continue
        slack = torch.full_like(lo, 2 * TINY)
        if method == "crown":
            below, above, error = chain.bounds(k)
            lo, hi, slack = torch.maximum(lo, below), torch.minimum(hi, above), slack + 2 * error
        squares, behind = None, k + 1
        chain.lines[k] = step.lines(lo, hi, slack)
        chain.errors[k], own = chain.activation_errors(k, lo, hi)
        lo, hi = step.interval(lo, hi)
        lo, hi = lo - own, hi + own
        found.append((lo, hi))
    return found, behind


def _raise_slopes(chain: _Chain, c: Tensor, first: Tensor, num_steps: int) -> Tensor:
    """Improve the slopes of the lines below kinks by gradient ascent; return the best bounds met, `(J, b)`."""
    kinked = {k: step for k, step in enumerate(chain.steps) if isinstance(step, Scalar)}
    kinked = {k: step for k, step in kinked.items() if step.kink_slope is not None}
    lines = {k: found for k, found in chain.lines.items() if k in kinked and isinstance(found, Lines)}
    slopes = {k: found.lower_slope.expand(len(c), *found.lower_slope.shape).clone() for k, found in lines.items()}
    best = first
    if not slopes:
        return best
    with torch.enable_grad():
        for slope in slopes.values():
            slope.requires_grad_()
        ascent = torch.optim.Adam(slopes.values(), lr=0.1, maximize=True)
        for _ in range(num_steps):
            ascent.zero_grad()
            chain.minimum(c, len(chain.steps), slopes)[0].sum().backward()
            ascent.step()
            with torch.no_grad():
                for k, slope in slopes.items():
                    slope.clamp_(kinked[k].kink_slope, 1.0)
                best = torch.maximum(best, chain.minimum(c, len(chain.steps), slopes)[0])
    return best.detach()


@torch.no_grad()
def relaxed_minimum(
    steps: Sequence[Step],
    ball: Ball,
    objectives: Tensor,
    *,
    method: Relaxation = "crown",
    slope_steps: int = 0,
) -> Relaxed:
    """Lower bounds of linear functions of the outputs over balls, by linear relaxation.

    Args:
        steps: the network as steps, see `network_steps`.
        ball: the balls in which the inputs lie.
        objectives: coefficients of the outputs, `(b, J, K)`.
        method: method of the bounds, see the module.
        slope_steps: number of gradient steps that improve the free slopes below kinks; every step gives a valid bound.

    Raises:
        ValueError: for an unknown method.
    """
    one_of("method", method, RELAXATIONS)
    chain = _Chain(steps, ball)
    with torch.backends.cudnn.flags(enabled=False):  # its fast algorithms do not sum products
        return _relaxed(chain, objectives, method, slope_steps)


def _relaxed(chain: _Chain, objectives: Tensor, method: Relaxation, slope_steps: int) -> Relaxed:
    ranges, behind = _interval(chain, method)
    c = objectives.transpose(0, 1).contiguous()
    lower = chain.minimum(c, len(chain.steps))[0] if method != "interval" or not behind else None
    if lower is not None and slope_steps and method != "interval":
        lower = _raise_slopes(chain, c, lower, slope_steps)
    if behind:  # the outputs are a linear function of the last activation's output, which lies in an interval
        last, constant, error = chain.backward(c, len(chain.steps), stop=behind)
        lo, hi = ranges[behind]
        size = (last.abs() * torch.maximum(lo.abs(), hi.abs())).flatten(2).sum(2)
        boxed = (last.clamp(min=0) * lo + last.clamp(max=0) * hi).flatten(2).sum(2) + constant
        boxed = boxed - 1.001 * (error + chain.rounding(last[0, 0].numel()) * size) - TINY
        lower = boxed if lower is None else torch.fmax(lower, boxed)
    assert lower is not None  # without activations every method has a backward pass
    lower = torch.where(lower.isnan(), -torch.inf, lower)
    loose = sum(
        (lines.loose.flatten(1).sum(1) for lines in chain.lines.values()), torch.zeros_like(chain.ball.radius).long()
    )
    return Relaxed(lower.T, loose == 0, loose)


@torch.no_grad()
def output_range(steps: Sequence[Step], ball: Ball) -> tuple[Tensor, Tensor]:
    """Intervals of the outputs over balls, a pair of `(b, K)`, with all rounding errors of the network."""
    lo, hi = _interval(_Chain(steps, ball), "interval")[0][-1]
    return (lo.unsqueeze(-1), hi.unsqueeze(-1)) if lo.ndim == 1 else (lo, hi)


def region_minimum(steps: Sequence[Step], ball: Ball, objectives: Tensor) -> Relaxed:
    """The minima `m - ρ‖∇m‖_*` for balls that lie in the linear region of their center; -inf for all others.

    Args:
        steps: the network as steps; its activations are ReLU or LeakyReLU.
        ball: the balls in which the inputs lie.
        objectives: coefficients of the outputs, `(b, J, K)`.

    Raises:
        ValueError: for other activations.
    """
    _check_kinked(steps)
    found = relaxed_minimum(steps, ball, objectives, method="crown")  # exact in one region
    outside = ~found.inside.unsqueeze(1)
    return Relaxed(found.lower.masked_fill(outside, -torch.inf), found.inside, (~found.inside).long())


def _check_kinked(steps: Sequence[Step]) -> None:
    if any(not isinstance(step, Affine) and step.kink_slope is None for step in steps):
        raise ValueError("region: expected ReLU and LeakyReLU only, which have linear regions; use method='crown'.")


def activation_count(steps: Sequence[Step], h: Tensor) -> int:
    """The number of inputs of all activations, for one example."""
    total, value = 0, h[:1]
    with torch.no_grad():
        for step in steps:
            total += 0 if isinstance(step, Affine) else value.numel()
            value = step(value)
    return total


@torch.no_grad()
def region_distance(steps: Sequence[Step], h: Tensor, *, norm: Norm = "l2") -> Tensor:
    r"""Distance of each example to the nearest activation boundary, `(b,)`: `min |z| / ‖∇z‖_*` over all units.

    In the linear region of h the input z of every activation is affine, and the region is the set on which none of them
    changes its sign. So the ball of this radius is the largest one in the region, and the distance is exact.

    Args:
        steps: the network as steps; its activations are ReLU or LeakyReLU.
        h: features, `(b, *feature)`.
        norm: norm of the distance, `"l2"` or `"linf"`.

    Raises:
        ValueError: for other activations and unknown norms.

    Example:
        >>> from torch import nn
        >>> from nfm_theory.adversarial.relaxations import network_steps
        >>> net = nn.Sequential(nn.Linear(2, 1, bias=False), nn.ReLU())
        >>> _ = nn.init.constant_(net[0].weight, 1.0)
        >>> round(float(region_distance(network_steps(net), torch.tensor([[1.0, 2.0]]))), 4)  # 3 / √2
        2.1213
    """
    _check_kinked(steps)
    ball = check_ball(in_double(h), 0.0, norm, None)
    chain = _Chain(steps, ball)
    nearest = torch.full_like(ball.radius, torch.inf)
    for k, step in enumerate(chain.steps):
        if isinstance(step, Affine):
            continue
        chain.lines[k] = step.lines(chain.values[k], chain.values[k])
        values = chain.values[k].flatten(1).abs()
        steepness = torch.cat([ball.dual_norm(chain.backward(unit, k)[0]) for unit in chain.units(k)]).T
        ratio = torch.where(steepness > 0, values / steepness, torch.full_like(values, torch.inf))
        nearest = torch.minimum(nearest, ratio.amin(1))
    return nearest.to(h)
