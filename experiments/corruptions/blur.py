"""Blur: defocus, glass, motion, zoom and Gaussian."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np
import scipy

from experiments.corruptions.pixels import GUARD, Streams, to_bytes, to_unit, zoom_taps

#: Weights of a motion blur below this share of the first weight are left out.
NEGLIGIBLE = 1e-6


def smooth(pixels: np.ndarray, sigma: float, *, mode: str = "nearest", truncate: float = 4.0) -> np.ndarray:
    """Gaussian filter over the second and third axis of `(n, H, W, ...)`. By default edges are repeated."""
    if sigma == 0:
        return pixels
    sigmas = (0, sigma, sigma) + (0,) * (pixels.ndim - 3)
    return scipy.ndimage.gaussian_filter(pixels, sigmas, mode=mode, truncate=truncate)


def gaussian_blur(images: np.ndarray, sigma: float, draws: Streams) -> np.ndarray:
    """Gaussian filter, truncated at four standard deviations."""
    return to_bytes(smooth(to_unit(images), sigma))


def disk_kernel(radius: float, alias_blur: float) -> np.ndarray:
    """A uniform disk on the pixel grid, smoothed by a 3 x 3 Gaussian of standard deviation `alias_blur`, with sum 1.

    The radius is in pixels, at most 8.
    """
    reach = int(radius) + 2
    offsets = np.arange(-reach, reach + 1)
    disk = (offsets[:, None] ** 2 + offsets**2 <= radius**2).astype(np.float32)
    return cv2.GaussianBlur(disk / disk.sum(), ksize=(3, 3), sigmaX=alias_blur)


def _filter(images: np.ndarray, kernel: np.ndarray, **options: object) -> np.ndarray:
    """OpenCV's correlation of each image. OpenCV drops a single channel, which is restored."""
    return np.stack([cv2.filter2D(image, -1, kernel, **options) for image in images]).reshape(images.shape)


def defocus_blur(images: np.ndarray, constants: tuple[float, float], draws: Streams) -> np.ndarray:
    """Correlation with a disk; edges are mirrored without repeating the last pixel."""
    return to_bytes(_filter(to_unit(images), disk_kernel(*constants)))


def glass_blur(images: np.ndarray, constants: tuple[float, int, int], draws: Streams) -> np.ndarray:
    """Smooth, replace each pixel by a random near neighbor, and smooth again. Only reach 1 is supported.

    The released generator intends to swap pixels, but swapping two views of one array *copies* one of them. So each
    pixel takes the color of a neighbor at offset (dy, dx), both uniform in {-reach, ..., reach - 1}. The generator
    runs from the last pixel to the first, so with reach 1 (all CIFAR constants) the sources are not changed yet, and
    the whole pass is one lookup. Rows and columns 0 and 1 keep their pixels.
    """
    sigma, reach, repeats = constants
    if reach != 1:
        raise ValueError(f"glass_blur: expected reach 1, as in all CIFAR constants, got {reach!r}.")
    x = to_bytes(smooth(to_unit(images), sigma))
    n, height, width = x.shape[:3]
    rows, columns = np.arange(2, height)[:, None], np.arange(2, width)
    offsets = np.stack([g.integers(-1, 1, size=(repeats, 2, height - 2, width - 2)) for g in draws])
    picture = np.arange(n)[:, None, None]
    for r in range(repeats):
        x[:, 2:, 2:] = x[picture, rows + offsets[:, r, 0], columns + offsets[:, r, 1]]
    return to_bytes(smooth(to_unit(x), sigma))


def motion_kernel(radius: float, sigma: float, angle: float) -> tuple[np.ndarray, tuple[int, int]]:
    """A line of pixels on one side with Gaussian weights, as in ImageMagick's motion blur, with sum 1.

    Tap i = 0 .. 2 radius has weight proportional to exp(-i² / (2 sigma²)). It lies `ceil(i cos(angle) - 1/2)` pixels to
    the right and `ceil(i sin(angle) - 1/2)` pixels down.

    Args:
        radius: radius in pixels.
        sigma: standard deviation in pixels.
        angle: angle in degrees.

    Returns:
        The kernel, float32, cropped to its non-zero part, and the place `(x, y)` of tap 0 in it.
    """
    taps = np.arange(2 * int(np.ceil(radius)) + 1)
    weights = np.exp(-(taps**2) / (2 * sigma**2))
    kept = weights >= NEGLIGIBLE
    taps, weights = taps[kept], weights[kept]
    turn = np.deg2rad(angle)
    x = np.ceil(taps * np.cos(turn) - 0.5).astype(np.int64)
    y = np.ceil(taps * np.sin(turn) - 0.5).astype(np.int64)
    kernel = np.zeros((np.ptp(y) + 1, np.ptp(x) + 1))
    np.add.at(kernel, (y - y.min(), x - x.min()), weights / weights.sum())
    return kernel.astype(np.float32), (int(-x.min()), int(-y.min()))


def blur_along(images: np.ndarray, radius: float, sigma: float, angles: Sequence[float]) -> np.ndarray:
    """Motion blur of bytes `(n, H, W, C)`, each with its own angle in degrees.

    Edges are repeated. Levels are truncated, as ImageMagick does on the way through a PNG file.
    """
    out = np.empty(images.shape, dtype=np.float32)
    for image, target, angle in zip(images.astype(np.float32), out, angles, strict=True):
        kernel, anchor = motion_kernel(radius, sigma, angle)
        blurred = cv2.filter2D(image, -1, kernel, anchor=anchor, borderType=cv2.BORDER_REPLICATE)
        target[...] = blurred.reshape(image.shape)
    return np.clip(out + GUARD, 0, 255).astype(np.uint8)


def motion_blur(images: np.ndarray, constants: tuple[float, float], draws: Streams) -> np.ndarray:
    """Motion blur at an angle uniform in (-45, 45) degrees."""
    return blur_along(images, *constants, [g.uniform(-45, 45) for g in draws])


@lru_cache(maxsize=16)
def zoom_operator(height: int, width: int, factors: tuple[float, ...]) -> scipy.sparse.csr_array:
    """The linear map of zoom blur on flattened pixels, `(H W, H W)`: the mean of the image and all zoomed images."""
    total = scipy.sparse.eye_array(height * width, format="csr")
    for factor in factors:
        total = total + scipy.sparse.kron(_zoom_matrix(height, factor), _zoom_matrix(width, factor), format="csr")
    return total / (len(factors) + 1)


def _zoom_matrix(side: int, factor: float) -> scipy.sparse.csr_array:
    """The matrix of `clipped_zoom` for one line of pixels."""
    lower, upper, weight = zoom_taps(side, factor)
    rows = np.tile(np.arange(side), 2)
    entries = np.concatenate([1 - weight, weight])
    return scipy.sparse.csr_array(
        scipy.sparse.coo_array((entries, (rows, np.concatenate([lower, upper]))), shape=(side, side)),
    )


def zoom_blur(images: np.ndarray, factors: tuple[float, ...], draws: Streams) -> np.ndarray:
    """Mean of the image and of the image enlarged by each factor."""
    n, height, width, channels = images.shape
    x = to_unit(images).transpose(1, 2, 0, 3).reshape(height * width, n * channels)
    out = zoom_operator(height, width, factors) @ x
    return to_bytes(out.reshape(height, width, n, channels).transpose(2, 0, 1, 3))
