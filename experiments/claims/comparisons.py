"""Verdicts on what trained networks show: on tables, figures, claims about tables, and claims that no table prints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..record.entry import ELSEWHERE
from ..studies.study import TITLES, Study, label, lower_is_better, signed, study
from ..tables.claims import CEILING, FULL, NO_NUMBERS, NOT_SUPPORTED, ONE_SEED, SUPPORTED, WITHIN_NOISE, Claim, Outcome
from ..tables.join import SIZES, has_row, recipe_of, studies_of
from ..tables.published import column_of
from .evidence import Records
from .statement import (
    CONTRADICTED,
    IN_PART,
    NOT_REPRODUCED,
    NOT_RUN,
    NOT_TESTABLE,
    REPRODUCED,
    UNDECIDED,
    Judge,
    Verdict,
)
from .varied import in_words

#: Chooses the metrics of a study that count.
Metrics = Callable[[Study], list[str]]


def by_size(records: Records, claim: str) -> list[Outcome]:
    """The outcomes of a claim at every size at which it was judged, the papers' own size first."""
    return list(records.judgements[claim].ours.values())


def decisive(found: Sequence[Outcome]) -> Outcome:
    """The outcome at the largest size. A size with one seed decides only if there is no other."""
    return next((one for one in found if one.weakness != ONE_SEED), found[0])


def claim(name: str) -> Judge:
    """The verdict on a claim about a table."""

    def verdict(records: Records) -> Verdict:
        judgement = records.judgements[name]
        printed = judgement.published.word
        found = by_size(records, name)
        other = f"; networks trained elsewhere: {judgement.elsewhere.text}" if judgement.elsewhere else ""
        if found:
            words = "; ".join(f"{one.size}: {one.text}" for one in found)
            shown = {SUPPORTED: "they show it", NOT_SUPPORTED: "they do not show it"}.get(printed, "none")
            one = decisive(found)
            gap = least_gap(one) + in_words(records.entries, one)
            detail = f"our runs, {words}; {gap}; printed numbers: {shown}{other}"
            return Verdict(one.word, detail, one.size, one.weakness, one.seeds, one.found)
        if printed == NO_NUMBERS:
            return Verdict(NOT_TESTABLE, "the paper shows it in a figure only, without numbers")
        reason = why_not_run(judgement.claim)
        if printed == NOT_SUPPORTED:
            one = judgement.published.least
            sides = f"{title(one.comparison.row)} {one.left:.4g}, {title(one.comparison.other)} {one.right:.4g}"
            numbers = f"the printed numbers do not show it: {sides} ({', '.join(one.comparison.columns)})"
            return Verdict(CONTRADICTED, f"{numbers}; we have not run it: {reason}{other}")
        return Verdict(NOT_RUN, f"the printed numbers show it; {reason}{other}")

    return verdict


def title(row: str) -> str:
    """The name of a row as people say it, or its key."""
    return TITLES.get(row, row)


def least_gap(outcome: Outcome) -> str:
    """The comparison with the smallest gap in words, with its 95 % interval over the seeds."""
    one = outcome.least
    low_high = "" if one.gap.interval is None else " ({} to {})".format(*map(signed, one.gap.interval))
    tests = dict.fromkeys(
        label(metric).replace("corrupted/", "corrupted: ").replace("_", " ") for metric in one.metrics
    )
    test = ", ".join(list(tests)[:3]) + (" …" if len(tests) > 3 else "")
    return (
        f"the least gap, to {one.comparison.other} ({test}) in {outcome.study}: {signed(one.gap.difference)}{low_high}"
    )


