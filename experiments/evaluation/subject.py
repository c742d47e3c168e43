"""A network, the data it is measured on, and how test images are brought to its size."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..augment.standard import center_crop_resize
from ..data.imagenet import ImageNet
from ..data.images import ImageData
from ..data.toy_sets import ToyData
from ..metrics.accuracy import logits_of

#: Images of one forward pass; small enough to stay in a core's cache.
BATCH = 64
SEED = 0
#: The test view of ImageNet: the shorter side to 256, the central 224. Other sizes keep the ratio.
RESIZE, CROP = 256, 224

Measured = tuple[dict[str, float], dict]


def resize_for(size: int) -> int:
    """The shorter side before the central crop, in pixels.

    Args:
        size: side of the crop.

    Example:
        >>> resize_for(224), resize_for(64)
        (256, 73)
    """
    return round(size * RESIZE / CROP)


def bring_to_size(images: Tensor, size: int) -> Tensor:
    """The test view of a batch, image by image.

    Args:
        images: bytes `(n, C, H, W)`.
        size: side of the result, in pixels.

    Returns:
        Bytes `(n, C, size, size)` on the device of the images.
    """
    views = [
        center_crop_resize(image, size, resize=resize_for(size)) for image in images.permute(0, 2, 3, 1).cpu().numpy()
    ]
    return torch.stack([torch.tensor(view) for view in views]).permute(0, 3, 1, 2).to(images.device)


@dataclass(frozen=True, kw_only=True)
class SizedData(ImageData):
    """Images in memory that a network sees at another size; each batch is brought there when it is normalised.

    Attributes:
        image_size: side of what the network sees, in pixels.
    """

    image_size: int

    def normalise(self, images: Tensor) -> Tensor:
        """What a network sees, `(n, C, image_size, image_size)`.

        Args:
            images: bytes `(n, C, H, W)`.
        """
        if images.is_floating_point():
            raise ValueError(
                f"images: expected bytes, which Pillow brings to {self.image_size} pixels without gradients, got "
                f"{images.dtype}; attacks need a recipe with image_size=0."
            )
        return super().normalise(bring_to_size(images, self.image_size))


def at_size(data: ImageData | ImageNet | ToyData, size: int) -> ImageData | ImageNet | ToyData:
    """The data as a network of this image size is tested on it; images on disk are brought there as they are read.

    Args:
        data: any.
        size: side in pixels; 0 leaves images as they are.
    """
    if not size or not isinstance(data, ImageData):
        return data
    return SizedData(data.name, data.train, data.test, data.classes, data.mean, data.std, image_size=size)


@dataclass(frozen=True)
class Subject:
    """A network and what it is measured on.

    Attributes:
        model: in evaluation mode.
        data: images, in memory or on disk, or points of a toy problem; see `at_size`.
        size: of the recipe; the paper's size takes published sets, the others generated ones.
        workers: processes that may generate sets.
        options: of `logits_of`.
        image_size: side of images that are read from disk; 0 for 224.
        loaders: processes that decode images; 0 for none.
    """

    model: nn.Module
    data: ImageData | ImageNet | ToyData
    size: str
    workers: int = 1
    options: dict = field(default_factory=lambda: {"batch_size": BATCH})
    image_size: int = 0
    loaders: int = 0

    def predict(self, images, **options) -> Tensor:
        """Logits of a set of images in memory.

        Args:
            images: an `ImageSet`, or bytes `(n, C, H, W)`.
            **options: more for `logits_of`.
        """
        return logits_of(self.model, images, self.data, channels_last=True, **self.options, **options)
