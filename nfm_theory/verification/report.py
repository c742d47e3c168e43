"""The verdict on an expansion: judged from measured remainders, printed as a table, drawn as a plot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..setting.branches import Branches
from ..setting.problem import Problem
from ..setting.results import Record, TaylorTerms, plain
from .evidence import Measurement

#: Largest deviation of observed order and coefficient ratio with which an expansion is said to hold.
ORDER_TOLERANCE, RATIO_TOLERANCE = 0.1, 0.02
#: A wrong coefficient is one this far off, relative to the terms it is made of.
TERM_TOLERANCE = 0.01


@dataclass(frozen=True)
class ExpansionReport(Record):
    """Outcome of `verify`.

    Attributes:
        verdict: `"holds"`, `"refuted"` or `"undecided"`.
        reason: why, in one sentence.
        layer: layer or layers that were perturbed.
        order: p, order of the polynomial.
        leading_order: power of ε with which the remainder is predicted to fall.
        observed_order: slope of log|remainder| against log ε over the smallest usable scales (NaN if too few).
        predicted_coefficient: predicted remainder / ε^leading_order (C3 for p = 2 with mixing).
        coefficient_ratio: remainder / (ε^leading_order predicted_coefficient) at the smallest usable ε (NaN if none).
        eps: scales, decreasing.
        remainders: loss minus polynomial at every ε.
        stderr: their standard errors (0 for a deterministic rule).
        floor: size below which a remainder is rounding.
        predicted: coefficients c_0..c_p of the polynomial and C_q, from the formulas.
        measured: the same coefficients measured along the rows of the rule.
        pathwise: single draws checked against Lagrange's interval, and how many fell outside.
        samples: evaluations of the head.
        method: how the loss was computed.
        num_samples: n, number of data.
        settings: laws, loss, precision.
        terms: the terms verified.
    """

    verdict: str
    reason: str
    layer: str | tuple[str, ...]
    order: int
    leading_order: int
    observed_order: float
    predicted_coefficient: float
    coefficient_ratio: float
    eps: list[float]
    remainders: list[float]
    stderr: list[float]
    floor: list[float]
    predicted: list[float]
    measured: list[float]
    pathwise: tuple[int, int]
    samples: int
    method: str
    num_samples: int
    settings: dict
    terms: TaylorTerms = field(repr=False)

    @property
    def usable(self) -> list[bool]:
        """Which remainders stand clear of rounding and sampling error."""
        return [
            abs(r) > max(f, 4 * s) and r != 0 for r, f, s in zip(self.remainders, self.floor, self.stderr, strict=True)
        ]

    @property
    def ratios(self) -> list[float]:
        """Remainder / predicted leading term at every ε."""
        return _ratios(self.eps, self.remainders, self.predicted_coefficient, self.leading_order)

    def to_dict(self) -> dict:
        """Everything as plain numbers, strings, lists and dicts (valid JSON: NaN becomes None)."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "terms"}
        values["ratios"], values["terms"] = self.ratios, self.terms.to_dict()
        return plain(values)

    def __str__(self) -> str:
        """A table: settings, coefficients, remainders, verdict."""
        s = self.settings
        q, names = self.leading_order, {"": "input"}
        layers = (self.layer,) if isinstance(self.layer, str) else self.layer
        law = ", ".join(f"{k} = {s[k]:g}" for k in ("alpha", "beta", "lam", "add_noise", "mult_noise") if k in s)
        lines = [
            f"Expansion of order {self.order} of the {s.get('objective', 'NFM loss')} at "
            f"{', '.join(names.get(k, k) for k in layers)}: {self.verdict.upper()}",
            f"  {self.reason}",
            f"  n = {self.num_samples}, {law}",
            f"  {s['loss']}, {s['dtype']}; {self.samples:,} evaluations of the head",
            f"  {self.method}",
            "",
            "  power of eps    formula         measured",
        ]
        for k in [*range(self.order + 1), q]:
            note = "  predicted remainder" if k == q else ""
            lines.append(f"  {k:>12}    {self.predicted[k]:+.6e}   {self.measured[k]:+.6e}{note}")
        lines += ["", f"  {'eps':>10}   {'remainder':>13}   {'stderr':>9}   ratio to C{q} eps^{q}"]
        for e, r, se, ratio, ok in zip(self.eps, self.remainders, self.stderr, self.ratios, self.usable, strict=True):
            lines.append(f"  {e:10.3e}   {r:+.6e}   {se:9.2e}   {ratio:.5f}{'' if ok else '   (below the floor)'}")
        lines += [
            "",
            f"  observed order    {self.observed_order:.4f}   (predicted {q})",
            f"  coefficient ratio {self.coefficient_ratio:.5f}",
        ]
        if self.pathwise[0]:
            lines.append(f"  single draws outside Lagrange's interval: {self.pathwise[1]} of {self.pathwise[0]}")
        return "\n".join(lines)

    def plot(self, ax=None):
        """Remainder against ε with the predicted line; returns the matplotlib axes.

        Raises:
            ImportError: if matplotlib is not installed.
        """
        import matplotlib.pyplot as plt
        from matplotlib.ticker import NullFormatter

        ax = plt.subplots(figsize=(5.0, 3.6), layout="constrained")[1] if ax is None else ax
        eps = torch.tensor(self.eps)
        q, coefficient = self.leading_order, abs(self.predicted_coefficient)
        ax.loglog(
            eps,
            coefficient * eps**q,
            "-",
            color="0.55",
            label=rf"predicted $|C_{q}|\,\varepsilon^{q}$",
            zorder=1,
        )
        size = [abs(r) for r in self.remainders]
        error = [4 * s for s in self.stderr] if any(self.stderr) else None
        ax.errorbar(eps, size, yerr=error, fmt="o", ms=5, color="#0072B2", label="measured |remainder|", zorder=2)
        if any(self.floor):
            ax.loglog(eps, self.floor, ":", color="#D55E00", label="rounding floor")
        ax.xaxis.set_minor_formatter(NullFormatter())  # labels of minor ticks overlap over a single decade
        ax.set(xlabel=r"scale $\varepsilon$", ylabel="remainder", title=f"order {self.order}: {self.verdict}")
        ax.legend(frameon=False)
        return ax


