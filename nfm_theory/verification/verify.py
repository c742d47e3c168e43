r"""The verdict: is the expansion, with its remainder, what the theory predicts on this very network?

The evidence comes from values of the loss, never from the derivatives under test. It has four links:

1. along single draws, Taylor coefficients from values against the derivatives of the same draw (`draw_evidence`);
2. every named term on a law of its own source, from values (`term_evidence`);
3. the coefficients of the whole law and the remainder over a range of ε, by a rule or along draws (`evidence`);
4. the loss with mixed labels against the unmixed loss at ε = 1 (`unmixing`).

The leading order of the remainder is p + 1, or p + 2 where the coefficient of ε^(p+1) vanishes by symmetry (noise
without mixing: all odd powers of ε do).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from ..setting.ambient import undisturbed
from ..setting.branches import Branches
from ..setting.checks import one_of
from ..setting.options import options
from ..setting.problem import Problem, as_problems
from ..setting.random_numbers import seed_of
from ..setting.results import TaylorTerms
from .effort import Budget, Meter, seconds_per_evaluation
from .judge import MORE
from .planning import more_samples, plan_of, way_of
from .report import ExpansionReport
from .run import Run

#: Scales tried when the caller names none; halved further while the verdict is open.
DEFAULT_EPS = tuple(0.1 / 2**k for k in range(6))
#: So many of them for large networks, whose fits rarely reach them.
FEW_EPS = 3
#: Least mean of 1 - λ that float64 tells from no mixing.
LEAST_MIXING = 1e-9
#: Highest order: a derivative of order k costs 2^k forward passes.
MAX_ORDER = 6


@torch.no_grad()
@undisturbed()
def verify(
    problem: Problem | Sequence[Problem],
    order: int = 2,
    eps: float | Sequence[float] | Tensor | None = None,
    budget: int | str | None = None,
    generator: torch.Generator | None = None,
    *,
    method: Literal["auto", "exact", "monte_carlo"] = "auto",
    remainder_form: Literal["auto", "difference", "integral"] = "auto",
    terms: TaylorTerms | Callable[[Sequence[Problem]], TaylorTerms] | None = None,
) -> ExpansionReport:
    """Verify the expansion of order p with its predicted remainder on a network (book: eq-expansion).

    A plan with its cost is logged before the start, and printed if it is long or `options(progress=True)` is set.
    Ctrl-C ends the verification early; the report then holds what is known so far.

    Args:
        problem: a `Problem` (the NFM loss), or `Branches` (stability or NoisyMix loss); a list is averaged over.
            float64 is advised, float32 works; the report says what a lower precision resolves.
        order: p, order of the polynomial, 0 to 6.
        eps: scales, at least three for a verdict; `None` starts at 0.1 and halves until the verdict is clear.
        budget: limit of the whole verification: a number of evaluations of the head, or words such as
            `"300 passes"` (over all samples), `"90 s"` or `"10 min"`. It is never exceeded; derivatives count as the
            forward passes that take as long. A deterministic rule that needs more than half of it gives way to Monte
            Carlo. `None` allows what takes about a minute, and 300 passes for large networks: of random draws 200,000
            evaluations, ten times as many if these leave the verdict open.
        generator: random generator of the draws; with `None` they are always the same.
        method: `"exact"` for a deterministic rule, `"monte_carlo"`, or `"auto"`: the rule where it fits the budget.
        remainder_form: `"difference"` of loss and polynomial, `"integral"` (without cancellation, from third
            derivatives that link 1 has compared with values), or `"auto"`: the difference in float64 while it stands
            clear of rounding.
        terms: the terms to verify, or a function that computes them; `None` computes them by `nfm_theory.terms`. The
            rounding of their own dtype is allowed for; numbers of Python count as float64.

    Returns:
        `ExpansionReport`; `verdict` is `"holds"`, `"refuted"` or `"undecided"`, `reason` says why, and `power` says
        for each term which error would have been refuted.

    Raises:
        ValueError: if something does not fit, nothing is perturbed, or nothing tells the branches apart.
        TypeError: for anything but problems, or terms that are not numbers.

    Example:
        >>> from nfm_theory import Law
        >>> x = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(6, 1)
        >>> report = verify(Problem(torch.sin, x, x, law=Law(), loss="square"))
        >>> report.verdict, report.power["R3"]["resolved"] < 1e-6
        ('holds', True)
    """
    given, limit, report = terms is not None, budget, None
    while True:
        run, scales = prepared(problem, order, eps, limit, generator, method, remainder_form, given=given)
        run.plan.announce()
        # Cut derivatives are for the verdict to find, with their module
        with options(check_derivatives=False), run.meter, run.ending_early():
            run.check_coefficients(terms)
            report = run.check_remainders(scales, halve=eps is None)
        if report is None:
            report = run.report(scales)[0]
        more = more_samples(run.problems)
        if limit is not None or run.way.rows is not None or more is None or not report.reason.endswith(MORE):
            return report
        limit, report = more, None


def prepared(problem, order, eps, budget, generator, method, remainder_form, *, given: bool) -> tuple[Run, list[float]]:
    """A verification with its plan before it starts, and the scales; the arguments are those of `verify`.

    Args:
        problem: one or several problems.
        order: p.
        eps: scales or `None`.
        budget: limit.
        generator: random generator.
        method: how the loss is computed.
        remainder_form: form of the remainder.
        given: True if the caller names the terms.
    """
    problems, scales, leading = _checked(problem, order, eps, method, remainder_form)
    limit, seconds = Budget.of(budget, len(problems[0].features)), seconds_per_evaluation(problems[0])
    seed = seed_of(generator)
    way = way_of(problems, leading, len(scales), limit, method, remainder_form, given, seconds)
    if eps is None and way.rows is None and way.large:
        scales = scales[:FEW_EPS]
    plan = plan_of(problems, way, len(scales), leading, given, seconds)
    return Run(problems, way, order, leading, seed, Meter(way.budget, way.limit, total=plan.evaluations), plan), scales


def _checked(problem, order: int, eps, method: str, remainder_form: str) -> tuple[list[Problem], list[float], int]:
    """The problems, the scales (decreasing) and the order of the remainder; what cannot be verified is refused."""
    problems = as_problems(problem)
    one_of("method", method, ("auto", "exact", "monte_carlo"))
    one_of("remainder_form", remainder_form, ("auto", "difference", "integral"))
    if isinstance(order, bool) or not isinstance(order, int) or order < 0:
        raise ValueError(f"order: expected >= 0, an integer, got {order!r}.")
    if order > MAX_ORDER:
        raise ValueError(
            f"order: expected at most {MAX_ORDER}, got {order}: the coefficient of eps^{order + 1} is a derivative of "
            f"that order, which costs 2^{order + 1} forward passes for each row."
        )
    try:
        scales = DEFAULT_EPS if eps is None else torch.as_tensor(eps, dtype=torch.float64).flatten().tolist()
    except (TypeError, ValueError):
        scales = ()
    if not scales or not all(0 < e < float("inf") for e in scales):
        raise ValueError(f"eps: expected positive finite numbers, got {eps!r}.")
    first = problems[0]
    if not first.law.perturbs:
        raise ValueError("Nothing is perturbed: expected a law with alpha > 0, add_noise > 0 or mult_noise > 0.")
    if first.mixing.mixes and first.mixing.moment(1) < LEAST_MIXING:
        raise ValueError(
            f"law: the mean of 1 - lambda is {first.mixing.moment(1):.1g}, which rounding hides; expected at least "
            f"{LEAST_MIXING:g}, or alpha=0 for no mixing."
        )
    if isinstance(first, Branches) and first.loss.name == "jensen_shannon":
        alike = first.shared_noise or first.noises == (None, None)
        if alike and bool((first.features == first.features[:, :1]).all()):
            raise ValueError("xs: nothing tells the branches apart, the stability loss is 0 at every scale.")
    leading = order + 1 if first.mixing.mixes or order % 2 else order + 2  # symmetric noise has no odd powers
    return problems, sorted(scales, reverse=True), leading
