"""Reading corrupted and perturbed test sets: arrays in the layout of CIFAR-10-C and -P, folders in that of ImageNet.

Layouts are those of Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions and
perturbations" (2019). Arrays are mapped, not loaded, and never unpickled; images and frames are decoded when asked for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .imagenet import FolderDataset, ImageFolder
from .images import ImageSet
from .integrity import DataError, check_file

LABELS, MANIFEST = "labels.npy", "manifest.json"
SEVERITIES = 5
PAGE = "https://github.com/hendrycks/robustness"
_REMEDY = f"Get the set from {PAGE} and unpack it, or generate it again, and name the folder with its .npy files."
_FOLDERS = f"Get the set from {PAGE} and unpack it."


def _read_manifest(folder: Path) -> dict[str, dict] | None:
    """`{file stem: {"sha256": ..., "size": ...}}` of a generated set; `None` for a set without manifest.

    An entry of the file is a digest, or a record with `"sha256"` and perhaps `"bytes"`.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["files"].items()
        records = {name: {"sha256": entry} if isinstance(entry, str) else entry for name, entry in entries}
        return {
            name.removesuffix(".npy"): {"sha256": record["sha256"], "size": record.get("bytes")}
            for name, record in records.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f'{path}: expected JSON with "files" and their sha256. {_REMEDY}') from error


def _manifest_severities(folder: Path) -> tuple[int, ...]:
    """The severities of a generated set in the order of the rows; 1 to 5 where no manifest says otherwise."""
    path = folder / MANIFEST
    if not path.is_file():
        return tuple(range(1, SEVERITIES + 1))
    try:
        settings = json.loads(path.read_text(encoding="utf-8")).get("settings", {})
        found = tuple(int(k) for k in settings.get("severities", range(1, SEVERITIES + 1)))
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: expected JSON with a list of severities in its settings. {_REMEDY}") from error
    if not found or len(set(found)) < len(found):
        raise DataError(f"{path}: expected different severities, got {found}. {_REMEDY}")
    return found


class _ArrayFolder:
    """Arrays `<name>.npy` of bytes in a folder."""

    ndim = 4
    layout = "(n, H, W, C)"

    def __init__(self, folder: Path | str, *, check: bool = True):
        """List the arrays.

        Args:
            folder: with the `.npy` files.
            check: compare each file with the manifest, if there is one, before it is first read.

        Raises:
            DataError: if the folder has no arrays, or lacks some of its manifest.
        """
        self.folder = Path(folder)
        self._checked: set[str] = set()
        self._digests = _read_manifest(self.folder) if check else None
        present = {path.stem for path in self.folder.glob("*.npy")}
        #: Names of the corruptions, sorted.
        self.names: tuple[str, ...] = tuple(sorted(present - {Path(LABELS).stem}))
        if not self.names:
            raise DataError(f"{self.folder}: expected arrays <name>.npy, got none. {_REMEDY}")
        if missing := sorted(set(self._digests or ()) - present):
            raise DataError(f"{self.folder}: {MANIFEST} lists {missing[0]}.npy, but there is no such file. {_REMEDY}")

    def _map(self, name: str) -> np.ndarray:
        """The array of a file, mapped."""
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
            raise DataError(f"{path}: cannot be read as an array, it may be cut off ({error}). {_REMEDY}") from error

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
    """A copy with `(..., C, H, W)` instead of `(..., H, W, C)`."""
    return torch.from_numpy(np.array(np.moveaxis(pixels, -1, -3), order="C"))


class CorruptedSet(_ArrayFolder):
    """A set in the layout of CIFAR-10-C.

    Each `<name>.npy` holds n images for each severity in turn, `(severities * n, H, W, C)`, and `labels.npy` the
    labels of all these rows. Official sets and generated ones, which have a `manifest.json`, are read alike.
    """

    def __init__(self, folder: Path | str, *, check: bool = True):
        """Open a folder.

        Args:
            folder: with the `.npy` files.
            check: compare each file with the manifest, if there is one, before it is first read.

        Raises:
            DataError: if arrays or labels are missing or damaged.
        """
        super().__init__(folder, check=check)
        #: The severities in the order of the rows: 1 to 5, or what the manifest lists.
        self.severities = _manifest_severities(self.folder)
        severities = len(self.severities)
        labels = self._map(Path(LABELS).stem)
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
            raise DataError(f"{self.folder / LABELS}: expected integers (n,), got {labels.dtype} {labels.shape}.")
        if not len(labels) or len(labels) % severities:
            raise DataError(
                f"{self.folder / LABELS}: expected labels of {severities} severities in turn, so a multiple of "
                f"{severities}, got {len(labels)}. {_REMEDY}"
            )
        self._labels = np.array(labels, dtype=np.int64)

    def __len__(self) -> int:
        """Number of images for one corruption and one severity."""
        return len(self._labels) // len(self.severities)

    def read(self, name: str, severity: int) -> ImageSet:
        """The images of one corruption at one severity.

        Args:
            name: one of `names`.
            severity: one of `severities`.

        Returns:
            Images `(n, C, H, W)`: with severities 1 to 5, rows `(severity - 1) n` to `severity n - 1` of the file.

        Raises:
            ValueError: for another severity.
            DataError: for another name, or a file that is not what it should be.
        """
        if severity not in self.severities:
            raise ValueError(f"severity: expected one of {self.severities}, got {severity!r}.")
        array = self._images(name)
        if len(array) != len(self._labels):
            raise DataError(
                f"{self.folder / name}.npy: expected {len(self._labels)} images, as there are labels, got "
                f"{len(array)}. {_REMEDY}"
            )
        block = self.severities.index(severity)
        rows = slice(block * len(self), (block + 1) * len(self))
        return ImageSet(_channels_first(array[rows]), torch.from_numpy(self._labels[rows].copy()))


