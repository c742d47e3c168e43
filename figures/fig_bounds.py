"""Claim: on trained networks the bound holds where its assumptions do, and labels are kept far beyond its radius."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from experiments.record.files import RESULTS, read_lines
from experiments.studies.bounds import SCHEMES

from . import style

SCHEME_TITLES = {
    "erm": "ERM",
    "noise": "noise only",
    "mixup": "Mixup",
    "manifold": "Manifold Mixup",
    "nfm": "NFM",
}
MODEL_TITLES = {"leaky_mlp": "bias-free", "relu_mlp": "ReLU, biases", "cifar_cnn": "CNN, CIFAR-10"}
#: Radii in the order in which they are drawn, with color and marker.
RADII = {
    "paper": ("implied, paper", style.PINK, "D"),
    "sharp": ("implied, sharp", style.BLUE, "o"),
    "certified": ("certified", style.GREEN, "^"),
    "flip": ("flipped by attack", style.ORANGE, "s"),
}
#: Marker of each verdict on the inequality.
VERDICTS = {"certified": "o", "undecided": "D", "refuted": "X"}
SIZES = {"certified": 4.2, "undecided": 5.5, "refuted": 7.0}


def _networks(records: list[dict]) -> list[tuple[str, int]]:
    return list(dict.fromkeys((r["model"], r["classes"]) for r in records))


def _title(model: str, classes: int) -> str:
    return f"{MODEL_TITLES[model]}, K = {classes}"


def _schemes(records: list[dict]) -> list[str]:
    present = {r["scheme"] for r in records}
    unknown = present - SCHEMES.keys()
    if unknown:
        raise ValueError(f"scheme: expected {list(SCHEMES)}, got {sorted(unknown)}.")
    return [s for s in SCHEMES if s in present]


def draw_sides(records: list[dict]) -> Figure:
    """Left and right side of the bound, both less L_std and divided by ε, for the first seed of each network.

    Args:
        records: the records of the study `bounds`.
    """
    networks, schemes = _networks(records), _schemes(records)
    first = {}
    for record in records:
        first.setdefault((record["model"], record["classes"], record["scheme"]), record)
    with style.style():
        size = (0.9 + 1.75 * max(len(schemes), 3), 1.0 + 1.75 * len(networks))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(len(networks), len(schemes), squeeze=False, sharex=True, sharey="row")
        for row, (model, classes) in zip(axes, networks, strict=True):
            for ax, scheme in zip(row, schemes, strict=True):
                _sides(ax, first.get((model, classes, scheme)))
            row[0].set_ylabel(f"{_title(model, classes)}\nrise of the loss / $\\varepsilon$")
        for ax, scheme in zip(axes[0], schemes, strict=True):
            ax.set_title(SCHEME_TITLES[scheme])
        for ax in axes[-1]:
            ax.set_xlabel(r"scale $\varepsilon$")
        handles = [Line2D([], [], color=style.BLUE, marker=m, ls="-", ms=SIZES[v], mec="none", label=f"left side, {v}")
                   for v, m in VERDICTS.items()]  # fmt: skip
        handles.append(Patch(color=style.ORANGE, alpha=0.6, lw=0, label="right side, attack to certificate"))
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    return figure


def _sides(ax, record: dict | None) -> None:
    if record is None:
        return
    sides = record["bound"]
    eps = np.array([s["eps"] for s in sides])

    def rise(name: str) -> np.ndarray:
        values = [np.nan if s[name] is None else s[name] - s["standard_loss"] for s in sides]
        return np.array(values) / eps

    low, high, left = rise("right_lower"), rise("right_upper"), rise("nfm_loss")
    ax.fill_between(eps, low, high, color=style.ORANGE, alpha=0.45, lw=0)
    ax.plot(eps, low, color=style.ORANGE, lw=1.0)
    ax.plot(eps, high, color=style.ORANGE, lw=1.0)
    ax.plot(eps, left, color=style.BLUE, lw=1.2)
    for side, e, value in zip(sides, eps, left, strict=True):
        ax.plot(e, value, VERDICTS[side["verdict"]], color=style.BLUE, ms=SIZES[side["verdict"]], mec="none")
    ax.set(xscale="log", yscale="log")
    ax.set_xticks([0.05, 0.2, 1.0], ["0.05", "0.2", "1"])
    ax.minorticks_off()


def draw_radii(records: list[dict]) -> Figure:
    """Implied radii (at ε = 1), certified radii and flip radii per scheme: median, and the middle half of all samples.

    Args:
        records: the records of the study `bounds`.
    """
    networks, schemes = _networks(records), _schemes(records)
    with style.style():
        figure = Figure(figsize=(0.9 + 2.3 * max(len(networks), 2), 3.4), layout="constrained")
        axes = figure.subplots(1, len(networks), squeeze=False, sharey=True)[0]
        for ax, (model, classes) in zip(axes, networks, strict=True):
            for position, scheme in enumerate(schemes):
                some = [r for r in records if (r["model"], r["classes"], r["scheme"]) == (model, classes, scheme)]
                for k, (name, (_, color, marker)) in enumerate(RADII.items()):
                    values = [np.inf if v is None else v for r in some for v in r["points"][name]]
                    if not values:
                        continue
                    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75], method="nearest")
                    y = position + 0.17 * (k - 1.5)
                    ax.plot([low, high], [y, y], color=color, lw=1.6, alpha=0.7)
                    ax.plot(middle, y, marker, color=color, ms=4.8, mec="none")
            ax.set(xscale="log", title=_title(model, classes), xlabel=r"$\ell_2$ radius")
            ax.set_xticks([0.1, 0.2, 0.5, 1, 2, 4], ["0.1", "0.2", "0.5", "1", "2", "4"])
            ax.minorticks_off()
        axes[0].set_yticks(range(len(schemes)), [SCHEME_TITLES[s] for s in schemes])
        axes[0].invert_yaxis()
        handles = [Line2D([], [], color=c, marker=m, ms=5, label=label) for label, c, m in RADII.values()]
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    return figure


def make(source: Path = RESULTS / "bounds.jsonl", out: Path = style.OUT) -> list[Path]:
    """Draw both figures from a file of records and write them; returns the files."""
    records = read_lines(source)
    return [*style.save(draw_sides(records), "bounds", out), *style.save(draw_radii(records), "radii", out)]