def why_not_run(claim: Claim) -> str:
    """The reason why no comparison of a claim was run: no data here, a GPU, or no recipe at a smaller size."""
    pairs = [c for c in claim.comparisons if not c.quoted]
    data = {column_of(claim.table, name).data for pair in pairs for name in pair.columns}
    rows = dict.fromkeys(row for pair in pairs for row in (pair.row, pair.other))
    recipes = {(row, one): recipe_of(claim.table, row, one) for row in rows for one in data}
    if any(recipe and recipe.training.pretrained for recipe in recipes.values()):
        return "its networks start from networks trained on ImageNet, which is not part of this project and needs a GPU"
    if data == {"imagenet"}:
        return "ImageNet is not part of this project, and training on it needs a GPU"
    studies = list(dict.fromkeys(name for one in sorted(data) for name in studies_of(claim.table, one)))
    for name in studies:
        if any(has_row(name, claim.table, pair.row) and has_row(name, claim.table, pair.other) for pair in pairs):
            return f"no two of the rows that it compares were run; there are recipes {name}/…"
    if any(recipe and recipe.size != "paper" for recipe in recipes.values()):
        return f"no two of the rows that it compares were run; there are recipes {claim.table}/…"
    return "training at the papers' size needs a GPU, and no smaller study stands for the table"


def claims_verdict(records: Records, names: Sequence[str]) -> Verdict | None:
    """The verdict on something that several claims are about, or `None` if none of them was judged."""
    found = [decisive(outcomes) for name in names if (outcomes := by_size(records, name))]
    if not found:
        return None
    good = [one for one in found if one.word == REPRODUCED]
    weak = [one for one in found if one.weakness]
    word = REPRODUCED if len(good) == len(found) else IN_PART if good else NOT_REPRODUCED
    sizes = " and ".join(size for size in SIZES if any(one.size == size for one in found))
    detail = (
        f"{len(good)} of {len(found)} judged claims reproduced; at a ceiling, within noise or on one seed: {len(weak)}"
    )
    weakness = "" if len(weak) < len(found) else weak[0].weakness
    return Verdict(word, detail, sizes, weakness, min(one.seeds for one in found))


def table(name: str) -> Judge:
    """The verdict on a published table: which of its rows were run, and what became of the claims about it."""

    def verdict(records: Records) -> Verdict:
        judgements = [j for j in records.judgements.values() if j.claim.table == name]
        supported = sum(j.published.word == SUPPORTED for j in judgements)
        total = len(records.published.rows(name))
        groups = records.tables[name].groups
        rows = [(group, f"{len({row for row, _ in group.cells})} of {total} rows") for group in groups]
        run = [f"{group.size}: {words} run" for group, words in rows if group.size != ELSEWHERE]
        other = [f"networks trained elsewhere: {words}" for group, words in rows if group.size == ELSEWHERE]
        findings = sum(finding.table == name for finding in records.audit.findings)
        printed = f"printed numbers: {supported} of {len(judgements)} claims shown, audit findings: {findings}"
        found = claims_verdict(records, [j.claim.id for j in judgements])
        if found is not None:
            return found.with_detail("; ".join([*run, found.detail, printed, *other]))
        if run:
            return Verdict(UNDECIDED, "; ".join([*run, "no claim about it could be judged", printed, *other]))
        reason = f": {why_not_run(judgements[0].claim)}" if judgements else ""
        return Verdict(NOT_RUN, "; ".join([f"none of its {total} rows was run{reason}", printed, *other]))

    return verdict


def figure(names: Sequence[str]) -> Judge:
    """The verdict on a figure that shows what some claims about tables say."""

    def verdict(records: Records) -> Verdict:
        found = claims_verdict(records, names)
        supported = sum(records.judgements[name].published.word == SUPPORTED for name in names)
        words = f"printed numbers: {supported} of {len(names)} claims shown"
        if found is None:
            return Verdict(NOT_RUN, f"{why_not_run(records.judgements[names[0]].claim)}; {words}")
        return found.with_detail(f"{found.detail}; {words}")

    return verdict


