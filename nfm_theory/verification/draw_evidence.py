"""Link 1: along single draws of the law, Taylor coefficients from values against derivatives of the same draw.

There is no sampling error in the difference. It finds a network whose derivatives are not those of what it computes.
The fits also say how smooth the network is along the draws: kinks, jumps, and rounding wherever it comes from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..expansion.paths import taylor_coefficients
from ..setting.problem import Problem
from .fit import amplification
from .fits import DEGREE, KINK_DOUBT, LINEAR_DEGREE, Fits, averaged
from .intervals import FINER, smooth_after_all
from .rays import along, in_double
from .regions import JUMP_COST, jumps
from .student import certain

#: Draws that are compared, of small and of large networks.
DRAWS, LARGE_DRAWS = 64, 16
#: An error below the first part of outputs and loss counts as rounding in any case, one above the second in none.
NEGLIGIBLE = (1e-9, 1e-3)
#: A difference this many times the error of the fits refutes; `KINK_DOUBT` times where rounding is coarser than this.
DOUBT, COARSE = 3.0, 1e-11
#: Scale at which the change of the loss is split into what the region of the sample carries and what kinks carry.
CHANGE_EPS = 0.1
#: Forward passes that a draw's derivatives of the third order, the search of a jump, and its change take.
DERIVED, SEARCHED, CHANGED = 16, JUMP_COST, 2


@dataclass(frozen=True)
class DrawEvidence:
    """Outcome of link 1 for one problem; coefficients of ε⁰ .. ε³.

    Attributes:
        draws: number of draws compared.
        gap: mean of values minus derivatives, `(4,)`.
        gap_error: largest error of that mean that sampling, fits and rounding explain.
        difference: mean absolute difference of a draw, `(4,)`.
        allowed: the difference that fits and rounding explain.
        scale: mean absolute coefficient, `(4,)`.
        floor: size of a coefficient of the loss that is nothing but rounding, `(4,)`.
        smooth_radius: half-widths in ε on which each draw is smooth, `(draws,)`.
        kinked: share of the draws that meet a kink or a jump within `CHANGE_EPS`.
        rough: share of the draws on which no fit converges.
        jumpy: True if outputs move in jumps only along some draws.
        rounding: relative rounding of the outputs that the values show.
        unit: relative rounding of the precision of the features.
        kink_share: part of the change of the loss at `CHANGE_EPS` that lies beyond the region of the sample.
        start: half-width in ε on which fits along other draws of the law begin.
    """

    draws: int
    gap: Tensor
    gap_error: Tensor
    difference: Tensor
    allowed: Tensor
    scale: Tensor
    floor: Tensor
    smooth_radius: Tensor
    kinked: float
    rough: float
    jumpy: bool
    rounding: float
    unit: float
    kink_share: float
    start: float

    def wrong(self) -> int | None:
        """The smallest power of ε at which values and derivatives differ beyond their errors; `None` if they agree."""
        found = (self.difference > self.allowed).nonzero().flatten().tolist()
        return found[0] if found else None

    @property
    def resolution(self) -> list[float]:
        """By power of ε, the relative error of the derivatives that would have been seen; infinite if none."""
        return (self.allowed / self.scale.clamp_min(1e-300)).tolist()

    @property
    def low_precision(self) -> bool:
        """True if the values are rounded far more coarsely than the precision of the features explains."""
        return self.rounding > max(1e4 * self.unit, COARSE)


@torch.no_grad()
def compare_draws(
    problem: Problem, degree: int, count: int, seed: int, spend: Callable[[int], None] = lambda rows: None
) -> DrawEvidence:
    """Compare values with derivatives along `count` draws of the law.

    Args:
        problem: the setting.
        degree: degree of the fits.
        count: number of draws.
        seed: seed of the draws.
        spend: called with the number of evaluations of the head.
    """
    n, generator = len(problem.features), torch.Generator(problem.features.device).manual_seed(seed)
    draw = problem.draw(n, -(-count // n), generator=generator)[:count]
    path = in_double(problem).path(draw)
    fits = along(path, order=3, degree=degree, spend=spend)
    linear = degree <= LINEAR_DEGREE
    spend((DERIVED + CHANGED + SEARCHED * linear) * len(draw))
    near = fits.kinked & (fits.smooth_radius < CHANGE_EPS)
    if not linear and bool(near.any()):
        spend(FINER * degree * int(near.sum()))
        near &= ~smooth_after_all(path, near, fits, degree, own_loss=problem.loss.closed_gradient is None)
    jumpy = bool(fits.constant.any()) or (
        linear and bool(jumps(path, fits, torch.arange(len(path), device=draw.lam.device)).any())
    )
    derived = taylor_coefficients(problem.path(draw), 3).double()
    unit = torch.finfo(problem.features.dtype).eps
    good = ~(fits.rough | fits.constant)
    # Three numbers tell the error of a ray. Coarse rounding makes them small by chance, and hides kinks behind itself
    doubt = DOUBT if max(unit, float(fits.rounding.median())) < COARSE else KINK_DOUBT
    floors = fits.floor()
    gap = (fits.coefficients - derived)[good]
    rows, none = max(1, len(gap)), gap.new_zeros(4)
    weight = torch.where(good, 1.0 / rows, 0.0).double()
    _, fit_error = averaged(fits, weight, 3)
    stderr = gap.std(0) / rows**0.5 if len(gap) > 1 else none
    floor = floors[good].mean(0) if len(gap) else none
    # Values are rounded to so much, on an interval of width 1 and on one that moves a logit by 1/2
    wide = unit + torch.finfo(torch.float64).eps * (2 * fits.slope.abs().amax(-1)).unsqueeze(-1) ** torch.arange(
        4, device=fits.slope.device
    )
    seen = [amplification(DEGREE, k) * float((wide[:, k] * fits.size).mean()) for k in range(4)]
    size = float(fits.size.mean())
    return DrawEvidence(
        draws=len(draw),
        gap=gap.mean(0) if len(gap) else none,
        gap_error=certain(rows - 1) * stderr + fit_error + floor,
        difference=gap.abs().mean(0) if len(gap) else none,
        allowed=doubt * fits.error[good].mean(0) + floor if len(gap) else none + torch.inf,
        scale=torch.maximum(derived, fits.coefficients).abs().mean(0),
        floor=(10 * (floor + floor.new_tensor(seen))).clamp(*(part * size for part in NEGLIGIBLE)),
        smooth_radius=fits.smooth_radius,
        kinked=float(near.double().mean()),
        rough=float(fits.rough.double().mean()),
        jumpy=jumpy,
        rounding=float(fits.rounding[good if bool(good.any()) else ...].median()),
        unit=unit,
        kink_share=_kink_share(problem, draw, fits),
        start=where_fits_begin(fits, degree),
    )


def where_fits_begin(fits: Fits, degree: int) -> float:
    """The half-width with which the fits of more rays begin, as some rays tell it: few of them need another one.

    The regions of a piecewise-linear head have very different sizes. Most rays fit at once on the lower quartile, and a
    smaller interval would make the errors of all of them larger.
    """
    if degree <= LINEAR_DEGREE:
        return float(fits.smooth_radius.quantile(0.25).clamp_min(1e-8))
    return float(fits.radius.median())


def _kink_share(problem: Problem, draw, fits: Fits) -> float:
    """Mean |change beyond the region| over mean |change| at `CHANGE_EPS`: 0 if the region carries it all."""
    double = in_double(problem)
    path = double.path(draw)
    eps = torch.as_tensor(CHANGE_EPS, dtype=problem.features.dtype, device=problem.features.device)
    zero = double.head(path.first).double()
    labels = problem.labels[draw.anchor]
    start, moved = double.loss(zero, labels), path(eps)
    inside = double.loss(zero + CHANGE_EPS * fits.slope + CHANGE_EPS**2 * fits.bend, labels)
    change = (moved - start).abs().mean()
    return float((moved - inside).abs().mean() / change) if float(change) > 0 else 0.0
