"""How a verification will be done, decided before it starts: by a rule or by draws, exact terms or estimated ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from ..calculus.engine import Linearization, linearize
from ..expansion.second_order import MANY_OUTPUTS, num_directions
from ..setting.problem import Problem
from ..setting.quadrature import GridTooLargeError
from .draw_evidence import CHANGED, DERIVED, DRAWS, LARGE_DRAWS, SEARCHED
from .effort import Budget, Plan
from .evidence import evaluations_of_row
from .fits import DEGREE, LARGE_DEGREE, LINEAR_DEGREE
from .sources import sources_of
from .term_evidence import PAIRED
from .unmixing import unmixing_rows

#: Rows of the deterministic rule above which verification turns to Monte Carlo by itself.
DEFAULT_ROWS = 5_000_000
#: Bytes that the rows of a rule, and the directions of the exact terms, may compute.
RULE_BYTES, DEFAULT_BYTES = 2**36, 2**38
#: Rows that are few enough to take all directions of a source.
EXACT_ROWS = 20_000
#: Evaluations of the head for Monte Carlo unless a budget is named, for small networks and, in passes, for large ones.
DEFAULT_SAMPLES, LARGE_PASSES = 200_000, 300
#: Evaluations where these leave the verdict open, unless they compute more bytes.
MORE_SAMPLES, MORE_BYTES = 2_000_000, 2**35
#: A network is large if its draws compute more bytes than this.
LARGE_BYTES = 2**30
#: A budget below so many evaluations is used like that of a large network.
SMALL_BUDGET = 20_000
#: Draws of each sample for the remainder of a large network without its coefficient.
FEW_SWEEPS = 2
#: Single draws that are compared with Lagrange's interval, and points on it.
PATHWISE_DRAWS, PATHWISE_POINTS = 64, 33
#: The step of a plan that computes the terms.
FORMULAS = "terms by the formulas"


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
        budget: what random draws may take.
        limit: what the verification never exceeds.
        share_of_values: part of the budget after which link 2 ends.
        draws: draws of link 1.
        pathwise: compare single draws with Lagrange's interval.
    """

    rows: int | None
    sweeps: int
    integral: bool
    may_integrate: bool
    exact_terms: bool
    exact_remainder: bool
    large: bool
    exact_rows: int
    budget: Budget
    limit: Budget
    share_of_values: float
    draws: int
    pathwise: bool

    @property
    def samples(self) -> int:
        """Evaluations of the head that random draws may take."""
        assert self.budget.evaluations is not None
        return self.budget.evaluations

    def degree(self, at: Linearization) -> int:
        """Degree of the fits for a head."""
        return LINEAR_DEGREE if at.piecewise_linear else LARGE_DEGREE if self.large else DEGREE

    def degrees(self, problems: Sequence[Problem]) -> Iterator[tuple[Problem, int]]:
        """Each problem with the degree of its fits."""
        for problem in problems:
            yield problem, self.degree(linearize(problem.head, problem.features[:1], differentiable=False))


