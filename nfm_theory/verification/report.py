"""The report on an expansion: the verdict with its evidence and its power, as a table, a plot and HTML."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from html import escape

import torch

from ..setting.branches import Branches
from ..setting.problem import Problem
from ..setting.results import Record, TaylorTerms, plain
from .effort import Plan

#: Largest deviation of observed order and coefficient ratio with which an expansion is said to hold.
ORDER_TOLERANCE, RATIO_TOLERANCE = 0.1, 0.02


@dataclass(frozen=True)
class Witness(Record):
    """One comparison of a claim with values of the loss.

    Attributes:
        term: name of a term, or of a coefficient.
        link: 2 for a term on the law of its own source, 3 for a coefficient of the whole law.
        claimed: by the formulas.
        measured: from values.
        error: the largest difference that sampling (five standard errors), fits and rounding explain.
        share: part of the term in the sum of the absolute second-order terms; `None` for terms of other powers.
        method: how it was measured, in words.
    """

    term: str
    link: int
    claimed: float
    measured: float
    error: float
    share: float | None
    method: str

    @property
    def off(self) -> bool:
        """True if claim and measurement differ by more than the error."""
        return not abs(self.claimed - self.measured) <= self.error

    @property
    def visible(self) -> float:
        """The error of the claim that would have been refuted: beyond it the truth contradicts the measurement."""
        return self.error + abs(self.claimed - self.measured)

    @property
    def resolved(self) -> float:
        """The same relative to the claim; infinite for a claim of 0."""
        return self.visible / abs(self.claimed) if self.claimed and math.isfinite(self.error) else math.inf

    @property
    def power(self) -> str:
        """What would have been refuted, in words."""
        small = f", it is {_percent(self.share)} of the sum" if self.share is not None and self.share < 0.05 else ""
        if not math.isfinite(self.error):
            return f"{self.term}: too few draws to say what would have been refuted{small}"
        if self.resolved > 10:
            size = f"the term is {self.claimed:.1g}"
            return f"{self.term}: an error of {self.visible:.1g} would have been refuted, {size}{small}"
        if self.resolved > 0.05:
            return f"{self.term}: only an error above {_percent(self.resolved)} would have been refuted{small}"
        return f"{self.term}: an error of {_percent(self.resolved)} would have been refuted{small}"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"


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
        evidence: the comparisons of claims with values of the loss, the named terms first.
        links: what each of the other links found, in words.
        plan: the plan that was made before the start.
        interrupted: True if the verification was stopped before its end.
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
    evidence: tuple[Witness, ...]
    links: tuple[str, ...]
    plan: Plan
    interrupted: bool
    terms: TaylorTerms = field(repr=False)

    @property
    def power(self) -> dict[str, dict[str, float | str | None]]:
        """By term, the relative error that would have been refuted, the term's share of its sum, and both in words."""
        return {
            one.term: {"resolved": one.resolved, "error": one.visible, "share": one.share, "words": one.power}
            for one in self.evidence
            if not one.term.startswith("coefficient")
        }

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
        values["ratios"], values["terms"], values["power"] = self.ratios, self.terms.to_dict(), self.power
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
        lines += ["", f"  {'term':<20}{'formula':>15}{'values':>15}{'error':>10}{'share':>9}   would be refuted above"]
        for one in self.evidence:
            share = "" if one.share is None else _percent(one.share)
            above = _percent(one.resolved) if one.resolved < 10 else f"{one.visible:.1g}, absolute"
            numbers = f"{one.claimed:15.6e}{one.measured:15.6e}{one.error:10.1e}{share:>9}"
            lines.append(f"  {one.term:<20}{numbers}   {above}{'   WRONG' if one.off else ''}")
        return "\n".join([*lines, "", *(f"  {line}" for line in self.links)])

    def to_html(self) -> str:
        """The verdict and the table of the evidence as HTML, for a notebook."""
        head = ("term", "formula", "values", "error", "share", "power")
        rows = [
            (
                one.term, f"{one.claimed:.6g}", f"{one.measured:.6g}", f"{one.error:.1g}",
                "" if one.share is None else _percent(one.share), one.power,
            )
            for one in self.evidence
        ]  # fmt: skip
        body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        links = "".join(f"<li>{escape(line)}</li>" for line in self.links)
        title = "".join(f"<th>{cell}</th>" for cell in head)
        return (
            f"<p><b>{escape(self.verdict)}</b>: {escape(self.reason)}</p>"
            f"<table><thead><tr>{title}</tr></thead><tbody>{body}</tbody></table><ul>{links}</ul>"
        )

    def _repr_html_(self) -> str:
        return self.to_html()

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
