"""Random numbers of many images at once: those that `image_generator` gives image by image, bit for bit.

Philox is a function of a key and a counter, so the numbers of all images of a batch are computed together. That makes
crop and flip many times faster. (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011.)
"""

from __future__ import annotations

import numpy as np

from .seeds import image_generator, image_key

_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_WORD = (1 << 64) - 1


def _multiply(a: int, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The upper and the lower 64 bits of the product of a number and an array."""
    a_low, a_high = np.uint64(a & 0xFFFFFFFF), np.uint64(a >> 32)
    b_low, b_high = b & _LOW, b >> _HALF
    middle = a_high * b_low + (a_low * b_low >> _HALF)
    carry = a_low * b_high + (middle & _LOW)
    return a_high * b_high + (middle >> _HALF) + (carry >> _HALF), np.uint64(a) * b


def first_words(seed: int, epoch: int, indices: np.ndarray) -> np.ndarray:
    """The first four words of 64 bits of the generator of each image.

    Args:
        seed: random seed of the training.
        epoch: number of the epoch.
        indices: numbers of the images, `(n,)`.

    Returns:
        The words, `(4, n)`, uint64.
    """
    first, second = image_key(seed, epoch, 0)[0], np.asarray(indices).astype(np.uint64)
    zero = np.zeros_like(second)
    words = (zero + np.uint64(1), zero, zero, zero)  # NumPy counts up before it computes a block
    for turn in range(_ROUNDS):
        keys = np.uint64((first + turn * _WEYL[0]) & _WORD), second + np.uint64(turn * _WEYL[1] & _WORD)
        high0, low0 = _multiply(_MULTIPLIERS[0], words[0])
        high1, low1 = _multiply(_MULTIPLIERS[1], words[2])
        words = (high1 ^ words[1] ^ keys[0], low1, high0 ^ words[3] ^ keys[1], low0)
    return np.stack(words)


def crop_flip_draws(
    seed: int, epoch: int, indices: np.ndarray, *, padding: int, flip_first: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `random_crop` and `random_flip` draw for each image.

    Args:
        seed: random seed of the training.
        epoch: number of the epoch.
        indices: numbers of the images, `(n,)`.
        padding: width of the black margin in pixels, at least 1.
        flip_first: True if the flip is drawn before the crop.

    Returns:
        First row and first column of each window, int64, and True for each mirrored image, all `(n,)`.
    """
    words = first_words(seed, epoch, indices)
    crop, flip = (words[1], words[0]) if flip_first else (words[0], words[1])
    places = 2 * padding + 1
    # Lemire's method, as in `Generator.integers`: the upper half of a 32-bit number times the number of places
    products = np.stack([crop & _LOW, crop >> _HALF]) * np.uint64(places)
    corners = (products >> _HALF).astype(np.int64)
    mirrored = flip >> np.uint64(63) == 0  # the generator's float is below 1/2
    # With probability 1e-9 `Generator.integers` rejects a number and draws another one
    for row in np.flatnonzero(((products & _LOW) < np.uint64((1 << 32) % places)).any(0)):
        rng = image_generator(seed, epoch, int(indices[row]))
        if flip_first:
            mirrored[row] = rng.random() < 0.5
        corners[:, row] = rng.integers(0, places, size=2)
        if not flip_first:
            mirrored[row] = rng.random() < 0.5
    return corners[0], corners[1], mirrored
