"""Tools for all corruptions: random streams for each image, conversion of pixels, and linear interpolation."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

#: One random generator for each image.
Streams = Sequence[np.random.Generator]

#: Weights of red, green and blue in the luma of Rec. 601, as in OpenCV's conversion to grey.
LUMA = (0.299, 0.587, 0.114)

#: Added before truncation, so that the rounding error of a whole level does not lower it by one.
GUARD = 2.0**-10


def streams(name: str, severity: int, indices: range, *, seed: int) -> list[np.random.Generator]:
    """A random stream for each image, which depends only on seed, name, severity and the image's number.

    The key of the Philox generator contains a digest of seed, name and severity, and the number of the image. So it
    does not matter which images are made together, in which order or by which process.
    """
    digest = hashlib.blake2b(f"{seed}/{name}/{severity}".encode(), digest_size=8).digest()
    word = int.from_bytes(digest, "little")
    return [np.random.Generator(np.random.Philox(key=np.array([word, i], dtype=np.uint64))) for i in indices]


def to_unit(images: np.ndarray) -> np.ndarray:
    """Bytes as float64 in [0, 1]."""
    return images / 255.0


def to_bytes(pixels: np.ndarray) -> np.ndarray:
    """Pixels in [0, 1] as bytes, truncated (not rounded) to whole levels, as in the published sets."""
    return (np.clip(pixels, 0, 1) * 255 + GUARD).astype(np.uint8)


def grey(pixels: np.ndarray) -> np.ndarray:
    """Luma of colors: `(..., 3)` to `(..., 1)`. A single channel is kept."""
    if pixels.shape[-1] == 1:
        return pixels
    red, green, blue = (weight * pixels[..., i : i + 1] for i, weight in enumerate(LUMA))
    return red + green + blue


def zoom_taps(side: int, factor: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Linear interpolation that enlarges the middle of a line of `side` pixels and keeps its length.

    The middle `ceil(side / factor)` pixels are spread over `round(that * factor)` points from end to end, of which the
    middle `side` points are kept.

    Returns:
        `(lower, upper, weight)`, each of length `side`. The output is `(1 - weight) x[lower] + weight x[upper]`.
    """
    kept = int(np.ceil(side / factor))
    top = (side - kept) // 2
    grown = round(kept * factor)
    places = np.arange(grown) * ((kept - 1) / max(grown - 1, 1))
    trim = (grown - side) // 2
    places = places[trim : trim + side]
    lower = np.minimum(np.floor(places).astype(np.int64), kept - 1)
    upper = np.minimum(lower + 1, kept - 1)
    return top + lower, top + upper, places - lower


def clipped_zoom(layers: np.ndarray, factor: float) -> np.ndarray:
    """Enlarge the middle of layers `(n, H, W)` by a factor >= 1 and keep their size."""
    for axis in (1, 2):
        lower, upper, weight = zoom_taps(layers.shape[axis], factor)
        weight = weight[:, None] if axis == 1 else weight
        layers = np.take(layers, lower, axis) * (1 - weight) + np.take(layers, upper, axis) * weight
    return layers
