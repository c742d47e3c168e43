"""Write corrupted sets and perturbation sequences to a folder, in the layouts of CIFAR-10-C and CIFAR-10-P."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from experiments.corruptions import NAMES, SEVERITIES, STANDARD, corrupt
from experiments.corruptions.pieces import Piece, pieces_of
from experiments.corruptions.sequences import CIFAR_P, PERTURBATIONS, frame_count, perturbation_sequences
from experiments.corruptions.store import ArrayJob, array_digest, library_versions, write_set
from experiments.corruptions.textures import frost_textures as load_frost
from experiments.corruptions.textures import texture_digest

#: Raised when a change of the methods changes bytes.
METHOD = 1


def source_settings(images: np.ndarray, labels: np.ndarray) -> dict:
    """What a manifest says about the images that a set is made from."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(
            f"images: expected bytes (n, H, W, 1 or 3), got {images.dtype} of shape {tuple(images.shape)}."
        )
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels: expected one whole number for each of {len(images)} images, got {labels.dtype} of shape "
            f"{tuple(labels.shape)}."
        )
    return {"shape": list(images.shape), "images_sha256": array_digest(images), "labels_sha256": array_digest(labels)}


def compact_labels(labels: np.ndarray) -> np.ndarray:
    """Labels as bytes, as published, where they fit, otherwise int64."""
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
    """Write `<name>.npy` for each corruption and `labels.npy`, severity by severity, with a manifest.

    With the five severities of 10,000 images each file has 50,000 rows, the 10,000 of severity 1 first; the labels are
    repeated likewise. Finished files are checked against the manifest and kept, damaged ones are made again with a
    warning, and sets with other settings are refused. The bytes do not depend on `workers` or on the order of work.
    With more than one worker, a script needs the usual `if __name__ == "__main__":` guard.

    Args:
        images: `(n, H, W, C)`, uint8.
        labels: `(n,)`, whole numbers.
        folder: to write to.
        seed: of all draws.
        corruptions: names; more can be added to a folder later.
        severities: in the order of the rows.
        workers: processes.
        frost: `"textures"`, or `"procedural"` for a stand-in that is not the published frost; the manifest names it.
        frost_textures: folder of the frost photographs; by default $NFM_FROST.
        progress: show a bar.

    Returns:
        The manifest: `settings` (seed, severities, source, versions) and `files` (digest, size, notes).

    Raises:
        FileExistsError: if a file is in the way.
        FileNotFoundError: for frost without its photographs, before anything is written.
        ValueError: for bad arguments, or if the folder holds another set.
    """
    unknown = [name for name in corruptions if name not in NAMES]
    if unknown or not corruptions:
        raise ValueError(f"corruptions: expected some of {NAMES}, got {tuple(corruptions)}.")
    severities = tuple(severities)
    if not severities or any(s not in SEVERITIES for s in severities) or len(set(severities)) < len(severities):
        raise ValueError(f"severities: expected different ones of {SEVERITIES}, got {severities}.")
    options, notes = {}, {}
    if "frost" in corruptions:
        load_frost(frost, frost_textures)  # fails now rather than after an hour
        options = {"frost": frost, "frost_textures": frost_textures}
        notes = {"frost": frost}
        if frost == "textures":
            notes["textures_sha256"] = texture_digest(frost_textures)
    settings = {
        "set": "corrupted images, regenerated with a seed; layout of CIFAR-10-C",
        "method": METHOD,
        "seed": seed,
        "severities": list(severities),
        "source": source_settings(images, labels),
        "versions": library_versions(),
    }
    jobs = []
    for name in corruptions:
        pieces: list[Piece] = []
        for position, severity in enumerate(severities):
            make = partial(corrupt, name=name, severity=severity, seed=seed, **(options if name == "frost" else {}))
            pieces += pieces_of(len(images), make, row=position * len(images))
        shape = (len(severities) * len(images), *images.shape[1:])
        jobs.append(ArrayJob(name, shape, tuple(pieces), notes if name == "frost" else {}))
    repeated = np.tile(compact_labels(labels), len(severities))
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
    """Write `<name>.npy`, `(n, frames, H, W, C)`, for each perturbation, `labels.npy` and a manifest.

    Stops, resumption and checks are those of `generate_corrupted`.

    Args:
        images: `(n, H, W, C)`, uint8.
        labels: `(n,)`, whole numbers.
        folder: to write to.
        seed: of all draws.
        perturbations: names; `CIFAR_P`, `IMAGENET_P` or any of `PERTURBATIONS`.
        frames: of every sequence; by default the published number of each.
        workers: processes.
        progress: show a bar.

    Returns:
        The manifest.

    Raises:
        FileExistsError: if a file is in the way.
        ValueError: for bad arguments, or if the folder holds another set.
    """
    if not perturbations:
        raise ValueError(f"perturbations: expected some of {tuple(PERTURBATIONS)}, got none.")
    settings = {
        "set": "perturbation sequences, regenerated with a seed; in the manner of CIFAR-10-P",
        "method": METHOD,
        "seed": seed,
        "frames": frames,
        "source": source_settings(images, labels),
        "versions": library_versions(),
    }
    jobs = []
    for name in perturbations:
        count = frame_count(name, frames)
        make = partial(perturbation_sequences, name=name, seed=seed, frames=frames)
        shape = (len(images), count, *images.shape[1:])
        jobs.append(ArrayJob(name, shape, tuple(pieces_of(len(images), make)), {"frames": count}))
    return write_set(folder, settings, compact_labels(labels), images, jobs, workers=workers, progress=progress)
