"""What a verification costs: a plan before it starts, a meter with a progress bar while it runs, a limit."""

from __future__ import annotations

import logging
import math
import re
import time
from dataclasses import dataclass, field

import torch
from tqdm import tqdm

from ..setting.options import progress_bar, shows_progress
from ..setting.problem import Problem
from ..setting.results import Record

LOG = logging.getLogger("nfm_theory.verification")
#: A plan is printed, not only logged, if it takes longer than this, in seconds.
LONG = 10.0
#: A pass is timed so often, unless it takes longer than `SHORT` seconds; the fastest counts.
TIMED_PASSES, SHORT = 5, 1.0
_UNITS = {"s": 1.0, "sec": 1.0, "second": 1.0, "min": 60.0, "minute": 60.0, "h": 3600.0, "hour": 3600.0}


@dataclass(frozen=True)
class Budget:
    """A limit of a verification.

    Attributes:
        evaluations: most evaluations of the head; `None` for no such limit.
        seconds: most seconds; `None` for no such limit.
    """

    evaluations: int | None = None
    seconds: float | None = None

    @staticmethod
    def of(budget: int | str | None, num_samples: int) -> Budget:
        """Read `budget=`: a number of evaluations of the head, or words such as "300 passes", "90 s" and "10 min".

        A pass evaluates all samples once.

        Raises:
            ValueError: for anything else.

        Example:
            >>> Budget.of("300 passes", num_samples=128)
            Budget(evaluations=38400, seconds=None)
        """
        if budget is None:
            return Budget()
        if isinstance(budget, str):
            found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-z]+)\s*", budget.lower())
            number, unit = (float(found[1]), found[2]) if found else (0.0, "")
            if unit in ("pass", "passes") and number * num_samples >= 1:
                return Budget(evaluations=int(number * num_samples))
            seconds = _UNITS.get(unit) or _UNITS.get(unit.removesuffix("s"))
            if seconds and number > 0:
                return Budget(seconds=number * seconds)
        elif not isinstance(budget, bool) and isinstance(budget, (int, float)) and 1 <= budget < math.inf:
            return Budget(evaluations=int(budget))
        raise ValueError(
            "budget: expected a number of evaluations of the head >= 1, or words such as '300 passes', '90 s' or "
            f"'10 min', got {budget!r}."
        )


@dataclass(frozen=True)
class Plan(Record):
    """What a verification is going to do.

    Attributes:
        steps: evaluations of the head for each step, by its name in words.
        num_samples: n, evaluations in one pass.
        seconds_per_evaluation: measured on one pass.
    """

    steps: dict[str, int]
    num_samples: int
    seconds_per_evaluation: float

    @property
    def evaluations(self) -> int:
        """Evaluations of all steps."""
        return sum(self.steps.values())

    @property
    def seconds(self) -> float:
        """How long all steps take."""
        return self.evaluations * self.seconds_per_evaluation

    def __str__(self) -> str:
        """A line for each step, with its forward passes over all samples and its time."""
        lines = [
            f"Plan: up to about {self.evaluations / self.num_samples:,.0f} forward passes of all {self.num_samples} "
            f"samples, {_duration(self.seconds)}"
        ]
        for name, rows in self.steps.items():
            took = _duration(rows * self.seconds_per_evaluation)
            lines.append(f"  {name:52}{rows / self.num_samples:12,.1f} passes{took:>12}")
        return "\n".join(lines)

    def announce(self) -> None:
        """Log the plan; print it as well where progress is shown, or if it takes long."""
        LOG.info("%s", self)
        if shows_progress(default=self.seconds > LONG):
            tqdm.write(str(self))


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 1 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def seconds_per_evaluation(problem: Problem) -> float:
    """The time of one evaluation of the head, measured on passes over (at most 128 of) the samples.

    The first pass may take far longer than those after it, so short ones are repeated.
    """
    some, best = problem.features[:128], float("inf")
    for _ in range(TIMED_PASSES):
        with torch.no_grad():
            start = time.perf_counter()
            float(problem.head(some).sum())  # waits for the device
            best = min(best, time.perf_counter() - start)
        if best > SHORT:
            break
    return best / len(some)


class BudgetSpent(Exception):
    """The next evaluations would cross the limit of the caller."""


@dataclass
class Meter:
    """Counts evaluations of the head, moves the progress bar, and stops before the limit is crossed.

    Derivatives count as the forward passes that take as long.

    Attributes:
        budget: what random draws may take.
        limit: what the caller allows; more is never evaluated.
        spent: evaluations so far.
        apart: those of them that are not taken from the budget of the draws.
    """

    budget: Budget = field(default_factory=Budget)
    limit: Budget = field(default_factory=Budget)
    spent: int = 0
    apart: int = 0
    total: int | None = None
    _start: float = field(default_factory=time.perf_counter)
    _bar: tqdm | None = None

    def __enter__(self) -> Meter:
        self._bar = progress_bar(title="verification", total=self.total, unit="row")
        return self

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.close()

    def spend(self, rows: int) -> None:
        """Count evaluations that are about to be made.

        Raises:
            BudgetSpent: if they would cross the limit.
        """
        most, seconds = self.limit.evaluations, self.limit.seconds
        if (most is not None and self.spent + rows > most) or (seconds is not None and self.seconds > seconds):
            raise BudgetSpent
        self.spent += rows
        if self._bar is not None:
            self._bar.update(rows)

    @property
    def seconds(self) -> float:
        """Time since the meter was made."""
        return time.perf_counter() - self._start

    def affords(self, rows: int, *, part: float = 1.0) -> bool:
        """True if so many evaluations more stay within this part of the budget."""
        within = self.budget.evaluations is None or self.spent - self.apart + rows <= part * self.budget.evaluations
        if self.budget.seconds is None:
            return within
        each = self.seconds / max(self.spent, 1)
        return within and self.seconds + rows * each <= part * self.budget.seconds
