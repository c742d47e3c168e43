"""CIFAR-10 and CIFAR-100 from the official Python archives, checked, and read without running code from them.

The images are from Krizhevsky, "Learning multiple layers of features from tiny images" (2009). Nothing is downloaded:
the user provides the folder `cifar-10-batches-py` or `cifar-100-python`.
"""

from __future__ import annotations

import os
import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .images import ImageData, ImageSet
from .integrity import DataError, check_file

PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
#: Environment variable that names a folder with one folder for each data set.
DATA_VARIABLE = "NFM_DATA"
_SHAPE = (3, 32, 32)


def _bytes(*values: float) -> tuple[float, ...]:
    return tuple(v / 255 for v in values)


#: Mean and standard deviation of the channels by name, for pixels in [0, 1]. According to the protocol, section 3, the
#: released NFM code first used `nfm_preprint` for both sets, and `nfm_head` after the preprint. `half` is NoisyMix's.
NORMALISATION: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "nfm_preprint": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "nfm_head_cifar10": (_bytes(125.3, 123.0, 113.9), _bytes(63.0, 62.1, 66.7)),
    "nfm_head_cifar100": (_bytes(129.3, 124.1, 112.4), _bytes(68.2, 65.4, 70.4)),
    "transfer_cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


@dataclass(frozen=True)
class Release:
    """One of the two official archives.

    Attributes:
        title: name of the set in messages.
        folder: folder in the archive.
        variable: environment variable that names the folder.
        archive: name of the file to download.
        archive_md5: checksum of the archive.
        label: key of the labels in the files.
        md5: checksum of each file, first the files with training images in their order, last the one with test images.
        size: number of bytes of each file, where known.
    """

    title: str
    folder: str
    variable: str
    archive: str
    archive_md5: str
    label: str
    md5: dict[str, str]
    size: dict[str, int]

    @property
    def files(self) -> tuple[str, ...]:
        """Names of all files, the one with test images last."""
        return tuple(self.md5)

    @property
    def remedy(self) -> str:
        """Sentence for errors: how to get a set that is missing or damaged."""
        return (
            f"Download {self.archive} (md5 {self.archive_md5}) from {PAGE}, unpack it, and set {self.variable} to the "
            f"folder {self.folder}, or {DATA_VARIABLE} to the folder that holds it."
        )


