"""The suites for ImageNet. Images and videos are read in batches, and only the counts are kept in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..augment.standard import center_crop_resize
from ..corruptions import STANDARD
from ..data.corrupted import CorruptedFolders, VideoFolder
from ..data.imagenet import FolderDataset, ImageFolder, centre_view, class_indices, restrict_to_classes
from ..data.integrity import DataError
from ..metrics.accuracy import accuracy
from ..metrics.calibration import calibration_summary
from ..metrics.corruption import SEVERITIES, corruption_summary
from ..metrics.flips import ALEXNET_FLIP, PERTURBATIONS, flip_probability, flip_summary, is_noise
from ..metrics.noise_accuracy import noise_of_chunk
from ..metrics.streams import CHUNK
from . import sets
from .subject import CROP, SEED, Measured, Subject, resize_for

#: Noise levels of NFM Table 3.
WHITE_NOISE = (0.1, 0.25, 0.5)
SALT_PEPPER = (0.06, 0.1, 0.15)
#: Smallest number of frames in a sequence of ImageNet-P (Hendrycks and Dietterich 2019, section 4.1).
FRAMES = 30


# Reading --------------------------------------------------------------------------------------------------------------


def view_of(size: int) -> Callable:
    """The test view as a transform of PIL images of any size."""
    return partial(centre_view, resize=resize_for(size), crop=size)


def fitting_view(image, *, size: int):
    """The image itself if it has the right size (images of ImageNet-C at 224 pixels), otherwise its test view."""
    return image if image.size == (size, size) else view_of(size)(image)


def _side(subject: Subject) -> int:
    return subject.image_size or CROP


def _by_chunks(count: int, batch_size: int) -> list[range]:
    """Batches in order. No batch crosses the end of a chunk, because the noise of every chunk has its own generator."""
    chunks = [(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
    return [range(k, min(k + batch_size, end)) for start, end in chunks for k in range(start, end, batch_size)]


def _loader(folder: FolderDataset, subject: Subject, **options) -> DataLoader:
    workers = {"num_workers": subject.loaders, "multiprocessing_context": "spawn"} if subject.loaders else {}
    return DataLoader(folder, **workers, **options)


def batches(folder: ImageFolder, subject: Subject) -> Iterator[tuple[int, Tensor, Tensor]]:
    """All images of a folder in order, in batches of `subject.evaluation.batch_size`.

    Yields:
        Index of the first image, bytes `(b, 3, H, W)`, and labels `(b,)`.
    """
    parts = _by_chunks(len(folder), subject.evaluation.batch_size)
    for part, (pixels, labels) in zip(parts, _loader(folder, subject, batch_sampler=parts), strict=True):
        yield part.start, pixels.permute(0, 3, 1, 2), labels


def _validation(subject: Subject) -> ImageFolder:
    return subject.data.test.through(view_of(_side(subject)))


def share_correct(folder: ImageFolder, subject: Subject) -> float:
    """Accuracy on the images of a folder, in [0, 1]."""
    right = sum(_right(subject.predict(pixels), labels) for _, pixels, labels in batches(folder, subject))
    return right / len(folder)


def _right(logits: Tensor, labels: Tensor) -> int:
    return round(accuracy(logits, labels) * len(labels))


# Suites --------------------------------------------------------------------------------------------------------------


def _size_settings(subject: Subject) -> dict:
    return {"resize": resize_for(_side(subject)), "crop": _side(subject)}


def clean(subject: Subject) -> Measured:
    """Accuracy on the validation images."""
    images = _validation(subject)
    return {"clean": share_correct(images, subject)}, {"images": len(images), **_size_settings(subject)}


def _noise(subject: Subject, kinds: Mapping[str, tuple[str, str]], levels: tuple[float, ...]) -> Measured:
    """Accuracy for each kind and level of noise. Every image is read only once.

    Args:
        subject: network and data.
        kinds: maps the first part of a metric's key to the kind and variant of `noise_curve`.
        levels: noise levels, the same for all kinds.
    """
    images, right, noises = _validation(subject), {}, {}
    for start, pixels, labels in batches(images, subject):
        for prefix, (kind, variant) in kinds.items():
            for level in levels:
                key = f"{prefix}/{level:g}"
                if start % CHUNK == 0:
                    noises[key] = noise_of_chunk(kind, variant, subject.data, level, SEED, start // CHUNK)
                right[key] = right.get(key, 0) + _right(subject.predict(pixels, transform=noises[key]), labels)
    found = {key: count / len(images) for key, count in right.items()}
    return found, {"levels": list(levels), "images": len(images), **_size_settings(subject)}


def white_noise(subject: Subject) -> Measured:
    """Accuracy under white noise added to the normalized images."""
    return _noise(subject, {"white_noise": ("white_noise", "released")}, WHITE_NOISE)


def salt_pepper(subject: Subject) -> Measured:
    """Accuracy under salt and pepper noise, as in the released code for CIFAR (one channel) and in standard form."""
    kinds = {"salt_pepper": ("salt_pepper", "released"), "salt_pepper_standard": ("salt_pepper", "standard")}
    return _noise(subject, kinds, SALT_PEPPER)


def corrupted(subject: Subject) -> Measured:
    """Accuracy on ImageNet-C under each corruption at each severity, and the means.

    Raises:
        DataError: if a corruption, a severity or some images are missing. This is checked before the measurement.
    """
    side = _side(subject)
    view = view_of(side) if subject.resize_corrupted else partial(fitting_view, size=side)
    folder = sets.published_folder("ImageNet-C")
    images = CorruptedFolders(folder, wnids=subject.data.test.wnids, transform=view, only=STANDARD)
    if missing := sorted(set(STANDARD) - set(images.names)):
        raise DataError(f"{folder}: expected the 15 corruptions of ImageNet-C; missing: {', '.join(missing)}.")
    if images.severities != SEVERITIES:
        raise DataError(f"{folder}: expected severities 1 to 5 of each corruption, got {images.severities}.")
    cells = {(name, severity): images.read(name, severity) for name in STANDARD for severity in SEVERITIES}
    expected = len(subject.data.test)
    for (name, severity), part in cells.items():
        if len(part) != expected:
            raise DataError(
                f"{part.folder}: expected {expected} images of {name} at severity {severity}, one for each validation "
                f"image, got {len(part)}. Unpack its archive again."
            )
    found = {cell: share_correct(part, subject) for cell, part in cells.items()}
    resized = {"resize": resize_for(side)} if subject.resize_corrupted else {}
    return corruption_summary(found), {"set": "ImageNet-C", "images": expected, **resized, "crop": side}


def _rendition_logits(subject: Subject) -> tuple[Tensor, Tensor, dict]:
    """Logits of ImageNet-R for its 200 classes, labels numbered within these classes, and the settings."""
    folder = ImageFolder(sets.published_folder("ImageNet-R"), transform=view_of(_side(subject)))
    classes = class_indices(folder.wnids, subject.data.test.wnids)
    logits = [restrict_to_classes(subject.predict(pixels), classes) for _, pixels, _ in batches(folder, subject)]
    settings = {
        "set": "ImageNet-R", "images": len(folder), "classes": len(classes),
        "logits": "restricted to the classes of the set", **_size_settings(subject),
    }  # fmt: skip
    return torch.cat(logits), torch.from_numpy(folder.labels), settings


def renditions(subject: Subject) -> Measured:
    """Accuracy on ImageNet-R among its 200 classes (protocol, section 4)."""
    logits, labels, settings = _rendition_logits(subject)
    return {"imagenet_r/clean": accuracy(logits, labels)}, settings


def calibration(subject: Subject) -> Measured:
    """Calibration errors and AURRA on ImageNet-R, as in NoisyMix Table 11 (not on the validation images)."""
    logits, labels, settings = _rendition_logits(subject)
    found = calibration_summary(logits, labels)
    return {f"imagenet_r/{name}": value for name, value in found.items()}, settings


def _sequences(folder: Path, name: str) -> Path:
    """The folder of a perturbation: in the set itself, or in the folder of its archive (`noise`, `blur`, ...)."""
    places = [folder / name, *sorted(folder.glob(f"*/{name}"))]
    place = next((p for p in places if p.is_dir()), None)
    if place is None:
        raise DataError(f"{folder}: expected a folder {name} of ImageNet-P, got none; unpack all of its archives.")
    return place


def _frames(video: np.ndarray, size: int) -> Tensor:
    """The frames of a video at the size of the network, bytes `(frames, 3, size, size)`."""
    if video.shape[1:3] != (size, size):
        video = np.stack([center_crop_resize(frame, size, resize=resize_for(size)) for frame in video])
    return torch.from_numpy(video).permute(0, 3, 1, 2)


def flips(subject: Subject) -> Measured:
    """Flip probabilities on ImageNet-P, and flip rates relative to AlexNet (NoisyMix Tables 1 and 12).

    Raises:
        DataError: if a perturbation is missing. This is checked before the measurement.
    """
    folder, size = sets.published_folder("ImageNet-P"), _side(subject)
    wnids = subject.data.test.wnids
    videos = {name: VideoFolder(_sequences(folder, name), frames=FRAMES, wnids=wnids) for name in PERTURBATIONS}
    probabilities = {}
    for name, part in videos.items():
        shares = []
        for video, _ in _loader(part, subject, batch_size=None, collate_fn=_as_is):
            predicted = subject.predict(_frames(video, size)).argmax(1)
            shares.append(flip_probability(predicted[None], noise=is_noise(name)))  # sequences differ in length
        probabilities[name] = fmean(shares)
    settings = {
        "set": "ImageNet-P", "sequences": {name: len(part) for name, part in videos.items()}, "crop": size,
        "reference": "AlexNet; its flip probabilities are recalled, not verified",
        "reference_flip_probability": dict(ALEXNET_FLIP),
    }  # fmt: skip
    return flip_summary(probabilities, reference=ALEXNET_FLIP), settings


def _as_is(sample):
    """Return the video unchanged, since its frames are a batch already. Worker processes need a named function."""
    return sample


IMAGENET_SUITES: Mapping[str, Callable[[Subject], Measured]] = {
    suite.__name__: suite for suite in (clean, white_noise, salt_pepper, corrupted, renditions, calibration, flips)
}
