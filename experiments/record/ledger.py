"""The ledger of results: a file with one JSON object per line, to which several processes can append at once.

    append("results.jsonl", entry)      # False if there is a result for this cell already
    read("results.jsonl")

A *cell* is (hash of the training settings, seed, suite), and the first result of a cell stays. If a process is killed
while it writes, the last line is incomplete. Reading ignores such a line, and the next `append` removes it. All other
damage is an error that names the file and the line; `validate` lists all of it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..recipes.recipe import with_defaults
from .entry import Cell, Entry, LedgerError
from .files import RESULTS, check_regular
from .locks import held_file, share_lock, system_lock
from .provenance import provenance

__all__ = [
    "LEDGER", "Cell", "Entry", "LedgerError", "append", "differences", "finished", "merge", "provenance",
    "read", "read_together", "validate", "within_seeds",
]  # fmt: skip

#: The tracked ledger.
LEDGER = RESULTS / "experiments.jsonl"

_REMEDY = "Correct or delete that line (`python -m experiments ledger check` lists all such lines), then try again."


def _where(path: Path, number: int) -> str:
    return f"{path}, line {number}"


def _complete_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    except RecursionError:  # nobody knows, so it is not thrown away
        return True
    return True


def _split(content: bytes) -> tuple[list[bytes], bytes]:
    """The complete lines, and what stands after the last newline."""
    *lines, tail = content.split(b"\n")
    return lines, tail


def _parse(path: Path, number: int, line: bytes) -> Entry:
    try:
        return Entry.from_json(line)
    except LedgerError as error:
        raise LedgerError(f"{_where(path, number)}: {error} {_REMEDY}") from None


def _tail(path: Path, number: int, tail: bytes) -> Entry | None:
    """The entry in a last line without a newline, or `None` if the line is incomplete.

    A part of a JSON object is never valid JSON. So a last line that is valid JSON but not an entry was written by
    somebody else, and is not thrown away.
    """
    return _parse(path, number, tail) if _complete_json(tail) else None


def _entries(path: Path, content: bytes) -> list[Entry]:
    lines, tail = _split(content)
    found = [_parse(path, number, line) for number, line in enumerate(lines, 1)]
    last = _tail(path, len(lines) + 1, tail) if tail else None
    found += [] if last is None else [last]
    for earlier, number, entry in _contradictions(enumerate(found, 1)):
        raise LedgerError(f"{_where(path, number)}: {_other_settings(entry, f'line {earlier}')} {_REMEDY}")
    return found


def _training_settings(entry: Entry) -> dict:
    """What the hash stands for.

    The defaults of settings that the line does not know yet are filled in, and the name of the scheme is left out,
    since two rows of the papers may be the same training.
    """
    settings = with_defaults(entry.settings)
    scheme = settings.get("scheme")
    return settings | ({"scheme": {**scheme, "name": ""}} if isinstance(scheme, dict) else {})


def _contradictions(numbered: Iterable[tuple[int, Entry]]) -> Iterator[tuple[int, int, Entry]]:
    """For each entry whose hash has other settings in an earlier one: both numbers, and the entry."""
    first: dict[str, tuple[int, dict]] = {}
    for number, entry in numbered:
        earlier, settings = first.setdefault(entry.hash, (number, _training_settings(entry)))
        if settings != _training_settings(entry):
            yield earlier, number, entry


def _other_settings(entry: Entry, place: str) -> str:
    return f"hash {entry.hash} stands for other settings in {place}."


def _check_together(entries: Iterable[Entry], where: str) -> None:
    """Refuse entries of several ledgers in which a hash has two settings."""
    for _, _, entry in _contradictions(enumerate(entries)):
        raise LedgerError(f"{where}: {_other_settings(entry, 'another ledger')} Read these ledgers one by one.")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Open the ledger for appending, and lock it against other writers. It is created if it does not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    check_regular(path)
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            # Where the file system has no locks, a file beside the ledger is the lock
            with contextlib.nullcontext() if system_lock(handle, path) else held_file(path):
                # The file may have been replaced while we waited, as git does; then the lock is on the old file
                try:
                    current = os.path.samestat(os.fstat(handle), os.stat(path))
                except FileNotFoundError:
                    current = False
                if current:
                    yield handle
                    return
        finally:
            os.close(handle)  # also releases the lock


def _content(handle: int) -> bytes:
    size = os.fstat(handle).st_size
    parts, place = [], 0
    while place < size and (part := os.pread(handle, size - place, place)):
        parts.append(part)
        place += len(part)
    return b"".join(parts)


def _repair(handle: int, path: Path, content: bytes) -> list[Entry]:
    """The entries. An incomplete last line gets its newline if only that is missing, and is removed otherwise."""
    found = _entries(path, content)
    _, tail = _split(content)
    if tail and _complete_json(tail):
        _write(handle, b"\n")
    elif tail:
        os.ftruncate(handle, len(content) - len(tail))
    return found


def _write(handle: int, text: bytes) -> None:
    """Append all of `text` to the file and flush it to the disk, or nothing of it."""
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
    """Flush the name of a new file to the disk too."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _add(path: Path, entries: Iterable[Entry]) -> int:
    """Append the new entries in one write under one lock, and return how many there were."""
    with _opened(path) as handle:
        content = _content(handle)
        before = _repair(handle, path, content)
        known = {entry.cell for entry in before}
        fresh: dict[Cell, Entry] = {}
        for entry in entries:
            if entry.cell not in known:
                fresh.setdefault(entry.cell, entry)
        _check_together([*before, *fresh.values()], str(path))
        if fresh:
            _write(handle, "".join(f"{entry.to_json()}\n" for entry in fresh.values()).encode("ascii"))
        if not content:
            _sync_folder(path)
        return len(fresh)


