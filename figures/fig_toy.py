"""Claim: what mixing and noise do to the decision boundary on the toy problems of both papers can be seen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from torch import nn

from experiments.data.toy_sets import ToyData
from experiments.recipes import Recipe
from experiments.record.ledger import LEDGER, read
from experiments.runner import load_training_data, runs_folder
from experiments.studies.study import TITLES, Study, study
from experiments.tables import load_published
from experiments.training import Execution, train

from . import style

PROBLEMS = {"nfm-figure-toy": 4, "noisymix-figure4": 3}
#: Of the networks that are drawn.
SEED = 1
_COLUMNS, _POINTS = PROBLEMS, 161
_COLORS = LinearSegmentedColormap.from_list("classes", (style.ORANGE, "#ffffff", style.BLUE))


def trained(recipe: Recipe, *, seed: int = SEED, runs: Path | None = None) -> tuple[nn.Module, ToyData]:
    """A network of a toy problem, from the folder of runs or trained now in a second, and its data.

    Args:
        recipe: the recipe of a toy problem.
        seed: the seed of the training.
        runs: folder of checkpoints; `None` for the usual one.
    """
    source, data, classes = load_training_data(recipe.training)
    execution = Execution(device="cpu", progress=False)
    done = train(recipe.training, source, classes=classes, seed=seed, runs=runs or runs_folder(), execution=execution)
    return done.model, data


def probability(model: nn.Module, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Probability of class 1 on a grid.

    Args:
        model: two inputs, two logits.
        x: first coordinates `(m,)`.
        y: second coordinates `(n,)`.

    Returns:
        `(n, m)`.
    """
    points = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    with torch.inference_mode():
        found = model(torch.from_numpy(points.astype(np.float32))).softmax(1)[:, 1]
    return found.double().numpy().reshape(len(y), len(x))


def caption(one: Study, scheme: str) -> str:
    """Accuracy of ours, mean over the seeds with the smallest and the largest, and the paper's."""
    printed = load_published().get(one.name, scheme, "accuracy")
    ours = one.summary(scheme, "clean")
    words = "not run" if ours is None else f"{ours.mean:.1f} % ({ours.min:.1f} to {ours.max:.1f})"
    return f"ours {words}\npaper {'–' if printed is None else f'{printed.text} %'}"


def draw(one: Study, networks: Mapping[str, tuple[nn.Module, ToyData]]) -> Figure:
    """Probability of class 1 over the plane with the test points, for each scheme.

    Args:
        one: the study of the problem.
        networks: trained network and data by scheme.
    """
    columns = _COLUMNS[one.name]
    rows = -(-len(one.recipes) // columns)
    with style.style():
        figure = Figure(figsize=(0.3 + 2.25 * columns, 0.5 + 2.75 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).flat
        for ax, scheme in zip(axes, one.recipes, strict=False):
            ax.set(title=TITLES.get(scheme, scheme), xticks=[], yticks=[])
            ax.set_xlabel(caption(one, scheme), fontsize=8.5)
            ax.grid(visible=False)
            ax.spines[:].set_visible(False)
            if scheme in networks:
                _panel(ax, *networks[scheme])
        for ax in list(axes)[len(one.recipes) :]:
            ax.set_axis_off()
    return figure


def axis(data: ToyData, count: int = _POINTS) -> np.ndarray:
    """Coordinates of a grid that shows all test points, `(count,)`, the same in both directions.

    Args:
        data: the data of a toy problem.
        count: points on a side.
    """
    reach = 1.08 * float(np.abs(data.x_test.numpy()).max())
    return np.linspace(-reach, reach, count)


def _panel(ax, model: nn.Module, data: ToyData) -> None:
    grid = axis(data)
    show(ax, probability(model, grid, grid), grid, data)


def show(ax, map_: np.ndarray, grid: np.ndarray, data: ToyData, *, levels: int = 256) -> None:
    """Draw a map of probabilities with its boundary and the test points.

    Args:
        ax: where.
        map_: `(n, n)`.
        grid: coordinates in both directions, `(n,)`.
        data: the data of the problem.
        levels: number of colors of the map.
    """
    colors = _COLORS.resampled(levels)
    points, labels = data.x_test.numpy(), data.y_test.numpy()
    extent = (grid[0], grid[-1], grid[0], grid[-1])
    ax.imshow(map_, origin="lower", extent=extent, cmap=colors, vmin=0, vmax=1, alpha=0.75, interpolation="bilinear")
    if map_.min() < 0.5 < map_.max():  # without a boundary there is nothing to draw
        ax.contour(grid, grid, map_, levels=[0.5], colors="black", linewidths=1.1)
    for label, color, marker in ((0, style.ORANGE, "s"), (1, style.BLUE, "o")):
        some = points[labels == label]
        ax.plot(*some.T, marker, color=color, ms=3.0, mec="white", mew=0.4)


def networks_of(one: Study, *, runs: Path | None = None) -> dict[str, tuple[nn.Module, ToyData]]:
    """The networks of a problem that the ledger knows, trained again where the folder of runs lacks them."""
    return {scheme: trained(one.recipes[scheme], runs=runs) for scheme in one.run}


def make(source: Path = LEDGER, out: Path = style.OUT) -> list[Path]:
    """Draw a figure for each toy problem in the ledger and write them; returns the files."""
    studies = [study(read(source), name) for name in PROBLEMS]
    return [file for one in studies if one.run for file in style.save(draw(one, networks_of(one)), one.name, out)]
