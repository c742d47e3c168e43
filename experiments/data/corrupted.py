"""Readers of corrupted and perturbed test sets: arrays as in CIFAR-10-C and -P, and folders as in ImageNet-C and -P.

The layouts are those of Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions and
perturbations" (2019). Arrays are memory-mapped and never unpickled. Images and frames are decoded when they are used.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .imagenet import FolderDataset, ImageFolder
from .images import ImageSet
from .integrity import DataError, check_file

LABELS, MANIFEST = "labels.npy", "manifest.json"
SEVERITIES = range(1, 6)
PAGE = "https://github.com/hendrycks/robustness"
_REMEDY = f"Get the set from {PAGE} and unpack it, or generate it again. Then name the folder with its .npy files."
_FOLDERS = f"Get the set from {PAGE} and unpack it."


def _read_manifest(folder: Path) -> tuple[dict[str, dict] | None, tuple[int, ...]]:
    """Checksums and severities of a generated set, or `None` and 1 to 5 for a set without a manifest.

    The checksums are `{file stem: {"sha256": ..., "size": ...}}`. In the file an entry is a checksum, or a record with
    `"sha256"` and perhaps `"bytes"`.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None, tuple(SEVERITIES)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        entries = {name.removesuffix(".npy"): entry for name, entry in content["files"].items()}
        records = {name: {"sha256": entry} if isinstance(entry, str) else entry for name, entry in entries.items()}
        digests = {name: {"sha256": r["sha256"], "size": r.get("bytes")} for name, r in records.items()}
        severities = tuple(int(k) for k in content.get("settings", {}).get("severities", SEVERITIES))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f'{path}: expected JSON with "files" and their sha256, and perhaps "settings" with severities. {_REMEDY}'
        ) from error
    if not severities or len(set(severities)) < len(severities):
        raise DataError(f"{path}: expected different severities, got {severities}. {_REMEDY}")
    return digests, severities


class _ArrayFolder:
    """Arrays `<name>.npy` of bytes in a folder.

    If `check` is True and the folder has a manifest, each file is compared with the manifest before it is first read.

    Raises:
        DataError: if there are no arrays, or some files of the manifest are missing.
    """

    ndim = 4
    layout = "(n, H, W, C)"

    def __init__(self, folder: Path | str, *, check: bool = True):
        self.folder = Path(folder)
        self._checked: set[str] = set()
        #: The severities in the order of the rows: 1 to 5, or those of the manifest.
        digests, self.severities = _read_manifest(self.folder)
        self._digests = digests if check else None
        present = {path.stem for path in self.folder.glob("*.npy")}
        #: Names of the corruptions, sorted.
        self.names: tuple[str, ...] = tuple(sorted(present - {Path(LABELS).stem}))
        if not self.names:
            raise DataError(f"{self.folder}: expected arrays <name>.npy, got none. {_REMEDY}")
        if missing := sorted(set(self._digests or ()) - present):
            raise DataError(f"{self.folder}: {MANIFEST} lists {missing[0]}.npy, but there is no such file. {_REMEDY}")

    def _map(self, name: str) -> np.ndarray:
        """The array of a file, memory-mapped."""
        path = self.folder / f"{name}.npy"
        check_file(path, what=f"an array of {self.folder.name}", remedy=_REMEDY)
        if self._digests is not None and name not in self._checked:
            if name not in self._digests:
                raise DataError(f"{path}: expected only files that {MANIFEST} lists. {_REMEDY}")
            check_file(path, **self._digests[name], what="the file that the manifest lists", remedy=_REMEDY)
            self._checked.add(name)
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError, SyntaxError) as error:
            raise DataError(f"{path}: cannot be read as an array, it may be incomplete ({error}). {_REMEDY}") from error

    def _images(self, name: str) -> np.ndarray:
        if name not in self.names:
            raise DataError(f"{self.folder}: expected one of {', '.join(self.names)}, got {name!r}.")
        array = self._map(name)
        if array.dtype != np.uint8 or array.ndim != self.ndim:
            raise DataError(
                f"{self.folder / name}.npy: expected bytes {self.layout}, got {array.dtype} {array.shape}. {_REMEDY}"
            )
        return array


def _channels_first(pixels: np.ndarray) -> Tensor:
    """A copy with the axes `(..., C, H, W)` instead of `(..., H, W, C)`."""
    return torch.from_numpy(np.array(np.moveaxis(pixels, -1, -3), order="C"))


