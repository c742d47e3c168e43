"""Checkpoints, which are written completely or not at all, and read without running code from the file."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from ..record.files import replace_file
from ..record.locks import LockedError, locked

VERSION = 1


class CheckpointError(ValueError):
    """A checkpoint that cannot be used. The message names the file and the remedy."""


class BusyError(RuntimeError):
    """Another process works on the same run."""


def save_checkpoint(path: Path, content: dict) -> None:
    """Write nested dicts and lists of tensors, numbers and text. A crash leaves either the old or the new file."""
    with replace_file(path) as temporary, temporary.open("wb") as file:
        torch.save({"version": VERSION, **content}, file)
        file.flush()
        os.fsync(file.fileno())


def load_checkpoint(path: Path, *, hash: str, seed: int) -> dict:
    """Read a checkpoint of the training with this hash and seed.

    Raises:
        CheckpointError: if the file is damaged, has another version, or belongs to another training or seed.
    """
    remedy = "delete it to train from the start"
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not compare checksums
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(damaged)
        content = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # damaged bytes may raise anything
        raise CheckpointError(
            f"{path}: expected a checkpoint, but it cannot be read ({type(error).__name__}); it is damaged or from "
            f"another program; {remedy}."
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
    """Keep other processes out of a run. The lock is released when the process ends for any reason.

    Raises:
        BusyError: if another process holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(locked(folder / ".lock", wait=False))
        except LockedError as error:
            message = f"{folder}: another process is at work there; wait for it or choose another folder. {error}"
            raise BusyError(message.rstrip()) from error
        yield