def append(path: str | Path, entry: Entry) -> bool:
    """Add one result. If this returns True, the result is on the disk.

    Several processes may write at once, on one machine or on a shared file system.

    Args:
        path: the ledger; it is created if it does not exist.
        entry: the result.

    Returns:
        False if there is a result for this cell already; the first result stays, whatever its numbers.

    Raises:
        LedgerError: if a line of the ledger is damaged, or the ledger has other settings under the hash. Nothing is
            written then.
        OSError: if the disk is full, if the ledger is no regular file, or if it cannot be locked now. Nothing is
            written then.
    """
    return _add(Path(path), [entry]) == 1


def _bytes(path: Path) -> bytes:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; `python -m experiments sweep` creates a ledger.")
    check_regular(path)
    with path.open("rb") as file:
        # A writer may be removing an incomplete line at this moment
        share_lock(file.fileno())
        return file.read()


def _doubled(numbered: Iterable[tuple[int, Entry]]) -> Iterator[tuple[int, int, Entry]]:
    """For each cell that occurs again: the line numbers of the first and of the later entry, and the later entry."""
    first: dict[Cell, int] = {}
    for number, entry in numbered:
        if (earlier := first.setdefault(entry.cell, number)) != number:
            yield earlier, number, entry


def _again(entry: Entry, earlier: int) -> str:
    return f"the cell {tuple(entry.cell)} stands in line {earlier} already."


def read(path: str | Path) -> list[Entry]:
    """Read the results in the order in which they were written.

    Args:
        path: the ledger.

    Raises:
        FileNotFoundError: if there is no such file.
        LedgerError: if a line is damaged, if there are two results for a cell, as after a merge by git, or if a hash
            stands for two settings.
    """
    path = Path(path)
    entries = _entries(path, _bytes(path))
    for earlier, number, entry in _doubled(enumerate(entries, 1)):
        raise LedgerError(
            f"{_where(path, number)}: {_again(entry, earlier)} "
            "`merge([path], into=new)` writes a ledger with the first of each."
        )
    return entries


