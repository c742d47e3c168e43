"""Write corrupted sets and perturbation sequences to a folder, in the layouts of CIFAR-10-C and CIFAR-10-P."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from experiments.corruptions import NAMES, SEVERITIES, STANDARD, check_images, corrupt
from experiments.corruptions.pieces import Piece, pieces_of
from experiments.corruptions.sequences import CIFAR_P, PERTURBATIONS, frame_count, perturbation_sequences
from experiments.corruptions.store import ArrayJob, array_digest, library_versions, write_set
from experiments.corruptions.textures import frost_textures as load_frost
from experiments.corruptions.textures import texture_digest

#: Version of the methods, increased whenever a change alters the bytes.
METHOD = 2


def _settings(what: str, seed: int, images: np.ndarray, labels: np.ndarray, **options) -> dict:
    """The settings in the manifest: everything that determines the bytes. Bad images and labels are refused."""
    check_images(images)
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels: expected one whole number for each of {len(images)} images, got {labels.dtype} of shape "
            f"{tuple(labels.shape)}."
        )
    digests = {"images_sha256": array_digest(images), "labels_sha256": array_digest(labels)}
    source = {"shape": list(images.shape), **digests}
    return {"set": what, "method": METHOD, "seed": seed, **options, "source": source, "versions": library_versions()}


def _compact(labels: np.ndarray) -> np.ndarray:
    """Labels as bytes, as published, if they are small enough, otherwise int64."""
    fits = labels.size == 0 or (labels.min() >= 0 and labels.max() < 256)
    return labels.astype(np.uint8 if fits else np.int64)


def generate_corrupted(
    images: np.ndarray,
    labels: np.ndarray,
    folder: str | Path,
    *,
    seed: int,
    corruptions: Sequence[str] = STANDARD,
    severities: Sequence[int] = SEVERITIES,
    workers: int = 1,
    frost: str = "textures",
    frost_textures: str | Path | None = None,
    progress: bool = True,
) -> dict:
    """Write `<name>.npy` for each corruption, `labels.npy`, and a manifest.

    The rows of a file are sorted by severity. For five severities of 10,000 images it has 50,000 rows, the 10,000 of
    severity 1 first, and the labels are repeated accordingly. Finished files are compared with the manifest and kept;
    damaged files are made again, with a warning. A folder with another set is refused. The bytes do not depend on
    `workers` or the order of work. With more than one worker, a script needs the usual guard `if __name__ ==
    "__main__":`.

    Args:
        images: `(n, H, W, C)`, uint8.
        labels: `(n,)`, whole numbers.
        folder: folder of the set.
        seed: random seed.
        corruptions: names of the corruptions; more can be added to a folder later.
        severities: severities in the order of the rows.
        workers: number of processes.
        frost: `"textures"`, or `"procedural"` for a substitute of the published frost, which the manifest names.
        frost_textures: folder of the frost photographs; `None` for $NFM_FROST.
        progress: True to show a progress bar.

    Returns:
        The manifest: `settings` (seed, severities, source, versions) and `files` (digest, size, notes).

    Raises:
        FileExistsError: if the folder contains a file of this name that is not in the manifest.
        FileNotFoundError: if the photographs for frost are missing. This is checked before anything is written.
    """
    unknown = [name for name in corruptions if name not in NAMES]
    if unknown or not corruptions:
        raise ValueError(f"corruptions: expected some of {NAMES}, got {tuple(corruptions)}.")
    severities = tuple(severities)
    if not severities or any(s not in SEVERITIES for s in severities) or len(set(severities)) < len(severities):
        raise ValueError(f"severities: expected some of {SEVERITIES}, each once, got {severities}.")
    options, notes = {}, {}
    if "frost" in corruptions:
        load_frost(frost, frost_textures)  # fails now, not after an hour
        options = {"frost": frost, "frost_textures": frost_textures}
        notes = {"frost": frost}
        if frost == "textures":
            notes["textures_sha256"] = texture_digest(frost_textures)
    what = "corrupted images, regenerated with a seed; layout of CIFAR-10-C"
    settings = _settings(what, seed, images, labels, severities=list(severities))
    jobs = []
    for name in corruptions:
        pieces: list[Piece] = []
        for position, severity in enumerate(severities):
            make = partial(corrupt, name=name, severity=severity, seed=seed, **(options if name == "frost" else {}))
            pieces += pieces_of(len(images), make, row=position * len(images))
        shape = (len(severities) * len(images), *images.shape[1:])
        jobs.append(ArrayJob(name, shape, tuple(pieces), notes if name == "frost" else {}))
    repeated = np.tile(_compact(labels), len(severities))
    return write_set(folder, settings, repeated, images, jobs, workers=workers, progress=progress)


def generate_perturbed(
    images: np.ndarray,
    labels: np.ndarray,
    folder: str | Path,
    *,
    seed: int,
    perturbations: Sequence[str] = CIFAR_P,
    frames: int | None = None,
    workers: int = 1,
    progress: bool = True,
) -> dict:
    """Write `<name>.npy`, `(n, frames, H, W, C)`, for each perturbation, `labels.npy`, and a manifest.

    Finished, damaged and foreign files are treated as in `generate_corrupted`.

    Args:
        images: `(n, H, W, C)`, uint8.
        labels: `(n,)`, whole numbers.
        folder: folder of the set.
        seed: random seed.
        perturbations: names of the perturbations: `CIFAR_P`, `IMAGENET_P` or any of `PERTURBATIONS`.
        frames: number of frames of every sequence; `None` for the published number of each.
        workers: number of processes.
        progress: True to show a progress bar.

    Returns:
        The manifest.

    Raises:
        FileExistsError: if the folder contains a file of this name that is not in the manifest.
    """
    if not perturbations:
        raise ValueError(f"perturbations: expected some of {tuple(PERTURBATIONS)}, got none.")
    what = "perturbation sequences, regenerated with a seed; in the manner of CIFAR-10-P"
    settings = _settings(what, seed, images, labels, frames=frames)
    jobs = []
    for name in perturbations:
        count = frame_count(name, frames)
        make = partial(perturbation_sequences, name=name, seed=seed, frames=frames)
        shape = (len(images), count, *images.shape[1:])
        jobs.append(ArrayJob(name, shape, tuple(pieces_of(len(images), make)), {"frames": count}))
    return write_set(folder, settings, _compact(labels), images, jobs, workers=workers, progress=progress)
