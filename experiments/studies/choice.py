"""The study `choice`: which network, epochs, learning rate and batch size do the recipes of the compact size have?

They are chosen by the baseline alone, never by a scheme that should win. Each candidate trains the baseline with a seed
that no recipe has, on all training images except the last `HELD_OUT`, on which its accuracy is measured. The test
images play no part. `choice.jsonl` has a record for each candidate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.table import Table

from ..data.images import ImageData, ImageSet
from ..evaluation.subject import Subject
from ..metrics.accuracy import accuracy
from ..recipes import get_recipe
from ..recipes.recipe import Training
from ..record.files import versions
from ..runner import load_training_data, runs_folder
from ..training import Execution, train
from .recorded import RecordedStudy, RecordFile, results_table

FILE = "choice.jsonl"
SEED = 0
#: Number of training images that are held out.
HELD_OUT = 5000
#: The candidates for each recipe: network, epochs, batch size and learning rate.
SMALL, HALF, NARROW, MIDDLE, WIDE = (24, 48, 96), (32, 64, 128), (48, 96, 128), (64, 128, 256), (96, 192, 320)
CANDIDATES = {
    "fashion-compact/baseline": (
        (NARROW, 5, 256, 0.1), (NARROW, 5, 256, 0.2), (NARROW, 5, 256, 0.05), (NARROW, 5, 128, 0.1),
        (NARROW, 8, 256, 0.1),
    ),
    "cifar10-compact/baseline": (
        (MIDDLE, 20, 256, 0.1), (MIDDLE, 20, 256, 0.2), (MIDDLE, 20, 128, 0.1), (MIDDLE, 32, 128, 0.1),
        (WIDE, 20, 128, 0.1), (WIDE, 28, 128, 0.1),
    ),
    # All of these take about the same time
    "cifar100-compact/baseline": (
        (HALF, 8, 128, 0.1), (HALF, 8, 256, 0.1), (SMALL, 12, 256, 0.1), (NARROW, 5, 256, 0.1),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class ChoiceCase:
    """One candidate.

    Attributes:
        recipe: name of the recipe of the baseline.
        widths: number of channels of each stage of the network.
        epochs: number of epochs.
        batch_size: number of images in a step.
        learning_rate: initial learning rate.
        held_out: number of training images that are held out.
        samples: number of training images; `None` for all that are not held out.
    """

    recipe: str
    widths: tuple[int, ...]
    epochs: int
    batch_size: int
    learning_rate: float
    held_out: int = HELD_OUT
    samples: int | None = None

    @property
    def settings(self) -> Training:
        """The settings of the training run, on all training images."""
        found = get_recipe(self.recipe).training
        options = dict(found.model_options) | {"widths": self.widths}
        return replace(
            found, model_options=tuple(options.items()), epochs=self.epochs, batch_size=self.batch_size,
            learning_rate=self.learning_rate,
        )  # fmt: skip


def cases(*, recipes: Sequence[str] = tuple(CANDIDATES), quick: bool = False) -> list[ChoiceCase]:
    """The candidates for some recipes; `quick` gives one small training run, for tests."""
    if quick:
        return [ChoiceCase("fashion-compact/baseline", (4, 4, 4), 1, 64, 0.1, held_out=100, samples=256)]
    return [ChoiceCase(recipe, *candidate) for recipe in recipes for candidate in CANDIDATES[recipe]]


def run_case(case: ChoiceCase) -> tuple[list[dict]]:
    """Train one candidate, and measure its accuracy on the images that were held out."""
    everything, data, classes = load_training_data(case.settings)
    assert isinstance(data, ImageData)
    training = replace(case.settings, samples=case.samples or len(everything.labels) - case.held_out)
    source, _, _ = load_training_data(training)
    execution = Execution(device="cpu", progress=False, test_images=0)
    trained = train(training, source, classes=classes, seed=SEED, runs=Path(runs_folder()), execution=execution)
    assert trained is not None
    held_out = ImageSet(data.train.images[-case.held_out :], data.train.labels[-case.held_out :])
    subject = Subject(trained.model, data, "compact", evaluation=get_recipe(case.recipe).evaluation)
    return ([{
        "recipe": case.recipe, "widths": "-".join(map(str, case.widths)), "epochs": case.epochs,
        "batch_size": case.batch_size, "learning_rate": case.learning_rate, "held_out": case.held_out,
        "samples": training.samples, "seed": SEED,
        "accuracy": accuracy(subject.predict(held_out), held_out.labels), "parameters": trained.record["parameters"],
        "seconds": trained.record["seconds"], "versions": versions(), "device": "cpu",
    }],)  # fmt: skip


def summary(records: Sequence[dict]) -> Table:
    """The table of all candidates."""
    header = ("recipe", "widths", "epochs", "batch size", "learning rate", "accuracy", "seconds")
    rows = [
        [r["recipe"], r["widths"], str(r["epochs"]), str(r["batch_size"]),
         f"{r['learning_rate']:g}", f"{100 * r['accuracy']:.2f}", f"{r['seconds']:.0f}"] for r in records
    ]  # fmt: skip
    return results_table("Candidates for the baseline, on images that were held out", header, rows, text=header[:2])


def _difference(new: dict, old: dict) -> str:
    """The accuracy of another run is within 1.5 points, which is three standard errors of 5,000 images."""
    if abs(new["accuracy"] - old["accuracy"]) <= 0.015:
        return ""
    return f"accuracy {old['accuracy']:.4f} recorded, {new['accuracy']:.4f} now"


_KEY = ("recipe", "widths", "epochs", "batch_size", "learning_rate", "held_out", "samples")
STUDY = RecordedStudy("choice", (RecordFile(FILE, _KEY, _difference),), run_case, summary)
