"""The papers' statements about their tables, and whether the numbers show them: in print, and in our own runs.

A claim is a list of comparisons between two cells of a table, or between means of cells. It holds if all comparisons
hold. A claim that counts ("on k of n corruptions") holds if at least k items do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..record.comparison import Paired, paired_difference
from .hardness import Level
from .published import Published, column_of

#: The value of a cell for each seed, in percent; empty if the cell was not measured.
Sample = Mapping[int, float]
#: Finds the values of a cell from the row and the column of a table.
Lookup = Callable[[str, str], Sample]
SUPPORTED, NOT_SUPPORTED, NO_NUMBERS = "supported", "not supported", "no numbers printed"
REPRODUCED, NOT_REPRODUCED, NOT_RUN = "reproduced", "not reproduced", "not run"
#: What can weaken a verdict on our own runs. A verdict has the first one that applies.
ONE_SEED, CEILING, WITHIN_NOISE = "one seed", "ceiling", "within noise"
#: Accuracies above this leave no room for differences, like flip probabilities below 100 minus this.
FULL = 99.0
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
class Evaluated:
    """A comparison with its numbers.

    Attributes:
        comparison: what is compared.
        left: mean of the row that should be better, in percent.
        right: mean of the other row.
        gap: by how many points the first row is better, less the margin.
        metrics: keys in the ledger of what was compared.
        ceiling: True if the test was too easy to tell the rows apart.
    """

    comparison: Comparison
    left: float
    right: float
    gap: Paired
    metrics: tuple[str, ...] = ()
    ceiling: bool = False

    @property
    def holds(self) -> bool:
        """True if the order is the one that is claimed."""
        return self.gap.difference > (_SLACK if self.comparison.strict else -_SLACK)

    @property
    def sure(self) -> bool:
        """True if noise does not weaken it. An allowed tie needs no clear difference."""
        return self.holds and (self.gap.clear or not self.comparison.strict)

    def to_dict(self) -> dict:
        """The comparison as plain text and numbers: the gap in points with its 95 % interval over the seeds."""
        low, high = self.gap.interval or (None, None)
        return {
            "row": self.comparison.row, "other": self.comparison.other, "measured": list(self.metrics),
            "left": self.left, "right": self.right, "gap": self.gap.difference, "low": low, "high": high,
            "seeds": self.gap.n, "holds": self.holds, "ceiling": self.ceiling,
        }  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What a set of numbers says about a claim.

    Attributes:
        word: `supported`, `not supported` or `no numbers printed` for printed numbers; `reproduced`, `not reproduced`
            or `not run` for ours.
        weakness: `one seed`, `ceiling`, `within noise`, or empty.
        seeds: the smallest number of seeds behind any comparison.
        size: the size of our recipes; empty for printed numbers.
        study: the study that was judged; empty for printed numbers.
        total: how many comparisons the claim makes.
        items: the items that hold.
        found: the comparisons that have numbers on both sides.
    """

    word: str
    weakness: str = ""
    seeds: int = 0
    size: str = ""
    study: str = ""
    total: int = 0
    items: tuple[str, ...] = ()
    found: tuple[Evaluated, ...] = ()

    @property
    def judged(self) -> int:
        """How many comparisons have numbers on both sides."""
        return len(self.found)

    @property
    def failed(self) -> tuple[Evaluated, ...]:
        """The comparisons that do not hold."""
        return tuple(one for one in self.found if not one.holds)

    @property
    def least(self) -> Evaluated | None:
        """The comparison with the smallest gap, which decides whether all hold; `None` if there is none."""
        return min(self.found, key=lambda one: one.gap.difference, default=None)

    @property
    def text(self) -> str:
        """The outcome in words, such as `reproduced (within noise, 7 of 8 comparisons)`."""
        part = f"{self.judged} of {self.total} comparisons" if 0 < self.judged < self.total else ""
        remarks = ", ".join(filter(None, (self.weakness, part)))
        return f"{self.word} ({remarks})" if remarks else self.word


@dataclass(frozen=True)
class Judgement:
    """A claim, the outcome of the printed numbers, and the outcomes of our own runs by size.

    Networks that were trained elsewhere have an outcome of their own, `supported` or `not supported`: they do not
    reproduce a training.
    """

    claim: Claim
    published: Outcome
    ours: Mapping[str, Outcome] = field(default_factory=dict)
    elsewhere: Outcome | None = None


