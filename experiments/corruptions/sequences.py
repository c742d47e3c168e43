"""Frame sequences under small growing perturbations, in the manner of CIFAR-10-P and ImageNet-P.

The steps are those of the generator of CIFAR-10-P that Hendrycks & Dietterich released (`make_cifar_p.py` in
hendrycks/robustness). Frame i = 0, 1, ... is as follows.

| name | frame i | published frames |
|---|---|---|
| gaussian_noise, _2, _3 | first the image, then image + 0.02, 0.04, 0.06 Z with independent Z | 31 |
| shot_noise, _2, _3 | first the image, then Poisson noise with 700, 400, 200 photons | 31 |
| motion_blur | radius 6, sigma 1.8, angle 9 (i - 20) degrees | 21 |
| zoom_blur | mean of the image and of its enlargements by 1.004, ..., 1 + 0.004 i | 31 |
| snow | flakes (0.05, 0.3, zoom 2, threshold 0.5) blurred (10, 2) at 4 i - 150 degrees, weight of image 0.85 | 31 |
| spatter | water (0.6, 0.265, blur 1.75, threshold 0.7, strength 0.6); each frame moves 0.8 of it down one pixel | 31 |
| brightness | value of HSV + 0.015 (i - 15) | 31 |
| translate | i - 7 pixels to the right | 16 |
| rotate | i - 15 degrees about the centre | 31 |
| tilt | 0.75 (i - 15) degrees about both axes, seen from the distance of the diagonal | 31 |
| scale | scaled by 0.7 + 0.02 i about the centre | 31 |

The space outside the image is black. Three points are our choice. The centre of rotation and scaling is the middle of
the image (in the released code it depends on a library whose centre was half a pixel off at the time). More frames than
the published number continue with the same step. Images below 32 pixels are enlarged as in `corrupt`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import cv2
import numpy as np
from PIL import Image

from experiments.corruptions import apply, weather
from experiments.corruptions import noise_kinds as noise
from experiments.corruptions.blur import blur_along
from experiments.corruptions.digital import by_image
from experiments.corruptions.pixels import Streams, streams, to_bytes, to_unit

#: The ten perturbations of CIFAR-10-P's reference evaluation.
CIFAR_P = (
    "gaussian_noise", "shot_noise", "motion_blur", "zoom_blur", "spatter", "brightness", "translate", "rotate", "tilt",
    "scale",
)  # fmt: skip
#: The ten perturbations of ImageNet-P. The NoisyMix tables print them also for CIFAR-10-P: snow instead of spatter.
IMAGENET_P = tuple("snow" if name == "spatter" else name for name in CIFAR_P)


def _repeated_noise(function: Callable, level: float, images: np.ndarray, frames: int, draws: Streams) -> np.ndarray:
    """The image, then independent noisy versions of it."""
    return np.stack([images] + [function(images, level, draws) for _ in range(frames - 1)], axis=1)


def _each_frame(make: Callable, images: np.ndarray, frames: int, draws: Streams) -> np.ndarray:
    """Frames `make(images, i)` that need no draws and no earlier frames."""
    return np.stack([make(images, i) for i in range(frames)], axis=1)


def _motion_blur(images: np.ndarray, i: int) -> np.ndarray:
    return blur_along(images, 6, 1.8, [9.0 * (i - 20)] * len(images))


def _affine(images: np.ndarray, angle: float, scale: float) -> np.ndarray:
    """Turn (degrees, clockwise) and enlarge about the middle, with linear interpolation and black outside."""
    height, width = images.shape[1:3]
    turn = np.deg2rad(angle)
    a, b = np.cos(turn) / scale, np.sin(turn) / scale
    x, y = width / 2, height / 2
    # Pillow expects the map from the new image to the old one.
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


def _translate(images: np.ndarray, i: int) -> np.ndarray:
    out, width = np.zeros_like(images), images.shape[2]
    shift = max(-width, min(i - 7, width))
    out[:, :, max(shift, 0) : width + min(shift, 0)] = images[:, :, max(-shift, 0) : width - max(shift, 0)]
    return out


def tilt_matrix(height: int, width: int, angle: float) -> np.ndarray:
    """Homography of an image plane that is turned by `angle` degrees about its vertical and its horizontal axis.

    A pixel (x, y), relative to the middle of the image, is turned about the vertical and then about the horizontal
    axis. A pinhole camera sees it, whose distance and focal length are the diagonal.

    Returns:
        `(3, 3)`, maps homogeneous pixels of the image to those of the view. As in the source, the plane lies one unit
        behind the axes. So angle 0 is not exactly the identity: it scales by diagonal / (diagonal + 1).
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


