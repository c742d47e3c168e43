"""Checks between tables, and of tables with what is said of them. Each is a rule on numbers and knows no row."""

from __future__ import annotations

import math
from collections.abc import Iterator

from .audit_rules import order_is_odd
from .claims import NOT_SUPPORTED, judge_published
from .claims_list import claims_about
from .findings import FLOAT, ROUNDING, Finding, RuleResult
from .metrics_map import NOISES
from .published import Published, PublishedValue
from .registry import DETAILS, TABLES

ABLATION_TABLE, ABLATION_SOURCE = "noisymix-table4", "noisymix-table3"
TRANSFER_TABLE = "noisymix-table5"
#: Weight of the noise corruptions in the mean: by number of the corruptions, or of their categories.
NOISE_WEIGHTS = (3 / 15, 1 / 4, 3 / 16, 4 / 15)
#: Table with the networks that were also submitted elsewhere, by the data set they were trained on.
SUBMITTED = {"imagenet": "noisymix-table1", "cifar10": "noisymix-table3", "cifar100": "noisymix-table3"}
SUBMITTED_SCHEME = "noisymix"
_SUBSET = 5000


def _off(difference: float) -> bool:
    return abs(difference) > ROUNDING + FLOAT


def detail_means(published: Published) -> RuleResult:
    """Mean of a row of single corruptions or perturbations against the summary table."""
    findings, checked = [], 0
    for detail, summary, column, without in DETAILS:
        for row, cells in published.rows(detail).items():
            printed = published.get(summary, row, column)
            if printed is None:
                continue
            checked += 1
            mean = _mean(cells)
            rest = _mean(cells, without=NOISES)
            bare = published.number(summary, row, without) if without else None
            checked += bare is not None
            if not _off(mean - printed.value) and (bare is None or not _off(rest - bare)):
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
            findings.append(
                Finding(
                    *(f"detail-mean:{detail}:{row}", detail, row, what + ".", numbers, "inconsistent"),
                    _advice(published, detail, row, alike, repairs),
                )
            )
    return RuleResult("detail-mean", "means of single columns agree with the summary tables", checked, tuple(findings))


def _parts(cells: dict[str, PublishedValue]) -> list[PublishedValue]:
    return [cell for name, cell in cells.items() if name != "mfr"]


def _mean(cells: dict[str, PublishedValue], *, without: tuple[str, ...] = ()) -> float:
    kept = [cell.value for cell in _parts(cells) if cell.column not in without]
    return math.fsum(kept) / len(kept)


def _range(cell: PublishedValue) -> str:
    return cell.text if cell.minimum is None else f"{cell.text} ({cell.minimum:g} / {cell.maximum:g})"


def _fitting_rows(published, detail, summary, columns, mean, rest, row) -> list[str]:
    """Other rows of the summary that both means would fit, in detail tables that print more than one mean."""
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
    """Cells in which one other digit gives the printed mean and, if the row's noises rank oddly, cures that too."""
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


def printed_means(published: Published) -> RuleResult:
    """The printed mFR against the mean of its own row, and against the summary table."""
    findings, checked = [], 0
    summaries = {detail: (summary, column) for detail, summary, column, _ in DETAILS}
    for table in published.tables():
        for row, cells in published.rows(table).items():
            if "mfr" not in cells:
                continue
            checked += 1
            printed, mean = cells["mfr"].value, _mean(cells)
            numbers = {"mean": mean, "printed": printed}
            what = f"mFR is printed {cells['mfr'].text}; its {len(_parts(cells))} columns average {mean:.2f}"
            summary, column = summaries.get(table, ("", ""))
            elsewhere = published.number(summary, row, column)
            if elsewhere is not None:
                numbers["summary"] = elsewhere
                what += f", and {summary} has {elsewhere:g}"
            if _off(mean - printed) or (elsewhere is not None and abs(elsewhere - printed) > FLOAT):
                last_digit = abs(mean - printed) <= 2 * ROUNDING
                findings.append(
                    Finding(
                        *(f"printed-mean:{table}:{row}", table, row, what + ".", numbers),
                        "rounding" if last_digit else "inconsistent",
                        "The last digit may be a slip."
                        if last_digit
                        else "Columns and mean seem to be of different runs.",
                    )
                )
    return RuleResult("printed-mean", "printed mFR is the mean of its columns", checked, tuple(findings))


