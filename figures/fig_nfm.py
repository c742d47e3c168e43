"""Noisy Feature Mixup as a picture: two images, their mix, and the noise, at the input and in a feature map."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

import nfm_theory as nt
from experiments.recipes import get_recipe
from experiments.runner import load_training_data
from experiments.training import Execution, train

from . import style

#: The papers' network at an eighth of its width, and the layer whose feature map is shown.
RECIPE, LAYER = "fashion-preact/baseline", "layer1"
SAMPLES, SEED = 2048, 1
#: What is mixed: places of two training images, an ankle boot and a T-shirt, their names, and λ.
IMAGES, NAMES, WEIGHT = (0, 1), ("boot", "shirt"), 0.6
LAW = nt.Law(alpha=1.0, add_noise=0.4, mult_noise=0.2)
COLUMNS = ("$x$", "$x'$", "mixed", "times noise", "plus noise")


def steps(first: Tensor, second: Tensor, *, generator: torch.Generator) -> list[Tensor]:
    """Two tensors, their mix, the mix with multiplicative noise, and with additive noise as well.

    Args:
        first: image or features g(x).
        second: those of the partner, of the same shape.
        generator: random generator of the noise.
    """
    mixed = WEIGHT * first + (1 - WEIGHT) * second
    mult, add = (torch.randn(first.shape, generator=generator, dtype=first.dtype) for _ in range(2))
    scaled = (1 + LAW.mult_noise * mult) * mixed
    return [first, second, mixed, scaled, scaled + LAW.add_noise * add]


@cache
def rows() -> tuple[list[Tensor], list[Tensor]]:
    """The steps at the input, and those in one channel of a feature map of a network that is trained for seconds."""
    training = replace(get_recipe(RECIPE).training, samples=SAMPLES, epochs=1, precision="float32")
    source, data, classes = load_training_data(training)
    with tempfile.TemporaryDirectory() as folder:
        execution = Execution(device="cpu", progress=False, test_images=0)
        trained = train(training, source, classes=classes, seed=SEED, runs=Path(folder), execution=execution)
    assert trained is not None
    x = data.normalize(data.train.images[list(IMAGES)])
    kept: list[Tensor] = []
    handle = trained.model.get_submodule(LAYER).register_forward_hook(lambda *parts: kept.append(parts[-1]))
    with torch.no_grad():
        trained.model(x)
    handle.remove()
    channel = int(kept[0].var((0, 2, 3)).argmax())
    features = kept[0][:, channel]
    generator = torch.Generator().manual_seed(SEED)
    return steps(x[0, 0], x[1, 0], generator=generator), steps(features[0], features[1], generator=generator)


def draw(shown: Sequence[Sequence[Tensor]]) -> Figure:
    """The picture.

    Args:
        shown: the steps at the input and in a feature map.
    """
    with style.style():
        figure = Figure(figsize=(7.4, 3.5), layout="constrained")
        axes = figure.subplots(2, len(COLUMNS))
        for line, tensors, name in zip(axes, shown, ("at the input", "in a feature map"), strict=True):
            low, high = float(tensors[-1].min()), float(tensors[-1].max())
            for ax, tensor in zip(line, tensors, strict=True):
                ax.imshow(tensor.numpy(), cmap="gray_r", vmin=low, vmax=high)
                ax.set(xticks=[], yticks=[])
                ax.grid(visible=False)
            line[0].set_ylabel(name)
        for ax, title in zip(axes[0], COLUMNS, strict=True):
            ax.set_title(title)
        mixed = " + ".join(f"{100 * w:.0f} % {name}" for w, name in zip((WEIGHT, 1 - WEIGHT), NAMES, strict=True))
        for ax, label in zip(axes[1], (*NAMES, mixed, "the same", "the same"), strict=True):
            ax.set_xlabel(f"label: {label}", fontsize=8)
    return figure


def make(out: Path = style.OUT) -> list[Path]:
    """Train the network, draw the picture and write it; returns the files."""
    return style.save(draw(rows()), "nfm", out)
