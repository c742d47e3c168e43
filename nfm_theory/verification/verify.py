r"""The verdict: is the remainder of the expansion what the theory predicts, on this very network?

Three kinds of evidence are gathered, all by the same deterministic rule or the same Monte-Carlo draws:

1. every coefficient up to the order p, the formulas of the terms against derivatives along the rows of the rule;
2. the remainder over a range of ε: its observed order and its ratio to the predicted leading coefficient;
3. for single draws, Lagrange's interval, which has no sampling error whatever.

The leading order is p + 1, or p + 2 where the coefficient of ε^(p+1) vanishes by symmetry (noise without mixing: all
odd powers of ε do).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import factorial
from typing import Literal

import torch
from torch import Tensor

from ..expansion.paths import lagrange_interval, second_order_coefficients
from ..expansion.terms import problem_coefficients
from ..expansion.terms import terms as expansion_terms
from ..setting.ambient import undisturbed
from ..setting.branches import Branches
from ..setting.checks import one_of
from ..setting.problem import Problem, as_problems
from ..setting.quadrature import MAX_ROWS
from ..setting.results import TaylorTerms
from .evidence import ROUNDING, Evidence, Scaled, evidence_of, rounding_unit
from .report import ExpansionReport, judge

#: Scales tried when the caller names none; halved further while the verdict is open.
DEFAULT_EPS = tuple(0.1 / 2**k for k in range(6))
MAX_SCALES = 14
PATHWISE_DRAWS, PATHWISE_EPS = 64, 0.05


@torch.no_grad()
@undisturbed()
def verify(
    problem: Problem | Sequence[Problem],
    order: int = 2,
    eps: float | Sequence[float] | Tensor | None = None,
    budget: int | None = None,
    generator: torch.Generator | None = None,
    *,
    method: Literal["auto", "exact", "monte_carlo"] = "auto",
    remainder_form: Literal["auto", "difference", "integral"] = "auto",
    terms: TaylorTerms | Callable[[Sequence[Problem]], TaylorTerms] | None = None,
) -> ExpansionReport:
    """Verify the expansion of order p with its predicted remainder on a network (book: eq-expansion).

    Args:
        problem: a `Problem` (the NFM loss), or `Branches` (stability or NoisyMix loss); a list is averaged over.
            float64 is advised, float32 works.
        order: p, order of the polynomial, ≥ 0.
        eps: scales, at least three for a verdict; `None` starts at 0.1 and halves until the verdict is clear.
        budget: most evaluations of the head for each loss; a deterministic rule that needs more gives way to Monte
            Carlo with so many. `None` allows 5,000,000 for the rule and 200,000 for Monte Carlo.
        generator: random generator of the draws; with `None` they are always the same.
        method: `"exact"` for a deterministic rule, `"monte_carlo"`, or `"auto"`: the rule where it fits the budget.
        remainder_form: `"difference"` of loss and polynomial, `"integral"` (without cancellation, for any precision),
            or `"auto"`: the difference in float64 while it stands clear of rounding.
        terms: the terms to verify, or a function that computes them; `None` computes them by `nfm_theory.terms`.

    Returns:
        `ExpansionReport`; `verdict` is `"holds"`, `"refuted"` or `"undecided"`, and `reason` says why.

    Raises:
        ValueError: if something does not fit, nothing is perturbed, or nothing tells the branches apart.
        TypeError: for anything but problems.

    Example:
        >>> from nfm_theory import Law
        >>> x = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(6, 1)
        >>> verify(Problem(lambda u: torch.sin(u), x, x, law=Law(), loss="square")).verdict
        'holds'
    """
    problems, scales, leading = _checked(problem, order, eps, method, remainder_form)
    float64 = problems[0].features.dtype == torch.float64
    integral = remainder_form == "integral" or (remainder_form == "auto" and not float64)
    seed = 0 if generator is None else int(torch.randint(2**62, (), generator=generator, device=generator.device))
    if not isinstance(terms, TaylorTerms):
        terms = (terms or expansion_terms)(problems)
    predicted = _predicted(problems, terms, order, leading, budget)
    pathwise, sources = [], []
    for one in problems:
        pathwise.append((0, 0) if order > 2 or integral else _pathwise(one, order, seed))
        sources.append(evidence_of(one, leading, method, budget, seed))
    found: list[Scaled] = []
    pending = scales
    while True:
        measured = []
        for source in sources:
            measured.append(source.at(pending, integral))
        found.append(Scaled.average(measured))
        evidence = Evidence.average([source.evidence for source in sources]).extended(found)
        report = judge(problems, scales, order, leading, predicted, evidence, pathwise, terms)
        settled = report.verdict != "undecided" or report.pathwise[1] > 0 or bool(evidence.stderr.any())
        if eps is not None or settled or len(scales) >= MAX_SCALES:
            return report
        if not integral and bool((found[-1].remainders.abs() <= found[-1].floor).any()):
            if remainder_form != "auto":
                return report
            integral = True  # differences have drowned in rounding; the integral form goes on below
        pending = [scales[-1] / 2, scales[-1] / 4]
        scales = [*scales, *pending]


def _checked(problem, order: int, eps, method: str, remainder_form: str) -> tuple[list[Problem], list[float], int]:
    """The problems, the scales (decreasing) and the order of the remainder; what cannot be verified is refused."""
    problems = as_problems(problem)
    one_of("method", method, ("auto", "exact", "monte_carlo"))
    one_of("remainder_form", remainder_form, ("auto", "difference", "integral"))
    if order < 0:
        raise ValueError(f"order: expected >= 0, got {order}.")
    scales = DEFAULT_EPS if eps is None else torch.as_tensor(eps, dtype=torch.float64).flatten().tolist()
    if not scales or not all(0 < e < float("inf") for e in scales):
        raise ValueError(f"eps: expected positive finite numbers, got {eps!r}.")
    first = problems[0]
    if not first.law.perturbs:
        raise ValueError("Nothing is perturbed: expected a law with alpha > 0, add_noise > 0 or mult_noise > 0.")
    if isinstance(first, Branches) and first.loss.name == "jensen_shannon":
        alike = first.shared_noise or first.noises == (None, None)
        if alike and bool((first.features == first.features[:, :1]).all()):
            raise ValueError("xs: nothing tells the branches apart, the stability loss is 0 at every scale.")
    leading = order + 1 if first.mixing.mixes or order % 2 else order + 2  # symmetric noise has no odd powers
    return problems, sorted(scales, reverse=True), leading


def _pathwise(problem: Problem, order: int, seed: int) -> tuple[int, int]:
    """(draws checked, draws outside Lagrange's interval) with the formulas of the terms on single draws."""
    n = len(problem.features)
    generator = torch.Generator(problem.features.device).manual_seed(seed)
    draw = problem.draw(n, -(-PATHWISE_DRAWS // n), generator=generator)[:PATHWISE_DRAWS]
    zero = torch.zeros((), dtype=problem.features.dtype, device=problem.features.device)
    eps = zero + PATHWISE_EPS
    path = problem.path(draw)
    coefficients, value = second_order_coefficients(path)[:, : order + 1], path(eps)
    rounding = ROUNDING * rounding_unit(problem)[draw.anchor]
    remainder = value - coefficients @ eps ** torch.arange(order + 1, device=value.device)
    unit = factorial(order + 1) / eps ** (order + 1)
    interval = lagrange_interval(problem, draw, PATHWISE_EPS, order=order)
    inside = interval.contains(unit * remainder, slack=unit * rounding)
    return len(draw), int((~inside).sum())


def _predicted(problems: list[Problem], terms: TaylorTerms, order: int, leading: int, budget: int | None) -> Tensor:
    """c_0..c_order and the leading coefficient: by the formulas up to order 3, beyond that by the rule."""
    wanted = [*range(order + 1), leading]
    formulas = terms.coefficients(max(k for k in wanted if k <= 3))
    predicted = torch.zeros(leading + 1, dtype=torch.float64, device=terms.standard.device)
    if leading > 3:
        rows = MAX_ROWS if budget is None else budget
        predicted = torch.stack([problem_coefficients(p, leading, max_rows=rows) for p in problems]).mean(0).double()
    for k in range(min(leading, 3) + 1):
        predicted[k] = formulas[k] if k in wanted else 0.0
    return predicted
