"""Batches of a training: the samples, their augmentation, and their views.

In every epoch each image has its own generator. So the views are the same with any number of workers and processes,
and after a restart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..augment.augmix import augmix_pixels
from ..augment.autoaugment import autoaugment
from ..augment.standard import PADDING, crops, random_crop, random_flip, random_resized_crop
from ..recipes.recipe import Training
from .distributed import World
from .philox import crop_flip_draws
from .seeds import ORDER, epoch_order, image_generator, stream_seed

#: Side in pixels of images from ImageNet, unless a recipe says otherwise.
IMAGENET_SIZE = 224


class Source(Protocol):
    """Training samples.

    Attributes:
        labels: class indices, `(n,)`.
        mean: mean of each channel, for pixels in [0, 1]; empty for samples that are no images.
        std: standard deviation of each channel.
    """

    labels: Sequence[int] | Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def sample(self, index: int) -> np.ndarray:
        """One image as bytes `(H, W, C)`, or a vector of floats."""


@dataclass(frozen=True)
class MemorySource:
    """Samples in memory.

    Attributes:
        samples: bytes `(n, H, W, C)`, or floats `(n, d)`, which are not normalized.
        labels: class indices.
        mean: mean of each channel; empty for floats.
        std: standard deviation of each channel.
    """

    samples: np.ndarray
    labels: np.ndarray
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def sample(self, index: int) -> np.ndarray:
        """One image or vector."""
        return self.samples[index]


class Views(Dataset):
    """The batches of one epoch: inputs `(views * n, ...)`, with the clean views first, and labels `(n,)`."""

    def __init__(self, source: Source, training: Training, seed: int, epoch: int):
        known = {
            "augmentation": ("none", "crop_flip", "flip_crop", "resized_crop"),
            "views": ("", "augmix", "autoaugment"),
        }
        for field, names in known.items():
            if getattr(training, field) not in names:
                raise ValueError(f"{field}: expected one of {names}, got {getattr(training, field)!r}.")
        if training.image_size and training.augmentation != "resized_crop":
            raise ValueError(
                f"augmentation: expected 'resized_crop', to resize images to image_size={training.image_size}, got "
                f"{training.augmentation!r}."
            )
        self.source, self.training, self.seed, self.epoch = source, training, seed, epoch
        self.mean, self.std = np.asarray(source.mean, np.float32), np.asarray(source.std, np.float32)

    def normalize(self, image: np.ndarray) -> np.ndarray:
        """Bytes `(..., H, W, C)` to normalized float32 `(..., C, H, W)`. Samples without a mean stay as they are."""
        if not self.source.mean:
            return image
        pixels = image.astype(np.float32)
        pixels /= 255
        pixels -= self.mean
        pixels /= self.std
        return np.moveaxis(pixels, -1, -3)

    def __getitem__(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """The batch of these samples."""
        labels = torch.as_tensor(np.asarray(self.source.labels)[indices], dtype=torch.long)
        at_once = isinstance(self.source, MemorySource) and self.training.augmentation != "resized_crop"
        if at_once and not self.training.views:
            parts = [self.normalize(self._augmented(indices))] * self.training.scheme.views
        else:
            parts = [np.stack(part) for part in zip(*[self._views(int(i)) for i in indices], strict=True)]
        return torch.from_numpy(np.concatenate(parts)), labels

    def _augmented(self, indices: np.ndarray) -> np.ndarray:
        """The images of a batch, in memory and so all of one size, with the draws of `_views` but all at once."""
        kind, images = self.training.augmentation, self.source.samples[indices]
        if kind in ("crop_flip", "flip_crop"):
            # Both orders give the same image but for the side from which the columns of the window are counted
            flip_first = kind == "flip_crop"
            draws = crop_flip_draws(self.seed, self.epoch, indices, padding=PADDING, flip_first=flip_first)
            return crops(images, *draws, flip_first=flip_first)
        return images

    def _views(self, index: int) -> list[np.ndarray]:
        rng = image_generator(self.seed, self.epoch, index)
        size = self.training.image_size or IMAGENET_SIZE
        image = augment(self.source.sample(index), self.training.augmentation, rng, size=size)
        count, kind = self.training.scheme.views, self.training.views
        if not kind:
            return [self.normalize(image)] * count
        make = self._augmix if kind == "augmix" else self._autoaugment
        if count == 1:
            return [make(image, rng)]
        return [self.normalize(image), *(make(image, rng) for _ in range(count - 1))]

    def _augmix(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return (augmix_pixels(image, rng) - self.mean[:, None, None]) / self.std[:, None, None]

    def _autoaugment(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return self.normalize(autoaugment(image, rng, policy="imagenet" if image.shape[0] > 64 else "cifar"))


def augment(image: np.ndarray, kind: str, rng: np.random.Generator, *, size: int = IMAGENET_SIZE) -> np.ndarray:
    """The standard augmentation of an image.

    Args:
        image: bytes `(H, W, C)`.
        kind: `"none"`, `"crop_flip"` or `"flip_crop"` (the order of the papers' code), or `"resized_crop"`.
        rng: source of randomness.
        size: side in pixels of a resized crop; the other kinds keep the size.
    """
    if kind == "crop_flip":
        return random_flip(random_crop(image, rng), rng)
    if kind == "flip_crop":
        return random_crop(random_flip(image, rng), rng)
    if kind == "resized_crop":
        return random_flip(random_resized_crop(image, rng, size), rng)
    return image


def batch_indices(num_samples: int, training: Training, seed: int, epoch: int) -> list[np.ndarray]:
    """Indices of the samples in each batch of an epoch. The last batch may be smaller.

    In private training each sample is in each batch with the same probability, and the sizes of the batches vary.
    """
    if training.scheme.clip_norm:
        rng, rate = np.random.default_rng(stream_seed(ORDER, seed, epoch)), training.batch_size / num_samples
        batches = range(0, num_samples, training.batch_size)
        return [np.flatnonzero(rng.random(num_samples) < rate) for _ in batches]
    order = epoch_order(num_samples, seed, epoch)
    return [order[i : i + training.batch_size] for i in range(0, num_samples, training.batch_size)]


class _Epochs(Dataset):
    """The batches of all epochs, by the number of the epoch and the indices of the samples."""

    def __init__(self, source: Source, training: Training, seed: int):
        self.source, self.training, self.seed = source, training, seed

    def __getitem__(self, place: tuple[int, np.ndarray]) -> tuple[Tensor, Tensor]:
        epoch, indices = place
        return Views(self.source, self.training, self.seed, epoch)[indices]


class Batches:
    """This process's share of the batches of a training. Its loader processes live as long as this object.

    Args:
        source: training samples.
        training: settings of the training.
        seed: random seed of the training.
        world: the processes; each takes its share of every batch.
        workers: number of loader processes; 0 loads in this process.
    """

    def __init__(self, source: Source, training: Training, *, seed: int, world: World, workers: int = 0):
        self.source, self.training, self.seed, self.world = source, training, seed, world
        self._places: list[tuple[int, np.ndarray]] = []  # what the loader reads next
        self._loader = DataLoader(
            _Epochs(source, training, seed), batch_size=None, sampler=self._places, num_workers=workers,
            persistent_workers=workers > 0, pin_memory=torch.cuda.is_available(),
            multiprocessing_context="spawn" if workers else None,
        )  # fmt: skip

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[int, Tensor, Tensor, int]]:
        """The batches of an epoch.

        Args:
            epoch: number of the epoch.
            start: number of the first batch.

        Yields:
            Number of the batch, inputs, labels, and size of the batch over all processes.
        """
        batches = batch_indices(len(self.source.labels), self.training, self.seed, epoch)[start:]
        batches = [b for b in batches if len(b) >= self.world.size]  # otherwise a process would have no sample
        self._places[:] = [(epoch, self.world.share(b)) for b in batches]
        for number, ((x, y), batch) in enumerate(zip(self._loader, batches, strict=True), start):
            yield number, x, y, len(batch)
