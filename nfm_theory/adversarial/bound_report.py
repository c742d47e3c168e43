"""What the check of the adversarial bound returns: numbers for every assumption, both sides, a verdict (theory §5)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ..setting.results import Record, plain


@dataclass(frozen=True)
class Assumption:
    """One assumption of the bound, measured.

    Attributes:
        name: of the assumption.
        statement: what is asked.
        value: what was measured.
        holds: whether it holds, up to rounding.
        needed: whether the radius that is used needs it.
    """

    name: str
    statement: str
    value: float
    holds: bool
    needed: bool


class Inequality:
    """What reports of a bound share: a left side, an enclosed right side, measured assumptions.

    A report has `left`, `left_error`, `right_lower`, `right_upper`, `predicted_slack` and `assumptions`.
    """

    #: The verdict if the inequality holds with the certified right side.
    affirmed = "certified"

    @property
    def slack(self) -> tuple[float, float]:
        """Left minus right side: (with the certificate, with the attack)."""
        return self.left - self.right_upper, self.left - self.right_lower

    @property
    def slack_ratio(self) -> tuple[float, float]:
        """`slack` relative to its prediction; NaN if that is 0."""
        return tuple(s / self.predicted_slack if self.predicted_slack else math.nan for s in self.slack)

    @property
    def failed(self) -> list[str]:
        """Names of the assumptions that are needed and fail."""
        return [a.name for a in self.assumptions if a.needed and not a.holds]

    def judged(self, precision: float, missing: str) -> dict[str, str]:
        """Verdict and reason.

        Args:
            precision: machine precision of both sides.
            missing: why there is no certificate; empty if there is one.
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
            reason = f"not decided: {missing or f'the slack lies in {low:.3g} .. {high:.3g} +- {error:.2g}'}"
        return {"verdict": verdict, "reason": reason + failed}

    def assumption_lines(self) -> list[str]:
        """The assumptions as lines of a table."""
        lines = [f"  {'assumption':14} {'measured':>12}"]
        for a in self.assumptions:
            state = "holds" if a.holds else "FAILS" if a.needed else "fails, not needed"
            lines.append(f"  {a.name:14} {a.value:12.4g}  {state:18} {a.statement}")
        return lines

    def plain_assumptions(self) -> dict[str, dict]:
        """The assumptions by name, without their statements."""
        return {a.name: {"value": a.value, "holds": a.holds, "needed": a.needed} for a in self.assumptions}


@dataclass(frozen=True)
class BoundReport(Inequality):
    """Outcome of `bound` for a `Problem`.

    Attributes:
        verdict: `"certified"`, `"refuted"` or `"undecided"`: the inequality on this model, at this ε.
        reason: why, in one sentence.
        layer: layer that is perturbed.
        eps: ε.
        radius_kind: `"sharp"`, `"paper"` or `"mean"`.
        assumptions: each with its number.
        radius: ρ_i that is used, `(n,)`.
        paper_radius: the paper's ρ_i, `(n,)`.
        sharp_radius: the sharp ρ_i, `(n,)`.
        margins: smallest margin of each example, `(n,)`; negative on the wrong side.
        standard_loss: L_std.
        nfm_loss: L_NFM(ε), the left side.
        nfm_error: four standard errors, or what a finer deterministic rule changes.
        regularizer: L_reg.
        inner_lower: losses attained in the balls, `(n,)`.
        inner_upper: certified upper bounds, `(n,)`; infinite where there is no certificate.
        predicted_slack: left minus right side, to second order in ε.
        inside: balls known to lie in one linear region.
        label_kept: examples per verdict on their label in the ball: certified, refuted, undecided.
        method: how both sides were computed.
        binary: whether there is one margin per example.
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
        """Error of the left side."""
        return self.nfm_error

    @property
    def right_lower(self) -> float:
        """The right side with the inner maximum from below."""
        return float(self.inner_lower.mean()) + self.regularizer

    @property
    def right_upper(self) -> float:
        """The right side with the inner maximum from above."""
        return float(self.inner_upper.mean()) + self.regularizer

    def to_dict(self) -> dict:
        """Everything as plain numbers, strings, lists and dicts; infinite and undefined numbers become None."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "assumptions"}
        values |= {
            name: getattr(self, name) for name in ("right_lower", "right_upper", "slack", "slack_ratio", "failed")
        }
        return plain(values | {"assumptions": self.plain_assumptions()})

    def __str__(self) -> str:
        """A table: assumptions, both sides, slack, verdict."""
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
    """Outcome of `validity_radius`.

    Attributes:
        certified: largest ε up to which the inequality was certified at every scale tried; 0 if at none.
        refuted: smallest ε at which it was refuted; infinite if at none.
        scales: every ε tried, increasing.
        verdicts: the verdict at each.
    """

    certified: float
    refuted: float
    scales: list[float]
    verdicts: list[str]

    def __str__(self) -> str:
        """One line."""
        end = f"refuted from {self.refuted:.4g}" if math.isfinite(self.refuted) else "refuted nowhere"
        return f"validity radius: certified up to eps = {self.certified:.4g}, {end} ({len(self.scales)} scales tried)"
