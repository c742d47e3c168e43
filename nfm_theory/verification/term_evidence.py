"""Link 2: every named term on a law of its own source, from values of the loss along directions of that source.

Where the source is small, all its directions are taken and the only error is that of the fits. Elsewhere directions are
drawn until the relative error that would have been refuted is small enough or the budget ends. The quadratic forms with
the Jacobian are the control variate there: their mean over all directions is known for any matrix, so that a wrong
Jacobian makes the standard error larger, but not the mean wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor

from ..calculus.derivatives import gauss_newton_forms
from ..calculus.engine import Linearization
from ..expansion.random_paths import stratified
from ..expansion.second_order import MANY_OUTPUTS
from ..setting.pointwise import PointwiseLoss
from ..setting.problem import Path, Problem
from .draw_evidence import where_fits_begin
from .effort import BudgetSpent, Meter
from .fits import DEGREE, Fits, averaged
from .intervals import ENOUGH
from .rays import along
from .sources import Source, control_mean
from .student import STDERRS, certain

#: Most numbers in the directions that are in memory at once, and in the Jacobian of a control variate.
BLOCK_NUMBERS, CONTROL_NUMBERS = 2**24, 2**27
#: The part of the budget up to which the Jacobian of a head with many outputs is worth its cost.
CONTROL_PART = 0.2
#: Rows that tell on which interval the fits of a source begin.
PILOT_ROWS = 16
#: Fewest draws of each sample, rows of a block of draws, and blocks into which a budget is cut at least.
SWEEPS, BLOCK_ROWS, STEPS = 3, 256, 40
#: Relative error of a term at which drawing stops, and the same for large networks.
TARGET, LARGE_TARGET = 0.01, 0.04
#: Rounding of the moments of 1 - λ, which are sums over numbers up to 1.
FACTOR_ROUNDING = 1e-15
#: Relative error of a fit that is good enough for large networks.
LARGE_ENOUGH = 1e-4
#: Forward passes that the derivatives along a direction take, and that a linearization with its adjoint takes.
PAIRED, LINEARIZED = 2, 4


@dataclass(frozen=True)
class Measured:
    """A term as it was measured from values.

    Attributes:
        value: the measurement.
        error: largest difference to the claim that the fits, rounding and sampling explain.
        method: how it was measured, in words.
        claimed: mean of the derivatives along the same directions, where the exact term was not computed; `None`
            elsewhere.
        claimed_stderr: standard error of that mean.
    """

    value: float
    error: float
    method: str
    claimed: float | None = None
    claimed_stderr: float = 0.0

    @staticmethod
    def average(parts: list[Measured]) -> Measured:
        """Mean over layers."""
        mean = lambda values: sum(values) / len(values)  # noqa: E731
        claims = [p.claimed for p in parts]
        known = [c for c in claims if c is not None]
        return Measured(
            mean([p.value for p in parts]), mean([p.error for p in parts]), parts[0].method,
            mean(known) if len(known) == len(claims) else None, mean([p.claimed_stderr for p in parts]),
        )  # fmt: skip


@dataclass
class TermEvidence:
    """What the values say about the terms of one problem.

    Attributes:
        terms: measurements by the name of the term.
        rough: largest part of a source's curvature that comes from rays on which no fit converges.
        jumpy: True if outputs move in jumps along some rays.
        rounding: relative rounding of the outputs that the fits show.
    """

    terms: dict[str, Measured] = field(default_factory=dict)
    rough: float = 0.0
    jumpy: bool = False
    rounding: float = 0.0

    def see(self, fits: Fits, weights: Tensor) -> None:
        """Take note of rays on which the function is not smooth, and of rounding."""
        size = weights.abs() * (fits.coefficients[:, 2].abs() + fits.gauss_newton.abs())
        rough = float(size[fits.rough].sum() / size.sum()) if bool(size.any()) else 0.0
        self.rough, self.jumpy = max(self.rough, rough), self.jumpy or bool(fits.constant.any())
        self.rounding = max(self.rounding, float(fits.rounding.median()))


def all_directions(source: Source, degree: int, evidence: TermEvidence, meter: Meter) -> None:
    """Measure the terms of a source over all its directions, into `evidence`."""
    device, d = source.problem.features.device, source.problem.features[0].numel()
    parts, weights = [], []
    start: float | Tensor = 1.0
    for index in torch.arange(source.total, device=device).split(max(1, BLOCK_NUMBERS // d)) if source.total else ():
        path, weight = source.rows(index)
        parts.append(along(path, order=2, degree=degree, start=start, spend=meter.spend))
        weights.append(weight)
    if not parts:  # a single sample has no partner
        evidence.terms |= {name: Measured(0.0, 0.0, "no directions") for name in source.factors}
        return
    fits, weight = Fits.joined(parts), torch.cat(weights)
    evidence.see(fits, weight)
    sums, errors = averaged(fits, weight, 2)
    errors = errors + weight @ fits.floor()[:, :3]
    half, half_error = weight @ fits.gauss_newton, weight @ (fits.gauss_newton_error + fits.floor()[:, 2])
    found = {
        "R1": (sums[1], errors[1]), "R2": (half, half_error), "R3": (sums[2] - half, errors[2] + half_error)
    }  # fmt: skip
    for name, factor in source.factors.items():
        value, error = map(float, found[name[:2]])
        error = factor * error + FACTOR_ROUNDING * abs(value)
        evidence.terms[name] = Measured(factor * value, error, "values, all directions")


class Sampling:
    """Measure the terms of a source over random directions, a few at a time.

    Args:
        source: the source; the loss of its problem is computed in float64.
        loss: the same loss with its closed derivatives.
        at: the head linearized at the features.
        degree: degree of the fits.
        paired: compare with derivatives along the same directions, because the exact terms were not computed.
        generator: random generator of the directions.
        meter: counts the evaluations.
    """

    def __init__(
        self, source: Source, loss: PointwiseLoss, at: Linearization, degree: int, paired: bool,
        generator: torch.Generator, meter: Meter,
    ):  # fmt: skip
        self.source, self.at, self.degree, self.paired, self.meter = source, at, degree, paired, meter
        outputs, labels = at.outputs.double(), source.problem.labels
        labels = labels.double() if labels.is_floating_point() else labels
        self.slope, self.curvature = loss.gradient(outputs, labels), loss.hessian(outputs, labels)
        self.draws = source.sweeps(generator)
        self.jacobian: Tensor | None = None
        self.fits: list[Fits] = []
        # Slope, Gauss-Newton part and residual part along each draw of all samples, (n, 3): from values, by the
        # control variate, and from the derivatives of the head
        self.values: list[Tensor] = []
        self.controls: list[Tensor] = []
        self.derived: list[Tensor] = []
        self.start: float = 1.0
        self.exhausted = False
        self.enough = ENOUGH if degree >= DEGREE else LARGE_ENOUGH

    def begin(self, jacobian: Tensor | None) -> None:
        """Find the interval on which the fits begin, and measure a first draw; `jacobian` is the control variate's."""
        self.jacobian = jacobian
        first = next(self.draws, None)
        if first is None:
            self.exhausted = True
            return
        some = along(
            first[:PILOT_ROWS], order=2, degree=self.degree, enough=self.enough, spend=self.meter.spend
        )  # fmt: skip
        self.start = where_fits_begin(some, self.degree)
        self._add(first)

    def more(self) -> None:
        """Draw and measure again, a block of rows."""
        paths = list(islice(self.draws, self._together))
        if not paths:
            self.exhausted = True
            return
        anchor, first, linear = (torch.cat([getattr(p, k) for p in paths]) for k in ("anchor", "first", "linear"))
        self._add(Path(self.source.problem, anchor, first, linear, None))

    @property
    def _together(self) -> int:
        """Draws of each sample that are measured at once: a block of rows, but at most a few per cent of the budget."""
        allowed, each = self.meter.budget.evaluations, (self.degree + 4) * len(self.slope)
        blocks = max(1, BLOCK_ROWS // len(self.slope))
        return blocks if allowed is None else max(1, min(blocks, allowed // (STEPS * each)))

    def cost(self) -> int:
        """Evaluations of the head that `more` takes."""
        return (self.degree + 1 + PAIRED * self.paired) * len(self.slope) * self._together

    def _add(self, path: Path) -> None:
        n, spend = len(self.slope), self.meter.spend
        spend(PAIRED * len(path) * self.paired)
        fits = along(path, order=2, degree=self.degree, start=self.start, enough=self.enough, spend=spend)
        self.fits.append(fits)
        parts = fits.coefficients[:, 1], fits.gauss_newton, fits.coefficients[:, 2] - fits.gauss_newton
        self.values += torch.stack(parts, dim=-1).unflatten(0, (-1, n)).unbind(0)
        directions = path.linear.unflatten(0, (-1, n))
        if self.jacobian is not None:
            tangents = torch.einsum("nkd,snd->snk", self.jacobian.flatten(2), directions.flatten(2).double())
            self.controls += self._forms(tangents, torch.zeros_like(tangents[..., 0])).unbind(0)
        if self.paired:
            tangents, forms = self.at.sweep(directions, self.slope.to(self.at.outputs.dtype))
            self.derived += self._forms(tangents.double(), forms.double() / 2).unbind(0)

    def _forms(self, tangents: Tensor, residual: Tensor) -> Tensor:
        """`a·t`, ½ tᵀFt and the residual part for tangents `(s, n, K)`, `(s, n, 3)`."""
        half = gauss_newton_forms(self.curvature, tangents.permute(1, 2, 0)).T / 2
        return torch.stack([(tangents * self.slope).sum(-1), half, residual], dim=-1)

    def measured(self) -> dict[str, Measured]:
        """The terms by name, as far as they are known."""
        if not self.values:  # a single sample has no partner
            return {name: Measured(0.0, 0.0, "no directions") for name in self.source.factors}
        values, count, share = torch.stack(self.values), len(self.values), self.source.share
        fits = Fits.joined(self.fits)
        weight = torch.full_like(fits.radius, 1 / len(fits.radius))
        errors = averaged(fits, weight, 2)[1] + weight @ fits.floor()[:, :3]
        half_error = weight @ (fits.gauss_newton_error + fits.floor()[:, 2])
        fit_error = torch.stack([errors[1], half_error, errors[2] + half_error])
        controlled = values - torch.stack(self.controls) if self.controls else values
        value, stderr = self._mean(controlled)
        value = share * value
        if self.jacobian is not None:
            value[:2] += control_mean(self.source, self.jacobian, self.slope, self.curvature)
        claims, spread = None, torch.zeros_like(value)
        if self.paired:  # the same directions on both sides: their choice makes no difference
            gap, gap_stderr = self._mean(values - torch.stack(self.derived))
            claims, spread, stderr = value - share * gap, stderr, gap_stderr
        error = share * (STDERRS * stderr + fit_error)
        method = f"values, {count} draws of each sample" + ", along which derivatives are taken too" * self.paired
        found = {}
        for name, factor in self.source.factors.items():
            k = ("R1", "R2", "R3").index(name[:2])
            claim = None if claims is None else factor * float(claims[k])
            found[name] = Measured(
                factor * float(value[k]), factor * float(error[k]) + FACTOR_ROUNDING * abs(float(value[k])), method,
                claim, share * factor * float(spread[k]),
            )  # fmt: skip
        return found

    def _mean(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard error of draws `(s, n, 3)` of a finite or an infinite population of draws."""
        if len(values) == 1:
            alone = self.source.population == 1
            return values.mean((0, 1)), torch.full_like(values[0, 0], 0.0 if alone else torch.inf)
        mean, stderr = stratified(values)
        stderr = stderr * (certain(values.shape[1] * (len(values) - 1)) / STDERRS)
        return mean, stderr * max(0.0, 1 - len(values) / self.source.population) ** 0.5


def resolved(measured: Mapping[str, Measured], claims: Mapping[str, float], target: float) -> bool:
    """True if an error of `target` would have been refuted in every term that is a twentieth of its sum or more."""
    second = sum(abs(v) for k, v in claims.items() if k[0] == "R" and k != "R1")
    for name, one in measured.items():
        claim = abs(claims[name] if one.claimed is None else one.claimed)
        if one.error > target * max(claim, 0.05 * second if name != "R1" else 0.0):
            return False
    return True


def jacobian_of(problem: Problem, at: Linearization, meter: Meter) -> Tensor | None:
    """The Jacobian of the head for the control variate, `(n, K, *feature)` in float64; `None` if it is too large."""
    cost = at.outputs.numel() + len(at.outputs)
    many = at.outputs.shape[-1] > MANY_OUTPUTS and not meter.affords(cost, part=CONTROL_PART)
    if many or at.outputs.numel() * problem.features[0].numel() > CONTROL_NUMBERS or not meter.affords(10 * cost):
        return None
    meter.spend(cost)
    with torch.enable_grad():
        features = problem.features.detach().requires_grad_()
        outputs = problem.head(features)
        if not outputs.requires_grad:
            return None
        sums = outputs.sum(0)
        rows = [torch.autograd.grad(one, features, retain_graph=True, allow_unused=True)[0] for one in sums]
    return torch.stack([torch.zeros_like(features) if row is None else row for row in rows], dim=1).detach().double()


def sample_until_resolved(
    sources: list[Sampling], claims: Mapping[str, float], evidence: TermEvidence, meter: Meter, part: float,
    target: float = TARGET,
) -> None:  # fmt: skip
    """Draw for every source until its terms are resolved to `target` or this part of the budget is spent."""
    active = list(sources)
    while active:
        for one in list(active):
            # Two draws tell the difference of values and derivatives along the same directions
            enough = len(one.values) >= (2 if one.paired else SWEEPS) and resolved(one.measured(), claims, target)
            if one.exhausted or enough or not meter.affords(one.cost(), part=part):
                active.remove(one)
                continue
            try:
                one.more()
            except BudgetSpent:  # a block that was not finished is not used
                active.clear()
                break
    for one in sources:
        evidence.terms |= one.measured()
        if one.fits:
            fits = Fits.joined(one.fits)
            evidence.see(fits, torch.ones_like(fits.radius))
