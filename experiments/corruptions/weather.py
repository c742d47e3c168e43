"""Weather: snow, frost, fog, brightness and spatter."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from experiments.corruptions.blur import blur_along, smooth
from experiments.corruptions.pixels import Streams, clipped_zoom, grey, to_bytes, to_unit

#: Colors of the splashes, red, green, blue.
WATER = (175, 238, 238)
MUD = (63, 42, 20)


def brightness(images: np.ndarray, shift: float, draws: Streams) -> np.ndarray:
    """Add a shift to the value of HSV and clip it. Hue and saturation are kept, so colors are scaled."""
    x = to_unit(images)
    value = x.max(axis=-1, keepdims=True)
    new = np.clip(value + shift, 0, 1)
    return to_bytes(np.where(value > 0, x * (new / np.where(value > 0, value, 1)), new))


def plasma(side: int, decay: float, draws: Streams) -> np.ndarray:
    """Diamond-square heights on a torus, scaled to [0, 1]: `(n, side, side)`, float64.

    Each midpoint is the mean of its four neighbors plus uniform noise. The noise of a level has amplitude w², where w
    starts at 100 and is divided by `decay` after each level. The first corner is 0. The side is a power of two.
    """
    noise = np.stack([g.uniform(-1, 1, size=side * side - 1) for g in draws])
    heights = np.zeros((len(draws), side, side))
    used, step, amplitude = 0, side, 100.0

    def fill(rows: slice, columns: slice, neighbors: np.ndarray) -> None:
        nonlocal used
        count = neighbors[0].size
        bumps = noise[:, used : used + count].reshape(neighbors.shape)
        heights[:, rows, columns] = neighbors / 4 + amplitude**2 * bumps
        used += count

    while step >= 2:
        corners, middles = slice(0, side, step), slice(step // 2, side, step)
        corner = heights[:, corners, corners]
        pair = corner + np.roll(corner, -1, 1)
        fill(middles, middles, pair + np.roll(pair, -1, 2))
        middle = heights[:, middles, middles]
        fill(corners, middles, middle + np.roll(middle, 1, 1) + corner + np.roll(corner, -1, 2))
        fill(middles, corners, middle + np.roll(middle, 1, 2) + corner + np.roll(corner, -1, 1))
        step //= 2
        amplitude /= decay
    heights -= heights.min(axis=(1, 2), keepdims=True)
    return heights / heights.max(axis=(1, 2), keepdims=True)


def fog(images: np.ndarray, constants: tuple[float, float], draws: Streams) -> np.ndarray:
    """Add a plasma of the given amount, then scale back so that the levels do not exceed the brightest of the image."""
    amount, decay = constants
    height, width = images.shape[1:3]
    x = to_unit(images)
    brightest = x.max(axis=(1, 2, 3), keepdims=True)
    side = 1 << (max(height, width) - 1).bit_length()
    mist = plasma(side, decay, draws)[:, :height, :width, None]
    return to_bytes((x + amount * mist) * brightest / (brightest + amount))


def snow_flakes(shape: tuple[int, int], constants: tuple, draws: Streams) -> np.ndarray:
    """Sparse flakes before blurring, bytes `(n, H, W, 1)`: normal noise, enlarged, and set to 0 below the threshold.

    The constants are mean, standard deviation, zoom and threshold.
    """
    mean, std, zoom, threshold = constants
    layer = mean + std * np.stack([g.standard_normal(shape) for g in draws])
    layer = clipped_zoom(layer, zoom)
    return to_bytes(np.where(layer < threshold, 0, layer))[..., None]


def whiten(pixels: np.ndarray, share: float) -> np.ndarray:
    """Winter light: `share * x + (1 - share) * max(x, 1.5 grey(x) + 0.5)`."""
    return share * pixels + (1 - share) * np.maximum(pixels, grey(pixels) * 1.5 + 0.5)


def snow(images: np.ndarray, constants: tuple, draws: Streams) -> np.ndarray:
    """Flakes, blurred at an angle uniform in (-135, -45) degrees, and the same turned by 180, on a whitened image."""
    *flakes, radius, sigma, share = constants
    layer = snow_flakes(images.shape[1:3], tuple(flakes), draws)
    layer = to_unit(blur_along(layer, radius, sigma, [g.uniform(-135, -45) for g in draws]))
    return to_bytes(whiten(to_unit(images), share) + layer + layer[:, ::-1, ::-1])


def frost(
    images: np.ndarray, constants: tuple[float, float], draws: Streams, textures: Sequence[np.ndarray]
) -> np.ndarray:
    """Weighted sum of the image and a random piece of a random texture. It needs three channels.

    Args:
        images: `(n, H, W, 3)`, bytes.
        constants: weight of the image, weight of the texture.
        draws: one stream for each image.
        textures: bytes `(H', W', 3)` at the scale of the images, and larger than these.
    """
    height, width = images.shape[1:3]
    for texture in textures:
        if texture.shape[0] <= height or texture.shape[1] <= width:
            raise ValueError(
                f"frost: expected textures larger than the images, {height} x {width} after scaling, got "
                f"{texture.shape[0]} x {texture.shape[1]}."
            )
    pieces = np.empty(images.shape, dtype=np.uint8)
    for piece, g in zip(pieces, draws, strict=True):
        texture = textures[g.integers(len(textures))]
        top, left = g.integers(texture.shape[0] - height), g.integers(texture.shape[1] - width)
        piece[...] = texture[top : top + height, left : left + width]
    return to_bytes(constants[0] * to_unit(images) + constants[1] * to_unit(pieces))


def liquid(shape: tuple[int, int], constants: tuple, draws: Streams) -> np.ndarray:
    """Smoothed normal noise, set to 0 below the threshold: `(n, H, W)`.

    The constants are mean, standard deviation, blur and threshold.
    """
    mean, std, sigma, threshold = constants
    layer = smooth(mean + std * np.stack([g.standard_normal(shape) for g in draws]), sigma)
    return np.where(layer < threshold, 0, layer)


def water_mask(layer: np.ndarray, strength: float) -> np.ndarray:
    """Weight of the water's color at each pixel of a liquid layer `(H, W)`.

    The edges of the drops are found by Canny. The distance from them (at most 20 pixels) is equalised and embossed,
    multiplied by the layer, and scaled so that its largest value is `strength`. Without drops the weight is zero.
    """
    drops = (layer * 255).astype(np.uint8)
    distance = cv2.distanceTransform(255 - cv2.Canny(drops, 50, 150), cv2.DIST_L2, 5)
    distance = cv2.blur(np.minimum(distance, 20), (3, 3)).astype(np.uint8)
    emboss = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]], dtype=np.float32)
    relief = cv2.filter2D(cv2.equalizeHist(distance), cv2.CV_8U, emboss)
    mask = drops * cv2.blur(relief, (3, 3)).astype(np.float64)
    return mask * (strength / mask.max()) if mask.max() > 0 else mask


def spatter(images: np.ndarray, constants: tuple, draws: Streams) -> np.ndarray:
    """Drops of water (added) or mud (replacing the image). They need three channels."""
    *recipe, strength, muddy = constants
    x = to_unit(images)
    layer = liquid(images.shape[1:3], tuple(recipe), draws)
    if not muddy:
        masks = np.stack([water_mask(one, strength) for one in layer])[..., None]
        return to_bytes(x + masks * (np.array(WATER) / 255))
    masks = smooth((layer > recipe[-1]).astype(np.float64), strength)
    masks = np.where(masks < 0.8, 0, masks)[..., None]
    return to_bytes(x * (1 - masks) + masks * (np.array(MUD) / 255))
