"""Seeds for everything random in a training, each from its own place, so that nothing has to be remembered.

A step draws from generators seeded by (seed, process, epoch, step): a training that was killed goes on with the same
bits from any checkpoint.
"""

from __future__ import annotations

import numpy as np

#: What a seed is for; the number keeps streams of different purposes apart.
ORDER, STEP, IMAGE = 1, 2, 3


def stream_seed(purpose: int, *path: int) -> int:
    """A seed below 2^63 for a purpose at a place.

    Args:
        purpose: one of the constants of this module.
        *path: numbers ≥ 0 that name the place.
    """
    return int(np.random.SeedSequence((purpose, *path)).generate_state(1, np.uint64)[0] >> 1)


def image_generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator of one image in one epoch; cheap, since a training makes one for each image it sees."""
    return np.random.Generator(np.random.Philox(key=[(IMAGE << 60) | (seed << 24) | epoch, index]))


def epoch_order(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the samples in an epoch, `(num_samples,)`."""
    return np.random.default_rng(stream_seed(ORDER, seed, epoch)).permutation(num_samples)
