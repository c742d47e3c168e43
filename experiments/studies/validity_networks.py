"""The networks of the study `validity`: residual networks, trained by recipes, and small smooth networks.

A case is one layer of one trained network. `prepare` trains the missing networks, `measured_network` loads a network
with its images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from torch import Tensor, nn

import nfm_theory as nt

from ..data.digits import load_digits
from ..models import build_model, eligible_layers
from ..recipes import Recipe, get_recipe
from ..runner import load_training_data
from ..training import Execution, run_folder, train
from ..training.checkpoint import load_checkpoint
from .networks import TrainedNetwork, accuracy, trained_network

#: The levels that the NFM paper trains with.
NOISE = {"add_noise": 0.4, "mult_noise": 0.2}
#: How NFM networks are trained.
NFM = {"alpha": 1.0, **NOISE, "noise": "released"}
LAWS: dict[str, nt.Law] = {"released": nt.Law.released(**NOISE), "normal": nt.Law(**NOISE), "mixing": nt.Law()}
#: Number of images for the expansion, of random paths from each of them, and of images for the bound.
SAMPLES, PATHS, BOUND_SAMPLES = 300, 2, 20
#: Recipes of the piecewise-linear residual networks that are measured by default.
RECIPES = tuple(f"digits/{name}" for name in ("baseline", "mixup", "manifold_mixup", "nfm", "noisymix", "taylor_nfm"))
#: The smooth networks with their layers, and how each is trained.
SMOOTH_LAYERS = {"mlp": ("", "hidden1", "hidden2"), "small_cnn": ("", "stage1", "stage2")}
SMOOTH_TRAININGS = ("baseline", "mixup", "nfm")


@dataclass(frozen=True)
class LayerCase:
    """One layer of one network.

    Attributes:
        model: name of the network.
        training: name of the training scheme.
        layer: name of the layer that is perturbed.
        recipe: name of the recipe; empty for a smooth network.
        seed: random seed of the training run.
        samples: number of training images, from the first on.
        paths: number of random paths from each image.
        runs: folder of trained recipes.
        epochs: epochs of training of a smooth network.
        bound_samples: number of images on which the bound is checked.
    """

    model: str
    training: str
    layer: str
    recipe: str = ""
    seed: int = 0
    samples: int = SAMPLES
    paths: int = PATHS
    runs: str = ""
    epochs: int = 20
    bound_samples: int = BOUND_SAMPLES


@dataclass(frozen=True)
class MeasuredNetwork:
    """A trained network with the images it is measured on.

    Attributes:
        model: network in evaluation mode, in the precision of its training.
        x: training images as the network sees them, without augmentation.
        y: labels of the images.
        data: name of the data set.
        facts: what the record says about the training.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    data: str
    facts: dict


def cases(recipes: Sequence[Recipe] | None = None, *, quick: bool = False, **options) -> list[LayerCase]:
    """The cases of the study.

    Args:
        recipes: recipes to measure; `None` for the networks trained on digits.
        quick: True for few images and one network of each kind, for tests.
        **options: other fields of `LayerCase`.
    """
    smooth = [] if recipes is not None else [(m, t) for m in SMOOTH_LAYERS for t in SMOOTH_TRAININGS]
    chosen = [get_recipe(name) for name in RECIPES] if recipes is None else list(recipes)
    if quick:
        options = {"samples": 20, "epochs": 2, "bound_samples": 5, **options}
        smooth, chosen = smooth[:1], chosen[:1]
    seed = options.pop("seed", 1)
    return [
        LayerCase(r.training.model, r.training.scheme.name, layer, r.name, seed, **options)
        for r in chosen
        for layer in eligible_layers(r.training.model)
    ] + [LayerCase(m, t, layer, **options) for m, t in smooth for layer in SMOOTH_LAYERS[m]]


def is_finished(recipe: Recipe, seed: int, runs: Path) -> bool:
    """True if the recipe has been trained with this seed."""
    return (run_folder(runs, recipe.training, seed) / "final.pt").exists()


def prepare(todo: Sequence[LayerCase]) -> None:
    """Train the missing networks before processes start, so that each is trained once.

    Raises:
        FileNotFoundError: if a recipe is missing that takes longer than those on digits.
    """
    for name, seed, runs in dict.fromkeys((c.recipe, c.seed, c.runs) for c in todo if c.recipe):
        recipe = get_recipe(name)
        if is_finished(recipe, seed, Path(runs)):
            continue
        if recipe.size != "digits":
            raise FileNotFoundError(
                f"{name} with seed {seed} is not trained in {runs}; "
                f"`python -m experiments sweep '{name}' --seeds {seed}` trains it."
            )
        source, _, classes = load_training_data(recipe.training)
        quiet = Execution(device="cpu", progress=False)
        train(recipe.training, source, classes=classes, seed=seed, runs=Path(runs), execution=quiet)
    for case in todo:
        if not case.recipe:
            _smooth(case.model, case.training, case.epochs)


def _smooth(model: str, training: str, epochs: int) -> TrainedNetwork:
    """A smooth network from the cache, or trained now."""
    layers = SMOOTH_LAYERS[model]
    settings = {"baseline": {}, "mixup": {"layers": ("",), "alpha": 1.0}, "nfm": {"layers": layers, **NFM}}
    return trained_network(model, 10, epochs=epochs, **settings[training])


@lru_cache(maxsize=2)
def measured_network(
    recipe: str, model: str, training: str, seed: int, samples: int, runs: str, epochs: int
) -> MeasuredNetwork:
    """The network of a case with its images; the arguments are fields of `LayerCase`."""
    if not recipe:
        network, data = _smooth(model, training, epochs), load_digits(10)
        facts = {"train_accuracy": network.train_accuracy, "test_accuracy": network.test_accuracy, "seed": seed}
        return MeasuredNetwork(network.model, data.x[:samples], data.y[:samples], "digits", facts)
    settings = get_recipe(recipe).training
    _, data, classes = load_training_data(settings)
    content = load_checkpoint(run_folder(Path(runs), settings, seed) / "final.pt", hash=settings.hash, seed=seed)
    network = build_model(settings.model, classes, **dict(settings.model_options))
    network.load_state_dict(content["model"])
    network.eval().requires_grad_(False)
    part = data.train.first(settings.samples).first(samples)
    x = data.normalize(part.images)
    facts = {"train_accuracy": accuracy(network, x, part.labels), "test_accuracy": None, "seed": seed}
    return MeasuredNetwork(network, x, part.labels, settings.data, {**facts, "hash": settings.hash})
