"""Crop and flip: the augmentation of every recipe, one image at a time or many at once.

Crops are padded with zero bytes (black) before normalisation, as in the papers' loaders. For CIFAR they have 32 pixels
and padding 4. NFM crops first, and NoisyMix flips first; the distribution is the same, but single draws differ. For
ImageNet there is a random resized crop of 224 pixels and a flip. For testing, the shorter side is resized to 256 and
the central 224 pixels are cropped (protocol, section 3).
"""

from __future__ import annotations

import numpy as np
from PIL import Image

#: Width in pixels of the black margin of a random crop.
PADDING = 4
#: Number of tries before the random resized crop takes the centre.
TRIES = 10


def as_picture(image: np.ndarray) -> Image.Image:
    """Bytes `(H, W, C)` with one or three channels as a Pillow image."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
        raise ValueError(
            f"image: expected bytes (H, W, C) with 1 or 3 channels, got {image.dtype} of shape {image.shape}."
        )
    return Image.fromarray(image if image.shape[2] == 3 else image[:, :, 0])


def as_array(picture: Image.Image) -> np.ndarray:
    """A Pillow image as bytes `(H, W, C)`."""
    array = np.asarray(picture)
    return array if array.ndim == 3 else array[:, :, None]


def random_crop(image: np.ndarray, rng: np.random.Generator, padding: int = PADDING) -> np.ndarray:
    """A window of the size of the image at a random place of the image with a black margin of `padding` pixels."""
    top, left = rng.integers(0, 2 * padding + 1, size=2)
    height, width = image.shape[:2]
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    return padded[top : top + height, left : left + width]


def random_flip(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The image or, with probability 1/2, its mirror image (left and right exchanged)."""
    return image[:, ::-1] if rng.random() < 0.5 else image


def crops(
    images: np.ndarray, top: np.ndarray, left: np.ndarray, mirrored: np.ndarray, *, flip_first: bool
) -> np.ndarray:
    """`random_crop` and `random_flip` of many images of one size, with given draws.

    Args:
        images: bytes `(n, H, W, C)`.
        top: first row of each window in the padded image, `(n,)`, from 0 to `2 * PADDING`.
        left: first column of each window.
        mirrored: True for each image that is mirrored.
        flip_first: True to crop the mirrored image, False to mirror the window.

    Returns:
        The windows, bytes `(n, H, W, C)`.
    """
    n, height, width, _ = images.shape
    padded = np.zeros((n, height + 2 * PADDING, width + 2 * PADDING, images.shape[3]), images.dtype)
    padded[:, PADDING : PADDING + height, PADDING : PADDING + width] = images
    rows, columns = top[:, None] + np.arange(height), left[:, None] + np.arange(width)
    # A mirrored image has its columns in reverse, over the whole padded width or only within the window
    reverse = padded.shape[2] - 1 - columns if flip_first else columns[:, ::-1]
    columns = np.where(mirrored[:, None], reverse, columns)
    return padded[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]


def _central_box(height: int, width: int, low: float, high: float) -> tuple[int, int, int, int]:
    """The largest central box whose ratio width / height lies in [low, high]: (top, left, height, width)."""
    h, w = height, width
    if width / height < low:
        h = min(height, round(width / low))
    elif width / height > high:
        w = min(width, round(height * high))
    return (height - h) // 2, (width - w) // 2, h, w


def resized_crop_box(
    height: int,
    width: int,
    rng: np.random.Generator,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[int, int, int, int]:
    """Draw the box `(top, left, height, width)` of a random resized crop: uniform area, log aspect ratio and place.

    After `TRIES` boxes that do not fit, it is the largest central box.

    Args:
        height: height of the image in pixels.
        width: width of the image in pixels.
        rng: source of randomness.
        scale: smallest and largest share of the image's area.
        ratio: smallest and largest width / height.
    """
    for _ in range(TRIES):
        area = height * width * rng.uniform(*scale)
        aspect = np.exp(rng.uniform(np.log(ratio[0]), np.log(ratio[1])))
        w, h = round(float(np.sqrt(area * aspect))), round(float(np.sqrt(area / aspect)))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w
    return _central_box(height, width, *ratio)


def random_resized_crop(image: np.ndarray, rng: np.random.Generator, size: int = 224, **options) -> np.ndarray:
    """A random part of an image `(H, W, C)`, resized to bytes `(size, size, C)` (bilinear, with anti-aliasing).

    The options are those of `resized_crop_box`.
    """
    top, left, h, w = resized_crop_box(*image.shape[:2], rng, **options)
    part = as_picture(np.ascontiguousarray(image[top : top + h, left : left + w]))
    return as_array(part.resize((size, size), Image.Resampling.BILINEAR))


def centre_view(image: Image.Image, *, resize: int = 256, crop: int = 224) -> Image.Image:
    """The test view: resize the shorter side to `resize` pixels (bilinear), then crop the central `crop` pixels.

    The longer side is rounded down.
    """
    if not 0 < crop <= resize:
        raise ValueError(f"crop: expected 1 to resize = {resize} pixels, got {crop}.")
    width, height = image.size
    short = min(width, height)
    width, height = int(resize * width / short), int(resize * height / short)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - crop) / 2), round((height - crop) / 2)
    return image.crop((left, top, left + crop, top + crop))


def center_crop_resize(image: np.ndarray, size: int = 224, *, resize: int = 256) -> np.ndarray:
    """The `centre_view` of an image in bytes: `(H, W, C)` to `(size, size, C)`."""
    return as_array(centre_view(as_picture(image), resize=resize, crop=size))
