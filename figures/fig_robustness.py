"""Claim: what mixing and noise do for accuracy shows under noise and attacks, and depends on which and how strong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from experiments.record.ledger import LEDGER, read
from experiments.studies.study import STUDIES, TITLES, Study, study

from . import style

#: Rows of the figure; the baseline stands in each. At most as many schemes as there are colors.
FAMILIES = {
    "mixing": ("mixup", "manifold_mixup", "noisy_mixup", "nfm", "taylor_nfm"),
    "patches, labels, noise, attacks": ("baseline_noise", "label_smoothing", "cutmix", "puzzlemix", "adversarial"),
    "augmentation": ("autoaugment", "augmix_no_jsd", "augmix", "noisymix", "taylor_noisymix"),
}
#: A fifth color with the same contrast to light and dark.
OLIVE = "#8C7A00"
COLORS = (style.BLUE, style.PINK, OLIVE, style.ORANGE, style.GREEN)
MARKERS = ("o", "s", "^", "D", "v")
KINDS = {
    "white_noise": "white noise, $\\sigma$",
    "salt_pepper": "salt and pepper, $\\gamma$",
    "pgd_linf": "PGD, $\\ell_\\infty$ radius",
}


def curve(one: Study, scheme: str, kind: str) -> list[tuple[float, float, float, float]]:
    """Level, mean, smallest and largest accuracy in percent; level 0 is the clean test set.

    Args:
        one: a study.
        scheme: a scheme of the study.
        kind: first part of the keys, such as `"white_noise"`.
    """
    keys = [(0.0, "clean"), *((float(level), f"{kind}/{level}") for level in one.levels(kind))]
    found = [(level, one.summary(scheme, key)) for level, key in keys]
    points = [(level, s.mean, s.min, s.max) for level, s in found if s is not None]
    return points if len(points) > 1 else []


def draw(one: Study, families: Mapping[str, Sequence[str]] = FAMILIES) -> Figure:
    """Accuracy against the level of noise and the radius of an attack: mean over the seeds, smallest to largest.

    Args:
        one: a study; schemes without results are left out.
        families: the schemes of each row, the baseline stands in all; at most as many as there are colors.
    """
    rows = {name: [s for s in family if s in one.run] for name, family in families.items()}
    rows = {name: family for name, family in rows.items() if family} or {"baseline": []}
    with style.style():
        figure = Figure(figsize=(10.2, 0.7 + 2.5 * len(rows)), layout="constrained")
        axes = figure.subplots(len(rows), len(KINDS), squeeze=False, sharex="col", sharey="col")
        for line, (name, family) in zip(axes, rows.items(), strict=True):
            for ax, kind in zip(line, KINDS, strict=True):
                _curve(ax, one, "baseline", kind, style.INK, "x", "--")
                for scheme in family:
                    place = list(families[name]).index(scheme)
                    _curve(ax, one, scheme, kind, COLORS[place], MARKERS[place], "-")
            line[0].set_ylabel("accuracy, %")
            # The legend of the row; a study may lack the first kind
            handles = max((ax.get_legend_handles_labels() for ax in line), key=lambda pair: len(pair[0]))
            line[-1].legend(*handles, loc="center left", bbox_to_anchor=(1.02, 0.5), title=None)
        for ax, title in zip(axes[-1], KINDS.values(), strict=True):
            ax.set_xlabel(title)
    return figure


def _curve(ax, one: Study, scheme: str, kind: str, color: str, marker: str, dashes: str) -> None:
    points = curve(one, scheme, kind)
    if not points:
        return
    level, mean, low, high = zip(*points, strict=True)
    ax.fill_between(level, low, high, color=color, alpha=0.14, lw=0)
    ax.plot(level, mean, dashes, color=color, marker=marker, ms=4.2, label=TITLES.get(scheme, scheme))


def make(source: Path = LEDGER, out: Path = style.OUT) -> list[Path]:
    """Draw a figure for each study in the ledger and write them; returns the files."""
    studies = [study(read(source), name) for name in STUDIES]
    return [file for one in studies if one.run for file in style.save(draw(one), f"robustness_{one.name}", out)]
