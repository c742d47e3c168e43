"""Checks within a table: digits, ranges, order and repetition. No rule knows a row by its name."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from itertools import combinations, pairwise
from statistics import median

from .findings import FLOAT, Finding, rule
from .metrics_map import NOISES
from .published import Published, PublishedValue
from .registry import DETAILS, TABLES, table_info

#: What a rule yields for each check.
Found = Iterator[Finding | None]
#: A repetition is reported if fewer than this many of its kind are to be expected by chance.
CHANCE = 0.01
#: Robust standard deviations beyond which the order of two noises counts as odd.
OUTLYING = 5.0
_MAD = 1.4826


@rule("lost-digit", "every number has the decimals of its table")
def lost_digits(published: Published) -> Found:
    """Numbers with fewer decimals than the rest of their table."""
    for table in published.tables():
        cells = list(_cells(published, table))
        usual, _ = Counter(cell.decimals for cell in cells).most_common(1)[0]
        for cell in cells:
            largest = cell.value + 10.0**-cell.decimals - 10.0**-usual
            yield None if cell.decimals >= usual else Finding(
                f"lost-digit:{table}:{cell.row}:{cell.column}", table, cell.row,
                f"{cell.column} is printed {cell.text}, {cell.decimals} decimals where the table has {usual}.",
                {"value": cell.value, "decimals": cell.decimals, "usual": usual}, "misprint",
                f"A digit seems lost: anything from {cell.value:g} to {largest:g}.",
            )  # fmt: skip


@rule("range", "values lie between minimum and maximum, or 0 and 100")
def ranges(published: Published) -> Found:
    """Numbers outside of 0 to 100 %, or outside of the minimum and maximum that are printed with them."""
    for table in published.tables():
        for cell in _cells(published, table):
            low = 0.0 if cell.minimum is None else cell.minimum
            high = math.inf if cell.metric.startswith("flip_rate") else 100.0
            high = high if cell.maximum is None else cell.maximum
            yield None if not cell.metric or low <= cell.value <= high else Finding(
                f"range:{table}:{cell.row}:{cell.column}", table, cell.row,
                f"{cell.column} is {cell.text}, outside of [{low:g}, {high:g}].",
                {"value": cell.value, "minimum": low, "maximum": high}, "misprint",
                "One of the three numbers seems to be misprinted.",
            )  # fmt: skip


@rule("falling", "accuracy falls with the level of the noise")
def falling(published: Published) -> Found:
    """An accuracy that rises with the level of the noise."""
    for table in published.tables():
        for row, cells in published.rows(table).items():
            for kind in ("white_noise", "salt_pepper"):
                series = [cell for cell in cells.values() if cell.metric.startswith(kind)]
                series.sort(key=lambda cell: cell.level)
                series = [cells["clean"], *series] if series and "clean" in cells else series
                for first, second in pairwise(series):
                    yield None if second.value <= first.value + FLOAT else Finding(
                        f"falling:{table}:{row}:{second.column}", table, row,
                        f"{second.column} is {second.text}, above {first.text} at the weaker {first.column}.",
                        {"value": second.value, "weaker": first.value}, "doubtful",
                        "More noise should not help; one of the two may be misprinted.",
                    )  # fmt: skip


@rule("bold", "bold is the best of its column")
def bold_is_best(published: Published) -> Found:
    """A bold number that is not the best of its column, or a best number that is not bold."""
    for table in published.tables():
        for column in published.columns(table):
            cells = [cell for cell in _cells(published, table) if cell.column == column.id and cell.bold is not None]
            best = (max if column.higher_is_better else min)((cell.value for cell in cells), default=0.0)
            for cell in cells:
                yield None if cell.bold == (cell.value == best) else Finding(
                    f"bold:{table}:{cell.row}:{column.id}", table, cell.row,
                    f"{column.id}: {cell.text} is {'bold' if cell.bold else 'not bold'}, the best is {best:g}.",
                    {"value": cell.value, "best": best}, "misprint",
                    "Either the number or its emphasis may be misprinted.",
                )  # fmt: skip


@rule("whole-count", "an accuracy is a whole number of test points")
def whole_counts(published: Published) -> Found:
    """An accuracy that is no share k/n of the n test points, in tables with few of them."""
    for table in published.tables():
        points = table_info(table).points
        for cell in _cells(published, table) if points else ():
            if _possible(cell, points):
                yield None
                continue
            step = 100 / points
            below = math.floor(cell.value / step) * step
            fits = next(n for n in range(points, 1000 * points, points) if _possible(cell, n))
            yield Finding(
                f"whole-count:{table}:{cell.row}", table, cell.row,
                f"{cell.text} % is no share of {points} test points, which come in steps of {step:g} "
                f"({below:g}, {below + step:g}).",
                {"value": cell.value, "points": points, "step": step, "fits": fits}, "misprint",
                f"It is one of {fits} points; the number of test points or this value may differ.",
            )  # fmt: skip


def _possible(cell: PublishedValue, points: int) -> bool:
    nearest = 100 * round(cell.value * points / 100) / points
    return abs(nearest - cell.value) <= 0.5 * 10.0**-cell.decimals + FLOAT


@rule("noise-order", "white and shot noise rank alike in all rows")
def noise_order(published: Published) -> Found:
    """A row in which white and shot noise rank otherwise; of one severity they are alike, so rows differ little."""
    for tables in _families():
        gaps = {
            (table, row): cells["shot_noise"].value - cells["gaussian_noise"].value
            for table in tables
            for row, cells in published.rows(table).items()
        }
        for (table, row), gap in gaps.items():
            centre, spread = _spread(list(gaps.values()))
            others = sum(gap * other < 0 for other in gaps.values())
            if abs(gap - centre) <= OUTLYING * spread or gap * centre > 0:
                yield None
                continue
            white, shot = (published.rows(table)[row][name] for name in NOISES[:2])
            yield Finding(
                f"noise-order:{table}:{row}", table, row,
                f"White {white.text} and shot {shot.text} rank otherwise than in {others} of the other "
                f"{len(gaps) - 1} rows of this kind; shot minus white is {gap:.1f}, the median {centre:.1f}."
                + _mean_note(published, table, row),
                {"white": white.value, "shot": shot.value, "gap": gap, "median": centre, "others": others}, "doubtful",
                "One of the two may be misprinted, or they may have changed places; the evaluation would tell.",
            )  # fmt: skip


def order_is_odd(published: Published, table: str, row: str) -> bool:
    """True if `noise_order` reports this row."""
    return any((finding.table, finding.row) == (table, row) for finding in noise_order(published).findings)


def _mean_note(published: Published, table: str, row: str) -> str:
    """What the mean without noise says, which depends on everything but the two numbers."""
    for detail, summary, _, column in DETAILS:
        printed = published.number(summary, row, column) if detail == table and column else None
        if printed is not None:
            others = [v.value for name, v in published.rows(table)[row].items() if name not in (*NOISES, "mfr")]
            return f" The mean without noise is {sum(others) / len(others):.2f}, printed {printed:g} in {summary}."
    return ""


def _families() -> tuple[tuple[str, ...], ...]:
    """Groups of tables with noise columns that measure the same on the same kind of data."""
    kinds: dict[tuple[bool, str], list[str]] = {}
    for table, info in TABLES.items():
        if "by corruption" in info.title or "by perturbation" in info.title:
            kinds.setdefault(("imagenet" in info.data, info.title.split()[-1]), []).append(table)
    return tuple(tuple(tables) for tables in kinds.values())


def _spread(values: list[float]) -> tuple[float, float]:
    centre = median(values)
    return centre, _MAD * median(abs(value - centre) for value in values)


@rule("repetition", "no two rows share numbers beyond chance")
def repetitions(published: Published) -> Found:
    """Runs of equal numbers in two rows that chance does not explain.

    A run is reported if fewer than `CHANCE` such runs are to be expected by chance between all rows with these columns.
    In one column two rows agree by chance with probability 0.1 / (its range over the rows).
    """
    groups: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for table in published.tables():
        groups.setdefault(tuple((column.id, column.metric) for column in published.columns(table)), []).append(table)
    for kinds, tables in groups.items():
        columns = [name for name, _ in kinds]
        rows = [(table, row, cells) for table in tables for row, cells in published.rows(table).items()]
        rows = [row for row in rows if len(row[2]) == len(columns)]
        agree = [_agreement([cells[column] for _, _, cells in rows]) for column in columns] if len(rows) > 1 else []
        pairs = len(rows) * (len(rows) - 1) // 2
        for first, second in combinations(rows, 2):
            runs = _runs([first[2][column].text == second[2][column].text for column in columns])
            found = [(run, pairs * len(columns) * math.prod(agree[i] for i in run)) for run in runs if len(run) > 1]
            unlikely = [([columns[i] for i in run], chance) for run, chance in found if chance < CHANCE]
            yield from [_repetition(published, first, second, names, len(columns), c) for names, c in unlikely] or [
                None
            ]


def _agreement(cells: list[PublishedValue]) -> float:
    values = [cell.value for cell in cells]
    width = max(values) - min(values)
    return min(1.0, 10.0 ** -cells[0].decimals / width) if width else 1.0


def _runs(equal: list[bool]) -> Iterator[range]:
    start = None
    for i, same in enumerate([*equal, False]):
        if same and start is None:
            start = i
        elif not same and start is not None:
            yield range(start, i)
            start = None


def _repetition(published: Published, first, second, names: list[str], width: int, chance: float) -> Finding:
    """A finding about the later row, or, of two rows that are equal, about the one that fits its table less."""
    whole = len(names) == width
    misfits = [misfit(published, table, row) for table, row, _ in (first, second)]
    odd, model = (first, second) if whole and misfits[0] > misfits[1] else (second, first)
    place = model[1] if odd[0] == model[0] else f"{model[0]}, {model[1]}"
    texts = " ".join(odd[2][name].text for name in names)
    apart = max(misfits) > OUTLYING > min(misfits)
    if whole and apart:
        advice = f"The row belongs to {place}, whose surroundings it fits; this row's own numbers are not available."
    elif whole:
        advice = "One of the two rows seems to be a copy of the other."
    else:
        advice = "Chance is unlikely; these cells may have been copied. The numbers alone cannot settle it."
    return Finding(
        f"repetition:{odd[0]}:{odd[1]}:{'' if odd[0] == model[0] else model[0] + ':'}{model[1]}", odd[0], odd[1],
        f"{'The row' if whole else ', '.join(names)} ({texts}) equals {place}, {len(names)} of {width} cells; "
        f"by chance {chance:.1g} such runs would be expected.",
        {name: odd[2][name].value for name in names} | {"cells": len(names)}, "misprint" if whole else "doubtful",
        advice,
    )  # fmt: skip


def misfit(published: Published, table: str, row: str) -> float:
    """How far a row is from where it should be; above `OUTLYING` is far.

    For a table with a summary this is the distance of the row's mean from the summary, in units of the rounding. For
    others it is the distance of the clean accuracy from the median of the other rows, in robust standard deviations.
    """
    cells = published.rows(table)[row]
    for detail, summary, column, _ in DETAILS:
        printed = published.number(summary, row, column) if detail == table else None
        if printed is not None:
            values = [cell.value for name, cell in cells.items() if name != "mfr"]
            return abs(sum(values) / len(values) - printed) / 0.1
    if "clean" not in cells:
        return 0.0
    others = [line["clean"].value for name, line in published.rows(table).items() if name != row and "clean" in line]
    centre, spread = _spread(others)
    return abs(cells["clean"].value - centre) / max(spread, 0.1)


def _cells(published: Published, table: str) -> Iterator[PublishedValue]:
    for row in published.rows(table).values():
        yield from row.values()