def read_together(paths: Iterable[str | Path]) -> list[Entry]:
    """The results of several ledgers. If two have a result for a cell, that of the first one counts.

    Args:
        paths: the ledgers.

    Raises:
        FileNotFoundError: if one does not exist.
        LedgerError: if a line is damaged, or if a hash stands for two settings, in one ledger or in two.
    """
    paths = list(paths)
    entries = [entry for path in paths for entry in read(path)]
    _check_together(entries, ", ".join(map(str, paths)))
    found: dict[Cell, Entry] = {}
    for entry in entries:
        found.setdefault(entry.cell, entry)
    return list(found.values())


def finished(path: str | Path) -> set[Cell]:
    """The cells that have a result; none if there is no such file yet.

    Args:
        path: the ledger.

    Raises:
        LedgerError: if a line is damaged.
    """
    return {entry.cell for entry in read(path)} if Path(path).exists() else set()


def merge(paths: Iterable[str | Path], into: str | Path) -> int:
    """Gather several ledgers into one, for example those of the nodes of a cluster.

    The lines of `into` stay as they are. The new cells follow, sorted by recipe, hash, seed and suite, so that the
    result does not depend on the order of the files or of their lines. If two files have different results for a cell,
    the first file wins. Merging again adds nothing.

    Args:
        paths: ledgers to read; a cell may occur several times in them.
        into: ledger to add to; it is created if it does not exist.

    Returns:
        The number of new cells.

    Raises:
        FileNotFoundError: if one of `paths` does not exist.
        LedgerError: if a line of a ledger is damaged, or if a hash stands for two settings. Nothing is written then.
    """
    found: dict[Cell, Entry] = {}
    for path in map(Path, paths):
        for entry in _entries(path, _bytes(path)):
            found.setdefault(entry.cell, entry)
    return _add(Path(into), sorted(found.values(), key=lambda entry: (entry.recipe, *entry.cell)))


def differences(entries: Iterable[Entry], others: Iterable[Entry]) -> dict[Cell, float]:
    """How far apart are the results of two ledgers for the same cell?

    Args:
        entries: lines of one ledger.
        others: lines of the other ledger.

    Returns:
        For each cell in both ledgers the largest difference over its metrics; infinite if the metrics are not the same.
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
    """How many results that were computed again lie within the range of the recorded seeds?

    Args:
        entries: the results that were computed again.
        others: lines of the ledger; metrics with fewer than three recorded seeds do not count.

    Returns:
        The number of metrics within the range of the recorded seeds, the number of metrics that count, and the number
        that would be in the range if each were of a new seed: a share (s - 1) / (s + 1) for s seeds, whatever their
        distribution.
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


def validate(path: str | Path) -> list[str]:
    """Everything that is wrong with a ledger, each in a sentence with file and line.

    Args:
        path: the ledger.

    Returns:
        Sentences about lines that are not entries, an incomplete last line, cells that occur twice, and hashes that
        belong to two different training settings. Empty if all is well.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    path = Path(path)
    lines, tail = _split(_bytes(path))
    problems: list[tuple[int, str]] = []
    entries: list[tuple[int, Entry]] = []
    for number, line in enumerate([*lines, tail] if tail else lines, 1):
        if number > len(lines):
            state = "only its newline is missing" if _complete_json(line) else "a write was cut off"
            words = f"the last line has no end ({state}); the next `append` repairs it."
            problems.append((number, f"{_where(path, number)}: {words}"))
            if not _complete_json(line):
                continue
        try:
            entries.append((number, _parse(path, number, line)))
        except LedgerError as error:
            problems.append((number, str(error)))
    for earlier, number, entry in _doubled(entries):
        problems.append((number, f"{_where(path, number)}: {_again(entry, earlier)}"))
    for earlier, number, entry in _contradictions(entries):
        problems.append((number, f"{_where(path, number)}: {_other_settings(entry, f'line {earlier}')}"))
    return [text for _, text in sorted(problems, key=lambda problem: problem[0])]
