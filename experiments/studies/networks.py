"""Train a small network on the digits in seconds, with the same bits every time, and keep it in a cache.

The default is plain empirical risk minimization. With `alpha` or noise it is NFM at the input, with one λ, one
permutation and one noise scale for each minibatch, and mixed labels. With `layers` it is `NoisyFeatureMixup` at one of
these layers for each minibatch.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nfm_theory as nt

from ..data.digits import Digits, load_digits, verification_subset
from ..models.small import NETWORKS
from ..record.files import replace_file


@dataclass(frozen=True)
class NetworkRecipe:
    """Everything that decides the weights.

    `layers` are the layers that `NoisyFeatureMixup` may mix, `""` for the input. Without them, mixing and noise act at
    the input without hooks. If `centre` is not 0, the mean of the first `centre` samples of `verification_subset` is
    subtracted from all samples.
    """

    model: str = "mlp"
    classes: int = 10
    seed: int = 0
    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 1e-3
    alpha: float = 0.0
    add_noise: float = 0.0
    mult_noise: float = 0.0
    noise: str = "normal"
    layers: tuple[str, ...] = ()
    centre: int = 0

    @property
    def law(self) -> nt.Law:
        """The law of mixing and noise in training."""
        return nt.Law(self.alpha, None, self.add_noise, self.mult_noise, self.noise)


@dataclass(frozen=True)
class TrainedNetwork:
    """A trained network and facts about its training.

    Attributes:
        model: network in evaluation mode, in float64.
        recipe: how it was trained.
        train_accuracy: share of training images classified correctly.
        test_accuracy: share of test images classified correctly.
        seconds: duration of the training.
    """

    model: nn.Module
    recipe: NetworkRecipe
    train_accuracy: float
    test_accuracy: float
    seconds: float

    @property
    def facts(self) -> dict:
        """The recipe and the accuracies, for records."""
        return {
            **asdict(self.recipe), "train_accuracy": self.train_accuracy, "test_accuracy": self.test_accuracy,
        }  # fmt: skip


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread, so that the weights do not depend on the number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _initialised(recipe: NetworkRecipe) -> nn.Module:
    """A network with random weights. The global random generator stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed)
        return NETWORKS[recipe.model](recipe.classes).double()