class CorruptedSet(_ArrayFolder):
    """A set in the layout of CIFAR-10-C, official or generated. Generated sets have a `manifest.json`.

    Each `<name>.npy` holds n images for each severity in turn, `(severities * n, H, W, C)`. `labels.npy` holds the
    labels of all these images.

    Raises:
        DataError: if arrays or labels are missing or damaged.
    """

    def __init__(self, folder: Path | str, *, check: bool = True):
        super().__init__(folder, check=check)
        severities = len(self.severities)
        labels = self._map(Path(LABELS).stem)
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
            raise DataError(f"{self.folder / LABELS}: expected integers (n,), got {labels.dtype} {labels.shape}.")
        if not len(labels) or len(labels) % severities:
            raise DataError(
                f"{self.folder / LABELS}: expected the labels of {severities} severities in turn, so a multiple of "
                f"{severities}, got {len(labels)}. {_REMEDY}"
            )
        self._labels = np.array(labels, dtype=np.int64)

    def __len__(self) -> int:
        """Number of images for one corruption and one severity."""
        return len(self._labels) // len(self.severities)

    def read(self, name: str, severity: int) -> ImageSet:
        """The images `(n, C, H, W)` and labels of one corruption at one severity.

        Raises:
            DataError: if the name is unknown or the file is damaged.
        """
        if severity not in self.severities:
            raise ValueError(f"severity: expected one of {self.severities}, got {severity!r}.")
        array = self._images(name)
        if len(array) != len(self._labels):
            raise DataError(
                f"{self.folder / name}.npy: expected {len(self._labels)} images, one for each label, got "
                f"{len(array)}. {_REMEDY}"
            )
        block = self.severities.index(severity)
        rows = slice(block * len(self), (block + 1) * len(self))
        return ImageSet(_channels_first(array[rows]), torch.from_numpy(self._labels[rows].copy()))


class PerturbedSet(_ArrayFolder):
    """A set in the layout of CIFAR-10-P, without labels. Each `<name>.npy` holds sequences `(n, frames, H, W, C)`."""

    ndim = 5
    layout = "(n, frames, H, W, C)"

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """The sequences from `start` to before `stop` (`None` for the end), bytes `(stop - start, frames, C, H, W)`.

        A whole official file takes about a gigabyte of memory.

        Raises:
            DataError: if the name is unknown or the file is damaged.
        """
        return _channels_first(self._images(name)[start:stop])


class CorruptedFolders:
    """A set in the layout of ImageNet-C: `<name>/<severity>/<wnid>/*.JPEG`.

    The four archives may be unpacked into one folder, or into separate folders `noise`, `blur` and so on.

    Args:
        folder: folder of the set.
        wnids: names of all classes of the labels; `None` for the classes of the folder.
        transform: transform of PIL images. The images of ImageNet-C already have 224 x 224 pixels.
        only: names of the corruptions that count, so that other folders do not matter; `None` for all.

    Raises:
        DataError: if there are no corruptions, or one occurs twice.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        wnids: Sequence[str] | None = None,
        transform: Callable | None = None,
        only: Sequence[str] | None = None,
    ):
        self.folder, self.wnids, self.transform = Path(folder), wnids, transform
        self._places: dict[str, Path] = {}
        for place in sorted({path.parent for depth in ("*/1", "*/*/1") for path in self.folder.glob(depth)}):
            if only is not None and place.name not in only:
                continue
            if place.name in self._places:
                first = self._places[place.name]
                raise DataError(
                    f"{place}: expected each corruption once, got a second folder {place.name} after {first}."
                )
            self._places[place.name] = place
        if not self._places:
            raise DataError(f"{self.folder}: expected <name>/<severity>/<wnid>/*.JPEG, got no such folders. {_FOLDERS}")
        #: Names of the corruptions, sorted.
        self.names: tuple[str, ...] = tuple(sorted(self._places))
        #: The severities that every corruption has.
        self.severities = tuple(k for k in SEVERITIES if all((p / str(k)).is_dir() for p in self._places.values()))

    def read(self, name: str, severity: int) -> ImageFolder:
        """The images of one corruption at one severity, decoded when they are used.

        Raises:
            DataError: if the name is unknown.
        """
        if name not in self._places:
            raise DataError(f"{self.folder}: expected one of {', '.join(self.names)}, got {name!r}.")
        if severity not in self.severities:
            raise ValueError(f"severity: expected one of {self.severities}, got {severity!r}.")
        place = self._places[name] / str(severity)
        return ImageFolder(place, wnids=self.wnids, transform=self.transform, remedy=_FOLDERS)


class VideoFolder(FolderDataset):
    """Videos in class folders, as ImageNet-P has for each perturbation: `<wnid>/*.mp4`.

    An item is `(uint8 array (frames, H, W, 3), label)`. Frames of ImageNet-P have 224 x 224 pixels.

    Args:
        folder: folder of one perturbation.
        frames: smallest number of frames, so that an incomplete video is noticed; `None` for any number.
        wnids: names of all classes of the labels; `None` for the classes of the folder.
    """

    def __init__(self, folder: Path | str, *, frames: int | None = None, wnids: Sequence[str] | None = None):
        super().__init__(folder, wnids=wnids, suffixes=(".mp4",), remedy=_FOLDERS)
        self.frames = frames

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """Decode a video."""
        import cv2

        path = self.path(index)
        check_file(path, what="a video", remedy=_FOLDERS)
        video, frames = cv2.VideoCapture(str(path)), []
        while (read := video.read())[0]:
            frames.append(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB))
        video.release()
        if not frames:
            raise DataError(f"{path}: expected a video, got no frame that can be decoded. {_FOLDERS}")
        if self.frames is not None and len(frames) < self.frames:
            raise DataError(
                f"{path}: expected at least {self.frames} frames, got {len(frames)}: it may be incomplete. {_FOLDERS}"
            )
        return np.stack(frames), int(self.labels[index])