@dataclass(frozen=True)
class Order:
    """One scheme should be better than others in a study.

    Attributes:
        scheme: the scheme that should be better.
        others: the schemes that should be worse.
        metrics: chooses the metrics that count.
        in_part: True if a part of the comparisons is worth a word of its own.
        study: the only study that counts; empty for all that stand for NFM's tables.
        reason: why nothing was run, if nothing was.
    """

    scheme: str
    others: tuple[str, ...]
    metrics: Metrics
    in_part: bool = False
    study: str = ""
    reason: str = "the ledger has no study with two of the schemes and the measurements"


def _ordered(one: Study, order: Order) -> Verdict | None:
    """The order in one study, on the comparisons that were run; `None` if there are none."""
    keys = [(metric, other) for metric in order.metrics(one) for other in order.others]
    gains = {key: gain for key in keys if (gain := one.gain(order.scheme, key[1], key[0])) is not None}
    if not gains:
        return None
    good = {key: gain.difference * (-1 if lower_is_better(key[0]) else 1) for key, gain in gains.items()}
    bad = [key for key, value in good.items() if value <= 0]
    # To win, every difference must be clear; to lose, one clear difference is enough.
    clear = any(gains[key].clear for key in bad) if bad else all(gain.clear for gain in gains.values())
    full = [key for key in bad or gains if _full(one, order.scheme, *key)]
    seeds, worst = min(gain.n for gain in gains.values()), min(good, key=good.get)
    names = ", ".join(TITLES[other] if other != "baseline" else "the baseline" for other in order.others)
    part = "" if len(gains) == len(keys) else f" (of {len(keys)})"
    detail = (
        f"better in {len(gains) - len(bad)} of {len(gains)} comparisons{part} with {names}, the least "
        f"{signed(good[worst])} points ({label(worst[0])}), {seeds} seeds"
    )
    word = REPRODUCED if not bad else IN_PART if order.in_part and len(bad) < len(gains) else NOT_REPRODUCED
    weakness = ONE_SEED if seeds == 1 else CEILING if full else "" if clear else WITHIN_NOISE
    return Verdict(word, detail, one.name, weakness, seeds)


def _full(one: Study, scheme: str, metric: str, other: str) -> bool:
    """True if both schemes have more than 99 % of what can be had, so that their order says little."""
    means = [one.summary(name, metric).mean for name in (scheme, other)]
    return max(means) < 100 - FULL if metric.startswith("flip_") else min(means) > FULL and not lower_is_better(metric)


def ordering(order: Order) -> Judge:
    """The verdict on an order of schemes that no table prints, from our own studies."""

    def verdict(records: Records) -> Verdict:
        studies = [study(records.entries, order.study)] if order.study else records.studies.values()
        found = [verdict for one in studies if (verdict := _ordered(one, order)) is not None]
        if not found:
            return Verdict(NOT_RUN, order.reason)
        chosen = next((one for one in found if one.weakness != ONE_SEED), found[0])
        return chosen.with_detail("; ".join(f"{one.size}: {one.detail}" for one in found))

    return verdict


def same_effect(scheme: str, other: str, metrics: Metrics) -> Judge:
    """The verdict on whether two ways of training have the same effect, from our own studies."""

    def verdict(records: Records) -> Verdict:
        for name, one in records.studies.items():
            gains = [gain for metric in metrics(one) if (gain := one.gain(scheme, other, metric)) and gain.n > 1]
            if gains:
                apart = sum(gain.clear for gain in gains)
                widest = max(abs(gain.difference) for gain in gains)
                detail = f"{apart} of {len(gains)} differences are clear, the largest is {widest:.1f} points"
                seeds = min(gain.n for gain in gains)
                if apart:
                    return Verdict(NOT_REPRODUCED, detail, name, "", seeds)
                return Verdict(REPRODUCED, detail, name, WITHIN_NOISE, seeds)
        return Verdict(NOT_RUN, f"the ledger has no study with {scheme} and {other} on two seeds")

    return verdict
