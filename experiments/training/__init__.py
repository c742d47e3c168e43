"""Training: batches, steps and checkpoints, on one device or on several under `torchrun`."""

from .along import keep_along, networks_along
from .batches import MemorySource, Source
from .checkpoint import BusyError, CheckpointError
from .loop import DivergedError, Execution, Trained, run_folder, train

__all__ = [
    "BusyError", "CheckpointError", "DivergedError", "Execution", "MemorySource", "Source", "Trained", "keep_along",
    "networks_along", "run_folder", "train",
]  # fmt: skip