class PerturbedSet(_ArrayFolder):
    """A set in the layout of CIFAR-10-P: each `<name>.npy` holds sequences of frames, `(n, frames, H, W, C)`.

    Flips are counted between frames, so there are no labels.
    """

    ndim = 5
    layout = "(n, frames, H, W, C)"

    def shape(self, name: str) -> tuple[int, int]:
        """Number of sequences, and of frames in each."""
        return self._images(name).shape[:2]

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Some sequences.

        Args:
            name: one of `names`.
            start: first sequence.
            stop: one past the last; `None` for all. A whole official file is about a gigabyte.

        Returns:
            `(stop - start, frames, C, H, W)`, uint8.

        Raises:
            DataError: for another name, or a file that is not what it should be.
        """
        return _channels_first(self._images(name)[start:stop])

    def batches(self, name: str, size: int) -> Iterator[Tensor]:
        """All sequences in order, `size` at a time, as `read` gives them.

        Args:
            name: one of `names`.
            size: sequences in a batch.
        """
        if size < 1:
            raise ValueError(f"size: expected at least 1, got {size}.")
        return (self.read(name, k, k + size) for k in range(0, self.shape(name)[0], size))


class CorruptedFolders:
    """A set in the layout of ImageNet-C: `<name>/<severity>/<wnid>/*.JPEG`.

    The four archives may be unpacked into one folder or stay in folders `noise`, `blur` and so on.
    """

    def __init__(self, folder: Path | str, *, wnids: Sequence[str] | None = None, transform: Callable | None = None):
        """List the corruptions.

        Args:
            folder: of the set.
            wnids: all class names, if labels are to count in a larger list than the folder's own.
            transform: of PIL images; the images of ImageNet-C are 224 x 224 already.

        Raises:
            DataError: if there are none, or one comes twice.
        """
        self.folder, self.wnids, self.transform = Path(folder), wnids, transform
        self._places: dict[str, Path] = {}
        for place in sorted({path.parent for depth in ("*/1", "*/*/1") for path in self.folder.glob(depth)}):
            if place.name in self._places:
                raise DataError(f"{place}: a second folder {place.name}, after {self._places[place.name]}.")
            self._places[place.name] = place
        if not self._places:
            raise DataError(f"{self.folder}: expected <name>/<severity>/<wnid>/*.JPEG, got no such folders. {_FOLDERS}")
        #: Names of the corruptions, sorted.
        self.names: tuple[str, ...] = tuple(sorted(self._places))
        #: The severities that every corruption has.
        self.severities = tuple(
            k for k in range(1, SEVERITIES + 1) if all((p / str(k)).is_dir() for p in self._places.values())
        )

    def read(self, name: str, severity: int) -> ImageFolder:
        """The images of one corruption at one severity, decoded when asked for.

        Args:
            name: one of `names`.
            severity: one of `severities`.

        Raises:
            ValueError: for another severity.
            DataError: for another name.
        """
        if name not in self._places:
            raise DataError(f"{self.folder}: expected one of {', '.join(self.names)}, got {name!r}.")
        if severity not in self.severities:
            raise ValueError(f"severity: expected one of {self.severities}, got {severity!r}.")
        place = self._places[name] / str(severity)
        return ImageFolder(place, wnids=self.wnids, transform=self.transform, remedy=_FOLDERS)


def read_video(path: Path | str) -> np.ndarray:
    """All frames of a video, `(frames, H, W, 3)`, RGB bytes.

    Args:
        path: of the file.

    Raises:
        DataError: if it has no readable frame.
    """
    import cv2

    check_file(path, what="a video", remedy=_FOLDERS)
    video = cv2.VideoCapture(str(path))
    frames = []
    try:
        while True:
            more, frame = video.read()
            if not more:
                break
            frames.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
    finally:
        video.release()
    if not frames:
        raise DataError(f"{path}: expected a video, got no frame that can be decoded. {_FOLDERS}")
    return np.stack(frames)


class VideoFolder(FolderDataset):
    """Videos in class folders, as ImageNet-P has for each perturbation: `<wnid>/*.mp4`.

    An item is `(uint8 array (frames, H, W, 3), label)`. Frames of ImageNet-P are 224 x 224.
    """

    def __init__(self, folder: Path | str, *, frames: int | None = None, wnids: Sequence[str] | None = None):
        """List the files.

        Args:
            folder: of one perturbation.
            frames: least number of frames, so that a video that is cut off is noticed; `None` for any.
            wnids: as for `FolderDataset`.
        """
        super().__init__(folder, wnids=wnids, suffixes=(".mp4",), remedy=_FOLDERS)
        self.frames = frames

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """Decode a video."""
        video = read_video(self.path(index))
        if self.frames is not None and len(video) < self.frames:
            raise DataError(
                f"{self.path(index)}: expected at least {self.frames} frames, got {len(video)}: it may be cut off. "
                f"{_FOLDERS}"
            )
        return video, int(self.labels[index])
