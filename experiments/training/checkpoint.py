"""Checkpoints: written whole or not at all, read without running anything in them, refused if they do not fit."""

from __future__ import annotations

import fcntl
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ..record.files import replace_file

VERSION = 1


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and the remedy."""


class BusyError(RuntimeError):
    """Another process works on the same run."""


def save_checkpoint(path: Path, content: dict) -> None:
    """Write tensors and plain values; the file is the old or the new one, whatever happens meanwhile.

    Args:
        path: file.
        content: nested dicts and lists of tensors, numbers and strings.
    """
    with replace_file(path) as temporary, temporary.open("wb") as file:
        torch.save({"version": VERSION, **content}, file)
        file.flush()
        os.fsync(file.fileno())


def load_checkpoint(path: Path, *, hash: str, seed: int) -> dict:
    """Read what `save_checkpoint` wrote for this recipe and seed.

    Args:
        path: file.
        hash: of the training.
        seed: of the training.

    Raises:
        CheckpointError: for a damaged file, another version, and another recipe or seed.
    """
    remedy = "delete it to train from the start"
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load compares no checksums
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(damaged)
        content = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # whatever bytes may lead to
        raise CheckpointError(
            f"{path}: expected a checkpoint, but it cannot be read ({type(error).__name__}); it is damaged or no "
            f"checkpoint of ours, {remedy}."
        ) from error
    if not isinstance(content, dict) or content.get("version") != VERSION:
        found = content.get("version") if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(f"{path}: expected a checkpoint of version {VERSION}, got {found}; {remedy}.")
    if (content.get("hash"), content.get("seed")) != (hash, seed):
        raise CheckpointError(
            f"{path}: expected recipe {hash} with seed {seed}, got {content.get('hash')} with {content.get('seed')}; "
            f"use another folder, or {remedy}."
        )
    return content


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Keep other processes out of a run; the lock goes with the process, however it ends.

    Raises:
        BusyError: if another process is there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(
                f"{folder}: another process is at work there; wait for it or choose another folder."
            ) from error
        yield
