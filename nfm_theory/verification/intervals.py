r"""The interval on which each ray is fitted: as large as rounding asks for, as small as the network asks for.

The largest interval is tried first, then intervals four times smaller, until the fit's own error is at the rounding of
the values. A kink of the network shows as a fit that does not converge until the kink lies outside of [-a, a]. A
kink of a higher derivative at the sample itself never does, and fades into rounding instead.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..setting.perturbation import displaced
from ..setting.pointwise import PointwiseLoss
from ..setting.problem import Path
from .fit import RESTING, Fit, chebyshev_points
from .fits import DEGREE, KINK_DOUBT, Fits, gauss_newton_part

#: Each interval is this many times smaller than the one before, and so many are tried.
SHRINK, LEVELS = 4.0, 14
#: Relative error of the coefficient of ε² that is good enough to stop.
ENOUGH = 1e-9
#: The last coefficients of a smooth function are below this part of the middle ones.
FALLING = 0.03
#: A smooth function loses at most 4⁴ in its middle coefficients when the interval shrinks; more is a kink left behind.
KINK = SHRINK**6
#: At a kink of a higher derivative at the sample itself they lose this much: 4² for the second derivative, 4³ for the
#: third, and the last ones are above a part `SLOW` of the middle ones, which are a signal. A smooth function loses 4⁵.
SIGNAL, SLOW = 5.0, 0.01
BENT = (SHRINK**1.5, SHRINK**3.5)
#: With this many times the degree, the tail of a smooth function falls below `SMOOTH` of what it was on the interval
#: where a fit failed. A kink leaves 1/16 of it, a kink of the second derivative 1/256.
FINER = 4
#: The part of the middle coefficients, or of the tail of a coarser fit, that the tail of a smooth function falls below.
SMOOTH = 1e-3


class Search:
    """The search of the best interval of every ray; it asks for values of the outputs and never calls the network.

    Args:
        loss: loss of one sample, in float64.
        labels: labels of the rays.
        outputs: outputs at ε = 0, `(rows, K)`.
        dtype: precision of the features.
        start: half-width of the first interval of each ray.
        order: highest power of ε.
        degree: degree of the fits.

    Attributes:
        rows: rays whose interval is still searched.
        enough: relative error of the coefficient of ε² that is good enough to stop.
    """

    def __init__(
        self, loss: PointwiseLoss, labels: Tensor, outputs: Tensor, dtype: torch.dtype, start: Tensor, order: int,
        degree: int,
    ):  # fmt: skip
        self.loss, self.labels, self.center, self.dtype = loss, labels, outputs.double(), dtype
        self.order, self.degree, self.level, self.enough = order, degree, 0, ENOUGH
        self.size = self.center.abs().amax(-1) + loss(self.center, labels).abs().double()
        self.unit = torch.finfo(dtype).eps
        self.rest = RESTING * self.unit * self.size
        none = torch.zeros_like(self.size)
        self.rows = torch.arange(len(none), device=none.device)
        self.radius = start.clone()
        self.error, self.best_radius, self.tail = none + torch.inf, start.clone(), none + torch.inf
        self.slope_error, self.slope_radius, self.moved = none + torch.inf, start.clone(), none.clone()
        self.values = none.new_zeros(degree + 1, len(none))
        self.outputs = self.center.new_zeros(degree + 1, *self.center.shape)
        self.smooth_radius, self.span = none.clone(), none.clone()
        self.kinked, self.bent, self.unsettled = (torch.zeros_like(none, dtype=torch.bool) for _ in range(3))
        self.before = none - 1

    def scales(self) -> list[Tensor]:
        """Where values are needed next, all but ε = 0: one ε per ray, in the precision of the features."""
        points = chebyshev_points(self.degree).to(self.radius.device)
        return [(x * self.radius[self.rows]).to(self.dtype) for x in points if x]

    def take(self, found: list[Tensor]) -> None:
        """Fit the values at `scales`, keep what is best, and leave the rays that are good enough."""
        rows, half, radius = self.rows, self.degree // 2, self.radius[self.rows]
        found = [u.double() for u in found]
        outputs = torch.stack([*found[:half], self.center[rows], *found[half:]])
        values = torch.stack([self.loss(u, self.labels[rows]) for u in outputs]).double()
        fit, rest = Fit.of(values), self.rest[rows]
        tail = torch.maximum(fit.tail, 0.5 * self.unit * self.size[rows])
        if self.loss.closed_gradient is None:
            tail = torch.where(self._meets_kink(outputs, rows), KINK_DOUBT, 1.0) * tail
        error = replace(fit, tail=tail).error(min(2, self.order)) / radius**2
        inner = torch.maximum(fit.middle, 0.5 * self.unit * self.size[rows])
        resting = tail <= rest
        self.kinked[rows] |= resting & (self.before[rows] > KINK * inner) & (self.before[rows] > rest)
        if self.degree >= DEGREE:
            lost = self.before[rows] / inner
            signal = (fit.middle > SIGNAL * self.unit * self.size[rows]) & (fit.tail > SLOW * fit.middle)
            self.bent[rows] |= resting & self.unsettled[rows] & signal & (lost > BENT[0]) & (lost < BENT[1])
        self.unsettled[rows] = ~resting
        self.smooth_radius[rows] = torch.where(
            resting & (self.smooth_radius[rows] == 0), radius, self.smooth_radius[rows]
        )
        self.before[rows] = inner
        moved = (outputs - self.center[rows]).abs().amax((0, 2))
        self.span = moved if self.level == 0 else self.span
        better = error < self.error[rows]
        chosen = rows[better]
        self.error[chosen], self.best_radius[chosen], self.tail[chosen] = error[better], radius[better], tail[better]
        self.values[:, chosen], self.moved[chosen] = values[:, better], moved[better]
        # The outputs have an interval of their own: a saturated loss is at rest where they are not
        output_tail = Fit.of(outputs).tail.amax(-1)
        slope_error = torch.maximum(output_tail, 0.5 * self.unit * self.size[rows]) / radius
        better = slope_error < self.slope_error[rows]
        chosen = rows[better]
        self.slope_error[chosen], self.slope_radius[chosen] = slope_error[better], radius[better]
        self.outputs[:, chosen] = outputs[:, better]
        self.level += 1
        good = resting | (error <= self.enough * (fit.powers()[2] / radius**2).abs())
        good &= output_tail <= torch.maximum(rest, self.enough * moved)
        self.rows = rows[~good] if self.level < LEVELS else rows[:0]
        self.radius[self.rows] = self.radius[self.rows] / SHRINK

    def _meets_kink(self, outputs: Tensor, rows: Tensor) -> Tensor:
        """True where a loss of the user has a kink along smooth outputs, which rounding in the network would hide."""
        fit, labels = Fit.of(outputs), self.labels[rows]
        slope, bend = fit.powers()[1], fit.powers()[2]
        points = chebyshev_points(self.degree).to(outputs.device)
        along = torch.stack([self.loss(self.center[rows] + x * slope + x**2 * bend, labels) for x in points])
        one = Fit.of(along)
        rest = RESTING * torch.finfo(torch.float64).eps * self.size[rows]
        return one.tail > torch.maximum(SMOOTH * one.middle, rest)

    def fits(self) -> Fits:
        """The best fit of every ray."""
        fit, slopes, radius = replace(Fit.of(self.values), tail=self.tail), Fit.of(self.outputs), self.best_radius
        powers = radius ** torch.arange(self.order + 1, device=radius.device).unsqueeze(1)
        falling = self.tail <= FALLING * fit.middle
        wide = self.slope_radius
        half, half_error = gauss_newton_part(self.loss, self.center, slopes, wide, self.labels)
        error = torch.stack([fit.error(k) for k in range(self.order + 1)]).div(powers).T
        jumps = self.span > 1e6 * torch.maximum(self.moved, self.unit * self.size)
        return Fits(
            coefficients=(fit.powers()[: self.order + 1] / powers).T,
            error=error,
            gauss_newton=half,
            gauss_newton_error=half_error,
            slope=slopes.powers()[1] / wide.unsqueeze(-1),
            bend=slopes.powers()[2] / wide.unsqueeze(-1) ** 2,
            size=self.size,
            radius=radius,
            reach=radius,
            values=self.values,
            excess=torch.where(self.bent.unsqueeze(1), KINK_DOUBT * error, 0.0),
            smooth_radius=self.smooth_radius,
            kinked=self.kinked,
            constant=(self.moved <= self.rest) & jumps,
            rough=(~falling & (self.tail > self.rest)) | self.bent,
            rounding=self.tail / self.size.clamp_min(torch.finfo(torch.float64).tiny),
        )


def smooth_after_all(path: Path, suspects: Tensor, fits: Fits, degree: int, *, own_loss: bool) -> Tensor:
    """Among some kinked rays, those whose loss is only steep, `(rows,)`: the outputs fit with a higher degree.

    The loss of a confident network rises as an exponential function, which leaves the fit as suddenly as a kink does
    when the interval shrinks. The named losses have no kinks of their own; a loss of the user has to fit as well.

    Args:
        path: the rays, rows of a problem made by `rays.in_double`.
        suspects: True for the kinked rays that are looked at, `(rows,)`.
        fits: their fits.
        degree: degree of the fits.
        own_loss: True for a loss of the user, which may have kinks.
    """
    rows, problem, dtype = suspects.nonzero().flatten(), path.problem, path.first.dtype
    rays, radius, labels = path[rows], SHRINK * fits.smooth_radius[rows], problem.labels[path.anchor[rows]]
    curves, size = [], torch.zeros_like(radius)
    for x in chebyshev_points(FINER * degree).to(radius.device):
        outputs = problem.head(displaced((rays.first, rays.linear, rays.quadratic), (x * radius).to(dtype))).double()
        losses = problem.loss(outputs, labels).double().unsqueeze(-1)
        size = torch.maximum(size, outputs.abs().amax(-1) + losses[:, 0].abs())
        curves.append(torch.cat([outputs, losses], dim=-1) if own_loss else outputs)
    values = torch.stack(curves)
    tail, coarse = Fit.of(values).tail.amax(-1), Fit.of(values[::FINER]).tail.amax(-1)
    rounding = FINER * fits.rounding[rows].clamp_min(torch.finfo(dtype).eps) * size
    found = torch.zeros_like(suspects)
    found[rows] = tail <= torch.maximum(rounding, SMOOTH * coarse)
    return found
