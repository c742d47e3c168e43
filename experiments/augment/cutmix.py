"""CutMix: a rectangle of every image is replaced by that of its partner; labels are mixed by area.

Source: Yun et al. (2019); protocol, section 2.1: one lambda, one box and one pairing for a batch, lambda ~ Beta(alpha,
alpha), box of sides sqrt(1 - lambda) H and sqrt(1 - lambda) W cut to whole pixels, centre uniform over the pixels,
clipped at the border; the label weight is the area that was kept, after clipping. Applied to a batch with probability
1/2 on CIFAR and 1 on ImageNet in the reference code.
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
    """The randomness of one batch.

    Attributes:
        index: partner of each image, a permutation, `(n,)`.
        box: `(top, bottom, left, right)`, half open; empty if the batch is left alone.
    """

    index: Tensor
    box: tuple[int, int, int, int]

    def kept(self, size: tuple[int, int]) -> float:
        """Share of an image of this `(H, W)` that stays its own."""
        top, bottom, left, right = self.box
        return 1 - (bottom - top) * (right - left) / (size[0] * size[1])


def soft_labels(y: Tensor, num_classes: int, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Labels as one row of weights for each sample.

    Args:
        y: class indices `(n,)`, or weights `(n, num_classes)`.
        num_classes: K.
        dtype: of the result.

    Returns:
        `(n, num_classes)`.
    """
    if y.ndim == 1 and not y.is_floating_point():
        return F.one_hot(y.long(), num_classes).to(dtype)
    if y.ndim == 2 and y.shape[1] == num_classes:
        return y.to(dtype)
    raise ValueError(
        f"y: expected class indices (n,) or weights (n, {num_classes}), got {y.dtype} of shape {tuple(y.shape)}."
    )


def mix_labels(targets: Tensor, index: Tensor, weight: Tensor | float) -> Tensor:
    """`weight` of the own label and the rest of the partner's.

    Args:
        targets: `(n, K)`.
        index: partner of each sample, `(n,)`.
        weight: one number, or `(n, 1)`.

    Returns:
        `(n, K)`.
    """
    return weight * targets + (1 - weight) * targets[index]


def sample_box(size: tuple[int, int], lam: float, generator: torch.Generator) -> tuple[int, int, int, int]:
    """Draw a box of about the area 1 - lam.

    Args:
        size: height and width of the image.
        lam: share to be kept, before clipping.
        generator: source of the centre.

    Returns:
        `(top, bottom, left, right)`, half open, inside the image.
    """
    device, edges = generator.device, []
    for side in size:
        half = int(side * sqrt(1 - lam)) // 2
        centre = int(torch.randint(side, (), generator=generator, device=device))
        edges += [max(centre - half, 0), min(centre + half, side)]
    return tuple(edges)


def draw_cutmix(
    n: int, size: tuple[int, int], *, generator: torch.Generator, alpha: float = 1.0, probability: float = 1.0
) -> CutMixDraw:
    """Draw pairing and box for a batch.

    Args:
        n: number of images.
        size: height and width.
        generator: source of the draws.
        alpha: parameter of Beta(alpha, alpha); 0 leaves every batch alone.
        probability: that the batch is mixed at all.

    Returns:
        The draw.
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
    """Mix a batch as a draw says.

    Args:
        x: images, `(n, C, H, W)`; not changed.
        targets: rows of label weights, `(n, K)`.
        draw: pairing and box.

    Returns:
        Mixed images and mixed targets, new tensors.
    """
    top, bottom, left, right = draw.box
    index = draw.index.to(x.device)
    mixed = x.clone()
    mixed[:, :, top:bottom, left:right] = x[index, :, top:bottom, left:right]
    return mixed, mix_labels(targets, index, draw.kept(tuple(x.shape[2:])))


def cutmix(
    x: Tensor,
    y: Tensor,
    *,
    generator: torch.Generator,
    num_classes: int,
    alpha: float = 1.0,
    probability: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """CutMix of a batch.

    Args:
        x: images, `(n, C, H, W)`.
        y: class indices `(n,)` or weights `(n, num_classes)`.
        generator: source of the draws.
        num_classes: K.
        alpha: parameter of Beta(alpha, alpha).
        probability: that the batch is mixed at all.

    Returns:
        Mixed images and soft targets `(n, num_classes)`.
    """
    draw = draw_cutmix(len(x), tuple(x.shape[2:]), generator=generator, alpha=alpha, probability=probability)
    return apply_cutmix(x, soft_labels(y, num_classes), draw)
