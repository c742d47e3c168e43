"""Images in memory: bytes, labels, and the normalisation before the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageSet:
    """Images as bytes, and their labels.

    Attributes:
        images: bytes `(n, C, H, W)`.
        labels: class indices, `(n,)`, int64.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self):
        """Check types and shapes."""
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
        """The first `count` images, or all for `None`."""
        return self if count is None else ImageSet(self.images[:count], self.labels[:count])


@dataclass(frozen=True)
class NormalizedData:
    """Training and test images, and their normalisation.

    Attributes:
        name: name for records, such as `"cifar10"`.
        train: training images.
        test: test images.
        classes: K, the number of classes.
        mean: mean of each channel, for pixels in [0, 1].
        std: standard deviation of each channel.
    """

    name: str
    train: Sequence
    test: Sequence
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def normalize(self, images: Tensor) -> Tensor:
        """Normalize bytes, or floats in [0, 1], `(..., C, H, W)`. The result is float32, or has the floats' dtype."""
        pixels = images if images.is_floating_point() else images.float() / 255
        mean, std = (torch.tensor(v, dtype=pixels.dtype, device=pixels.device) for v in (self.mean, self.std))
        return (pixels - mean[:, None, None]) / std[:, None, None]


@dataclass(frozen=True)
class ImageData(NormalizedData):
    """A data set in memory."""

    train: ImageSet
    test: ImageSet
