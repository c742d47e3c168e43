"""Claim: which part of NFM's noise makes networks robust, predicted by its second-order terms and found by training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.claims.where import shares
from experiments.recipes.where import LARGE, LAYERS, METRIC, interventions
from experiments.record.entry import Entry
from experiments.record.files import read_lines
from experiments.record.ledger import LEDGER, read
from experiments.studies.study import study
from experiments.studies.where import AFTER, BEFORE, DURING, FILE, mean_terms

from . import style

_LINES = {BEFORE: (":", "^"), DURING: ("-", "o"), AFTER: ("--", "s")}
_COLORS = {"R2_add": (style.BLUE, "additive"), "R2_mult": (style.ORANGE, "multiplicative")}


def draw(entries: Sequence[Entry], records: Sequence[dict], study_name: str = LARGE, *, metric: str = METRIC) -> Figure:
    """Noise terms at each layer on the left, predicted and measured shares of NFM's gain on the right.

    Args:
        entries: lines of the ledger.
        records: records of the study `where`.
        study_name: the study whose networks are shown.
        metric: key of the metric of the gain.
    """
    found = shares(tuple(entries), tuple(records), study_name, metric=metric)
    open_square = {"color": style.ORANGE, "ms": 5, "mfc": "none"}
    with style.style():
        figure = Figure(figsize=(9.6, 1.7 + 0.26 * max(len(found), 6)), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.35))
        _terms(left, records, study_name)
        words = {one.name: one.words for one in interventions(study_name)}
        order = sorted(found, key=lambda name: found[name].predicted)
        for place, name in enumerate(order):
            one = found[name]
            low, high = one.interval
            right.plot([low, high], [place, place], color=style.BLUE, lw=1.5, alpha=0.8)
            right.plot(one.measured, place, "o", color=style.BLUE, ms=5, label="" if place else "measured")
            right.plot(one.predicted, place, "D", label="" if place else "predicted", **open_square)
        for share in (0, 1):
            right.axvline(share, color=style.INK, lw=0.9)
        right.set_yticks(range(len(order)), [words[name] for name in order])
        right.set_xlabel("share of NFM's gain")
        if order:
            right.legend(fontsize=7.5, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def _terms(ax: Axes, records: Sequence[dict], study_name: str) -> None:
    """The noise terms of NFM at each layer of plainly trained networks."""
    for when, (line, marker) in _LINES.items():
        terms = mean_terms(records, study_name, when)
        for name, (color, words) in _COLORS.items():
            values = [terms[layer][name] for layer in LAYERS]
            ax.plot(values, line, marker=marker, color=color, ms=4, label=f"{words}, {when}")
    ax.set(yscale="log", ylabel="second-order term of NFM", xlabel="layer")
    ax.set_xticks(range(len(LAYERS)), [layer or "input" for layer in LAYERS])
    ax.legend(fontsize=7, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))


def make(source: Path = LEDGER, out: Path = style.OUT) -> list[Path]:
    """Draw the figure from a ledger and the record beside it, and write it; returns the files."""
    entries = read(source)
    if not study(entries, LARGE).run:
        return []
    return style.save(draw(entries, read_lines(source.with_name(FILE))), "where", out)
