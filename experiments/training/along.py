"""The networks at several epochs of a training, not only the last one."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path

from torch import Tensor, nn

from ..models import build_model
from ..recipes.recipe import Training
from .batches import Source
from .checkpoint import load_checkpoint, save_checkpoint
from .loop import Execution, effective_epochs, run_folder, train


def networks_along(
    training: Training,
    source: Source,
    *,
    classes: int,
    seed: int,
    epochs: Iterable[int],
    runs: Path,
    execution: Execution | None = None,
) -> dict[int, nn.Module]:
    """The network after each of the given epochs of `train`, loaded from the folder of runs or trained now.

    For small networks, since all weights are held in memory.

    Args:
        training: settings of the training.
        source: training samples.
        classes: K, the number of classes.
        seed: random seed of weights, order, augmentation and steps.
        epochs: numbers of finished epochs; 0 is the network before training.
        runs: folder of all runs. The weights are kept in `along.pt` beside those of the last epoch.
        execution: device and other settings that do not affect the recipe.

    Returns:
        Networks by epoch, ascending, in evaluation mode on the CPU. The last epoch has the network that `train`
        returns.

    Raises:
        CheckpointError: if the file is damaged or belongs to another training.
    """
    wanted, last = sorted(set(epochs)), effective_epochs(training)
    if not wanted or wanted[0] < 0 or wanted[-1] > last:
        raise ValueError(f"epochs: expected some from 0 to {last}, got {wanted}.")
    path = run_folder(runs, training, seed) / "along.pt"
    states = load_checkpoint(path, hash=training.hash, seed=seed)["states"] if path.exists() else {}
    if not states.keys() >= set(wanted):
        states |= _states(training, source, classes, seed, wanted, execution)
        save_checkpoint(path, {"hash": training.hash, "seed": seed, "states": states})
    model = build_model(training.model, classes, seed=seed, **dict(training.model_options))
    model.eval().requires_grad_(False)
    networks = {epoch: deepcopy(model).to(next(iter(states[epoch].values())).dtype) for epoch in wanted}
    for epoch, network in networks.items():
        network.load_state_dict(states[epoch])
    return networks


def _states(training, source, classes, seed, wanted, execution) -> dict[int, dict[str, Tensor]]:
    states = {}

    def watch(epoch: int, model: nn.Module) -> None:
        if epoch in wanted:
            states[epoch] = {name: value.cpu().clone() for name, value in model.state_dict().items()}

    # In a new folder: `train` would only load a finished training, without calling `watch`
    with tempfile.TemporaryDirectory() as folder:
        train(training, source, classes=classes, seed=seed, runs=Path(folder), execution=execution, watch=watch)
    return states
