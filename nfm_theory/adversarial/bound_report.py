"""The results of a check of the adversarial bound: assumptions, both sides and a verdict (theory §5)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ..setting.results import Record, plain


@dataclass(frozen=True)
class Assumption:
    """One assumption of the bound, and what was measured.

    Attributes:
        name: name of the assumption.
        statement: which number is measured, and what it must be.
        value: the number that was measured.
        holds: True if the assumption holds, up to rounding.
        needed: True if the bound with the chosen radius needs the assumption.
    """

    name: str
    statement: str
    value: float
    holds: bool
    needed: bool


class Inequality:
    """An inequality whose right side is known to lie between two numbers; the reports of all bounds are one.

    A report has the attributes `verdict`, `left`, `left_error`, `right_lower`, `right_upper`, `predicted_slack` and
    `assumptions`.
    """

    verdict: str
    left: float
    left_error: float
    right_lower: float
    right_upper: float
    predicted_slack: float
    assumptions: tuple[Assumption, ...]

    #: Verdict of a report whose inequality holds with the certified right side.
    affirmed = "certified"

    @property
    def slack(self) -> tuple[float, float]:
        """Left minus right side: a pair, first with the certificate on the right side, then with the attack."""
        return self.left - self.right_upper, self.left - self.right_lower

    @property
    def slack_ratio(self) -> tuple[float, float]:
        """The pair `slack`, divided by the predicted slack; NaN if the prediction is 0."""
        (low, high), scale = self.slack, self.predicted_slack
        return (low / scale, high / scale) if scale else (math.nan, math.nan)

    @property
    def failed(self) -> list[str]:
        """Names of the assumptions that are needed but fail."""
        return [a.name for a in self.assumptions if a.needed and not a.holds]

    @property
    def open_by_error(self) -> bool:
        """True if there is no verdict, and a smaller error of the left side could give one."""
        low, high = self.slack
        return self.verdict == "undecided" and (low + self.left_error >= 0 or high - self.left_error < 0)

    def judged(self, precision: float, missing: str) -> dict[str, str]:
        """The verdict and the reason for it, in a dict. There is a verdict only if the slack exceeds the error.

        Args:
            precision: machine precision of the numbers.
            missing: reason why there is no certificate; empty if there is one.
        """
        low, high = self.slack
        error = self.left_error + 4 * precision * (1 + abs(self.left))
        failed = f"; fails: {', '.join(self.failed)}" if self.failed else ""
        if high + error < 0:
            verdict, reason = "refuted", f"the attack alone exceeds the left side by {-high:.3g}"
        elif low - error >= 0:
            verdict, reason = self.affirmed, f"the certified right side stays {low:.3g} below the left side"
        else:
            verdict = "undecided"
            slack = f"the slack lies in {low:.3g} .. {high:.3g} +- {error:.2g}"
            if low >= 0 or high < 0:
                slack += ", the error of the left side; allow more evaluations (Effort: max_rows, samples)"
            reason = f"not decided: {missing if missing and high >= 0 else slack}"
        return {"verdict": verdict, "reason": reason + failed}

    def assumption_lines(self) -> list[str]:
        """One line of a table for each assumption, after a heading."""
        lines = [f"  {'assumption':14} {'measured':>12}"]
        for a in self.assumptions:
            state = "holds" if a.holds else "FAILS" if a.needed else "fails, not needed"
            lines.append(f"  {a.name:14} {a.value:12.4g}  {state:18} {a.statement}")
        return lines

    def plain_assumptions(self) -> dict[str, dict]:
        """What was measured of each assumption, by name."""
        return {a.name: {"value": a.value, "holds": a.holds, "needed": a.needed} for a in self.assumptions}


@dataclass(frozen=True)
class BoundReport(Inequality):
    """The adversarial bound on a model at one scale, from `bound` of a `Problem`.

    Attributes:
        verdict: `"certified"`, `"refuted"` or `"undecided"`, about the inequality on this model at this ε.
        reason: the reason for the verdict, in one sentence.
        layer: name of the perturbed layer.
        eps: scale ε.
        radius_kind: kind of radius, `"sharp"`, `"paper"` or `"mean"`.
        assumptions: the assumptions, as they were measured.
        radius: radius ρ_i of each ball, `(n,)`.
        paper_radius: radius ρ_i according to the paper, `(n,)`.
        sharp_radius: sharp radius ρ_i, `(n,)`.
        margins: smallest margin of each example, `(n,)`; negative if the example is misclassified.
        standard_loss: loss L_std without perturbation.
        nfm_loss: loss L_NFM(ε), the left side.
        nfm_error: error of the left side: four standard errors, or the error of the quadrature rule.
        regularizer: regularizer L_reg.
        inner_lower: losses that some point of the ball has, `(n,)`.
        inner_upper: certified upper bounds of the losses in the ball, `(n,)`; infinite if there is no certificate.
        predicted_slack: left minus right side, predicted to second order in ε.
        inside: number of balls that are known to lie in one linear region.
        label_kept: number of examples whose label is certified, refuted or undecided in the whole ball.
        method: how both sides were computed.
        binary: True if each example has one margin.
    """

    verdict: str
    reason: str
    layer: str
    eps: float
    radius_kind: str
    assumptions: tuple[Assumption, ...]
    radius: Tensor
    paper_radius: Tensor
    sharp_radius: Tensor
    margins: Tensor
    standard_loss: float
    nfm_loss: float
    nfm_error: float
    regularizer: float
    inner_lower: Tensor
    inner_upper: Tensor
    predicted_slack: float
    inside: int
    label_kept: dict[str, int]
    method: str
    binary: bool

    @property
    def left(self) -> float:
        """The left side."""
        return self.nfm_loss

    @property
    def left_error(self) -> float:
        """Estimated error of the left side."""
        return self.nfm_error

    @property
    def right_lower(self) -> float:
        """The right side with the maxima that the attack found: a lower bound of it."""
        return float(self.inner_lower.mean()) + self.regularizer

    @property
    def right_upper(self) -> float:
        """The right side with certified maxima: an upper bound of it."""
        return float(self.inner_upper.mean()) + self.regularizer

    def to_dict(self) -> dict:
        """The report in plain numbers, strings, lists and dicts, for JSON; None for numbers that are not finite."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "assumptions"}
        values |= {
            name: getattr(self, name) for name in ("right_lower", "right_upper", "slack", "slack_ratio", "failed")
        }
        values |= {"assumptions": self.plain_assumptions()}
        return {name: plain(value) for name, value in values.items()}

    def __str__(self) -> str:
        """A table with the verdict, the assumptions, both sides and the slack."""
        n = len(self.radius)
        lines = [
            f"Adversarial bound at {self.layer or 'input'}, eps = {self.eps:g}: {self.verdict.upper()}",
            f"  {self.reason}",
            f"  n = {n}, {'one margin' if self.binary else 'several margins'} per example, radius {self.radius_kind}; "
            f"{self.method}",
            "",
            *self.assumption_lines(),
        ]
        low, high = self.slack
        lines += [
            "",
            f"  radius, mean           {float(self.radius.mean()):.6g}   (sharp {float(self.sharp_radius.mean()):.6g}, "
            f"paper {float(self.paper_radius.mean()):.6g})",
            f"  L_std                  {self.standard_loss:.8g}",
            f"  L_NFM(eps)             {self.nfm_loss:.8g}   (error {self.nfm_error:.2g})",
            f"  inner maximum, mean    {float(self.inner_lower.mean()):.8g} .. {float(self.inner_upper.mean()):.8g}",
            f"  L_reg                  {self.regularizer:.6g}",
            f"  slack                  {low:.6g} .. {high:.6g}",
            f"  predicted slack        {self.predicted_slack:.6g}   (to second order)",
            f"  balls in one region    {self.inside} of {n}",
            "  label kept in the ball " + ", ".join(f"{name} {count}" for name, count in self.label_kept.items()),
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class ValidityRadius(Record):
    """The range of scales in which the bound holds, from `validity_radius`.

    Attributes:
        certified: largest ε such that the inequality is certified at every scale tried up to it; 0 if there is none.
        refuted: smallest ε at which the inequality is refuted; infinite if there is none.
        scales: all scales that were tried, increasing.
        verdicts: the verdict at each scale.
    """

    certified: float
    refuted: float
    scales: list[float]
    verdicts: list[str]

    def __str__(self) -> str:
        """The range in one line."""
        end = f"refuted from {self.refuted:.4g}" if math.isfinite(self.refuted) else "refuted nowhere"
        return f"validity radius: certified up to eps = {self.certified:.4g}, {end} ({len(self.scales)} scales tried)"
