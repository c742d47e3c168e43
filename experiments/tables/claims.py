"""The papers' statements about their tables, and whether the numbers show them: in print, and in our own runs.

A claim is a list of comparisons between two cells of a table, or between means of cells. It holds if all comparisons
hold. A claim that counts ("on k of n corruptions") holds if at least k items do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..record.comparison import Paired, paired_difference
from .published import Published, column_of

#: The value of a cell for each seed, in percent; empty if the cell was not measured.
Sample = Mapping[int, float]
#: Finds the values of a cell from the row and the column of a table.
Lookup = Callable[[str, str], Sample]
SUPPORTED, NOT_SUPPORTED, NO_NUMBERS = "supported", "not supported", "no numbers printed"
REPRODUCED, NOT_REPRODUCED, NOT_RUN = "reproduced", "not reproduced", "not run"
#: What can weaken a verdict on our own runs.
WITHIN_NOISE, ONE_SEED = "within noise", "one seed"
#: Differences below this many points count as a tie: they come from rounding.
_SLACK = 1e-9


@dataclass(frozen=True)
class Comparison:
    """One row of a table should be better than another row, or no worse.

    Attributes:
        item: what is compared, for claims that count.
        row: the row that should be better.
        other: the row that should be worse.
        columns: the columns whose mean is compared.
        margin: by how many points the first row must be better; a negative margin is a tolerance.
        strict: True if a tie is not enough.
        quoted: True if the paper quotes the other row from elsewhere, so that we have nothing to run.
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
    """A statement of a paper about one of its tables.

    Attributes:
        id: a name that does not change.
        statement: the statement in our words.
        source: the table or section of the paper.
        table: the table whose cells decide.
        comparisons: what must hold; empty if the paper prints no numbers for the statement.
        count: how many items hold according to the paper; `None` if all of them must hold.
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
    """What a set of numbers says about a claim.

    Attributes:
        word: `supported`, `not supported` or `no numbers printed` for printed numbers; `reproduced`, `not reproduced`
            or `not run` for ours.
        weakness: `within noise`, `one seed`, or empty.
        seeds: the smallest number of seeds behind any comparison.
        size: the size of our recipes; empty for printed numbers.
        judged: how many comparisons have numbers on both sides.
        total: how many comparisons the claim makes.
        items: the items that hold.
        failed: the comparisons that do not hold, with the two values.
    """

    word: str
    weakness: str = ""
    seeds: int = 0
    size: str = ""
    judged: int = 0
    total: int = 0
    items: tuple[str, ...] = ()
    failed: tuple[tuple[Comparison, float, float], ...] = ()

    @property
    def text(self) -> str:
        """The outcome in words, such as `reproduced (within noise, 7 of 8 comparisons)`."""
        part = f"{self.judged} of {self.total} comparisons" if 0 < self.judged < self.total else ""
        remarks = ", ".join(filter(None, (self.weakness, part)))
        return f"{self.word} ({remarks})" if remarks else self.word


@dataclass(frozen=True)
class Judgement:
    """A claim, the outcome of the printed numbers, and the outcomes of our own runs by size."""

    claim: Claim
    published: Outcome
    ours: Mapping[str, Outcome] = field(default_factory=dict)


@dataclass(frozen=True)
class _Evaluated:
    """A comparison with its numbers; `gap` is positive if the first row is better by more than the margin."""

    comparison: Comparison
    left: float
    right: float
    gap: Paired

    @property
    def holds(self) -> bool:
        return self.gap.difference > (_SLACK if self.comparison.strict else -_SLACK)

    @property
    def sure(self) -> bool:
        """True if noise does not weaken it. An allowed tie needs no clear difference."""
        return self.holds and (self.gap.clear or not self.comparison.strict)


def _row_mean(lookup: Lookup, row: str, columns: Sequence[str]) -> dict[int, float]:
    """The mean over the columns for each seed that has all of them."""
    samples = [lookup(row, column) for column in columns]
    seeds = set.intersection(*(set(sample) for sample in samples))
    return {seed: sum(sample[seed] for sample in samples) / len(samples) for seed in seeds}


def _evaluate(claim: Claim, comparison: Comparison, lookup: Lookup) -> _Evaluated | None:
    """The comparison with its numbers, or `None` if no seed has both sides."""
    left, right = (_row_mean(lookup, row, comparison.columns) for row in (comparison.row, comparison.other))
    seeds = sorted(left.keys() & right.keys())
    if not seeds:
        return None
    sign = 1 if column_of(claim.table, comparison.columns[0]).higher_is_better else -1
    good = {seed: sign * left[seed] - comparison.margin for seed in seeds}
    gap = paired_difference(good, {seed: sign * right[seed] for seed in seeds})
    means = (math.fsum(side[seed] for seed in seeds) / len(seeds) for side in (left, right))
    return _Evaluated(comparison, *means, gap)


def _by_item(found: Iterable[_Evaluated]) -> dict[str, list[_Evaluated]]:
    items: dict[str, list[_Evaluated]] = {}
    for one in found:
        items.setdefault(one.comparison.item, []).append(one)
    return items


def _facts(found: Sequence[_Evaluated], total: int) -> dict:
    """The fields of an outcome that do not depend on the word."""
    return {
        "items": tuple(name for name, group in _by_item(found).items() if all(one.holds for one in group)),
        "failed": tuple((one.comparison, one.left, one.right) for one in found if not one.holds),
        "seeds": min(one.gap.n for one in found), "judged": len(found), "total": total,
    }  # fmt: skip


def judge_published(claim: Claim, published: Published) -> Outcome:
    """Does the paper's own table support a claim?

    Args:
        claim: the claim.
        published: the printed values.

    Returns:
        An outcome `supported`, `not supported` or `no numbers printed`. A claim that counts must give the very count.
    """

    def lookup(row: str, column: str) -> Sample:
        value = published.number(claim.table, row, column)
        return {} if value is None else {0: value}

    found = [_evaluate(claim, comparison, lookup) for comparison in claim.comparisons]
    if not found or None in found:
        return Outcome(NO_NUMBERS)
    facts = _facts(found, len(found))
    needed = len(_by_item(found)) if claim.count is None else claim.count
    return Outcome(SUPPORTED if len(facts["items"]) == needed else NOT_SUPPORTED, **facts)


def judge_ours(claim: Claim, lookup: Lookup, size: str = "") -> Outcome:
    """Do our numbers show what a claim says?

    The order of the means decides, on the comparisons that have numbers on both sides. A verdict is within noise unless
    the differences that it rests on are clear: their 95 % interval over the seeds leaves out zero (`Paired.clear`).

    Args:
        claim: the claim.
        lookup: our values by row and column, in percent, for each seed; seeds are compared in pairs.
        size: the size of our recipes.

    Returns:
        An outcome `reproduced`, `not reproduced`, or `not run` if no comparison has numbers. A claim that counts is
        also `not run` as long as the missing items could decide it.
    """
    comparisons = [comparison for comparison in claim.comparisons if not comparison.quoted]
    found = [one for comparison in comparisons if (one := _evaluate(claim, comparison, lookup)) is not None]
    if not found:
        return Outcome(NOT_RUN, size=size, total=len(comparisons))
    facts = {**_facts(found, len(comparisons)), "size": size}
    items = _by_item(found)
    missing = 0 if claim.count is None else len({comparison.item for comparison in comparisons} - items.keys())
    needed = len(items) if claim.count is None else claim.count
    good = len(facts["items"])
    if good < needed <= good + missing:
        return Outcome(NOT_RUN, **facts)
    holds = good >= needed
    if holds:
        clear = sum(all(one.sure for one in group) for group in items.values()) >= needed
    else:
        lost = sum(any(one.gap.clear and not one.holds for one in group) for group in items.values())
        clear = len(items) + missing - lost < needed
    weakness = ONE_SEED if facts["seeds"] == 1 else "" if clear else WITHIN_NOISE
    return Outcome(REPRODUCED if holds else NOT_REPRODUCED, weakness, **facts)


def better(row: str, others: Iterable[str], columns: Iterable[str], **options) -> tuple[Comparison, ...]:
    """The row is better than each of the other rows in each column; the options are fields of `Comparison`."""
    others = [other for other in others if other != row]
    return tuple(Comparison(column, row, other, (column,), **options) for column in columns for other in others)


def better_on_average(row: str, others: Iterable[str], columns: Iterable[str], **options) -> tuple[Comparison, ...]:
    """The row's mean over the columns is better than the mean of each other row."""
    columns = tuple(columns)
    return tuple(Comparison("mean", row, other, columns, **options) for other in others if other != row)


def no_worse(row: str, others: Iterable[str], columns: Iterable[str], *, margin: float = 0.0) -> tuple[Comparison, ...]:
    """The row is as good as the other rows, up to a tolerance of `margin` points."""
    return better(row, others, columns, margin=-margin, strict=False)