def _tilt(images: np.ndarray, i: int) -> np.ndarray:
    height, width = images.shape[1:3]
    matrix = tilt_matrix(height, width, 0.75 * (i - 15))
    return by_image(lambda image: cv2.warpPerspective(image, matrix, (width, height)), images)


#: Functions of `(images, frames, streams)` that return `(n, frames, H, W, C)`, and the published number of frames.
PERTURBATIONS: dict[str, tuple[Callable, int]] = {
    "gaussian_noise": (partial(_repeated_noise, noise.gaussian_noise, 0.02), 31),
    "gaussian_noise_2": (partial(_repeated_noise, noise.gaussian_noise, 0.04), 31),
    "gaussian_noise_3": (partial(_repeated_noise, noise.gaussian_noise, 0.06), 31),
    "shot_noise": (partial(_repeated_noise, noise.shot_noise, 700), 31),
    "shot_noise_2": (partial(_repeated_noise, noise.shot_noise, 400), 31),
    "shot_noise_3": (partial(_repeated_noise, noise.shot_noise, 200), 31),
    "motion_blur": (partial(_each_frame, _motion_blur), 21),
    "zoom_blur": (_zoom_blur, 31),
    "snow": (_snow, 31),
    "spatter": (_spatter, 31),
    "brightness": (partial(_each_frame, lambda images, i: weather.brightness(images, 0.015 * (i - 15), [])), 31),
    "translate": (partial(_each_frame, _translate), 16),
    "rotate": (partial(_each_frame, lambda images, i: _affine(images, i - 15, 1.0)), 31),
    "tilt": (partial(_each_frame, _tilt), 31),
    "scale": (partial(_each_frame, lambda images, i: _affine(images, 0, (70 + 2 * i) / 100)), 31),
}


def frame_count(name: str, frames: int | None = None) -> int:
    """The given number of frames, or the published number for `None`."""
    if name not in PERTURBATIONS:
        raise ValueError(f"name: expected one of {tuple(PERTURBATIONS)}, got {name!r}.")
    frames = PERTURBATIONS[name][1] if frames is None else frames
    if frames < 2:
        raise ValueError(f"frames: expected at least 2, got {frames}.")
    return frames


def perturbation_sequences(
    images: np.ndarray, name: str, *, seed: int, frames: int | None = None, start: int = 0
) -> np.ndarray:
    """A sequence of frames for each image, `(n, frames, H, W, C)`; see the table at the top of this module.

    A shorter sequence is the beginning of a longer one. As in `corrupt`, parts, orders and processes give the same
    bytes.

    Args:
        images: `(n, H, W, C)`, uint8, C = 1 or 3.
        name: one of `PERTURBATIONS`.
        seed: random seed of noise, snow and spatter.
        frames: number of frames; `None` for the published number (31; 21 for motion_blur, 16 for translate).
        start: number of the first image in its set, if these images are a part of it.
    """
    frames = frame_count(name, frames)
    function = PERTURBATIONS[name][0]
    # No corruption has severity 0, so these draws differ from those of `corrupt`.
    draws = streams(f"sequence/{name}", 0, range(start, start + len(images)), seed=seed)
    if len(images) == 0:
        return np.empty((0, frames, *images.shape[1:]), dtype=np.uint8)
    return apply(lambda x: function(x, frames, draws), images, colored=name == "spatter")