def _ratios(eps, remainders, coefficient: float, q: int) -> list[float]:
    return [r / (coefficient * e**q) if coefficient else math.nan for e, r in zip(eps, remainders, strict=True)]


def observed_order(eps, remainders) -> float:
    """Least-squares slope of log|remainder| against log ε; NaN for fewer than two points.

    Args:
        eps: scales, positive.
        remainders: nonzero remainders.

    Example:
        >>> round(observed_order([0.1, 0.05, 0.025], [3e-3, 3e-3 / 8, 3e-3 / 64]), 6)
        3.0
    """
    if len(eps) < 2:
        return math.nan
    x = torch.tensor([math.log(e) for e in eps], dtype=torch.float64)
    z = torch.tensor([math.log(abs(float(r))) for r in remainders], dtype=torch.float64)
    x, z = x - x.mean(), z - z.mean()
    return float((x * z).sum() / (x * x).sum())


def _tolerance(predicted: Tensor, measured, k: int, terms: TaylorTerms) -> float:
    """Difference of formula and measurement of a coefficient that is rounding or sampling error."""
    size = terms.size(k) if k <= 2 else abs(float(predicted[k]))
    return max(float(measured.coefficient_error[k]), 1e-6 * size)


def _wrong_coefficient(predicted: Tensor, measured, order: int, q: int, terms: TaylorTerms) -> tuple[str, bool]:
    """(what is wrong with a coefficient, or ""; whether sampling error would hide an error of `TERM_TOLERANCE`)."""
    hidden = False
    for k in [*range(order + 1), q]:
        formula, value, error = (float(v[k]) for v in (predicted, measured.coefficients, measured.coefficient_error))
        size = terms.size(k) if k <= 2 else abs(formula)
        if abs(formula - value) > _tolerance(predicted, measured, k, terms):
            return (
                f"the coefficient of eps^{k} is {formula:.6g} by the formulas, but measures {value:.6g}",
                hidden,
            )
        hidden |= k <= order and error > TERM_TOLERANCE * size > 0
    return "", hidden


@dataclass(frozen=True)
class _Points:
    """The usable remainders, by decreasing ε, with their ratios to the prediction."""

    eps: list[float]
    ratios: list[float]
    slope: float
    error: float  # four standard errors of the last ratio

    def limit(self) -> float:
        """Ratio extrapolated linearly to ε = 0, which removes the next coefficient."""
        (e1, e2), (r1, r2) = self.eps[-2:], self.ratios[-2:]
        return r2 + (r2 - r1) * e2 / (e1 - e2)

    def growth(self) -> float:
        """Power of 1/ε with which the ratio grows at the smallest scales."""
        return math.log(abs(self.ratios[-1] / self.ratios[-2])) / math.log(self.eps[-2] / self.eps[-1])


