"""The networks of a toy problem at several epochs of their training, not only the last one."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

from torch import nn

from ..models import build_model
from ..recipes.recipe import Training
from .batches import Source
from .checkpoint import load_checkpoint, save_checkpoint
from .loop import Execution, effective_epochs, run_folder, train

#: Finished epochs that are kept: every one at first, when most happens.
EPOCHS = (*range(7), *range(8, 21, 2), *range(24, 41, 4), *range(45, 101, 5))


def keep_along(training: Training, seed: int, runs: Path) -> Callable[[int, nn.Module], None]:
    """A function for `watch` of `train` that keeps the weights of all `EPOCHS`, for small networks.

    They are held in memory until the last epoch, which is kept as well. Then they go to the file `along.pt` beside
    the weights of the last epoch. Where the training began in another process, there is no such file.

    Args:
        training: settings of the training.
        seed: random seed of the training.
        runs: folder of all runs.
    """
    last, states = effective_epochs(training), {}
    wanted = {*(epoch for epoch in EPOCHS if epoch < last), last}

    def watch(epoch: int, model: nn.Module) -> None:
        if epoch in wanted:
            states[epoch] = {name: value.cpu().clone() for name, value in model.state_dict().items()}
        if states.keys() == wanted:
            content = {"hash": training.hash, "seed": seed, "states": states}
            save_checkpoint(run_folder(runs, training, seed) / "along.pt", content)

    return watch


def networks_along(
    training: Training,
    source: Source,
    *,
    classes: int,
    seed: int,
    runs: Path,
    execution: Execution | None = None,
) -> dict[int, nn.Module]:
    """The network after each of `EPOCHS` and after the last epoch of `train`, loaded from `runs` or trained now.

    Args:
        training: settings of the training.
        source: training samples.
        classes: K, the number of classes.
        seed: random seed of weights, order, augmentation and steps.
        runs: folder of all runs.
        execution: device and other settings that do not affect the recipe.

    Returns:
        Networks by epoch, ascending, in evaluation mode on the CPU. The last epoch has the network that `train`
        returns.

    Raises:
        CheckpointError: if the file is damaged or belongs to another training.
    """
    path = run_folder(runs, training, seed) / "along.pt"
    if not path.exists():
        # In a new folder: `train` would only load a finished training, without calling `watch`
        with tempfile.TemporaryDirectory() as folder:
            watch = keep_along(training, seed, runs)
            train(training, source, classes=classes, seed=seed, runs=Path(folder), execution=execution, watch=watch)
    states = load_checkpoint(path, hash=training.hash, seed=seed)["states"]
    model = build_model(training.model, classes, seed=seed, **dict(training.model_options))
    model.eval().requires_grad_(False)
    networks = {epoch: deepcopy(model).to(next(iter(state.values())).dtype) for epoch, state in states.items()}
    for epoch, network in networks.items():
        network.load_state_dict(states[epoch])
    return networks