def ablation(published: Published) -> RuleResult:
    """Rows of the ablation that are schemes of another table, value by value; and the gains."""
    findings, checked = [], 0
    rows = published.rows(ABLATION_TABLE)
    for row, cells in rows.items():
        for column in ("cifar100", "cifar100_c"):
            other = published.get(ABLATION_SOURCE, row, column)
            if other is None or column not in cells:
                continue
            checked += 1
            if cells[column].text == other.text:
                continue
            numbers = {"ablation": cells[column].value, "summary": other.value}
            what = f"{column} is {cells[column].text}, {ABLATION_SOURCE} has {_range(other)} for the same scheme"
            for detail, summary, name, _ in DETAILS:
                if (summary, name) == (ABLATION_SOURCE, column) and row in published.rows(detail):
                    numbers["detail_mean"] = _mean(published.rows(detail)[row])
                    what += f", and {detail} averages {numbers['detail_mean']:.2f}"
            twins = [name for name, line in rows.items() if name != row and line[column].text == other.text]
            advice = "Two runs may have been averaged differently."
            if twins:
                advice = f"It may have changed places with the row {twins[0]}, which is printed {other.text}."
                numbers["swapped"] = rows[twins[0]][column].value
            findings.append(
                Finding(
                    *(f"ablation:{ABLATION_TABLE}:{row}:{column}", ABLATION_TABLE, row, what + ".", numbers),
                    *("inconsistent", advice),
                )
            )
    first = next(iter(rows.values()), {}).get("cifar100_c")
    for row, cells in rows.items():
        if "robustness_gain" not in cells:
            continue
        checked += 1
        gain = cells["cifar100_c"].value - first.value
        printed = cells["robustness_gain"]
        if abs(gain - printed.value) > FLOAT:
            slight = not _off(gain - printed.value)
            findings.append(
                Finding(
                    *(f"gain:{ABLATION_TABLE}:{row}", ABLATION_TABLE, row),
                    f"{cells['cifar100_c'].text} - {first.text} = {gain:.1f}, printed {printed.text}.",
                    {"gain": gain, "printed": printed.value},
                    "rounding" if slight else "inconsistent",
                    "Differences of unrounded numbers do this." if slight else "One of the three may be misprinted.",
                )
            )
    return RuleResult("ablation", "the ablation agrees with the main table and with itself", checked, tuple(findings))


def decomposition(published: Published) -> RuleResult:
    """The three numbers of a corrupted column: all = w noise + (1 - w) rest, w as in most cells."""
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
    weight = max(fits, key=lambda w: len(fits[w]))
    findings = []
    for (row, data), (a, b, c) in triples.items():
        if (row, data) in fits[weight]:
            continue
        total = weight * b.value + (1 - weight) * c.value
        noise, rest = (a.value - (1 - weight) * c.value) / weight, (a.value - weight * b.value) / (1 - weight)
        column = [(name, line[2].text) for (name, other), line in triples.items() if other == data]
        twins = [name for name, text in column if name != row and text == c.text]
        same = f" The third number is also that of {', '.join(twins)}." if twins else ""
        findings.append(
            Finding(
                f"decomposition:{TRANSFER_TABLE}:{row}:{data}_c",
                TRANSFER_TABLE,
                row,
                f"{data}_c: {a.text} / {b.text} / {c.text}, but {weight:g} x {b.text} + {1 - weight:g} x {c.text} = "
                f"{total:.2f}; this holds in {len(fits[weight])} of {len(triples)} cells.{same}",
                {
                    **{"first": a.value, "second": b.value, "third": c.value, "expected": total, "weight": weight},
                    **{"second_if": noise, "third_if": rest, "fitting": len(fits[weight]), "cells": len(triples)},
                },
                "inconsistent",
                f"Either the third number is {rest:.1f}, or the second {noise:.1f}, or the first {total:.1f}.",
            )
        )
    return RuleResult("decomposition", "three numbers of a corrupted column agree", len(triples), tuple(findings))


