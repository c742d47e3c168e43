r"""Verification as a product: is the remainder of the expansion what the theory predicts, on this very network?

Three kinds of evidence are gathered, all by the same deterministic rule (or the same Monte-Carlo draws):

1. every coefficient up to the order p, term formulas against derivatives along the rows of the rule;
2. the remainder over a range of ε: its observed order and its ratio to the predicted leading coefficient;
3. for single draws, Lagrange's interval, which has no sampling error whatever.

The leading order is p + 1, or p + 2 where the coefficient of ε^(p+1) vanishes by symmetry (noise without mixing: all
odd powers of ε do).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import factorial

import torch
from torch import Tensor, nn

from ..expansion.paths import lagrange_interval, second_order_coefficients
from ..expansion.terms import problem_coefficients, problem_terms
from ..setting.problem import Problem, build_problems
from ..setting.results import TaylorTerms
from .evidence import ROUNDING, Evidence, gather, rounding_unit
from .report import ExpansionReport, judge

#: Scales tried when the caller names none; halved further while the verdict is open.
DEFAULT_EPS = tuple(0.1 / 2**k for k in range(6))
MAX_SCALES = 14
#: Rows of the deterministic rule above which verification turns to Monte Carlo by itself.
DEFAULT_MAX_ROWS = 5_000_000
PATHWISE_DRAWS, PATHWISE_EPS = 64, 0.05


def leading_order(problem: Problem, order: int) -> int:
    """The first power of ε above `order` whose coefficient does not vanish by symmetry."""
    return order + 1 if problem.mixing.mixes or order % 2 else order + 2


def _pathwise(problem: Problem, order: int, generator) -> tuple[int, int]:
    """(draws checked, draws outside Lagrange's interval) with the formulas of the terms on single draws."""
    n = len(problem.features)
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


def _predicted(problems: list[Problem], terms: TaylorTerms, order: int, q: int, limits: dict) -> Tensor:
    """c_0..c_order and C_q: by the formulas of the terms up to order 3, beyond that by the rule."""
    wanted = [*range(order + 1), q]
    formulas = terms.coefficients(max(k for k in wanted if k <= 3))
    predicted = torch.zeros(q + 1, dtype=torch.float64, device=terms.standard.device)
    if q > 3:
        predicted = torch.stack([problem_coefficients(p, q, rule="auto", **limits) for p in problems]).mean(0).double()
    for k in range(min(q, 3) + 1):
        predicted[k] = formulas[k] if k in wanted else 0.0
    return predicted


@torch.no_grad()
def verify_expansion(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float | Sequence[float] | Tensor | None = None,
    order: int = 2,
    layer: str | Sequence[str] = "",
    terms: TaylorTerms | None = None,
    method: str = "auto",
    remainder_form: str = "auto",
    samples: int = 200_000,
    seed: int = 0,
    max_rows: int = DEFAULT_MAX_ROWS,
    memory_limit: int | None = None,
    progress: bool | None = None,
    **options,
) -> ExpansionReport:
    """Verify the order-p expansion of the NFM loss with its predicted remainder on a network (book: eq-expansion).

    Args:
        model: network in eval mode, or any callable from inputs to outputs.
        x: inputs, `(n, *input)`; fixes device and dtype. float64 is advised, float32 works.
        y: labels.
        eps: scales, at least three for a verdict; `None` starts at 0.1 and halves until the verdict is clear.
        order: p, order of the polynomial, ≥ 0.
        layer: layer that is perturbed, or several, over which everything is averaged.
        terms: the terms to verify; `None` computes them with `taylor_terms`.
        method: `"exact"` for a deterministic rule, `"monte_carlo"`, or `"auto"`: the rule where it fits `max_rows`.
        remainder_form: `"difference"` of loss and polynomial, `"integral"` (without cancellation, for any precision),
            or `"auto"`: the difference in float64 while it stands clear of rounding.
        samples: rows of Monte Carlo.
        seed: of everything random.
        max_rows: rows of the deterministic rule.
        memory_limit: bytes per block of evaluations.
        progress: show bars; `None` for long sums on a terminal only.
        **options: `alpha`, `beta`, `add_noise`, `mult_noise`, `noise`, `loss`, `params` as in `taylor_terms`.

    Returns:
        `ExpansionReport`; `verdict` is `"holds"`, `"refuted"` or `"undecided"`, `reason` says why.

    Raises:
        ValueError: if something does not fit, or nothing is perturbed (no mixing and no noise).
        TypeError: for arguments of the wrong kind.
    """
    problems = build_problems(model, x, y, layer=layer, **options)
    return verify_problems(
        problems, terms=terms, eps=eps, order=order, method=method, remainder_form=remainder_form, samples=samples,
        seed=seed, max_rows=max_rows, memory_limit=memory_limit, progress=progress, layer=layer,
    )  # fmt: skip


@torch.no_grad()
def verify_problems(
    problems: Sequence[Problem],
    *,
    terms: TaylorTerms | None = None,
    find_terms: Callable[..., TaylorTerms] = problem_terms,
    eps: float | Sequence[float] | Tensor | None = None,
    order: int = 2,
    method: str = "auto",
    remainder_form: str = "auto",
    samples: int = 200_000,
    seed: int = 0,
    max_rows: int = DEFAULT_MAX_ROWS,
    memory_limit: int | None = None,
    progress: bool | None = None,
    layer: str | Sequence[str] = "",
    facts: Mapping | None = None,
) -> ExpansionReport:
    """`verify_expansion` of settings that are built already, one per layer; also of other losses than the NFM loss.

    Args:
        problems: the settings.
        terms: as `verify_expansion`.
        find_terms: called with a problem and `memory_limit=`, computes the terms where none are given.
        eps: as `verify_expansion`, like all that follow.
        order: p.
        method: how the loss is computed.
        remainder_form: difference or integral.
        samples: rows of Monte Carlo.
        seed: of everything random.
        max_rows: rows of the deterministic rule.
        memory_limit: bytes per block of evaluations.
        progress: show bars.
        layer: name or names of the layers.
        facts: further settings for the report; `"objective"` names the loss.

    Raises:
        ValueError: as `verify_expansion`.
    """
    if method not in ("auto", "exact", "monte_carlo"):
        raise ValueError(f"method: expected 'auto', 'exact' or 'monte_carlo', got {method!r}.")
    if remainder_form not in ("auto", "difference", "integral"):
        raise ValueError(f"remainder_form: expected 'auto', 'difference' or 'integral', got {remainder_form!r}.")
    if order < 0:
        raise ValueError(f"order: expected >= 0, got {order}.")
    scales = sorted(
        DEFAULT_EPS if eps is None else torch.as_tensor(eps, dtype=torch.float64).flatten().tolist(), reverse=True
    )
    if not scales or not all(0 < e < float("inf") for e in scales):
        raise ValueError(f"eps: expected positive finite numbers, got {eps!r}.")
    first = problems[0]
    if not first.mixing.mixes and first.active_laws == (None, None):
        raise ValueError("Nothing is perturbed: expected alpha > 0, add_noise > 0 or mult_noise > 0.")
    limits = {"max_rows": max_rows, "memory_limit": memory_limit, "progress": progress}
    integral = remainder_form == "integral" or (remainder_form == "auto" and first.features.dtype != torch.float64)
    q = leading_order(first, order)
    if terms is None:
        own = {p.layer: find_terms(p, memory_limit=memory_limit) for p in problems}
        terms = next(iter(own.values())) if len(own) == 1 else TaylorTerms.average(own)
    predicted = _predicted(problems, terms, order, q, limits)
    generators = [torch.Generator(p.features.device).manual_seed(seed) for p in problems]
    pathwise = [(0, 0)]
    if order <= 2 and not integral:
        pathwise = [_pathwise(p, order, g) for p, g in zip(problems, generators, strict=True)]
    sources = [gather(p, q, method, samples, seed, limits) for p in problems]
    evidence, pending = None, scales
    while True:
        new = Evidence.average([source(pending, integral) for source in sources])
        evidence = new if evidence is None else evidence.extend(new)
        report = judge(
            eps=scales,
            order=order,
            leading=q,
            predicted=predicted,
            measured=evidence,
            pathwise=tuple(map(sum, zip(*pathwise, strict=True))),
            layer=layer if isinstance(layer, str) else tuple(layer),
            num_samples=len(first.features),
            terms=terms,
            settings=_settings(first) | dict(facts or {}),
        )
        settled = report.verdict != "undecided" or report.pathwise[1] > 0 or bool(evidence.stderr.any())
        if eps is not None or settled or len(scales) >= MAX_SCALES:
            return report
        if not integral and bool((new.remainders.abs() <= new.floor).any()):
            if remainder_form != "auto":
                return report
            integral = True  # differences have drowned in rounding; the integral form goes on below
        pending = [scales[-1] / 2, scales[-1] / 4]
        scales = [*scales, *pending]


def _settings(problem: Problem) -> dict:
    return {
        "alpha": problem.mixing.alpha,
        "beta": problem.mixing.beta,
        "add_noise": problem.add_noise,
        "mult_noise": problem.mult_noise,
        "noise": tuple(f"{law}" for law in problem.laws),
        "loss": problem.loss.name,
        "dtype": str(problem.features.dtype).removeprefix("torch."),
        "features": problem.feature_shape,
    }
