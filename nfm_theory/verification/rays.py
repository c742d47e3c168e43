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
from ..setting.perturbation import displaced
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


@torch.no_grad()
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
    problem, found = path.problem, []
    for some in torch.arange(len(path), device=path.anchor.device).split(max(1, problem.block_rows())):
        block = path[some]
        spend(len(block))
        labels = problem.labels[block.anchor]
        first = torch.as_tensor(start, dtype=torch.float64, device=some.device).expand(len(path))[some]
        search = Search(problem.loss, labels, problem.head(block.first), block.first.dtype, first, order, degree)
        while len(search.rows):
            rays = block[search.rows]
            spend(degree * len(rays))
            outputs = [
                problem.head(displaced((rays.first, rays.linear, rays.quadratic), eps)) for eps in search.scales()
            ]
            search.take(outputs)
        found.append(search.fits())
    return found[0] if len(found) == 1 else Fits.joined(found)


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
    """

    def __init__(
        self, loss: PointwiseLoss, labels: Tensor, outputs: Tensor, dtype: torch.dtype, start: Tensor, order: int,
        degree: int,
    ):  # fmt: skip
        self.loss, self.labels, self.center, self.dtype = loss, labels, outputs.double(), dtype
        self.order, self.degree, self.level = order, degree, 0
        self.size = self.center.abs().amax(-1) + loss(self.center, labels).abs().double()
        self.unit = torch.finfo(dtype).eps
        self.rest = RESTING * self.unit * self.size
        none = torch.zeros_like(self.size)
        self.rows = torch.arange(len(none), device=none.device)
        self.radius = start.clone()
        self.error, self.best_radius, self.tail = none + torch.inf, start.clone(), none + torch.inf
        self.values = none.new_zeros(degree + 1, len(none))
        self.outputs = self.center.new_zeros(degree + 1, *self.center.shape)
        self.smooth_radius, self.span = none.clone(), none.clone()
        self.kinked = torch.zeros_like(none, dtype=torch.bool)
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
        error = replace(fit, tail=tail).error(min(2, self.order)) / radius**2
        inner = torch.maximum(self._inner(fit), 0.5 * self.unit * self.size[rows])
        resting = tail <= rest
        self.kinked[rows] |= resting & (self.before[rows] > KINK * inner) & (self.before[rows] > rest)
        self.smooth_radius[rows] = torch.where(
            resting & (self.smooth_radius[rows] == 0), radius, self.smooth_radius[rows]
        )
        self.before[rows] = inner
        if self.level == 0:
            self.span = (outputs - self.center).abs().amax((0, 2))
        better = error < self.error[rows]
        chosen = rows[better]
        self.error[chosen], self.best_radius[chosen], self.tail[chosen] = error[better], radius[better], tail[better]
        self.values[:, chosen], self.outputs[:, chosen] = values[:, better], outputs[:, better]
        self.level += 1
        good = resting | (error <= ENOUGH * (fit.powers()[2] / radius**2).abs())
        self.rows = rows[~good] if self.level < LEVELS else rows[:0]
        self.radius[self.rows] = self.radius[self.rows] / SHRINK

    def _inner(self, fit: Fit) -> Tensor:
        """The largest of the middle coefficients."""
        half = self.degree // 2
        return fit.chebyshev[half - 1 : half + 1].abs().amax(0)

    def fits(self) -> Fits:
        """The best fit of every ray."""
        fit, slopes, radius = replace(Fit.of(self.values), tail=self.tail), Fit.of(self.outputs), self.best_radius
        powers = radius ** torch.arange(self.order + 1, device=radius.device).unsqueeze(1)
        falling = self.tail <= FALLING * self._inner(fit)
        if self.degree <= LINEAR_DEGREE:
            falling = torch.zeros_like(falling)
        half, half_error = _gauss_newton(self.loss, self.center, slopes, radius, self.labels)
        moved = (self.outputs - self.center).abs().amax((0, 2))
        jumps = self.span > 1e6 * torch.maximum(moved, self.unit * self.size)
        return Fits(
            coefficients=(fit.powers()[: self.order + 1] / powers).T,
            error=torch.stack([fit.error(k) for k in range(self.order + 1)]).div(powers).T,
            gauss_newton=half,
            gauss_newton_error=half_error,
            slope=slopes.powers()[1] / radius.unsqueeze(-1),
            bend=slopes.powers()[2] / radius.unsqueeze(-1) ** 2,
            size=self.size,
            radius=radius,
            values=self.values,
            smooth_radius=self.smooth_radius,
            kinked=self.kinked,
            constant=(moved <= self.rest) & jumps,
            rough=~falling & (self.tail > self.rest),
            rounding=self.tail / self.size.clamp_min(torch.finfo(torch.float64).tiny),
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
