"""Verdicts on what trained networks show: claims on tables, tables, figures, and claims that no table prints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..studies.study import TITLES, Study, label, lower_is_better
from ..tables.claims import NO_NUMBERS, NOT_SUPPORTED, SUPPORTED
from ..tables.claims import NOT_RUN as UNJUDGED
from .evidence import SIZES, Records
from .statement import (
    CONTRADICTED,
    IN_PART,
    NOT_REPRODUCED,
    NOT_RUN,
    NOT_TESTABLE,
    REPRODUCED,
    UNDECIDED,
    Verdict,
)

#: Standard errors by which a difference must leave zero, as in `tables.claims`.
CLEAR = 2.0
NOISE, SINGLE = "within noise", "one seed"


@dataclass(frozen=True)
class Size:
    """A claim at one size.

    Attributes:
        size: of the trainings.
        word: `reproduced` or `not reproduced`.
        weakness: `within noise`, `one seed` or nothing.
    """

    size: str
    word: str
    weakness: str = ""

    @property
    def qualifier(self) -> str:
        """Size and weakness."""
        return ", ".join(filter(None, (self.size, self.weakness)))


def by_size(records: Records, claim: str) -> list[Size]:
    """A claim at every size at which it was judged, the papers' own first.

    Several ways of training at one size must agree; if they do not, the claim is not reproduced there.

    Args:
        records: of this project.
        claim: id.
    """
    found = []
    for size in SIZES:
        texts = [o.verdict for o in records.judgements[size][claim].ours.values() if o.verdict != UNJUDGED]
        if not texts:
            continue
        bad = [text for text in texts if text.startswith(NOT_REPRODUCED)]
        decisive = bad or texts
        weakness = next((w for w in (NOISE, SINGLE) if all(w in text for text in decisive)), "")
        found.append(Size(size, NOT_REPRODUCED if bad else REPRODUCED, weakness))
    return found


def decisive(found: Sequence[Size]) -> Size:
    """The size that decides: the largest, but one network alone only if there is nothing else."""
    return next((one for one in found if one.weakness != SINGLE), found[0])


def claim(name: str) -> Callable[[Records], Verdict]:
    """The verdict on one of the claims on tables.

    Args:
        name: id of the claim.
    """

    def verdict(records: Records) -> Verdict:
        printed = records.judgements[SIZES[0]][name].published.verdict
        found = by_size(records, name)
        if found:
            chosen = decisive(found)
            words = "; ".join(f"{one.qualifier}: {one.word}" for one in found)
            return Verdict(chosen.word, f"ours, {words}; printed numbers: {_printed(printed)}", chosen.qualifier)
        if printed == NO_NUMBERS:
            return Verdict(NOT_TESTABLE, "no number is printed for it, only a figure")
        if printed == NOT_SUPPORTED:
            return Verdict(CONTRADICTED, "the printed numbers do not show it; ours: not run")
        return Verdict(NOT_RUN, "the printed numbers show it; ours: no network at any size has all its cells")

    return verdict


def _printed(verdict: str) -> str:
    return {SUPPORTED: "they show it", NOT_SUPPORTED: "they do not show it"}.get(verdict, "none")


def claims_verdict(records: Records, names: Sequence[str]) -> Verdict | None:
    """The verdict on something that several claims are about, `None` if none of them was judged.

    Args:
        records: of this project.
        names: ids of the claims.
    """
    found = {name: decisive(sizes) for name in names if (sizes := by_size(records, name))}
    if not found:
        return None
    good = [one for one in found.values() if one.word == REPRODUCED]
    word = REPRODUCED if len(good) == len(found) else IN_PART if good else NOT_REPRODUCED
    weak = [one for one in found.values() if one.weakness]
    sizes = [size for size in SIZES if any(one.size == size for one in found.values())]
    weakness = "" if len(weak) < len(found) else weak[0].weakness
    detail = f"{len(good)} of {len(found)} judged claims reproduced; within noise or on one seed: {len(weak)}"
    return Verdict(word, detail, ", ".join(filter(None, (" and ".join(sizes), weakness))))


def table(name: str) -> Callable[[Records], Verdict]:
    """The verdict on a published table: which of its rows were run, and what became of the claims on it.

    Args:
        name: id of the table.
    """

    def verdict(records: Records) -> Verdict:
        judgements = records.judgements[SIZES[0]]
        names = [j.claim.id for j in judgements.values() if j.claim.table == name]
        supported = sum(judgements[n].published.verdict == SUPPORTED for n in names)
        total = len(records.published.rows(name))
        rows = []
        for size in SIZES:
            cells = {row for group in records.tables[name, size].groups for row, _ in group.cells}
            rows += [f"{size}: {len(cells)} of {total} rows run"] if cells else []
        findings = sum(finding.table == name for finding in records.audit.findings)
        printed = f"printed numbers: {supported} of {len(names)} claims shown, audit findings: {findings}"
        found = claims_verdict(records, names)
        if found is not None:
            return Verdict(found.word, "; ".join([*rows, found.detail, printed]), found.qualifier)
        if rows:
            return Verdict(UNDECIDED, "; ".join([*rows, "no claim on it has all its cells", printed]))
        return Verdict(NOT_RUN, f"none of its {total} rows was run; {printed}")

    return verdict


def figure(names: Sequence[str]) -> Callable[[Records], Verdict]:
    """The verdict on a figure that shows what some claims on tables say.

    Args:
        names: ids of the claims.
    """

    def verdict(records: Records) -> Verdict:
        judged = claims_verdict(records, names)
        printed = [records.judgements[SIZES[0]][name].published.verdict for name in names]
        words = f"printed numbers: {printed.count(SUPPORTED)} of {len(names)} claims shown"
        if judged is None:
            return Verdict(NOT_RUN, f"no network has all its cells; {words}")
        return Verdict(judged.word, f"{judged.detail}; {words}", judged.qualifier)

    return verdict


@dataclass(frozen=True)
class Order:
    """A scheme that should be better than others.

    Attributes:
        scheme: the one.
        others: the others.
        metrics: of a study, which of its metrics count.
    """

    scheme: str
    others: tuple[str, ...]
    metrics: Callable[[Study], list[str]]


@dataclass(frozen=True)
class Ordered:
    """An order of schemes in one study: how many comparisons have the right sign, and what weakens the word."""

    good: int
    total: int
    weakness: str
    detail: str

    @property
    def word(self) -> str:
        """All comparisons must have the right sign."""
        return REPRODUCED if self.good == self.total else NOT_REPRODUCED


def _ordered(one: Study, order: Order) -> Ordered | None:
    """The order in one study; `None` if a comparison is missing."""
    metrics = order.metrics(one)
    gains = {(m, other): one.gain(order.scheme, other, m) for m in metrics for other in order.others}
    if not gains or None in gains.values():
        return None
    signed = {key: gain.difference * (-1 if lower_is_better(key[0]) else 1) for key, gain in gains.items()}
    good = [key for key, value in signed.items() if value > 0]
    deciding = good if len(good) == len(gains) else [key for key in gains if key not in good]
    seeds = min(gain.n for gain in gains.values())
    unclear = [key for key in deciding if abs(gains[key].difference) <= CLEAR * (gains[key].stderr or 0)]
    # To lose it is enough to be clearly worse once; to win, every difference must be clear.
    noisy = bool(unclear) if len(good) == len(gains) else len(unclear) == len(deciding)
    names = ", ".join(TITLES[other] if other != "baseline" else "the baseline" for other in order.others)
    worst = min(signed, key=signed.get)
    detail = (
        f"better in {len(good)} of {len(gains)} comparisons with {names}, the least {signed[worst]:+.1f} points "
        f"({label(worst[0])}), {seeds} seeds"
    )
    return Ordered(len(good), len(gains), SINGLE if seeds == 1 else NOISE if noisy else "", detail)


def ordering(order: Order, *, in_part: bool = False) -> Callable[[Records], Verdict]:
    """The verdict on an order of schemes that no table prints, by our own studies.

    Args:
        order: what should be better than what.
        in_part: whether a part of the comparisons is worth its own word.
    """

    def verdict(records: Records) -> Verdict:
        found = {}
        for name, one in records.studies.items():
            outcome = _ordered(one, order)
            if outcome is not None:
                found[name] = outcome
        if not found:
            return Verdict(NOT_RUN, "the ledger has no study with all the schemes and measurements")
        name = next((name for name, one in found.items() if one.weakness != SINGLE), next(iter(found)))
        chosen = found[name]
        detail = "; ".join(f"{study}: {one.detail}" for study, one in found.items())
        word = IN_PART if in_part and 0 < chosen.good < chosen.total else chosen.word
        return Verdict(word, detail, ", ".join(filter(None, (name, chosen.weakness))))

    return verdict


def same_effect(scheme: str, other: str, metrics: Callable[[Study], list[str]]) -> Callable[[Records], Verdict]:
    """The verdict on whether two ways of training have the same effect, by our own studies.

    Args:
        scheme: the one.
        other: the other.
        metrics: of a study, which of its metrics count.
    """

    def verdict(records: Records) -> Verdict:
        for name, one in records.studies.items():
            gains = [one.gain(scheme, other, metric) for metric in metrics(one)]
            known = [gain for gain in gains if gain is not None and gain.stderr is not None]
            if known:
                apart = sum(abs(gain.difference) > CLEAR * gain.stderr for gain in known)
                widest = max(abs(gain.difference) for gain in known)
                detail = f"{apart} of {len(known)} differences are clear, the largest {widest:.1f} points"
                return Verdict(NOT_REPRODUCED if apart else REPRODUCED, detail, name if apart else f"{name}, {NOISE}")
        return Verdict(NOT_RUN, f"the ledger has no study with {scheme} and {other} on two seeds")

    return verdict
