"""Images in memory: bytes and labels, with the normalisation that a network sees them through."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageSet:
    """Images as bytes, and their labels.

    Attributes:
        images: `(n, C, H, W)`, uint8.
        labels: class indices, `(n,)`, int64.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self):
        """Refuse what is no set of images."""
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ValueError(
                f"images: expected bytes (n, C, H, W), got {self.images.dtype} of shape {tuple(self.images.shape)}."
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"labels: expected one int64 class index for each of {len(self.images)} images, got "
                f"{self.labels.dtype} of shape {tuple(self.labels.shape)}."
            )

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def first(self, count: int | None) -> ImageSet:
        """The first `count` images, or all."""
        return self if count is None else ImageSet(self.images[:count], self.labels[:count])


def normalised(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """What a network sees.

    Args:
        images: `(..., C, H, W)`; bytes, or floating point in [0, 1].
        mean: of each channel, pixels in [0, 1].
        std: of each channel.

    Returns:
        float32 (or the given floating dtype), `(pixel - mean) / std` by channel.
    """
    pixels = images if images.is_floating_point() else images.float() / 255
    shift, scale = (torch.tensor(v, dtype=pixels.dtype, device=pixels.device)[:, None, None] for v in (mean, std))
    return (pixels - shift) / scale


@dataclass(frozen=True)
class ImageData:
    """A data set for training and testing.

    Attributes:
        name: for records, such as `"cifar10"`.
        train: training images.
        test: test images.
        classes: K.
        mean: of each channel, pixels in [0, 1].
        std: of each channel.
    """

    name: str
    train: ImageSet
    test: ImageSet
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def normalise(self, images: Tensor) -> Tensor:
        """What a network sees.

        Args:
            images: `(..., C, H, W)`; bytes, or floating point in [0, 1].

        Returns:
            float32 (or the given floating dtype), `(pixel - mean) / std` by channel.
        """
        return normalised(images, self.mean, self.std)
