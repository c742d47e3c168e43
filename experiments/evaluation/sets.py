"""Corrupted and perturbed test sets: the published ones where a recipe is the paper's, generated ones elsewhere.

Generated sets are made once and kept in the cache. They are never mixed with the published ones: which one a number is
of stands in the settings of its ledger entry.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..corruptions import STANDARD
from ..corruptions.generate import generate_corrupted, generate_perturbed
from ..corruptions.sequences import CIFAR_P
from ..data.corrupted import CorruptedSet, PerturbedSet
from ..data.images import ImageData
from ..studies.networks import cache_directory

#: Of the generated sets; part of their name.
SEED = 0


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time; the others wait, and then find the work done."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _channels_last(data: ImageData) -> np.ndarray:
    return data.test.images.permute(0, 2, 3, 1).contiguous().numpy()


def _complete(folder: Path, names: Iterable[str]) -> bool:
    """Whether the manifest lists all; the readers compare what they read with it."""
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        return False
    listed = json.loads(manifest.read_text(encoding="utf-8")).get("files", {})
    return all(name in listed or f"{name}.npy" in listed for name in names)


def generated_corrupted(data: ImageData, *, workers: int = 1) -> CorruptedSet:
    """All 15 corruptions at 5 severities of the test images, from the cache or made now.

    Args:
        data: whose test images.
        workers: processes that make them.
    """
    folder = cache_directory() / "sets" / f"{data.name}-c-seed{SEED}"
    with _alone(folder):
        if not _complete(folder, STANDARD):
            generate_corrupted(
                _channels_last(data), data.test.labels.numpy(), folder, seed=SEED, workers=workers, frost="procedural"
            )
    return CorruptedSet(folder)


def generated_perturbed(data: ImageData, *, workers: int = 1) -> PerturbedSet:
    """The ten sequences of frames of each test image, from the cache or made now.

    Args:
        data: whose test images.
        workers: processes that make them.
    """
    folder = cache_directory() / "sets" / f"{data.name}-p-seed{SEED}"
    with _alone(folder):
        if not _complete(folder, CIFAR_P):
            generate_perturbed(_channels_last(data), data.test.labels.numpy(), folder, seed=SEED, workers=workers)
    return PerturbedSet(folder)


def published_folder(name: str) -> Path:
    """The folder of a published set, `$NFM_DATA/<name>`.

    Args:
        name: such as `"CIFAR-10-C"`.

    Raises:
        FileNotFoundError: if there is none, with where to get it.
    """
    root = os.environ.get("NFM_DATA", "")
    folder = Path(root) / name
    if not root or not folder.is_dir():
        raise FileNotFoundError(
            f"{name}: expected a folder of this name in $NFM_DATA ({root or 'not set'}); it is published by the "
            "authors of the benchmark (see the page on reproducing at the papers' size)."
        )
    return folder
