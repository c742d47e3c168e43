"""Writing files so that a reader finds either the old or the new content, never half of it."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

import nfm_theory as nt

_KINDS = (
    (stat.S_ISDIR, "directory"), (stat.S_ISFIFO, "named pipe"), (stat.S_ISSOCK, "socket"),
    (stat.S_ISCHR, "device"), (stat.S_ISBLK, "device"),
)  # fmt: skip


def check_regular(path: str | Path) -> os.stat_result | None:
    """Refuse what is there and is not a regular file, links followed.

    Args:
        path: the file.

    Returns:
        What the system knows about the file; `None` if there is none.

    Raises:
        OSError: for a directory, a pipe, a socket or a device, and if the system cannot look there.
    """
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OSError(f"expected a file, but {path} cannot be looked at ({error.strerror}).") from None
    except ValueError as error:  # a zero byte in the name
        raise OSError(f"expected the name of a file, got {str(path)!r} ({error}).") from None
    for is_kind, kind in _KINDS:
        if is_kind(found.st_mode):
            raise OSError(f"expected a file, got the {kind} {path}.")
    return found


def _is_standard_stream(found: os.stat_result) -> bool:
    """True if the input, the output or the errors of this program are in that file."""
    for stream in range(3):
        with contextlib.suppress(OSError):
            if os.path.samestat(found, os.fstat(stream)):
                return True
    return False


def writable_file(path: str | Path) -> Path:
    """The regular file that writing to `path` would create or change. A link stands for the file that it points to.

    Args:
        path: a file, or a place where there is none yet. Its folder may be missing.

    Raises:
        OSError: if something else is there (a directory, a pipe, a socket, a device), if the file or its folder cannot
            be written, or if the program prints to that file.
    """
    found = check_regular(path)
    if found is not None and _is_standard_stream(found):
        raise OSError(f"expected a file of its own, but this program prints to {path}; use another name.")
    if found is not None and not os.access(path, os.W_OK):
        raise OSError(f"expected a file that can be written, but {path} is read-only; change its mode (chmod u+w).")
    target = Path(os.path.realpath(path))
    folder = next(place for place in target.parents if os.path.lexists(place))
    if not folder.is_dir():
        raise OSError(f"expected a folder for {path}, but {folder} is a file; use another name.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OSError(f"expected a folder that can be written for {path}, but {folder} is not; use another one.")
    return target


@contextmanager
def replace_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary file to write to. Its content becomes that of `path` if the block ends without an error.

    A file that is there keeps its permissions and its owner. A link stays a link; the file that it points to changes.

    Args:
        path: the file to replace. Its folder is made if there is none.

    Raises:
        OSError: if `path` is no regular file, or cannot be written.
    """
    target = writable_file(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:50]}.", suffix=Path(path).suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _take_over_permissions(temporary, check_regular(target))
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _take_over_permissions(temporary: Path, old: os.stat_result | None) -> None:
    if old is None:
        # mkstemp makes files that only their owner can read; results are for everyone.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        return
    if hasattr(os, "chown"):
        with contextlib.suppress(PermissionError):
            os.chown(temporary, old.st_uid, old.st_gid)
    temporary.chmod(stat.S_IMODE(old.st_mode))


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