def way_of(
    problems: Sequence[Problem], leading: int, num_scales: int, limit: Budget, method: str, form: str, given: bool,
    seconds: float,
) -> Way:  # fmt: skip
    """Decide how the links are done.

    Args:
        problems: one per layer.
        leading: order of the leading term of the remainder.
        num_scales: number of scales.
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
    large = wide = DRAWS * 2 * DEGREE * each > LARGE_BYTES
    if allowed is not None and allowed < SMALL_BUDGET:
        large = True
    if method == "monte_carlo" and not wide and limit.evaluations is not None and limit.evaluations < 100 * n:
        raise ValueError(
            f"budget: expected at least 100 draws of each of n = {n} samples ({100 * n}), got {limit.evaluations}."
        )
    cap = DEFAULT_ROWS if allowed is None else allowed
    integral = form == "integral" or (form == "auto" and first.features.dtype != torch.float64)
    rule = method != "monte_carlo" and _rule_fits(problems, leading, cap, method == "exact")
    if rule and method == "auto":
        enough = RULE_BYTES // each if allowed is None else allowed // 2
        rule = _rule_cost(problems, leading, cap, num_scales, integral) <= enough
    samples = allowed or (LARGE_PASSES * n if wide else DEFAULT_SAMPLES)
    affordable = min(DEFAULT_BYTES // each, DEFAULT_ROWS if allowed is None else allowed // 4)
    directions, triples = _cost_of_terms(problems)
    whole = min(EXACT_ROWS, DEFAULT_BYTES // (2 * DEGREE * each))
    if allowed is not None or wide:
        whole = min(whole, samples // (8 * DEGREE))
    sweeps = max(2, samples // (2 * n * layers * (LARGE_DEGREE if large else DEGREE)))
    exact_terms = given or directions <= affordable
    exact_remainder = exact_terms and directions + triples <= affordable
    most = samples if wide else limit.evaluations
    return Way(
        rows=cap if rule else None,
        sweeps=min(sweeps, FEW_SWEEPS) if wide and not exact_remainder else sweeps,
        integral=integral,
        may_integrate=form == "auto",
        exact_terms=exact_terms,
        exact_remainder=exact_remainder,
        large=large,
        exact_rows=whole,
        budget=Budget(samples, limit.seconds),
        limit=Budget(most, limit.seconds),
        share_of_values=0.7 if not rule else 1.0,
        draws=min(LARGE_DRAWS, max(4, samples // (600 * layers))) if large else DRAWS,
        pathwise=not (large or integral) and (allowed is None or layers * pathwise_rows(2) <= allowed // 4),
    )


def more_samples(problems: Sequence[Problem]) -> int | None:
    """Evaluations of the head for a second try; `None` if they would be no more than in the first."""
    count = min(MORE_SAMPLES, MORE_BYTES // max(p.row_bytes for p in problems))
    return count if count > 2 * DEFAULT_SAMPLES else None


def pathwise_rows(order: int) -> int:
    """Evaluations of the head for Lagrange's interval of the remainder of this order."""
    return PATHWISE_DRAWS * (8 + PATHWISE_POINTS * 2 ** (order + 1))


def _rule_cost(problems: Sequence[Problem], leading: int, cap: int, num_scales: int, integral: bool) -> int:
    """Evaluations of the head for coefficients and remainders by a rule."""
    total = 0
    for p in problems:
        big = p.grid(rule="auto", degree=leading, num_lam=max(leading // 2 + 1, 4), max_rows=cap).rows
        small = p.grid(rule="smallest", degree=leading, num_lam=leading // 2 + 1, max_rows=cap).rows
        total += big * evaluations_of_row(num_scales, leading, integral) + small * 2**leading
    return total


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
    steps, heads = {}, [linearize(p.head, p.features[:1], differentiable=False) for p in problems]
    degrees = [way.degree(at) for at in heads]
    if not given and way.exact_terms:
        steps[FORMULAS] = second + (third if way.exact_remainder else 0)
    draws = [4 * degree + DERIVED + CHANGED + SEARCHED * (degree <= LINEAR_DEGREE) for degree in degrees]
    steps["1: values and derivatives along single draws"] = way.draws * sum(draws)
    if way.pathwise:
        steps["1: values and derivatives along single draws"] += layers * pathwise_rows(min(leading - 1, 2))
    whole = sum(s.total for p in problems for s in sources_of(p) if s.total <= way.exact_rows)
    drawn = any(s.total > way.exact_rows for p in problems for s in sources_of(p)) or not way.exact_terms
    each = [2 * degree + PAIRED * (not way.exact_terms) for degree in degrees]  # a third of the fits begin again
    apart = steps.get(FORMULAS, 0) if way.limit == Budget() else 0
    most = int(way.share_of_values * way.samples) - (sum(steps.values()) - apart if way.exact_terms else 0)
    steps["2: every term on the law of its own source"] = 3 * DEGREE * whole + (max(0, most) if drawn else 0)
    mixed = problems[0].mixing.mixes and problems[0].partners is None
    unmixing = sum(unmixing_rows(p, way.large) for p in problems) if mixed else 0
    if way.rows is None:
        left = max(0, way.samples + apart - sum(steps.values()) - unmixing)
        few = way.sweeps * n * sum(cost + num_scales for cost in each)
        steps["3: coefficients and remainders along draws"] = min(left, few)
    else:
        rule = _rule_cost(problems, leading, way.rows, num_scales, way.integral)
        steps["3: coefficients and remainders by a rule"] = rule
    if unmixing:
        steps["4: mixed labels"] = unmixing
    return Plan(steps, n, seconds)
