"""AutoAugment: one of 25 learned pairs of operations for each image.

The tables for CIFAR-10 (also used for CIFAR-100) and ImageNet are those of Cubuk et al. (2019), "AutoAugment: Learning
Augmentation Strategies from Data", appendix. A pair is drawn uniformly. Each of its two operations is applied with its
own probability. Its strength is given by an index from 0 to 9, which divides the paper's ranges into equal steps:

| operation | strength from index 0 to index 9 |
|---|---|
| shear_x, shear_y | 0 to 0.3, in both directions |
| translate_x, translate_y | 0 to 150/331 of the side, in both directions |
| rotate | 0 to 30 degrees, in both directions |
| color, contrast, brightness, sharpness | factor from 1 to 1 + 0.9 or 1 - 0.9 |
| posterize | 8 to 4 bits |
| solarize | threshold 256 to 0 |
| autocontrast, equalize, invert | none |

The details follow common re-implementations. The paper gives the range 0.1 to 1.9 of the factors, but not the factor
of an index. The CIFAR code of its authors takes 0.1 + 0.18 index without a sign, translates by `index` pixels,
posterizes to 4 bits and fewer, and solarizes from 256 - int(25.6 index) on; their ImageNet code solarizes from
int(25.6 index) on. Here the pixels outside the image are grey (128), and geometric operations take the nearest pixel.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from experiments.augment.standard import as_array, as_picture

STEPS = 10
GREY = 128
_ENHANCERS = {
    "color": ImageEnhance.Color,
    "contrast": ImageEnhance.Contrast,
    "brightness": ImageEnhance.Brightness,
    "sharpness": ImageEnhance.Sharpness,
}
#: Largest strength, at index 9, of the operations that have a direction.
LARGEST = {
    **dict.fromkeys(("shear_x", "shear_y"), 0.3),
    **dict.fromkeys(("translate_x", "translate_y"), 150 / 331),
    "rotate": 30.0,
    **dict.fromkeys(_ENHANCERS, 0.9),
}


class Step(NamedTuple):
    """One operation of a policy: its name, its probability, and its index of strength (0 if it has no strength)."""

    name: str
    probability: float
    index: int


def _policy(table: str) -> tuple[tuple[Step, Step], ...]:
    """Read lines of the form `name probability index, name probability index`."""

    def step(text: str) -> Step:
        name, probability, index = text.split()
        return Step(name, float(probability), int(index))

    pairs = [[step(part) for part in line.split(",")] for line in table.strip().splitlines()]
    return tuple((first, second) for first, second in pairs)


CIFAR = _policy(
    """
    invert 0.1 7,       contrast 0.2 6
    rotate 0.7 2,       translate_x 0.3 9
    sharpness 0.8 1,    sharpness 0.9 3
    shear_y 0.5 8,      translate_y 0.7 9
    autocontrast 0.5 8, equalize 0.9 2
    shear_y 0.2 7,      posterize 0.3 7
    color 0.4 3,        brightness 0.6 7
    sharpness 0.3 9,    brightness 0.7 9
    equalize 0.6 5,     equalize 0.5 1
    contrast 0.6 7,     sharpness 0.6 5
    color 0.7 7,        translate_x 0.5 8
    equalize 0.3 7,     autocontrast 0.4 8
    translate_y 0.4 3,  sharpness 0.2 6
    brightness 0.9 6,   color 0.2 8
    solarize 0.5 2,     invert 0.0 3
    equalize 0.2 0,     autocontrast 0.6 0
    equalize 0.2 8,     equalize 0.6 4
    color 0.9 9,        equalize 0.6 6
    autocontrast 0.8 4, solarize 0.2 8
    brightness 0.1 3,   color 0.7 0
    solarize 0.4 5,     autocontrast 0.9 3
    translate_y 0.9 9,  translate_y 0.7 9
    autocontrast 0.9 2, solarize 0.8 3
    equalize 0.8 8,     invert 0.1 3
    translate_y 0.7 9,  autocontrast 0.9 1
    """
)

IMAGENET = _policy(
    """
    posterize 0.4 8, rotate 0.6 9
    solarize 0.6 5,  autocontrast 0.6 5
    equalize 0.8 8,  equalize 0.6 3
    posterize 0.6 7, posterize 0.6 6
    equalize 0.4 7,  solarize 0.2 4
    equalize 0.4 4,  rotate 0.8 8
    solarize 0.6 3,  equalize 0.6 7
    posterize 0.8 5, equalize 1.0 2
    rotate 0.2 3,    solarize 0.6 8
    equalize 0.6 8,  posterize 0.4 6
    rotate 0.8 8,    color 0.4 0
    rotate 0.4 9,    equalize 0.6 2
    equalize 0.0 7,  equalize 0.8 8
    invert 0.6 4,    equalize 1.0 8
    color 0.6 4,     contrast 1.0 8
    rotate 0.8 8,    color 1.0 2
    color 0.8 8,     solarize 0.8 7
    sharpness 0.4 7, invert 0.6 8
    shear_x 0.6 5,   equalize 1.0 9
    color 0.4 0,     equalize 0.6 3
    equalize 0.4 7,  solarize 0.2 4
    solarize 0.6 5,  autocontrast 0.6 5
    invert 0.6 4,    equalize 1.0 8
    color 0.6 4,     contrast 1.0 8
    equalize 0.8 8,  equalize 0.6 3
    """
)

POLICIES = {"cifar": CIFAR, "imagenet": IMAGENET}


def strength(name: str, index: int, sign: int, size: tuple[int, int]) -> float:
    """The strength of an operation: shear, whole pixels, degrees, factor, bits or threshold; 0 if it has none.

    Args:
        name: name of the operation.
        index: 0 to 9.
        sign: +1 or -1; ignored by operations without a direction.
        size: width and height of the image in pixels.
    """
    part = index / (STEPS - 1)
    if name in _ENHANCERS:
        return 1 + sign * part * LARGEST[name]
    if name in ("translate_x", "translate_y"):
        return sign * int(part * LARGEST[name] * size[name == "translate_y"])
    if name in LARGEST:
        return sign * part * LARGEST[name]
    return {"posterize": 8 - round(4 * part), "solarize": 256 * (1 - part)}.get(name, 0.0)


def apply_step(picture: Image.Image, name: str, value: float) -> Image.Image:
    """Apply one operation to a Pillow image of mode RGB or L; `value` is a result of `strength`."""
    matrices = {
        "shear_x": (1, value, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, value, 1, 0),
        "translate_x": (1, 0, value, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, value),
    }
    fill = GREY if picture.mode == "L" else (GREY,) * 3
    if name in matrices:
        return picture.transform(picture.size, Image.Transform.AFFINE, matrices[name], fillcolor=fill)
    if name in _ENHANCERS:
        return _ENHANCERS[name](picture).enhance(value)
    if name == "rotate":
        return picture.rotate(value, fillcolor=fill)
    if name == "posterize":
        return ImageOps.posterize(picture, int(value))
    if name == "solarize":
        return ImageOps.solarize(picture, value)
    if name in ("autocontrast", "equalize", "invert"):
        return getattr(ImageOps, name)(picture)
    raise ValueError(f"operation: expected one of AutoAugment's fourteen, got {name!r}.")


def sample_steps(rng: np.random.Generator, policy: str = "cifar") -> tuple[tuple[str, int, int], ...]:
    """Draw the operations for one image: zero, one or two of `(name, index, sign)`, in the order of application."""
    if policy not in POLICIES:
        raise ValueError(f"policy: expected one of {tuple(POLICIES)}, got {policy!r}.")
    table = POLICIES[policy]
    pair = table[int(rng.integers(len(table)))]
    chances, signs = rng.random(2), rng.integers(0, 2, size=2)
    return tuple(
        (step.name, step.index, int(1 - 2 * sign))
        for step, chance, sign in zip(pair, chances, signs, strict=True)
        if chance < step.probability
    )


def autoaugment(image: np.ndarray, rng: np.random.Generator, *, policy: str = "cifar") -> np.ndarray:
    """AutoAugment of one image, after crop and flip.

    Args:
        image: bytes, `(H, W, C)`, one or three channels.
        rng: source of randomness.
        policy: `"cifar"` (for CIFAR-10 and CIFAR-100) or `"imagenet"`.
    """
    picture = as_picture(np.ascontiguousarray(image))
    for name, index, sign in sample_steps(rng, policy):
        picture = apply_step(picture, name, strength(name, index, sign, picture.size))
    return as_array(picture)
