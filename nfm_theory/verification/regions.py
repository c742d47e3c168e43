r"""Piecewise-linear heads: fits inside the linear region of the sample, and whether a region's border is a jump.

Inside the region the outputs along a ray are `u + ε u' + ε² u''` exactly, with `u''` from multiplicative noise on mixed
features alone. So few values find the largest interval without a kink, and the loss along this polynomial needs no more
evaluations of the head.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ..setting.perturbation import displaced
from ..setting.problem import Path
from .fit import RESTING, Fit, chebyshev_points
from .fits import DEGREE, Fits, between_kinks, gauss_newton_part
from .intervals import LEVELS, SHRINK, Search

#: Bisections that close in on the border of a region.
BISECTIONS = 16
JUMP_COST = BISECTIONS + 4


class RegionSearch(Search):
    """The largest interval of each ray on which the outputs are polynomials of degree 2."""

    def take(self, found: list[Tensor]) -> None:
        """Keep rays whose outputs leave the polynomial by rounding alone, and shrink the intervals of the others."""
        rows, half, radius = self.rows, self.degree // 2, self.radius[self.rows]
        found = [u.double() for u in found]
        outputs = torch.stack([*found[:half], self.center[rows], *found[half:]])
        tail = Fit.of(outputs).tail.amax(-1)
        resting = tail <= self.rest[rows]
        if self.level == 0:
            self.span = (outputs - self.center).abs().amax((0, 2))
        error = torch.where(resting, 0.0, tail)  # the largest good interval is the best one
        better = error < self.error[rows]
        chosen = rows[better]
        self.error[chosen], self.best_radius[chosen], self.tail[chosen] = error[better], radius[better], tail[better]
        self.outputs[:, chosen] = outputs[:, better]
        self.smooth_radius[rows[resting]] = radius[resting]
        self.level += 1
        self.rows = rows[~resting] if self.level < LEVELS else rows[:0]
        self.radius[self.rows] = self.radius[self.rows] / SHRINK

    def fits(self) -> Fits:
        """The loss along the polynomial of the outputs of every ray."""
        fit, radius = Fit.of(self.outputs), self.best_radius.unsqueeze(-1)
        # The outputs may be far smaller than the loss, and so is their rounding; the tails of all of them show it
        least = 0.5 * self.unit * self.center.abs().amax(-1, keepdim=True)
        fit = Fit(fit.chebyshev, torch.maximum(fit.tail.amax(-1, keepdim=True), least).expand_as(fit.tail))
        slope, bend = fit.powers()[1] / radius, fit.powers()[2] / radius**2
        signs = 1 - 2 * (torch.arange(slope.shape[-1], device=slope.device) % 2)
        slope_error, bend_error = signs * fit.error(1) / radius, signs * fit.error(2) / radius**2
        widest = 0.5 / (slope.abs().amax(-1) + bend.abs().amax(-1).sqrt()).clamp_min(1e-60)
        values, width, across = between_kinks(partial(self._along, slope, bend), widest, self.size)
        exact = Fit.of(values)
        powers = width ** torch.arange(self.order + 1, device=width.device).unsqueeze(1)
        coefficients = exact.powers()[: self.order + 1] / powers
        moved = [
            Fit.of(self._along(slope + slope_error, bend, slice(None), width)),
            Fit.of(self._along(slope, bend + bend_error, slice(None), width)),
        ]
        excess = sum((one.powers()[: self.order + 1] / powers - coefficients).abs() for one in moved)
        error = torch.stack([exact.error(k) for k in range(self.order + 1)]) / powers + excess
        half, half_error = gauss_newton_part(self.loss, self.center, fit, self.best_radius, self.labels)
        still = (self.outputs - self.center).abs().amax((0, 2)) <= self.rest
        return Fits(
            coefficients=coefficients.T,
            error=error.T,
            gauss_newton=half,
            gauss_newton_error=half_error,
            slope=slope,
            bend=bend,
            size=self.size,
            radius=width,
            reach=torch.minimum(width, self.smooth_radius),
            values=values,
            excess=torch.as_tensor(excess).T,
            smooth_radius=self.smooth_radius,
            kinked=self.smooth_radius < 1.0,
            constant=still & (self.span > 1e6 * self.rest),
            rough=(self.smooth_radius == 0) | across,
            rounding=torch.where(across, exact.tail / self.size.clamp_min(1e-300), self.unit),
        )

    def _along(self, slope: Tensor, bend: Tensor, rows: Tensor | slice, width: Tensor) -> Tensor:
        """The loss along `u + ε u' + ε² u''` of some rays at the Chebyshev points of [-width, width]."""
        found = []
        for x in chebyshev_points(DEGREE).to(width.device):
            eps = (x * width).unsqueeze(-1)
            outputs = self.center[rows] + eps * slope[rows] + eps**2 * bend[rows]
            found.append(self.loss(outputs, self.labels[rows]).double())
        return torch.stack(found)


def jumps(path: Path, fits: Fits, rows: Tensor) -> Tensor:
    """True for rays whose outputs jump at the border of the region, instead of a kink, `(rows,)`.

    A bracket around the border is bisected: the distance to the polynomial falls with the bracket at a kink. It takes
    `JUMP_COST` evaluations of the head for a ray.

    Args:
        path: the rays.
        fits: fits that contain those of the rays.
        rows: their place among the fits.
    """
    problem, dtype = path.problem, path.first.dtype
    center = problem.head(path.first).double()
    slope, bend, radius = fits.slope[rows], fits.bend[rows], fits.smooth_radius[rows]
    rest = RESTING * torch.finfo(dtype).eps * fits.size[rows]

    def distance(eps: Tensor) -> Tensor:
        outputs = problem.head(displaced((path.first, path.linear, path.quadratic), eps.to(dtype))).double()
        wide = eps.unsqueeze(-1)
        return (outputs - center - wide * slope - wide**2 * bend).abs().amax(-1)

    inside = radius
    right, left = distance(SHRINK * inside), distance(-SHRINK * inside)
    sign = torch.where(right >= left, 1.0, -1.0).double()
    outside, first = SHRINK * inside, torch.maximum(right, left)
    for _ in range(BISECTIONS):
        middle = (inside + outside) / 2
        beyond = distance(sign * middle) > 4 * rest
        inside, outside = torch.where(beyond, inside, middle), torch.where(beyond, middle, outside)
    last = distance(sign * outside)
    return (radius < 1.0) & (last > 1e-2 * first) & (last > 1e3 * rest)
