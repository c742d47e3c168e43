"""CutMix: replace a rectangle of every image by that of its partner, and mix the labels by area.

For sequences a window of time takes the place of the rectangle.

Source: Yun et al. (2019); protocol, section 2.1. A batch has one lambda ~ Beta(alpha, alpha), one box and one pairing.
The sides of the box are sqrt(1 - lambda) H and sqrt(1 - lambda) W, truncated to whole pixels. Its centre is uniform
over the pixels, and it is clipped at the border. The weight of an image's own label is the area outside the clipped
box. The reference code applies CutMix to a batch with probability 1/2 on CIFAR and 1 on ImageNet.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor
from torch.nn import functional as F

from nfm_theory.setting.mixing import MixingLaw


@dataclass(frozen=True)
class CutMixDraw:
    """The random numbers of one batch.

    Attributes:
        index: partner of each image, a permutation, `(n,)`.
        box: `(top, bottom, left, right)`, half open; empty if the batch is not changed.
    """

    index: Tensor
    box: tuple[int, int, int, int]

    def kept(self, size: tuple[int, int]) -> float:
        """Share of an image of size `(H, W)` outside the box."""
        top, bottom, left, right = self.box
        return 1 - (bottom - top) * (right - left) / (size[0] * size[1])


def soft_labels(y: Tensor, num_classes: int, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows of label weights `(n, num_classes)`, from class indices `(n,)` or from such rows."""
    if y.ndim == 1 and not y.is_floating_point():
        return F.one_hot(y.long(), num_classes).to(dtype)
    if y.ndim == 2 and y.shape[1] == num_classes:
        return y.to(dtype)
    raise ValueError(
        f"y: expected class indices (n,) or weights (n, {num_classes}), got {y.dtype} of shape {tuple(y.shape)}."
    )


def mix_labels(targets: Tensor, index: Tensor, weight: Tensor | float) -> Tensor:
    """Mix labels `(n, K)` with those of the partners. `weight`, a number or `(n, 1)`, belongs to the own label."""
    return weight * targets + (1 - weight) * targets[index]


def sample_box(size: tuple[int, int], lam: float, generator: torch.Generator) -> tuple[int, int, int, int]:
    """Draw a box `(top, bottom, left, right)` of about the share 1 - lam of the area.

    It is half open, and clipped to the image of size `(height, width)`.
    """
    edges = []
    for side in size:
        half = int(side * sqrt(1 - lam)) // 2
        centre = int(torch.randint(side, (), generator=generator, device=generator.device))
        edges += [max(centre - half, 0), min(centre + half, side)]
    return tuple(edges)


def draw_cutmix(
    n: int, size: tuple[int, int], *, generator: torch.Generator, alpha: float = 1.0, probability: float = 1.0
) -> CutMixDraw:
    """Draw pairing and box for a batch.

    Args:
        n: number of images.
        size: height and width of the images.
        generator: source of randomness.
        alpha: parameter of Beta(alpha, alpha); 0 never mixes.
        probability: probability that the batch is mixed.
    """
    if not (0 <= probability <= 1 and alpha >= 0):
        raise ValueError(
            f"expected probability in [0, 1] and alpha >= 0, got probability = {probability}, alpha = {alpha}."
        )
    index = torch.randperm(n, generator=generator, device=generator.device)
    applied = bool(torch.rand((), generator=generator, device=generator.device) < probability)
    if not (applied and alpha > 0):
        return CutMixDraw(index, (0, 0, 0, 0))
    lam = MixingLaw(alpha).sample((), unmixed=False, generator=generator, dtype=torch.float64)
    return CutMixDraw(index, sample_box(size, float(lam), generator))


def apply_cutmix(x: Tensor, targets: Tensor, draw: CutMixDraw) -> tuple[Tensor, Tensor]:
    """Mix images `(n, C, H, W)` and rows of label weights `(n, K)` as drawn. Returns new tensors."""
    top, bottom, left, right = draw.box
    index = draw.index.to(x.device)
    mixed = x.clone()
    mixed[:, :, top:bottom, left:right] = x[index, :, top:bottom, left:right]
    return mixed, mix_labels(targets, index, draw.kept(tuple(x.shape[2:])))


def cutmix(
    x: Tensor, y: Tensor, *, generator: torch.Generator, num_classes: int, **options: float
) -> tuple[Tensor, Tensor]:
    """CutMix of a batch. Returns mixed images and soft labels `(n, num_classes)`.

    Args:
        x: images, `(n, C, H, W)`.
        y: class indices `(n,)` or weights `(n, num_classes)`.
        generator: source of randomness.
        num_classes: K, the number of classes.
        **options: `alpha` and `probability` of `draw_cutmix`.
    """
    draw = draw_cutmix(len(x), tuple(x.shape[2:]), generator=generator, **options)
    return apply_cutmix(x, soft_labels(y, num_classes), draw)


def cutmix_series(
    x: Tensor, y: Tensor, *, generator: torch.Generator, num_classes: int, alpha: float = 1.0, probability: float = 1.0
) -> tuple[Tensor, Tensor]:
    """CutMix of sequences: a window of time is that of the partner. Returns mixed sequences and soft labels.

    The window has about the share 1 - λ of the time. The weight of a label is the share of the mixed sequence that
    comes from its sample. Only times inside of a sequence count: the last channel is 1 there, and 0 behind the end.

    Args:
        x: sequences, `(n, C, T)`, the last channel as said.
        y: class indices `(n,)` or weights `(n, num_classes)`.
        generator: source of randomness.
        num_classes: K, the number of classes.
        alpha: parameter of Beta(alpha, alpha); 0 never mixes.
        probability: probability that the batch is mixed.
    """
    length = x.shape[2]
    targets = soft_labels(y, num_classes, dtype=x.dtype)
    index = torch.randperm(len(x), generator=generator, device=generator.device).to(x.device)
    applied = bool(torch.rand((), generator=generator, device=generator.device) < probability)
    lam = MixingLaw(alpha).sample((), unmixed=False, generator=generator, dtype=torch.float64)
    half = int(length * (1 - float(lam))) // 2 if applied and alpha > 0 else 0
    center = int(torch.randint(length, (), generator=generator, device=generator.device))
    window = slice(max(center - half, 0), min(center + half, length))
    mixed = x.clone()
    mixed[:, :, window] = x[index, :, window]
    inside = x[:, -1]
    own = inside.sum(1) - inside[:, window].sum(1)
    weight = own / (own + inside[index, window].sum(1)).clamp(min=torch.finfo(x.dtype).tiny)
    return mixed, mix_labels(targets, index, weight[:, None])
