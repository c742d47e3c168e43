"""Link 3: Taylor coefficients of the whole law and remainders over a range of scales, by a rule or along draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..expansion.paths import integral_remainder, taylor_coefficients
from ..losses.monte_carlo import RunningMoments
from ..setting.draws import antithetic
from ..setting.problem import Problem
from ..setting.quadrature import Grid
from .draw_evidence import where_fits_begin
from .effort import BudgetSpent, Meter
from .fits import DEGREE, LINEAR_DEGREE, Fits, averaged
from .intervals import ENOUGH
from .rays import along, in_double
from .student import STDERRS, certain
from .term_evidence import LARGE_ENOUGH

#: Multiples of the machine precision below which a difference of coefficients counts as rounding.
ROUNDING = 1e3
#: The same for a remainder, so that one above the floor is right to a percent: rounding averages over the rows.
FLOOR = 100.0
#: Degrees of freedom below which a standard error says nothing.
KNOWN = 4.0


@dataclass(frozen=True)
class Scaled:
    """Remainders at some scales.

    Attributes:
        remainders: loss minus the polynomial made of the measured coefficients, `(E,)`.
        stderr: their standard errors, zero for a rule.
        floor: size of a remainder that is nothing but rounding.
        samples: evaluations of the head.
    """

    remainders: Tensor
    stderr: Tensor
    floor: Tensor
    samples: int

    @staticmethod
    def average(parts: Sequence[Scaled]) -> Scaled:
        """Mean over layers; sampling errors add in quadrature."""
        stderr = torch.stack([p.stderr**2 for p in parts]).sum(0).sqrt() / len(parts)
        remainders, floor = (torch.stack([getattr(p, name) for p in parts]).mean(0) for name in ("remainders", "floor"))
        return Scaled(remainders, stderr, floor, sum(p.samples for p in parts))


@dataclass(frozen=True)
class Evidence:
    """Measured coefficients c_0..c_q with their errors.

    Attributes:
        coefficients: c_0..c_q, `(q + 1,)`.
        coefficient_error: largest error that rounding and sampling explain.
        method: how it was measured, in words.
        samples: evaluations of the head.
    """

    coefficients: Tensor
    coefficient_error: Tensor
    method: str
    samples: int

    def extended(self, found: Sequence[Scaled]) -> Measurement:
        """The same coefficients with remainders at several scales."""
        parts = [torch.cat([getattr(one, name) for one in found]) for name in ("remainders", "stderr", "floor")]
        samples = self.samples + sum(one.samples for one in found)
        return Measurement(self.coefficients, self.coefficient_error, self.method, samples, *parts)

    @staticmethod
    def average(parts: Sequence[Evidence]) -> Evidence:
        """Mean over layers of the coefficients."""
        coefficients = torch.stack([p.coefficients for p in parts]).mean(0)
        error = torch.stack([p.coefficient_error for p in parts]).mean(0)
        return Evidence(coefficients, error, parts[0].method, sum(p.samples for p in parts))


@dataclass(frozen=True)
class Measurement(Evidence):
    """`Evidence` with remainders of the polynomial of degree q - 1 made of its coefficients.

    Attributes:
        remainders: remainders at every scale, `(E,)`.
        stderr: their standard errors.
        floor: size of a remainder that is nothing but rounding.
    """

    remainders: Tensor
    stderr: Tensor
    floor: Tensor


def _scales(problem: Problem, eps: Sequence[float]) -> list[Tensor]:
    g = problem.features
    return [torch.as_tensor(e, dtype=g.dtype, device=g.device) for e in eps]


def rounding_unit(problem: Problem) -> Tensor:
    """Size of a rounding error of one sample's loss, `(n,)`: a loss near 0 is a difference of large logits."""
    outputs = problem.head(problem.features)
    losses = problem.loss(outputs, problem.labels)
    return torch.finfo(losses.dtype).eps * (losses.abs() + outputs.abs().amax(-1))


def rarity(problem: Problem) -> float:
    """How many draws count as one draw of a normal law: few of them are large if α is small or the noise sparse."""
    mixing, noises = problem.mixing, [noise for noise in problem.noises if noise is not None]
    kurtoses = [noise.fourth / noise.second**2 for noise in noises]
    if mixing.mixes:
        kurtoses.append(mixing.moment(4) / mixing.moment(2) ** 2)
    return max(3.0, *kurtoses) / 3.0


