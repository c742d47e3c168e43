"""What all corruptions share: random streams by image, bytes and unit pixels, and linear resampling."""

from __future__ import annotations

import hashlib

import numpy as np

#: Weights of red, green and blue in the luma of Rec. 601, which OpenCV's grey conversion uses.
LUMA = (0.299, 0.587, 0.114)

#: Added before cutting to whole levels, so that an exact level with a rounding error is not lowered by one.
GUARD = 2.0**-10


def streams(name: str, severity: int, indices: range, *, seed: int) -> list[np.random.Generator]:
    """A random stream for each image, fixed by seed, name, severity and the image's number alone.

    Philox generators with the key (digest of seed, name and severity; number of the image). Nothing depends on which
    images are made together, in which order or by which process.
    """
    digest = hashlib.blake2b(f"{seed}/{name}/{severity}".encode(), digest_size=8).digest()
    word = int.from_bytes(digest, "little")
    return [np.random.Generator(np.random.Philox(key=np.array([word, i], dtype=np.uint64))) for i in indices]


def to_unit(images: np.ndarray) -> np.ndarray:
    """Bytes as float64 in [0, 1]."""
    return images / 255.0


def to_bytes(pixels: np.ndarray) -> np.ndarray:
    """Pixels in [0, 1] as bytes, cut (not rounded) to whole levels as the published sets are."""
    return (np.clip(pixels, 0, 1) * 255 + GUARD).astype(np.uint8)


def grey(pixels: np.ndarray) -> np.ndarray:
    """Luma, `(..., 1)`, of `(..., 3)`; one channel stays as it is."""
    if pixels.shape[-1] == 1:
        return pixels
    red, green, blue = (weight * pixels[..., i : i + 1] for i, weight in enumerate(LUMA))
    return red + green + blue


def zoom_taps(side: int, factor: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Linear interpolation that enlarges the middle of a line of pixels and keeps its length.

    The middle `ceil(side / factor)` pixels are spread over `round(that * factor)` points, end to end, and the middle
    `side` of those are kept.

    Returns:
        `(lower, upper, weight)`, each of length `side`: output is `(1 - weight) x[lower] + weight x[upper]`.
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
    """Enlarge the middle of `(n, H, W)` layers by a factor >= 1 and keep the size."""
    for axis in (1, 2):
        lower, upper, weight = zoom_taps(layers.shape[axis], factor)
        weight = weight[:, None] if axis == 1 else weight
        layers = np.take(layers, lower, axis) * (1 - weight) + np.take(layers, upper, axis) * weight
    return layers