def _row_mean(lookup: Lookup, row: str, columns: Sequence[str]) -> dict[int, float]:
    """The mean over the columns for each seed that has all of them."""
    samples = [lookup(row, column) for column in columns]
    seeds = set.intersection(*(set(sample) for sample in samples))
    return {seed: sum(sample[seed] for sample in samples) / len(samples) for seed in seeds}


def _evaluate(
    claim: Claim, comparison: Comparison, lookup: Lookup, levels: Mapping[str, Level] | None = None
) -> Evaluated | None:
    """The comparison with its numbers, or `None` if no seed has both sides."""
    left, right = (_row_mean(lookup, row, comparison.columns) for row in (comparison.row, comparison.other))
    seeds = sorted(left.keys() & right.keys())
    if not seeds:
        return None
    columns = [column_of(claim.table, name) for name in comparison.columns]
    sign = 1 if columns[0].higher_is_better else -1
    good = {seed: sign * left[seed] - comparison.margin for seed in seeds}
    gap = paired_difference(good, {seed: sign * right[seed] for seed in seeds})
    means = [math.fsum(side[seed] for seed in seeds) / len(seeds) for side in (left, right)]
    used = [(levels or {}).get(column.id) or Level(column.metric, False) for column in columns]
    full = all(mean > FULL if sign > 0 else mean < 100 - FULL for mean in means) and not columns[0].minus
    ceiling = levels is not None and (full or all(level.ceiling for level in used))
    return Evaluated(comparison, *means, gap, tuple(level.metric for level in used), ceiling)


def _by_item(found: Iterable[Evaluated]) -> dict[str, list[Evaluated]]:
    items: dict[str, list[Evaluated]] = {}
    for one in found:
        items.setdefault(one.comparison.item, []).append(one)
    return items


def _facts(found: Sequence[Evaluated], total: int) -> dict:
    """The fields of an outcome that do not depend on the word."""
    return {
        "items": tuple(name for name, group in _by_item(found).items() if all(one.holds for one in group)),
        "seeds": min(one.gap.n for one in found), "found": tuple(found), "total": total,
    }  # fmt: skip


def judge_published(claim: Claim, published: Published) -> Outcome:
    """Does the paper's own table support a claim?

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


def judge_ours(
    claim: Claim, lookup: Lookup, size: str = "", *, study: str = "", levels: Mapping[str, Level] | None = None
) -> Outcome:
    """Do our numbers show what a claim says?

    The order of the means decides, on the comparisons that have numbers on both sides. A verdict is within noise unless
    the differences that it rests on are clear: their 95 % interval over the seeds leaves out zero (`Paired.clear`). It
    is at a ceiling if it rests on a comparison that is: both rows have more than 99 % there, or the baseline has lost
    less than in the paper.

    Args:
        claim: the claim.
        lookup: our values by row and column, in percent, for each seed; seeds are compared in pairs.
        size: the size of our recipes.
        study: the study of our recipes.
        levels: where each column was measured, if not as printed.

    Returns:
        An outcome `reproduced`, `not reproduced`, or `not run` if no comparison has numbers. A claim that counts is
        also `not run` as long as the missing items could decide it.
    """
    comparisons = [comparison for comparison in claim.comparisons if not comparison.quoted]
    levels = levels or {}
    found = [one for comparison in comparisons if (one := _evaluate(claim, comparison, lookup, levels)) is not None]
    if not found:
        return Outcome(NOT_RUN, size=size, study=study, total=len(comparisons))
    facts = {**_facts(found, len(comparisons)), "size": size, "study": study}
    items = _by_item(found)
    missing = 0 if claim.count is None else len({comparison.item for comparison in comparisons} - items.keys())
    needed = len(items) if claim.count is None else claim.count
    good = len(facts["items"])
    if good < needed <= good + missing:
        return Outcome(NOT_RUN, **facts)
    holds = good >= needed
    if holds:
        clear = sum(all(one.sure for one in group) for group in items.values()) >= needed
        free = sum(not any(one.ceiling for one in items[name]) for name in facts["items"]) >= needed
    else:
        lost = [[one for one in group if not one.holds] for group in items.values()]
        clear = len(items) + missing - sum(any(one.gap.clear for one in group) for group in lost) < needed
        free = len(items) + missing - sum(any(not one.ceiling for one in group) for group in lost) < needed
    weakness = ONE_SEED if facts["seeds"] == 1 else CEILING if not free else "" if clear else WITHIN_NOISE
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
