r"""Accuracy under white noise and under salt and pepper (NFM Tables 1-3).

The papers' code adds both to **normalised** images. White noise is not clipped. Its salt and pepper strikes only the
first channel, with the extremes of that channel, at the same places in every batch of 1024: `salt_pepper_released`.
The textbook's, `salt_pepper`, whitens and blackens whole pixels; it is far stronger, and numbers do not compare.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..data.images import ImageData
from .accuracy import Predict, accuracy, logits_of
from .streams import CHUNK, chunk_generator, normal_like

#: The released evaluation seeds NumPy with it before each batch of 1024.
RELEASED_SEED = 12345
KINDS, VARIANTS = ("white_noise", "salt_pepper"), ("released", "standard")


def white_noise(x: Tensor, level: float, generator: torch.Generator) -> Tensor:
    r"""White noise $x + \sigma Z$, unclipped; NFM's test noise, whose σ is not scaled by a Beta draw as in training.

    Args:
        x: normalised images, `(b, C, H, W)`.
        level: σ ≥ 0 in normalised units.
        generator: of the draws.
    """
    if not 0 <= level < math.inf:
        raise ValueError(f"level: expected a standard deviation >= 0, got {level}.")
    return x + level * normal_like(x, generator)


def _check_share(level: float) -> None:
    if not 0 <= level <= 1:
        raise ValueError(f"level: expected a share of the pixels in [0, 1], got {level}.")


def salt_pepper_released(x: Tensor, level: float, generator: np.random.RandomState) -> Tensor:
    r"""Salt and pepper as in NFM's released evaluation: only channel 0, in normalised units.

    For each image, $n = \lceil HW\gamma/2 \rceil$ places of the channel take its minimum; then n fresh places, which
    may be among the first, take the maximum of what is there now. So about $1-(1-\gamma/2)^2$ of one channel changes.
    The first n of a permutation from NumPy's frozen legacy generator: with `RandomState(12345)` at the start of every
    1024 images the places are those of the released code, whose images have 32 x 32 pixels.

    Args:
        x: normalised images, `(b, C, H, W)`.
        level: γ in [0, 1].
        generator: of the places; two permutations for each image, in order.
    """
    _check_share(level)
    size = x.shape[2] * x.shape[3]
    count = math.ceil(level * size * 0.5)
    struck = torch.zeros(2, len(x), size, dtype=torch.bool)
    for salt, pepper in zip(*struck, strict=True):
        salt[torch.from_numpy(generator.permutation(size)[:count])] = True
        pepper[torch.from_numpy(generator.permutation(size)[:count])] = True
    salt, pepper = struck.to(x.device)
    plane = x[:, 0].flatten(1)
    plane = torch.where(salt, plane.amin(1, keepdim=True), plane)
    plane = torch.where(pepper, plane.amax(1, keepdim=True), plane)
    return torch.cat([plane.reshape(x[:, :1].shape), x[:, 1:]], 1)


def salt_pepper(
    x: Tensor, level: float, generator: torch.Generator, *, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """Textbook salt and pepper: half of the struck pixels become white, half black, in all channels.

    Args:
        x: normalised images, `(b, C, H, W)`.
        level: γ in [0, 1]; γ H W pixels, rounded, are struck, no pixel twice; of an odd number one more is white.
        generator: of the places, one permutation for each image.
        mean: of each channel, pixels in [0, 1].
        std: of each channel.
    """
    _check_share(level)
    size = x.shape[2] * x.shape[3]
    count = round(level * size)
    struck = torch.zeros(2, len(x), size, dtype=torch.bool)
    for salt, pepper in zip(*struck, strict=True):
        places = torch.randperm(size, generator=generator, device=generator.device)[:count].cpu()
        salt[places[: count - count // 2]] = True
        pepper[places[count - count // 2 :]] = True
    salt, pepper = struck.reshape(2, len(x), 1, *x.shape[2:]).to(x.device)
    mean, std = (torch.as_tensor(v, dtype=x.dtype, device=x.device)[:, None, None] for v in (mean, std))
    return torch.where(salt, (1 - mean) / std, torch.where(pepper, -mean / std, x))


def noise_of_chunk(kind: str, variant: str, data: ImageData, level: float, seed: int, chunk: int) -> Callable:
    """What is done to the normalised batches of one chunk, in their order.

    Args:
        kind: as `noise_curve`.
        variant: as `noise_curve`.
        data: whose mean and std say what black and white are.
        level: σ or γ.
        seed: as `noise_curve`.
        chunk: number of the chunk, of `CHUNK` images each; a chunk needs a new one.
    """
    if kind == "salt_pepper" and variant == "released":
        return partial(salt_pepper_released, level=level, generator=np.random.RandomState(RELEASED_SEED))
    generator = chunk_generator(seed, kind, level, chunk)
    if kind == "salt_pepper":
        return partial(salt_pepper, level=level, generator=generator, mean=data.mean, std=data.std)
    return partial(white_noise, level=level, generator=generator)


def noise_curve(
    model: Predict,
    data: ImageData,
    kind: str,
    levels: Sequence[float],
    *,
    seed: int,
    variant: str = "released",
    limit: int | None = None,
    batch_size: int = 256,
    device: str | torch.device | None = None,
    channels_last: bool = False,
) -> dict[float, float]:
    """Accuracy on noisy test images by level (NFM Tables 1-3); every image is noised once.

    The draws depend on the seed, the kind, the level and the place of the image in the test set, never on the batch
    size or on how many images are tested.

    Args:
        model: maps normalised images to logits; in evaluation mode.
        data: whose test images are used.
        kind: `"white_noise"`, level σ in normalised units, or `"salt_pepper"`, level γ.
        levels: the levels.
        seed: of the draws, ≥ 0. The released salt and pepper has a fixed seed and ignores it.
        variant: of salt and pepper: `"released"`, comparable with the paper's tables, or `"standard"`; white noise is
            the same in both.
        limit: only the first images; `None` for all.
        batch_size: as `logits_of`.
        device: as `logits_of`.
        channels_last: as `logits_of`.
    """
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {list(KINDS)}, got {kind!r}.")
    if variant not in VARIANTS:
        raise ValueError(f"variant: expected one of {list(VARIANTS)}, got {variant!r}.")
    test, curve = data.test.first(limit), {}
    options = {"batch_size": batch_size, "device": device, "channels_last": channels_last}
    for level in levels:
        logits = [
            logits_of(model, images, data, transform=noise_of_chunk(kind, variant, data, level, seed, chunk), **options)
            for chunk, images in enumerate(test.images.split(CHUNK))
        ]
        curve[level] = accuracy(torch.cat(logits), test.labels)
    return curve