def _verdict(points: _Points, q: int) -> tuple[str, str]:
    """(verdict, reason) from the remainders alone."""
    ratio, slope = points.ratios[-1], points.slope
    off = abs(ratio - 1)
    if points.error > RATIO_TOLERANCE:
        if off > RATIO_TOLERANCE + 1.5 * points.error:
            return "refuted", f"remainder / predicted = {ratio:.4f}, beyond its sampling error"
        return "undecided", f"the remainder has a standard error of {25 * points.error:.2g} %; raise the budget"
    if off <= RATIO_TOLERANCE and abs(slope - q) <= ORDER_TOLERANCE:
        return (
            "holds",
            f"the remainder falls as eps^{slope:.3f} with {ratio:.4f} times the predicted coefficient",
        )
    if slope < q - 0.5 and points.growth() > 0.4:
        return "refuted", f"the remainder falls only as eps^{slope:.3f}: a term of lower order is wrong"
    limit = points.limit()
    settled = abs(slope - q) <= ORDER_TOLERANCE and abs(limit - ratio) < abs(limit - 1) / 2
    if settled and abs(limit - 1) > 5 * RATIO_TOLERANCE:
        return (
            "refuted",
            f"the order is right but the coefficient tends to {limit:.4f} times the predicted one",
        )
    return "undecided", f"the next coefficient still dominates at the smallest usable eps (order {slope:.3f})"


def settings_of(problem: Problem) -> dict:
    """The setting in numbers and words, for a report."""
    facts = problem.law.to_dict()
    facts |= {"loss": problem.loss.name, "dtype": str(problem.features.dtype).removeprefix("torch.")}
    facts["features"] = tuple(problem.features.shape[1:])
    if isinstance(problem, Branches):
        facts |= {"objective": problem.objective, "branches": problem.branches, "weights": problem.weights.tolist()}
        facts |= {"shared_noise": problem.shared_noise, "features": tuple(problem.features.shape[2:])}
        facts |= {} if problem.gamma is None else {"gamma": problem.gamma}
    return facts


def judge(
    problems: Sequence[Problem],
    eps: Sequence[float],
    order: int,
    leading: int,
    predicted: Tensor,
    measured: Measurement,
    pathwise: Sequence[tuple[int, int]],
    terms: TaylorTerms,
) -> ExpansionReport:
    """Turn evidence into an `ExpansionReport`.

    `measured` holds coefficients, their errors, and remainders of the polynomial of degree `leading - 1` made of the
    *measured* coefficients; the difference to the formulas is added here, unless it is rounding or sampling error.

    Args:
        problems: one per layer.
        eps: scales, decreasing.
        order: p.
        leading: power of ε with which the remainder is predicted to fall.
        predicted: coefficients by the formulas, `(leading + 1,)`.
        measured: what the rule or the draws gave.
        pathwise: for each layer, single draws checked and how many left Lagrange's interval.
        terms: the terms verified.
    """
    layers = tuple(p.layer for p in problems)
    checked = sum(count for count, _ in pathwise), sum(outside for _, outside in pathwise)
    gap = (measured.coefficients - predicted)[:leading]
    allowed = gap.new_tensor([_tolerance(predicted, measured, k, terms) for k in range(leading)])
    gap = torch.where(gap.abs() <= allowed, torch.zeros_like(gap), gap)
    scales = torch.tensor(eps, dtype=torch.float64, device=gap.device)
    remainders = measured.remainders + scales[:, None] ** torch.arange(leading, device=gap.device) @ gap
    report = ExpansionReport(
        verdict="undecided",
        reason="fewer than three remainders stand clear of rounding and sampling error",
        order=order,
        leading_order=leading,
        observed_order=math.nan,
        predicted_coefficient=float(predicted[leading]),
        coefficient_ratio=math.nan,
        eps=list(eps),
        remainders=remainders.tolist(),
        stderr=measured.stderr.tolist(),
        floor=measured.floor.tolist(),
        predicted=predicted.tolist(),
        measured=measured.coefficients.tolist(),
        pathwise=checked,
        samples=measured.samples,
        method=measured.method,
        terms=terms,
        layer=layers[0] if len(layers) == 1 else layers,
        num_samples=len(problems[0].features),
        settings=settings_of(problems[0]),
    )
    usable = [k for k, ok in enumerate(report.usable) if ok]
    if len(usable) >= 3 and report.predicted_coefficient:
        last = usable[-4:]
        points = _Points(
            eps=[eps[k] for k in usable],
            ratios=[report.ratios[k] for k in usable],
            slope=observed_order([eps[k] for k in last], [report.remainders[k] for k in last]),
            error=abs(4 * report.stderr[usable[-1]] / report.remainders[usable[-1]]),
        )
        verdict, reason = _verdict(points, leading)
        report = replace(
            report,
            verdict=verdict,
            reason=reason,
            observed_order=points.slope,
            coefficient_ratio=points.ratios[-1],
        )
    wrong, hidden = _wrong_coefficient(predicted, measured, order, leading, terms)
    if wrong:
        return replace(report, verdict="refuted", reason=wrong)
    if report.verdict == "holds" and checked[1]:
        outside = f"{checked[1]} of {checked[0]} single draws left Lagrange's interval (a head that is not smooth?)"
        return replace(report, verdict="undecided", reason=outside)
    if report.verdict == "holds" and hidden:
        return replace(report, verdict="undecided", reason="sampling error would hide a term 1 % off; raise the budget")
    return report
