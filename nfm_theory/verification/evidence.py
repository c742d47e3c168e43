"""What a rule or a set of draws measures on a network: Taylor coefficients, and remainders over a range of scales."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..expansion.paths import integral_remainder, taylor_coefficients
from ..expansion.terms import problem_grid, rule_sum
from ..losses.monte_carlo import RunningMoments
from ..setting.problem import Problem
from ..setting.quadrature import Grid, GridTooLargeError

#: Multiples of the machine precision below which a difference of coefficients counts as rounding.
ROUNDING = 1e3
#: The same for a remainder, so that one above the floor is right to a percent: rounding averages over the rows.
FLOOR = 100.0


@dataclass(frozen=True)
class Evidence:
    """Measured coefficients c_0..c_q with their errors, and remainders of the polynomial of degree q - 1 made of them.

    Attributes:
        coefficients: c_0..c_q, `(q + 1,)`.
        coefficient_error: largest error that rounding and sampling explain.
        remainders: at every scale, `(E,)`.
        stderr: standard errors of the remainders, zero for a rule.
        floor: size of a remainder that is nothing but rounding.
        samples: evaluations of the head.
        method: how it was measured, in words.
    """

    coefficients: Tensor
    coefficient_error: Tensor
    remainders: Tensor
    stderr: Tensor
    floor: Tensor
    samples: int
    method: str

    def extend(self, new: Evidence) -> Evidence:
        """The same measurement at further scales."""
        names = ("remainders", "stderr", "floor")
        parts = {name: torch.cat([getattr(self, name), getattr(new, name)]) for name in names}
        return replace(self, **parts, samples=self.samples + new.samples)

    @staticmethod
    def average(parts: Sequence[Evidence]) -> Evidence:
        """Mean over layers; sampling errors add in quadrature."""
        names = ("coefficients", "coefficient_error", "remainders", "floor")
        means = {name: torch.stack([getattr(p, name) for p in parts]).mean(0) for name in names}
        stderr = torch.stack([p.stderr**2 for p in parts]).sum(0).sqrt() / len(parts)
        return Evidence(**means, stderr=stderr, samples=sum(p.samples for p in parts), method=parts[0].method)


def _scales(problem: Problem, eps: Sequence[float]) -> list[Tensor]:
    g = problem.features
    return [torch.as_tensor(e, dtype=g.dtype, device=g.device) for e in eps]


def rounding_unit(problem: Problem) -> Tensor:
    """Size of a rounding error of one sample's loss, `(n,)`: a loss near 0 is a difference of large logits."""
    outputs = problem.head(problem.features)
    losses = problem.loss(outputs, problem.labels)
    return torch.finfo(losses.dtype).eps * (losses.abs() + outputs.abs().amax(-1))


def _floor(problem: Problem, eps: Sequence[float], amplification: float, integral: bool) -> Tensor:
    """Nothing cancels in the integral form; a difference is as uncertain as what it is taken of."""
    size = 0.0 if integral else FLOOR * amplification * float(rounding_unit(problem).mean())
    return torch.full((len(eps),), size, dtype=torch.float64, device=problem.features.device)


