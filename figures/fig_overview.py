"""Claim: the theory holds with its predicted coefficients; most tables were not run, and what was run is mixed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
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
WIDTH, HEIGHT = 5.2, 7.0


def _ratios(ax, expansion: Sequence[dict]) -> None:
    """Remainder over its prediction, down to rounding, for every verified network."""
    ax.axhline(1, color=style.INK, lw=1.2)
    for record in expansion:
        report = record["report"]
        eps, left = np.array(report["eps"]), np.array(report["remainders"])
        ratio = left / (report["predicted_coefficient"] * eps ** report["leading_order"])
        look = (style.ORANGE, "s") if report["leading_order"] == 4 else (style.BLUE, "o")
        ax.plot(eps, ratio, color=look[0], marker=look[1], ms=3, lw=0.8, alpha=0.6)
    if not expansion:
        ax.text(0.5, 0.4, "not run", transform=ax.transAxes, ha="center")
    ax.set(xscale="log", xlabel=r"scale $\varepsilon$")
    powers = r"blue $C_3\varepsilon^3$, orange $c_4\varepsilon^4$"
    ax.set_title(f"Remainder of the expansion / prediction\n({len(expansion)} trained networks and layers; {powers})")


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


def draw(expansion: Sequence[dict], counts: Mapping[str, Counter[str]]) -> Figure:
    """The figure of the first page.

    Args:
        expansion: records of the study `expansion`.
        counts: verdicts by group and class, of `statements.count`.
    """
    with style.style():
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        upper, lower = figure.subplots(2, 1, height_ratios=(1, 1.5))
        _ratios(upper, expansion)
        _bars(lower, counts)
        present = [name for name in LOOKS if any(counter[name] for counter in counts.values())]
        handles = [lower.barh(0, 0, facecolor=(c, a), hatch=h, edgecolor=c if h else "none", lw=0, label=name)
                   for name in present for c, h, a in [LOOKS[name]]]  # fmt: skip
        figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8.5, handlelength=1.4)
    return figure


def make(out: Path = style.OUT, source: Path = RESULTS) -> list[Path]:
    """Judge the statements by the records of a folder, draw the figure and write it; returns the files."""
    records = load_records(source)
    return style.save(draw(records.expansion, count(index(records))), "overview", out)
