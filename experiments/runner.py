"""Run one recipe with one seed: train it or go on with it, measure what is missing, write each result to the ledger."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from .data import load_data
from .data.imagenet import ImageNet
from .data.images import ImageData
from .data.toy_sets import ToyData
from .evaluation import Subject, at_size, run_suite
from .recipes.recipe import Recipe, Training
from .record.ledger import LEDGER, Cell, Entry, append, finished, provenance
from .studies.networks import cache_directory
from .training import BusyError, Execution, MemorySource, Source, Trained, run_folder, train
from .training.checkpoint import exclusive

FINISHED, DONE, BUSY, FAILED = "finished before", "done", "busy", "failed"


@dataclass(frozen=True)
class Outcome:
    """What became of a recipe and a seed.

    Attributes:
        recipe: name.
        seed: of the training.
        status: `FINISHED`, `DONE`, `BUSY` (another process works on it) or `FAILED`.
        message: why it failed.
        seconds: time spent now.
    """

    recipe: str
    seed: int
    status: str
    message: str = ""
    seconds: float = 0.0


def runs_folder() -> Path:
    """Where checkpoints and weights are kept: `$NFM_RUNS`, or a folder in the cache."""
    return Path(os.environ.get("NFM_RUNS") or cache_directory() / "runs")


@lru_cache(maxsize=2)
def _load(name: str, options: tuple):
    return load_data(name, **dict(options))


def load_training_data(training: Training) -> tuple[Source, ImageData | ImageNet | ToyData, int]:
    """Samples to train on, the data set with its test part, and K.

    Args:
        training: settings.

    Raises:
        ValueError: for unknown data, and if there are fewer samples than asked for; `DataError`, which is one, for
            missing or damaged files.
    """
    data = _load(training.data, training.data_options)
    if isinstance(data, ToyData):
        return MemorySource(data.x.numpy().astype(np.float32), data.y.numpy()), data, data.classes
    if isinstance(data, ImageNet):
        return data.source(training), data, data.classes
    if training.samples is not None and training.samples > len(data.train):
        raise ValueError(f"samples: expected at most {len(data.train)}, got {training.samples}.")
    part = data.train.first(training.samples)
    images = part.images.permute(0, 2, 3, 1).contiguous().numpy()
    return MemorySource(images, part.labels.numpy(), data.mean, data.std), data, data.classes


def missing_suites(recipe: Recipe, seed: int, ledger: Path) -> list[str]:
    """Suites of a recipe that the ledger does not have for this seed."""
    known = finished(ledger)
    return [suite for suite in recipe.suites if Cell(recipe.hash, seed, suite) not in known]


def run_recipe(
    recipe: Recipe,
    seed: int,
    *,
    ledger: Path = LEDGER,
    runs: Path | None = None,
    execution: Execution | None = None,
) -> Outcome:
    """Train and measure what is not in the ledger yet. Nothing that went wrong is raised: the outcome says it.

    Args:
        recipe: what to train and to measure.
        seed: of the training.
        ledger: where results go, one line each as soon as it is there.
        runs: folder of checkpoints; `None` for `runs_folder()`.
        execution: device and the like.
    """
    start = time.perf_counter()

    def outcome(status: str, message: str = "") -> Outcome:
        return Outcome(recipe.name, seed, status, message, round(time.perf_counter() - start, 2))

    try:
        suites = missing_suites(recipe, seed, ledger)
        if not suites:
            return outcome(FINISHED)
        if recipe.note:
            return outcome(FAILED, recipe.note)
        execution = execution or Execution()
        source, data, classes = load_training_data(recipe.training)
        runs = runs or runs_folder()
        trained = train(recipe.training, source, classes=classes, seed=seed, runs=runs, execution=execution)
        if int(os.environ.get("RANK", 0)):
            return outcome(DONE)  # under torchrun the first process measures
        # A lock of its own: that of the training is given back, and another worker would measure the same again
        with exclusive(run_folder(runs, recipe.training, seed) / "measuring"):
            suites = missing_suites(recipe, seed, ledger)
            measure(recipe, seed, suites, trained, data, ledger, loaders=execution.workers)
        return outcome(DONE)
    except BusyError as error:
        return outcome(BUSY, str(error))
    except Exception as error:  # one failure must not take the others of a sweep with it
        place = traceback.extract_tb(error.__traceback__)[-1]
        return outcome(FAILED, f"{type(error).__name__}: {error} ({Path(place.filename).name}, line {place.lineno})")


def measure(
    recipe: Recipe, seed: int, suites: Sequence[str], trained: Trained, data, ledger: Path, *, loaders: int = 0
) -> None:
    """Run suites on a trained network and append each result."""
    device = next(trained.model.parameters()).device
    size = recipe.training.image_size
    subject = Subject(trained.model, at_size(data, size), recipe.size, image_size=size, loaders=loaders)
    keys = ("epochs", "steps", "samples", "seconds", "final_loss")
    for suite in suites:
        start = time.perf_counter()
        metrics, settings = run_suite(suite, subject)
        append(ledger, Entry(
            recipe=recipe.name, hash=recipe.hash, settings=recipe.training.to_dict(), size=recipe.size,
            scheme=recipe.training.scheme.name, seed=seed, suite=suite, suite_settings=settings, metrics=metrics,
            training={key: trained.record[key] for key in keys}, seconds=round(time.perf_counter() - start, 2),
            **provenance(device),
        ))  # fmt: skip
