"""What an audit hands back: findings with their numbers, and the checks that found nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: A number that cannot stand as printed; two that contradict each other; an oddity; a last digit.
SEVERITIES = ("misprint", "inconsistent", "doubtful", "rounding")
#: A mean of numbers printed to 0.1 may be off by 0.05, and is itself printed to 0.1.
ROUNDING = 0.1
#: For the last bits of binary fractions.
FLOAT = 1e-6


@dataclass(frozen=True)
class Finding:
    """Something in the printed numbers that does not fit.

    Attributes:
        id: `rule:table:row`, and `:column` where one cell is meant; stable.
        table: where.
        row: where.
        what: the observation, with its numbers.
        numbers: the numbers by name.
        severity: one of `SEVERITIES`.
        suggestion: what might explain it, and how it could be settled.
    """

    id: str
    table: str
    row: str
    what: str
    numbers: Mapping[str, float]
    severity: str
    suggestion: str = ""

    def __post_init__(self):
        """Refuse an unknown severity."""
        if self.severity not in SEVERITIES:
            raise ValueError(f"severity: expected one of {SEVERITIES}, got {self.severity!r}.")


@dataclass(frozen=True)
class RuleResult:
    """One rule's findings.

    Attributes:
        rule: name.
        what: what it checks.
        checked: number of cells, rows or pairs it looked at.
        findings: those that do not fit.
    """

    rule: str
    what: str
    checked: int
    findings: tuple[Finding, ...] = ()

    @property
    def passed(self) -> int:
        """Checks that found nothing."""
        return max(0, self.checked - len(self.findings))


@dataclass(frozen=True)
class AuditReport:
    """All rules' results."""

    results: tuple[RuleResult, ...] = field(default=())

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Every finding, the gravest first, in the order of the rules."""
        found = [finding for result in self.results for finding in result.findings]
        return tuple(sorted(found, key=lambda finding: SEVERITIES.index(finding.severity)))

    @property
    def checks_passed(self) -> tuple[tuple[str, int, int], ...]:
        """What each rule checks, the number of checks that found nothing, and the number of checks."""
        return tuple((result.what, result.passed, result.checked) for result in self.results)

    def of(self, rule: str) -> tuple[Finding, ...]:
        """Findings of one rule."""
        return tuple(finding for result in self.results if result.rule == rule for finding in result.findings)
