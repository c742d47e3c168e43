"""Claim: on trained networks the remainder of the second-order expansion is the predicted one, coefficient included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.record.files import RESULTS, read_lines

from . import style


def _networks(records: list[dict]) -> list[tuple[str, int]]:
    return sorted({(r["model"], r["classes"]) for r in records})


def _draw(ax, record: dict, color: str, marker: str) -> None:
    report = record["report"]
    eps, size = np.array(report["eps"]), np.abs(report["remainders"])
    line = np.array([eps.min() / 1.25, eps.max() * 1.25])
    predicted = abs(report["predicted_coefficient"]) * line ** report["leading_order"]
    ax.plot(line, predicted, color=color, lw=1.1, alpha=0.85, zorder=1)
    ax.plot(eps, size, marker, color=color, ms=4.2, mec="none", zorder=2)


def draw(records: list[dict]) -> Figure:
    """The figure of the records of the study `expansion`."""
    columns, rows = style.panels(records)
    networks = _networks(records)
    looks = dict(zip(networks, zip(style.CYCLE, style.MARKERS, strict=True), strict=False))
    with style.style():
        figure, axes = style.grid(rows, columns, sharex=True, sharey=True)
        orders: dict[tuple[str, str], set[int]] = {}
        for record in records:
            panel = style.layer_kind(record), record["scheme"]
            orders.setdefault(panel, set()).add(record["report"]["leading_order"])
            _draw(axes[panel], record, *looks[record["model"], record["classes"]])
        for panel, ax in axes.items():
            ax.set(xscale="log", yscale="log")
            powers = " and ".join(rf"$C_{q}\,\varepsilon^{q}$" for q in sorted(orders.get(panel, ())))
            ax.text(0.96, 0.05, powers, transform=ax.transAxes, ha="right", va="bottom", fontsize=9)
        for row in rows:
            axes[row, columns[0]].set_ylabel(f"{row}\n|remainder|")
        for column in columns:
            axes[rows[-1], column].set_xlabel(r"scale $\varepsilon$")
        handles = [
            Line2D([], [], color=c, marker=m, ls="none", ms=5, label=f"{style.MODEL_TITLES.get(k, k)}, K = {n}")
            for (k, n), (c, m) in looks.items()
        ]
        handles += [Line2D([], [], color=style.INK, lw=1.3, label="predicted, nothing fitted")]
        figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), 2 * len(columns)))
    return figure


def make(source: Path = RESULTS / "expansion.jsonl", out: Path = style.OUT) -> list[Path]:
    """Draw the figure from a file of records and write it; returns the files."""
    return style.save(draw(read_lines(source)), "remainder", out)
