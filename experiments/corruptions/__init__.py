"""Common corruptions of small images, regenerated: `corrupt` makes one kind at one severity.

The sets made here are called "CIFAR-10-C (regenerated)": the constants and methods are the published ones, but the
original generator sets no seed, so the noise, angles and textures are other draws from the same laws.
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

#: Each maps `(images, constants, streams)` to images.
FUNCTIONS: dict[str, Callable] = {
    "gaussian_noise": noise.gaussian_noise,
    "shot_noise": noise.shot_noise,
    "impulse_noise": noise.impulse_noise,
    "speckle_noise": noise.speckle_noise,
    "defocus_blur": blur.defocus_blur,
    "glass_blur": blur.glass_blur,
    "motion_blur": blur.motion_blur,
    "zoom_blur": blur.zoom_blur,
    "gaussian_blur": blur.gaussian_blur,
    "snow": weather.snow,
    "frost": weather.frost,
    "fog": weather.fog,
    "brightness": weather.brightness,
    "spatter": weather.spatter,
    "contrast": digital.contrast,
    "saturate": digital.saturate,
    "elastic_transform": digital.elastic_transform,
    "pixelate": digital.pixelate,
    "jpeg_compression": digital.jpeg_compression,
}

#: Those that only make sense in colour; one channel is tripled, and the result averaged.
COLOURED = ("frost", "spatter", "saturate")


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

    The result is a function of the image, its number, name, severity and seed alone: parts, orders and processes give
    the same bytes. Levels are cut, not rounded, to whole numbers, as the released generator does.

    **Frost** adds photographs that this project does not contain. Without them the call fails and says what to do.
    `frost="procedural"` takes a noise texture of our own instead: such numbers are not those of the published frost,
    and the manifest of a generated set says so.

    **One channel**: kinds that only make sense in colour (frost, spatter, saturate) work on the tripled channel, and
    the result is averaged over the three. **Small images** (a side below 32 pixels): enlarged linearly by the smallest
    whole factor that makes the shorter side 32 or more, corrupted, and averaged back over boxes. This is our choice,
    as the constants in pixels are made for 32; fine noise loses strength by the averaging (a factor 4 for 8 x 8).

    Args:
        images: `(n, H, W, C)`, uint8, C = 1 or 3.
        name: one of `NAMES`.
        severity: 1 to 5.
        seed: of all draws.
        start: number of the first image in its set, for making a part of it.
        frost: `"textures"` or `"procedural"`.
        frost_textures: folder of the frost photographs; by default $NFM_FROST.

    Returns:
        Images of the same shape, uint8.

    Raises:
        FileNotFoundError: for frost without its photographs.
        ValueError: for other images, names, severities or kinds of frost.
    """
    if name not in FUNCTIONS:
        raise ValueError(f"name: expected one of {NAMES}, got {name!r}.")
    if severity not in SEVERITIES:
        raise ValueError(f"severity: expected one of {SEVERITIES}, got {severity!r}.")
    function = FUNCTIONS[name]
    if name == "frost":
        function = partial(function, textures=load_frost(frost, frost_textures))
    _check(images)
    draws = streams(name, severity, range(start, start + len(images)), seed=seed)
    constants = CONSTANTS[name][severity - 1]
    return apply(lambda x: function(x, constants, draws), images, name in COLOURED)


def apply(function: Callable, images: np.ndarray, coloured: bool = False) -> np.ndarray:
    """Call a function of bytes `(n, H, W, C)` in the size and with the channels that it needs.

    Args:
        function: keeps the shape, or puts frames before it: `(n, F, H, W, C)`.
        images: `(n, H, W, C)`, uint8.
        coloured: three channels are needed.

    Returns:
        What the function returns, with the size and the channels of `images`.
    """
    _check(images)
    if len(images) == 0:
        return images.copy()
    height, width, channels = images.shape[1:]
    factor = -(-SIDE // min(height, width))
    x = images if factor == 1 else _enlarge(images, factor)
    x = np.repeat(x, 3, axis=-1) if coloured and channels == 1 else x
    out = function(x)
    if factor == 1 and out.shape[-1] == channels:
        return out
    # Rows, columns and channels in boxes; whole numbers sum exactly.
    lead = out.shape[:-3]
    boxes = out.reshape(*lead, height, factor, width, factor, channels, -1)
    count = factor * factor * boxes.shape[-1]
    return ((boxes.sum(axis=(-5, -3, -1), dtype=np.int64) + count // 2) // count).astype(np.uint8)


def _enlarge(images: np.ndarray, factor: int) -> np.ndarray:
    """Linear interpolation to `factor` times the size."""
    n, height, width, channels = images.shape
    size = (width * factor, height * factor)
    large = [cv2.resize(image, size, interpolation=cv2.INTER_LINEAR) for image in images]
    return np.stack(large).reshape(n, height * factor, width * factor, channels)


def _check(images: np.ndarray) -> None:
    """Refuse what is no batch of images with the channel last."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(
            f"images: expected bytes (n, H, W, 1 or 3), got {images.dtype} of shape {tuple(images.shape)}; from "
            "(n, C, H, W) tensors: images.permute(0, 2, 3, 1).numpy()."
        )
