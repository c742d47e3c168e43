"""The networks on which the validity of the theory is measured: recipes of residual networks, and small smooth ones.

A case is one layer of one trained network; `prepare` trains what is missing, `subject` loads network and images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from torch import Tensor, nn

from ..data.digits import load_digits
from ..models import build_model, eligible_layers
from ..recipes import Recipe, get_recipe
from ..runner import load_training_data
from ..training import Execution, run_folder, train
from ..training.checkpoint import load_checkpoint
from .networks import TrainedNetwork, accuracy, trained_network

#: The levels that the NFM paper trains with.
NOISE = {"add_noise": 0.4, "mult_noise": 0.2}
LAWS: dict[str, dict] = {
    "released": {"alpha": 1.0, **NOISE, "noise": "released"},
    "normal": {"alpha": 1.0, **NOISE, "noise": "normal"},
    "mixing": {"alpha": 1.0},
}
#: Images and random paths from each of them for the expansion, and images on which the bound is checked.
SAMPLES, PATHS, BOUND_SAMPLES = 300, 2, 20
#: Recipes whose networks belong to the main job: piecewise-linear residual networks.
RECIPES = tuple(f"digits/{name}" for name in ("baseline", "mixup", "manifold_mixup", "nfm", "noisymix", "taylor_nfm"))
#: Smooth networks: layers, and how each is trained.
SMOOTH_LAYERS = {"mlp": ("", "hidden1", "hidden2"), "small_cnn": ("", "stage1", "stage2")}
SMOOTH_TRAININGS = ("baseline", "mixup", "nfm")


@dataclass(frozen=True)
class Case:
    """One layer of one network.

    Attributes:
        model: name of the network.
        training: name of the training scheme.
        layer: that is perturbed.
        recipe: name of the recipe; `""` for a smooth network.
        seed: of the training.
        samples: training images that are used, the first so many.
        paths: random paths from each of them.
        runs: folder of trained recipes.
        epochs: of a smooth network.
        bound_samples: images on which the bound is checked.
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
class Subject:
    """A trained network with the images it is measured on.

    Attributes:
        model: in evaluation mode, in the precision it was trained in.
        x: training images as the network sees them, without augmentation.
        y: their labels.
        data: name of the data.
        facts: about the training, for the record.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    data: str
    facts: dict


def cases(recipes: Sequence[Recipe] | None = None, *, quick: bool = False, **options) -> list[Case]:
    """What is measured; `quick` is a toy of the same shape.

    Args:
        recipes: `None` for the main job.
        quick: few images, one network of each kind.
        **options: other fields of `Case`.
    """
    smooth = [] if recipes is not None else [(m, t) for m in SMOOTH_LAYERS for t in SMOOTH_TRAININGS]
    chosen = [get_recipe(name) for name in RECIPES] if recipes is None else list(recipes)
    if quick:
        options = {"samples": 20, "epochs": 2, "bound_samples": 5, **options}
        smooth, chosen = smooth[:1], chosen[:1]
    seed = options.pop("seed", 1)
    return [
        Case(r.training.model, r.training.scheme.name, layer, r.name, seed, **options)
        for r in chosen
        for layer in eligible_layers(r.training.model)
    ] + [Case(m, t, layer, **options) for m, t in smooth for layer in SMOOTH_LAYERS[m]]


def is_finished(recipe: Recipe, seed: int, runs: Path) -> bool:
    """Whether a recipe has been trained."""
    return (run_folder(runs, recipe.training, seed) / "final.pt").exists()


def prepare(todo: Sequence[Case]) -> None:
    """Train what is not trained yet, before processes start, so that each network is trained once.

    Raises:
        FileNotFoundError: for recipes that take longer than those on digits.
    """
    for name, seed, runs in dict.fromkeys((c.recipe, c.seed, c.runs) for c in todo if c.recipe):
        recipe = get_recipe(name)
        if is_finished(recipe, seed, Path(runs)):
            continue
        if recipe.size != "digits":
            raise FileNotFoundError(
                f"{name} with seed {seed} is not trained in {runs}; `nfm sweep '{name}' --seeds {seed}` trains it."
            )
        source, _, classes = load_training_data(recipe.training)
        quiet = Execution(device="cpu", progress=False)
        train(recipe.training, source, classes=classes, seed=seed, runs=Path(runs), execution=quiet)
    for case in todo:
        if not case.recipe:
            _smooth(case.model, case.training, case.epochs)


def _smooth(model: str, training: str, epochs: int) -> TrainedNetwork:
    """A smooth network, trained or from the cache."""
    layers = SMOOTH_LAYERS[model]
    settings = {"baseline": {}, "mixup": {"layers": ("",), "alpha": 1.0}, "nfm": {"layers": layers, **LAWS["released"]}}
    return trained_network(model, 10, epochs=epochs, **settings[training])


@lru_cache(maxsize=2)
def subject(recipe: str, model: str, training: str, seed: int, samples: int, runs: str, epochs: int) -> Subject:
    """The network of a case with its images; arguments as the fields of `Case`."""
    if not recipe:
        network, data = _smooth(model, training, epochs), load_digits(10)
        facts = {"train_accuracy": network.train_accuracy, "test_accuracy": network.test_accuracy, "seed": seed}
        return Subject(network.model, data.x[:samples], data.y[:samples], "digits", facts)
    settings = get_recipe(recipe).training
    _, data, classes = load_training_data(settings)
    content = load_checkpoint(run_folder(Path(runs), settings, seed) / "final.pt", hash=settings.hash, seed=seed)
    network = build_model(settings.model, classes, **dict(settings.model_options))
    network.load_state_dict(content["model"])
    network.eval().requires_grad_(False)
    part = data.train.first(settings.samples).first(samples)
    x = data.normalise(part.images)
    facts = {"train_accuracy": accuracy(network, x, part.labels), "test_accuracy": None, "seed": seed}
    return Subject(network, x, part.labels, settings.data, {**facts, "hash": settings.hash})
