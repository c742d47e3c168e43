"""Checks between tables, and of tables against what the papers say about them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from .audit_rules import Found, order_is_odd
from .claims import NOT_SUPPORTED, judge_published
from .claims_list import claims_about
from .findings import FLOAT, ROUNDING, Finding, rule
from .metrics_map import NOISES
from .published import Published, PublishedValue
from .registry import DETAILS, TABLES

ABLATION_TABLE, ABLATION_SOURCE = "noisymix-table4", "noisymix-table3"
TRANSFER_TABLE = "noisymix-table5"
#: Possible weights of the noise corruptions in the mean: by the number of corruptions, or of their categories.
NOISE_WEIGHTS = (3 / 15, 1 / 4, 3 / 16, 4 / 15)
#: The tables with networks that were also submitted to RobustBench, by the data set of their training.
SUBMITTED = {"imagenet": "noisymix-table1", "cifar10": "noisymix-table3", "cifar100": "noisymix-table3"}
SUBMITTED_SCHEME = "noisymix"
BENCHMARK_TABLE = "noisymix-table6"
_SUBSET = 5000
Rows = Mapping[str, Mapping[str, PublishedValue]]


def _off(difference: float) -> bool:
    return abs(difference) > ROUNDING + FLOAT


@rule("detail-mean", "means of single columns agree with the summary tables")
def detail_means(published: Published) -> Found:
    """A mean over single corruptions or perturbations that is not the number in the summary table."""
    for detail, summary, column, without in DETAILS:
        for row, cells in published.rows(detail).items():
            printed = published.get(summary, row, column)
            if printed is None:
                continue
            bare = published.number(summary, row, without) if without else None
            if bare is not None:
                yield None  # a row with two means is checked twice
            mean, rest = _mean(cells), _mean(cells, without=NOISES)
            if not _off(mean - printed.value) and (bare is None or not _off(rest - bare)):
                yield None
                continue
            numbers = {"mean": mean, "summary": printed.value, "cells": len(cells)}
            what = f"The {len(_parts(cells))} columns average {mean:.2f}, {summary} says {_range(printed)}"
            if bare is not None:
                numbers |= {"mean_without_noise": rest, "summary_without_noise": bare}
                what += f"; without noise {rest:.2f} against {bare:g}"
            alike = _fitting_rows(published, detail, summary, (column, without), mean, rest, row)
            if alike:
                what += f". The mean fits the summary of {', '.join(alike)}"
            repairs = list(_repairs(published, detail, row, printed.value))
            yield Finding(
                f"detail-mean:{detail}:{row}", detail, row, what + ".", numbers, "inconsistent",
                _advice(published, detail, row, alike, repairs),
            )  # fmt: skip


def _parts(cells: dict[str, PublishedValue]) -> list[PublishedValue]:
    return [cell for name, cell in cells.items() if name != "mfr"]


def _mean(cells: dict[str, PublishedValue], *, without: tuple[str, ...] = ()) -> float:
    kept = [cell.value for cell in _parts(cells) if cell.column not in without]
    return math.fsum(kept) / len(kept)


def _range(cell: PublishedValue) -> str:
    return cell.text if cell.minimum is None else f"{cell.text} ({cell.minimum:g} / {cell.maximum:g})"


def _fitting_rows(published, detail, summary, columns, mean, rest, row) -> list[str]:
    """Other rows of the summary that both means would fit, if the summary prints two means."""
    if columns[1] is None:
        return []
    names = []
    for other in published.rows(summary):
        values = [published.number(summary, other, column) for column in columns]
        fits = None not in values and not _off(mean - values[0]) and not _off(rest - values[1])
        if other != row and fits:
            names.append(other)
    return names


def _repairs(published: Published, table: str, row: str, target: float) -> Iterator[tuple[str, str, str]]:
    """Cells in which another digit would give the printed mean and, if the noises rank oddly, a normal order."""
    cells = published.rows(table)[row]
    total, n = math.fsum(cell.value for cell in _parts(cells)), len(_parts(cells))
    odd = order_is_odd(published, table, row) if {"gaussian_noise", "shot_noise"} <= cells.keys() else False
    for cell in _parts(cells):
        for place, old in enumerate(cell.text):
            for digit in "0123456789" if old.isdigit() else "":
                text = cell.text[:place] + digit + cell.text[place + 1 :]
                fits = not _off((total - cell.value + float(text)) / n - target)
                if digit == old or not fits:
                    continue
                if not odd or not order_is_odd(published.amend(table, row, cell.column, text), table, row):
                    yield cell.column, cell.text, text


def _advice(published, table, row, alike, repairs) -> str:
    if alike:
        return "The row may have been taken from there; its own values would be needed."
    cells = published.rows(table)[row]
    odd = order_is_odd(published, table, row) if "shot_noise" in cells else False
    if odd and repairs:
        column, old, new = min(repairs, key=lambda repair: abs(float(repair[1]) - float(repair[2])))
        text = f"With {column} {new} instead of {old} the mean fits and the noises rank as in the other rows"
        fixed = published.amend(table, row, column, new)
        text += f" (mean {_mean(fixed.rows(table)[row]):.2f})"
        return text + ("." if len(repairs) == 1 else f"; {len(repairs) - 1} other digits would do the same.")
    if repairs:
        return f"One digit could explain it, in {len({column for column, _, _ in repairs})} of the cells."
    return "No single digit explains it: row and mean seem to be of different models or runs."


@rule("printed-mean", "printed mFR is the mean of its columns")
def printed_means(published: Published) -> Found:
    """A printed mFR that is not the mean of its row, or not the number in the summary table."""
    summaries = {detail: (summary, column) for detail, summary, column, _ in DETAILS}
    for table in published.tables():
        for row, cells in published.rows(table).items():
            if "mfr" not in cells:
                continue
            printed, mean = cells["mfr"].value, _mean(cells)
            numbers = {"mean": mean, "printed": printed}
            what = f"mFR is printed {cells['mfr'].text}; its {len(_parts(cells))} columns average {mean:.2f}"
            summary, column = summaries.get(table, ("", ""))
            elsewhere = published.number(summary, row, column)
            if elsewhere is not None:
                numbers["summary"] = elsewhere
                what += f", and {summary} has {elsewhere:g}"
            if not _off(mean - printed) and (elsewhere is None or abs(elsewhere - printed) <= FLOAT):
                yield None
                continue
            slip = abs(mean - printed) <= 2 * ROUNDING
            advice = "The last digit may be a slip." if slip else "Columns and mean seem to be of different runs."
            yield Finding(
                f"printed-mean:{table}:{row}", table, row, what + ".", numbers, "rounding" if slip else "inconsistent",
                advice,
            )  # fmt: skip


@rule("ablation", "the ablation agrees with the main table and with itself")
def ablation(published: Published) -> Found:
    """A number of the ablation that another table prints otherwise for the same scheme, or a wrong gain."""
    rows = published.rows(ABLATION_TABLE)
    for row, cells in rows.items():
        for column in ("cifar100", "cifar100_c"):
            other = published.get(ABLATION_SOURCE, row, column)
            if other is not None and column in cells:
                yield None if cells[column].text == other.text else _ablated(published, rows, row, column, other)
    first = next(iter(rows.values()), {}).get("cifar100_c")
    for row, cells in rows.items():
        if "robustness_gain" not in cells:
            continue
        gain, printed = cells["cifar100_c"].value - first.value, cells["robustness_gain"]
        slight = not _off(gain - printed.value)
        yield None if abs(gain - printed.value) <= FLOAT else Finding(
            f"gain:{ABLATION_TABLE}:{row}", ABLATION_TABLE, row,
            f"{cells['cifar100_c'].text} - {first.text} = {gain:.1f}, printed {printed.text}.",
            {"gain": gain, "printed": printed.value}, "rounding" if slight else "inconsistent",
            "Differences of unrounded numbers do this." if slight else "One of the three may be misprinted.",
        )  # fmt: skip


def _ablated(published: Published, rows: Rows, row: str, column: str, other: PublishedValue) -> Finding:
    cell = rows[row][column]
    numbers = {"ablation": cell.value, "summary": other.value}
    what = f"{column} is {cell.text}, {ABLATION_SOURCE} has {_range(other)} for the same scheme"
    for detail, summary, name, _ in DETAILS:
        if (summary, name) == (ABLATION_SOURCE, column) and row in published.rows(detail):
            numbers["detail_mean"] = _mean(published.rows(detail)[row])
            what += f", and {detail} averages {numbers['detail_mean']:.2f}"
    twins = [name for name, line in rows.items() if name != row and line[column].text == other.text]
    advice = "Two runs may have been averaged differently."
    if twins:
        advice = f"It may have changed places with the row {twins[0]}, which is printed {other.text}."
        numbers["swapped"] = rows[twins[0]][column].value
    name = f"ablation:{ABLATION_TABLE}:{row}:{column}"
    return Finding(name, ABLATION_TABLE, row, what + ".", numbers, "inconsistent", advice)


@rule("decomposition", "three numbers of a corrupted column agree")
def decomposition(published: Published) -> Found:
    """Three numbers a, b, c of a corrupted column that do not fit a = w b + (1 - w) c, with w as in most cells."""
    triples = {}
    for row, cells in published.rows(TRANSFER_TABLE).items():
        for data in ("cifar10", "cifar100"):
            names = [f"{data}_c_{part}" for part in ("first", "second", "third")]
            if all(name in cells for name in names):
                triples[row, data] = tuple(cells[name] for name in names)
    fits = {
        w: [key for key, (a, b, c) in triples.items() if not _off(w * b.value + (1 - w) * c.value - a.value)]
        for w in NOISE_WEIGHTS
    }
    w = max(fits, key=lambda weight: len(fits[weight]))
    for (row, data), (a, b, c) in triples.items():
        total = w * b.value + (1 - w) * c.value
        noise, rest = (a.value - (1 - w) * c.value) / w, (a.value - w * b.value) / (1 - w)
        twins = [name for (name, other), line in triples.items() if other == data and name != row]
        twins = [name for name in twins if triples[name, data][2].text == c.text]
        same = f" The third number is also that of {', '.join(twins)}." if twins else ""
        yield None if (row, data) in fits[w] else Finding(
            f"decomposition:{TRANSFER_TABLE}:{row}:{data}_c", TRANSFER_TABLE, row,
            f"{data}_c: {a.text} / {b.text} / {c.text}, but {w:g} x {b.text} + {1 - w:g} x {c.text} = {total:.2f}; "
            f"this holds in {len(fits[w])} of {len(triples)} cells.{same}",
            {"first": a.value, "second": b.value, "third": c.value, "expected": total, "weight": w, "second_if": noise,
             "third_if": rest, "fitting": len(fits[w]), "cells": len(triples)}, "inconsistent",
            f"Either the third number is {rest:.1f}, or the second {noise:.1f}, or the first {total:.1f}.",
        )  # fmt: skip


@rule("submission", "submitted networks agree with the tables")
def submissions(published: Published) -> Found:
    """A network that its authors, or RobustBench, measured otherwise than the tables say."""
    seen = set()
    for entry in published.submissions:
        if "re-tuned" in entry.who:
            continue  # a later network, in no table
        table = SUBMITTED[entry.data]
        for column, value in ((entry.data, entry.clean), (entry.corrupted_data, entry.corrupted)):
            cell = published.get(table, SUBMITTED_SCHEME, column)
            if cell is None or (table, column, value) in seen:
                continue
            seen.add((table, column, value))
            low, high = _expected(cell, subset=f"{_SUBSET} images" in entry.who)
            yield None if low - FLOAT <= value <= high + FLOAT else Finding(
                f"submission:{table}:{SUBMITTED_SCHEME}:{column}", table, SUBMITTED_SCHEME,
                f"{column}: {_range(cell)}, but {value:g} by {entry.who} ({entry.source}); "
                f"{low:g} to {high:g} would fit.",
                {"printed": cell.value, "submitted": value, "low": low, "high": high}, "inconsistent",
                "The submitted network may not be among those of the table.",
            )  # fmt: skip


def _expected(cell: PublishedValue, *, subset: bool) -> tuple[float, float]:
    """The range for another measurement of the network: the seeds, rounding, or the error of a subset of images."""
    low, high = (cell.value, cell.value) if cell.minimum is None else (cell.minimum, cell.maximum)
    share = cell.value / 100
    slack = 200 * math.sqrt(share * (1 - share) / _SUBSET) if subset else 0.5 * 10.0**-cell.decimals
    return low - slack, high + slack


@rule("benchmark", "RobustBench measured the same accuracy on ImageNet-C")
def benchmarks(published: Published) -> Found:
    """A corruption of ImageNet-C on which RobustBench measured another accuracy than the table prints.

    Only its measurements on the images as they are published count. Two standard errors for its 5000 images are
    allowed, and the rounding of the printed number.
    """
    for one in published.benchmarks:
        cell = published.get(BENCHMARK_TABLE, one.row, one.corruption)
        if one.view != "published" or cell is None:
            continue
        low, high = _expected(cell, subset=True)
        slack = 0.5 * 10.0**-cell.decimals + FLOAT
        yield None if low - slack <= one.mean <= high + slack else Finding(
            f"benchmark:{BENCHMARK_TABLE}:{one.row}:{one.corruption}", BENCHMARK_TABLE, one.row,
            f"{one.corruption} is {cell.text}, but {one.mean:.2f} by RobustBench on {_SUBSET} images ({one.network}).",
            {"printed": cell.value, "measured": one.mean, "low": low, "high": high}, "inconsistent",
            "The networks may differ, or the images: RobustBench resized them until May 2022.",
        )  # fmt: skip


@rule("network", "submitted networks have the tables' architecture")
def submitted_networks(published: Published) -> Found:
    """A submitted network whose name has another depth or width than the network of the table."""
    seen = set()
    for entry in published.submissions:
        table = SUBMITTED[entry.data]
        ours, theirs = (_depth_width(name) for name in (TABLES[table].network, entry.network))
        if ours == theirs or (table, theirs) in seen:
            yield None
            continue
        seen.add((table, theirs))
        yield Finding(
            f"network:{table}:{SUBMITTED_SCHEME}", table, SUBMITTED_SCHEME,
            f"The table's network is {TABLES[table].network}, the submitted one {entry.network}.",
            {"depth": ours[0], "width": ours[-1], "submitted_width": theirs[-1]}, "doubtful",
            "The width factor in the text may be meant otherwise; the released code would tell.",
        )  # fmt: skip


def _depth_width(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in "".join(c if c.isdigit() else " " for c in name).split())


@rule("claim", "statements agree with the printed numbers")
def text_claims(published: Published) -> Found:
    """A statement of the text that the printed numbers do not show."""
    for claim in claims_about(published):
        if not claim.comparisons:
            continue
        outcome = judge_published(claim, published)
        if outcome.word != NOT_SUPPORTED:
            yield None
            continue
        row = claim.comparisons[0].row
        numbers: dict[str, float] = {}
        for one in outcome.failed:
            item = one.comparison.item
            numbers |= {f"{item}: {row}": one.left, f"{item}: {one.comparison.other}": one.right}
        shown = ", ".join(f"{name} {value:g}" for name, value in numbers.items())
        if claim.count is not None:
            numbers |= {"claimed": claim.count, "counted": len(outcome.items)}
            shown = f"{len(outcome.items)} as printed ({', '.join(outcome.items)})"
        tie = all(abs(one.left - one.right) < FLOAT for one in outcome.failed) and claim.count is None
        yield Finding(
            f"claim:{claim.table}:{row}:{claim.id}", claim.table, row,
            f"“{claim.statement}” ({claim.source}): {shown}.", numbers,
            "inconsistent" if claim.kind == "text" else "doubtful",
            "The numbers show a tie." if tie else "The sentence may have been written for an earlier version.",
        )  # fmt: skip
