"""What the functions return: frozen records of numbers with the evidence that belongs to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """A value with its standard error.

    Attributes:
        value: the estimate; 0-dim, or `(num_eps,)` when several ε were asked for at once.
        stderr: its standard error, same shape; zero when the value carries no sampling error.
        samples: number of evaluations of the head behind it.
        method: how it was computed, in words.
        converged: whether a requested standard error was reached; `None` if none was requested.
    """

    value: Tensor
    stderr: Tensor
    samples: int
    method: str = ""
    converged: bool | None = None


@dataclass(frozen=True)
class Interval:
    """A closed interval `[lower, upper]`, elementwise."""

    lower: Tensor
    upper: Tensor

    def contains(self, value: Tensor, *, slack: float | Tensor = 0.0) -> Tensor:
        """Elementwise whether `value` lies in the interval widened by `slack` on both sides."""
        return (value >= self.lower - slack) & (value <= self.upper + slack)


#: Names of the second-order terms, in the order in which they are printed.
SECOND_ORDER = ("R2", "R3", "R2_add", "R3_add", "R2_mult", "R3_mult")


@dataclass(frozen=True)
class TaylorTerms:
    r"""The expansion `L_NFM(ε) = standard + ε R1 + ε² (R2 + R3 + ...) + ε³ C3 + O(ε⁴)` (book: eq-expansion).

    All fields are 0-dim tensors, already averaged over the samples and multiplied by the moments of the laws, and
    differentiable in the parameters of the model. `per_layer` holds the records that were averaged when several
    layers were asked for. `C3` is `None` if the predicted remainder was not asked for.
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
        return sum(getattr(self, name) for name in SECOND_ORDER)

    def coefficients(self, order: int) -> list[Tensor]:
        """The coefficients of ε⁰ .. ε^order, `order` ≤ 3.

        Raises:
            ValueError: if `order` is not in 0..3, or 3 without `C3`.
        """
        known = [self.standard, self.R1, self.second] + ([] if self.C3 is None else [self.C3])
        if not 0 <= order < len(known):
            raise ValueError(
                f"order: expected 0 <= order <= {len(known) - 1}, got {order}. "
                "expansion_coefficients(...) gives any order; taylor_terms(..., remainder=True) gives C3."
            )
        return known[: order + 1]

    def polynomial(self, eps: float | Tensor, order: int = 2) -> Tensor:
        """The Taylor polynomial of degree `order` at `eps` (any shape).

        Raises:
            ValueError: as `coefficients`.
        """
        eps = torch.as_tensor(eps, dtype=self.standard.dtype, device=self.standard.device)
        return sum(c * eps**k for k, c in enumerate(self.coefficients(order)))

    def size(self, order: int) -> float:
        """Sum of the absolute values of the named terms behind the coefficient of ε^order."""
        names = (("standard",), ("R1",), SECOND_ORDER, ("C3",))[order]
        return sum(abs(float(getattr(self, name))) for name in names)

    def to_dict(self) -> dict[str, float]:
        """The named terms as plain floats."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "per_layer"}
        return {name: float(value.detach()) for name, value in values.items() if value is not None}

    @staticmethod
    def average(records: Mapping[str, TaylorTerms]) -> TaylorTerms:
        """The mean of the records of several layers: the expectation over a uniformly drawn layer."""
        first = next(iter(records.values()))
        names = [f.name for f in fields(TaylorTerms) if f.name != "per_layer" and getattr(first, f.name) is not None]
        means = {name: torch.stack([getattr(r, name) for r in records.values()]).mean() for name in names}
        return replace(first, **means, per_layer=dict(records))
