"""The ledger of results: one JSON object per line, only ever appended to, by several processes at once.

    append("results.jsonl", entry)      # False if that cell is there already
    read("results.jsonl", scheme="nfm")

A *cell* is (hash of the training settings, seed, suite); the first result of a cell stays. A process killed in the
middle of a write leaves a last line without its end. That result was never reported as finished: reading passes over
it, and the next `append` removes it. Anything else that is not as it should be is an error with the file and the line;
`validate` lists all of them.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from .entry import Cell, Entry, LedgerError
from .files import RESULTS
from .provenance import provenance

__all__ = [
    "LEDGER", "Cell", "Entry", "LedgerError", "append", "differences", "finished", "merge", "provenance",
    "read", "validate", "within_seeds",
]  # fmt: skip

#: The tracked ledger.
LEDGER = RESULTS / "experiments.jsonl"

_REMEDY = "Correct or delete that line (`validate` lists all such lines), then try again."


def _where(path: Path, number: int) -> str:
    return f"{path}, line {number}"


def _complete_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _split(content: bytes) -> tuple[list[bytes], bytes]:
    """The lines that end, and what stands after the last newline."""
    *lines, tail = content.split(b"\n")
    return lines, tail


def _parse(path: Path, number: int, line: bytes) -> Entry:
    try:
        return Entry.from_json(line)
    except LedgerError as error:
        raise LedgerError(f"{_where(path, number)}: {error} {_REMEDY}") from None


def _tail(path: Path, number: int, tail: bytes) -> Entry | None:
    """The entry in a last line that lacks its newline, `None` if it is a part of one.

    A proper part of a JSON object is never JSON itself. So a tail that is JSON but no entry is not a torn write but
    somebody's text, and nobody's text is thrown away.
    """
    return _parse(path, number, tail) if _complete_json(tail) else None


def _entries(path: Path, content: bytes) -> list[Entry]:
    lines, tail = _split(content)
    found = [_parse(path, number, line) for number, line in enumerate(lines, 1)]
    last = _tail(path, len(lines) + 1, tail) if tail else None
    return found if last is None else [*found, last]


def _lock(handle: int, *, exclusive: bool, path: Path) -> None:
    import fcntl  # not on Windows; reading results needs no lock there

    try:
        fcntl.flock(handle, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
    except OSError as error:
        raise OSError(
            error.errno, f"{path}: this file system has no locks ({error.strerror}); write to a local disk and `merge`."
        ) from error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    """The ledger opened for appending and locked against other writers; made if it does not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            _lock(handle, exclusive=True, path=path)
            # While we waited the file may have been replaced (git does so); then the lock is on a file without a name.
            try:
                current = os.path.samestat(os.fstat(handle), os.stat(path))
            except FileNotFoundError:
                current = False
            if current:
                yield handle
                return
        finally:
            os.close(handle)  # gives the lock back


def _content(handle: int) -> bytes:
    size = os.fstat(handle).st_size
    parts, place = [], 0
    while place < size and (part := os.pread(handle, size - place, place)):
        parts.append(part)
        place += len(part)
    return b"".join(parts)


def _repair(handle: int, path: Path, content: bytes) -> list[Entry]:
    """The entries; a last line without its end is completed if only the newline is missing, else removed."""
    found = _entries(path, content)
    _, tail = _split(content)
    if tail and _complete_json(tail):
        _write(handle, b"\n")
    elif tail:
        os.ftruncate(handle, len(content) - len(tail))
    return found


def _write(handle: int, text: bytes) -> None:
    """All of `text` at the end of the file and on the disk, or nothing of it."""
    before = os.fstat(handle).st_size
    try:
        written = os.write(handle, text)
        if written != len(text):
            raise OSError(f"expected to write {len(text)} bytes, wrote {written}: is the disk full?")
        os.fsync(handle)
    except OSError:
        os.ftruncate(handle, before)
        raise


