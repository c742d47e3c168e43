"""How hard a test is for the baseline: as hard as in the paper, or so easy that schemes cannot differ.

On other data or in another network white noise of the printed level may cost the baseline less than in the paper. Then
all schemes are near their clean accuracy, and their order says nothing. So a claim is judged at the lowest measured
level, not below the printed one, at which the baseline has lost at least as many points as in the paper. If there is no
such level, or the test has no levels, the comparison is at a ceiling, and the verdict says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from .metrics_map import Column, measured
from .published import Published
from .registry import DETAILS

#: Tests with levels, and all tests whose difficulty is what the baseline loses of its clean accuracy.
_LEVELS = ("white_noise", "salt_pepper")
_TESTS = (*_LEVELS, "corrupted")


@dataclass(frozen=True)
class Level:
    """Where a column of a table is judged.

    Attributes:
        metric: key in the ledger, at the printed level or a higher one.
        ceiling: True if the baseline has lost less there than in the paper.
    """

    metric: str
    ceiling: bool


def printed_loss(published: Published, table: str, column: Column) -> float | None:
    """How many points of its clean accuracy the baseline has lost in a column, in print; `None` if it is not printed.

    Args:
        published: the printed values.
        table: id of the table.
        column: a column of the table. The clean accuracy is that of the table itself, or of the table with its mean.
    """
    value = published.number(table, "baseline", column.id)
    parents = [parent for detail, parent, *_ in DETAILS if detail == table]
    for place in (table, *parents):
        for other in published.columns(place):
            clean = published.number(place, "baseline", other.id)
            if other.metric == "clean" and other.data == column.data and clean is not None and value is not None:
                return clean - value
    return None


def matched_levels(
    published: Published, table: str, data: str, baseline: Sequence[Mapping[str, float]]
) -> dict[str, Level]:
    """Where the columns of a table are judged, for a baseline of ours.

    Args:
        published: the printed values.
        table: id of the table.
        data: data set of the columns.
        baseline: the metrics of all lines of the ledger of our baseline.

    Returns:
        A level for each column with a test that the baseline has been through. Other columns are absent.
    """
    clean = _mean(baseline, "clean")
    found: dict[str, Level] = {}
    for column in published.columns(table):
        loss = printed_loss(published, table, column)
        if column.data != data or clean is None or loss is None or column.minus:
            continue
        if column.metric.partition("/")[0] not in _TESTS:
            continue
        lost = {
            key: 100 * (clean - mean) for key in _keys(column, baseline) if (mean := _mean(baseline, key)) is not None
        }
        if lost:
            hard = [key for key, points in lost.items() if points >= loss]
            found[column.id] = Level(hard[0] if hard else list(lost)[-1], not hard)
    return found


def _keys(column: Column, baseline: Sequence[Mapping[str, float]]) -> list[str]:
    """The key of a column and, for noise, the keys of higher levels, in rising order."""
    kind, _, level = column.metric.partition("/")
    if kind not in _LEVELS:
        return [column.metric]
    keys = {key for metrics in baseline for key in metrics if key.startswith(f"{kind}/")}
    higher = {key: float(key.partition("/")[2]) for key in keys}
    return [key for key in sorted(higher, key=higher.__getitem__) if higher[key] >= float(level)]


def _mean(lines: Sequence[Mapping[str, float]], key: str) -> float | None:
    values = [value for metrics in lines if (value := measured(metrics, key)) is not None]
    return fmean(values) if values else None
