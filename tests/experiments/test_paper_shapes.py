"""One step of every training of the papers at its real size: 32 or 224 pixels, every eligible layer, every grid.

The batches have two images and the networks few channels, as neither changes which shapes meet in a step. The networks
at their full width take one step each in a test of its own.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from experiments.augment import puzzlemix
from experiments.models import build_model, eligible_layers
from experiments.recipes import Training, select_recipes
from experiments.schemes import build_step
from experiments.training import MemorySource
from experiments.training.batches import Views
from experiments.training.optimization import build_optimiser

CLASSES = {"imagenet": 1000, "cifar10": 10, "cifar100": 100}
#: The narrowest networks with all layers. Fewer than 8 channels are not safe in every build of PyTorch.
NARROW = {
    "preactresnet18": {"width": 8},
    "wideresnet18": {"width": 8},
    "wideresnet28": {"widen": 1},
    "resnet50": {"width": 8},
    "vit": {"dim": 16},
}
PAPER = select_recipes(size="paper")


def side(training):
    return 224 if training.data == "imagenet" or training.image_size else 32


def kind(training: Training) -> Training:
    """The training without what changes no shape, so that equal ones are checked once."""
    scheme = replace(training.scheme, name="any", probability=1.0)  # so that every batch is cut
    options = {**dict(training.model_options), **NARROW[training.model]}
    return replace(
        training, scheme=scheme, model_options=tuple(sorted(options.items())), data_options=(), pretrained="",
        epochs=1, batch_size=2, schedule="constant", milestones=(), final_rate=0.0, learning_rate=1e-3, nesterov=False,
        weight_decay=0.0, optimiser="sgd",
    )  # fmt: skip


KINDS = {}
for recipe in PAPER:
    KINDS.setdefault(kind(recipe.training), []).append(recipe.name)


def source(training):
    """Two photographs of noise: of 32 pixels, or larger than 224 and not square."""
    rng = np.random.default_rng(0)
    shape = (300, 260) if training.data == "imagenet" else (32, 32)
    images = rng.integers(0, 256, (2, *shape, 3), dtype=np.uint8)
    return MemorySource(images, np.array([0, CLASSES[training.data] - 1]), (0.5,) * 3, (0.25,) * 3)


def one_step(training: Training, model: nn.Module, layers, seed: int = 0) -> torch.Tensor:
    """A step of the training from bytes to new weights. Returns the batch."""
    place = source(training)
    x, y = Views(place, training, 0, 0)[np.array([0, 1])]
    step = build_step(
        training.scheme, model, layers=layers, classes=CLASSES[training.data], mean=place.mean, std=place.std,
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip
    optimiser = build_optimiser(training, model)
    try:
        for _ in range(min(step.repeats, 2)):
            optimiser.zero_grad()
            loss = step.loss(x, y)
            loss.backward()
            step.after_backward()
            optimiser.step()
    finally:
        step.close()
    assert bool(torch.isfinite(loss.detach()))
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters())
    return x


def first_of_its_kind() -> set[Training]:
    """The first training of each network, and of each scheme for images of each size."""
    seen = {}
    for training in KINDS:
        seen.setdefault(training.model, training)
        seen.setdefault((training.scheme, training.views, side(training)), training)
    return set(seen.values())


FIRST = first_of_its_kind()


@pytest.mark.parametrize(
    "training",
    [pytest.param(t, id=names[0], marks=[] if t in FIRST else pytest.mark.slow) for t, names in KINDS.items()],
)
def test_a_step_at_real_size_at_every_layer_and_grid(training, monkeypatch):
    scheme = training.scheme
    model = build_model(training.model, CLASSES[training.data], **dict(training.model_options)).train()
    layers = eligible_layers(training.model) if scheme.layers == "eligible" else ("",)
    grids = puzzlemix.options_for(side(training)).grids if scheme.patch == "puzzlemix" else (0,)
    for layer in layers:
        for grid in grids:
            if grid:
                only = replace(puzzlemix.options_for(side(training)), grids=(grid,))
                monkeypatch.setattr(puzzlemix, "options_for", lambda _, only=only: only)
            x = one_step(training, model, (layer,))
            assert x.shape == (2 * scheme.views, 3, side(training), side(training))


def test_every_training_of_the_papers_is_among_them():
    assert sorted(name for names in KINDS.values() for name in names) == sorted(r.name for r in PAPER)
    assert {side(t) for t in KINDS} == {32, 224}


@pytest.mark.slow
@pytest.mark.parametrize("name", NARROW)
def test_networks_of_full_width_take_a_step(name):
    """NFM at every layer of the network of the papers; a batch of two images."""
    training = next(r.training for r in PAPER if r.training.model == name and r.training.scheme.name == "nfm")
    model = build_model(name, CLASSES[training.data], **dict(training.model_options)).train()
    for layer in eligible_layers(name):
        one_step(training, model, (layer,))
