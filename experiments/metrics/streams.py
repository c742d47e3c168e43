"""Random numbers for tests that do not depend on the batch size or on the number of images."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

#: Number of images that share a generator: the batch size of the released evaluation, which seeds every batch anew.
CHUNK = 1024


def _word(part: str | float) -> int:
    """A whole number for a part of a key: the checksum of a text, or the bits of a number as float64."""
    return zlib.crc32(part.encode()) if isinstance(part, str) else int(np.float64(part).view(np.uint64))


def chunk_generator(seed: int, *key: str | float) -> torch.Generator:
    """A generator on the CPU for a seed and a key, so that every device sees the same numbers.

    Args:
        seed: random seed of the evaluation, ≥ 0.
        key: what is drawn, such as the kind of noise, its level, and the number of the chunk.
    """
    if seed < 0:
        raise ValueError(f"seed: expected a whole number >= 0, got {seed}.")
    (state,) = np.random.SeedSequence([seed, *map(_word, key)]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))  # a seed has 63 bits


def _drawn_like(x: Tensor, draw: Callable[..., Tensor], generator: torch.Generator) -> Tensor:
    """Draw image by image, since one call for b images gives other numbers than two calls for b/2."""
    values = torch.empty(x.shape, dtype=x.dtype, device=generator.device)
    for row in values:
        draw(row, generator=generator)
    return values.to(x.device)


def normal_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal numbers with the shape, dtype and device of `x`, `(b, ...)`."""
    return _drawn_like(x, Tensor.normal_, generator)


def uniform_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform numbers in [0, 1) with the shape, dtype and device of `x`, `(b, ...)`."""
    return _drawn_like(x, Tensor.uniform_, generator)
