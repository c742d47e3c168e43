"""What verdicts are computed from: the files of results, the printed tables, and the quick computations."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..record.entry import Entry
from ..record.files import RESULTS, read_lines
from ..record.ledger import LEDGER
from ..studies.study import Study, load_entries, study
from ..tables import audit, build_table, judge_claims, load_published
from ..tables.build import Table
from ..tables.claims import Judgement
from ..tables.findings import AuditReport
from ..tables.published import Published
from .check import Check
from .checks import CHECKS

#: Digits stand in for CIFAR-10, at their own size only.
STAND_INS: Mapping[str, list[str]] = {"cifar10": ["digits"], "preactresnet18": ["digits_resnet"]}
#: Sizes of trainings, the papers' own first.
SIZES = ("paper", "small", "digits", "toy")
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


@dataclass(frozen=True)
class Records:
    """Everything that verdicts read.

    Attributes:
        expansion: verified expansions, as `experiments.studies.verify_digits` writes them.
        validity: error curves up to ε = 1, likewise.
        bounds: adversarial bounds on digits, of `experiments.studies.verify_bounds`.
        bounds_cifar: the same on CIFAR-10.
        entries: of the ledger.
        benchmarks: results of the benchmarks by name.
        published: the printed tables.
        checks: quick computations by name; each runs once.
    """

    expansion: tuple[dict, ...] = ()
    validity: tuple[dict, ...] = ()
    bounds: tuple[dict, ...] = ()
    bounds_cifar: tuple[dict, ...] = ()
    entries: tuple[Entry, ...] = ()
    benchmarks: Mapping[str, Any] = field(default_factory=dict)
    published: Published = field(default_factory=load_published)
    checks: Mapping[str, Callable[[], Check]] = field(default_factory=lambda: CHECKS)

    @cached_property
    def _done(self) -> dict[str, Check]:
        return {}

    def check(self, name: str) -> Check:
        """The outcome of a quick computation.

        Args:
            name: key of `checks`.

        Raises:
            KeyError: if there is no such computation.
        """
        if name not in self._done:
            self._done[name] = self.checks[name]()
        return self._done[name]

    @cached_property
    def judgements(self) -> dict[str, dict[str, Judgement]]:
        """Verdicts on the claims on tables, by size and id."""
        found = {}
        for size in SIZES:
            judged = judge_claims(self.entries, size, published=self.published, stand_ins=STAND_INS)
            found[size] = {judgement.claim.id: judgement for judgement in judged}
        return found

    @cached_property
    def tables(self) -> dict[tuple[str, str], Table]:
        """Printed tables beside ours, by table and size."""
        return {
            (name, size): build_table(name, self.entries, size, published=self.published, stand_ins=STAND_INS)
            for name in self.published.tables()
            for size in SIZES
        }

    @cached_property
    def audit(self) -> AuditReport:
        """The cross-check of the printed numbers."""
        return audit(self.published)

    @cached_property
    def studies(self) -> dict[str, Study]:
        """Our own studies by name, the larger networks first."""
        return {name: study(self.entries, name) for name in ("cifar100-small", "cifar10-small", "digits")}


def load_records(results: Path = RESULTS, benchmarks: Path = BENCHMARKS) -> Records:
    """The records of this project, or of another folder; a file that is not there has no records.

    Args:
        results: folder of the `.jsonl` files.
        benchmarks: folder of the `.json` files.
    """

    def lines(name: str) -> tuple[dict, ...]:
        path = results / f"{name}.jsonl"
        return tuple(read_lines(path)) if path.exists() else ()

    measured = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(benchmarks.glob("*.json"))}
    return Records(
        expansion=lines("expansion"), validity=lines("validity"), bounds=lines("bounds"),
        bounds_cifar=lines("bounds_cifar"), entries=tuple(load_entries(results / LEDGER.name)), benchmarks=measured,
    )  # fmt: skip
