"""Accuracy under white noise and under salt and pepper noise (NFM Tables 1-3).

The papers' code adds both to **normalized** images. White noise is not clipped. Its salt and pepper noise changes only
the first channel, to the extreme values of that channel, and at the same places in every batch of 1024 images:
`salt_pepper_released`. The textbook version, `salt_pepper`, makes whole pixels white or black. It is much stronger,
so the numbers of the two cannot be compared.
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

#: Seed with which the released evaluation seeds NumPy before each batch of 1024 images.
RELEASED_SEED = 12345
KINDS, VARIANTS = ("white_noise", "salt_pepper"), ("released", "standard")


def white_noise(x: Tensor, level: float, generator: torch.Generator) -> Tensor:
    r"""White noise $x + \sigma Z$ on normalized images, not clipped. Here σ is the level itself, as in NFM's tests."""
    if not 0 <= level < math.inf:
        raise ValueError(f"level: expected a finite standard deviation >= 0, got {level}.")
    return x + level * normal_like(x, generator)


def _check_share(level: float) -> None:
    if not 0 <= level <= 1:
        raise ValueError(f"level: expected a share of the pixels in [0, 1], got {level}.")


def salt_pepper_released(x: Tensor, level: float, generator: np.random.RandomState) -> Tensor:
    r"""Salt and pepper noise as in NFM's released evaluation: only channel 0, in normalized units.

    In each image, $n = \lceil HW\gamma/2 \rceil$ places of the channel take its minimum. Then n places, drawn anew
    and possibly the same, take the maximum of the result. So a share of about $1-(1-\gamma/2)^2$ of one channel
    changes. The places come from NumPy's frozen legacy generator. With `RandomState(12345)` at the start of every
    1024 images they are those of the released code, whose images have 32 x 32 pixels.

    Args:
        x: normalized images, `(b, C, H, W)`.
        level: γ in [0, 1].
        generator: draws two permutations for each image, in order.
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
    """Textbook salt and pepper noise: half of the chosen pixels become white and half black, in all channels.

    Args:
        x: normalized images, `(b, C, H, W)`.
        level: γ in [0, 1]; γ H W different pixels, rounded, are chosen. If their number is odd, one more is white.
        generator: draws one permutation for each image.
        mean: mean of each channel, for pixels in [0, 1].
        std: standard deviation of each channel.
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
    """The noise of one chunk of `CHUNK` images, as a function to be applied to its normalized batches in order."""
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
    **options,
) -> dict[float, float]:
    """Accuracy on noisy test images at each level (NFM Tables 1-3). Noise is added once to every image.

    The draws depend only on the seed, the kind, the level and the index of the image in the test set. They do not
    depend on the batch size or on the number of images.

    Args:
        model: network in evaluation mode; maps normalized images to logits.
        data: data set whose test images are used.
        kind: `"white_noise"`, with level σ in normalized units, or `"salt_pepper"`, with level γ.
        levels: noise levels.
        seed: random seed of the noise, ≥ 0. The released salt and pepper noise has a fixed seed and ignores it.
        variant: `"released"` for salt and pepper noise as in the paper's tables, or `"standard"`. White noise is the
            same in both.
        limit: number of test images, counted from the first; `None` for all.
        **options: `batch_size`, `device` and `channels_last` of `logits_of`.
    """
    for option, value, known in (("kind", kind, KINDS), ("variant", variant, VARIANTS)):
        if value not in known:
            raise ValueError(f"{option}: expected one of {list(known)}, got {value!r}.")
    test, curve = data.test.first(limit), {}
    for level in levels:
        logits = [
            logits_of(model, images, data, transform=noise_of_chunk(kind, variant, data, level, seed, chunk), **options)
            for chunk, images in enumerate(test.images.split(CHUNK))
        ]
        curve[level] = accuracy(torch.cat(logits), test.labels)
    return curve
