"""A network, the data on which it is measured, and the resizing of test images."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from ..augment.standard import center_crop_resize
from ..data.imagenet import ImageNet
from ..data.images import ImageData, ImageSet
from ..data.toy_sets import ToyData
from ..metrics.accuracy import device_of, logits_of
from ..precision import computed_in, uses_autocast
from ..recipes.recipe import Evaluation, Training

SEED = 0
#: Test view of ImageNet: resize the shorter side to 256, then crop the central 224. Other sizes keep this ratio.
RESIZE, CROP = 256, 224

Measured = tuple[dict[str, float], dict]


def resize_for(size: int) -> int:
    """Length in pixels of the shorter side before a central crop of `size` pixels.

    Example:
        >>> resize_for(224), resize_for(64)
        (256, 73)
    """
    return round(size * RESIZE / CROP)


def bring_to_size(images: Tensor, size: int) -> Tensor:
    """The test view (resize, then central crop) of each image: bytes `(n, C, H, W)` to bytes `(n, C, size, size)`."""
    views = [
        center_crop_resize(image, size, resize=resize_for(size)) for image in images.permute(0, 2, 3, 1).cpu().numpy()
    ]
    return torch.stack([torch.tensor(view) for view in views]).permute(0, 3, 1, 2).to(images.device)


@dataclass(frozen=True, kw_only=True)
class SizedData(ImageData):
    """Images in memory for a network that expects another size. They are resized when they are normalized.

    Attributes:
        image_size: side in pixels of the images that the network sees.
    """

    image_size: int

    def normalize(self, images: Tensor) -> Tensor:
        """Resize and normalize bytes `(n, C, H, W)`. Floats are refused, since the resizing has no gradient."""
        if images.is_floating_point():
            raise ValueError(
                f"images: expected bytes, since resizing to {self.image_size} pixels has no gradient, got "
                f"{images.dtype}; for attacks take a recipe with image_size=0."
            )
        return super().normalize(bring_to_size(images, self.image_size))


def at_size(data: ImageData | ImageNet | ToyData, size: int) -> ImageData | ImageNet | ToyData:
    """The data with images resized to `size` pixels for testing. A size of 0 leaves them as they are.

    Images on disk are returned unchanged, since they are resized as they are read.
    """
    if not size or not isinstance(data, ImageData):
        return data
    return SizedData(data.name, data.train, data.test, data.classes, data.mean, data.std, image_size=size)


def few_tests(data: ImageData | ImageNet | ToyData, count: int) -> ImageData | ImageNet | ToyData:
    """The data with at most `count` test images, spread evenly, since files are sorted by class. Points all stay."""
    if isinstance(data, ToyData) or len(data.test) <= count:
        return data
    chosen = torch.linspace(0, len(data.test) - 1, count).round().long()
    if isinstance(data, ImageNet):
        return replace(data, test=data.test.only(chosen.tolist()))
    return replace(data, test=ImageSet(data.test.images[chosen], data.test.labels[chosen]))


class LowPrecision(nn.Module):
    """A network in evaluation mode whose operations run in bfloat16 where PyTorch's autocast allows it."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """The logits of the network in float32."""
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.network(x).float()


@dataclass(frozen=True)
class Subject:
    """A network and the data on which it is measured.

    Attributes:
        model: network in evaluation mode.
        data: images in memory or on disk, or points of a toy problem; see `at_size`.
        size: size of the recipe. `"paper"` uses the published test sets, all others generated ones.
        workers: number of processes that may generate test sets.
        evaluation: levels, number of images and precision of the measurements.
        image_size: side in pixels of the images read from disk; 0 stands for 224.
        loaders: number of processes that decode images; 0 decodes in this process.
        resize_corrupted: True to resize and crop also the images of ImageNet-C, which are published at the size of the
            network (256 and 224 pixels, as RobustBench did until May 2022).
        training: settings of the training, for measurements of what its scheme does.
    """

    model: nn.Module
    data: ImageData | ImageNet | ToyData
    size: str
    workers: int = 1
    evaluation: Evaluation = field(default_factory=Evaluation)
    image_size: int = 0
    loaders: int = 0
    resize_corrupted: bool = False
    training: Training | None = None

    @cached_property
    def network(self) -> nn.Module:
        """The network in the precision of the evaluation."""
        precision = self.evaluation.precision
        if precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision: expected 'float32' or 'bfloat16', got {precision!r}.")
        return LowPrecision(self.model) if uses_autocast(precision, self.device) else self.model

    @property
    def device(self) -> torch.device:
        """The device of the network; the CPU for one without parameters."""
        return device_of(self.model, None)

    @property
    def options(self) -> dict:
        """Options of `logits_of`."""
        return {"batch_size": self.evaluation.batch_size}

    @property
    def settings(self) -> dict:
        """What every line of the ledger says about the evaluation, if it is not the default."""
        precision = self.evaluation.precision
        return {} if precision == "float32" else {"precision": precision, **computed_in(precision, self.device)}

    def predict(self, images, **options) -> Tensor:
        """Logits of images in memory, given as an `ImageSet` or as bytes `(n, C, H, W)`; options as in `logits_of`."""
        return logits_of(self.network, images, self.data, channels_last=True, **self.options, **options)
