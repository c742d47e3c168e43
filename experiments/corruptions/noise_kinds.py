"""Noise: Gaussian, shot, impulse and speckle, with an independent draw for every channel of every pixel."""

from __future__ import annotations

import numpy as np

from experiments.corruptions.pixels import Streams, to_bytes, to_unit


def _normal(shape: tuple[int, ...], draws: Streams) -> np.ndarray:
    """Standard normal numbers in the shape of one image, for each stream."""
    return np.stack([g.standard_normal(shape) for g in draws])


def gaussian_noise(images: np.ndarray, scale: float, draws: Streams) -> np.ndarray:
    """`x + scale * Z`, clipped."""
    return to_bytes(to_unit(images) + scale * _normal(images.shape[1:], draws))


def speckle_noise(images: np.ndarray, scale: float, draws: Streams) -> np.ndarray:
    """`x + x * scale * Z`, clipped."""
    x = to_unit(images)
    return to_bytes(x + x * scale * _normal(images.shape[1:], draws))


def shot_noise(images: np.ndarray, photons: float, draws: Streams) -> np.ndarray:
    """`Poisson(x * photons) / photons`, clipped: variance `x / photons`."""
    x = to_unit(images)
    counts = np.stack([g.poisson(image * photons) for image, g in zip(x, draws, strict=True)])
    return to_bytes(counts / photons)


def impulse_noise(images: np.ndarray, share: float, draws: Streams) -> np.ndarray:
    """Each value changes with probability `share`, to black or to white with equal probability."""
    # One uniform draw decides both: black below share / 2, white from there to share.
    u = np.stack([g.random(images.shape[1:]) for g in draws])
    return np.where(u < share / 2, np.uint8(0), np.where(u < share, np.uint8(255), images))