def _floor(unit: float, eps: Sequence[float], amplification: float, integral: bool, like: Tensor) -> Tensor:
    """Nothing cancels in the integral form; a difference is as uncertain as what it is taken of."""
    size = 0.0 if integral else FLOOR * amplification * unit
    return torch.full((len(eps),), size, dtype=torch.float64, device=like.device)


def evaluations_of_row(num_scales: int, q: int, integral: bool) -> int:
    """Evaluations of the head for the remainders of one row of a rule at so many scales."""
    return 1 + num_scales * (4 * 2**q if integral else 1)


class RuleEvidence:
    """Measurements by a deterministic rule.

    Coefficients need no more than a rule that is exact to degree q, which may be a smaller one than that of the
    remainders.

    Args:
        problem: the setting.
        grid: rule for the remainders, exact at least to degree q.
        q: order of the leading term of the remainder.
        max_rows: largest rule for the coefficients.
        meter: counts the evaluations of the head.

    Attributes:
        evidence: coefficients with their errors.
    """

    def __init__(self, problem: Problem, grid: Grid, q: int, max_rows: int, meter: Meter):
        self.problem, self.grid, self.q, self.meter = problem, grid, q, meter
        meter.spend(len(problem.features))
        self.unit = float(rounding_unit(problem).mean())
        small = problem.grid(rule="smallest", degree=q, num_lam=q // 2 + 1, max_rows=max_rows)
        total = problem.features.new_zeros((), dtype=torch.float64)
        for draw, weights in problem.blocks(small, title="coefficients", passes=2**q):
            meter.spend(len(draw) * 2**q)
            values = taylor_coefficients(problem.path(draw), q)
            total = total + torch.tensordot(weights, torch.cat([values, values.abs()], dim=-1).double(), dims=1)
        coefficients, size = total.split(q + 1)
        error = ROUNDING * torch.finfo(problem.features.dtype).eps * (size.abs() * small.rule.amplification)
        name = grid.rule.name
        exact = "" if name in ("tensor", "no noise") else " (agrees with the loss to its degree, is not the loss)"
        self.evidence = Evidence(coefficients, error, f"deterministic, {name}{exact}", 0)
        self.samples = small.rows

    def at(self, eps: Sequence[float], integral: bool) -> Scaled:
        """Remainders at `eps`, in the integral form or as differences."""
        problem, q, scales = self.problem, self.q, _scales(self.problem, eps)
        zero = torch.zeros((), dtype=problem.features.dtype, device=problem.features.device)
        total = problem.features.new_zeros((), dtype=torch.float64)
        for draw, weights in problem.blocks(self.grid, title="remainders", passes=2**q if integral else 1):
            self.meter.spend(len(draw) * evaluations_of_row(len(eps), q, integral))
            if integral:
                values = torch.stack([integral_remainder(problem, draw, e, order=q - 1) for e in eps], dim=-1)
            else:
                path = problem.path(draw)
                start = path(zero)
                values = torch.stack([*map(path, scales)], dim=-1) - start.unsqueeze(-1)
            total = total + torch.tensordot(weights, values.double(), dims=1)
        if not integral:
            at = torch.tensor(eps, dtype=torch.float64, device=total.device)
            total = total - at[:, None] ** torch.arange(1, q, device=total.device) @ self.evidence.coefficients[1:q]
        floor = _floor(self.unit, eps, self.grid.rule.amplification, integral, total)
        samples = self.samples + self.grid.rows * (len(eps) + 1)
        return Scaled(total, torch.zeros_like(total), floor, samples)


class SampledEvidence:
    """Measurements by Monte Carlo from values alone, the same draws for coefficients and for every scale.

    Args:
        problem: the setting.
        q: order of the leading term of the remainder.
        sweeps: draws of each sample, at least 2.
        seed: seed of the draws.
        degree: degree of the fits along the draws.
        start: half-width on which the fits begin; `None` finds it from the first draws.
        meter: counts the evaluations of the head.

    Attributes:
        evidence: coefficients with their errors.
    """

    evidence: Evidence

    def __init__(
        self, problem: Problem, q: int, sweeps: int, seed: int, degree: int, start: float | None, meter: Meter
    ):
        self.problem, self.q, self.sweeps, self.seed, self.start = in_double(problem), q, sweeps, seed, start
        self.degree, self.meter = degree if degree <= LINEAR_DEGREE else max(degree, q + q % 2 + 2), meter
        self.enough = ENOUGH if degree >= DEGREE else LARGE_ENOUGH
        self.signs = 1 if problem.noises == (None, None) or sweeps < 4 else 2

    def at(self, eps: Sequence[float], integral: bool) -> Scaled:
        """Remainders at `eps`; the coefficients along the same draws go into `evidence`."""
        problem, q, n, before = self.problem, self.q, len(self.problem.features), self.meter.spent
        generator = torch.Generator(problem.features.device).manual_seed(self.seed)
        moments, errors, done = RunningMoments(), [], 0
        pairs, block = self.sweeps // self.signs, max(1, min(4096, problem.block_rows()) // n)
        while done < pairs:
            count = min(block if done else 1, pairs - done)  # the first draws find where the fits begin
            while count > 1 and not self.meter.affords(count * (self.meter.spent - before) // done):
                count //= 2
            sweeps: list[tuple[Tensor, Tensor]] = []  # coefficients and remainders, and the errors of the fits
            draw = problem.draw(n, count, generator=generator)
            try:
                for rows in [draw, antithetic(draw)][: self.signs]:
                    path, first = problem.path(rows), 1.0 if self.start is None else self.start
                    fits = along(
                        path, order=q, degree=self.degree, start=first, enough=self.enough, spend=self.meter.spend
                    )
                    if self.start is None and self.degree > LINEAR_DEGREE:
                        self.start = where_fits_begin(fits, self.degree)
                    direct: list[Tensor | None] = []
                    for e, scale in zip(eps, _scales(problem, eps), strict=True):
                        beyond = bool((fits.reach < e).any())
                        self.meter.spend(len(path) * beyond)
                        direct.append(path(scale) if beyond else None)
                    error = averaged(fits, torch.full_like(fits.radius, 1 / len(fits.radius)), q)[1]
                    sweeps.append((_remainders(fits, direct, eps, q).reshape(count, n, -1), error))
            except BudgetSpent:
                if done < 2:
                    raise
                break
            moments.add(torch.stack([found for found, _ in sweeps]).mean(0))
            errors.append(torch.stack([error for _, error in sweeps]).mean(0))
            done += count
            if done >= 2 and not self.meter.affords((self.meter.spent - before) // done):
                break
        # The samples are drawn one by one, so each has a variance of its own
        known = n * (done - 1) / rarity(problem)
        stderr = (moments.stderr() ** 2).sum(0).sqrt() / n * (certain(int(known)) / STDERRS)
        stderr = stderr if known >= KNOWN else torch.full_like(stderr, torch.inf)
        mean = moments.mean.mean(0)
        fit_error = torch.stack(errors).mean(0)
        method = f"Monte Carlo, {done * self.signs} common sweeps"
        self.evidence = Evidence(mean[: q + 1], STDERRS * stderr[: q + 1] + fit_error, method, 0)
        floor = fit_error[q] * torch.tensor(eps, dtype=torch.float64, device=fit_error.device) ** q
        return Scaled(mean[q + 1 :], stderr[q + 1 :], floor, self.meter.spent - before)


def _remainders(fits: Fits, direct: Sequence[Tensor | None], eps: Sequence[float], q: int) -> Tensor:
    """Of every row: coefficients 0..q, then the remainders of its own polynomial of degree q - 1.

    Args:
        fits: the fits along the rows.
        direct: losses at every ε, `None` where all fits reach it.
        eps: scales.
        q: order of the leading term of the remainder.
    """
    parts, powers = [], torch.arange(q, dtype=torch.float64, device=fits.radius.device)
    for e, losses in zip(eps, direct, strict=True):
        remainder = fits.remainder(e, q - 1)
        if losses is not None:
            remainder = torch.where(fits.reach >= e, remainder, losses - fits.coefficients[:, :q] @ e**powers)
        parts.append(remainder)
    return torch.cat([fits.coefficients, torch.stack(parts, dim=-1)], dim=-1)


def evidence_of(
    problem: Problem, q: int, rows: int | None, sweeps: int, seed: int, degree: int, start: float | None, meter: Meter
) -> RuleEvidence | SampledEvidence:
    """A deterministic rule of at most `rows` rows, or Monte Carlo with `sweeps` draws of each sample if that is None.

    Args:
        problem: the setting.
        q: order of the leading term of the remainder.
        rows: largest rule; `None` for Monte Carlo.
        sweeps: draws of each sample for Monte Carlo.
        seed: seed of the draws.
        degree: degree of the fits for Monte Carlo.
        start: half-width on which these fits begin; `None` finds it.
        meter: counts the evaluations of the head.
    """
    if rows is None:
        return SampledEvidence(problem, q, sweeps, seed, degree, start, meter)
    grid = problem.grid(rule="auto", degree=q, num_lam=max(q // 2 + 1, 4), max_rows=rows)
    return RuleEvidence(problem, grid, q, rows, meter)
