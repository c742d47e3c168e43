"""Claim: what the regularizers penalise sits on few pixels, directions and images; training with mixing spreads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from experiments.studies.maps import RegularizerMaps, digits_maps

from . import style

#: How the networks are called, with color and marker.
TITLES = {"erm": "ERM", "mixup": "Mixup", "nfm": "NFM"}
COLORS = {"erm": style.INK, "mixup": style.BLUE, "nfm": style.ORANGE}
MARKERS = {"erm": "x", "mixup": "o", "nfm": "s"}
KINDS = {"add": "additive", "mult": "multiplicative"}
SIGNED = "PuOr_r"
#: Terms whose distribution over the images is shown.
CARRIED = {"R1": "$R_1$", "R2": "$R_2$", "R2_add": r"$R_2^{\mathrm{add}}$"}

Maps = Mapping[str, RegularizerMaps]


def _plane(values: torch.Tensor) -> np.ndarray:
    """`(C, H, W)` summed over the channels."""
    return values.sum(0).numpy()


def total_map(one: RegularizerMaps, kind: str) -> torch.Tensor:
    """R2 + R3 of a kind of noise by image and pixel, `(n, C, H, W)`."""
    return one.pixels[f"R2_{kind}"] + one.pixels[f"R3_{kind}"]


def _show(ax, values: np.ndarray, size: float):
    ax.set(xticks=[], yticks=[])
    ax.grid(visible=False)
    return ax.imshow(values, cmap=SIGNED, vmin=-size, vmax=size)


def _picture(ax, image: torch.Tensor) -> None:
    """One channel in grey, three in color, stretched to the range of the image."""
    ax.set(xticks=[], yticks=[])
    ax.grid(visible=False)
    spread = (image - image.min()) / (image.max() - image.min()).clamp_min(1e-12)
    pixels = spread[0] if len(image) == 1 else spread.permute(1, 2, 0)
    ax.imshow(pixels.numpy(), cmap="gray_r", vmin=0, vmax=1)


def draw_pixels(maps: Maps) -> Figure:
    """Mean over the images of both noise terms by pixel, a column for each network, one scale in each row."""
    with style.style():
        figure = Figure(figsize=(7.4, 4.7), layout="constrained")
        axes = figure.subplots(len(KINDS), len(maps), squeeze=False)
        for row, (kind, title) in zip(axes, KINDS.items(), strict=True):
            means = {scheme: total_map(one, kind).mean(0) for scheme, one in maps.items()}
            size = max(float(np.abs(_plane(m)).max()) for m in means.values())
            for ax, (scheme, mean) in zip(row, means.items(), strict=True):
                shown = _show(ax, _plane(mean), size)
                ax.set_xlabel(f"sum {float(mean.sum()):+.3f}")
                if kind == "add":
                    ax.set_title(TITLES[scheme])
            row[0].set_ylabel(f"{title} noise")
            figure.colorbar(shown, ax=list(row), shrink=0.8, format="%.0e")
    return figure


def draw_images(maps: Maps, chosen: Sequence[int]) -> Figure:
    """The additive term by pixel for some images, a column for each network, one scale in each row.

    Args:
        maps: by network, of the same images.
        chosen: positions of the images.
    """
    first = next(iter(maps.values()))
    with style.style():
        figure = Figure(figsize=(6.8, 0.4 + 1.55 * len(chosen)), layout="constrained")
        axes = figure.subplots(len(chosen), len(maps) + 1, squeeze=False)
        for row, i in zip(axes, chosen, strict=True):
            _picture(row[0], first.images[i])
            row[0].set_ylabel(f"label {int(first.labels[i])}")
            found = {scheme: total_map(one, "add")[i] for scheme, one in maps.items()}
            size = max(float(np.abs(_plane(m)).max()) for m in found.values())
            for ax, (scheme, values) in zip(row[1:], found.items(), strict=True):
                _show(ax, _plane(values), size)
                ax.set_xlabel(f"sum {float(values.sum()):+.3f}, loss {float(maps[scheme].losses[i]):.2f}", fontsize=8)
        for ax, title in zip(axes[0], ["image", *(TITLES[s] for s in maps)], strict=True):
            ax.set_title(title)
    return figure


def draw_directions(maps: Maps, count: int = 8, shown: int = 24) -> Figure:
    """Leading eigen-directions of the data, and what each contributes to R2 and R3, by network.

    Args:
        maps: by network, of the same images.
        count: eigen-directions drawn.
        shown: contributions drawn.
    """
    first = next(iter(maps.values()))
    with style.style():
        figure = Figure(figsize=(9, 4.6), layout="constrained")
        top, bottom = figure.subfigures(2, 1, height_ratios=(1, 2.2))
        for k, ax in enumerate(top.subplots(1, min(count, len(first.directions)))):
            direction = _plane(first.directions[k])
            _show(ax, direction, float(np.abs(direction).max()))
            ax.set_title(f"{k + 1}")
        for ax, order in zip(bottom.subplots(1, 2), ("R2", "R3"), strict=True):
            for scheme, one in maps.items():
                values = one.along[order][:shown]
                line = {"color": COLORS[scheme], "marker": MARKERS[scheme], "ms": 4, "lw": 1}
                ax.plot(range(1, len(values) + 1), values, label=TITLES[scheme], **line)
            ax.set(xlabel="eigen-direction of the data", title=f"contribution to ${order[0]}_{order[1]}$")
            ax.axhline(0, color=style.INK, lw=0.6)
        ax.legend()
    return figure


def shares(values: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Share of the images, largest absolute contribution first, and the share of the sum of those that they carry.

    Example:
        >>> fraction, carried = shares(torch.tensor([1.0, -3.0]))
        >>> fraction.tolist(), carried.tolist()
        ([0.0, 0.5, 1.0], [0.0, 0.75, 1.0])
    """
    ordered = np.sort(values.abs().numpy())[::-1]
    carried = np.concatenate([[0.0], np.cumsum(ordered) / max(ordered.sum(), np.finfo(float).tiny)])
    return np.arange(len(ordered) + 1) / len(ordered), carried


