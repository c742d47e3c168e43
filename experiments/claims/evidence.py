"""What verdicts are computed from: the files of results, the printed tables, and the quick computations."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..record.entry import Entry
from ..record.files import RESULTS, read_lines
from ..record.ledger import LEDGER, read_together
from ..studies.study import Study, load_entries, study
from ..tables import audit, build_table, judge_claims, load_published
from ..tables.build import Table
from ..tables.claims import Judgement
from ..tables.findings import AuditReport
from ..tables.join import SIZES, own_studies, studies_of
from ..tables.published import Published
from .check import Check
from .checks import CHECKS

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


def main_studies() -> list[str]:
    """Our own studies that stand for NFM's tables on CIFAR, the largest size first."""
    found = dict.fromkeys((*studies_of("nfm-table2", "cifar100"), *studies_of("nfm-table1", "cifar10")))
    return sorted(found, key=lambda name: SIZES.index(own_studies()[name][0]))


@dataclass(frozen=True)
class Records:
    """Everything that verdicts read.

    Attributes:
        expansion: verified expansions, from the study `expansion`.
        validity: error curves up to ε = 1 of trained networks, from the study `validity`.
        bounds: adversarial bounds on digits, from the study `bounds`.
        bounds_cifar: adversarial bounds on CIFAR-10.
        where: second-order terms at each layer of plainly trained networks, from the study `where`.
        entries: lines of the ledger.
        benchmarks: results of the benchmarks by name.
        published: the printed tables.
        checks: quick computations by name; each runs once.
    """

    expansion: tuple[dict, ...] = ()
    validity: tuple[dict, ...] = ()
    bounds: tuple[dict, ...] = ()
    bounds_cifar: tuple[dict, ...] = ()
    where: tuple[dict, ...] = ()
    entries: tuple[Entry, ...] = ()
    benchmarks: Mapping[str, Any] = field(default_factory=dict)
    published: Published = field(default_factory=load_published)
    checks: Mapping[str, Callable[[], Check]] = field(default_factory=lambda: CHECKS)

    @cached_property
    def _done(self) -> dict[str, Check]:
        return {}

    def check(self, name: str) -> Check:
        """The outcome of a quick computation.

        Raises:
            KeyError: if there is no such computation.
        """
        if name not in self._done:
            self._done[name] = self.checks[name]()
        return self._done[name]

    @cached_property
    def judgements(self) -> dict[str, Judgement]:
        """Every claim about a table, judged on the printed numbers and on ours, by id."""
        return {judged.claim.id: judged for judged in judge_claims(self.entries, published=self.published)}

    @cached_property
    def tables(self) -> dict[str, Table]:
        """The printed tables with ours beside them, by id."""
        return {name: build_table(name, self.entries, published=self.published) for name in self.published.tables()}

    @cached_property
    def audit(self) -> AuditReport:
        """The cross-check of the printed numbers."""
        return audit(self.published)

    @cached_property
    def studies(self) -> dict[str, Study]:
        """Our own studies by name."""
        return {name: study(self.entries, name) for name in main_studies()}


def load_records(
    results: Path = RESULTS, benchmarks: Path = BENCHMARKS, *, ledgers: Sequence[Path] | None = None
) -> Records:
    """Read the records of this project, or those of another folder. A missing file counts as empty.

    Args:
        results: folder of the `.jsonl` files.
        benchmarks: folder of the `.json` files.
        ledgers: ledgers to read instead of the one in `results`; of each cell the first result counts.
    """

    def lines(name: str) -> tuple[dict, ...]:
        path = results / f"{name}.jsonl"
        return tuple(read_lines(path)) if path.exists() else ()

    measured = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(benchmarks.glob("*.json"))}
    names = ("expansion", "bounds", "bounds_cifar", "where")
    validity = tuple(line for path in sorted(results.glob("validity_*.jsonl")) for line in read_lines(path))
    entries = tuple(load_entries(results / LEDGER.name) if ledgers is None else read_together(ledgers))
    return Records(**{name: lines(name) for name in names}, validity=validity, entries=entries, benchmarks=measured)
