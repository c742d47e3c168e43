"""What an audit returns: findings with their numbers, and how many checks found nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .published import Published

#: From a number that cannot be right, over two that contradict each other and an oddity, to a last digit.
SEVERITIES = ("misprint", "inconsistent", "doubtful", "rounding")
#: A mean of numbers printed to 0.1 may be off by 0.05, and is itself printed to 0.1.
ROUNDING = 0.1
#: Tolerance for the last bits of binary fractions.
FLOAT = 1e-6


@dataclass(frozen=True)
class Finding:
    """Something in the printed numbers that does not fit.

    Attributes:
        id: `rule:table:row`, followed by `:column` if one cell is meant; it does not change.
        table: id of the table.
        row: id of the row.
        what: the observation with its numbers.
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
    """The findings of one rule.

    Attributes:
        rule: name of the rule.
        what: what it checks.
        checked: number of cells, rows or pairs that it looked at.
        findings: those that do not fit.
    """

    rule: str
    what: str
    checked: int
    findings: tuple[Finding, ...] = ()

    @property
    def passed(self) -> int:
        """Number of checks that found nothing."""
        return max(0, self.checked - len(self.findings))


Rule = Callable[["Published"], RuleResult]


def rule(name: str, what: str) -> Callable[[Callable[..., Iterator[Finding | None]]], Rule]:
    """Make a rule from a generator that yields, for each check, a finding or `None`."""

    def decorate(check: Callable[..., Iterator[Finding | None]]) -> Rule:
        @wraps(check)
        def apply(published: Published) -> RuleResult:
            found = list(check(published))
            return RuleResult(name, what, len(found), tuple(one for one in found if one is not None))

        return apply

    return decorate


@dataclass(frozen=True)
class AuditReport:
    """The results of all rules."""

    results: tuple[RuleResult, ...] = field(default=())

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Every finding, the gravest first, in the order of the rules."""
        found = [finding for result in self.results for finding in result.findings]
        return tuple(sorted(found, key=lambda finding: SEVERITIES.index(finding.severity)))

    @property
    def checks_passed(self) -> tuple[tuple[str, int, int], ...]:
        """For each rule: what it checks, the number of checks that found nothing, and the number of checks."""
        return tuple((result.what, result.passed, result.checked) for result in self.results)

    def of(self, rule: str) -> tuple[Finding, ...]:
        """The findings of one rule."""
        return tuple(finding for result in self.results if result.rule == rule for finding in result.findings)
