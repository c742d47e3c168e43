"""What to read from each part of a report: paragraphs whose every statement follows from the numbers of the record."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..setting.results import STDERRS

if TYPE_CHECKING:
    from .report import LayerReport, NetworkReport

TITLES = {
    "terms": "What NFM adds",
    "margins": "Margins and Jacobian norms",
    "reach": "How far the theory reaches",
    "attacks": "Classes under attack",
    "bound": "The adversarial bound",
    "verdict": "Does the expansion hold?",
}
#: What each term measures.
MEANINGS = {
    "R1": "slope of the loss towards the partners",
    "R2": "sensitivity of the outputs along the data",
    "R3": "curvature of the outputs along the data",
    "R2_add": "sensitivity to additive noise",
    "R3_add": "curvature along additive noise",
    "R2_mult": "sensitivity to multiplicative noise",
    "R3_mult": "curvature along multiplicative noise",
}


def number(value: float) -> str:
    """A number with three digits, as text."""
    return f"{value:.3g}"


def percent(share: float) -> str:
    """A share as text, with two digits; whole percents from 10 % on."""
    return f"{100 * share:.0f} %" if abs(share) >= 0.1 else f"{100 * share:.2g} %"


def joined(words: Sequence[str]) -> str:
    """Words as a list in a sentence.

    Example:
        >>> joined(["R2", "R3", "R3_add"])
        'R2, R3 and R3_add'
    """
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _median(values) -> float:
    return float(values.double().median())


def _absent(one: LayerReport, part: str) -> str:
    return f"There is nothing here: {one.missing.get(part, 'it is not known').rstrip('.')}."


def heading(found: NetworkReport) -> str:
    """Data, law and time in one line."""
    s = found.settings
    stopped = "; stopped before its end" if found.interrupted else ""
    return f"{found.num_samples} samples, {s['loss']}, {s['dtype']}; {s['law']}; {found.seconds:.3g} s{stopped}"


def overview(found: NetworkReport) -> list[str]:
    """What stands out when the layers are compared, one sentence each; empty for a single layer."""
    sentences = []
    added = [(one.predicted, one) for one in found.layers if one.predicted is not None]
    if len(added) > 1:
        (low, least), (high, most) = (pick(added, key=lambda pair: pair[0]) for pick in (min, max))
        sentences.append(
            f"To second order NFM adds most at {most.title} ({number(high)}) and least at {least.title} "
            f"({number(low)})."
        )
    curves = [(one.reach, one) for one in found.layers if one.reach is not None]
    if len(curves) > 1:
        radii, within = [(curve.radius[2], one) for curve, one in curves], percent(curves[0][0].tolerance)
        (low, least), (high, most) = (pick(radii, key=lambda pair: pair[0]) for pick in (min, max))
        if low == high:
            where = "at every scale tried" if math.isinf(low) else f"up to ε = {number(low)}"
            sentences.append(f"At each of these layers the second order is within {within} of the loss {where}.")
        else:
            far = "every scale tried" if math.isinf(high) else f"ε = {number(high)}"
            sentences.append(
                f"The second order is within {within} of the loss up to {far} at {most.title}, "
                f"and up to ε = {number(low)} at {least.title}."
            )
    verdicts = [(one.verdict.verdict, one) for one in found.layers if one.verdict is not None]
    for word in ("refuted", "undecided") if len(verdicts) > 1 else ():
        names = [one.title for verdict, one in verdicts if verdict == word]
        if names:
            sentences.append(f"The verdict on the expansion is {word} at {joined(names)}.")
    if len(verdicts) > 1 and {verdict for verdict, _ in verdicts} == {"holds"}:
        sentences.append(f"The expansion holds at all {len(verdicts)} layers.")
    return sentences


def terms_words(one: LayerReport) -> str:
    """On the regularizers."""
    if one.terms is None or one.predicted is None:
        return _absent(one, "terms")
    terms, standard = one.terms, float(one.terms.standard)
    text = (
        f"To second order, training with NFM at ε = 1 adds {number(one.predicted)} to the loss at {one.title}, where "
        f"the loss without mixing and noise is {number(standard)}. "
    )
    if one.shares:
        largest = max(one.shares, key=lambda name: one.shares[name])
        text += (
            f"The largest second-order term is {largest} ({MEANINGS[largest]}), {percent(one.shares[largest])} of the "
            "sum of their absolute values. "
        )
    values = {name: (float(e), STDERRS * float(e.stderr)) for name, e in terms.estimates.items()}
    unknown = [name for name, (value, error) in values.items() if 0 < abs(value) <= error]
    negative = [name for name, (value, error) in values.items() if value < 0 and -value > error]
    if negative:
        text += f"{joined(negative)} {'are' if len(negative) > 1 else 'is'} negative: what is added lowers the loss. "
    if unknown:
        text += f"{joined(unknown)} cannot be told from 0 within the error of the probes. "
    if terms.piecewise_linear:
        text += (
            "The network behind this layer is piecewise linear, so that R3 and its noise parts are 0 almost "
            "everywhere; what kinks add, if it has any, is not in these terms. "
        )
    return text.strip()


def reach_words(one: LayerReport) -> str:
    """On the error of the expansion up to ε = 1."""
    curve, added = one.reach, one.added
    if curve is None or added is None:
        return _absent(one, "reach")
    radius, (low, high) = curve.radius[2], curve.radius_range(2)
    if math.isinf(radius):
        text = f"The second order is within {percent(curve.tolerance)} of the loss at every scale tried, up to ε = 1. "
        if math.isfinite(low):
            text += f"Sampling allows a first crossing from ε = {number(low)} on. "
    else:
        end = "1 and beyond" if math.isinf(high) else number(high)
        text = (
            f"The second order is within {percent(curve.tolerance)} of the loss up to ε = {number(radius)} (sampling "
            f"allows {number(low)} to {end}). "
        )
    text += (
        f"Training uses ε = {curve.eps[-1]:g}: the error there is {percent(curve.relative_error(2)[-1])} of the loss. "
    )
    size, error = added
    expected = curve.polynomials[2][-1] - curve.standard
    if abs(size) > error:
        text += (
            f"NFM adds {number(size)} ± {number(error)} to the loss there; the second order along the same draws says "
            f"{number(expected)}, which is {percent(expected / size)} of it. "
        )
    else:
        text += f"What NFM adds to the loss there, {number(size)} ± {number(error)}, cannot be told from 0. "
    if curve.linearised is not None:
        loss, noise = float(curve.loss.value[-1]), STDERRS * curve.relative_stderr["linearised"][-1]
        kinks = abs(curve.linearised[-1] - loss) / abs(loss)
        if kinks > noise + 1e-9:
            text += (
                f"With the network replaced by its linear region at each sample the loss is {percent(kinks)} off: this "
                "part comes from kinks, which no order of the expansion sees. "
            )
        else:
            text += "With the network replaced by its linear region at each sample no difference is seen. "
    return text.strip()


def margin_words(one: LayerReport) -> str:
    """On margins and Jacobian norms."""
    m = one.margins
    if m is None:
        return _absent(one, "margins")
    text = (
        f"The median spectral norm of the Jacobian is {number(_median(m.spectral))}, the largest "
        f"{number(float(m.spectral.max()))}: the outputs move at most by that much for each unit that the features "
        "move, to first order. "
    )
    if m.gap is None:
        return text + "The labels are no single classes, so that there are no margins."
    right, n = int(m.right.sum()), len(m.size)
    text += f"{right} of {n} samples are classified right. "
    if len(m.distance) == 0:
        return text.strip()
    middle, size = _median(m.distance), _median(m.size)
    low = float(m.distance.double().quantile(0.1))
    text += (
        f"By the gradients at these samples, features must move by {number(middle)} or more (median) until the class "
        f"changes, {percent(middle / size) if size else number(middle)} of the median norm of the features; a tenth of "
        f"them have less than {number(low)}. For a linear head these are lower bounds of the distances, for any other "
        "they are estimates."
    )
    return text


def attack_words(one: LayerReport) -> str:
    """On attacks and certificates."""
    a = one.attacks
    if a is None:
        return _absent(one, "attacks")
    n = a.samples
    text = (
        f"In balls of radius {number(a.radii[0])} the attack leaves {a.attacked[0]} of {n} samples in their class, in "
        f"balls of radius {number(a.radii[-1])} it leaves {a.attacked[-1]}. A stronger attack can only leave fewer. "
    )
    if a.certified is None:
        return text + f"There is no certificate: {a.method.rstrip('.')}."
    text += (
        f"It is proved that {a.certified[0]} keep their class in the smallest balls, and {a.certified[-1]} in the "
        f"largest (by {a.method}). "
    )
    gaps = [b - c for b, c in zip(a.attacked, a.certified, strict=True)]
    widest = max(range(len(gaps)), key=lambda k: gaps[k])
    if gaps[widest]:
        return text + f"Most samples lie between attack and proof at radius {number(a.radii[widest])}: {gaps[widest]}."
    return text + "No sample lies between attack and proof."


def bound_words(one: LayerReport) -> str:
    """On the adversarial bound."""
    b = one.bound
    if b is None:
        return _absent(one, "bound")
    text = (
        f"At ε = {b.eps:g} it is {b.verdict} that the NFM loss is at least the attacked loss with L_reg: "
        f"{b.reason.partition('; fails')[0].removeprefix('not decided: ')}. The NFM loss is {b.left:.6g}, the other "
        f"side lies between {b.right_lower:.6g} and {b.right_upper:.6g}. "
    )
    if b.failed:
        text += (
            f"Assumptions that the theorem needs fail here ({joined(b.failed)}), so that the inequality is a "
            "measurement of this network and no consequence of the theorem. "
        )
    else:
        text += "All assumptions that the theorem needs hold here. "
    return text.strip()


def verdict_words(one: LayerReport) -> str:
    """On the verdict and its power."""
    v = one.verdict
    if v is None:
        return _absent(one, "verdict")
    text = f"Judged from values of the loss alone, the expansion of order {v.order} has the verdict {v.verdict}: "
    text += f"{v.reason.rstrip('.')}. "
    if math.isfinite(v.observed_order) and "falls as" not in v.reason:
        text += f"What it leaves out falls with the power {v.observed_order:.3g} of ε; {v.leading_order} is predicted. "
    seen = [w for w in v.evidence if not w.term.startswith("coefficient") and w.share is not None and w.claimed]
    if seen and not any(w.off for w in v.evidence):
        text += "Every term agrees with values of the loss. "
    if seen:
        best, worst = (pick(seen, key=lambda w: w.resolved) for pick in (min, max))
        text += f"An error of {percent(best.resolved)} in {best.term} would have been refuted"
        if worst is not best:
            size = percent(worst.resolved) if math.isfinite(worst.resolved) else "any size, which is not resolved,"
            text += f", and one of {size} in {worst.term}, the term that is resolved worst"
        text += ". "
    return text.strip()


#: The paragraph on each part.
PARAGRAPHS: dict[str, Callable[[LayerReport], str]] = {
    "terms": terms_words,
    "margins": margin_words,
    "reach": reach_words,
    "attacks": attack_words,
    "bound": bound_words,
    "verdict": verdict_words,
}
