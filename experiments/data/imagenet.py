"""ImageNet from folders of classes. Images are decoded when they are used.

The layout is the usual one: `train/<wnid>/*.JPEG` and `val/<wnid>/*.JPEG`, where a wnid is a WordNet id such as
`n01440764`. Classes are numbered in the order of their sorted wnids.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from ..augment.standard import centre_view
from .cifar import DATA_VARIABLE, NORMALISATION
from .images import NormalizedData
from .integrity import DataError

PAGE = "https://www.image-net.org/download.php"
VARIABLE = "NFM_IMAGENET"
CLASSES = 1000
#: Random seed for drawing a part of the training images.
SUBSET_SEED = 0
IMAGES = (".jpeg", ".jpg", ".png", ".bmp", ".webp")
_REMEDY = (
    f"Get ILSVRC 2012 from {PAGE} (it asks for registration), unpack the training archive and the archives in it to "
    f"train/<wnid>/*.JPEG, sort the validation images into val/<wnid>/*.JPEG, and set {VARIABLE} to the folder that "
    f"holds train and val (or {DATA_VARIABLE} to a folder with a folder imagenet)."
)


def read_image(path: Path | str):
    """An image file as a PIL image in RGB.

    Raises:
        DataError: if the file is missing, incomplete or no image.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file. Has the folder changed since the files were listed?") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be decoded ({error}). Fetch this file again.") from error