def _sync_folder(path: Path) -> None:
    """Put the name of a new file on the disk too."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _add(path: Path, entries: Iterable[Entry]) -> int:
    """Append what is new, in one write under one lock; returns how many entries that were."""
    with _opened(path) as handle:
        content = _content(handle)
        known = {entry.cell for entry in _repair(handle, path, content)}
        fresh: dict[Cell, Entry] = {}
        for entry in entries:
            if entry.cell not in known:
                fresh.setdefault(entry.cell, entry)
        if fresh:
            _write(handle, "".join(f"{entry.to_json()}\n" for entry in fresh.values()).encode("ascii"))
        if not content:
            _sync_folder(path)
        return len(fresh)


def append(path: str | Path, entry: Entry) -> bool:
    """Add one result; when this returns True it is on the disk.

    Safe with several processes on one machine, or on a shared file system with locks; else let each write a file of
    its own and `merge`. The whole file is read each time, which is nothing beside an evaluation.

    Args:
        path: the ledger; made if it does not exist.
        entry: the result.

    Returns:
        False if the cell is there already, whatever its numbers: the first result stays.

    Raises:
        LedgerError: if a line of the ledger is damaged; nothing is written then.
        OSError: if the disk is full or the file system has no locks; nothing is written then.
    """
    return _add(Path(path), [entry]) == 1


def _bytes(path: Path) -> bytes:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; an evaluation that is recorded, or `append`, makes it.")
    with path.open("rb") as file:
        # A writer may be removing a torn line at this moment; where there are no locks there are no such writers.
        with contextlib.suppress(OSError, ImportError):
            _lock(file.fileno(), exclusive=False, path=path)
        return file.read()


def _doubled(entries: Iterable[Entry]) -> Iterator[tuple[int, int, Entry]]:
    """Line numbers of a cell that occurs again: the first, and each later one, with its entry."""
    first: dict[Cell, int] = {}
    for number, entry in enumerate(entries, 1):
        if (earlier := first.setdefault(entry.cell, number)) != number:
            yield earlier, number, entry


def read(
    path: str | Path, *, recipe: str | None = None, size: str | None = None, scheme: str | None = None
) -> list[Entry]:
    """The results in the order in which they were written.

    Args:
        path: the ledger.
        recipe: only this recipe.
        size: only this size.
        scheme: only this scheme.

    Raises:
        FileNotFoundError: if there is no such file.
        LedgerError: if a line is damaged, or a cell stands there twice (by hand, or from a merge by git).
    """
    path = Path(path)
    entries = _entries(path, _bytes(path))
    for earlier, number, entry in _doubled(entries):
        raise LedgerError(
            f"{_where(path, number)}: expected each cell once, {tuple(entry.cell)} stands in line {earlier} already. "
            "`merge([path], into=new)` writes a ledger with the first of each."
        )
    wanted = {"recipe": recipe, "size": size, "scheme": scheme}
    return [e for e in entries if all(value in (None, getattr(e, name)) for name, value in wanted.items())]


def finished(path: str | Path) -> set[Cell]:
    """The cells that need not be measured again; none if there is no such file yet.

    Args:
        path: the ledger.

    Raises:
        LedgerError: as `read`.
    """
    return {entry.cell for entry in read(path)} if Path(path).exists() else set()


def merge(paths: Iterable[str | Path], into: str | Path) -> int:
    """Gather ledgers, of the nodes of a cluster say, into one.

    What `into` holds stays in front, as it is. The new cells follow, sorted by recipe, hash, seed and suite, so that
    neither the order of the files nor that of their lines matters; where two files hold the same cell with other
    numbers the file named first wins. Doing it again adds nothing.

    Args:
        paths: ledgers to read, each of which must exist; a cell may stand in them several times.
        into: ledger to add to; made if it does not exist.

    Returns:
        How many cells are new.

    Raises:
        FileNotFoundError: if one of `paths` does not exist.
        LedgerError: if a line of a ledger is damaged; nothing is written then.
    """
    found: dict[Cell, Entry] = {}
    for path in map(Path, paths):
        for entry in _entries(path, _bytes(path)):
            found.setdefault(entry.cell, entry)
    return _add(Path(into), sorted(found.values(), key=lambda entry: (entry.recipe, *entry.cell)))


def differences(entries: Iterable[Entry], others: Iterable[Entry]) -> dict[Cell, float]:
    """How far the same cell is apart in two ledgers, as after running something again.

    Args:
        entries: of one ledger.
        others: of the other.

    Returns:
        The largest difference over the metrics of each cell that both have; infinite if they have other metrics.
    """
    known = {entry.cell: entry.metrics for entry in others}
    found = {}
    for entry in entries:
        if (metrics := known.get(entry.cell)) is not None:
            same = metrics.keys() == entry.metrics.keys()
            gaps = (abs(metrics[key] - value) for key, value in entry.metrics.items()) if same else [math.inf]
            found[entry.cell] = max(gaps)
    return found


def within_seeds(entries: Iterable[Entry], others: Iterable[Entry]) -> tuple[int, int, float]:
    """Do results that were run again lie among those of other seeds? A yardstick for `differences`.

    Args:
        entries: what was run again.
        others: the ledger with at least three seeds of the same settings; metrics of fewer seeds do not count.

    Returns:
        How many metrics lie within the range of the recorded seeds, how many were looked at, and how many of them would
        lie there if each were that of a new seed: (s - 1) / (s + 1) of s seeds, whatever their distribution.
    """
    recorded = defaultdict(list)
    for entry in others:
        for name, value in entry.metrics.items():
            recorded[entry.cell.hash, entry.suite, name].append(value)
    inside = total = 0
    expected = 0.0
    for entry in entries:
        for name, value in entry.metrics.items():
            seeds = recorded[entry.cell.hash, entry.suite, name]
            if len(seeds) >= 3:
                inside += min(seeds) <= value <= max(seeds)
                total += 1
                expected += (len(seeds) - 1) / (len(seeds) + 1)
    return inside, total, expected


def _training_settings(entry: Entry) -> dict:
    """Settings without the scheme's name: two rows of the papers may be the same training."""
    scheme = entry.settings.get("scheme")
    return entry.settings | ({"scheme": {**scheme, "name": ""}} if isinstance(scheme, dict) else {})


def validate(path: str | Path) -> list[str]:
    """Everything that is wrong with a ledger, one sentence each, with file and line; an empty list if all is well.

    Args:
        path: the ledger.

    Returns:
        Lines that are no entries, a torn last line, cells that stand there twice, and a hash that stands for two
        different training settings.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    path = Path(path)
    lines, tail = _split(_bytes(path))
    problems: list[str] = []
    first_line: dict[Cell, int] = {}
    settings: dict[str, tuple[int, dict]] = {}
    for number, line in enumerate([*lines, tail] if tail else lines, 1):
        if number > len(lines):
            state = "only its newline is missing" if _complete_json(line) else "a write was cut off"
            problems.append(
                f"{_where(path, number)}: the last line has no end ({state}); the next `append` repairs it."
            )
            if not _complete_json(line):
                continue
        try:
            entry = _parse(path, number, line)
        except LedgerError as error:
            problems.append(str(error))
            continue
        if (earlier := first_line.setdefault(entry.cell, number)) != number:
            problems.append(f"{_where(path, number)}: the cell {tuple(entry.cell)} stands in line {earlier} already.")
        where, before = settings.setdefault(entry.hash, (number, _training_settings(entry)))
        if before != _training_settings(entry):
            problems.append(f"{_where(path, number)}: hash {entry.hash} stands for other settings in line {where}.")
    return problems
