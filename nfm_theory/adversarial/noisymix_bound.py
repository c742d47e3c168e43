r"""The bound of NoisyMix, checked on a model: adversarial bound and expansion of the stability loss (theory §6).

$$ L_{NFM}(\varepsilon) + \gamma L_{JSD}(\varepsilon) \ge \frac1n \sum_i \max_{\|\delta\|_2 \le \rho_i}
   \ell(f(g_i + \delta), y_i) + L_{reg} + \gamma (S_0 + \varepsilon S_1 + \varepsilon^2 S_2) - o(\varepsilon^2)
   \qquad \text{(book: eq-noisymix-bound)} $$

| part of the bound | how it is computed |
|---|---|
| left side | `loss` of `Branches` with `gamma` (book: eq-noisymix) |
| maxima, L_reg, the assumptions on the clean branch | `bound` of the clean branch (book: eq-adversarial-bound) |
| S0, S1, S2 | `terms` of the branches (book: eq-jsd-expansion) |
| assumption: every branch lies inside a linear region | distance of its features to the nearest activation boundary |

The inequality is checked at the given ε without the term o(ε²), and the report says what is known of that term. To
second order the stability loss is the same on both sides, so that the slack is the slack of the adversarial bound. The
stability loss adds to it what its expansion leaves out, `γ C3 ε³ + O(ε⁴)`, of either sign.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ..expansion.branch_terms import StabilityTerms, branch_terms
from ..setting.branches import Branches
from ..setting.results import plain
from .bound_report import Assumption, BoundReport, Inequality
from .linear_bounds import region_distance
from .relaxations import network_steps

#: Features count as on an activation boundary up to this distance, in machine precisions times their norm.
_ON_BOUNDARY = 16.0


@dataclass(frozen=True)
class NoisyMixBoundReport(Inequality):
    """The bound of NoisyMix on a model at one scale, from `bound` of `Branches`.

    Attributes:
        verdict: `"holds"`, `"refuted"` or `"undecided"`, about the inequality without o(ε²) on this model at this ε.
        reason: the reason for the verdict, in one sentence.
        gamma: weight γ of the stability loss.
        weights: weights π of the branches.
        shared_noise: True if all branches have the same noise.
        noisymix_loss: loss L_NFM(ε) + γ L_JSD(ε), the left side.
        noisymix_error: error of the left side: four standard errors, or the error of the quadrature rule.
        stability: terms S0, S1, S2 and C3 of the stability loss.
        clean: the adversarial bound of the clean branch alone.
        assumptions: the assumptions on the clean branch, and the one on all branches if it can be measured.
        method: how the left side was computed.
    """

    verdict: str
    reason: str
    gamma: float
    weights: tuple[float, ...]
    shared_noise: bool
    noisymix_loss: float
    noisymix_error: float
    stability: StabilityTerms
    clean: BoundReport
    assumptions: tuple[Assumption, ...]
    method: str

    affirmed = "holds"

    @property
    def eps(self) -> float:
        """The scale ε."""
        return self.clean.eps

    @property
    def left(self) -> float:
        """The left side."""
        return self.noisymix_loss

    @property
    def left_error(self) -> float:
        """Estimated error of the left side."""
        return self.noisymix_error

    @property
    def expansion(self) -> float:
        """γ (S0 + ε S1 + ε² S2), the stability loss on the right side."""
        return self.gamma * float(self.stability.polynomial(self.eps, 2))

    @property
    def right_lower(self) -> float:
        """The right side with the maxima that the attack found: a lower bound of it."""
        return self.clean.right_lower + self.expansion

    @property
    def right_upper(self) -> float:
        """The right side with certified maxima: an upper bound of it."""
        return self.clean.right_upper + self.expansion

    @property
    def predicted_slack(self) -> float:
        """Left minus right side to second order in ε; the stability loss cancels, so it is that of the clean branch."""
        return self.clean.predicted_slack

    @property
    def remainder(self) -> float:
        """What the stability loss adds to the slack, γ (L_JSD(ε) - S0 - ε S1 - ε² S2)."""
        return self.noisymix_loss - self.clean.nfm_loss - self.expansion

    @property
    def predicted_remainder(self) -> float | None:
        """The leading term γ C3 ε³ of `remainder`; None if C3 was not computed."""
        return None if self.stability.C3 is None else self.gamma * float(self.stability.C3) * self.eps**3

    def to_dict(self) -> dict:
        """The report in plain numbers, strings, lists and dicts, for JSON; None for numbers that are not finite."""
        names = ("verdict", "reason", "gamma", "weights", "shared_noise", "noisymix_loss", "noisymix_error", "method")
        names += ("eps", "expansion", "right_lower", "right_upper", "slack", "slack_ratio", "predicted_slack")
        names += ("remainder", "predicted_remainder", "failed")
        values = {name: getattr(self, name) for name in names}
        parts = {"stability": self.stability.to_dict(), "clean": self.clean.to_dict()}
        values |= parts | {"assumptions": self.plain_assumptions()}
        return {name: plain(value) for name, value in values.items()}

    def __str__(self) -> str:
        """A table with the verdict, the assumptions, both sides and the slack."""
        clean, terms, (low, high) = self.clean, self.stability, self.slack
        lines = [
            f"NoisyMix bound at {clean.layer or 'input'}, eps = {self.eps:g}, gamma = {self.gamma:g}: "
            f"{self.verdict.upper()}",
            f"  {self.reason}",
            f"  n = {len(clean.radius)}, {len(self.weights)} branches, "
            f"{'one margin' if clean.binary else 'several margins'} per example, radius {clean.radius_kind}; "
            f"{self.method}",
            "",
            *self.assumption_lines(),
            "",
            f"  L_NFM + gamma L_JSD    {self.noisymix_loss:.8g}   (error {self.noisymix_error:.2g})",
            f"  right side             {self.right_lower:.8g} .. {self.right_upper:.8g}",
            f"  - inner maximum, mean  {float(clean.inner_lower.mean()):.8g} .. {float(clean.inner_upper.mean()):.8g}",
            f"  - L_reg                {clean.regularizer:.6g}",
            f"  - gamma (S0 + ..)      {self.expansion:.6g}   (S0 {float(terms.S0):.6g}, S1 {float(terms.S1):.6g}, "
            f"S2 {float(terms.S2):.6g})",
            f"  slack                  {low:.6g} .. {high:.6g}",
            f"  predicted slack        {self.predicted_slack:.6g}   (to second order)",
            f"  left out of L_JSD      {self.remainder:.6g}"
            + ("" if terms.C3 is None else f"   (predicted, order 3: {self.predicted_remainder:.6g})"),
            f"  adversarial bound      {clean.verdict}: {clean.reason}",
        ]
        return "\n".join(lines)


def _inside_regions(branches: Branches) -> Assumption | None:
    """The assumption that all features lie off the activation boundaries; None if it cannot be measured."""
    features = branches.features.detach()
    try:
        steps = network_steps(branches.model, branches.layer, branches.params)
        distance = float(region_distance(steps, features.flatten(0, 1)).min())
    except ValueError:
        return None
    size = float(features.flatten(2).norm(dim=2).max())
    holds = distance > _ON_BOUNDARY * torch.finfo(features.dtype).eps * size
    return Assumption("branches", "distance to an activation boundary: positive", distance, holds, True)


def noisymix_report(branches: Branches, clean: BoundReport, left: tuple[float, float, str]) -> NoisyMixBoundReport:
    """Put the bound of NoisyMix together from its parts (book: eq-noisymix-bound).

    Source: NoisyMix, Theorem 3, with the sharp radius and for any number of branches.

    Args:
        branches: the setting, with `gamma`.
        clean: the adversarial bound of the clean branch.
        left: the NoisyMix loss, its error, and how it was computed.
    """
    assert branches.gamma is not None  # without it there is no clean branch
    with torch.no_grad():
        terms = branch_terms(branches.divergence)
    region, (value, error, how) = _inside_regions(branches), left
    report = NoisyMixBoundReport(
        verdict="undecided", reason="", gamma=branches.gamma, weights=tuple(branches.weights.tolist()),
        shared_noise=branches.shared_noise, noisymix_loss=value, noisymix_error=error, stability=terms, clean=clean,
        assumptions=(*clean.assumptions, *([] if region is None else [region])), method=how,
    )  # fmt: skip
    certified = bool(clean.inner_upper.isfinite().all())
    missing = "" if certified else "there is no certificate of the inner maximum"
    return replace(report, **report.judged(torch.finfo(clean.radius.dtype).eps, missing))