class RuleEvidence:
    """Measurements by a deterministic rule.

    Coefficients need no more than a rule that is exact to degree q, which may be a smaller one than that of the
    remainders.

    Args:
        problem: the setting.
        grid: rule for the remainders, exact at least to degree q.
        q: order of the leading term of the remainder.
        limits: `max_rows`, `memory_limit` and `progress`.
    """

    def __init__(self, problem: Problem, grid: Grid, q: int, limits: dict):
        self.problem, self.grid, self.q, self.limits = problem, grid, q, limits
        small = problem_grid(problem, rule="smallest", degree=q, num_lam=q // 2 + 1, max_rows=limits["max_rows"])

        def rows(draw) -> Tensor:
            values = taylor_coefficients(problem.path(draw), q)
            return torch.cat([values, values.abs()], dim=-1)

        sums = rule_sum(problem, small, rows, passes=2**q, title="coefficients", **self._bars())
        self.coefficients, self.size = sums.split(q + 1)
        self.size = self.size.abs() * small.rule.amplification
        self.samples = small.rows

    def _bars(self) -> dict:
        return {name: self.limits[name] for name in ("memory_limit", "progress")}

    def __call__(self, eps: Sequence[float], integral: bool) -> Evidence:
        """Remainders at `eps`, in the integral form or as differences."""
        problem, q = self.problem, self.q

        def rows(draw) -> Tensor:
            if integral:
                return torch.stack([integral_remainder(problem, draw, e, order=q - 1) for e in eps], dim=-1)
            path = problem.path(draw)
            start = path(torch.zeros((), dtype=problem.features.dtype, device=problem.features.device))
            return torch.stack([path(e) - start for e in _scales(problem, eps)], dim=-1)

        remainders = rule_sum(
            problem, self.grid, rows, passes=2**q if integral else 1, title="remainders", **self._bars()
        )
        if not integral:
            at = torch.tensor(eps, dtype=torch.float64, device=remainders.device)
            powers = torch.arange(1, q, device=remainders.device)
            remainders = remainders - at[:, None] ** powers @ self.coefficients[1:q]
        name = self.grid.rule.name
        exact = name in ("tensor", "no noise")
        machine = torch.finfo(problem.features.dtype).eps
        return Evidence(
            coefficients=self.coefficients,
            coefficient_error=ROUNDING * machine * self.size,
            remainders=remainders,
            stderr=torch.zeros_like(remainders),
            floor=_floor(problem, eps, self.grid.rule.amplification, integral),
            samples=self.samples + self.grid.rows * (len(eps) + 1),
            method=f"deterministic, {name}"
            + ("" if exact else " (agrees with the loss to its degree, is not the loss)"),
        )


class SampledEvidence:
    """Measurements by Monte Carlo, the same draws for coefficients and for every scale.

    Args:
        problem: the setting.
        q: order of the leading term of the remainder.
        samples: rows to draw.
        seed: of the draws.
        limits: `memory_limit`.

    Raises:
        ValueError: for fewer than 100 sweeps over the samples.
    """

    def __init__(self, problem: Problem, q: int, samples: int, seed: int, limits: dict):
        n = len(problem.features)
        if samples < 100 * n:
            raise ValueError(f"samples: expected at least 100 sweeps over n = {n} samples ({100 * n}), got {samples}.")
        self.problem, self.q, self.sweeps, self.seed = problem, q, samples // n, seed
        self.block = max(1, problem.block_rows(limits["memory_limit"], passes=2**q) // n)

    def _rows(self, draw, eps: Sequence[float], integral: bool) -> Tensor:
        """Of every row: coefficients 0..q, then the remainders of its own polynomial."""
        path = self.problem.path(draw)
        values = taylor_coefficients(path, self.q)
        if integral:
            parts = [integral_remainder(self.problem, draw, e, order=self.q - 1) for e in eps]
        else:
            powers = torch.arange(self.q, device=values.device)
            parts = [path(e) - values[:, : self.q] @ e**powers for e in _scales(self.problem, eps)]
        return torch.cat([values, torch.stack(parts, dim=-1)], dim=-1)

    def __call__(self, eps: Sequence[float], integral: bool) -> Evidence:
        """Coefficients, and remainders at `eps`."""
        problem, q, n = self.problem, self.q, len(self.problem.features)
        generator = torch.Generator(problem.features.device).manual_seed(self.seed)
        moments = RunningMoments()
        for start in range(0, self.sweeps, self.block):
            count = min(self.block, self.sweeps - start)
            rows = self._rows(problem.draw(n, count, generator=generator), eps, integral)
            moments.add(rows.reshape(count, n, -1).mean(1))
        mean, error = moments.mean, moments.stderr()
        rounding = ROUNDING * torch.finfo(problem.features.dtype).eps * mean[: q + 1].abs()
        return Evidence(
            coefficients=mean[: q + 1],
            coefficient_error=5 * error[: q + 1] + rounding,
            remainders=mean[q + 1 :],
            stderr=error[q + 1 :],
            floor=_floor(problem, eps, 1.0, integral),
            samples=self.sweeps * n * (len(eps) + 1),
            method=f"Monte Carlo, {self.sweeps} common sweeps",
        )


def gather(problem: Problem, q: int, method: str, samples: int, seed: int, limits: dict):
    """The deterministic rule where it is wanted and fits, Monte Carlo otherwise.

    Raises:
        GridTooLargeError: if `method="exact"` and the rule does not fit.
    """
    if method != "monte_carlo":
        try:
            grid = problem_grid(problem, rule="auto", degree=q, num_lam=max(q // 2 + 1, 4), max_rows=limits["max_rows"])
            return RuleEvidence(problem, grid, q, limits)
        except GridTooLargeError:
            if method == "exact":
                raise
    return SampledEvidence(problem, q, samples, seed, limits)
