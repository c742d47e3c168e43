"""Locks between processes, also on file systems that know no locks.

The lock of the operating system is best: it ends with its process, whatever happens. Some network file systems have
none. There a second file, `NAME.held`, stands for the lock: only one process can create it, and it says which one did.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..processes import is_alive

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

#: What the system answers where there are never locks: not implemented, not supported.
NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}
#: Seconds after which waiting for another process is given up where there are no locks.
PATIENCE = 600.0


class LockedError(OSError):
    """Another process holds the lock. The message, if any, says which one and what to do if it is dead."""


def system_lock(handle: int, path: Path, *, wait: bool = True) -> bool:
    """Take the lock of the operating system on an open file. It ends when the file is closed.

    Args:
        handle: number of the open file.
        path: the file, for messages.
        wait: True to wait for another process.

    Returns:
        False if the file system has no locks.

    Raises:
        LockedError: if another process holds the lock and `wait` is False.
        OSError: if there is no lock now, as on a network file system whose lock service is away. Another process may
            still have one, so a file cannot stand for it.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError as error:
        raise LockedError("") from error
    except OSError as error:
        if error.errno in NO_LOCKS:
            return False
        raise OSError(
            error.errno, f"{path}: this file system has no locks ({error.strerror}); write to a local disk and `merge`."
        ) from error
    return True


def share_lock(handle: int) -> None:
    """Wait until no process holds the lock of an open file, and keep others from taking it while the file is open.

    Without locks of the operating system nothing happens.
    """
    if fcntl is not None:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_SH)


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold a lock while the block runs.

    Args:
        path: file of the lock; it is created, and stays. Its folder must exist.
        wait: True to wait for another process.

    Raises:
        LockedError: if another process holds the lock and `wait` is False, or after `PATIENCE` where there are no locks
            of the operating system; the message then says which process it is and what to do if it is dead.
    """
    with path.open("a") as file:
        if system_lock(file.fileno(), path, wait=wait):
            yield
            return
    with held_file(path, wait=wait):
        yield


@contextmanager
def held_file(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold a lock that is a file beside `path`, named `NAME.held`.

    Args:
        path: what is locked.
        wait: True to wait for another process, at most `PATIENCE` seconds.

    Raises:
        LockedError: as for `locked`.
    """
    place = path.with_name(path.name + ".held")
    mine = json.dumps({"host": socket.gethostname(), "process": os.getpid(), "id": uuid.uuid4().hex})
    end = time.monotonic() + (PATIENCE if wait else 0)
    while not _claim(place, mine):
        owner = _owner(place)
        if owner is not None and _is_dead(owner):
            _remove_dead(place, owner)
        elif time.monotonic() >= end:
            raise LockedError(_words(place, owner))
        else:
            time.sleep(0.05)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if place.read_text(encoding="utf-8") == mine:
                place.unlink()


def _claim(place: Path, mine: str) -> bool:
    """Create the file, unless it is there. It appears with its content, because a link to a written file is made."""
    written = place.with_name(f"{place.name}.{uuid.uuid4().hex}")
    written.write_text(mine, encoding="utf-8")
    try:
        os.link(written, place)
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        return _create(place, mine)
    finally:
        written.unlink(missing_ok=True)
    return True


def _create(place: Path, mine: str) -> bool:
    try:
        handle = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(mine)
    return True


def _owner(place: Path) -> dict | None:
    """Who made the file; `None` if it is gone, or not yet written."""
    try:
        found = json.loads(place.read_text(encoding="utf-8"))
        return {"host": str(found["host"]), "process": int(found["process"]), "id": str(found["id"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_dead(owner: dict) -> bool:
    """True if the owner ran on this machine and does not any more. About other machines nothing is known."""
    return owner["host"] == socket.gethostname() and not is_alive(owner["process"])


def _remove_dead(place: Path, owner: dict) -> None:
    """Take the file of a dead process away. If another process has just taken it over, it stays."""
    aside = place.with_name(f"{place.name}.{uuid.uuid4().hex}")
    try:
        os.rename(place, aside)
    except FileNotFoundError:
        return
    if _owner(aside) != owner:  # not the file that was looked at: give it back
        with contextlib.suppress(OSError):
            os.link(aside, place)
    aside.unlink(missing_ok=True)


def _words(place: Path, owner: dict | None) -> str:
    who = "another process" if owner is None else f"process {owner['process']} on {owner['host']}"
    return f"{place}: {who} holds this file, which is the lock of a file system without locks; delete it if it is dead."
