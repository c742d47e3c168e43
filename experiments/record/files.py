"""Files that are either the old or the new one, never half of it; results as one JSON object per line."""

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

#: Where the tracked results live.
RESULTS = Path(__file__).resolve().parents[1] / "results"


@contextmanager
def replace_file(path: str | Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; it takes the place of `path` if the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files that only their owner can read; results are for everyone.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, value: object) -> None:
    """Write one JSON document."""
    with replace_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def write_lines(path: str | Path, records: Iterable[dict]) -> None:
    """Write one JSON object per line."""
    with replace_file(path) as temporary:
        temporary.write_text("".join(json.dumps(r, allow_nan=False) + "\n" for r in records), encoding="utf-8")


def read_lines(path: str | Path) -> list[dict]:
    """Read what `write_lines` wrote.

    Raises:
        FileNotFoundError: if there is no such file, with the command that makes it.
    """
    path = Path(path)
    if not path.exists():
        jobs = {"bounds": "verify_bounds", "validity_": "verify_validity", "decomposition": "decompose_training",
                "explore": "explore"}  # fmt: skip
        job = next((jobs[start] for start in jobs if path.name.startswith(start)), "verify_digits")
        raise FileNotFoundError(f"{path} does not exist; `python -m experiments.{job}` writes it.")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    return {"python": platform.python_version(), "torch": torch.__version__, "nfm_theory": nt.__version__}