def _losses(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    outputs = model(x)
    if outputs.shape[-1] == 1:
        return F.binary_cross_entropy_with_logits(outputs[:, 0], y.double(), reduction="none")
    return F.cross_entropy(outputs, y, reduction="none")


def _batch_loss(model: nn.Module, x: Tensor, y: Tensor, recipe: NetworkRecipe, generator: torch.Generator) -> Tensor:
    if not (recipe.alpha or recipe.add_noise or recipe.mult_noise):
        return _losses(model, x, y).mean()
    draw = nt.sample_draw(
        len(x), x.shape[1:], recipe.law, unmixed=False, as_trained=True, generator=generator, dtype=x.dtype
    )
    mixed = nt.perturb(x, draw, recipe.law)
    return (draw.lam * _losses(model, mixed, y) + (1 - draw.lam) * _losses(model, mixed, y[draw.index])).mean()


def _mixer(model: nn.Module, recipe: NetworkRecipe, generator: torch.Generator) -> nt.NoisyFeatureMixup | None:
    if not recipe.layers:
        return None
    return nt.NoisyFeatureMixup(
        model, recipe.layers, recipe.law, num_classes=None if recipe.classes == 2 else recipe.classes,
        generator=generator,
    )  # fmt: skip


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of correct predictions; one logit predicts by its sign."""
    outputs = model(x)
    predicted = (outputs[:, 0] > 0).long() if outputs.shape[-1] == 1 else outputs.argmax(-1)
    return float((predicted == y).double().mean())


def centered(data: Digits, count: int) -> Digits:
    """Subtract the mean of the first `count` samples of `verification_subset` from the data; 0 changes nothing.

    Raises:
        ValueError: if there are fewer samples than asked for.
    """
    if not count:
        return data
    mean = verification_subset(data, count)[0].mean(0)
    return replace(data, x=data.x - mean, x_test=data.x_test - mean)


def train(recipe: NetworkRecipe, data: Digits | None = None) -> TrainedNetwork:
    """Train by Adam in float64 on the CPU. On one machine the weights are the same bits every time.

    Args:
        recipe: the network and how to train it.
        data: the digits; `None` loads those of the recipe.

    Raises:
        ValueError: for an unknown model or number of classes.
    """
    if recipe.model not in NETWORKS:
        raise ValueError(f"model: expected one of {sorted(NETWORKS)}, got {recipe.model!r}.")
    data = centered(load_digits(recipe.classes) if data is None else data, recipe.centre)
    start = time.perf_counter()
    model = _initialised(recipe)
    generator = torch.Generator().manual_seed(recipe.seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    mixer = _mixer(model, recipe, generator)
    with _one_thread(), torch.enable_grad():
        for _ in range(recipe.epochs):
            for batch in torch.randperm(len(data.x), generator=generator).split(recipe.batch_size):
                optimizer.zero_grad()
                if mixer is None:
                    loss = _batch_loss(model, data.x[batch], data.y[batch], recipe, generator)
                else:
                    y = data.y[batch]
                    x, y = mixer(data.x[batch], y.double() if recipe.classes == 2 else y)
                    loss = _losses(model, x, y).mean()
                loss.backward()
                optimizer.step()
    if mixer is not None:
        mixer.remove()
    model.eval().requires_grad_(False)
    return TrainedNetwork(
        model=model,
        recipe=recipe,
        train_accuracy=accuracy(model, data.x, data.y),
        test_accuracy=accuracy(model, data.x_test, data.y_test),
        seconds=time.perf_counter() - start,
    )


def cache_directory() -> Path:
    """The folder of trained networks: `$NFM_CACHE`, or `~/.cache/nfm_theory`."""
    return Path(os.environ.get("NFM_CACHE") or Path.home() / ".cache" / "nfm_theory")


@cache
def _code() -> str:
    """Hash of the sources that decide the weights, so that a changed library does not load networks of the old one."""
    package = Path(__file__).resolve().parents[1]
    sources = [Path(__file__), package / "models" / "small.py", package / "data" / "digits.py"]
    sources += sorted(Path(nt.__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()


def cache_file(recipe: NetworkRecipe) -> Path:
    """The file of a network, which depends on recipe, architecture, code and version of PyTorch."""
    facts = {"recipe": asdict(recipe), "network": str(_initialised(recipe)), "torch": torch.__version__}
    facts["code"] = _code()
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    return cache_directory() / f"{recipe.model}-{recipe.classes}-{key}.pt"


def _load(path: Path, recipe: NetworkRecipe) -> TrainedNetwork:
    content = torch.load(path, weights_only=True)
    model = _initialised(recipe)
    model.load_state_dict(content["state_dict"])
    return TrainedNetwork(model.eval().requires_grad_(False), recipe, **content["record"])


def _save(path: Path, trained: TrainedNetwork) -> None:
    record = {name: getattr(trained, name) for name in ("train_accuracy", "test_accuracy", "seconds")}
    with replace_file(path) as temporary:
        torch.save({"state_dict": trained.model.state_dict(), "record": record}, temporary)


def trained_network(model: str = "mlp", classes: int = 10, seed: int = 0, **options) -> TrainedNetwork:
    """A trained network from the cache, or trained now and kept there.

    Args:
        model: name in `NETWORKS`.
        classes: 2 or 10.
        seed: random seed of the initial weights and of the minibatches.
        **options: other fields of `NetworkRecipe`.

    Raises:
        ValueError: for an unknown model or number of classes.
    """
    if model not in NETWORKS:
        raise ValueError(f"model: expected one of {sorted(NETWORKS)}, got {model!r}.")
    recipe = NetworkRecipe(model=model, classes=classes, seed=seed, **options)
    path = cache_file(recipe)
    if path.exists():
        try:
            return _load(path, recipe)
        except (OSError, EOFError, RuntimeError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
            warnings.warn(f"{path} cannot be read ({type(error).__name__}); training again.", stacklevel=2)
    trained = train(recipe)
    try:
        _save(path, trained)
    except OSError as error:
        warnings.warn(f"{path} cannot be written ({error}); set NFM_CACHE to another directory.", stacklevel=2)
    return trained