RELEASES = {
    10: Release(
        title="CIFAR-10",
        folder="cifar-10-batches-py",
        variable="NFM_CIFAR10",
        archive="cifar-10-python.tar.gz",
        archive_md5="c58f30108f718f92721af3b95e74349a",
        label="labels",
        md5={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
        },
        size={
            "data_batch_1": 31035704,
            "data_batch_2": 31035320,
            "data_batch_3": 31035999,
            "data_batch_4": 31035696,
            "data_batch_5": 31035623,
            "test_batch": 31035526,
        },
    ),
    100: Release(
        title="CIFAR-100",
        folder="cifar-100-python",
        variable="NFM_CIFAR100",
        archive="cifar-100-python.tar.gz",
        archive_md5="eb9058c3a382ffc7106e4002c42a8d85",
        label="fine_labels",
        md5={"train": "16019d7e3df5f24257cddd939b257f8d", "test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        size={},
    ),
}

# The functions that rebuild arrays, taken from arrays that this NumPy pickles, since their modules differ by version.
_RECONSTRUCT = np.zeros(1).__reduce__()[0]
_FROM_BUFFER = np.zeros(1).__reduce_ex__(5)[0]
_BUILDERS = {
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
    **{f"numpy.{core}.multiarray._reconstruct": _RECONSTRUCT for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _FROM_BUFFER for core in ("core", "_core")},
}


class ArraysOnly(pickle.Unpickler):
    """Builds NumPy arrays, lists, dicts, numbers and text, and refuses every other name in a file.

    Allowing all of NumPy would be unsafe: some of its functions run a text as code.
    """

    def find_class(self, module: str, name: str):
        """The object for a name, if arrays are made of it."""
        if (module, name) == ("_codecs", "encode"):

            def latin1(text: str, encoding: str = "latin1") -> bytes:  # how protocols 0 to 2 write bytes
                return text.encode("latin1")

            return latin1
        found = _BUILDERS.get(f"{module}.{name}")
        if found is None:
            raise pickle.UnpicklingError(f"expected arrays, got {module}.{name}")
        return found


def release(classes: int) -> Release:
    """The archive for 10 or 100 classes."""
    if classes not in RELEASES:
        raise ValueError(f"classes: expected 10 or 100, got {classes!r}.")
    return RELEASES[classes]


def find_cifar(classes: int = 10, folder: Path | str | None = None) -> Path | None:
    """The folder with the official files.

    Args:
        classes: 10 or 100.
        folder: the folder itself or its parent; `None` or `""` for `$NFM_CIFAR10` or `$NFM_CIFAR100`, or else the
            folder of the official name in `$NFM_DATA`.

    Returns:
        The folder, or `None` if neither the argument nor the environment names one.

    Raises:
        DataError: if files are missing in the folder.
    """
    kind = release(classes)
    named = str(folder or "") or os.environ.get(kind.variable, "")
    if not named:
        shelf = os.environ.get(DATA_VARIABLE, "")
        if not shelf or not (Path(shelf) / kind.folder).is_dir():
            return None
        named = str(Path(shelf) / kind.folder)
    missing: list[str] = []
    for place in (Path(named), Path(named) / kind.folder):
        missing = [name for name in kind.files if not (place / name).is_file()]
        if not missing:
            return place
        if len(missing) < len(kind.files):
            break  # this is the folder, and it is not complete
    raise DataError(
        f"{place if len(missing) < len(kind.files) else named}: expected {', '.join(kind.files)} of {kind.title}; "
        f"missing: {', '.join(missing)}. {kind.remedy}"
    )


def read_batch(path: Path | str, *, classes: int = 10, check: bool = True) -> ImageSet:
    """The images `(n, 3, 32, 32)` and (fine) labels of one official file.

    Args:
        path: path of the file, with its official name.
        classes: 10 or 100.
        check: True to compare size and md5 with the official ones first.

    Raises:
        DataError: if the file is missing or damaged, or its content is not images and labels.
    """
    path, kind = Path(path), release(classes)
    options: dict = {"what": f"{path.name} of {kind.title}", "remedy": kind.remedy}
    if check:
        if path.name not in kind.md5:
            raise DataError(
                f"{path}: expected one of {', '.join(kind.files)}. Pass check=False to read a file of any name."
            )
        others = {md5: f"{name} of {k.title}" for k in RELEASES.values() for name, md5 in k.md5.items()}
        options |= {"md5": kind.md5[path.name], "size": kind.size.get(path.name), "others": others}
    check_file(path, **options)
    try:
        with path.open("rb") as file:
            content = ArraysOnly(file, encoding="latin1").load()
        data, labels = content["data"], np.asarray(content[kind.label])
    except Exception as error:  # a damaged pickle may raise anything
        reason = f"no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise DataError(f"{path}: cannot be read as {options['what']}: {reason}. {kind.remedy}") from error
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        came = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        raise DataError(f"{path}: expected data of bytes (n, 3072), got {came}. {kind.remedy}")
    if labels.shape != data.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{path}: expected one integer of {kind.label!r} for each of {len(data)} images, got {labels.dtype} "
            f"{labels.shape}. {kind.remedy}"
        )
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise DataError(
            f"{path}: expected {kind.label!r} from 0 to {classes - 1}, got {labels.min()} to {labels.max()}. "
            f"{kind.remedy}"
        )
    images = torch.from_numpy(np.array(data)).reshape(-1, *_SHAPE)
    return ImageSet(images, torch.from_numpy(labels.astype(np.int64)))


def load_cifar(
    classes: int = 10,
    folder: Path | str | None = None,
    *,
    normalisation: str = "nfm_preprint",
    check: bool = True,
) -> ImageData:
    """CIFAR-10 or CIFAR-100 (fine labels): 50,000 training and 10,000 test images, in the order of the files.

    Args:
        classes: 10 or 100.
        folder: see `find_cifar`.
        normalisation: one of `NORMALISATION`. It matters, since the papers' noise levels are in normalized units.
        check: True to compare every file with the official size and md5.

    Raises:
        DataError: if no folder is named, or a file is missing or damaged.
    """
    kind = release(classes)
    if normalisation not in NORMALISATION:
        raise ValueError(f"normalisation: expected one of {', '.join(NORMALISATION)}, got {normalisation!r}.")
    place = find_cifar(classes, folder)
    if place is None:
        raise DataError(f"{kind.title}: no folder is named. {kind.remedy}")
    *parts, test = (read_batch(place / name, classes=classes, check=check) for name in kind.files)
    train = ImageSet(torch.cat([p.images for p in parts]), torch.cat([p.labels for p in parts]))
    mean, std = NORMALISATION[normalisation]
    return ImageData(f"cifar{classes}", train, test, classes, mean, std)
