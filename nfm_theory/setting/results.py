"""What the functions return: frozen records of numbers with the evidence that belongs to them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

#: Number of standard errors that count as the error of a sampled value.
STDERRS = 4
#: Names of the second-order terms, in the order in which they are printed.
SECOND_ORDER = ("R2", "R3", "R2_add", "R3_add", "R2_mult", "R3_mult")


def plain(value) -> Any:
    """Tensors, tuples, records and numbers that JSON does not know, as plain values; nan and infinity become None."""
    if isinstance(value, Tensor):
        return plain(value.detach().tolist())
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class Record:
    """What the frozen records share: `to_dict`, in plain values that JSON knows."""

    def to_dict(self) -> dict:
        """Everything as plain numbers, strings, lists and dicts; nan and infinity become None."""
        return plain({f.name: getattr(self, f.name) for f in fields(self)})


@dataclass(frozen=True)
class Estimate(Record):
    """A value with its errors; `float(estimate)` is the value.

    Attributes:
        value: the estimate; 0-dim, or `(num_eps,)` when several ε were asked for at once.
        stderr: its standard error, same shape; zero if nothing was sampled.
        samples: number of evaluations of the head behind it.
        method: how it was computed, in words.
        converged: True if a requested standard error was reached; `None` if none was requested.
        quadrature_error: estimated error of the quadrature rule, same shape as the value; `None` if there was no rule.
    """

    value: Tensor
    stderr: Tensor
    samples: int
    method: str = ""
    converged: bool | None = None
    quadrature_error: Tensor | None = None

    @property
    def error(self) -> Tensor:
        """How far the value may be off: four standard errors plus the error of the quadrature rule."""
        sampled = STDERRS * self.stderr
        return sampled if self.quadrature_error is None else sampled + self.quadrature_error

    @property
    def averaged(self) -> Estimate:
        """The mean over independent values, such as those of samples; of one value, the estimate itself."""
        count = self.value.numel()
        if not self.value.ndim:
            return self
        return replace(self, value=self.value.mean(), stderr=self.stderr.square().sum().sqrt() / count)

    def __float__(self) -> float:
        """The value, if there is one only."""
        return float(self.value.detach())

    def __str__(self) -> str:
        """A line for each value: value, standard error (or error of the quadrature rule) and method."""
        errors = self.stderr if self.quadrature_error is None else self.error
        rows = zip(self.value.detach().reshape(-1).tolist(), errors.detach().reshape(-1).tolist(), strict=True)
        return "\n".join(f"{v:.6g} ± {s:.2g}  ({self.method}, {self.samples:,} evaluations)" for v, s in rows)


@dataclass(frozen=True)
class Interval(Record):
    """A closed interval `[lower, upper]`, elementwise."""

    lower: Tensor
    upper: Tensor

    def contains(self, value: Tensor, *, slack: float | Tensor = 0.0) -> Tensor:
        """True, elementwise, where `value` lies in the interval widened by `slack` on both sides."""
        return (value >= self.lower - slack) & (value <= self.upper + slack)


@dataclass(frozen=True)
class TaylorTerms:
    r"""The expansion `L_NFM(ε) = standard + ε R1 + ε² (R2 + R3 + ...) + ε³ C3 + O(ε⁴)` (book: eq-expansion).

    All terms are 0-dim tensors, already averaged over the samples and multiplied by the moments of the law, and
    differentiable in the parameters of the model. With `reduction="none"` they are `(n,)`, one for each sample. A term
    is an attribute, `terms.R2_add`, and an item, `terms["R2_add"]`.

    Attributes:
        standard: L_std, the loss without perturbation.
        R1: coefficient of ε.
        R2: Gauss-Newton part of the data.
        R3: residual part of the data.
        R2_add: Gauss-Newton part of the additive noise.
        R3_add: residual part of the additive noise.
        R2_mult: Gauss-Newton part of the multiplicative noise.
        R3_mult: residual part of the multiplicative noise.
        C3: coefficient of ε³; `None` if it was not asked for.
        per_layer: the records that were averaged, by layer, when several layers were asked for.
    """

    standard: Tensor
    R1: Tensor
    R2: Tensor
    R3: Tensor
    R2_add: Tensor
    R3_add: Tensor
    R2_mult: Tensor
    R3_mult: Tensor
    C3: Tensor | None = None
    per_layer: Mapping[str, TaylorTerms] = field(default_factory=dict, compare=False)

    @property
    def second(self) -> Tensor:
        """The coefficient of ε²: the sum of the six second-order terms."""
        return self.R2 + self.R3 + self.R2_add + self.R3_add + self.R2_mult + self.R3_mult

    def __getitem__(self, name: str) -> Tensor:
        """One term by its name."""
        return getattr(self, name)

    def coefficients(self, order: int) -> list[Tensor]:
        """The coefficients of ε⁰ .. ε^order, `order` ≤ 3.

        Raises:
            ValueError: if `order` is not in 0..3, or 3 without `C3`.
        """
        known = [self.standard, self.R1, self.second] + ([] if self.C3 is None else [self.C3])
        if not 0 <= order < len(known):
            raise ValueError(
                f"order: expected 0 <= order <= {len(known) - 1}, got {order}. "
                "coefficients(problem, order) gives any order; terms(problem) with remainder=True gives C3."
            )
        return known[: order + 1]

    def polynomial(self, eps: float | Tensor, order: int = 2) -> Tensor:
        """The Taylor polynomial of degree `order` at `eps` (any shape).

        Raises:
            ValueError: for an order that is not known, see `coefficients`.
        """
        eps = torch.as_tensor(eps, dtype=self.standard.dtype, device=self.standard.device)
        return sum((c * eps**k for k, c in enumerate(self.coefficients(order))), torch.zeros_like(eps))

    def size(self, order: int) -> float:
        """Sum of the absolute values of the named terms behind the coefficient of ε^order."""
        names = (("standard",), ("R1",), SECOND_ORDER, ("C3",))[order]
        return sum(abs(float(getattr(self, name).detach().mean())) for name in names)

    def to_dict(self) -> dict[str, Any]:
        """The named terms as plain floats, or lists of one float for each sample."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "per_layer"}
        return {name: value.detach().tolist() for name, value in values.items() if value is not None}

    def __str__(self) -> str:
        """A table of the terms, or of their means over the samples, with the share of each in the second order."""
        values, total = {name: float(self[name].detach().mean()) for name in self.to_dict()}, self.size(2)
        lines = [f"{'term':10}{'value':>14}   share of the second order (absolute values)"]
        for name, value in values.items():
            share = f"{abs(value) / total:8.1%}" if name in SECOND_ORDER and total else ""
            lines.append(f"{name:10}{value:14.6g}   {share}".rstrip())
        return "\n".join(lines)

    def plot(self, ax=None):
        """Draw the second-order terms as bars; returns the matplotlib axes.

        Raises:
            ImportError: if matplotlib is not installed.
        """
        import matplotlib.pyplot as plt

        ax = plt.subplots(figsize=(5.0, 3.2), layout="constrained")[1] if ax is None else ax
        values = [float(self[name].detach().mean()) for name in SECOND_ORDER]
        ax.barh(SECOND_ORDER, values, color="#0072B2")
        ax.invert_yaxis()
        ax.axvline(0, color="0.3", lw=0.8)
        ax.set(xlabel=r"value, as part of the coefficient of $\varepsilon^2$", title="second-order terms")
        return ax

    @classmethod
    def average(cls, records: Sequence[tuple[str, TaylorTerms]]) -> TaylorTerms:
        """The mean of the records of several layers: the expectation over a uniformly drawn layer.

        Args:
            records: pairs of layer and record.
        """
        first = records[0][1]
        names = [f.name for f in fields(TaylorTerms) if f.name != "per_layer" and getattr(first, f.name) is not None]
        means = {name: torch.stack([getattr(r, name) for _, r in records]).mean(0) for name in names}
        return replace(first, **means, per_layer=dict(records))
