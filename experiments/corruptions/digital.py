"""Contrast, saturation, elastic deformation, pixelation and JPEG."""

from __future__ import annotations

import io

import cv2
import numpy as np
from PIL import Image

from experiments.corruptions.blur import smooth
from experiments.corruptions.pixels import Streams, to_bytes, to_unit


def contrast(images: np.ndarray, factor: float, draws: Streams) -> np.ndarray:
    """Move each channel towards its mean over the image."""
    # Sums of whole numbers are exact, so the mean does not depend on the number of images.
    total = images.sum(axis=(1, 2), keepdims=True, dtype=np.int64)
    mean = total / (255.0 * images.shape[1] * images.shape[2])
    return to_bytes((to_unit(images) - mean) * factor + mean)


def saturate(images: np.ndarray, constants: tuple[float, float], draws: Streams) -> np.ndarray:
    """Multiply the saturation of HSV by a factor, add a shift, and clip. It needs three channels.

    Value v and hue are kept: `x' = v - (v - x) s' / s`. A grey pixel has hue 0 by convention, so a shift makes it
    reddish.
    """
    factor, shift = constants
    x = to_unit(images)
    value = x.max(axis=-1, keepdims=True)
    spread = value - x.min(axis=-1, keepdims=True)
    saturation = np.divide(spread, value, out=np.zeros_like(value), where=value > 0)
    new = np.clip(saturation * factor + shift, 0, 1)
    # Distance from the value as a share of the spread. Grey pixels have that of red.
    distance = np.divide(value - x, spread, out=np.broadcast_to([0.0, 1.0, 1.0], x.shape).copy(), where=spread > 0)
    return to_bytes(value * (1 - new * distance))


def pixelate(images: np.ndarray, share: float, draws: Streams) -> np.ndarray:
    """Scale to a share of the side and back, each time by averaging boxes."""
    height, width = images.shape[1:3]

    def one(image: np.ndarray) -> np.ndarray:
        small = Image.fromarray(image).resize((int(width * share), int(height * share)), Image.Resampling.BOX)
        return np.asarray(small.resize((width, height), Image.Resampling.BOX))

    return by_image(one, images)


def jpeg_compression(images: np.ndarray, quality: int, draws: Streams) -> np.ndarray:
    """Write as JPEG and read back."""

    def one(image: np.ndarray) -> np.ndarray:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=quality)
        return np.asarray(Image.open(buffer))

    return by_image(one, images)


def by_image(one, images: np.ndarray) -> np.ndarray:
    """Apply a function of `(H, W, 3)` or, for one channel, `(H, W)` to each image."""
    flat = images[..., 0] if images.shape[-1] == 1 else images
    return np.stack([one(image) for image in flat]).reshape(images.shape)


def elastic_transform(images: np.ndarray, constants: tuple[float, float, float], draws: Streams) -> np.ndarray:
    """A random affine map, then random smooth displacements, both with linear interpolation.

    The affine map moves three points, a third of the side away from the centre, by uniform shifts. The displacements
    are uniform in [-1, 1], smoothed by a Gaussian that is truncated at three standard deviations, and multiplied by the
    strength. The constants are strength, smoothness and affine shift, as shares of the shorter side.
    """
    n, height, width, _ = images.shape
    side = min(height, width)
    strength, smoothness, shift = (c * side for c in constants)
    centre = np.float32((width, height)) // 2  # (x, y); the published code has (y, x), the same on its square images
    third = side // 3
    points = np.float32([centre + third, [centre[0] + third, centre[1] - third], centre - third])
    moved = np.stack([g.uniform(-shift, shift, size=(3, 2)) for g in draws]).astype(np.float32)
    x = to_unit(images).astype(np.float32)
    for i in range(n):
        matrix = cv2.getAffineTransform(points, points + moved[i])
        warped = cv2.warpAffine(x[i], matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101)
        x[i] = warped.reshape(x[i].shape)
    if strength == 0:
        return to_bytes(x.astype(np.float64))
    field = np.stack([g.uniform(-1, 1, size=(2, height, width)) for g in draws])
    dx, dy = (strength * smooth(field[:, i], smoothness, mode="reflect", truncate=3.0) for i in (0, 1))
    return to_bytes(sample(x, np.arange(height)[:, None] + dy, np.arange(width) + dx))


def sample(pixels: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Linear interpolation of pixels `(n, H, W, C)` at real places: rows and columns `(n, H', W')`. Returns float64.

    Outside, the image is mirrored, with its last pixel repeated.
    """
    picture = np.arange(len(pixels))[:, None, None]
    top, left = np.floor(rows).astype(np.int64), np.floor(columns).astype(np.int64)
    down, right = (rows - top)[..., None], (columns - left)[..., None]
    (y0, y1), (x0, x1) = (
        (_mirror(first, size), _mirror(first + 1, size))
        for first, size in ((top, pixels.shape[1]), (left, pixels.shape[2]))
    )
    upper = pixels[picture, y0, x0] * (1 - right) + pixels[picture, y0, x1] * right
    lower = pixels[picture, y1, x0] * (1 - right) + pixels[picture, y1, x1] * right
    return upper * (1 - down) + lower * down


def _mirror(index: np.ndarray, size: int) -> np.ndarray:
    """Map any index into 0 .. size - 1 by reflection at the outer edges of the pixels."""
    index = np.mod(index, 2 * size)
    return np.minimum(index, 2 * size - 1 - index)
