"""Where the expansion stops being good: its relative error against ε, up to the scale at which networks are trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from ..expansion.random_paths import PathSample, sample_paths, stratified
from ..expansion.terms import terms
from ..losses.loss import loss
from ..losses.monte_carlo import DEFAULT_SAMPLES
from ..setting.ambient import undisturbed
from ..setting.checks import one_of
from ..setting.problem import Problem, as_problems
from ..setting.quadrature import GridTooLargeError, Quadrature
from ..setting.results import Estimate

#: Scales at which the error is measured: up to ε = 1, the loss that is trained.
DEFAULT_SCALES = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.14, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True)
class ErrorCurve:
    """Outcome of `error_curve`.

    Attributes:
        eps: scales, increasing.
        loss: the NFM loss at every scale, with its error.
        standard: the loss at ε = 0.
        polynomials: Taylor polynomial of order p at every scale, by p.
        tolerance: relative error that counts as good.
        radius: by p, the smallest ε at which the relative error passes the tolerance; infinite if it never does.
        coefficients: coefficients of ε⁰ .. ε^p along the draws of the loss; `None` where the polynomials are exact.
        linearised: by scale, the loss with the head linearised at the features, which is what the expansions of all
            orders describe if the head is piecewise linear; `None` otherwise, and where it was not computed.
        relative_stderr: by p (and `"linearised"`), standard error of the relative error at every scale; empty where
            the polynomials are exact.
    """

    eps: list[float]
    loss: Estimate
    standard: float
    polynomials: dict[int, list[float]]
    tolerance: float
    radius: dict[int, float]
    coefficients: Estimate | None = None
    linearised: list[float] | None = None
    relative_stderr: dict[int | str, list[float]] = field(default_factory=dict)

    def relative_error(self, order: int) -> list[float]:
        """`|loss - polynomial| / |loss|` at every scale."""
        return _relative(self.loss.value.tolist(), self.polynomials[order])

    def radius_range(self, order: int, stderrs: float = 2.0) -> tuple[float, float]:
        """Where the radius may lie: the crossings of the relative error plus and minus its own error.

        With `"pathwise"` that error is some standard errors; otherwise it follows from the error of the loss.

        Args:
            order: p.
            stderrs: how many standard errors.
        """
        if order in self.relative_stderr:
            own = [stderrs * s for s in self.relative_stderr[order]]
        else:
            numbers = zip(self.loss.error.tolist(), self.loss.value.tolist(), self.polynomials[order], strict=True)
            own = [error * abs(p) / value**2 if value else math.inf for error, value, p in numbers]
        pairs = list(zip(self.relative_error(order), own, strict=True))
        low, high = ([e + sign * s for e, s in pairs] for sign in (1, -1))
        return crossing(self.eps, low, self.tolerance), crossing(self.eps, high, self.tolerance)

    def __str__(self) -> str:
        """A table: the loss and the relative error of every order at each scale, and the radii."""
        lines = [f"{'eps':>8}{'loss':>12}{'error':>10}" + "".join(f"{f'order {p}':>10}" for p in self.polynomials)]
        errors = {p: self.relative_error(p) for p in self.polynomials}
        for k, (e, value, error) in enumerate(
            zip(self.eps, self.loss.value.tolist(), self.loss.error.tolist(), strict=True)
        ):
            row = "".join(f"{errors[p][k]:10.2%}" for p in errors)
            lines.append(f"{e:8.3g}{value:12.6g}{error:10.2g}{row}")
        for p, radius in self.radius.items():
            reach = f"up to eps = {radius:.3g}" if math.isfinite(radius) else "at every scale"
            lines.append(f"order {p}: within {self.tolerance:.0%} {reach}")
        return "\n".join(lines)

    def plot(self, ax=None):
        """Draw the relative error of each order against ε; returns the matplotlib axes.

        Raises:
            ImportError: if matplotlib is not installed.
        """
        import matplotlib.pyplot as plt

        ax = plt.subplots(figsize=(5.0, 3.6), layout="constrained")[1] if ax is None else ax
        for p in self.polynomials:
            ax.loglog(self.eps, self.relative_error(p), "o-", ms=4, label=f"order {p}")
        ax.axhline(self.tolerance, color="0.5", ls=":", label=f"{self.tolerance:.0%}")
        ax.set(xlabel=r"scale $\varepsilon$", ylabel="relative error of the expansion")
        ax.legend(frameon=False)
        return ax

    def to_dict(self) -> dict:
        """Everything as plain numbers; an infinite radius becomes None."""
        record = {
            "eps": self.eps,
            "loss": self.loss.value.tolist(),
            "stderr": self.loss.stderr.tolist(),
            "error": self.loss.error.tolist(),
            "method": self.loss.method,
            "standard": self.standard,
            "polynomials": {str(p): values for p, values in self.polynomials.items()},
            "relative_error": {str(p): self.relative_error(p) for p in self.polynomials},
            "tolerance": self.tolerance,
            "radius": {str(p): _finite(r) for p, r in self.radius.items()},
        }
        if self.coefficients is None:
            return record
        return record | {
            "relative_stderr": {str(p): values for p, values in self.relative_stderr.items()},
            "radius_range": {str(p): [_finite(r) for r in self.radius_range(p)] for p in self.polynomials},
            "coefficients": self.coefficients.value.tolist(),
            "coefficients_stderr": self.coefficients.stderr.tolist(),
            "linearised": self.linearised,
            "linearised_error": self.linearised and _relative(self.loss.value.tolist(), self.linearised),
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _relative(loss: list[float], polynomial: list[float]) -> list[float]:
    return [abs(a - b) / abs(a) if a else math.inf for a, b in zip(loss, polynomial, strict=True)]


def crossing(eps: Sequence[float], errors: Sequence[float], tolerance: float) -> float:
    """The first ε at which the error passes the tolerance, interpolated log-linearly; infinite if it never does.

    Example:
        >>> round(crossing([0.1, 1.0], [0.01, 1.0], 0.1), 6)
        0.316228
    """
    for k, error in enumerate(errors):
        if error > tolerance:
            if k == 0 or errors[k - 1] <= 0 or not math.isfinite(error):
                return eps[k]
            low, high = math.log(errors[k - 1]), math.log(error)
            share = (math.log(tolerance) - low) / (high - low)
            return math.exp(math.log(eps[k - 1]) + share * (math.log(eps[k]) - math.log(eps[k - 1])))
    return math.inf


@torch.no_grad()
@undisturbed()
def error_curve(
    problem: Problem | Sequence[Problem],
    eps: Sequence[float] = DEFAULT_SCALES,
    *,
    orders: Sequence[int] = (1, 2, 3),
    tolerance: float = 0.1,
    method: Literal["auto", "pathwise"] = "auto",
    samples: int = DEFAULT_SAMPLES,
    max_rows: int = 500_000,
    generator: torch.Generator | None = None,
) -> ErrorCurve:
    """Relative error of the expansion up to large scales, and the ε at which it passes the tolerance.

    The loss itself is computed, never a cubature, which is not the loss at large ε:

    | method | loss | polynomials |
    |---|---|---|
    | `"auto"` | deterministic rule, or Monte Carlo if that has a smaller error | exact, order 3 at most |
    | `"pathwise"` | Monte Carlo | along the same draws, of any order |

    The second is for networks and layers of any size, and gives the errors a standard error (book:
    eq-pathwise-error); for a piecewise-linear head it needs two tangents, whatever the order.

    Args:
        problem: a `Problem` or `Branches`; a list is averaged over.
        eps: increasing scales.
        orders: orders p of the polynomial, each in 0..3 (any with `"pathwise"`).
        tolerance: relative error that counts as good.
        method: `"auto"` or `"pathwise"`.
        samples: evaluations of the head for Monte Carlo; `"pathwise"` takes at least two paths from each sample.
        max_rows: largest deterministic rule.
        generator: random generator of the draws; with `None` they are always the same.

    Raises:
        ValueError: if the problem has no law, for an unknown method, or if the scales do not increase.
        TypeError: for anything but problems.

    Example:
        >>> from nfm_theory import Law
        >>> x = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(6, 1)
        >>> curve = error_curve(Problem(lambda u: torch.sin(u), x, x, law=Law(), loss="square"), [0.1, 1.0])
        >>> curve.relative_error(2)[0] < 1e-3
        True
    """
    problems = as_problems(problem)
    scales = torch.as_tensor(eps, dtype=torch.float64).flatten().tolist()
    if scales != sorted(scales) or not scales or scales[0] <= 0:
        raise ValueError(f"eps: expected increasing positive scales, got {eps!r}.")
    one_of("method", method, ("auto", "pathwise"))
    device = problems[0].features.device
    generator = torch.Generator(device).manual_seed(0) if generator is None else generator
    if method == "pathwise":
        return _pathwise_curve(problems, scales, list(orders), tolerance, samples, generator)
    known = terms(problems, remainder=max(orders) >= 3)
    found = _measured_loss(problems, scales, tolerance / 10, samples, max_rows, generator)
    at = torch.tensor(scales, dtype=found.value.dtype, device=device)
    polynomials = {p: known.polynomial(at, p).tolist() for p in orders}
    return ErrorCurve(
        scales, found, float(known.standard), polynomials, tolerance, _radii(found, scales, polynomials, tolerance)
    )


def _measured_loss(problems, scales, rtol: float, samples: int, max_rows: int, generator: torch.Generator) -> Estimate:
    """The loss by a rule whose relative error is at most `rtol`, otherwise by what has the smaller error."""
    by_rule = None
    try:
        rule = Quadrature(num_noise=6, max_rows=max_rows, rtol=rtol)
        by_rule = loss(problems, scales, "exact", quadrature=rule)
        if (by_rule.error <= rtol * by_rule.value.abs()).all():
            return by_rule
    except GridTooLargeError:
        pass
    sampled = loss(problems, scales, "monte_carlo", samples=samples, generator=generator)
    return sampled if by_rule is None or sampled.error.max() < by_rule.error.max() else by_rule


def _radii(found: Estimate, scales, polynomials, tolerance) -> dict[int, float]:
    """The scale at which the polynomial of each order passes the tolerance."""
    values = found.value.tolist()
    return {p: crossing(scales, _relative(values, one), tolerance) for p, one in polynomials.items()}


def _pathwise_curve(problems, scales, orders, tolerance, samples: int, generator: torch.Generator) -> ErrorCurve:
    """Loss and polynomials along the same random paths; layers are averaged."""
    features = problems[0].features
    signs = 1 if problems[0].noises == (None, None) else 2
    replicates = max(2, samples // (signs * len(problems) * len(features)))
    eps = torch.tensor(scales, dtype=torch.float64, device=features.device)
    sample = PathSample.joined([
        sample_paths(p, eps, max(2, *orders), replicates=replicates, generator=generator) for p in problems
    ])  # fmt: skip
    found = Estimate(
        *stratified(sample.losses), sample.evaluations, f"Monte Carlo, {replicates} paths from each sample"
    )
    known = Estimate(*stratified(sample.coefficients), sample.evaluations, "along the paths of the loss")
    approximations = {p: sample.polynomial(p) for p in orders}
    polynomials = {p: rows.mean((0, 1)).tolist() for p, rows in approximations.items()}
    if sample.linearised is not None:
        approximations["linearised"] = sample.linearised
    return ErrorCurve(
        scales, found, float(known.value[0]), polynomials, tolerance, _radii(found, scales, polynomials, tolerance),
        coefficients=known,
        linearised=None if sample.linearised is None else sample.linearised.mean((0, 1)).tolist(),
        relative_stderr={p: sample.relative_error(rows)[1].tolist() for p, rows in approximations.items()},
    )  # fmt: skip
