"""Frame sequences under small growing perturbations, in the manner of CIFAR-10-P and ImageNet-P.

Source of the steps: the generator of CIFAR-10-P that Hendrycks & Dietterich released (`make_cifar_p.py` in
hendrycks/robustness); frame i = 0, 1, ...

| name | frame i | published frames |
|---|---|---|
| gaussian_noise, _2, _3 | 0: the image; then image + 0.02, 0.04, 0.06 Z, fresh Z each | 31 |
| shot_noise, _2, _3 | 0: the image; then Poisson with 700, 400, 200 photons | 31 |
| motion_blur | radius 6, sigma 1.8, angle 9 (i - 20) degrees | 21 |
| zoom_blur | mean of the image and of its enlargements by 1.004, ..., 1 + 0.004 i | 31 |
| snow | flakes (0.05, 0.3, zoom 2, threshold 0.5) blurred (10, 2) at 4 i - 150 degrees, image share 0.85 | 31 |
| spatter | water (0.6, 0.265, blur 1.75, threshold 0.7, strength 0.6); each frame moves 0.8 of it down a pixel | 31 |
| brightness | value of HSV + 0.015 (i - 15) | 31 |
| translate | i - 7 pixels to the right | 16 |
| rotate | i - 15 degrees about the centre | 31 |
| tilt | 0.75 (i - 15) degrees about both axes, seen from the length of the diagonal | 31 |
| scale | by 0.7 + 0.02 i about the centre | 31 |

What is outside the image is black. Our choices, where that source does not decide: the centre of rotation and scale is
the middle of the image (the released code leaned on a library whose centre was half a pixel off at the time); frames
asked for beyond the published number continue with the same step; images below 32 pixels are enlarged as in `corrupt`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import cv2
import numpy as np
from PIL import Image

from experiments.corruptions import apply, weather
from experiments.corruptions import noise_kinds as noise
from experiments.corruptions.blur import blur_along
from experiments.corruptions.digital import by_image
from experiments.corruptions.pixels import streams, to_bytes, to_unit

Streams = Sequence[np.random.Generator]

#: The ten of CIFAR-10-P's reference evaluation.
CIFAR_P = (
    "gaussian_noise",
    "shot_noise",
    "motion_blur",
    "zoom_blur",
    "spatter",
    "brightness",
    "translate",
    "rotate",
    "tilt",
    "scale",
)
#: The ten of ImageNet-P, which the NoisyMix tables print for CIFAR-10-P too: snow where the reference has spatter.
IMAGENET_P = tuple("snow" if name == "spatter" else name for name in CIFAR_P)


def _repeated_noise(function: Callable, level: float, images: np.ndarray, frames: int, draws: Streams) -> np.ndarray:
    """The image, then independent noisy versions of it."""
    return np.stack([images] + [function(images, level, draws) for _ in range(frames - 1)], axis=1)


def _motion_blur(images: np.ndarray, frames: int, draws: Streams) -> np.ndarray:
    return np.stack([blur_along(images, 6, 1.8, [9.0 * (i - 20)] * len(images)) for i in range(frames)], axis=1)


def _affine(images: np.ndarray, angle: float, scale: float) -> np.ndarray:
    """Turn (degrees, clockwise) and enlarge about the middle, linear interpolation, black outside."""
    height, width = images.shape[1:3]
    turn = np.deg2rad(angle)
    a, b = np.cos(turn) / scale, np.sin(turn) / scale
    x, y = width / 2, height / 2
    # Pillow wants the map from the new image to the old one.
    matrix = (a, b, x - a * x - b * y, -b, a, y + b * x - a * y)

    def one(image: np.ndarray) -> np.ndarray:
        picture = Image.fromarray(image)
        return np.asarray(picture.transform(picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR))

    return by_image(one, images)


def _zoom_blur(images: np.ndarray, frames: int, draws: Streams) -> np.ndarray:
    total, out = images.astype(np.int64), [images]
    for i in range(1, frames):
        total += _affine(images, 0, 1 + 0.004 * i)
        out.append((total // (i + 1)).astype(np.uint8))
    return np.stack(out, axis=1)


def _snow(images: np.ndarray, frames: int, draws: Streams) -> np.ndarray:
    flakes = weather.snow_flakes(images.shape[1:3], (0.05, 0.3, 2, 0.5), draws)
    white, out = weather.whiten(to_unit(images), 0.85), []
    for i in range(frames):
        layer = to_unit(blur_along(flakes, 10, 2, [4.0 * i - 150] * len(images)))
        out.append(to_bytes(white + layer + layer[:, ::-1, ::-1]))
    return np.stack(out, axis=1)


def _spatter(images: np.ndarray, frames: int, draws: Streams) -> np.ndarray:
    layer, x, out = weather.liquid(images.shape[1:3], (0.6, 0.265, 1.75, 0.7), draws), to_unit(images), []
    for _ in range(frames):
        masks = np.stack([weather.water_mask(one, 0.6) for one in layer])[..., None]
        out.append(to_bytes(x + masks * (np.array(weather.WATER) / 255)))
        above = np.pad(layer, ((0, 0), (1, 0), (0, 0)))[:, :-1]
        layer = 0.2 * layer + 0.8 * above
    return np.stack(out, axis=1)


def _brightness(images: np.ndarray, frames: int, draws: Streams) -> np.ndarray:
    return np.stack([weather.brightness(images, 0.015 * (i - 15), draws) for i in range(frames)], axis=1)


def _translate(images: np.ndarray, frames: int, draws: Streams) -> np.ndarray:
    out = np.zeros((len(images), frames, *images.shape[1:]), dtype=np.uint8)
    width = images.shape[2]
    for i in range(frames):
        shift = max(-width, min(i - 7, width))
        out[:, i, :, max(shift, 0) : width + min(shift, 0)] = images[:, :, max(-shift, 0) : width - max(shift, 0)]
    return out


def _rotate(images: np.ndarray, frames: int, draws: Streams) -> np.ndarray:
    return np.stack([_affine(images, i - 15, 1.0) for i in range(frames)], axis=1)


def _scale(images: np.ndarray, frames: int, draws: Streams) -> np.ndarray:
    return np.stack([_affine(images, 0, (70 + 2 * i) / 100) for i in range(frames)], axis=1)


def tilt_matrix(height: int, width: int, angle: float) -> np.ndarray:
    """Homography of an image plane turned by `angle` degrees about its vertical and its horizontal axis.

    A pixel (x, y), taken from the middle of the image, is turned about the vertical, then about the horizontal axis,
    and seen by a pinhole camera whose distance and focal length are the diagonal.

    Returns:
        `(3, 3)`, maps homogeneous pixels of the image to those of the view. As in the source the plane lies one unit
        beyond the axes, so angle 0 is not quite the identity: it shrinks by diagonal / (diagonal + 1).
    """
    focal = np.hypot(width, height)
    c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    vertical = np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])
    horizontal = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    turn = horizontal @ vertical
    plane = np.array([[1, 0, -width / 2], [0, 1, -height / 2], [0, 0, 1]])
    camera = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    ahead = np.array([[0, 0, 0], [0, 0, 0], [0, 0, focal]])
    matrix = camera @ (turn @ plane + ahead)
    return matrix / matrix[2, 2]


def _tilt(images: np.ndarray, frames: int, draws: Streams) -> np.ndarray:
    height, width = images.shape[1:3]
    out = np.empty((len(images), frames, *images.shape[1:]), dtype=np.uint8)
    for i in range(frames):
        matrix = tilt_matrix(height, width, 0.75 * (i - 15))
        for image, target in zip(images, out[:, i], strict=True):
            target[...] = cv2.warpPerspective(image, matrix, (width, height)).reshape(image.shape)
    return out


#: Each maps `(images, frames, streams)` to `(n, frames, H, W, C)`, with the published number of frames.
PERTURBATIONS: dict[str, tuple[Callable, int]] = {
    "gaussian_noise": (partial(_repeated_noise, noise.gaussian_noise, 0.02), 31),
    "gaussian_noise_2": (partial(_repeated_noise, noise.gaussian_noise, 0.04), 31),
    "gaussian_noise_3": (partial(_repeated_noise, noise.gaussian_noise, 0.06), 31),
    "shot_noise": (partial(_repeated_noise, noise.shot_noise, 700), 31),
    "shot_noise_2": (partial(_repeated_noise, noise.shot_noise, 400), 31),
    "shot_noise_3": (partial(_repeated_noise, noise.shot_noise, 200), 31),
    "motion_blur": (_motion_blur, 21),
    "zoom_blur": (_zoom_blur, 31),
    "snow": (_snow, 31),
    "spatter": (_spatter, 31),
    "brightness": (_brightness, 31),
    "translate": (_translate, 16),
    "rotate": (_rotate, 31),
    "tilt": (_tilt, 31),
    "scale": (_scale, 31),
}


def frame_count(name: str, frames: int | None = None) -> int:
    """Frames of a perturbation: those asked for, or the published number."""
    if name not in PERTURBATIONS:
        raise ValueError(f"name: expected one of {tuple(PERTURBATIONS)}, got {name!r}.")
    frames = PERTURBATIONS[name][1] if frames is None else frames
    if frames < 2:
        raise ValueError(f"frames: expected at least 2, got {frames}.")
    return frames


def perturbation_sequences(
    images: np.ndarray, name: str, *, seed: int, frames: int | None = None, start: int = 0
) -> np.ndarray:
    """A short film of each image under one growing perturbation; see the table at the head of this module.

    Fewer frames are the first ones of more frames. As for `corrupt`, parts, orders and processes give the same bytes.

    Args:
        images: `(n, H, W, C)`, uint8, C = 1 or 3.
        name: one of `PERTURBATIONS`.
        seed: of the draws (noise, snow, spatter).
        frames: number of frames; by default the published one (31; 21 for motion_blur, 16 for translate).
        start: number of the first image in its set, for making a part of it.

    Returns:
        `(n, frames, H, W, C)`, uint8.
    """
    frames = frame_count(name, frames)
    function = PERTURBATIONS[name][0]
    # A stream of its own: severity 0 is that of no corruption.
    draws = streams(f"sequence/{name}", 0, range(start, start + len(images)), seed=seed)
    if len(images) == 0:
        return np.empty((0, frames, *images.shape[1:]), dtype=np.uint8)
    return apply(lambda x: function(x, frames, draws), images, coloured=name == "spatter")
