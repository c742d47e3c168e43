"""Claim: the expansion is good up to a scale that can be named; beyond it, and where networks train, it is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from experiments.record.files import RESULTS, read_lines

from . import style

#: Color and line of every order of the polynomial.
ORDERS = {"1": (style.PINK, ":"), "2": (style.BLUE, "-"), "3": (style.ORANGE, "--")}
#: Errors below are not shown: the exact zero at a crossing would take the axis with it.
SMALLEST = 1e-4


def _draw(ax, curves: list[dict], order: str) -> None:
    color, dash = ORDERS[order]
    eps = np.array(curves[0]["eps"])
    errors = np.maximum([c["relative_error"][order] for c in curves], SMALLEST / 10)
    ax.fill_between(eps, errors.min(0), errors.max(0), color=color, alpha=0.16, lw=0)
    ax.plot(eps, np.exp(np.median(np.log(errors), axis=0)), dash, color=color)


def draw(records: list[dict]) -> Figure:
    """The figure of the records of the study `expansion`."""
    columns, rows = style.panels(records)
    with style.style():
        figure, axes = style.grid(rows, columns, sharex=True, sharey=True)
        for (row, column), ax in axes.items():
            chosen = [r["curve"] for r in records if (style.layer_kind(r), r["scheme"]) == (row, column)]
            for order in ORDERS if chosen else ():
                _draw(ax, chosen, order)
            ax.axhline(0.1, color=style.INK, lw=1.0)
            ax.set(xscale="log", yscale="log", ylim=(SMALLEST, 10), xlim=(0.01, 1))
            ax.set_yticks([1e-4, 1e-3, 1e-2, 1e-1, 1, 10], ["0.01 %", "0.1 %", "1 %", "10 %", "100 %", "1000 %"])
            ax.set_xticks([0.01, 0.1, 1], ["0.01", "0.1", "1"])
        for row in rows:
            axes[row, columns[0]].set_ylabel(f"{row}\nrelative error")
        for column in columns:
            axes[rows[-1], column].set_xlabel(r"scale $\varepsilon$  (1: as trained)")
        handles = [Line2D([], [], color=c, ls=d, label=f"order {p}") for p, (c, d) in ORDERS.items()]
        handles += [
            Patch(color=style.INK, alpha=0.3, lw=0, label="range over the networks"),
            Line2D([], [], color=style.INK, lw=1.0, label="10 %"),
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), 2 * len(columns)))
    return figure


def make(source: Path = RESULTS / "validity.jsonl", out: Path = style.OUT) -> list[Path]:
    """Draw the figure from a file of records and write it; returns the files."""
    return style.save(draw(read_lines(source)), "validity", out)
