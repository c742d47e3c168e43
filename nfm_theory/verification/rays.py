r"""Taylor coefficients of the loss along rays, from loss values alone: no derivative is taken.

A ray is a row of a `Path`: the loss is a function φ of one number. Its half-width a is chosen for each ray: the largest
interval first, then intervals four times smaller, until the fit's own error is at the rounding of the values or falls
no further. A kink of the network shows as a fit that does not converge until the kink lies outside of [-a, a].

The coefficient of ε² has two parts. The values of the *outputs* give their slope u' along the ray, and the values of
the loss along `u + s u'` give the Gauss-Newton part ½ u'ᵀ F u'; the residual part is what remains.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from ..expansion.random_paths import _in_double
from ..setting.pointwise import PointwiseLoss
from ..setting.problem import Path, Problem
from .fit import Fit, chebyshev_points

#: Degree of the fits: in general, for large networks, and for piecewise-linear heads, which are lines up to a kink.
DEGREE, LARGE_DEGREE, LINEAR_DEGREE = 12, 6, 4
#: Each interval is this many times smaller than the one before, and so many are tried.
SHRINK, LEVELS = 4.0, 14
#: A tail below this many rounding errors of the values cannot be improved by a smaller interval.
RESTING = 30.0
#: Multiples of the rounding of the values that derivatives may be off.
DERIVATIVE_ROUNDING = 100.0
#: The tail of a sum of many rays has a few numbers only: its error is taken this many times.
DOUBT = 3.0
#: Relative error of the coefficient of ε² that is good enough to stop.
ENOUGH = 1e-9
#: The last coefficients of a smooth function are below this part of the middle ones.
FALLING = 0.03
#: A smooth function loses at most 4⁴ in its middle coefficients when the interval shrinks; more is a kink left behind.
KINK = SHRINK**6


def in_double(problem: Problem) -> Problem:
    """The same problem with the loss of one sample computed in float64, whatever the precision of the network."""
    return problem._changed(loss=_in_double(problem.loss), features=problem.features.detach())


@dataclass(frozen=True)
class Fits:
    """What the values along rays say; everything in float64.

    Attributes:
        coefficients: coefficients of ε⁰ .. ε^q along each ray, `(rows, q + 1)`.
        error: their errors, as the fit measures them.
        gauss_newton: Gauss-Newton part of the coefficient of ε², `(rows,)`.
        gauss_newton_error: its error.
        slope: coefficient of ε of the outputs, `(rows, K)`.
        bend: coefficient of ε² of the outputs, `(rows, K)`.
        size: size of the outputs and of the loss, `(rows,)`.
        radius: half-width a of the interval, `(rows,)`.
        values: the loss at `a` times the Chebyshev points, `(M + 1, rows)`.
        smooth_radius: half-width of the largest interval on which the fit converges to rounding; 0 if there is none.
        kinked: True where a kink or a jump was left behind when the interval shrank, `(rows,)`.
        constant: True where the outputs change on the largest interval but not on the chosen one: they move in jumps.
        rough: True where the fit neither reaches rounding nor falls: its error is no measure there, `(rows,)`.
        rounding: relative rounding of the outputs that the tail shows, at least that of the precision, `(rows,)`.
    """

    coefficients: Tensor
    error: Tensor
    gauss_newton: Tensor
    gauss_newton_error: Tensor
    slope: Tensor
    bend: Tensor
    size: Tensor
    radius: Tensor
    values: Tensor
    smooth_radius: Tensor
    kinked: Tensor
    constant: Tensor
    rough: Tensor
    rounding: Tensor

    @staticmethod
    def joined(parts: list[Fits]) -> Fits:
        """The fits of several blocks of rows."""
        whole = {}
        for f in fields(Fits):
            whole[f.name] = torch.cat([getattr(one, f.name) for one in parts], dim=-1 if f.name == "values" else 0)
        return Fits(**whole)

    def floor(self) -> Tensor:
        """Rounding errors that derivatives may have in the coefficients of ε⁰ .. ε³ of the loss, `(rows, 4)`.

        A loss near 0 is a difference of large logits, so its derivatives are as uncertain as those of the logits.
        """
        first, second = self.slope.abs().amax(-1), self.bend.abs().amax(-1)
        sizes = torch.stack([self.size, first, first**2 + second, first**3 + first * second], dim=-1)
        return DERIVATIVE_ROUNDING * self.rounding.unsqueeze(-1) * sizes

    def remainder(self, eps: float, order: int) -> Tensor:
        """`Σ_{k > order} c_k ε^k` of the fitted polynomials, without cancellation, `(rows,)`; ε within the radius."""
        powers = Fit.of(self.values).powers()[order + 1 :]
        exponents = torch.arange(order + 1, len(self.values), device=powers.device)
        return (powers * (eps / self.radius) ** exponents.unsqueeze(1)).sum(0)


def averaged(fits: Fits, weights: Tensor, order: int) -> tuple[Tensor, Tensor]:
    """Weighted sums over the rays of the coefficients of ε⁰ .. ε^order with their errors, each `(order + 1,)`.

    The values are added before the fit, so that the error of the sum is measured as well: rounding averages out there,
    what the polynomial leaves out does not.
    """
    sums, errors = [], []
    for power in range(order + 1):
        fit = Fit.of(fits.values @ (weights / fits.radius**power).double())
        sums.append(fit.powers()[power])
        errors.append(DOUBT * fit.error(power))
    return torch.stack(sums), torch.stack(errors)


@dataclass
class _Best:
    """The best fit of each ray so far."""

    error: Tensor
    radius: Tensor
    loss: Tensor
    outputs: Tensor
    tail: Tensor

    def take(self, better: Tensor, rows: Tensor, error: Tensor, radius: Tensor, loss: Tensor, outputs: Tensor, tail):
        """Replace the fits of the rows `rows[better]`."""
        chosen = rows[better]
        self.error[chosen], self.radius[chosen], self.tail[chosen] = error[better], radius[better], tail[better]
        self.loss[:, chosen], self.outputs[:, chosen] = loss[:, better], outputs[:, better]


def along(
    path: Path,
    *,
    order: int = 3,
    degree: int = DEGREE,
    start: float | Tensor = 1.0,
    spend: Callable[[int], None] = lambda rows: None,
) -> Fits:
    """Fit the loss along every row of a path from its values.

    Args:
        path: rows of a problem made by `in_double`.
        order: highest power of ε.
        degree: M, an even degree.
        start: half-width of the first interval, one number or one per row.
        spend: called with the number of evaluations of the head, before they are made.
    """
    block = max(1, path.problem.block_rows())
    rows = torch.arange(len(path), device=path.anchor.device)
    start = torch.as_tensor(start, dtype=torch.float64, device=rows.device).expand(len(path))
    parts = [_block(path[some], order, degree, start[some], spend) for some in rows.split(block)]
    return parts[0] if len(parts) == 1 else Fits.joined(parts)


def _block(path: Path, order: int, degree: int, start: Tensor, spend: Callable[[int], None]) -> Fits:
    """`along` for the rows of one block of memory."""
    dtype, labels = path.first.dtype, path.problem.labels[path.anchor]
    points, middle = chebyshev_points(degree).to(start.device), degree // 2
    unit = torch.finfo(dtype).eps

    def evaluated(rows: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        """Losses `(M + 1, b)` and outputs `(M + 1, b, K)` of some rows."""
        some, found = path[rows], []
        spend(degree * len(rows))
        for k, x in enumerate(points):
            found.append(center[rows] if k == middle else some.outputs((x * radius).to(dtype)).double())
        outputs = torch.stack(found)
        return torch.stack([path.problem.loss(u, labels[rows]) for u in found]).double(), outputs

    spend(len(path))
    center = path.outputs(torch.zeros((), dtype=dtype, device=start.device)).double()
    size = center.abs().amax(-1) + path.problem.loss(center, labels).abs().double()
    everything = torch.arange(len(path), device=start.device)
    rows, radius = everything, start.clone()
    best: _Best | None = None
    smooth_radius, kinked = torch.zeros_like(size), torch.zeros(len(path), dtype=torch.bool, device=start.device)
    before, span = torch.full_like(size, torch.nan), torch.zeros_like(size)
    for level in range(LEVELS):
        loss, outputs = evaluated(rows, radius[rows])
        fit = Fit.of(loss)
        tail = torch.maximum(fit.tail, 0.5 * unit * size[rows])
        error = replace(fit, tail=tail).error(min(2, order)) / radius[rows] ** 2
        resting = tail <= RESTING * unit * size[rows]
        middle_size = fit.chebyshev[middle - 1 : middle + 1].abs().amax(0)
        dropped = before[rows] > KINK * torch.maximum(middle_size, 0.5 * unit * size[rows])
        kinked[rows] |= resting & dropped & (before[rows] > RESTING * unit * size[rows])
        smooth_radius[rows] = torch.where(resting & (smooth_radius[rows] == 0), radius[rows], smooth_radius[rows])
        before[rows] = middle_size
        if best is None:
            best = _Best(error, radius.clone(), loss, outputs, tail)
            span = (outputs - center).abs().amax((0, 2))
        else:
            best.take(error < best.error[rows], rows, error, radius[rows], loss, outputs, tail)
        second = fit.powers()[2] / radius[rows] ** 2
        rows = rows[~(resting | (error <= ENOUGH * second.abs()))]
        if not len(rows) or level + 1 == LEVELS:
            break
        radius[rows] = radius[rows] / SHRINK
    assert best is not None
    fit = replace(Fit.of(best.loss), tail=best.tail)
    middle_size = fit.chebyshev[middle - 1 : middle + 1].abs().amax(0)
    falling = best.tail <= FALLING * middle_size if degree > LINEAR_DEGREE else torch.zeros_like(kinked)
    powers = best.radius ** torch.arange(order + 1, device=start.device).unsqueeze(1)
    slopes = Fit.of(best.outputs)
    half, half_error = _gauss_newton(path.problem.loss, center, slopes, best.radius, labels)
    moved = (best.outputs - center).abs().amax((0, 2))
    still = moved <= RESTING * unit * size
    return Fits(
        coefficients=(fit.powers()[: order + 1] / powers).T,
        error=torch.stack([fit.error(k) for k in range(order + 1)]).div(powers).T,
        gauss_newton=half,
        gauss_newton_error=half_error,
        slope=slopes.powers()[1] / best.radius.unsqueeze(-1),
        bend=slopes.powers()[2] / best.radius.unsqueeze(-1) ** 2,
        size=size,
        radius=best.radius,
        values=best.loss,
        smooth_radius=smooth_radius,
        kinked=kinked,
        constant=still & (span > 1e6 * torch.maximum(moved, unit * size)),
        rough=~falling & (best.tail > RESTING * unit * size),
        rounding=(slopes.tail.amax(-1) / size.clamp_min(torch.finfo(torch.float64).tiny)).clamp_min(unit),
    )


def _gauss_newton(
    loss: PointwiseLoss, outputs: Tensor, slopes: Fit, radius: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """½ u'ᵀ F u' of every ray from values of the loss of one sample along `u + s u'`, and its error, `(rows,)`."""
    slope = slopes.powers()[1] / radius.unsqueeze(-1)
    signs = 1 - 2 * (torch.arange(slope.shape[-1], device=slope.device) % 2)
    error = signs * (slopes.error(1) / radius.unsqueeze(-1))
    half, fit_error = _half_curvature(loss, outputs, slope, labels)
    uncertain, _ = _half_curvature(loss, outputs, error, labels)
    return half, fit_error + 2 * (half.abs() * uncertain.abs()).sqrt() + uncertain.abs()


def _half_curvature(loss: PointwiseLoss, outputs: Tensor, slope: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Half the second derivative of `s ↦ ℓ(u + s u')` at 0 from values, with its error, each `(rows,)`."""
    width = 0.5 / slope.abs().amax(-1).clamp_min(torch.finfo(torch.float64).tiny ** 0.25)
    points = chebyshev_points(DEGREE).to(outputs.device)
    values = [loss(outputs + (x * width).unsqueeze(-1) * slope, labels) for x in points]
    fit = Fit.of(torch.stack(values).double())
    return fit.powers()[2] / width**2, fit.error(2) / width**2
