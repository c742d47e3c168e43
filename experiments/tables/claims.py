"""Published statements as data: which number should be better than which, and whether it is, in print and in ours.

A claim is a list of comparisons, each of them of two cells of a table (or means of cells). It holds if all of them
do; a claim that counts ("on k of n corruptions") holds if as many items do as it says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from .published import Published, column_of

#: Percent, or share, by seed; empty where there is none.
Sample = Mapping[int, float]
#: Values of a cell, by row and column of a table.
Lookup = Callable[[str, str], Sample]
SUPPORTED, NOT_SUPPORTED, NO_NUMBERS = "supported", "not supported", "no numbers printed"
REPRODUCED, NOT_REPRODUCED, NOT_RUN = "reproduced", "not reproduced", "not run"
_SLACK = 1e-9


@dataclass(frozen=True)
class Comparison:
    """One side should be better than the other, or no worse.

    Attributes:
        item: what is compared, for claims that count.
        row: that should be better.
        other: row that should be worse.
        columns: whose mean is compared.
        margin: points by which the first must be better at least; negative for a tolerance.
        strict: whether a tie is too little.
        quoted: whether the numbers of the other row were quoted in the paper and are not ours to run.
    """

    item: str
    row: str
    other: str
    columns: tuple[str, ...]
    margin: float = 0.0
    strict: bool = True
    quoted: bool = False


@dataclass(frozen=True)
class Claim:
    """A statement of a paper.

    Attributes:
        id: stable.
        statement: in our words.
        source: table or section.
        table: whose cells decide.
        comparisons: what must hold; none if the paper prints no numbers for it.
        count: how many items hold according to the paper; `None` if all must.
        kind: `"text"` if the paper says it in so many words, `"table"` if its table shows it.
    """

    id: str
    statement: str
    source: str
    table: str
    comparisons: tuple[Comparison, ...] = ()
    count: int | None = None
    kind: str = "table"


@dataclass(frozen=True)
class Outcome:
    """What the numbers say.

    Attributes:
        verdict: one of the module's verdicts, `(within noise)` or `(one seed)` added where they apply.
        items: names of the items that hold.
        failed: comparisons that do not hold, with both values.
        seeds: smallest number of seeds of any comparison.
    """

    verdict: str
    items: tuple[str, ...] = ()
    failed: tuple[tuple[Comparison, float, float], ...] = ()
    seeds: int = 0


@dataclass(frozen=True)
class Judgement:
    """A claim with the verdict on the paper's own numbers, and on ours by what was run."""

    claim: Claim
    published: Outcome
    ours: Mapping[str, Outcome] = field(default_factory=dict)


@dataclass(frozen=True)
class _Side:
    """A comparison, evaluated: paired differences in the good direction, less the margin."""

    comparison: Comparison
    left: float
    right: float
    mean: float
    stderr: float | None
    seeds: int

    @property
    def holds(self) -> bool:
        return self.mean > _SLACK or (not self.comparison.strict and self.mean >= -_SLACK)

    @property
    def clear(self) -> bool:
        """Whether the difference lies more than two standard errors from zero."""
        return self.stderr is not None and abs(self.mean) > 2 * self.stderr


def _combine(lookup: Lookup, row: str, columns: Sequence[str]) -> dict[int, float]:
    """Mean over the columns, for each seed that has them all."""
    samples = [lookup(row, column) for column in columns]
    seeds = set.intersection(*(set(sample) for sample in samples))
    return {seed: sum(sample[seed] for sample in samples) / len(samples) for seed in sorted(seeds)}


def _compare(table: str, comparison: Comparison, lookup: Lookup) -> _Side | None:
    left = _combine(lookup, comparison.row, comparison.columns)
    right = _combine(lookup, comparison.other, comparison.columns)
    seeds = sorted(left.keys() & right.keys())
    if not seeds:
        return None
    sign = 1 if column_of(table, comparison.columns[0]).higher_is_better else -1
    gaps = [sign * (left[seed] - right[seed]) - comparison.margin for seed in seeds]
    n = len(gaps)
    mean = math.fsum(gaps) / n
    stderr = math.sqrt(math.fsum((gap - mean) ** 2 for gap in gaps) / (n - 1) / n) if n > 1 else None
    means = [math.fsum(side[seed] for seed in seeds) / n for side in (left, right)]
    return _Side(comparison, means[0], means[1], mean, stderr, n)


