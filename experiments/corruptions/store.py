"""Sets of arrays in a folder with a manifest. Files are written completely or not at all, so work can be continued."""

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
from experiments.data.integrity import file_hash
from experiments.record.files import replace_file, write_json

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class ArrayJob:
    """One file to write.

    Attributes:
        name: name of the file without `.npy`.
        shape: shape of the array of bytes.
        pieces: pieces that together fill the array.
        notes: more facts for the file's entry in the manifest. A finished file with other notes is never overwritten.
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
    """Versions of the libraries on which the bytes may depend."""
    return {"numpy": np.__version__, "scipy": scipy.__version__, "opencv": cv2.__version__, "pillow": PIL.__version__}


def array_digest(array: np.ndarray) -> str:
    """SHA-256 of an array's dtype, shape and content."""
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def read_manifest(folder: str | Path) -> dict | None:
    """The manifest of a folder, or None if there is none."""
    path = Path(folder) / MANIFEST
    if not path.exists():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if not {"settings", "files"} <= manifest.keys():
            raise KeyError("settings, files")
    except (ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: expected the manifest of a generated set ({error}); delete the folder.") from error
    return manifest


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
    """Write the files that are missing or damaged, and update the manifest.

    A file is written under a temporary name and renamed when it is complete. Before that, its digest is put into the
    manifest. So after an interruption the folder has only complete files that are in the manifest.

    Args:
        folder: folder of the set, created if needed.
        settings: everything on which the bytes depend, as JSON values.
        labels: labels for `labels.npy`.
        images: the source images, `(n, H, W, C)`.
        jobs: the other files.
        workers: number of processes; 1 for this process only.
        progress: True to show a progress bar.

    Returns:
        The manifest.

    Raises:
        FileExistsError: if a file is there that is not in the manifest.
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
        details = "; ".join(f"{key}: expected {new.get(key)!r}, got {old.get(key)!r}" for key in differing)
        raise ValueError(f"{path}: the folder holds a set with other settings ({details}). Choose another folder.")


def _finished(folder: Path, name: str, manifest: dict, notes: dict) -> bool:
    """True if a file exists and is intact. A damaged file causes a warning, and a foreign file an error."""
    path, entry = folder / name, manifest["files"].get(name)
    if entry is None:
        if path.exists():
            raise FileExistsError(
                f"{path}: exists, but is not in the manifest. Choose another folder or move the file."
            )
        return False
    if entry["notes"] != notes:
        raise ValueError(
            f"{path}: made with {entry['notes']}, expected {notes}. Choose another folder or delete the file."
        )
    if path.is_file() and path.stat().st_size == entry["bytes"] and file_hash(path, "sha256") == entry["sha256"]:
        return True
    if path.exists():
        warnings.warn(f"{path}: its bytes differ from the manifest, so the file is made again.", stacklevel=4)
    return False


@contextmanager
def _recorded(folder: Path, name: str, manifest: dict, notes: dict) -> Iterator[Path]:
    """A temporary file. Its digest is put into the manifest, and then it is renamed to `name`."""
    with replace_file(folder / name) as temporary:
        yield temporary
        size, digest = temporary.stat().st_size, file_hash(temporary, "sha256")
        manifest["files"][name] = {"sha256": digest, "bytes": size, "notes": notes}
        write_json(folder / MANIFEST, manifest)
