"""Where the expansion stops being good: its relative error against ε, up to the scale at which networks are trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .expansion import taylor_terms
from .nfm import DEFAULT_SAMPLES, nfm_loss
from .quadrature import GridTooLargeError
from .results import Estimate

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
    """

    eps: list[float]
    loss: Estimate
    standard: float
    polynomials: dict[int, list[float]]
    tolerance: float
    radius: dict[int, float]

    def relative_error(self, order: int) -> list[float]:
        """`|loss - polynomial| / |loss|` at every scale."""
        return _relative(self.loss.value.tolist(), self.polynomials[order])

    def to_dict(self) -> dict:
        """Everything as plain numbers; an infinite radius becomes None."""
        return {
            "eps": self.eps,
            "loss": self.loss.value.tolist(),
            "stderr": self.loss.stderr.tolist(),
            "method": self.loss.method,
            "standard": self.standard,
            "polynomials": {str(p): values for p, values in self.polynomials.items()},
            "relative_error": {str(p): self.relative_error(p) for p in self.polynomials},
            "tolerance": self.tolerance,
            "radius": {str(p): r if math.isfinite(r) else None for p, r in self.radius.items()},
        }


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
            if k == 0 or errors[k - 1] <= 0:
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
    samples: int = DEFAULT_SAMPLES,
    max_rows: int = 500_000,
    seed: int = 0,
    memory_limit: int | None = None,
    progress: bool | None = None,
    **options,
) -> ErrorCurve:
    """Relative error of the expansion up to large scales, and the ε at which it passes the tolerance.

    The loss itself is computed: by the deterministic rule of the law where that fits `max_rows`, by Monte Carlo
    otherwise (never by a cubature, which is not the loss at large ε).

    Args:
        model: network in eval mode, or any callable from inputs to outputs.
        x: inputs, `(n, *input)`.
        y: labels.
        eps: increasing scales.
        orders: orders p of the polynomial, each in 0..3.
        tolerance: relative error that counts as good.
        samples: evaluations of the head for Monte Carlo.
        max_rows: largest deterministic rule.
        seed: of Monte Carlo.
        memory_limit: bytes per block.
        progress: show bars; `None` for long sums on a terminal only.
        **options: `layer`, `alpha`, `beta`, `add_noise`, `mult_noise`, `noise`, `loss`, `params`.

    Raises:
        ValueError: as `taylor_terms`, or if the scales do not increase.
    """
    scales = torch.as_tensor(eps, dtype=torch.float64).flatten().tolist()
    if scales != sorted(scales) or not scales or scales[0] <= 0:
        raise ValueError(f"eps: expected increasing positive scales, got {eps!r}.")
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
