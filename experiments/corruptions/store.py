"""Sets of arrays in a folder: written whole or not at all, described by a manifest, and taken up again after a stop."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import PIL
import scipy
from tqdm import tqdm

from experiments.corruptions.pieces import Piece, fill, runner
from experiments.record.files import replace_file, write_json

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class ArrayJob:
    """One file to write.

    Attributes:
        name: file name without `.npy`.
        shape: of the array of bytes.
        pieces: together they fill it.
        notes: more for the file's entry in the manifest; a finished file with other notes is not replaced silently.
    """

    name: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    notes: dict = field(default_factory=dict)

    @property
    def file(self) -> str:
        """Name of the file."""
        return f"{self.name}.npy"


def library_versions() -> dict[str, str]:
    """Versions of the libraries that the bytes may depend on."""
    return {"numpy": np.__version__, "scipy": scipy.__version__, "opencv": cv2.__version__, "pillow": PIL.__version__}


def array_digest(array: np.ndarray) -> str:
    """SHA-256 of an array's kind, shape and content."""
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_manifest(folder: str | Path) -> dict | None:
    """The manifest of a folder, or None where there is none."""
    path = Path(folder) / MANIFEST
    if not path.exists():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if not {"settings", "files"} <= manifest.keys():
            raise KeyError("settings, files")
    except (ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: not the manifest of a generated set ({error}); delete the folder.") from error
    return manifest


def _whole(path: Path, entry: dict) -> bool:
    return path.is_file() and path.stat().st_size == entry["bytes"] and file_digest(path) == entry["sha256"]


def write_set(
    folder: str | Path,
    settings: dict,
    labels: np.ndarray,
    images: np.ndarray,
    jobs: Sequence[ArrayJob],
    *,
    workers: int = 1,
    progress: bool = True,
) -> dict:
    """Write the files that are missing or damaged, and keep the manifest in step.

    A file is written under another name and renamed when it is complete; its digest is in the manifest before that,
    so a stop at any moment leaves only whole files that the manifest knows.

    Args:
        folder: of the set; made if needed.
        settings: everything that the bytes depend on, as JSON values.
        labels: written to `labels.npy`.
        images: the source, `(n, H, W, C)`.
        jobs: the files.
        workers: processes; 1 works in this one.
        progress: show a bar.

    Returns:
        The manifest.

    Raises:
        FileExistsError: if a file is there that no manifest knows.
        ValueError: if the folder holds a set with other settings.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings = json.loads(json.dumps(settings))
    manifest = read_manifest(folder) or {"settings": settings, "files": {}}
    _compare(folder / MANIFEST, manifest["settings"], settings)
    notes = {"labels.npy": {}} | {job.file: json.loads(json.dumps(job.notes)) for job in jobs}
    pending = [name for name in notes if not _finished(folder, name, manifest, notes[name])]
    if "labels.npy" in pending:
        with _recorded(folder, "labels.npy", manifest, {}) as temporary, temporary.open("wb") as stream:
            np.save(stream, labels)
    jobs = [job for job in jobs if job.file in pending]
    with (
        runner(images, workers if jobs else 1) as run,
        tqdm(total=sum(len(job.pieces) for job in jobs), disable=not progress, unit="piece") as bar,
    ):
        for job in jobs:
            bar.set_description(job.name)
            with _recorded(folder, job.file, manifest, notes[job.file]) as temporary:
                np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=job.shape).flush()
                for _ in run(partial(fill, str(temporary)), job.pieces):
                    bar.update()
    return manifest


def _compare(path: Path, old: dict, new: dict) -> None:
    """Refuse to mix two sets."""
    differing = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    if differing:
        details = "; ".join(f"{key}: {old.get(key)!r} there, {new.get(key)!r} asked for" for key in differing)
        raise ValueError(f"{path}: the folder holds a set with other settings ({details}). Take another folder.")


def _finished(folder: Path, name: str, manifest: dict, notes: dict) -> bool:
    """Whether a file is there and right; a damaged one is reported, a foreign one is never overwritten."""
    path, entry = folder / name, manifest["files"].get(name)
    if entry is None:
        if path.exists():
            raise FileExistsError(f"{path}: exists, but no manifest tells what it is. Take another folder or move it.")
        return False
    if entry["notes"] != notes:
        raise ValueError(f"{path}: made with {entry['notes']}, asked for {notes}. Take another folder or delete it.")
    if _whole(path, entry):
        return True
    if path.exists():
        warnings.warn(f"{path}: its bytes are not those of the manifest; it is made again.", stacklevel=4)
    return False


@contextmanager
def _recorded(folder: Path, name: str, manifest: dict, notes: dict) -> Iterator[Path]:
    """A temporary file that becomes `name` after its digest is in the manifest."""
    with replace_file(folder / name) as temporary:
        yield temporary
        size, digest = temporary.stat().st_size, file_digest(temporary)
        manifest["files"][name] = {"sha256": digest, "bytes": size, "notes": notes}
        write_json(folder / MANIFEST, manifest)
