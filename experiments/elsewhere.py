"""Measure weights that were trained elsewhere with the network and the suites of a recipe.

Their results are lines of the ledger with the size `"elsewhere"`, seed 0 and a hash of their own. The settings name the
file with its SHA-256, and the recipe. They stand in a column of their own in the tables and decide no claim.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from .data import load_data
from .data.imagenet import ImageNet
from .data.images import NormalizedData
from .data.toy_sets import ToyData
from .evaluation import Subject, at_size, suites_of
from .evaluation.elsewhere import Weights, load_into, read_weights
from .models import build_model
from .recipes.recipe import Recipe
from .record.entry import ELSEWHERE
from .record.ledger import Cell, finished, read
from .runner import append_suites
from .training.distributed import join_world

_SEED = 0
#: Numbers of a training that is not known.
_NO_TRAINING = {"epochs": 0, "steps": 0, "samples": 0, "seconds": 0.0, "final_loss": None}


@dataclass(frozen=True)
class View:
    """How images are brought to the network.

    Attributes:
        mean: mean of each channel for pixels in [0, 1]; empty for that of the file, or else of the recipe.
        std: standard deviation of each channel, likewise.
        resize_corrupted: True to resize and crop also the images of ImageNet-C.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    resize_corrupted: bool = False


@dataclass(frozen=True)
class Elsewhere:
    """Weights of a recipe's network that were trained elsewhere, ready to be measured.

    Attributes:
        recipe: the recipe.
        weights: the weights.
        data: the data with the normalization of the weights.
        model: the network.
        resize_corrupted: True to resize and crop also the images of ImageNet-C.
        normalization: where mean and standard deviation are from: `"file"`, `"user"`, `"recipe"`, or `"none"` for
            points.
    """

    recipe: Recipe
    weights: Weights
    data: NormalizedData | ToyData
    model: nn.Module
    resize_corrupted: bool
    normalization: str

    @property
    def settings(self) -> dict:
        """What the ledger says about the weights."""
        normalized = {"from": self.normalization}
        if isinstance(self.data, NormalizedData):
            normalized |= {"mean": list(self.data.mean), "std": list(self.data.std)}
        training = self.recipe.training.to_dict()
        return {
            "recipe": self.recipe.hash, "file": self.weights.file, "sha256": self.weights.sha256,
            "container": self.weights.container, "normalization": normalized,
            "resize_corrupted": self.resize_corrupted,
            **{name: training[name] for name in ("data", "model", "model_options", "image_size")},
        }  # fmt: skip

    @property
    def hash(self) -> str:
        """16 hexadecimal digits that stand for the recipe, the weights and the view. The name of the file is free."""
        decisive = {key: value for key, value in self.settings.items() if key != "file"}
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]


def open_elsewhere(recipe: Recipe, path: str | Path, view: View | None = None) -> Elsewhere:
    """Load weights into the network of a recipe, with the recipe's test data.

    Args:
        recipe: the recipe; its network, data and suites count, its training does not.
        path: file of weights.
        view: normalization and resizing, where they are not those of the file and the recipe.

    Raises:
        ValueError: if the weights do not fit the network, the normalization does not fit the data, or data is missing.
    """
    view, weights, training = view or View(), read_weights(path), recipe.training
    data = _load(recipe)
    model = build_model(training.model, data.classes, **dict(training.model_options))
    load_into(model, weights)
    if view.resize_corrupted and not isinstance(data, ImageNet):
        raise ValueError(f"resize_corrupted: expected a recipe on ImageNet, got {recipe.name} on {training.data}.")
    if isinstance(data, ToyData):
        if view.mean or view.std or weights.mean:
            raise ValueError(f"normalization: expected none, since {training.data} has points and no images.")
        return Elsewhere(recipe, weights, data, model, False, "none")
    mean, std, source = _normalization(data, weights, view)
    return Elsewhere(recipe, weights, replace(data, mean=mean, std=std), model, view.resize_corrupted, source)


def _load(recipe: Recipe):
    options = dict(recipe.training.data_options)
    if recipe.training.data == "imagenet":  # no training images are needed
        options["training"] = False
    return load_data(recipe.training.data, **options)


def _normalization(data: NormalizedData, weights: Weights, view: View) -> tuple[tuple, tuple, str]:
    channels = len(data.mean)
    if bool(view.mean) != bool(view.std):
        raise ValueError("normalization: expected both a mean and a standard deviation, got one of them.")
    if view.mean and weights.mean:
        raise ValueError(
            f"normalization: expected one, but {weights.file} holds a mean {weights.mean} itself; leave the option out."
        )
    for mean, std, source in ((view.mean, view.std, "user"), (weights.mean, weights.std, "file")):
        if not mean:
            continue
        if not len(mean) == len(std) == channels or min(std) <= 0:
            raise ValueError(
                f"normalization: expected {channels} means and as many positive deviations, got {mean} and {std}."
            )
        return mean, std, source
    return data.mean, data.std, "recipe"


def measure_elsewhere(
    chosen: Elsewhere, ledger: Path, *, suites: Sequence[str] = (), device: str = "auto", loaders: int = 0
) -> tuple[list[str], dict[str, Mapping[str, float]]]:
    """Measure what is not in the ledger yet.

    Args:
        chosen: the weights.
        ledger: file to which each result is appended.
        suites: names of suites; none for those of the recipe.
        device: `"cpu"`, `"cuda"` or `"auto"`.
        loaders: number of processes that decode images.

    Returns:
        The suites that were measured now, and the metrics of all suites that were asked for.

    Raises:
        ValueError: for an unknown suite, or if a test set is missing or damaged.
    """
    recipe = chosen.recipe
    wanted = list(dict.fromkeys(suites or recipe.suites))
    known = suites_of(chosen.data)
    for suite in wanted:
        if suite not in known:
            raise ValueError(f"suite: expected one of {', '.join(sorted(known))}; got {suite!r}.")
    size = recipe.training.image_size
    done = finished(ledger)
    missing = [suite for suite in wanted if Cell(chosen.hash, _SEED, suite) not in done]
    with join_world(device) as (_, place):
        subject = Subject(
            chosen.model.to(place), at_size(chosen.data, size), recipe.size, evaluation=recipe.evaluation,
            image_size=size, loaders=loaders, resize_corrupted=chosen.resize_corrupted,
        )  # fmt: skip
        append_suites(ledger, missing, subject, {
            "recipe": recipe.name, "hash": chosen.hash, "settings": chosen.settings, "size": ELSEWHERE,
            "scheme": recipe.training.scheme.name, "seed": _SEED, "training": _NO_TRAINING,
        })  # fmt: skip
    lines = [entry for entry in read(ledger) if entry.hash == chosen.hash] if Path(ledger).exists() else []
    return missing, {entry.suite: entry.metrics for entry in lines if entry.suite in wanted}