class FolderDataset:
    """Files in class folders: a map-style data set for `torch.utils.data.DataLoader`.

    Files are listed by class and name. None is opened.

    Args:
        folder: folder with one folder per class.
        wnids: names of all classes of the labels; `None` for the classes of the folder.
        classes: expected number of class folders; `None` for any.
        suffixes: suffixes of the files that are listed, in lower case.
        remedy: sentence for errors.

    Attributes:
        folder: folder with one folder per class.
        wnids: names of the classes; a label is an index into them.
        labels: class indices, `(n,)`, int64.

    Raises:
        DataError: if classes are missing, unknown or empty.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        wnids: Sequence[str] | None = None,
        classes: int | None = None,
        suffixes: Sequence[str] = IMAGES,
        remedy: str = _REMEDY,
    ):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise DataError(f"{folder}: expected a folder of class folders, but there is none. {remedy}")
        entries = os.scandir(self.folder)
        found = tuple(sorted(e.name for e in entries if e.is_dir() and not e.name.startswith(".")))  # none hidden
        if not found:
            raise DataError(f"{folder}: expected one folder per class, got none (images must be in them). {remedy}")
        if classes is not None and len(found) != classes:
            raise DataError(f"{folder}: expected {classes} class folders, got {len(found)}. {remedy}")
        self.wnids = found if wnids is None else tuple(wnids)
        try:
            places = class_indices(found, self.wnids)
        except DataError as error:
            raise DataError(f"{folder}: {error}") from error
        names, labels = [], []
        for wnid, label in zip(found, places, strict=True):
            inside = sorted(e.name for e in os.scandir(self.folder / wnid) if e.name.lower().endswith(tuple(suffixes)))
            if not inside:
                raise DataError(f"{self.folder / wnid}: expected files {', '.join(suffixes)}, got none. {remedy}")
            names += [os.fsencode(f"{wnid}/{name}") for name in inside]
            labels += [label] * len(inside)
        self._names = np.array(names)  # one block of bytes, which worker processes share, unlike a list
        self.labels = np.array(labels, dtype=np.int64)

    def __len__(self) -> int:
        """Number of files."""
        return len(self.labels)

    def path(self, index: int) -> Path:
        """Path of a file."""
        return self.folder / os.fsdecode(self._names[index])


class ImageFolder(FolderDataset):
    """Images in class folders; an item is `(uint8 array (H, W, 3), label)`.

    The constructor has the options of `FolderDataset`, and `transform`, which maps a PIL image to a PIL image or to a
    uint8 array `(H, W, 3)`.
    """

    def __init__(self, folder: Path | str, *, transform: Callable | None = None, **options):
        super().__init__(folder, **options)
        self.transform = transform

    def through(self, transform: Callable | None) -> ImageFolder:
        """The same files, not listed again, with another transform; `None` for whole images."""
        other = copy.copy(self)
        other.transform = transform
        return other

    def only(self, indices: Sequence[int]) -> ImageFolder:
        """Some of the files, in the order of their indices."""
        other = copy.copy(self)
        other._names, other.labels = self._names[list(indices)], self.labels[list(indices)]
        return other

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """Decode and transform an image."""
        image = read_image(self.path(index))
        array = np.array(image if self.transform is None else self.transform(image))
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
            raise ValueError(
                f"transform: expected an image or bytes (H, W, 3) as result, got {array.dtype} {array.shape}."
            )
        return array, int(self.labels[index])


def class_indices(wnids: Sequence[str], all_wnids: Sequence[str]) -> tuple[int, ...]:
    """The indices of some classes, such as the 200 of ImageNet-R, in the list of all classes.

    Raises:
        DataError: if a class is not in the list.
    """
    place = {wnid: k for k, wnid in enumerate(all_wnids)}
    unknown = [wnid for wnid in wnids if wnid not in place]
    if unknown:
        raise DataError(
            f"expected classes out of the {len(place)} of the full list, got {len(unknown)} others, such as "
            f"{unknown[0]!r}. Are the names of these folders wnids of ImageNet-1k?"
        )
    return tuple(place[wnid] for wnid in wnids)


def restrict_to_classes(logits: Tensor, indices: Sequence[int]) -> Tensor:
    """The logits of some classes, `(..., len(indices))`, as ImageNet-R is scored.

    The reference code of ImageNet-R keeps only the 200 logits of its classes before softmax and argmax (protocol,
    section 4). The labels must then be numbered within these classes, as those of an `ImageFolder` without `wnids` are.

    Args:
        logits: logits of all classes, `(..., K)`.
        indices: indices of the kept classes, see `class_indices`.
    """
    count = logits.shape[-1]
    wrong = [k for k in indices if not 0 <= k < count]
    if wrong or len(set(indices)) != len(indices):
        raise ValueError(f"indices: expected different classes from 0 to {count - 1}, got {wrong or 'repetitions'}.")
    return logits[..., list(indices)]


@dataclass(frozen=True)
class FolderSource:
    """Images of a folder as training samples: whole, and decoded when they are used.

    Attributes:
        folder: the images.
        chosen: indices of the samples in the folder, `(n,)`.
        labels: class indices, `(n,)`.
        mean: mean of each channel, for pixels in [0, 1].
        std: standard deviation of each channel.
        classes: K, the number of classes.
    """

    folder: ImageFolder
    chosen: np.ndarray
    labels: np.ndarray
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int

    def sample(self, index: int) -> np.ndarray:
        """One image, bytes `(H, W, 3)`, at its own size."""
        return self.folder[int(self.chosen[index])][0]


@dataclass(frozen=True)
class ImageNet(NormalizedData):
    """ImageNet on disk, the counterpart of `ImageData` in memory."""

    train: ImageFolder
    test: ImageFolder

    def source(self, training) -> FolderSource:
        """The samples of a training: all images, or as many as `training.samples` says.

        The files are sorted by class, so the first ones would belong to a few classes only. Therefore the samples are
        drawn with a fixed seed. A smaller selection is part of every larger one.
        """
        total, count = len(self.train), training.samples
        chosen = np.arange(total)
        if count is not None:
            if not 1 <= count <= total:
                raise ValueError(
                    f"samples: expected 1 to {total}, the number of images in {self.train.folder}, got {count}."
                )
            chosen = np.sort(np.random.default_rng(SUBSET_SEED).permutation(total)[:count])
        whole = self.train.through(None)
        return FolderSource(whole, chosen, whole.labels[chosen], self.mean, self.std, self.classes)


def load_imagenet(
    folder: Path | str | None = None,
    *,
    classes: int = CLASSES,
    normalisation: str = "imagenet",
    training: bool = True,
) -> ImageNet:
    """The training images and the validation images.

    Args:
        folder: folder with `train` and `val`; `None` for `$NFM_IMAGENET`, or else `imagenet` in `$NFM_DATA`.
        classes: expected number of classes, if not 1000, as for a subset such as ImageNet-100.
        normalisation: one of `cifar.NORMALISATION`.
        training: False if there need be no training images; the validation images then stand for them.

    Raises:
        DataError: if no folder is named, or classes are missing.
    """
    if normalisation not in NORMALISATION:
        raise ValueError(f"normalisation: expected one of {', '.join(NORMALISATION)}, got {normalisation!r}.")
    named = str(folder or "") or os.environ.get(VARIABLE, "")
    if not named and os.environ.get(DATA_VARIABLE):
        named = str(Path(os.environ[DATA_VARIABLE]) / "imagenet")
    if not named:
        raise DataError(f"ImageNet: no folder is named. {_REMEDY}")
    train = ImageFolder(Path(named) / ("train" if training else "val"), classes=classes)
    test = ImageFolder(Path(named) / "val", transform=centre_view, classes=classes, wnids=train.wnids)
    return ImageNet("imagenet", train, test, classes, *NORMALISATION[normalisation])
