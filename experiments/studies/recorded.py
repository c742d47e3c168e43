"""Recorded studies: what they measure, and how a new measurement is compared with the tracked record.

A study is data: its cases, a function that measures one case, the files of its records, and how two records of the same
case are compared. `run_study` does the rest, for every study in the same way.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import track
from rich.table import Table

from ..console import wide_console
from ..processes import map_cases
from ..record.files import RESULTS, read_lines, write_lines

#: Where a study writes unless it is told otherwise: beside the tracked records.
AGAIN = "again"
#: What differs between two runs of the same code.
_CHANGING = {"seconds", "versions"}


@dataclass(frozen=True)
class RecordFile:
    """One file of a study.

    Attributes:
        name: file name in the folder of results.
        key: the fields that name a case.
        difference: says how a new record contradicts the tracked one; empty if it does not.
    """

    name: str
    key: tuple[str, ...]
    difference: Callable[[dict, dict], str]

    def key_of(self, record: dict) -> tuple:
        """The fields of a record that name its case."""
        return tuple(record[name] for name in self.key)

    def words(self, record: dict) -> str:
        """The case of a record in words."""
        return ", ".join(str(part) or "input" for part in self.key_of(record))


@dataclass(frozen=True)
class RecordedStudy:
    """A study whose records are tracked.

    Attributes:
        name: name on the command line.
        files: the files of its records.
        measure: measures one case; returns a list of records for each file.
        summary: makes the table that is printed, from the records of each file.
        prepare: trains the networks of all cases before other processes start.
        conclude: gives the exit status and some lines to print, from the records of each file.
        sample: tells whether a case belongs to the sample.
        sample_words: what the sample is, in words.
    """

    name: str
    files: tuple[RecordFile, ...]
    measure: Callable[[Any], tuple[list[dict], ...]]
    summary: Callable[..., Table]
    prepare: Callable[[Sequence], None] = lambda cases: None
    conclude: Callable[..., tuple[int, list[str]]] = lambda *found: (0, [])
    sample: Callable[[Any], bool] | None = None
    sample_words: str = ""


@dataclass(frozen=True)
class Agreement:
    """A comparison of new records with tracked ones.

    Attributes:
        same: number of records whose numbers are the same to six digits.
        agreeing: number of records that do not contradict the tracked ones, those that are the same among them.
        unknown: number of new records that the tracked file does not have.
        contradictions: one sentence for each record that contradicts the tracked one.
    """

    same: int
    agreeing: int
    unknown: int
    contradictions: list[str] = field(default_factory=list)


def compare(file: RecordFile, found: Sequence[dict], tracked: Sequence[dict]) -> Agreement:
    """Compare new records with the tracked ones of the same cases."""
    known = {file.key_of(record): record for record in tracked}
    pairs = [(new, known[file.key_of(new)]) for new in found if file.key_of(new) in known]
    same = sum(_same(new, old) for new, old in pairs)
    wrong = [f"{file.words(new)}: {words}" for new, old in pairs if (words := file.difference(new, old))]
    return Agreement(same, len(pairs) - len(wrong), len(found) - len(pairs), wrong)


def results_table(
    title: str, header: Sequence[str], rows: Iterable[Sequence[str]], *, text: Sequence[str] = ()
) -> Table:
    """A table for the terminal.

    Args:
        title: title of the table.
        header: names of the columns.
        rows: the cells of each row.
        text: names of the columns with text, which are aligned to the left; the others are numbers.
    """
    table = Table(title=title, box=None, pad_edge=False)
    for name in header:
        table.add_column(name, no_wrap=True, justify="left" if name in text else "right")
    for row in rows:
        table.add_row(*row)
    return table


def _same(new: Any, old: Any) -> bool:
    """True if two records, or parts of records, have the same numbers to six digits and the same text."""
    if isinstance(new, dict) and isinstance(old, dict):
        return new.keys() == old.keys() and all(_same(new[name], old[name]) for name in new.keys() - _CHANGING)
    if isinstance(new, list) and isinstance(old, list):
        return len(new) == len(old) and all(map(_same, new, old))
    if isinstance(new, float) and isinstance(old, float):
        return math.isclose(new, old, rel_tol=1e-6, abs_tol=1e-9)
    return new == old


def run_study(
    study: RecordedStudy,
    cases: Sequence,
    *,
    workers: int = 1,
    out: Path | None = RESULTS / AGAIN,
    record: bool = False,
    tracked: Path | None = RESULTS,
) -> int:
    """Measure the cases of a study, write the records, and compare them with the tracked ones.

    Args:
        study: the study.
        cases: the cases to measure.
        workers: number of processes.
        out: folder for the records; `None` writes nothing. The files grow with each case.
        record: True to replace the tracked records at the end.
        tracked: folder of the tracked records; `None` compares nothing.

    Returns:
        The exit status: that of the study itself, else 1 if a new record contradicts a tracked one, else 0.
    """
    start = time.perf_counter()
    console = wide_console(170)
    study.prepare(cases)
    found: list[list[dict]] = [[] for _ in study.files]
    measured = map_cases(study.measure, cases, workers)
    for parts in track(
        measured, study.name, total=len(cases), console=console, transient=True, disable=not console.is_terminal
    ):
        for file, lines, part in zip(study.files, found, parts, strict=True):
            lines += part
            if out is not None:  # hours of work are not lost if a later case fails
                write_lines(out / file.name, lines)
    console.print(study.summary(*found))
    status, lines = study.conclude(*found)
    for file, new in zip(study.files, found, strict=True):
        agreement = None if tracked is None else _agreement(file, new, tracked)
        if agreement is not None:
            status = status or int(bool(agreement.contradictions))
            lines += _agreement_words(file, agreement, len(new))
        if record and tracked is not None:
            write_lines(tracked / file.name, new)
            lines.append(f"recorded: {tracked / file.name}")
        elif out is not None:
            lines.append(f"written: {out / file.name}")
    for line in (*lines, f"{len(cases)} cases in {time.perf_counter() - start:.0f} s"):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    return status


def _agreement(file: RecordFile, found: Sequence[dict], tracked: Path) -> Agreement | None:
    path = tracked / file.name
    return compare(file, found, read_lines(path)) if path.exists() else None


def _agreement_words(file: RecordFile, agreement: Agreement, total: int) -> list[str]:
    compared = total - agreement.unknown
    words = f"{file.name}: {agreement.agreeing} of {compared} records agree with the tracked ones"
    words += f", {agreement.same} of them to six digits"
    words += f"; {agreement.unknown} are not in the tracked file" if agreement.unknown else ""
    return [words, *(f"  contradiction: {line}" for line in agreement.contradictions)]


def curve_difference(new: dict, old: dict) -> str:
    """How two error curves of the second-order expansion contradict each other.

    Sampling and other hardware explain a difference of 0.15 in the relative error at ε = 1, and of 35 % in the ε at
    which the expansion is 10 % off.
    """
    curves = [record["curve"] for record in (old, new)]
    errors = [curve["relative_error"]["2"][-1] for curve in curves]
    radii = [1.0 if curve["radius"]["2"] is None else curve["radius"]["2"] for curve in curves]
    if abs(errors[0] - errors[1]) <= 0.15 and max(radii) <= 1.35 * min(radii):
        return ""
    return (
        f"relative error at ε = 1: {errors[0]:.2f} recorded, {errors[1]:.2f} now; "
        f"10 % off at ε = {radii[0]:.2f} recorded, {radii[1]:.2f} now"
    )
