"""Claim: nearly all printed means are the means of the printed columns; a few are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure

from experiments.studies.study import TITLES
from experiments.tables.findings import ROUNDING
from experiments.tables.metrics_map import NOISES
from experiments.tables.published import PUBLISHED, Published, PublishedValue, load_published
from experiments.tables.registry import DETAILS

from . import style


@dataclass(frozen=True)
class Mean:
    """A printed mean and the mean of the columns that it stands for.

    Attributes:
        table: the table with the columns.
        row: the row of the table.
        label: the printed label of the row.
        kind: `"all"`, or `"without noise"`.
        printed: percent.
        columns: mean of the printed columns, percent.
    """

    table: str
    row: str
    label: str
    kind: str
    printed: float
    columns: float

    @property
    def gap(self) -> float:
        """Mean of the columns less the printed mean, points."""
        return self.columns - self.printed

    @property
    def fits(self) -> bool:
        """Whether rounding explains the gap."""
        return abs(self.gap) <= ROUNDING + 1e-6


def means(published: Published | None = None) -> list[Mean]:
    """Every row of which both the columns and their mean are printed.

    Args:
        published: printed values; by default those of both papers.
    """
    published = load_published() if published is None else published
    found = []
    for detail, summary, column, without in DETAILS:
        for row, cells in published.rows(detail).items():
            parts = {name: cell.value for name, cell in cells.items() if name != "mfr"}
            quiet = [value for name, value in parts.items() if name not in NOISES]
            for kind, where, values in (("all", column, list(parts.values())), ("without noise", without, quiet)):
                printed = published.number(summary, row, where) if where else None
                if printed is not None:
                    found.append(Mean(detail, row, _label(cells), kind, printed, fmean(values)))
    summarized = {detail for detail, *_ in DETAILS}
    for table in published.tables():
        for row, cells in published.rows(table).items():
            if "mfr" in cells and table not in summarized:
                values = [cell.value for name, cell in cells.items() if name != "mfr"]
                found.append(Mean(table, row, _label(cells), "all", cells["mfr"].value, fmean(values)))
    return found


def _label(cells: Mapping[str, PublishedValue]) -> str:
    return next(iter(cells.values())).label


def title(table: str) -> str:
    """`noisymix-table6` as people say it."""
    paper, _, number = table.partition("-table")
    return f"{TITLES[paper]}, Table {number}"


def draw(found: Sequence[Mean]) -> Figure:
    """Mean of the columns less the printed mean, by table; linear within ±1 point and logarithmic beyond.

    Args:
        found: the result of `means`.
    """
    tables = list(dict.fromkeys(mean.table for mean in found))
    with style.style():
        figure = Figure(figsize=(8.2, 0.9 + 0.34 * len(tables)), layout="constrained")
        ax = figure.subplots()
        ax.axvspan(-ROUNDING, ROUNDING, color=style.GREEN, alpha=0.25, lw=0)
        for kind, shift, marker in (("all", 0.12, "o"), ("without noise", -0.12, "^")):
            for fits, color in ((True, style.BLUE), (False, style.ORANGE)):
                some = [mean for mean in found if mean.kind == kind and mean.fits == fits]
                if some:
                    places = [tables.index(mean.table) - shift for mean in some]
                    words = f"{'within rounding' if fits else 'beyond it'}, {kind}"
                    dots = {"color": color, "ms": 5, "alpha": 0.8, "mec": "none", "label": words}
                    ax.plot([mean.gap for mean in some], places, marker, **dots)
        for place, table in enumerate(tables):
            odd = [mean for mean in found if mean.table == table and not mean.fits]
            for row in dict.fromkeys(mean.row for mean in odd):
                far = max((mean for mean in odd if mean.row == row), key=lambda mean: abs(mean.gap))
                # Towards the middle, where there is room
                side = 1 if far.gap < 0 else -1
                ax.annotate(
                    far.label, (far.gap, place), (8 * side, 0),
                    textcoords="offset points", ha="left" if far.gap < 0 else "right", va="center", fontsize=8.5,
                )  # fmt: skip
        ax.set_xscale("symlog", linthresh=1.0, linscale=1.6)
        reach = 4 * max(1.0, *(abs(mean.gap) for mean in found))
        ax.set_xlim(-reach, reach)
        ticks = [t for t in (-10, -1, -0.5, -ROUNDING, ROUNDING, 0.5, 1, 10) if abs(t) < reach]
        ax.set_xticks(ticks, [f"{t:g}".replace("-", "−") for t in ticks])
        ax.minorticks_off()
        ax.set_yticks(range(len(tables)), [title(table) for table in tables])
        ax.invert_yaxis()
        ax.set_xlabel("mean of the columns less printed mean, points")
        figure.legend(loc="outside upper center", ncols=4)
    return figure


def make(source: Path = PUBLISHED, out: Path = style.OUT) -> list[Path]:
    """Draw the figure from a folder of printed tables and write it; returns the files."""
    return style.save(draw(means(load_published(source))), "audit", out)
