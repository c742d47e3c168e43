r"""The exact minimum of a linear function of a small ReLU network over a ball, region by region (theory §5).

The ball is cut along the activation boundaries that cross it, layer by layer. On a cell `{A x <= b}` the network is
affine, and the minimum of `c·x` over the cell and the ball is a convex problem. Every claim has a proof that does not
trust the solver:

| claim | how it is proved |
|---|---|
| a cell does not meet the ball | multipliers μ ≥ 0 with a positive dual value |
| no point of a cell has a smaller value | weak duality: `(c + Aᵀμ)·x₀ - μ·b - ρ‖c + Aᵀμ‖_*` for any μ ≥ 0 |
| the minimum is not larger than a value | the network has this value at a point of the ball |

For the l2 ball the multipliers come from least-distance problems, solved by non-negative least squares (Lawson and
Hanson); for the l∞ ball they come from linear programs.

The cells are those of the network with its coefficients as they are rounded in float64. At no point of the ball does it
differ by more than D from the network in exact arithmetic, or from the network as it computes, and D is added to every
bound: D passes through the steps as `|A| D + E`, with the rounding error E of each step (`rounding`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy
import torch
from torch import Tensor

from .affine_step import Affine
from .balls import Ball
from .relaxations import Scalar, Step
from .rounding import sum_error

#: Number of cells above which enumeration gives up.
MAX_CELLS = 20_000
_GROWTHS, _BISECTIONS = 16, 60


class RegionLimitError(ValueError):
    """More linear regions cross a ball than `max_cells` allows."""


@dataclass(frozen=True)
class Enumerated:
    """Minima of linear functions over balls, from `enumerated_minimum`.

    Attributes:
        lower: certified lower bounds of the minima, `(b, J)`.
        upper: upper bounds of the minima: the values at `points`, `(b, J)`.
        points: the points of the balls with the smallest values that were found, `(b, J, *feature)`.
        regions: number of cells that meet the ball, `(b,)`.
    """

    lower: Tensor
    upper: Tensor
    points: Tensor
    regions: Tensor

    @property
    def gap(self) -> Tensor:
        """Upper minus lower bound, rounding included, `(b, J)`: how much remains unknown."""
        return self.upper - self.lower


@dataclass(frozen=True)
class _Set:
    """One ball around `center` in flat coordinates, with the box `lo <= x <= hi`; `round` is True for l2.

    The points of the set that `admit` returns lie in the ball of the radius `inner`, which is not widened for rounding.
    """

    center: np.ndarray
    radius: float
    lo: np.ndarray
    hi: np.ndarray
    round: bool
    inner: float

    @property
    def size(self) -> np.ndarray:
        """Largest absolute value of each coordinate."""
        return np.abs(self.center) + self.radius

    def lowest(self, c: np.ndarray) -> np.ndarray:
        """The minima of `c·x` over the ball (l2) or the box (l∞), for each row c."""
        if self.round:
            return c @ self.center - self.radius * np.linalg.norm(c, axis=-1)
        return np.maximum(c, 0) @ self.lo + np.minimum(c, 0) @ self.hi

    def corner(self, c: np.ndarray) -> np.ndarray:
        """The point at which `c·x` has the value `lowest`."""
        if not self.round:
            return np.where(c > 0, self.lo, self.hi)
        size = np.linalg.norm(c)
        return self.center - (self.radius / size) * c if size > 0 else self.center.copy()

    def admit(self, x: np.ndarray) -> np.ndarray:
        """A point of the set close to x."""
        away, rounding = x - self.center, sum_error(4 * len(x) + 32)
        size = float(np.linalg.norm(away, ord=None if self.round else np.inf))
        scale = min(1.0, self.inner / size) if size > 0 else 1.0
        for _ in range(3):
            x = np.clip(self.center + away * scale, self.lo, self.hi)
            if np.linalg.norm(x - self.center, ord=None if self.round else np.inf) * (1 + rounding) <= self.inner:
                return x
            scale *= 1 - 4 * rounding
        return self.center.copy()


def _dual(ball: _Set, c: np.ndarray, a: np.ndarray, b: np.ndarray, mu: np.ndarray) -> float:
    """A lower bound of `min c·x` over `{a x <= b}` and the set, valid for every μ ≥ 0, rounding included."""
    size = (np.abs(c) + np.abs(a).T @ mu) @ ball.size + mu @ np.abs(b)
    rounding = sum_error(len(c) + 2 * len(b) + 16)
    return float(ball.lowest(c + a.T @ mu) - mu @ b - rounding * size)


def _lowest(ball: _Set, c: np.ndarray) -> float:
    """A lower bound of `min c·x` over the set."""
    return _dual(ball, c, np.zeros((0, len(c))), np.zeros(0), np.zeros(0))


def _empty(ball: _Set, a: np.ndarray, b: np.ndarray) -> bool:
    """True if it is proved that `{a x <= b}` does not meet the set."""
    d = len(ball.center)
    if ball.round:
        mu = _nearest(a, a @ ball.center - b)[1]
    else:
        cost = np.append(np.zeros(d), 1.0)
        limits = [*zip(ball.lo, ball.hi, strict=True), (None, None)]
        found = scipy.optimize.linprog(
            cost, A_ub=np.hstack([a, -np.ones((len(a), 1))]), b_ub=b, bounds=limits, method="highs"
        )
        if found.status != 0:
            return False
        mu = np.maximum(-found.ineqlin.marginals, 0)
    return bool(_dual(ball, np.zeros(d), a, b, mu / max(mu.sum(), 1e-300)) > 0)


def _nearest(a: np.ndarray, excess: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
    """The shortest y with `a y <= -excess`, and its multipliers; `None` and a direction of them if there is no y."""
    d = a.shape[1]
    system = np.vstack([-a.T, excess[None]])
    target = np.append(np.zeros(d), 1.0)
    try:
        u, _ = scipy.optimize.nnls(system, target)
    except RuntimeError:  # without convergence nothing is claimed
        return None, np.zeros(len(a))
    residual = system @ u - target
    if residual[-1] > -1e-13:
        return None, u
    return -residual[:-1] / residual[-1], u / -residual[-1]


def _solve_round(ball: _Set, c: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[float, np.ndarray]:
    """Lower bound and candidates of `min c·x` over cell and l2 ball: projections of `x₀ - t c`, with t by bisection."""
    best, points = _lowest(ball, c), [ball.corner(c)]
    size = np.linalg.norm(c)
    if size == 0:
        return best, np.stack(points)
    low, high, attained = 0.0, ball.radius / size, math.inf

    def at(t: float) -> float:
        """Distance of the projection from the center; the best bound and the point are kept."""
        nonlocal best, attained
        start = ball.center - t * c
        y, mu = _nearest(a, a @ start - b)
        if y is None:
            return math.inf
        if t > 0:
            best = max(best, _dual(ball, c, a, b, mu / t))
        points.append(start + y)
        distance = float(np.linalg.norm(points[-1] - ball.center))
        if distance <= ball.radius:
            attained = min(attained, float(c @ points[-1]))
        return distance

    for _ in range(_GROWTHS):
        if at(high) >= ball.radius:
            break
        low, high = high, high * 4
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle) < ball.radius else (low, middle)
        if high - low <= 1e-13 * high or attained - best <= 1e-10 * (1 + abs(best)):
            break
    return best, np.stack(points)


def _solve_box(ball: _Set, c: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[float, np.ndarray]:
    """Lower bound and candidate of `min c·x` over cell and l∞ ball, by a linear program."""
    best, point = _lowest(ball, c), ball.corner(c)
    found = scipy.optimize.linprog(c, A_ub=a, b_ub=b, bounds=list(zip(ball.lo, ball.hi, strict=True)), method="highs")
    if found.status == 0:
        best = max(best, _dual(ball, c, a, b, np.maximum(-found.ineqlin.marginals, 0)))
        point = found.x
    return best, point[None]


@dataclass(frozen=True)
class _Cell:
    """A cell `{a x <= b}`, on which the input of the next step is `weight x + bias`."""

    weight: np.ndarray
    bias: np.ndarray
    a: np.ndarray
    b: np.ndarray


def _split(cell: _Cell, ball: _Set, kink: float, limit: int) -> list[_Cell]:
    """Cut a cell at an activation: one part for each pattern of signs that occurs."""
    low, high = ball.lowest(cell.weight) + cell.bias, -ball.lowest(-cell.weight) + cell.bias
    factors = np.where(low >= 0, 1.0, kink)
    start = (
        ball.center if (cell.a @ ball.center <= cell.b).all() else None
    )  # a known point of the part, if there is one
    parts = [(cell.a, cell.b, factors, start)]
    for unit in np.flatnonzero((low < 0) & (high > 0)):
        grown = []
        for a, b, pattern, known in parts:
            side = 0.0 if known is None else cell.weight[unit] @ known + cell.bias[unit]
            for sign, factor in ((-1.0, 1.0), (1.0, kink)):  # w x + b >= 0, then <= 0
                more = np.vstack([a, sign * cell.weight[unit]]), np.append(b, -sign * cell.bias[unit])
                holds = side * sign < 0
                if holds or not _empty(ball, *more):
                    changed = pattern.copy()
                    changed[unit] = factor
                    grown.append((*more, changed, known if holds else None))
        parts = grown
        if len(parts) > limit:
            raise RegionLimitError(
                f"enumeration: more than max_cells = {limit} linear regions cross the ball; use a smaller radius or "
                "network, or method='crown'."
            )
    return [_Cell(f[:, None] * cell.weight, f * cell.bias, a, b) for a, b, f, _ in parts]


def _maps(steps: Sequence[Step], h: Tensor) -> list[tuple[np.ndarray, np.ndarray] | float]:
    """The dense affine maps of the network and, between them, the slopes of the kinks."""
    found, value = [], h[:1]
    for step in steps:
        if isinstance(step, Affine):
            d = value.numel()
            units = torch.eye(d, dtype=value.dtype, device=value.device).reshape(d, *value.shape[1:])
            bias = step(torch.zeros_like(value)).flatten()
            weight = step.linear(units).flatten(1)
            found.append((weight.T.double().cpu().numpy(), bias.double().cpu().numpy()))
        elif step.kink_slope is None:
            raise ValueError("enumeration: expected ReLU and LeakyReLU activations only; use method='crown'.")
        else:
            found.append(step.kink_slope)
        value = step(value)
    return found


def _cells(maps: list, ball: _Set, limit: int) -> list[_Cell]:
    """All cells of the network that meet the set."""
    d = len(ball.center)
    a, b = np.zeros((0, d)), np.zeros(0)
    if ball.round and not (np.isneginf(ball.lo).all() and np.isposinf(ball.hi).all()):  # l2 cut by a box
        a, b = np.vstack([np.eye(d), -np.eye(d)]), np.append(ball.hi, -ball.lo)
    cells = [_Cell(np.eye(d), np.zeros(d), a, b)]
    for part in maps:
        if isinstance(part, float):
            grown: list[_Cell] = []
            for cell in cells:
                grown += _split(cell, ball, part, limit - len(grown))
            cells = grown
        else:
            weight, bias = part
            cells = [_Cell(weight @ c.weight, weight @ c.bias + bias, c.a, c.b) for c in cells]
    return cells


def _minimum(cells: list[_Cell], ball: _Set, objective: np.ndarray, value) -> tuple[float, float, np.ndarray]:
    """Lower bound, smallest value found, and its point; `value` evaluates the network's objective at points."""
    functions = np.stack([objective @ cell.weight for cell in cells])
    constants = np.array([objective @ cell.bias for cell in cells])
    outer = ball.lowest(functions) + constants
    starts = np.stack([ball.center, *(ball.admit(ball.corner(c)) for c in functions)])
    values = value(starts)
    best = int(values.argmin())
    upper, point, lower = float(values[best]), starts[best], math.inf
    solve = _solve_round if ball.round else _solve_box
    for k in np.argsort(outer):
        if outer[k] >= min(upper, lower):
            lower = min(lower, float(outer[k]))
            break
        cell = cells[k]
        if len(cell.b):
            bound, candidates = solve(ball, functions[k], cell.a, cell.b)
            bound += float(constants[k])
            candidates = np.stack([ball.admit(x) for x in candidates])
            values = value(candidates)
            if values.min() < upper:
                upper, point = float(values.min()), candidates[values.argmin()]
        else:
            bound = float(outer[k])
        lower = min(lower, bound)
    return min(lower, upper), upper, point


