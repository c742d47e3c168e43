"""How many rows of a batch fit into a block of memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .options import block_bytes

#: Memory that a block of head evaluations may take unless `options` says otherwise, in bytes.
BLOCK_BYTES = 2**27


class OutputBytes(TorchFunctionMode):
    """Adds up the size of everything computed: an upper bound of the memory of one pass."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.total += out.nbytes
        return out


def bytes_of_a_row(run: Callable[[int], object]) -> int:
    """Bytes of what `run(rows)` computes for one more row; what it does once, however many rows there are, is left."""
    totals = []
    for rows in (1, 2):
        with torch.no_grad(), OutputBytes() as count:
            run(rows)
        totals.append(count.total)
    return totals[1] - totals[0]


def rows_that_fit(per_row: int) -> int:
    """Rows of so many bytes that fit in one block of memory.

    Raises:
        ValueError: if the caller allows less than one row takes.
    """
    limit = block_bytes()
    if limit is not None and limit < per_row:
        raise ValueError(f"block_bytes: one row alone needs about {per_row} bytes, got a limit of {limit}.")
    return max(1, int((BLOCK_BYTES if limit is None else limit) // per_row))
