"""Random numbers for tests: the same for an image however the images are batched and however many are tested."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor

#: Images that share a generator. The batch of the released evaluation, which re-seeds at its start.
CHUNK = 1024


def _word(part: str | float) -> int:
    """A whole number that stands for a part of a key: text by its checksum, numbers by the bits of their float64."""
    return zlib.crc32(part.encode()) if isinstance(part, str) else int(np.float64(part).view(np.uint64))


def chunk_generator(seed: int, *key: str | float) -> torch.Generator:
    """A generator of its own for each seed and key, on the CPU, so that every device sees the same numbers.

    Args:
        seed: of the evaluation, ≥ 0.
        key: what is drawn: such as the kind of noise, its level, the number of the chunk.
    """
    if seed < 0:
        raise ValueError(f"seed: expected a whole number >= 0, got {seed}.")
    (state,) = np.random.SeedSequence([seed, *map(_word, key)]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))  # a seed has 63 bits


def normal_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normals of the shape, kind and device of `x`, `(b, ...)`.

    Drawn image by image: one call for b images would give other numbers than two calls for b/2.
    """
    z = torch.empty(x.shape, dtype=x.dtype, device=generator.device)
    for row in z:
        row.normal_(generator=generator)
    return z.to(x.device)


def uniform_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform numbers in [0, 1), as `normal_like`."""
    u = torch.empty(x.shape, dtype=x.dtype, device=generator.device)
    for row in u:
        row.uniform_(generator=generator)
    return u.to(x.device)
