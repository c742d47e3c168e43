"""One process or several: the settings of `torchrun`, and the division of a batch."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import nn


@dataclass(frozen=True)
class World:
    """The processes of a training.

    Attributes:
        rank: number of this process.
        size: number of processes.
        local_rank: number of this process on its machine, and of its GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def leads(self) -> bool:
        """True for the process that writes files."""
        return self.rank == 0

    def share(self, batch: np.ndarray) -> np.ndarray:
        """The part of a batch for this process."""
        return batch[self.rank :: self.size]

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        """The model for the forward pass; with several processes its gradients are averaged over them."""
        if self.size == 1:
            return model
        return nn.parallel.DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)

    def collect(self, value: object) -> list:
        """The values of all processes, in every process."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def agree(self, decision: bool) -> bool:
        """The decision of the first process, in every process."""
        if self.size == 1:
            return decision
        decisions = [decision]
        dist.broadcast_object_list(decisions, src=0)
        return decisions[0]

    def wait(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def join_world(device: str) -> Iterator[tuple[World, torch.device]]:
    """The processes that `torchrun` started, or only this one, and the device of this process.

    Args:
        device: `"cpu"`, `"cuda"`, or `"auto"` for a GPU if there is one.
    """
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    size = int(os.environ.get("WORLD_SIZE", 1))
    world = World(int(os.environ.get("RANK", 0)), size, int(os.environ.get("LOCAL_RANK", 0)))
    place = torch.device(name, world.local_rank) if name == "cuda" else torch.device(name)
    if size == 1:
        yield World(), place
        return
    # Only once per process: a second group would read the addresses of the first one in torchrun's store
    if not dist.is_initialized():
        dist.init_process_group("nccl" if name == "cuda" else "gloo")
        atexit.register(dist.destroy_process_group)
    yield world, place
