"""Writing files so that a reader finds either the old or the new content, never half of it."""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

import nfm_theory as nt


@contextmanager
def replace_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary file beside `path` to write to. It replaces `path` if the block ends without an error.

    Args:
        path: the file to replace. Its folder is made if there is none.
    """
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
    """Write a JSON document.

    Args:
        path: the file to write.
        value: anything that JSON can hold; infinite and undefined numbers are refused.
    """
    with replace_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def versions() -> dict[str, str]:
    """Return the versions of Python, PyTorch and this package, which a result depends on."""
    return {"python": platform.python_version(), "torch": torch.__version__, "nfm_theory": nt.__version__}