def _items(sides: Iterable[_Side]) -> dict[str, list[_Side]]:
    items: dict[str, list[_Side]] = {}
    for side in sides:
        items.setdefault(side.comparison.item, []).append(side)
    return items


def judge_published(claim: Claim, published: Published) -> Outcome:
    """Whether the paper's own table supports a claim.

    Args:
        claim: the claim.
        published: printed values.

    Returns:
        Verdict `supported`, `not supported` or `no numbers printed`; a claim that counts must give the very count.
    """

    def lookup(row: str, column: str) -> Sample:
        value = published.number(claim.table, row, column)
        return {} if value is None else {0: value}

    sides = [_compare(claim.table, comparison, lookup) for comparison in claim.comparisons]
    if not sides or None in sides:
        return Outcome(NO_NUMBERS)
    return _outcome(claim, sides, exact=True, words=(SUPPORTED, NOT_SUPPORTED))


def judge_ours(claim: Claim, lookup: Lookup) -> Outcome:
    """Whether our numbers show what a claim says.

    Args:
        claim: the claim.
        lookup: our values by row and column, in percent, for each seed; seeds are compared in pairs.

    Returns:
        Verdict `reproduced`, `not reproduced` or `not run`, the last if any cell of the claim is missing. The order of
        the means decides. With several seeds `(within noise)` is added unless every comparison that the verdict rests
        on differs from zero by more than two standard errors of the paired difference; with one seed, `(one seed)`.
    """
    comparisons = [comparison for comparison in claim.comparisons if not comparison.quoted]
    sides = [_compare(claim.table, comparison, lookup) for comparison in comparisons]
    if not sides or None in sides:
        return Outcome(NOT_RUN)
    outcome = _outcome(claim, sides, exact=False, words=(REPRODUCED, NOT_REPRODUCED))
    if outcome.seeds == 1:
        return Outcome(f"{outcome.verdict} (one seed)", outcome.items, outcome.failed, 1)
    if not _is_clear(claim, sides, outcome):
        return Outcome(f"{outcome.verdict} (within noise)", outcome.items, outcome.failed, outcome.seeds)
    return outcome


def _outcome(claim: Claim, sides: list[_Side], *, exact: bool, words: tuple[str, str]) -> Outcome:
    items = _items(sides)
    good = tuple(name for name, group in items.items() if all(side.holds for side in group))
    needed = len(items) if claim.count is None else claim.count
    holds = len(good) == needed if exact else len(good) >= needed
    failed = tuple((side.comparison, side.left, side.right) for side in sides if not side.holds)
    return Outcome(words[0] if holds else words[1], good, failed, min(side.seeds for side in sides))


def _is_clear(claim: Claim, sides: list[_Side], outcome: Outcome) -> bool:
    items = _items(sides)
    needed = len(items) if claim.count is None else claim.count
    if outcome.verdict == REPRODUCED:
        # A tie that is allowed needs no clear difference: it only must not be clearly worse, and it is not.
        sure = [all(side.clear or not side.comparison.strict for side in items[name]) for name in outcome.items]
        return sum(sure) >= needed
    lost = [any(side.clear and not side.holds for side in group) for group in items.values()]
    return len(items) - sum(lost) < needed


def better(row: str, others: Iterable[str], columns: Iterable[str], **options) -> tuple[Comparison, ...]:
    """The row is better than each of the others in each of the columns; options as in `Comparison`."""
    others = [other for other in others if other != row]
    return tuple(Comparison(column, row, other, (column,), **options) for column in columns for other in others)


def better_on_average(row: str, others: Iterable[str], columns: Iterable[str], **options) -> tuple[Comparison, ...]:
    """The row's mean over the columns is better than each other row's."""
    columns = tuple(columns)
    return tuple(Comparison("mean", row, other, columns, **options) for other in others if other != row)


def no_worse(row: str, others: Iterable[str], columns: Iterable[str], *, margin: float = 0.0) -> tuple[Comparison, ...]:
    """The row is as good as the others, up to a tolerance of `margin` points."""
    return better(row, others, columns, margin=-margin, strict=False)