def submissions(published: Published) -> RuleResult:
    """The same networks as their authors, or RobustBench, measured them, against the tables."""
    findings, checked = [], 0
    seen = set()
    for entry in published.submissions:
        if "re-tuned" in entry.who:
            continue  # a later network, in no table
        table = SUBMITTED[entry.data]
        for column, value in ((entry.data, entry.clean), (entry.corrupted_data, entry.corrupted)):
            cell = published.get(table, SUBMITTED_SCHEME, column)
            key = (table, column, value)
            if cell is None or key in seen:
                continue
            seen.add(key)
            checked += 1
            low, high = _expected(cell, subset=f"{_SUBSET} images" in entry.who)
            if low - FLOAT <= value <= high + FLOAT:
                continue
            findings.append(
                Finding(
                    *(f"submission:{table}:{SUBMITTED_SCHEME}:{column}", table, SUBMITTED_SCHEME),
                    f"{column}: {_range(cell)}, but {value:g} by {entry.who} ({entry.source}); "
                    f"{low:g} to {high:g} would fit.",
                    {"printed": cell.value, "submitted": value, "low": low, "high": high},
                    "inconsistent",
                    "The submitted network may not be among those of the table.",
                )
            )
    return RuleResult("submission", "submitted networks agree with the tables", checked, tuple(findings))


def _expected(cell: PublishedValue, *, subset: bool) -> tuple[float, float]:
    """Where another measurement of the network may lie: within the seeds, rounding, or the error of a subset."""
    low, high = (cell.value, cell.value) if cell.minimum is None else (cell.minimum, cell.maximum)
    share = cell.value / 100
    slack = 200 * math.sqrt(share * (1 - share) / _SUBSET) if subset else 0.5 * 10.0**-cell.decimals
    return low - slack, high + slack


def submitted_networks(published: Published) -> RuleResult:
    """Name of the submitted architecture against that of the table: depth and width."""
    findings, checked, seen = [], 0, set()
    for entry in published.submissions:
        table = SUBMITTED[entry.data]
        ours, theirs = (_depth_width(name) for name in (TABLES[table].network, entry.network))
        checked += 1
        if ours != theirs and (table, theirs) not in seen:
            seen.add((table, theirs))
            findings.append(
                Finding(
                    *(f"network:{table}:{SUBMITTED_SCHEME}", table, SUBMITTED_SCHEME),
                    f"The table's network is {TABLES[table].network}, the submitted one {entry.network}.",
                    {"depth": ours[0], "width": ours[-1], "submitted_width": theirs[-1]},
                    *("doubtful", "The width factor in the text may be meant otherwise; the released code would tell."),
                )
            )
    return RuleResult("network", "submitted networks have the tables' architecture", checked, tuple(findings))


def _depth_width(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in "".join(c if c.isdigit() else " " for c in name).split())


def text_claims(published: Published) -> RuleResult:
    """Statements of the text against the printed numbers."""
    findings, checked = [], 0
    for claim in claims_about(published):
        outcome = judge_published(claim, published)
        checked += bool(claim.comparisons)
        if outcome.word != NOT_SUPPORTED:
            continue
        row = claim.comparisons[0].row
        numbers: dict[str, float] = {}
        for comparison, left, right in outcome.failed:
            numbers[f"{comparison.item}: {row}"] = left
            numbers[f"{comparison.item}: {comparison.other}"] = right
        shown = ", ".join(f"{name} {value:g}" for name, value in numbers.items())
        if claim.count is not None:
            numbers |= {"claimed": claim.count, "counted": len(outcome.items)}
            shown = f"{len(outcome.items)} as printed ({', '.join(outcome.items)})"
        tie = all(abs(left - right) < FLOAT for _, left, right in outcome.failed) and claim.count is None
        findings.append(
            Finding(
                *(f"claim:{claim.table}:{row}:{claim.id}", claim.table, row),
                f"“{claim.statement}” ({claim.source}): {shown}.",
                *(numbers, "inconsistent" if claim.kind == "text" else "doubtful"),
                "The numbers show a tie." if tie else "The sentence may have been written for an earlier version.",
            )
        )
    return RuleResult("claim", "statements agree with the printed numbers", checked, tuple(findings))
