"""Seeds for everything random in a training. Each is computed from its place, so nothing has to be stored.

The generator of a step is seeded by (seed, process, epoch, step). So a training that was interrupted continues from
any checkpoint with the same bits.
"""

from __future__ import annotations

import numpy as np

#: Purposes of a seed. Seeds of different purposes are independent.
ORDER, STEP, IMAGE = 1, 2, 3


def stream_seed(purpose: int, *path: int) -> int:
    """A seed below 2^63 for a purpose (a constant of this module) and numbers ≥ 0 that name the place."""
    return int(np.random.SeedSequence((purpose, *path)).generate_state(1, np.uint64)[0] >> 1)


def image_key(seed: int, epoch: int, index: int) -> tuple[int, int]:
    """The key of the generator of one image in one epoch."""
    return (IMAGE << 60) | (seed << 24) | epoch, index


def image_generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator of one image in one epoch. It is cheap, since a training makes one for each image it sees."""
    return np.random.Generator(np.random.Philox(key=image_key(seed, epoch, index)))


def epoch_order(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the samples in an epoch, `(num_samples,)`."""
    return np.random.default_rng(stream_seed(ORDER, seed, epoch)).permutation(num_samples)
