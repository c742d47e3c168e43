"""From evidence to a verdict: refuted only if a link's own error excludes the claim where the function is smooth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..setting.results import SECOND_ORDER, TaylorTerms
from .draw_evidence import CHANGE_EPS, DrawEvidence
from .evidence import Measurement
from .report import ORDER_TOLERANCE, RATIO_TOLERANCE, Witness, observed_order
from .student import STDERRS
from .term_evidence import Measured, TermEvidence
from .unmixing import Unmixing

#: A term is resolved if an error of this relative size, or of this part of a twentieth of its sum, would be refuted.
REQUIRED = 0.05
SMALL_SHARE = 0.05
#: The same for C3 if it is known from random draws alone.
REQUIRED_C3 = 0.25
#: Share of the draws with kinks, and of the curvature on rough rays, from which on a function is not called smooth.
KINKED, ROUGH = 0.1, 0.1
#: Relative difference of a coefficient that is rounding in any case.
AGREE = 1e-6
#: Machine precisions of a claim's own dtype, relative to the size of its coefficient, that are its rounding.
ROUNDED = 16
#: How a reason ends that more evaluations may remove.
MORE = "raise the budget"
#: Powers of ε of the terms that are not of second order.
POWERS = {"R1": 1, "C3": 3}

_PRECISIONS = ((1e-5, "float32"), (2e-3, "float16"), (math.inf, "bfloat16"))


@dataclass
class Evidence:
    """Everything that was found out, complete or not.

    Attributes:
        terms: the terms to be judged; C3 may be missing.
        draws: link 1, by layer.
        values: link 2, by layer.
        rest: link 3, the average over the layers.
        predicted: coefficients by the formulas, with that of the remainder last; nan where it is not known.
        unmixing: link 4, by layer.
        pathwise: draws checked against Lagrange's interval, and draws outside.
        piecewise_linear: True if every head is.
        interrupted: True if the user stopped the verification.
        cut: which module gives wrong derivatives, in a sentence; empty if that is not known.
        unfinished: True if the budget ended before all links were checked.
    """

    terms: TaylorTerms
    draws: list[DrawEvidence]
    values: list[TermEvidence]
    rest: Measurement | None
    predicted: list[float]
    unmixing: list[Unmixing]
    pathwise: tuple[int, int]
    piecewise_linear: bool
    interrupted: bool = False
    cut: str = ""
    unfinished: bool = False

    def measured(self) -> dict[str, Measured]:
        """Link 2, averaged over the layers that are complete."""
        if not self.values:
            return {}
        names = self.values[0].terms
        return {name: Measured.average([one.terms[name] for one in self.values]) for name in names}


def witnesses(evidence: Evidence, order: int, leading: int) -> list[Witness]:
    """All comparisons of a claim with values, the named terms first."""
    found, claims = [], evidence.terms
    sizes = [sum(float(d.scale[k]) for d in evidence.draws) / max(len(evidence.draws), 1) for k in range(4)]
    second = sum(abs(float(claims[name].detach())) for name in SECOND_ORDER)
    for name, one in evidence.measured().items():
        claimed = float(claims[name].detach()) if one.claimed is None else one.claimed
        share = abs(claimed) / second if name != "R1" and second else None
        size = sizes[POWERS.get(name, 2)]
        size = max(abs(claimed), size) if math.isfinite(size) else abs(claimed)
        error = one.error + ROUNDED * torch.finfo(claims[name].dtype).eps * size
        found.append(Witness(name, 2, claimed, one.value, error, share, one.method))
    for name in ("R1", *SECOND_ORDER) if found else ():
        claimed = float(claims[name].detach())
        if claimed and name not in evidence.measured():
            share = abs(claimed) / second if name != "R1" else None
            found.append(Witness(name, 2, claimed, 0.0, 0.0, share, "the law does not have its source"))
    if claims.C3 is not None and leading == order + 2 == 4 and float(claims.C3.detach()):
        words = "symmetric noise has no odd powers"
        found.append(Witness("C3", 3, float(claims.C3.detach()), 0.0, AGREE * sizes[3], None, words))
    return found + coefficient_witnesses(evidence, order, leading)


def coefficient_witnesses(evidence: Evidence, order: int, leading: int) -> list[Witness]:
    """The coefficients of the whole law, from link 3 corrected by what values say along the draws of link 1."""
    rest, found, terms = evidence.rest, [], evidence.measured()
    if rest is None:
        return found
    sampled = bool(rest.stderr.any())
    for k in [*range(order + 1), leading]:
        if not math.isfinite(evidence.predicted[k]):
            continue
        value, error = float(rest.coefficients[k]), float(rest.coefficient_error[k])
        method = "values along random draws"
        if not sampled and k <= 3 and evidence.draws:
            layers = len(evidence.draws)
            value += sum(float(d.gap[k]) for d in evidence.draws) / layers
            error += sum(float(d.gap_error[k]) for d in evidence.draws) / layers
            method = "all rows of the rule, corrected by values along draws"
        elif not sampled:
            method = "derivatives along all rows of the rule"
        # Claims from random directions have a sampling error of their own
        error += STDERRS * sum(one.claimed_stderr for name, one in terms.items() if POWERS.get(name, 2) == k)
        if sampled and k <= 3 and evidence.draws:  # the claims are rounded as well
            error += sum(float(d.floor[k]) for d in evidence.draws) / len(evidence.draws) / 10
        size = evidence.terms.size(k) if k <= 2 else abs(evidence.predicted[k])
        name = "C3" if k == 3 else f"coefficient of eps^{k}"
        found.append(Witness(name, 3, evidence.predicted[k], value, error + AGREE * size, None, method))
    return found


class Verdict(NamedTuple):
    """A verdict with its reason; `open` if smaller scales may still change it."""

    word: str
    reason: str
    open: bool = False


def verdict_of(evidence: Evidence, found: Sequence[Witness], remainder: Verdict) -> Verdict:
    """The verdict on everything that was found out.

    Args:
        evidence: what was found out.
        found: the comparisons.
        remainder: what the remainders alone say, see `remainder_says`.
    """
    wrong = _refuted(evidence, found)
    if wrong:
        return Verdict("refuted", wrong)
    if evidence.interrupted:
        return Verdict("undecided", "interrupted; nothing that was checked so far is wrong")
    if evidence.unfinished:
        return Verdict("undecided", f"the budget ended before all was checked, nothing so far is wrong: {MORE}")
    regions = _regions(evidence)
    doubt = _unfit(evidence) or _hidden([w for w in found if not (regions and w.link == 3)], evidence)
    if doubt:
        return Verdict("undecided", doubt)
    if regions:
        return Verdict("holds", regions)
    kinks = max((d.kinked for d in evidence.draws), default=0.0)
    if kinks > KINKED or (kinks and remainder.word != "holds" and evidence.pathwise[1]):
        return Verdict("undecided", _kinks_found(evidence))
    return remainder


def _refuted(evidence: Evidence, found: Sequence[Witness]) -> str:
    """What a link excludes where the function is smooth; empty if nothing is wrong."""
    for draws in evidence.draws:
        power = draws.wrong()
        if power is not None and draws.rough <= 0.5:
            far = float(draws.difference[power] / draws.scale[power])
            return (
                f"along single draws the coefficient of eps^{power} from loss values differs from the network's own "
                f"derivatives, by {far:.2g} of its size: the derivatives are not those of what the network computes "
                + (f"({evidence.cut})" if evidence.cut else "(detach, no_grad, a straight-through estimate?)")
            )
    rough = max([one.rough for one in evidence.values] + [d.rough for d in evidence.draws], default=0.0)
    unfit = any(d.jumpy or d.low_precision for d in evidence.draws) or any(v.jumpy for v in evidence.values)
    smooth = rough <= ROUGH and not unfit
    for one in found if smooth else []:
        if one.off and math.isfinite(one.measured):
            share = "" if one.share is None else f", {one.share:.2g} of its sum"
            power = POWERS.get(one.term, 2)
            named = (
                one.term if one.term.startswith("coef") else f"{one.term} (in the coefficient of eps^{power}{share})"
            )
            return f"{named} is {one.claimed:.6g} by the formulas, but measures {one.measured:.6g} ± {one.error:.1g}"
    for one in evidence.unmixing if smooth else []:
        if not one.holds and math.isfinite(one.error):
            return (
                f"the loss with mixed labels is {one.mixed:.8g} at eps = 1, the unmixed loss is {one.unmixed:.8g} "
                f"± {one.error:.1g}"
            )
    return ""


def _unfit(evidence: Evidence) -> str:
    """Why the values cannot decide, whatever the budget; empty if they can."""
    for draws in evidence.draws:
        if draws.low_precision:
            name = next(name for limit, name in _PRECISIONS if draws.rounding < limit)
            return (
                f"something computes in {name}, or as coarsely (rounding {draws.rounding:.0e}), inside a model of a "
                f"finer precision: verify the {name} model, or compute that part in the precision of the data"
            )
    if not all(math.isfinite(one.error) for one in evidence.unmixing):
        return "the loss is not finite at eps = 1 along some draws (noise or weights too large?)"
    if any(d.jumpy for d in evidence.draws) or any(one.jumpy for one in evidence.values):
        return "the outputs move in jumps along some draws (rounding or quantization inside the network?): not smooth"
    rough = max([d.rough for d in evidence.draws] + [one.rough for one in evidence.values], default=0.0)
    if rough > ROUGH:
        finest = all(d.unit < 1e-15 for d in evidence.draws)
        cure = "move the samples away from them, or smooth the network" if finest else "verify the float64 model"
        return (
            f"kinks or jumps nearer to the samples than this precision resolves ({rough:.0%} of what was measured is "
            f"not smooth on any interval): {cure}"
        )
    return ""


def _hidden(found: Sequence[Witness], evidence: Evidence) -> str:
    """The term in which an error would have gone unseen; empty if there is none."""
    second = sum(abs(w.claimed) for w in found if w.share is not None)
    first = max((float(d.scale[1]) for d in evidence.draws), default=0.0)
    third = max((float(d.scale[3]) for d in evidence.draws), default=0.0)
    floors = [sum(float(d.floor[k]) for d in evidence.draws) / max(len(evidence.draws), 1) for k in range(4)]
    for one in found:
        structural = evidence.piecewise_linear and one.term.startswith("R3") and not one.claimed  # values add nothing
        if structural or one.term.startswith("coefficient"):
            continue
        power = POWERS.get(one.term, 2)
        if not math.isfinite(one.measured):
            return f"{one.term} was not measured: along some draws the loss is not finite (noise or weights too large?)"
        if one.term == "C3":
            sum_size, need = third, REQUIRED_C3
        else:
            sum_size, need = (first if one.term == "R1" else second), REQUIRED
        if one.error > max(need * max(abs(one.claimed), SMALL_SHARE * sum_size), floors[power]):
            finest = all(d.unit < 1e-15 for d in evidence.draws)
            finer = "the network is too steep or too rough for float64" if finest else "use float64"
            cure = MORE if "draws" in one.method and "corrected" not in one.method else finer
            size = f"only above {one.resolved:.0%}" if one.resolved < 10 else f"of less than {one.visible:.1g}"
            if one.resolved < 10:
                return f"an error in {one.term} would have been refuted {size}: {cure}"
            return f"an error in {one.term} {size} would not have been seen: {cure}"
    return ""


def _kinks_found(evidence: Evidence) -> str:
    radius = torch.cat([d.smooth_radius for d in evidence.draws]).median()
    share = max(d.kinked for d in evidence.draws)
    return (
        f"kinks or jumps: {share:.0%} of the draws meet one (the median draw is smooth up to eps = {float(radius):.2g})"
        "; inside, nothing that was checked is wrong. The theorem is about smooth networks"
    )


def _regions(evidence: Evidence) -> str:
    """What holds for a piecewise-linear head whose kinks matter; empty for others."""
    if not evidence.piecewise_linear or not evidence.draws:
        return ""
    radius = float(torch.cat([d.smooth_radius for d in evidence.draws]).median())
    share = sum(d.kink_share for d in evidence.draws) / len(evidence.draws)
    if not any(d.kinked for d in evidence.draws) and share < 1e-6:
        return ""
    return (
        f"holds inside the regions (median radius eps = {radius:.2g}); kinks beyond them move the loss by {share:.0%} "
        f"of its change at eps = {CHANGE_EPS:g}"
    )


@dataclass(frozen=True)
class Points:
    """The usable remainders, by decreasing ε, with their ratios to the prediction.

    Attributes:
        eps: scales.
        ratios: remainder over prediction.
        slope: observed order.
        error: four standard errors of the last ratio.
    """

    eps: list[float]
    ratios: list[float]
    slope: float
    error: float

    @staticmethod
    def of(
        eps: Sequence[float], remainders: Sequence[float], ratios: Sequence[float], stderr: Sequence[float]
    ) -> Points:
        """The points of usable remainders."""
        slope = observed_order(eps[-4:], remainders[-4:])
        return Points(list(eps), list(ratios), slope, abs(4 * stderr[-1] / remainders[-1]))


def remainder_says(points: Points | None, q: int, agreeing: bool) -> Verdict:
    """What the remainders over ε say: they may support a verdict, but never overrule coefficients.

    Args:
        points: the usable remainders; `None` for fewer than three.
        q: predicted order.
        agreeing: True if the coefficient of ε^q is known from values and agrees.
    """
    if points is None:
        words = "fewer than three remainders stand clear of rounding and sampling error"
        found = Verdict("undecided", words, not agreeing)
    else:
        ratio, slope, error = points.ratios[-1], points.slope, points.error
        near = abs(ratio - 1) <= RATIO_TOLERANCE + error and abs(slope - q) <= ORDER_TOLERANCE + error
        if near and (error <= RATIO_TOLERANCE or agreeing):
            words = f"the remainder falls as eps^{slope:.3f} with {ratio:.4f} times the predicted coefficient"
            return Verdict("holds", words)
        if error > RATIO_TOLERANCE:
            words = f"the remainder has a standard error of {25 * error:.2g} %; {MORE}"
            found = Verdict("undecided", words)
        else:
            words = f"the next coefficient still dominates at the smallest usable eps (order {slope:.3f})"
            found = Verdict("undecided", words, True)
    return Verdict("holds", f"every coefficient agrees; {found.reason}", found.open) if agreeing else found
