"""Claim: the theory is proved or verified; many claims on tables were not run, and what was run is mixed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from experiments.claims import count, index, load_records
from experiments.claims.index import CLASSES
from experiments.record.files import RESULTS

from . import style

#: Color, hatch and opacity of every class of verdicts; what is weakened by noise is hatched.
LOOKS = dict(
    zip(
        CLASSES,
        (
            (style.BLUE, "", 0.95), (style.BLUE, "////", 0.45), (style.GREEN, "", 0.95), (style.PINK, "", 0.95),
            (style.ORANGE, "////", 0.45), (style.ORANGE, "", 0.95), (style.INK, "", 0.3),
        ),
        strict=True,
    )
)  # fmt: skip
#: As wide as a phone can show with text that can be read.
WIDTH, HEIGHT = 5.2, 4.6


def _bars(ax, counts: Mapping[str, Counter[str]]) -> None:
    groups = list(counts)
    for place, group in enumerate(groups):
        total, left = sum(counts[group].values()), 0.0
        for name, (color, hatch, alpha) in LOOKS.items():
            number = counts[group][name]
            if not number:
                continue
            width = 100 * number / total
            # Colors with an alpha of their own: an alpha of the patch would fade its hatch, too.
            bar = {"facecolor": (color, alpha), "hatch": hatch, "edgecolor": color if hatch else "none", "lw": 0}
            ax.barh(place, width, left=left, height=0.74, **bar)
            if width > 5:
                ink = "white" if alpha > 0.9 else style.INK
                box = {"facecolor": (1, 1, 1, 0.85), "edgecolor": "none", "pad": 0.8} if hatch else None
                at = {"ha": "center", "va": "center", "fontsize": 9, "fontweight": "bold"}
                ax.text(left + width / 2, place, str(number), color=ink, bbox=box, **at)
            left += width
    ax.set_yticks(range(len(groups)), groups, fontsize=10)
    ax.invert_yaxis()
    ax.set(xlim=(0, 100), xlabel="share of the statements, %; numbers count them")
    ax.grid(False)
    ax.set_title("Verdicts on the statements of the papers")


def draw(counts: Mapping[str, Counter[str]]) -> Figure:
    """The verdicts of the page of claims.

    Args:
        counts: verdicts by group and class, of `claims.index.count`.
    """
    with style.style():
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        ax = figure.subplots()
        _bars(ax, counts)
        present = [name for name in LOOKS if any(counter[name] for counter in counts.values())]
        handles = [ax.barh(0, 0, facecolor=(c, a), hatch=h, edgecolor=c if h else "none", lw=0, label=name)
                   for name in present for c, h, a in [LOOKS[name]]]  # fmt: skip
        figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8.5, handlelength=1.4)
    return figure


def make(out: Path = style.OUT, source: Path = RESULTS) -> list[Path]:
    """Judge the statements by the records of a folder, draw the figure and write it; returns the files."""
    records = load_records(source)
    return style.save(draw(count(index(records))), "overview", out)
