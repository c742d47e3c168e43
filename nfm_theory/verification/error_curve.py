"""Where the expansion stops being good: its relative error against ε, up to the scale at which networks are trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..expansion.random_paths import PathSample, sample_paths, stratified
from ..expansion.terms import taylor_terms
from ..losses.nfm_loss import DEFAULT_SAMPLES, nfm_loss
from ..setting.problem import build_problems
from ..setting.quadrature import GridTooLargeError
from ..setting.results import Estimate

#: Scales at which the error is measured: up to ε = 1, the loss that is trained.
DEFAULT_SCALES = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.14, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True)
class ErrorCurve:
    """Outcome of `expansion_error`.

    Attributes:
        eps: scales, increasing.
        loss: the NFM loss at every scale, with its standard error.
        standard: the loss at ε = 0.
        polynomials: Taylor polynomial of order p at every scale, by p.
        tolerance: relative error that counts as good.
        radius: by p, the smallest ε at which the relative error passes the tolerance; infinite if it never does.
        coefficients: of ε⁰ .. ε^p along the draws of the loss; `None` where the polynomials are exact.
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
        """Where the radius may lie: the crossings of the relative error plus and minus some standard errors.

        Args:
            order: p.
            stderrs: how many.

        Raises:
            ValueError: if there are no standard errors.
        """
        if order not in self.relative_stderr:
            raise ValueError("radius_range: the standard errors are known with method='pathwise' only.")
        pairs = list(zip(self.relative_error(order), self.relative_stderr[order], strict=True))
        low, high = ([e + sign * stderrs * s for e, s in pairs] for sign in (1, -1))
        return crossing(self.eps, low, self.tolerance), crossing(self.eps, high, self.tolerance)

    def to_dict(self) -> dict:
        """Everything as plain numbers; an infinite radius becomes None."""
        record = {
            "eps": self.eps,
            "loss": self.loss.value.tolist(),
            "stderr": self.loss.stderr.tolist(),
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
def expansion_error(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: Sequence[float] = DEFAULT_SCALES,
    orders: Sequence[int] = (1, 2, 3),
    tolerance: float = 0.1,
    method: str = "auto",
    samples: int = DEFAULT_SAMPLES,
    max_rows: int = 500_000,
    seed: int = 0,
    memory_limit: int | None = None,
    progress: bool | None = None,
    **options,
) -> ErrorCurve:
    """Relative error of the expansion up to large scales, and the ε at which it passes the tolerance.

    The loss itself is computed, never a cubature, which is not the loss at large ε:

    | method | loss | polynomials |
    |---|---|---|
    | `"auto"` | deterministic rule where that fits `max_rows`, Monte Carlo otherwise | exact, order 3 at most |
    | `"pathwise"` | Monte Carlo | along the same draws, of any order |

    The second is for networks and layers of any size, and gives errors their standard error (book:
    eq-pathwise-error); of a piecewise-linear head it needs two tangents, whatever the order.

    Args:
        model: network in eval mode, or any callable from inputs to outputs.
        x: inputs, `(n, *input)`.
        y: labels.
        eps: increasing scales.
        orders: orders p of the polynomial, each in 0..3 (any with `"pathwise"`).
        tolerance: relative error that counts as good.
        method: `"auto"` or `"pathwise"`.
        samples: evaluations of the head for Monte Carlo; `"pathwise"` takes at least two paths from each sample.
        max_rows: largest deterministic rule.
        seed: of Monte Carlo.
        memory_limit: bytes per block.
        progress: show bars; `None` for long sums on a terminal only.
        **options: `layer`, `alpha`, `beta`, `add_noise`, `mult_noise`, `noise`, `loss`, `params`.

    Raises:
        ValueError: as `taylor_terms`, for an unknown method, or if the scales do not increase.
    """
    scales = torch.as_tensor(eps, dtype=torch.float64).flatten().tolist()
    if scales != sorted(scales) or not scales or scales[0] <= 0:
        raise ValueError(f"eps: expected increasing positive scales, got {eps!r}.")
    if method not in ("auto", "pathwise"):
        raise ValueError(f"method: expected 'auto' or 'pathwise', got {method!r}.")
    if method == "pathwise":
        problems = build_problems(model, x, y, **options)
        return _pathwise_curve(
            problems, scales, list(orders), tolerance, samples=samples, seed=seed, memory_limit=memory_limit
        )
    common = {**options, "memory_limit": memory_limit}
    terms = taylor_terms(model, x, y, remainder=max(orders) >= 3, **common)
    try:
        loss = nfm_loss(model, x, y, eps=scales, max_rows=max_rows, num_noise=6, progress=progress, **common)
    except GridTooLargeError:
        generator = torch.Generator(x.device).manual_seed(seed)
        loss = nfm_loss(
            model,
            x,
            y,
            eps=scales,
            method="monte_carlo",
            samples=samples,
            generator=generator,
            progress=progress,
            **common,
        )
    at = torch.tensor(scales, dtype=loss.value.dtype, device=x.device)
    polynomials = {p: terms.polynomial(at, p).tolist() for p in orders}
    radius = {
        p: crossing(scales, _relative(loss.value.tolist(), values), tolerance) for p, values in polynomials.items()
    }
    return ErrorCurve(scales, loss, float(terms.standard), polynomials, tolerance, radius)


def _pathwise_curve(problems, scales, orders, tolerance, *, samples, seed, memory_limit) -> ErrorCurve:
    """`expansion_error(method="pathwise")`; layers are averaged."""
    features = problems[0].features
    signs = 2 if any(law is not None for law in problems[0].active_laws) else 1
    replicates = max(2, samples // (signs * len(problems) * len(features)))
    generator = torch.Generator(features.device).manual_seed(seed)
    eps = torch.tensor(scales, dtype=torch.float64, device=features.device)
    sample = PathSample.joined([
        sample_paths(p, eps, max(2, *orders), replicates=replicates, generator=generator, memory_limit=memory_limit)
        for p in problems
    ])  # fmt: skip
    value, stderr = stratified(sample.losses)
    loss = Estimate(value, stderr, sample.evaluations, f"Monte Carlo, {replicates} paths from each sample")
    known = Estimate(*stratified(sample.coefficients), sample.evaluations, "along the paths of the loss")
    approximations = {p: sample.polynomial(p) for p in orders}
    polynomials = {p: rows.mean((0, 1)).tolist() for p, rows in approximations.items()}
    radius = {p: crossing(scales, _relative(value.tolist(), values), tolerance) for p, values in polynomials.items()}
    if sample.linearised is not None:
        approximations["linearised"] = sample.linearised
    return ErrorCurve(
        scales, loss, float(known.value[0]), polynomials, tolerance, radius,
        coefficients=known,
        linearised=None if sample.linearised is None else sample.linearised.mean((0, 1)).tolist(),
        relative_stderr={p: sample.relative_error(rows)[1].tolist() for p, rows in approximations.items()},
    )  # fmt: skip
