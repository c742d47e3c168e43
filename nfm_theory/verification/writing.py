"""From evidence to a report."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..setting.problem import Problem
from .effort import Plan
from .judge import AGREE, REQUIRED, Evidence, Points, Verdict, remainder_says, verdict_of, witnesses
from .report import ExpansionReport, Witness, settings_of


def write_report(
    problems: Sequence[Problem],
    found: Evidence,
    plan: Plan,
    eps: Sequence[float],
    order: int,
    leading: int,
    samples: int,
) -> tuple[ExpansionReport, bool]:
    """The report of what was found out, and whether smaller scales may change the verdict.

    Link 3 holds coefficients, their errors, and remainders of the polynomial of degree `leading - 1` made of the
    *measured* coefficients; the difference to the formulas is added here, unless it is rounding or sampling error.

    Args:
        problems: one per layer.
        found: the evidence.
        plan: the plan that was made.
        eps: scales, decreasing.
        order: p.
        leading: power of ε with which the remainder is predicted to fall.
        samples: evaluations of the head.
    """
    rest, claimed = found.rest, found.predicted
    compared = witnesses(found, order, leading)
    nothing: list[float] = []
    if rest is None:
        eps, remainders, stderr, floor, measured, method = (
            nothing,
            nothing,
            nothing,
            nothing,
            [math.nan] * len(claimed),
            "",
        )
    else:
        eps = list(eps)[: len(rest.remainders)]
        remainders = _against_formulas(found, eps, leading)
        stderr, floor, measured = rest.stderr.tolist(), rest.floor.tolist(), rest.coefficients.tolist()
        method = rest.method
    layers = tuple(p.layer for p in problems)
    coefficient = claimed[leading]
    powers = [coefficient * e**leading for e in eps]
    ratios = [r / p if p and math.isfinite(p) else math.nan for r, p in zip(remainders, powers, strict=True)]
    usable = [k for k, r in enumerate(remainders) if abs(r) > max(floor[k], 4 * stderr[k]) and r != 0]
    points = None
    if len(usable) >= 3 and coefficient and math.isfinite(coefficient):
        points = Points.of(*([part[k] for k in usable] for part in (eps, remainders, ratios, stderr)))
    last = [one for one in compared if one.link == 3 and one.term in ("C3", f"coefficient of eps^{leading}")][-1:]
    if rest is not None and not math.isfinite(coefficient) and leading == 3:
        says = Verdict(
            "holds", "every term agrees with values of the loss; C3 was not computed, it would cost too much"
        )
    else:
        says = remainder_says(points, leading, _agrees(last, found, leading))
    verdict = verdict_of(found, compared, says)
    report = ExpansionReport(
        verdict=verdict.word,
        reason=verdict.reason,
        order=order,
        leading_order=leading,
        observed_order=points.slope if points else math.nan,
        predicted_coefficient=coefficient,
        coefficient_ratio=points.ratios[-1] if points else math.nan,
        eps=list(eps),
        remainders=remainders,
        stderr=stderr,
        floor=floor,
        predicted=claimed,
        measured=measured,
        evidence=tuple(compared),
        links=links_in_words(found),
        plan=plan,
        interrupted=found.interrupted,
        pathwise=found.pathwise,
        samples=samples,
        method=method,
        terms=found.terms,
        layer=layers[0] if len(layers) == 1 else layers,
        num_samples=len(problems[0].features),
        settings=settings_of(problems[0]),
    )
    return report, verdict.open


def _against_formulas(found: Evidence, eps: Sequence[float], leading: int) -> list[float]:
    """Remainders of the polynomial of the formulas."""
    rest = found.rest
    assert rest is not None
    claimed = rest.coefficients.new_tensor(found.predicted)
    gap = torch.nan_to_num(rest.coefficients - claimed, nan=0.0)[:leading]
    sizes = [found.terms.size(k) if k <= 2 else abs(found.predicted[k]) for k in range(leading)]
    errors = rest.coefficient_error.tolist()
    allowed = gap.new_tensor([max(e, AGREE * s) for e, s in zip(errors, sizes, strict=False)])
    gap = torch.where(gap.abs() <= allowed, torch.zeros_like(gap), gap)
    scales = torch.tensor(eps, dtype=torch.float64, device=gap.device)
    return (rest.remainders + scales[:, None] ** torch.arange(leading, device=gap.device) @ gap).tolist()


def _agrees(last: Sequence[Witness], found: Evidence, leading: int) -> bool:
    """True if the coefficient of the remainder is known from values to agree with the formula."""
    if not last or last[0].off or "derivatives" in last[0].method:
        return False
    one, size = last[0], max((float(d.scale[min(leading, 3)]) for d in found.draws), default=0.0)
    floor = sum(float(d.floor[min(leading, 3)]) for d in found.draws) / max(len(found.draws), 1)
    return one.error <= max(REQUIRED * max(abs(one.claimed), REQUIRED * size), floor)


def links_in_words(found: Evidence) -> tuple[str, ...]:
    """What links 1 and 4 found, a sentence each."""
    lines = []
    for draws in found.draws:
        powers = [f"{100 * r:.1g} %" if r < 1 else "nothing" for r in draws.resolution[1:]]
        radius = float(draws.smooth_radius.median())
        lines.append(
            f"1: {draws.draws} draws show errors of the derivatives above {powers[0]}, {powers[1]}, {powers[2]}; "
            f"half are smooth up to eps = {radius:.2g}"
        )
    for both in found.unmixing:
        gap = abs(both.mixed - both.unmixed)
        lines.append(f"4: mixed labels and unmixed loss differ by {gap:.1e} at eps = 1 (allowed: {both.error:.1e})")
    return tuple(lines)
