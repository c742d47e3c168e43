"""Claim: at the scale at which networks are trained no low order is near the loss, whatever network and training."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from experiments.record.files import RESULTS, read_lines
from experiments.studies.study import TITLES
from experiments.studies.validity_summary import KINKED, MODEL_TITLES, ORDERS, chosen, radius

from . import style

#: Columns of the curves, where there are records; the panel at the right has all trainings.
TRAININGS = ("baseline", "mixup", "nfm")
#: Color and line of every order of the polynomial.
LINES = {1: (style.PINK, ":"), 2: (style.BLUE, "-"), 3: (style.ORANGE, "--"), 4: (style.GREEN, "-.")}
#: Errors below are not shown.
SMALLEST, LARGEST = 1e-3, 5.0
#: The law of the curves: what the papers' code trains with.
LAW = "released"
_LAYERS = ("input", "first hidden layer", "second", "third")


def layers(records: list[dict]) -> list[str]:
    """Layers of a network, the input first."""
    return list(dict.fromkeys(r["layer"] for r in records))


def _curves(ax, records: list[dict]) -> None:
    """Median over the layers and their range, for each order; the linearised network where there is one."""
    if not records:
        ax.text(0.5, 0.5, "not run", transform=ax.transAxes, ha="center", color=style.INK)
        return
    eps = np.array(records[0]["curve"]["eps"])
    found = [(LINES[p], [r["curve"]["relative_error"][str(p)] for r in records]) for p in ORDERS]
    if all(r["model"] in KINKED for r in records):
        found.append(((style.INK, "-"), [r["curve"]["linearised_error"] for r in records]))
    for (color, dash), rows in found:
        errors = np.clip(np.array(rows, dtype=float), SMALLEST / 10, None)
        if color != style.INK:
            ax.fill_between(eps, errors.min(0), errors.max(0), color=color, alpha=0.14, lw=0)
        ax.plot(
            eps, np.exp(np.median(np.log(errors), axis=0)), dash, color=color, lw=1.0 if color == style.INK else 1.6
        )
    ax.axhline(0.1, color=style.INK, lw=0.9, alpha=0.6)


def _radii(ax, records: list[dict]) -> None:
    """ε at which order 2 is 10 % off, by training and layer, with the range of two standard errors."""
    trainings = [t for t in TITLES if any(r["training"] == t for r in records)]
    names = layers(records)
    for y, training in enumerate(trainings):
        for k, layer in enumerate(names):
            for r in chosen(records, training=training, layer=layer):
                at = y + 0.18 * (k - (len(names) - 1) / 2)
                low, high = (1.0 if v is None else v for v in r["curve"]["radius_range"]["2"])
                ax.plot([low, high], [at, at], color=style.CYCLE[k], lw=1.4, alpha=0.8)
                value = radius(r)
                marker = style.MARKERS[k] if math.isfinite(value) else ">"
                ax.plot(min(value, 1.0), at, marker, color=style.CYCLE[k], ms=4.4, mec="none")
    ax.set_yticks(range(len(trainings)), [TITLES[t] for t in trainings])
    ax.set_ylim(len(trainings) - 0.5, -0.5)
    ax.set(xlim=(0, 1.02))
    ax.yaxis.tick_right()


def draw(records: list[dict]) -> Figure:
    """Relative error against ε by network, training and order; ε₁₀ by training and layer.

    Args:
        records: the records of the study `validity`; the law `LAW` is shown.

    Raises:
        ValueError: if a network is unknown, or no record has the law.
    """
    shown = chosen(records, law=LAW)
    unknown = {r["model"] for r in records} - MODEL_TITLES.keys()
    if unknown or not shown:
        raise ValueError(
            f"records: expected some of law {LAW!r} and models {list(MODEL_TITLES)}, got {sorted(unknown)}."
        )
    models = [m for m in MODEL_TITLES if any(r["model"] == m for r in shown)]
    with style.style():
        figure = Figure(figsize=(10.2, 1.0 + 2.05 * len(models)), layout="constrained")
        ratios = {"width_ratios": [1] * len(TRAININGS) + [1.35]}
        axes = figure.subplots(len(models), len(TRAININGS) + 1, squeeze=False, gridspec_kw=ratios)
        for row, model in zip(axes, models, strict=True):
            some = chosen(shown, model=model)
            for ax, training in zip(row, TRAININGS, strict=False):
                _curves(ax, chosen(some, training=training))
                ax.set(xscale="log", yscale="log", ylim=(SMALLEST, LARGEST), xlim=(0.02, 1))
                ax.set_yticks([1e-3, 1e-2, 1e-1, 1], ["0.1 %", "1 %", "10 %", "100 %"])
                ax.set_xticks([0.03, 0.1, 0.3, 1], ["0.03", "0.1", "0.3", "1"])
                ax.minorticks_off()
                if ax is not row[0]:
                    ax.tick_params(labelleft=False)
            row[0].set_ylabel(f"{MODEL_TITLES[model]}\nrelative error")
            _radii(row[-1], some)
        for ax, training in zip(axes[0], TRAININGS, strict=False):
            ax.set_title(TITLES[training])
        axes[0, -1].set_title(r"order 2: $\varepsilon_{10}$")
        for ax in axes[-1]:
            ax.set_xlabel(r"scale $\varepsilon$")
        _legend(figure, max(len(layers(chosen(shown, model=m))) for m in models))
    return figure


def _legend(figure: Figure, depth: int) -> None:
    handles = [Line2D([], [], color=c, ls=d, label=f"order {p}") for p, (c, d) in LINES.items()]
    handles += [
        Line2D([], [], color=style.INK, lw=1.0, label="all orders (ReLU)"),
        Patch(color=style.INK, alpha=0.3, lw=0, label="range over layers"),
    ]
    handles += [
        Line2D([], [], color=c, marker=m, ls="none", ms=5, label=label)
        for c, m, label in list(zip(style.CYCLE, style.MARKERS, _LAYERS, strict=True))[:depth]
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=5)


def make(source: Path = RESULTS / "validity_trained.jsonl", out: Path = style.OUT) -> list[Path]:
    """Draw the figure from a file of records, and those of other data beside it, and write it; returns the files."""
    beside = sorted(path for path in source.parent.glob("validity_*.jsonl") if path.name != source.name)
    records = [record for path in (source, *beside) for record in read_lines(path)]
    return style.save(draw(records), "validity_trained", out)
