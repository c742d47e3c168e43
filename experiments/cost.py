"""What a sweep will cost: networks, results, GPU-hours and disk. Nothing is trained, and no data is read.

The operations of a forward and a backward pass of each network are counted by PyTorch's flop counter on the meta
device. They are multiplied by images, epochs, and the passes of a scheme: three for three views, and for PuzzleMix a
forward pass and the gradient in the input for its saliency. Measurements are left out; they take a few percent of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from .models import build_model
from .recipes.recipe import Recipe, Training
from .sweep import Sweep, Task
from .training import run_folder
from .training.loop import effective_epochs

#: Operations a second that trainings of such networks reach on an A100, 15 and 19 % of its peak, by precision.
THROUGHPUT = {"TF32": 23e12, "bfloat16": 60e12}
#: Number of training images, shape of an image, and number of classes of each data set.
SHAPES: dict[str, tuple[int, tuple[int, ...], int]] = {
    "digits": (1347, (1, 8, 8), 10),
    "fashion_mnist": (60_000, (1, 28, 28), 10),
    "cifar10": (50_000, (3, 32, 32), 10),
    "cifar100": (50_000, (3, 32, 32), 100),
    "imagenet": (1_281_167, (3, 224, 224), 1000),
    "toy_rings": (300, (2,), 2),
    "toy_band": (250, (2,), 2),
    "toy_spirals": (256, (2,), 2),
    "toy_moons": (100, (2,), 2),
    "toy_features": (400, (4, 40), 10),
    "series_basic_motions": (40, (7, 100), 4),
    "series_gun_point": (50, (2, 75), 2),
    "series_japanese_vowels": (270, (13, 29), 9),
    "series_wiimote": (50, (2, 91), 10),
}
#: The share of a forward and a backward pass that a forward pass and the gradient in the input take.
_SALIENCY = 2 / 3
#: What a checkpoint holds of each weight: itself and what the optimiser keeps of it.
_COPIES = {"sgd": 2, "adam": 3}


@dataclass(frozen=True)
class Network:
    """What is counted of a network.

    Attributes:
        flops: operations of a forward and a backward pass of one image.
        state: bytes of its weights and running statistics.
        parameters: bytes of its weights.
    """

    flops: float
    state: int
    parameters: int


def network_of(training: Training) -> Network:
    """Count the operations and the size of the network of a training."""
    _, shape, classes = SHAPES[training.data]
    if training.image_size:
        shape = (shape[0], training.image_size, training.image_size)
    return _counted(training.model, classes, training.model_options, shape)


@cache
def _counted(name: str, classes: int, options: tuple, shape: tuple[int, ...]) -> Network:
    model = build_model(name, classes, **dict(options))
    state = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    parameters = sum(value.numel() * value.element_size() for value in model.parameters())
    model = model.to("meta")
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(2, *shape, device="meta")).sum().backward()  # BatchNorm wants more than one image
    return Network(counter.get_total_flops() / 2, state, parameters)


def passes(training: Training) -> float:
    """Forward and backward passes of one image in a training, with those of its scheme."""
    scheme = training.scheme
    images = training.samples or SHAPES[training.data][0]
    each = max(scheme.views, scheme.copies + scheme.mixtures) + (_SALIENCY if scheme.patch == "puzzlemix" else 0)
    return images * effective_epochs(training) * scheme.replays * each


def training_flops(training: Training) -> float:
    """Operations of a whole training."""
    return passes(training) * network_of(training).flops


@dataclass(frozen=True)
class Cost:
    """The cost of some tasks.

    Attributes:
        study: what stands before `/` in the names of the recipes.
        tasks: number of tasks, finished or not.
        networks: number of networks that are still to be trained or measured.
        cells: number of results that the ledger lacks.
        flops: operations of the trainings that are not finished.
        kept: bytes of the weights that stay on the disk.
        checkpoint: bytes of the largest checkpoint, which is there while a network is trained.
    """

    study: str
    tasks: int
    networks: int
    cells: int
    flops: float
    kept: int
    checkpoint: int

    def hours(self, precision: str) -> float:
        """GPU-hours on an A100, for a key of `THROUGHPUT`."""
        return self.flops / THROUGHPUT[precision] / 3600


@dataclass(frozen=True)
class Estimate:
    """What a sweep will cost.

    Attributes:
        costs: the cost of each study.
        refused: recipes that cannot be run, with the reason.
        lacking: hashes of trainings from which tasks start, and which are neither finished nor in the sweep.
        terms: number of tasks that train on the regularizers of the theory, which take several passes more.
    """

    costs: tuple[Cost, ...]
    refused: dict[str, str]
    lacking: tuple[str, ...]
    terms: int

    @property
    def total(self) -> Cost:
        """The sum of all costs."""
        names = ("tasks", "networks", "cells", "flops", "kept")
        sums = {name: sum(getattr(cost, name) for cost in self.costs) for name in names}
        return Cost("total", **sums, checkpoint=max((cost.checkpoint for cost in self.costs), default=0))


def estimate(sweep: Sweep) -> Estimate:
    """Estimate the cost of what is left of a sweep.

    Args:
        sweep: the sweep.
    """
    left = sweep.unfinished()
    runnable = [task for task in left if not task.recipe.note]
    studies: dict[str, list[Task]] = {}
    for task in sweep.tasks:
        studies.setdefault(_study(task.recipe), []).append(task)
    costs = tuple(
        _cost(name, len(some), [task for task in runnable if task in some], sweep) for name, some in studies.items()
    )
    return Estimate(
        costs, {task.recipe.name: task.recipe.note for task in left if task.recipe.note}, _lacking(runnable, sweep),
        sum(bool(task.recipe.training.scheme.terms) for task in runnable),
    )  # fmt: skip


def _study(recipe: Recipe) -> str:
    return recipe.name.partition("/")[0]


def _cost(study: str, tasks: int, left: Iterable[Task], sweep: Sweep) -> Cost:
    from .record.ledger import finished

    known, left = finished(sweep.ledger), list(left)
    untrained = [task for task in left if not _trained(task, sweep)]
    networks = [network_of(task.recipe.training) for task in untrained]
    checkpoints = [
        one.state + (_COPIES[task.recipe.training.optimiser] - 1) * one.parameters
        for one, task in zip(networks, untrained, strict=True)
    ]
    return Cost(
        study, tasks, len(left), sum(len(task.cells - known) for task in left),
        sum(training_flops(task.recipe.training) for task in untrained), sum(one.state for one in networks),
        max(checkpoints, default=0),
    )  # fmt: skip


def _trained(task: Task, sweep: Sweep) -> bool:
    return (run_folder(sweep.runs, task.recipe.training, task.seed) / "final.pt").exists()


def _lacking(tasks: Iterable[Task], sweep: Sweep) -> tuple[str, ...]:
    """Hashes of the trainings that must be done before, and are not in the sweep."""
    inside = {(task.recipe.hash, task.seed) for task in sweep.tasks}
    found = []
    for task in tasks:
        start = task.recipe.training.pretrained
        there = (sweep.runs / start / f"seed-{task.seed}" / "final.pt").exists()
        if start and (start, task.seed) not in inside and not there:
            found.append(start)
    return tuple(dict.fromkeys(found))
