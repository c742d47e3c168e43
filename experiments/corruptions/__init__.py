"""Common corruptions of small images: `corrupt` applies one corruption at one severity.

A set made here is called "CIFAR-10-C (regenerated)". The constants and methods are the published ones. But the original
generator sets no seed, so the noise, angles and textures are different draws from the same laws.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from experiments.corruptions import blur, digital, weather
from experiments.corruptions import noise_kinds as noise
from experiments.corruptions.constants import CONSTANTS, EXTRA, NAMES, SEVERITIES, SIDE, STANDARD
from experiments.corruptions.pixels import streams
from experiments.corruptions.textures import frost_textures as load_frost

__all__ = ["EXTRA", "NAMES", "SEVERITIES", "STANDARD", "apply", "corrupt"]

#: Each maps `(images, constants, streams)` to images. Its name is that of the corruption.
FUNCTIONS: dict[str, Callable] = {
    name: getattr(module, name) for name in NAMES for module in (noise, blur, weather, digital) if hasattr(module, name)
}

#: Corruptions that need colors. A single channel is tripled for them, and the result is averaged.
COLORED = ("frost", "spatter", "saturate")


def corrupt(
    images: np.ndarray,
    name: str,
    severity: int,
    *,
    seed: int,
    start: int = 0,
    frost: str = "textures",
    frost_textures: str | Path | None = None,
) -> np.ndarray:
    """Corrupt images by one of the common corruptions, with the published constants of CIFAR-10-C.

    The result depends only on the image, its number, and the name, severity and seed. So parts, orders and processes
    give the same bytes. Levels are truncated to whole numbers, not rounded, as in the released generator.

    **Frost** adds photographs that are not part of this project. Without them the call fails with an explanation.
    `frost="procedural"` uses our own noise texture instead. Such numbers are not those of the published frost, and the
    manifest of a generated set says so.

    **One channel**: corruptions that need colors (frost, spatter, saturate) are applied to the tripled channel, and
    the result is averaged over the three. **Small images** (a side below 32 pixels) are enlarged linearly by the
    smallest whole factor that makes the shorter side at least 32, corrupted, and averaged over boxes. This is our
    choice, since constants in pixels are made for 32. The averaging weakens fine noise (by a factor 4 for 8 x 8
    pixels).

    Args:
        images: `(n, H, W, C)`, uint8, C = 1 or 3.
        name: one of `NAMES`.
        severity: 1 to 5.
        seed: random seed.
        start: number of the first image in its set, if these images are a part of it.
        frost: `"textures"` or `"procedural"`.
        frost_textures: folder of the frost photographs; `None` for $NFM_FROST.

    Raises:
        FileNotFoundError: if the photographs for frost are missing.
    """
    if name not in FUNCTIONS:
        raise ValueError(f"name: expected one of {NAMES}, got {name!r}.")
    if severity not in SEVERITIES:
        raise ValueError(f"severity: expected one of {SEVERITIES}, got {severity!r}.")
    function = FUNCTIONS[name]
    if name == "frost":
        function = partial(function, textures=load_frost(frost, frost_textures))
    check_images(images)
    draws = streams(name, severity, range(start, start + len(images)), seed=seed)
    constants = CONSTANTS[name][severity - 1]
    return apply(lambda x: function(x, constants, draws), images, name in COLORED)


def apply(function: Callable, images: np.ndarray, colored: bool = False) -> np.ndarray:
    """Call a function of bytes `(n, H, W, C)` with images of the size and the channels that it needs.

    Args:
        function: keeps the shape, or inserts frames: `(n, F, H, W, C)`.
        images: `(n, H, W, C)`, uint8.
        colored: True if the function needs three channels.

    Returns:
        The result of the function, with the size and the channels of `images`.
    """
    check_images(images)
    if len(images) == 0:
        return images.copy()
    height, width, channels = images.shape[1:]
    factor = -(-SIDE // min(height, width))
    x = images if factor == 1 else _enlarge(images, factor)
    x = np.repeat(x, 3, axis=-1) if colored and channels == 1 else x
    out = function(x)
    if factor == 1 and out.shape[-1] == channels:
        return out
    # Averages over boxes of rows, columns and channels. Whole numbers are summed, so the sums are exact.
    lead = out.shape[:-3]
    boxes = out.reshape(*lead, height, factor, width, factor, channels, -1)
    count = factor * factor * boxes.shape[-1]
    return ((boxes.sum(axis=(-5, -3, -1), dtype=np.int64) + count // 2) // count).astype(np.uint8)


def _enlarge(images: np.ndarray, factor: int) -> np.ndarray:
    """Enlarge images by a whole factor with linear interpolation."""
    n, height, width, channels = images.shape
    size = (width * factor, height * factor)
    large = [cv2.resize(image, size, interpolation=cv2.INTER_LINEAR) for image in images]
    return np.stack(large).reshape(n, height * factor, width * factor, channels)


def check_images(images: np.ndarray) -> None:
    """Refuse anything but images `(n, H, W, C)` as bytes, with one or three channels."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(
            f"images: expected bytes (n, H, W, 1 or 3), got {images.dtype} of shape {tuple(images.shape)}; from "
            "(n, C, H, W) tensors: images.permute(0, 2, 3, 1).numpy()."
        )
