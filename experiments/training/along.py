"""The networks along a training, not only the one at its end."""

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
    """The network after each of some epochs of `train`, from the folder of runs, or trained now and kept there.

    For small networks: all weights are held in memory.

    Args:
        training: settings.
        source: samples.
        classes: K.
        seed: of weights, order, augmentation and steps.
        epochs: numbers of finished epochs; 0 for the network before training.
        runs: folder of all runs; the weights go to `along.pt` beside those of the last epoch.
        execution: device and the like.

    Returns:
        By epoch, rising, in evaluation mode on the CPU; that of the last epoch is the one which `train` returns.

    Raises:
        ValueError: for epochs that the training does not have.
        CheckpointError: for a damaged or foreign file.
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
    return {epoch: _with_weights(model, states[epoch]) for epoch in wanted}


def _with_weights(model: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    other = deepcopy(model).to(next(iter(state.values())).dtype)
    other.load_state_dict(state)
    return other


def _states(training, source, classes, seed, wanted, execution) -> dict[int, dict[str, Tensor]]:
    states = {}

    def watch(epoch: int, model: nn.Module) -> None:
        if epoch in wanted:
            states[epoch] = {name: value.cpu().clone() for name, value in model.state_dict().items()}

    # In a folder of its own: a training that is finished already would only be loaded, and nothing watched
    with tempfile.TemporaryDirectory() as folder:
        train(training, source, classes=classes, seed=seed, runs=Path(folder), execution=execution, watch=watch)
    return states
