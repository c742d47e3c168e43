"""The outcome of a quick computation."""

from __future__ import annotations

from dataclasses import dataclass

HOLDS, LIMITS, FAILS, OPEN = "holds", "limits", "fails", "open"
OUTCOMES = (HOLDS, LIMITS, FAILS, OPEN)


@dataclass(frozen=True)
class Check:
    """What a computation says about a statement.

    Attributes:
        outcome: `"holds"`, `"fails"`, `"open"`, or `"limits"` if the statement holds only where its assumptions do.
        detail: the numbers in words.
    """

    outcome: str
    detail: str

    def __post_init__(self):
        """Refuse other outcomes."""
        if self.outcome not in OUTCOMES:
            raise ValueError(f"outcome: expected one of {', '.join(OUTCOMES)}; got {self.outcome!r}.")

    @classmethod
    def of(cls, good: bool, detail: str) -> Check:
        """A check with the outcome `"holds"` or `"fails"`."""
        return cls(HOLDS if good else FAILS, detail)
