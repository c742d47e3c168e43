"""Read and write files of results, with one JSON object per line. A file is never left half written."""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

import nfm_theory as nt

#: The folder of the tracked results.
RESULTS = Path(__file__).resolve().parents[1] / "results"

#: The study that writes a file of results, by the start of the file's name; all others are of the study `expansion`.
_STUDIES = {name: name.rstrip("_") for name in ("bounds", "validity_", "decomposition", "explore")}


@contextmanager
def replace_file(path: str | Path) -> Iterator[Path]:
    """Write to a temporary file, which replaces `path` if the block succeeds.

    Args:
        path: the file to replace.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files that only their owner can read
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, value: object) -> None:
    """Write a JSON document to a file."""
    with replace_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def write_lines(path: str | Path, records: Iterable[dict]) -> None:
    """Write records to a file, one JSON object per line."""
    with replace_file(path) as temporary:
        temporary.write_text("".join(json.dumps(r, allow_nan=False) + "\n" for r in records), encoding="utf-8")


def read_lines(path: str | Path) -> list[dict]:
    """Read the records that `write_lines` wrote.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: if there is no such file; the message names the command that writes it.
    """
    path = Path(path)
    if not path.exists():
        study = next((study for start, study in _STUDIES.items() if path.name.startswith(start)), "expansion")
        raise FileNotFoundError(f"{path} does not exist; `python -m experiments study {study} --record` writes it.")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def versions() -> dict[str, str]:
    """The versions of the packages that a result depends on."""
    return {"python": platform.python_version(), "torch": torch.__version__, "nfm_theory": nt.__version__}
