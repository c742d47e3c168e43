"""Run one recipe with one seed: train the network, measure what is missing, and write the results to the ledger.

A failure is returned, not raised. Its traceback goes to a file beside the ledger, see `failures_file`.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path

import numpy as np
from torch import nn

from .data import load_data
from .data.imagenet import ImageNet
from .data.images import ImageData
from .data.toy_sets import ToyData
from .evaluation import Subject, at_size, few_tests, run_suite
from .recipes.recipe import Recipe, Training
from .record.entry import COMPUTED_IN_FLOAT32
from .record.ledger import Cell, Entry, append, finished, provenance
from .studies.networks import cache_directory
from .training import BusyError, Execution, MemorySource, Source, Trained, keep_along, run_folder, train
from .training.checkpoint import exclusive

FINISHED, DONE, BUSY, FAILED = "finished before", "done", "busy", "failed"


@dataclass(frozen=True)
class Outcome:
    """What became of a recipe with a seed.

    Attributes:
        recipe: name of the recipe.
        seed: random seed of the training run.
        status: `FINISHED`, `DONE`, `BUSY` (another process works on it) or `FAILED`.
        message: why it failed.
        seconds: duration of this run.
        wrong_input: True if it failed because of what the user gave: files, folders, a recipe that cannot be run.
    """

    recipe: str
    seed: int
    status: str
    message: str = ""
    seconds: float = 0.0
    wrong_input: bool = False


def elapsed(start: float) -> float:
    """Seconds since `start`, a value of `time.perf_counter`; 0 if the clock has run backwards."""
    return round(max(0.0, time.perf_counter() - start), 2)


def runs_folder() -> Path:
    """The folder of checkpoints and weights: `$NFM_RUNS`, or a folder in the cache."""
    return Path(os.environ.get("NFM_RUNS") or cache_directory() / "runs")


def own_ledger() -> Path:
    """The ledger to which commands append: `$NFM_LEDGER`, or a file in the cache. The tracked ledger is another one."""
    return Path(os.environ.get("NFM_LEDGER") or cache_directory() / "experiments.jsonl")


def failures_file(ledger: Path) -> Path:
    """The file beside a ledger with the tracebacks of failed runs.

    Example:
        >>> failures_file(Path("results/mine.jsonl")).as_posix()
        'results/mine.failures.log'
    """
    return ledger.with_suffix(".failures.log")


@lru_cache(maxsize=2)
def _load(name: str, options: tuple):
    return load_data(name, **dict(options))


def load_training_data(training: Training) -> tuple[Source, ImageData | ImageNet | ToyData, int]:
    """Load the training samples, the data set with its test part, and the number of classes.

    Raises:
        ValueError: for unknown data, or if there are fewer samples than asked for; as `DataError` if files are missing
            or damaged.
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
    """The suites of a recipe that have no result in the ledger for this seed."""
    known = finished(ledger)
    return [suite for suite in recipe.suites if Cell(recipe.hash, seed, suite) not in known]


