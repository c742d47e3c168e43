"""One verification while it runs: the links one after another, and what is known so far."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import factorial
from operator import methodcaller

import torch

from ..calculus.cuts import check_problem
from ..calculus.engine import linearize
from ..calculus.failures import DerivativeError
from ..expansion.paths import lagrange_interval, second_order_coefficients
from ..expansion.terms import problem_coefficients
from ..expansion.terms import terms as expansion_terms
from ..setting.options import options
from ..setting.problem import Problem
from ..setting.results import SECOND_ORDER, TaylorTerms
from .draw_evidence import compare_draws
from .effort import Budget, BudgetSpent, Meter, Plan
from .evidence import ROUNDING, RuleEvidence, Scaled, evaluations_of_row, evidence_of, rounding_unit
from .evidence import Evidence as Coefficients
from .given import given_terms
from .judge import Evidence
from .planning import DEFAULT_ROWS, FORMULAS, PATHWISE_DRAWS, PATHWISE_POINTS, Way, pathwise_rows
from .rays import in_double
from .report import ExpansionReport
from .sources import sources_of
from .term_evidence import (
    LARGE_TARGET,
    LINEARIZED,
    TARGET,
    Sampling,
    TermEvidence,
    all_directions,
    jacobian_of,
    sample_until_resolved,
)  # fmt: skip
from .unmixing import check_unmixing
from .writing import write_report

#: Most scales that are tried.
MAX_SCALES = 14
#: The scale at which single draws are compared with Lagrange's interval.
PATHWISE_EPS = 0.05


def _cut_of(problem: Problem) -> str:
    """Where the comparison of derivatives with differences finds the wrong one, in words; empty if it finds none."""
    try:
        with options(check_derivatives=True):
            check_problem(problem, 2)
    except DerivativeError as error:
        return f"cut in {error.place}" if error.place else str(error)
    return ""


class Run:
    """The links of one verification.

    Args:
        problems: one per layer.
        way: how the links are done.
        order: p.
        leading: order of the leading term of the remainder.
        seed: seed of all draws.
        meter: counts the evaluations of the head.
        plan: the plan, for the report.

    Attributes:
        found: what is known so far; `None` before there are terms to verify.
    """

    def __init__(
        self, problems: list[Problem], way: Way, order: int, leading: int, seed: int, meter: Meter, plan: Plan
    ):
        self.problems, self.way, self.order, self.leading = problems, way, order, leading
        self.seed, self.meter, self.plan = seed, meter, plan
        self.found: Evidence | None = None

    @property
    def evidence(self) -> Evidence:
        """What is known so far."""
        assert self.found is not None
        return self.found

    def check_coefficients(self, terms: TaylorTerms | Callable[[Sequence[Problem]], TaylorTerms] | None) -> None:
        """The terms to verify, and all links but that of the remainder."""
        self.begin(terms)
        self.check_draws()
        self.check_terms()
        self.check_unmixing()

    @contextmanager
    def ending_early(self) -> Iterator[None]:
        """A block of links that the user or the budget may end; what they have found so far is kept.

        Raises:
            ValueError: if the budget ends before there are terms to verify.
        """
        try:
            yield
        except KeyboardInterrupt:
            if self.found is None:
                raise
            self.found.interrupted = True
        except BudgetSpent:
            if self.found is None:
                raise ValueError(
                    f"budget: expected about {self.plan.evaluations} evaluations of the head, or what the terms of all "
                    f"sources need; they were not done after {self.meter.spent}. Raise the budget, or verify fewer "
                    "samples."
                ) from None
            self.found.unfinished = True

    def judged(self, terms: TaylorTerms, scales: list[float]) -> ExpansionReport:
        """The report on other terms with the evidence of this run, whose values do not depend on the terms.

        Args:
            terms: the terms to be judged.
            scales: the scales of this run.
        """
        kept = self.evidence
        self.found = replace(kept, terms=terms, predicted=self._predicted(terms))
        try:
            return self.report(scales)[0]
        finally:
            self.found = kept

    def begin(self, terms: TaylorTerms | Callable[[Sequence[Problem]], TaylorTerms] | None) -> None:
        """Get the terms that are verified: given, by the formulas, or by derivatives along the directions of link 2."""
        values: list[TermEvidence] = []
        if terms is None and not self.way.exact_terms:
            values = [self._term_evidence(p, None) for p in self.problems]
            claims = self._estimated(values)
        elif terms is not None:
            claims = given_terms(terms, self.problems)
        else:
            self.meter.spend(self.plan.steps[FORMULAS])
            if self.way.limit == Budget():
                self.meter.apart = self.meter.spent
            claims = expansion_terms(self.problems, remainder=self.way.exact_remainder)
        heads = [linearize(p.head, p.features[:1], differentiable=False) for p in self.problems]
        self.found = Evidence(
            terms=claims, draws=[], values=values, rest=None, predicted=self._predicted(claims), unmixing=[],
            pathwise=(0, 0), piecewise_linear=all(at.piecewise_linear for at in heads),
        )  # fmt: skip

    def check_draws(self) -> None:
        """Link 1, and Lagrange's interval where derivatives of the third order are cheap."""
        way, found = self.way, self.evidence
        for problem, degree in way.degrees(self.problems):
            found.draws.append(compare_draws(problem, degree, way.draws, self.seed, self.meter.spend))
            if found.draws[-1].wrong() is not None:
                found.cut = found.cut or _cut_of(problem)
        if way.pathwise and self.order <= 2:
            checked = [self._pathwise(p) for p in self.problems]
            found.pathwise = sum(count for count, _ in checked), sum(outside for _, outside in checked)

    def check_terms(self) -> None:
        """Link 2, unless it has given the terms."""
        found = self.evidence
        if self.order >= 1 and not found.values:
            claims = {name: float(found.terms[name].detach()) for name in ("R1", *SECOND_ORDER)}
            found.values = [self._term_evidence(p, claims) for p in self.problems]

    def check_unmixing(self) -> None:
        """Link 4."""
        for problem in self.problems:
            both = check_unmixing(problem, self.seed, self.meter.spend, large=self.way.large)
            if both is not None:
                self.evidence.unmixing.append(both)

    def check_remainders(self, scales: list[float], *, halve: bool) -> ExpansionReport:
        """Link 3, at smaller and smaller scales while the verdict is open, and the report."""
        way, integral, pending = self.way, self.way.integral, scales
        starts = [draws.start if way.large else None for draws in self.evidence.draws]
        sources = [
            evidence_of(p, self.leading, way.rows, way.sweeps, self.seed, degree, start, self.meter)
            for (p, degree), start in zip(way.degrees(self.problems), starts, strict=True)
        ]
        parts: list[Scaled] = []
        rows = sum(source.grid.rows for source in sources if isinstance(source, RuleEvidence))
        beyond = 0  # evaluations after those of the plan
        while True:
            try:
                measured = list(map(methodcaller("at", pending, integral), sources))
            except BudgetSpent:
                if parts:  # the larger scales are known
                    return self.report(scales[: -len(pending)])[0]
                raise
            parts.append(Scaled.average(measured))
            self.evidence.rest = Coefficients.average([source.evidence for source in sources]).extended(parts)
            report, unsettled = self.report(scales)
            if not (halve and unsettled) or way.rows is None or len(scales) >= MAX_SCALES:
                return report
            drowned = not integral and bool((parts[-1].remainders.abs() <= parts[-1].floor).any())
            if drowned and not way.may_integrate:
                return report
            integral = integral or drowned  # the integral form goes on below rounding
            pending = [scales[-1] / 2, scales[-1] / 4]
            beyond += rows * evaluations_of_row(len(pending), self.leading, integral)
            if way.limit == Budget() and beyond > DEFAULT_ROWS:
                return report
            scales = [*scales, *pending]

    def report(self, scales: list[float]) -> tuple[ExpansionReport, bool]:
        """The report of what is known so far, and whether smaller scales may change the verdict."""
        return write_report(self.problems, self.evidence, self.plan, scales, self.order, self.leading, self.meter.spent)

    def _term_evidence(self, problem: Problem, claims: dict[str, float] | None) -> TermEvidence:
        """The terms of a problem, each on the law of its own source; derivatives go along the rays without claims."""
        evidence, way, pending = TermEvidence(), self.way, []
        self.meter.spend(LINEARIZED * len(problem.features))
        at = linearize(problem.head, problem.features, differentiable=False)
        generator = torch.Generator(problem.features.device).manual_seed(self.seed % 2**62 + 1)
        for source in sources_of(in_double(problem)):
            if claims is not None and source.total <= way.exact_rows:
                all_directions(source, way.degree(at), evidence, self.meter)
            else:
                paired = claims is None
                pending.append(Sampling(source, problem.loss, at, way.degree(at), paired, generator, self.meter))
        if pending:
            jacobian = jacobian_of(problem, at, self.meter)
            for one in pending:
                one.begin(jacobian)
            target = LARGE_TARGET if way.large else TARGET
            sample_until_resolved(pending, claims or {}, evidence, self.meter, way.share_of_values, target)
        return evidence

    def _estimated(self, values: list[TermEvidence]) -> TaylorTerms:
        """The terms as means of derivatives along random directions, averaged over the layers; C3 stays unknown."""
        records = []
        for problem, one in zip(self.problems, values, strict=True):
            index = torch.arange(len(problem.features), device=problem.features.device)
            standard = in_double(problem).losses(problem.features, index).mean()
            known = {name: standard.new_tensor(found.claimed or 0.0) for name, found in one.terms.items()}
            first, r2, r3, r2_add, r3_add, r2_mult, r3_mult = (
                known.get(name, torch.zeros_like(standard)) for name in ("R1", *SECOND_ORDER)
            )
            records.append((problem.layer, TaylorTerms(standard, first, r2, r3, r2_add, r3_add, r2_mult, r3_mult)))
        return records[0][1] if len(records) == 1 else TaylorTerms.average(records)

    def _pathwise(self, problem: Problem) -> tuple[int, int]:
        """(draws checked, draws outside Lagrange's interval) with the formulas of the terms on single draws."""
        n, order = len(problem.features), self.order
        generator = torch.Generator(problem.features.device).manual_seed(self.seed)
        draw = problem.draw(n, -(-PATHWISE_DRAWS // n), generator=generator)[:PATHWISE_DRAWS]
        zero = torch.zeros((), dtype=problem.features.dtype, device=problem.features.device)
        eps = zero + PATHWISE_EPS
        path = problem.path(draw)
        self.meter.spend(pathwise_rows(order))
        coefficients, value = second_order_coefficients(path)[:, : order + 1], path(eps)
        rounding = ROUNDING * rounding_unit(problem)[draw.anchor]
        remainder = value - coefficients @ eps ** torch.arange(order + 1, device=value.device)
        unit = factorial(order + 1) / eps ** (order + 1)
        interval = lagrange_interval(problem, draw, PATHWISE_EPS, order=order, num_points=PATHWISE_POINTS)
        inside = interval.contains(unit * remainder, slack=unit * rounding)
        return len(draw), int((~inside).sum())

    def _predicted(self, terms: TaylorTerms) -> list[float]:
        """c_0..c_order and that of the remainder: by the formulas up to order 3, then by the rule; nan if unknown."""
        leading, order, way = self.leading, self.order, self.way
        predicted = torch.zeros(leading + 1, dtype=torch.float64)
        if leading > 3:
            predicted.fill_(math.nan)
            if way.rows is not None:
                rules = [problem_coefficients(p, leading, max_rows=way.rows) for p in self.problems]
                predicted = torch.stack(rules).mean(0).double().cpu()
        formulas = terms.coefficients(2 if terms.C3 is None else 3)
        for k in range(min(leading, 3) + 1):
            if k > order and k != leading:
                predicted[k] = 0.0
            else:
                predicted[k] = float(formulas[k].detach()) if k < len(formulas) else math.nan
        return predicted.tolist()