def draw_shares(maps: Maps) -> Figure:
    """How much of a term the images with its largest contributions carry, by network."""
    with style.style():
        figure = Figure(figsize=(9, 3.3), layout="constrained")
        for ax, (name, title) in zip(figure.subplots(1, len(CARRIED), sharey=True), CARRIED.items(), strict=True):
            for k, (scheme, one) in enumerate(maps.items()):
                dash = (":", "--", "-")[k % 3]
                ax.plot(*shares(one.by_image[name]), dash, color=COLORS[scheme], label=TITLES[scheme])
            ax.set(title=title, xlabel="share of the images", ylim=(0, 1.02), xlim=(0, 1))
            for axis in (ax.xaxis, ax.yaxis):
                axis.set_major_formatter(PercentFormatter(1, decimals=0))
        figure.axes[0].set_ylabel("share of the term")
        figure.axes[0].legend()
    return figure


def draw_carriers(maps: Maps, count: int = 7) -> Figure:
    """The images with the largest contributions to R1 and R2, by network.

    Args:
        maps: by network, of the same images.
        count: images of each.
    """
    rows = [(scheme, name) for scheme in maps for name in ("R1", "R2")]
    count = min(count, *(len(one.images) for one in maps.values()), count)
    with style.style():
        figure = Figure(figsize=(8, 1.15 * len(rows)), layout="constrained")
        for line, (scheme, name) in zip(figure.subplots(len(rows), count, squeeze=False), rows, strict=True):
            one = maps[scheme]
            order = one.by_image[name].abs().argsort(descending=True)
            for ax, i in zip(line, order[:count].tolist(), strict=True):
                _picture(ax, one.images[i])
                ax.set_xlabel(f"{int(one.labels[i])}: {float(one.by_image[name][i]):+.2f}", fontsize=8)
            line[0].set_ylabel(f"{TITLES[scheme]}\n{CARRIED[name]}", rotation=0, ha="right", va="center")
    return figure


def examples(maps: Maps) -> list[int]:
    """A few images to look at: where the additive term is largest for each network, without repetition."""
    found = [int(total_map(one, "add").flatten(1).sum(1).argmax()) for one in maps.values()]
    first = next(iter(maps.values()))
    typical = int((first.losses - first.losses.median()).abs().argmin())
    return list(dict.fromkeys([typical, *found]))


def make(out: Path = style.OUT) -> list[Path]:
    """Train the networks if they are not in the cache, draw all figures and write them; returns the files."""
    maps = digits_maps()
    figures = {
        "maps_pixels": draw_pixels(maps),
        "maps_images": draw_images(maps, examples(maps)),
        "maps_directions": draw_directions(maps),
        "maps_shares": draw_shares(maps),
        "maps_carriers": draw_carriers(maps),
    }
    return [path for name, figure in figures.items() for path in style.save(figure, name, out)]
