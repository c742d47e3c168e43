"""How a verification will be done, decided before it starts: by a rule or by draws, exact terms or estimated ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from ..calculus.engine import Linearization, linearize
from ..expansion.second_order import MANY_OUTPUTS, num_directions
from ..setting.problem import Problem
from ..setting.quadrature import GridTooLargeError
from .draw_evidence import DRAWS, LARGE_DRAWS
from .effort import Budget, Plan
from .fits import DEGREE, LARGE_DEGREE, LINEAR_DEGREE
from .sources import sources_of
from .unmixing import unmixing_rows

#: Rows of the deterministic rule above which verification turns to Monte Carlo by itself.
DEFAULT_ROWS = 5_000_000
#: Bytes that the rows of a rule at one scale, and the directions of the exact terms, may compute.
RULE_BYTES, DEFAULT_BYTES = 2**36, 2**38
#: Rows that are few enough to take all directions of a source.
EXACT_ROWS = 20_000
#: Evaluations of the head for Monte Carlo unless a budget is named, for small networks and, in passes, for large ones.
DEFAULT_SAMPLES, LARGE_PASSES = 200_000, 300
#: A network is large if its draws compute more bytes than this.
LARGE_BYTES = 2**30
#: Exact terms are computed up to this many evaluations even if the budget is smaller.
FREE_ROWS = 50_000


@dataclass(frozen=True)
class Way:
    """How the links are done.

    Attributes:
        rows: largest deterministic rule of link 3; `None` for Monte Carlo.
        sweeps: draws of each sample for Monte Carlo.
        integral: remainders in the integral form.
        may_integrate: go on in the integral form where differences drown in rounding.
        exact_terms: compute R1, R2 and R3 exactly.
        exact_remainder: compute C3 exactly.
        large: draw little, fit with few points.
        exact_rows: rows up to which link 2 takes all directions of a source.
        samples: evaluations of the head that random draws may take.
        share_of_values: part of the budget after which link 2 ends.
        draws: draws of link 1.
    """

    rows: int | None
    sweeps: int
    integral: bool
    may_integrate: bool
    exact_terms: bool
    exact_remainder: bool
    large: bool
    exact_rows: int
    samples: int
    share_of_values: float
    draws: int

    def degree(self, at: Linearization) -> int:
        """Degree of the fits for a head."""
        return LINEAR_DEGREE if at.piecewise_linear else LARGE_DEGREE if self.large else DEGREE

    def degrees(self, problems: Sequence[Problem]) -> Iterator[tuple[Problem, int]]:
        """Each problem with the degree of its fits."""
        for problem in problems:
            yield problem, self.degree(linearize(problem.head, problem.features[:1], differentiable=False))


def way_of(
    problems: Sequence[Problem], leading: int, limit: Budget, method: str, form: str, given: bool, seconds: float
) -> Way:
    """Decide how the links are done.

    Args:
        problems: one per layer.
        leading: order of the leading term of the remainder.
        limit: the budget.
        method: `"auto"`, `"exact"` or `"monte_carlo"`.
        form: form of the remainder.
        given: True if the caller names the terms.
        seconds: time of one evaluation of the head.

    Raises:
        GridTooLargeError: if `method="exact"` and no rule fits.
        ValueError: if the budget allows fewer than 100 draws of each sample where Monte Carlo is asked for.
    """
    first, n, layers = problems[0], len(problems[0].features), len(problems)
    each = max(p.row_bytes for p in problems)
    allowed = limit.evaluations
    if limit.seconds is not None:
        allowed = max(1, int(limit.seconds / max(seconds, 1e-9)))
    large = DRAWS * 2 * DEGREE * each > LARGE_BYTES
    if method == "monte_carlo" and not large and limit.evaluations is not None and limit.evaluations < 100 * n:
        raise ValueError(
            f"budget: expected at least 100 draws of each of n = {n} samples ({100 * n}), got {limit.evaluations}."
        )
    cap = DEFAULT_ROWS if allowed is None else allowed
    if method == "auto" and allowed is None:
        cap = min(cap, RULE_BYTES // each)
        if first.features.dtype != torch.float64:  # the integral form costs many evaluations for each row
            cap = min(cap, DEFAULT_ROWS // 10)
    rule = method != "monte_carlo" and _rule_fits(problems, leading, cap, method == "exact")
    samples = allowed or (LARGE_PASSES * n if large else DEFAULT_SAMPLES)
    affordable = min(DEFAULT_BYTES // each, max(allowed or DEFAULT_ROWS, 0 if large else FREE_ROWS))
    directions, triples = _cost_of_terms(problems)
    whole = min(EXACT_ROWS, DEFAULT_BYTES // (2 * DEGREE * each))
    if allowed is not None or large:
        whole = min(whole, max(samples // (8 * DEGREE), 64))
    return Way(
        rows=cap if rule else None,
        sweeps=max(2, samples // (2 * n * layers * (LARGE_DEGREE if large else DEGREE))),
        integral=form == "integral" or (form == "auto" and first.features.dtype != torch.float64),
        may_integrate=form == "auto",
        exact_terms=given or directions <= affordable,
        exact_remainder=triples <= affordable,
        large=large,
        exact_rows=whole,
        share_of_values=0.7 if not rule else 1.0,
        samples=samples,
        draws=LARGE_DRAWS if large else DRAWS,
    )


def _rule_fits(problems: Sequence[Problem], leading: int, cap: int, needed: bool) -> bool:
    """True if a deterministic rule for every problem exists and fits; if it is `needed`, what is wrong is raised."""
    try:
        for p in problems:
            p.grid(rule="auto", degree=leading, num_lam=max(leading // 2 + 1, 4), max_rows=cap)
            p.grid(rule="smallest", degree=leading, num_lam=leading // 2 + 1, max_rows=cap)
    except (GridTooLargeError, ValueError):  # no rule of this degree may exist for the law of the noise
        if needed:
            raise
        return False
    return True


def _cost_of_terms(problems: Sequence[Problem]) -> tuple[int, int]:
    """Evaluations of the head for the exact terms of second order, and for C3."""
    second = third = 0
    for p in problems:
        n, d, scales = len(p.features), p.features[0].numel(), p.law.scales
        at = linearize(p.head, p.features[:1], differentiable=False)
        outputs, directions = at.outputs.shape[-1], num_directions(p, at, scales)
        rows = min(outputs, directions) if outputs > MANY_OUTPUTS else outputs
        second += 2 * n * (rows + (0 if at.piecewise_linear else directions))
        if "data" in scales:
            third += 8 * n * (n + (2 * d if len(scales) > 1 else 0))
    return second, third


def plan_of(problems: Sequence[Problem], way: Way, num_scales: int, leading: int, given: bool, seconds: float) -> Plan:
    """The plan of a verification: what each link costs at most."""
    n, layers = len(problems[0].features), len(problems)
    second, third = _cost_of_terms(problems)
    steps = {}
    if not given and way.exact_terms:
        steps["terms by the formulas"] = second + (third if way.exact_remainder else 0)
    steps["1: values and derivatives along single draws"] = way.draws * layers * (2 * DEGREE + 16)
    whole = sum(s.total for p in problems for s in sources_of(p) if s.total <= way.exact_rows)
    drawn = any(s.total > way.exact_rows for p in problems for s in sources_of(p)) or not way.exact_terms
    steps["2: every term on the law of its own source"] = 3 * DEGREE * whole + (way.samples // 2 if drawn else 0)
    if way.rows is None:
        steps["3: coefficients and remainders along draws"] = max(0, way.samples - sum(steps.values()))
    else:
        grids = [
            (
                p.grid(rule="auto", degree=leading, num_lam=max(leading // 2 + 1, 4), max_rows=way.rows).rows,
                p.grid(rule="smallest", degree=leading, num_lam=leading // 2 + 1, max_rows=way.rows).rows,
            )
            for p in problems
        ]
        steps["3: coefficients and remainders by a rule"] = sum(
            big * (num_scales + 1) + small * 2**leading for big, small in grids
        )
    if problems[0].mixing.mixes and problems[0].partners is None:
        steps["4: mixed labels"] = sum(unmixing_rows(p, way.large) for p in problems)
    return Plan(steps, n, seconds)
