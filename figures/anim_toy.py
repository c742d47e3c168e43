"""Claim: mixing and noise smooth the decision boundary of the toy problems all along the training.

One set of frames, drawn twice: as an animated image, and as data of the player in the book (`_static/toy-player.js`).
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from experiments.data.toy_sets import ToyData
from experiments.recipes import Recipe
from experiments.record.ledger import LEDGER, read
from experiments.runner import load_training_data, runs_folder
from experiments.studies.study import TITLES, Study, study
from experiments.training import Execution, networks_along

from . import embed, fig_toy, style

#: Points on a side of the maps.
SIDE = 48
NAMES = {"nfm-figure-toy": "two rings (NFM)", "noisymix-figure4": "a U with a noisy edge (NoisyMix)"}
#: Milliseconds for which the animated image shows a frame, and its last one.
_FRAME, _REST = 160, 3000
#: Few colors make small files: of the map, and of the whole image.
_LEVELS, _COLORS = 17, 32


@dataclass(frozen=True)
class Film:
    """How the network of a scheme changed while it was trained.

    Attributes:
        epochs: finished epochs of each frame, `(frames,)`.
        maps: probability of class 1 in units of 1/255, uint8, `(frames, SIDE, SIDE)`; rows go up.
        accuracy: share of test points classified correctly, by frame.
    """

    epochs: tuple[int, ...]
    maps: np.ndarray
    accuracy: tuple[float, ...]


def film(recipe: Recipe, *, seed: int = fig_toy.SEED, runs: Path | None = None) -> tuple[Film, ToyData]:
    """The frames of a recipe: the networks that were kept when it was trained, else it is trained now.

    Args:
        recipe: the recipe of a toy problem.
        seed: the seed of the training.
        runs: folder where the weights are kept; `None` for the usual one.
    """
    training = recipe.training
    source, data, classes = load_training_data(training)
    networks = networks_along(
        training, source, classes=classes, seed=seed, runs=runs or runs_folder(),
        execution=Execution(device="cpu", progress=False),
    )  # fmt: skip
    grid = fig_toy.axis(data, SIDE)
    maps = [np.rint(255 * fig_toy.probability(model, grid, grid)).astype(np.uint8) for model in networks.values()]
    with torch.inference_mode():
        right = [(model(data.x_test).argmax(1) == data.y_test).double().mean() for model in networks.values()]
    return Film(tuple(networks), np.stack(maps), tuple(map(float, right))), data


def films(one: Study, *, runs: Path | None = None) -> tuple[dict[str, Film], ToyData]:
    """The frames of every scheme of a problem that the ledger knows, and the data.

    Args:
        one: the study of the problem.
        runs: the same as in `film`.

    Raises:
        ValueError: if the ledger knows none.
    """
    if not one.run:
        raise ValueError(
            f"{one.name}: expected results in the ledger; `python -m experiments sweep '{one.name}/*'` makes them."
        )
    found = {scheme: film(one.recipes[scheme], runs=runs) for scheme in one.run}
    return {scheme: frames for scheme, (frames, _) in found.items()}, next(iter(found.values()))[1]


# The image --------------------------------------------------------------------------------------------------------


def frame(found: Mapping[str, Film], data: ToyData, number: int, *, columns: int = 4) -> Figure:
    """One frame: a panel for each scheme, the accuracy below.

    Args:
        found: by scheme.
        data: the data of the problem.
        number: the number of the frame.
        columns: panels in a row.
    """
    rows = -(-len(found) // columns)
    grid = fig_toy.axis(data, SIDE)
    with style.style():
        figure = Figure(figsize=(1.55 * columns, 0.4 + 1.9 * rows), layout="constrained", facecolor="white")
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for ax, (scheme, one) in zip(axes, found.items(), strict=False):
            fig_toy.show(ax, one.maps[number] / 255, grid, data, levels=_LEVELS)
            ax.set(xticks=[], yticks=[])
            ax.set_title(TITLES.get(scheme, scheme), color="black", fontsize=9)
            ax.set_xlabel(f"{100 * one.accuracy[number]:.1f} %", color="black", fontsize=9)
            ax.grid(visible=False)
            ax.spines[:].set_visible(False)
        for ax in axes[len(found) :]:
            ax.set_axis_off()
        epoch = next(iter(found.values())).epochs[number]
        figure.suptitle(f"epoch {epoch}", color="black", fontsize=10)
    return figure


def still(found: Mapping[str, Film], data: ToyData) -> bytes:
    """The last frame as a PNG."""
    return embed.small_png(frame(found, data, -1))


def save(found: Mapping[str, Film], data: ToyData, path: Path) -> Path:
    """Write all frames as an animated PNG, which goes on without end and rests at the last epoch.

    Where nothing moves, in print or in an old reader, it is the last frame.

    Args:
        found: by scheme.
        data: the data of the problem.
        path: file.
    """
    count = len(next(iter(found.values())).epochs)
    frames = [embed.pixels(frame(found, data, number), dpi=80) for number in range(count)]
    palette = frames[-1].quantize(_COLORS, dither=Image.Dither.NONE)  # one for all, or colors would flicker
    frames = [one.quantize(palette=palette, dither=Image.Dither.NONE) for one in frames]
    path.parent.mkdir(parents=True, exist_ok=True)
    frames[-1].save(
        path, save_all=True, append_images=frames, default_image=True, loop=0, optimize=True,
        duration=[_FRAME] * (count - 1) + [_REST],
    )  # fmt: skip
    return path


# The player -------------------------------------------------------------------------------------------------------


def sprite(found: Mapping[str, Film]) -> bytes:
    """All maps as one grey PNG: a column for each scheme, a row for each frame, the top of the plane above."""
    tiles = np.stack([one.maps[:, ::-1] for one in found.values()], axis=2)  # frames, rows, schemes, columns
    content = io.BytesIO()
    Image.fromarray(tiles.reshape(tiles.shape[0] * SIDE, -1)).save(content, "png", optimize=True)
    return content.getvalue()


def player(name: str, found: Mapping[str, Film], data: ToyData) -> str:
    """HTML of the player: the last frame as an image, which the script replaces, and the data for it.

    Args:
        name: the name of the problem, in words.
        found: by scheme.
        data: the data of the problem.
    """
    first = next(iter(found.values()))
    content = {
        "name": name,
        "epochs": first.epochs,
        "side": SIDE,
        "reach": float(fig_toy.axis(data)[-1]),
        "schemes": [
            {"title": TITLES.get(scheme, scheme), "accuracy": [round(100 * a, 2) for a in one.accuracy]}
            for scheme, one in found.items()
        ],
        "points": [
            [round(a, 3), round(b, 3), c] for (a, b), c in zip(data.x_test.tolist(), data.y_test.tolist(), strict=True)
        ],
        "maps": embed.data_url(sprite(found)),
    }
    titles = ", ".join(scheme["title"] for scheme in content["schemes"])
    text = f"{name}: probability of class 1 over the plane after {first.epochs[-1]} epochs, for {titles}"
    return embed.widget("toy-player", still(found, data), text, content)


def make(source: Path = LEDGER, out: Path = style.OUT) -> list[Path]:
    """Write an animated image for each toy problem in the ledger; returns the files."""
    studies = [study(read(source), name) for name in fig_toy.PROBLEMS]
    return [save(*films(one), out / f"{one.name}-training.png") for one in studies if one.run]
