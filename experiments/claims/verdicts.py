"""Verdicts on theory: from quick computations, verified expansions, error curves and adversarial bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from statistics import median

from .check import FAILS, HOLDS, LIMITS, OPEN
from .evidence import Records
from .statement import LIMITED, NOT_RUN, REFUTED, UNDECIDED, VERIFIED, Judge, Verdict


def checked(name: str, good: str = VERIFIED) -> Judge:
    """The verdict of a quick computation.

    Args:
        name: key of `checks.CHECKS`.
        good: the word if the computation says that the statement holds.
    """
    words = {HOLDS: good, LIMITS: LIMITED, FAILS: REFUTED, OPEN: UNDECIDED}

    def verdict(records: Records) -> Verdict:
        found = records.check(name)
        return Verdict(words[found.outcome], found.detail)

    return verdict


def _missing(what: str) -> Verdict:
    return Verdict(NOT_RUN, f"there are no records of {what}")


def expansions(select: Callable[[dict], bool] = lambda record: True) -> Judge:
    """The verdict of verified expansions."""

    def verdict(records: Records) -> Verdict:
        reports = [record["report"] for record in records.expansion if select(record)]
        if not reports:
            return _missing("this expansion")
        words = [report["verdict"] for report in reports]
        ratio = max(abs(report["coefficient_ratio"] - 1) for report in reports)
        order = max(abs(report["observed_order"] - report["leading_order"]) for report in reports)
        detail = (
            f"{words.count('holds')} of {len(words)} trained networks and layers: order within {order:.3f} of the "
            f"predicted, coefficient within {100 * ratio:.1f} %"
        )
        return Verdict(_decided(words, good="holds"), detail)

    return verdict


def _decided(words: Iterable[str], good: str) -> str:
    words = set(words)
    return REFUTED if "refuted" in words else VERIFIED if words == {good} else UNDECIDED


def lagrange(records: Records) -> Verdict:
    """Does the scaled remainder of every single draw lie in its interval?"""
    if not records.expansion:
        return _missing("single draws")
    draws, outside = (sum(record["report"]["pathwise"][k] for record in records.expansion) for k in (0, 1))
    return Verdict(REFUTED if outside else VERIFIED, f"{outside} of {draws:,} draws lie outside their interval")


def validity(records: Records) -> Verdict:
    """Up to which ε is the second-order expansion close to the loss?"""
    curves = [record["curve"] for record in records.validity]
    if not curves:
        return _missing("errors up to ε = 1")
    close = f"{100 * curves[0]['tolerance']:.0f} %"
    inside = sum(curve["radius"]["2"] is None for curve in curves)
    reach = sorted(1.0 if curve["radius"]["2"] is None else curve["radius"]["2"] for curve in curves)
    errors = [curve["relative_error"]["2"][-1] for curve in curves]
    detail = (
        f"within {close} up to ε = {reach[0]:.2f} to {reach[-1]:.2f} (median {median(reach):.2f}); at ε = 1 "
        f"off by {100 * min(errors):.0f} to {100 * max(errors):.0f} % (median {100 * median(errors):.0f} %), within "
        f"{close} in {inside} of {len(curves)}"
    )
    if inside == len(curves):
        return Verdict(VERIFIED, detail)
    return Verdict(LIMITED if reach[0] > 0 else REFUTED, detail)


def _sides(networks: Iterable[dict]) -> tuple[list[dict], list[dict]]:
    """Both sides of the bound at every ε: where all assumptions hold, and where one fails."""
    found = [side for network in networks for side in network["bound"]]
    return [side for side in found if not side["failed"]], [side for side in found if side["failed"]]


def _count(sides: list[dict]) -> str:
    words = [side["verdict"] for side in sides]
    found = ", ".join(f"{words.count(w)} {w}" for w in ("certified", "refuted", "undecided") if w in words)
    return f"{found} of {len(words)}" if words else "none"


def _within(networks: list[dict]) -> str:
    """The word where the assumptions hold. The statement is about small ε: the smallest ε of each network decides."""
    meeting = [[side for side in network["bound"] if not side["failed"]] for network in networks]
    smallest = [min(sides, key=lambda side: side["eps"])["verdict"] for sides in meeting if sides]
    word = _decided(smallest, good="certified") if smallest else UNDECIDED
    refuted = any(side["verdict"] == "refuted" for sides in meeting for side in sides)
    return LIMITED if word == VERIFIED and refuted else word


def adversarial_bound(select: Callable[[dict], bool] = lambda network: True) -> Judge:
    """The verdict on the bound with the papers' radius, on networks that meet its assumptions.

    The records hold the sharp radius. Where the assumptions hold it is never smaller than the papers', so that a
    certificate for it is also one for the papers' radius.
    """

    def verdict(records: Records) -> Verdict:
        networks = [network for network in (*records.bounds, *records.bounds_cifar) if select(network)]
        within, beyond = _sides(networks)
        if not within:
            return _missing("networks that meet the assumptions")
        larger = sum(
            p <= s * (1 + 1e-5)
            for network in networks
            if not any(side["failed"] for side in network["bound"])
            for p, s in zip(network["points"]["paper"], network["points"]["sharp"], strict=True)
        )
        detail = (
            f"assumptions met, ε = {min(s['eps'] for s in within):g} to 1: {_count(within)} with the sharp radius, at "
            f"least the paper's at {larger:,} samples; where one fails: {_count(beyond)}"
        )
        return Verdict(_within(networks), detail)

    return verdict


def sharp_radius(records: Records) -> Verdict:
    """Does the bound with the sharp radius hold where its assumptions do, and is it refuted elsewhere?"""
    networks = [*records.bounds, *records.bounds_cifar]
    within, beyond = _sides(networks)
    if not within:
        return _missing("networks that meet the assumptions")
    word, refuted = _within(networks), sum(side["verdict"] == "refuted" for side in beyond)
    detail = f"assumptions met: {_count(within)}; where homogeneity or Θ fails: {_count(beyond)}"
    return Verdict(LIMITED if word == VERIFIED and refuted else word, detail)


def mean_radius(records: Records) -> Verdict:
    """Does the bound with the radius about the mean feature hold on networks with biases?"""
    found = [network["validity"]["mean"] for network in records.bounds if "mean" in network["validity"]]
    if not found:
        return _missing("the radius about the mean")
    good = [one for one in found if one["refuted"] is None and one["certified"] > 0]
    bad = [one["refuted"] for one in found if one["refuted"] is not None]
    detail = f"networks with biases, ε up to 1: certified at every scale tried on {len(good)} of {len(found)}"
    if bad:
        detail += f"; refuted at ε = {', '.join(f'{eps:.2g}' for eps in bad)}"
    word = VERIFIED if len(good) == len(found) else LIMITED if good and bad else REFUTED if bad else UNDECIDED
    return Verdict(word, detail)


def certificates(records: Records) -> Verdict:
    """Is a certified maximum ever below the exact one, on random networks?"""
    found = records.benchmarks.get("certificates", {}).get("found")
    if not found:
        return _missing("certificates")
    good = found["violation"] < 1e-9
    detail = f"{found['networks']:,} random networks: largest violation of a certified bound {found['violation']:.0e}"
    return Verdict(VERIFIED if good else REFUTED, detail)


def control_variate(records: Records) -> Verdict:
    """Does the quadratic part of a draw make sampling cheaper, if variance and time both count?"""
    tables = records.benchmarks.get("control_variate", {}).get("tables")
    if not tables:
        return _missing("control variates")
    gains = {name: table["quadratic"]["effective_gain"] for name, table in tables.items()}
    least = min(min(gain) for gain in gains.values())
    words = ", ".join(f"{name}: {gain[0]:,.0f} times" for name, gain in gains.items())
    return Verdict(VERIFIED if least > 1 else REFUTED, f"cheaper than plain sampling at the largest ε, {words}")
