"""Claim: how far the second-order theory explains NFM depends on the scale, the term and the stage of the training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.record.comparison import Paired
from experiments.record.files import RESULTS, read_lines
from experiments.record.ledger import LEDGER, read
from experiments.studies.decomposition import SCHEMES
from experiments.studies.decomposition import STUDIES as ACTIVATIONS
from experiments.studies.gains import (
    EXACT,
    NETWORKS,
    TERM_TITLES,
    by_scale,
    decomposition,
    metrics_of,
    terms_of,
)
from experiments.studies.study import TITLES, Study, label, study

from . import style

#: Color, line and marker of each part of the loss.
PARTS = {
    "R1": (style.BLUE, "-", "o"),
    "R2": (style.ORANGE, "-", "s"),
    "R3": (style.GREEN, "-", "^"),
    "additive noise": (style.PINK, "-", "D"),
    "multiplicative noise": (style.PINK, ":", None),
}
NAMES = {"relu": "ReLU", "silu": "SiLU"}


def draw_decomposition(records: Sequence[dict]) -> Figure:
    """What mixing and noise add to the plain loss, and the parts of it, against the epoch.

    Args:
        records: the records of the study `decomposition`.
    """
    rows = [a for a in ACTIVATIONS if any(r["activation"] == a for r in records)]
    columns = [s for s in SCHEMES if any(r["scheme"] == s for r in records)]
    with style.style():
        size = (0.9 + 2.6 * max(len(columns), 2), 1.1 + 2.3 * max(len(rows), 1))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(len(rows), len(columns), squeeze=False, sharex=True, sharey=True)
        for line, activation in zip(axes, rows, strict=True):
            for ax, scheme in zip(line, columns, strict=True):
                _parts(ax, decomposition(records, activation, scheme))
            line[0].set_ylabel(f"{NAMES[activation]}\nloss")
        for ax, scheme in zip(axes[0], columns, strict=True):
            ax.set_title(f"trained: {TITLES[scheme]}")
        for ax in axes[-1]:
            ax.set_xlabel("epoch")
        handles = [
            Line2D([], [], color=style.INK, ls="--", label="plain loss"),
            Line2D([], [], color=style.INK, marker="x", label="NFM − plain loss"),
            *(Line2D([], [], color=c, ls=d, marker=m, ms=4, label=name) for name, (c, d, m) in PARTS.items()),
            Line2D([], [], color=style.INK, ls="-.", marker="v", ms=4, label="remainder"),
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=4)
    return figure


def _parts(ax, found) -> None:
    epochs = [parts.epoch for parts in found]
    ax.plot(epochs, [parts.groups["standard"] for parts in found], "--", color=style.INK, lw=1.2)
    ax.plot(epochs, [parts.rise for parts in found], "-x", color=style.INK, ms=4)
    for name, (color, dash, marker) in PARTS.items():
        ax.plot(epochs, [parts.groups[name] for parts in found], dash, color=color, marker=marker, ms=4, lw=1.3)
    rest = np.array([parts.remainder for parts in found])
    error = 2 * np.array([parts.stderr for parts in found])
    ax.fill_between(epochs, rest - error, rest + error, color=style.INK, alpha=0.2, lw=0)
    ax.plot(epochs, rest, "-.v", color=style.INK, ms=4)


def _ends(gain: Paired) -> tuple[float, float]:
    return (gain.difference, gain.difference) if gain.interval is None else gain.interval


def _point(ax, x: float, gain: Paired, color: str, marker: str, *, across: bool = False) -> None:
    """A difference with its 95 % interval, the interval along y, or along x if `across`."""
    low, high = _ends(gain)
    line = ([low, high], [x, x]) if across else ([x, x], [low, high])
    ax.plot(*line, color=color, lw=1.5, alpha=0.8)
    ax.plot(*((gain.difference, x) if across else (x, gain.difference)), marker, color=color, ms=5, mec="none")


def draw_scales(studies: Sequence[Study]) -> Figure:
    """Gain over the baseline of the exact loss and of its expansion against ε, a row for each study.

    Args:
        studies: `digits-eps/...`; those without results have empty panels.
    """
    metrics = metrics_of(*studies) or ["clean"]
    with style.style():
        figure = Figure(figsize=(0.9 + 2.0 * max(len(metrics), 2), 0.9 + 2.0 * len(studies)), layout="constrained")
        axes = figure.subplots(len(studies), len(metrics), squeeze=False, sharex=True, sharey="col")
        for line, one in zip(axes, studies, strict=True):
            for ax, metric in zip(line, metrics, strict=True):
                _scales(ax, one, metric)
            line[0].set_ylabel(f"{NETWORKS[one.name.removeprefix('digits-eps')]}\ngain, points")
        for ax, metric in zip(axes[0], metrics, strict=True):
            ax.set_title(label(metric))
        for ax in axes[-1]:
            ax.set_xlabel(r"scale $\varepsilon$")
        handles = [
            Line2D([], [], color=style.BLUE, marker="o", label="exact loss L(ε)"),
            Line2D([], [], color=style.ORANGE, ls="--", marker="s", label="its expansion, Taylor-NFM"),
            Line2D([], [], color=style.PINK, ls="", marker="D", label="NFM, labels mixed"),
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=3)
    return figure


def _scales(ax, one: Study, metric: str) -> None:
    found = by_scale(one, metric)
    for name, color, dash, marker, shift in (
        ("exact", style.BLUE, "-", "o", -0.008),
        ("taylor", style.ORANGE, "--", "s", 0.008),
    ):
        some = {eps: gain for eps, both in found.items() if (gain := getattr(both, name)) is not None}
        ax.plot([e + shift for e in some], [g.difference for g in some.values()], dash, color=color, lw=1.3)
        for eps, gain in some.items():
            _point(ax, eps + shift, gain, color, marker)
    mixed = one.gain("nfm", "baseline", metric)
    if mixed is not None:
        _point(ax, 1.035, mixed, style.PINK, "D")
    ax.axhline(0, color=style.INK, lw=0.9)
    ax.set_xticks([0.1, 0.25, 0.5, 0.75, 1.0], ["0.1", "", "0.5", "", "1"])


def draw_terms(studies: Sequence[Study]) -> Figure:
    """Gain over the baseline of each term alone, of all, and of the exact schemes; a row of panels for each study.

    Args:
        studies: `digits-terms/...`.
    """
    metrics = metrics_of(*studies) or ["clean"]
    rows = [{r for m in metrics for r in terms_of(one, m)} for one in studies]
    order = [r for r in (*TERM_TITLES, *EXACT) if any(r in some for some in rows)]
    heights = [max(1, len(some)) for some in rows]
    with style.style():
        size = (2.0 + 1.75 * max(len(metrics), 2), 1.0 + 0.27 * sum(heights) + 0.5 * len(studies))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(len(studies), len(metrics), squeeze=False, sharex="col", height_ratios=heights)
        for line, one, some in zip(axes, studies, rows, strict=True):
            shown = [row for row in order if row in some]
            for ax, metric in zip(line, metrics, strict=True):
                _terms(ax, one, metric, shown)
                ax.set_yticks(range(len(shown)), [TERM_TITLES.get(row) or EXACT[row] for row in shown])
                ax.set_ylim(len(shown) - 0.4, -0.6)
                ax.tick_params(labelleft=ax is line[0])
            line[0].set_ylabel(NETWORKS[one.name.removeprefix("digits-terms")])
        for ax, metric in zip(axes[0], metrics, strict=True):
            ax.set_title(label(metric))
        for ax in axes[-1]:
            ax.set_xlabel("gain, points")
        handles = [
            Line2D([], [], color=style.ORANGE, marker="s", label="plain loss and terms"),
            Line2D([], [], color=style.BLUE, marker="o", label="exact scheme"),
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=2)
    return figure


def _terms(ax, one: Study, metric: str, shown: Sequence[str]) -> None:
    found = terms_of(one, metric)
    for place, row in enumerate(shown):
        if row in found:
            color, marker = (style.BLUE, "o") if row in EXACT else (style.ORANGE, "s")
            _point(ax, place, found[row], color, marker, across=True)
    ax.axvline(0, color=style.INK, lw=0.9)


def studies_of(entries: Sequence, kind: str) -> list[Study]:
    """The study of each network.

    Args:
        entries: the entries of the ledger.
        kind: `"eps"` or `"terms"`.
    """
    return [study(entries, f"digits-{kind}{suffix}") for suffix in NETWORKS]


def make(source: Path = LEDGER, out: Path = style.OUT) -> list[Path]:
    """Draw the figures of the ledger and write them; returns the files."""
    entries, written = read(source), []
    for name, kind, draw, own in (
        ("second_order_scales", "eps", draw_scales, lambda row: row.startswith(("nfm-", "taylor_nfm-0"))),
        ("second_order_terms", "terms", draw_terms, lambda row: row in TERM_TITLES and row != "taylor_nfm"),
    ):
        studies = studies_of(entries, kind)
        # The rows that they share with other studies alone make no figure
        if any(own(row) for one in studies for row in one.run):
            written += style.save(draw(studies), name, out)
    return written


def make_decomposition(source: Path = RESULTS / "decomposition.jsonl", out: Path = style.OUT) -> list[Path]:
    """Draw the decomposition from a file of records and write it; returns the files."""
    return style.save(draw_decomposition(read_lines(source)), "decomposition", out)