def run_recipe(
    recipe: Recipe,
    seed: int,
    *,
    ledger: Path | None = None,
    runs: Path | None = None,
    execution: Execution | None = None,
    stop_after: int | None = None,
) -> Outcome:
    """Train and measure what is not in the ledger yet. Errors are not raised but returned in the outcome.

    Args:
        recipe: the recipe.
        seed: random seed of the training run.
        ledger: file to which each result is appended as soon as it is there; `None` for `own_ledger()`.
        runs: folder of checkpoints; `None` for `runs_folder()`.
        execution: device, number of loader processes and the like.
        stop_after: stop after this many epochs, and measure nothing; the next call goes on from there.
    """
    start, ledger = time.perf_counter(), ledger or own_ledger()

    def outcome(status: str, message: str = "", *, wrong_input: bool = False) -> Outcome:
        return Outcome(recipe.name, seed, status, message, elapsed(start), wrong_input)

    try:
        suites = missing_suites(recipe, seed, ledger)
        if not suites:
            return outcome(FINISHED)
        if recipe.note:
            return outcome(FAILED, recipe.note, wrong_input=True)
        execution = execution or Execution()
        source, data, classes = load_training_data(recipe.training)
        runs = runs or runs_folder()
        watch = keep_along(recipe.training, seed, runs) if isinstance(data, ToyData) else None
        trained = train(
            recipe.training, source, classes=classes, seed=seed, runs=runs, execution=execution, stop_after=stop_after,
            watch=watch, test=_quick_test(recipe, data, execution),
        )  # fmt: skip
        if stop_after is not None:
            return outcome(DONE)
        if int(os.environ.get("RANK", 0)):
            return outcome(DONE)  # under torchrun the first process measures
        # Training has released its lock, so measuring takes another one; else two workers would measure the same
        with exclusive(run_folder(runs, recipe.training, seed) / "measuring"):
            suites = missing_suites(recipe, seed, ledger)
            measure(recipe, seed, suites, trained, data, ledger, loaders=execution.workers)
        return outcome(DONE)
    except BusyError as error:
        return outcome(BUSY, str(error))
    except Exception as error:  # a failure must not stop the other tasks of a sweep
        place = traceback.extract_tb(error.__traceback__)[-1]
        message = f"{type(error).__name__}: {error} ({Path(place.filename).name}, line {place.lineno})"
        _keep_traceback(ledger, f"{recipe.name} seed {seed}", error)
        return outcome(FAILED, message, wrong_input=isinstance(error, ValueError | OSError))


def _keep_traceback(ledger: Path, what: str, error: Exception) -> None:
    """Append the traceback of an error to the file beside the ledger. If that fails, the error itself still counts."""
    lines = "".join(traceback.format_exception(error))
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    with suppress(OSError):
        failures_file(ledger).parent.mkdir(parents=True, exist_ok=True)
        with failures_file(ledger).open("a", encoding="utf-8") as file:
            file.write(f"{now} {what}, process {os.getpid()}\n{lines}\n")


def _quick_test(recipe: Recipe, data, execution: Execution) -> Callable[[nn.Module], float] | None:
    """The accuracy after each epoch, on test images that are spread evenly; for the log only."""
    if not execution.test_images:
        return None
    few = few_tests(at_size(data, recipe.training.image_size), execution.test_images)

    def accuracy(model: nn.Module) -> float:
        evaluation = replace(recipe.evaluation, images=None)
        subject = Subject(
            model, few, recipe.size, evaluation=evaluation, image_size=recipe.training.image_size,
            loaders=execution.workers,
        )  # fmt: skip
        return run_suite("clean", subject)[0]["clean"]

    return accuracy


def measure(
    recipe: Recipe, seed: int, suites: Sequence[str], trained: Trained, data, ledger: Path, *, loaders: int = 0
) -> None:
    """Run suites on a trained network, and append each result to the ledger."""
    size = recipe.training.image_size
    subject = Subject(
        trained.model, at_size(data, size), recipe.size, evaluation=recipe.evaluation, image_size=size, loaders=loaders,
        training=recipe.training,
    )  # fmt: skip
    training = {key: trained.record[key] for key in ("epochs", "steps", "samples", "seconds", "final_loss")}
    training |= {key: trained.record[key] for key in COMPUTED_IN_FLOAT32 if key in trained.record}
    training["seconds"] = max(0.0, training["seconds"])  # the clock may have run backwards
    append_suites(ledger, suites, subject, {
        "recipe": recipe.name, "hash": recipe.hash, "settings": recipe.training.to_dict(), "size": recipe.size,
        "scheme": recipe.training.scheme.name, "seed": seed, "training": training,
    })  # fmt: skip


def append_suites(ledger: Path, suites: Sequence[str], subject: Subject, fields: Mapping) -> None:
    """Run suites on a network, and append each result to the ledger as soon as it is there."""
    for suite in suites:
        start = time.perf_counter()
        metrics, settings = run_suite(suite, subject)
        entry = Entry(
            **fields, suite=suite, suite_settings=settings, metrics=metrics, seconds=elapsed(start),
            **provenance(subject.device),
        )  # fmt: skip
        append(ledger, entry)
