"""The corrupted and perturbed test sets: published ones for the papers' recipes, generated ones for all others.

A generated set is made once and kept in the cache. The settings of a ledger entry say which set a number belongs to.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ..corruptions import STANDARD
from ..corruptions.generate import METHOD, generate_corrupted, generate_perturbed
from ..corruptions.sequences import CIFAR_P
from ..data.corrupted import CorruptedSet, PerturbedSet
from ..data.images import ImageData
from ..record.locks import locked
from ..studies.networks import cache_directory

#: Random seed of the generated sets. It is part of the folder's name, like the version of the methods.
SEED = 0


def _complete(folder: Path, names: Iterable[str]) -> bool:
    """True if the manifest lists every name. Whether the files are intact is checked when they are read."""
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        return False
    listed = json.loads(manifest.read_text(encoding="utf-8")).get("files", {})
    return all(name in listed or f"{name}.npy" in listed for name in names)


def _generated(
    data: ImageData, kind: str, names: Iterable[str], generate: Callable, limit: int | None, **options
) -> Path:
    """The folder of a generated set. Only one process makes it; the others wait and then find it complete."""
    test = data.test.first(limit)
    part = f"-first{len(test)}" if len(test) < len(data.test) else ""
    folder = cache_directory() / "sets" / f"{data.name}-{kind}-seed{SEED}-method{METHOD}{part}"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock"):
        if not _complete(folder, names):
            images = test.images.permute(0, 2, 3, 1).contiguous().numpy()
            generate(images, test.labels.numpy(), folder, seed=SEED, **options)
    return folder


def generated_corrupted(
    data: ImageData, *, workers: int = 1, limit: int | None = None, corruptions: Sequence[str] = ()
) -> CorruptedSet:
    """The test images under all 15 corruptions at 5 severities, read from the cache or made now.

    Args:
        data: data set.
        workers: number of processes that make the set.
        limit: number of test images, counted from the first; `None` for all.
        corruptions: names of further corruptions.
    """
    names, options = (*STANDARD, *corruptions), {"workers": workers, "frost": "procedural"}
    return CorruptedSet(_generated(data, "c", names, generate_corrupted, limit, corruptions=names, **options))


def generated_perturbed(data: ImageData, *, workers: int = 1, limit: int | None = None) -> PerturbedSet:
    """The ten sequences of frames of every test image, read from the cache or made now.

    Args:
        data: data set.
        workers: number of processes that make the set.
        limit: number of test images, counted from the first; `None` for all.
    """
    return PerturbedSet(_generated(data, "p", CIFAR_P, generate_perturbed, limit, workers=workers))


def published_folder(name: str) -> Path:
    """The folder `$NFM_DATA/<name>` of a published set such as `"CIFAR-10-C"`.

    Raises:
        FileNotFoundError: if there is no such folder; the message says where to get the set.
    """
    root = os.environ.get("NFM_DATA", "")
    folder = Path(root) / name
    if not root or not folder.is_dir():
        raise FileNotFoundError(
            f"{name}: expected a folder of this name in $NFM_DATA ({root or 'not set'}). Download the set from the "
            "authors of the benchmark (see the page on reproducing at the papers' size)."
        )
    return folder