def _deviation(steps: Sequence[Step], ball: Ball) -> Tensor:
    """D, the largest difference of the outputs from those on the cells, with the rounding of the bounds, `(b, K)`."""
    count = ball.center[0].numel()
    size, far = ball.size, torch.zeros_like(ball.center)
    for step in steps:
        if isinstance(step, Affine):
            before, size, far = size, step.magnitude(size), 1.001 * step.spread(far)
            far = far + sum_error(before[0].numel() + 8) * size + step.network_error(size + far, before)
        elif isinstance(step, Scalar):  # slopes are at most 1; a unit may count as on one side of its kink
            far = far + sum_error(count + 8) * size + step.network_error(1 + 2 * (size + far), size)
    return far + sum_error(2 * (count + size[0].numel() + 8)) * size


@torch.no_grad()
def enumerated_minimum(
    steps: Sequence[Step], ball: Ball, objectives: Tensor, *, max_cells: int = MAX_CELLS
) -> Enumerated:
    """Minima of linear functions of the outputs of a small ReLU network over balls, enclosed from both sides.

    Args:
        steps: the network as steps, see `network_steps`; its activations are ReLU or LeakyReLU.
        ball: the balls in which the inputs lie.
        objectives: coefficients of the outputs, `(b, J, K)`.
        max_cells: largest number of regions that are followed.

    Raises:
        RegionLimitError: if more than `max_cells` regions cross a ball.
        ValueError: for other activations.
    """
    h = ball.center
    maps = _maps(steps, h)
    lo, hi = (z.flatten(1).double().cpu().numpy() for z in ball.limits)
    if ball.norm == "l2":
        low, high = (-np.inf, np.inf) if ball.box is None else ball.box
        lo, hi = np.full_like(lo, low), np.full_like(hi, high)
    charge = (objectives.abs() * _deviation(steps, ball).reshape(len(h), 1, -1)).sum(2) * 1.001
    inner = ball.radius if ball.inner is None else ball.inner
    lower, upper, points, regions = [], [], [], []
    for row, center in enumerate(h.flatten(1).double().cpu().numpy()):
        local = _Set(center, float(ball.radius[row]), lo[row], hi[row], ball.norm == "l2", float(inner[row]))
        cells = _cells(maps, local, max_cells)
        regions.append(len(cells))

        def value(x: np.ndarray, objective: np.ndarray) -> np.ndarray:
            out = x
            for part in maps:
                out = out @ part[0].T + part[1] if isinstance(part, tuple) else np.where(out >= 0, out, part * out)
            return out @ objective

        found = [_minimum(cells, local, c, lambda x, c=c: value(x, c)) for c in objectives[row].double().cpu().numpy()]
        lower.append([f[0] for f in found])
        upper.append([f[1] for f in found])
        points.append(np.stack([f[2] for f in found]))
    return Enumerated(
        lower=torch.tensor(lower, dtype=torch.float64).to(h) - charge,
        upper=torch.tensor(upper, dtype=torch.float64).to(h) + charge,
        points=torch.tensor(np.stack(points)).to(h).unflatten(2, h.shape[1:]),
        regions=torch.tensor(regions, device=h.device),
    )
