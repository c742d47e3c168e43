"""What the values along rays say: coefficients with their errors, how smooth the network is, and weighted sums."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..setting.pointwise import PointwiseLoss
from .fit import RESTING, Fit, chebyshev_points

#: Degree of the fits: in general, for large networks, and for piecewise-linear heads, which are lines up to a kink.
DEGREE, LARGE_DEGREE, LINEAR_DEGREE = 12, 6, 4
#: Multiples of the rounding of the values that derivatives may be off.
DERIVATIVE_ROUNDING = 100.0
#: The tail of a sum of many rays has a few numbers only: its error is taken this many times.
DOUBT = 3.0
#: An interval on which the loss itself has a kink is made so much smaller, so often.
KINK_SHRINK, KINK_LEVELS = 4.0, 14
#: The error of a fit across a kink is taken this many times.
KINK_DOUBT = 10.0


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
        radius: half-width a of the interval of the fit, `(rows,)`.
        reach: largest ε at which the fit is the loss, `(rows,)`.
        values: the loss at `a` times the Chebyshev points, `(M + 1, rows)`.
        excess: error of the coefficients beside that of the fit to `values`, `(rows, q + 1)`.
        smooth_radius: half-width of the largest interval on which the fit converges to rounding; 0 if there is none.
        kinked: True where a kink or a jump was left behind when the interval shrank, `(rows,)`.
        constant: True where the outputs change on the largest interval but not on the chosen one: they move in jumps.
        rough: True where the fit neither reaches rounding nor falls: its error is no measure there, `(rows,)`.
        rounding: rounding that the tail shows, relative to the size, `(rows,)`.
    """

    coefficients: Tensor
    error: Tensor
    gauss_newton: Tensor
    gauss_newton_error: Tensor
    slope: Tensor
    bend: Tensor
    size: Tensor
    radius: Tensor
    reach: Tensor
    values: Tensor
    excess: Tensor
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
        # The directions themselves are rounded, relative to the features
        zero = torch.zeros_like(self.size)
        direction = torch.stack(
            [zero, 10 * self.rounding * self.size, (100 * self.rounding * self.size) ** 2, zero], -1
        )
        return DERIVATIVE_ROUNDING * self.rounding.unsqueeze(-1) * sizes + direction

    def remainder(self, eps: float, order: int) -> Tensor:
        """`Σ_{k > order} c_k ε^k` of the fitted polynomials, without cancellation, `(rows,)`; ε within the reach."""
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
        errors.append(DOUBT * fit.error(power) + weights.abs().double() @ fits.excess[:, power])
    return torch.stack(sums), torch.stack(errors)


def gauss_newton_part(
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

    def values(rows: Tensor, width: Tensor) -> Tensor:
        points = chebyshev_points(DEGREE).to(outputs.device)
        moved = [outputs[rows] + (x * width).unsqueeze(-1) * slope[rows] for x in points]
        return torch.stack([loss(one, labels[rows]).double() for one in moved])

    widest = 0.5 / slope.abs().amax(-1).clamp_min(torch.finfo(torch.float64).tiny ** 0.25)
    size = outputs.abs().amax(-1) + loss(outputs, labels).abs()
    found, width, kinked = between_kinks(values, widest, size.double())
    fit = Fit.of(found)
    return fit.powers()[2] / width**2, torch.where(kinked, KINK_DOUBT, 1.0) * fit.error(2) / width**2


def between_kinks(
    values: Callable[[Tensor, Tensor], Tensor], widest: Tensor, size: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Values of the loss as a function of the outputs, on intervals without the kinks of a user's loss.

    Args:
        values: maps rows and half-widths of their intervals to the losses at the Chebyshev points, `(M + 1, rows)`.
        widest: half-widths of the first intervals, `(rows,)`.
        size: what the values are rounded relative to, `(rows,)`.

    Returns:
        The values on the widest intervals where the fit is exact up to rounding, else on those where its error is
        smallest; the half-widths of these intervals; and True where no interval was good.
    """
    rest = RESTING * torch.finfo(torch.float64).eps * size
    rows, width = torch.arange(len(widest), device=widest.device), widest.clone()
    best = widest.new_zeros(DEGREE + 1, len(widest))
    error = torch.full_like(widest, torch.inf)
    for level in range(KINK_LEVELS):
        narrow = widest[rows] / KINK_SHRINK**level
        now = values(rows, narrow)
        fit = Fit.of(now)
        resting = fit.tail <= rest[rows]
        found = torch.where(resting, 0.0, fit.error(2) / narrow**2)
        better = ~(found >= error[rows])  # also if values are not finite, which must not read as zeros
        chosen = rows[better]
        best[:, chosen], width[chosen], error[chosen] = now[:, better], narrow[better], found[better]
        rows = rows[~resting]
        if not len(rows):
            break
    return best, width, error > 0
