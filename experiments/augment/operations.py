"""The nine operations of AugMix on one image, with AugMix's levels.

| operation | strength at level v (v ~ Uniform(0.1, severity)) |
|---|---|
| autocontrast, equalize | none |
| posterize | keep `4 - int(4 v / 10)` bits |
| solarize | invert bytes of at least `256 - int(256 v / 10)` |
| rotate | `int(30 v / 10)` degrees, in both directions |
| shear_x, shear_y | `0.3 v / 10`, in both directions |
| translate_x, translate_y | `int((side / 3) v / 10)` pixels, in both directions |

Color, contrast, brightness and sharpness are left out, since they overlap with the corruptions of the test sets.
Source: AugMix (Hendrycks et al. 2020); protocol, section 2.4. Rotation and shear use Pillow, bilinear, with black
outside the image. The other operations give the same bytes as Pillow but are much faster for small images.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from experiments.augment.standard import as_array, as_picture

NAMES = (
    "autocontrast", "equalize", "posterize", "rotate", "solarize", "shear_x", "shear_y", "translate_x", "translate_y",
)  # fmt: skip
#: Largest level.
LEVELS = 10
LOWEST_LEVEL = 0.1
BITS, DEGREES, BYTES, SHEAR, SIDE_SHARE = 4, 30, 256, 0.3, 1 / 3
_RAMP = np.arange(BYTES)


class Operation(NamedTuple):
    """One operation as drawn.

    Attributes:
        name: one of `NAMES`.
        level: level of strength, up to 10.
        sign: +1 or -1, the direction of a geometric operation.
    """

    name: str
    level: float
    sign: int


def _look_up(image: np.ndarray, tables: np.ndarray) -> np.ndarray:
    """Replace bytes by means of a table: `(256,)` for all channels, or `(256, C)`."""
    # OpenCV drops a single channel; the last reshape restores it.
    table = tables.astype(np.uint8).reshape(1, BYTES, -1)
    return cv2.LUT(np.ascontiguousarray(image), table).reshape(image.shape)


def autocontrast(image: np.ndarray) -> np.ndarray:
    """Stretch every channel to the full range of bytes. A constant channel is not changed."""
    tables = np.empty((BYTES, image.shape[2]))
    for c, plane in enumerate(cv2.split(image)):
        low, high = int(plane.min()), int(plane.max())
        if high > low:
            scale = (BYTES - 1) / (high - low)
            tables[:, c] = _RAMP * scale + -low * scale
        else:
            tables[:, c] = _RAMP
    return _look_up(image, np.clip(tables, 0, BYTES - 1))


def equalize(image: np.ndarray) -> np.ndarray:
    """Flatten the histogram of every channel by a table of bytes; see `PIL.ImageOps.equalize`."""
    tables = np.empty((BYTES, image.shape[2]), dtype=np.int64)
    for c in range(image.shape[2]):
        counts = cv2.calcHist([image], [c], None, [BYTES], [0, BYTES]).ravel().astype(np.int64)
        below = np.cumsum(counts) - counts
        # Number of pixels below the brightest value that occurs, divided by the number of steps between bytes.
        step = int(below[counts.nonzero()[0][-1]]) // (BYTES - 1)
        tables[:, c] = (step // 2 + below) // step if step else _RAMP
    return _look_up(image, np.minimum(tables, BYTES - 1))


def posterize(image: np.ndarray, bits: int) -> np.ndarray:
    """Keep the highest `bits` bits of every byte."""
    return image & np.uint8(BYTES - 2 ** (8 - bits))


def solarize(image: np.ndarray, threshold: int) -> np.ndarray:
    """Invert the bytes that are at least the threshold."""
    return _look_up(image, np.where(threshold > _RAMP, _RAMP, BYTES - 1 - _RAMP))


def rotate(image: np.ndarray, degrees: float) -> np.ndarray:
    """Rotate about the centre, counter-clockwise."""
    return as_array(as_picture(image).rotate(degrees, resample=Image.Resampling.BILINEAR))


def affine(image: np.ndarray, matrix: tuple[float, ...]) -> np.ndarray:
    """Put the byte at `(a x + b y + c, d x + e y + f)` at each place `(x, y)` of the result."""
    picture = as_picture(image)
    return as_array(picture.transform(picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR))


def translate(image: np.ndarray, right: int, down: int) -> np.ndarray:
    """Move by whole pixels. Pixels from outside the image are black."""
    height, width = image.shape[:2]
    moved = np.zeros_like(image)
    top, bottom, left, end = max(down, 0), height + min(down, 0), max(right, 0), width + min(right, 0)
    moved[top:bottom, left:end] = image[top - down : bottom - down, left - right : end - right]
    return moved


def apply_operation(image: np.ndarray, operation: Operation) -> np.ndarray:
    """Apply one operation to bytes `(H, W, C)` with one or three channels."""
    name, level, sign = operation
    part = level / LEVELS
    if name == "autocontrast":
        return autocontrast(image)
    if name == "equalize":
        return equalize(image)
    if name == "posterize":
        return posterize(image, BITS - int(part * BITS))
    if name == "solarize":
        return solarize(image, BYTES - int(part * BYTES))
    if name == "rotate":
        return rotate(image, sign * int(part * DEGREES))
    if name == "shear_x":
        return affine(image, (1, sign * part * SHEAR, 0, 0, 1, 0))
    if name == "shear_y":
        return affine(image, (1, 0, 0, sign * part * SHEAR, 1, 0))
    if name == "translate_x":
        return translate(image, -sign * int(part * image.shape[1] * SIDE_SHARE), 0)
    if name == "translate_y":
        return translate(image, 0, -sign * int(part * image.shape[0] * SIDE_SHARE))
    raise ValueError(f"operation: expected one of {NAMES}, got {name!r}.")
