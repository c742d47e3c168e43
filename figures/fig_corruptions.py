"""Claims: robustness to corruptions differs by their category; calibration and stability do not follow accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from experiments.record.ledger import LEDGER, read
from experiments.studies.study import STUDIES, TITLES, Study, lower_is_better, study

from . import style

CORRUPTED = {
    "corrupted/category/noise": "noise",
    "corrupted/category/blur": "blur",
    "corrupted/category/weather": "weather",
    "corrupted/category/digital": "digital",
    "corrupted/mean": "all 15",
}
STABLE = {
    "ece": "ECE, %",
    "rms_calibration_error": "RMS calibration error, %",
    "aurra": "AURRA, %",
    "flip_probability/mean": "flip probability, %",
}


def draw(one: Study, metrics: Mapping[str, str]) -> Figure:
    """A bar for each scheme and metric from the baseline to the scheme's mean over the seeds; its line is their range.

    Bars begin at the baseline, so that their length is a gain or a loss wherever the axis begins.

    Args:
        one: a study; schemes without results are left out, and metrics that nobody has.
        metrics: title of the panel by key.
    """
    shown = [key for key in metrics if any(one.values(scheme, key) for scheme in one.run)]
    schemes = [scheme for scheme in one.run if any(one.values(scheme, key) for key in shown)]
    with style.style():
        figure = Figure(figsize=(1.6 + 1.75 * max(len(shown), 2), 0.8 + 0.24 * max(len(schemes), 4)))
        figure.set_layout_engine("constrained")
        axes = figure.subplots(1, max(len(shown), 1), squeeze=False, sharey=True)[0]
        for ax, key in zip(axes, shown, strict=False):
            _panel(ax, one, schemes, key)
            ax.set_title(metrics[key])
        axes[0].set_yticks(range(len(schemes)), [TITLES.get(scheme, scheme) for scheme in schemes])
        axes[0].invert_yaxis()
    return figure


def _panel(ax, one: Study, schemes: list[str], key: str) -> None:
    found = {scheme: one.summary(scheme, key) for scheme in schemes}
    some = {place: found[scheme] for place, scheme in enumerate(schemes) if found[scheme] is not None}
    base = found.get("baseline")
    for place, summary in some.items():
        gain = 0.0 if base is None else summary.mean - base.mean
        good = gain <= 0 if lower_is_better(key) else gain >= 0
        color = style.BLUE if good else style.ORANGE
        ax.barh(place, gain, left=summary.mean - gain, color=color, alpha=0.45, height=0.6)
        ax.plot([summary.min, summary.max], [place, place], color=color, lw=1.6)
        ax.plot(summary.mean, place, "o" if good else "s", color=color, ms=4.6, mec="none")
    if base is not None:
        ax.axvline(base.mean, color=style.INK, ls="--", lw=1.0)
    means = [s.mean for s in some.values()]
    room = 0.3 * (max(means) - min(means)) or 1.0
    # One network that came to nothing must not squeeze all others: its range is cut at the frame
    ax.set_xlim(min(means) - room, max(means) + room)
    ax.grid(axis="y", visible=False)


def make(source: Path = LEDGER, out: Path = style.OUT) -> list[Path]:
    """Draw both figures for each study in the ledger and write them; returns the files."""
    written = []
    for one in (study(read(source), name) for name in STUDIES):
        for name, metrics in (("corruptions", CORRUPTED), ("stability", STABLE)):
            if any(one.values(scheme, key) for scheme in one.run for key in metrics):
                written += style.save(draw(one, metrics), f"{name}_{one.name}", out)
    return written
