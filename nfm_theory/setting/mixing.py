r"""The law of the mixing weight λ: exact moments, quadrature nodes, samples.

| symbol | here |
|---|---|
| $\lambda \sim \mathrm{Beta}(\alpha, \beta)$ | `MixingLaw(alpha, beta)`, `unmixed=False` |
| $\lambda \sim \tilde D$, the law after label unmixing (book: eq-unmixing) | `MixingLaw(alpha, beta)`, `unmixed=True` |
| $m_j = \mathbb E_{\tilde D}(1-\lambda)^j$ | `MixingLaw.moment(j)` |
| λ equal to one number, as in midpoint Mixup | `FixedMixing(lam)` |
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, prod
from numbers import Real

import numpy as np
import torch
from torch import Tensor

from .random_numbers import uniform
from .rules import RuleKind, beta_nodes


def beta_moment(a: float, b: float, j: int) -> float:
    """The exact moment E X^j of X ~ Beta(a, b)."""
    return prod((a + k) / (a + b + k) for k in range(j))


@dataclass(frozen=True)
class MixingLaw:
    r"""Beta(α, β) for the mixing weight λ (the weight of the first sample), and the law after label unmixing.

    $$ \tilde D = \tfrac{\alpha}{\alpha+\beta}\,\mathrm{Beta}(\alpha+1, \beta)
       + \tfrac{\beta}{\alpha+\beta}\,\mathrm{Beta}(\beta+1, \alpha) \qquad \text{(book: eq-unmixing)} $$

    Args:
        alpha: first Beta parameter, ≥ 0. 0 switches mixing off: λ = 1, and every sample stays as it is.
        beta: second Beta parameter; `None` takes the value of `alpha`.

    Raises:
        ValueError: if a parameter is negative or not finite.
    """

    alpha: float = 1.0
    beta: float | None = None

    def __post_init__(self):
        object.__setattr__(self, "beta", self.alpha if self.beta is None else self.beta)
        for name in ("alpha", "beta"):
            value = getattr(self, name)
            if not (isinstance(value, Real) and isfinite(value) and float(value) >= 0):
                raise ValueError(f"{name}: expected a finite number >= 0 (0: no mixing), got {value!r}.")

    @property
    def parameters(self) -> tuple[float, float]:
        """α and β."""
        return self.alpha, self.alpha if self.beta is None else self.beta

    @property
    def mixes(self) -> bool:
        """True if two different samples are ever combined."""
        return min(self.parameters) > 0

    def _parts(self, unmixed: bool) -> list[tuple[float, float, float]]:
        """The mixture of Beta laws, as (weight, a, b)."""
        a, b = self.parameters
        if not unmixed:
            return [(1.0, a, b)]
        if a == b:
            return [(1.0, a + 1, b)]
        return [(a / (a + b), a + 1, b), (b / (a + b), b + 1, a)]

    def moment(self, j: int, *, unmixed: bool = True) -> float:
        """The exact moment `E (1 - lam)^j`, called m_j in the theory.

        Example:
            >>> MixingLaw(1.0).moment(1), MixingLaw(1.0).moment(2)
            (0.3333333333333333, 0.16666666666666666)
        """
        if not self.mixes:
            return float(j == 0)
        return sum(w * beta_moment(b, a, j) for w, a, b in self._parts(unmixed))

    def nodes(self, num: int, *, unmixed: bool = True, kind: RuleKind = "gauss") -> tuple[np.ndarray, np.ndarray]:
        """Nodes λ and their weights. `num` Gauss-Jacobi nodes are exact for polynomials in λ of degree `2 num - 1`.

        Args:
            num: number of nodes for each Beta law, or of panels, see `rules`.
            unmixed: True for the law after label unmixing.
            kind: kind of the rule.
        """
        if not self.mixes:
            return np.ones(1), np.ones(1)
        rules = [(w, *beta_nodes(num, a, b, kind)) for w, a, b in self._parts(unmixed)]
        return np.concatenate([lam for _, lam, _ in rules]), np.concatenate([w * weight for w, _, weight in rules])

    def sample(
        self, shape: tuple[int, ...], *, unmixed: bool = True, generator=None, dtype=None, device=None
    ) -> Tensor:
        """Random λ by inversion of the distribution function, because torch's Beta sampler takes no generator."""
        u = uniform((2, *shape), generator, device).cpu().numpy()
        lam = np.ones(shape)
        if self.mixes:
            from scipy.special import betaincinv

            parts = self._parts(unmixed)
            a, b = (np.where(u[1] < parts[0][0], parts[0][k], parts[-1][k]) for k in (1, 2))
            lam = betaincinv(a, b, u[0])
        return torch.as_tensor(lam).to(dtype or torch.get_default_dtype()).to(device)


@dataclass(frozen=True)
class FixedMixing:
    r"""A mixing weight λ that always has the same value; 1/2 is midpoint Mixup.

    $$ \tilde D = \lambda\,\delta_\lambda + (1-\lambda)\,\delta_{1-\lambda} $$

    At λ = 1/2 the law before and after label unmixing is the same.

    Source: M. Chidambaram et al., *Provably learning diverse features in multi-view data with Midpoint Mixup*.

    Args:
        lam: λ, the weight of the first sample, in [0, 1].

    Raises:
        ValueError: for λ outside [0, 1].

    Example:
        >>> FixedMixing(0.5).moment(2)
        0.25
    """

    lam: float = 0.5

    def __post_init__(self):
        if not (isinstance(self.lam, Real) and 0 <= self.lam <= 1):
            raise ValueError(f"lam: expected 0 <= lam <= 1, got {self.lam!r}.")

    @property
    def mixes(self) -> bool:
        """True if two different samples are ever combined."""
        return 0 < self.lam < 1

    def _atoms(self, unmixed: bool) -> tuple[np.ndarray, np.ndarray]:
        """The values of λ with their probabilities."""
        if not unmixed:
            return np.array([self.lam]), np.array([1.0])
        if self.lam == 0.5 or not self.mixes:
            return np.array([max(self.lam, 1 - self.lam)]), np.array([1.0])
        return np.array([self.lam, 1 - self.lam]), np.array([self.lam, 1 - self.lam])

    def moment(self, j: int, *, unmixed: bool = True) -> float:
        """The exact moment `E (1 - lam)^j`."""
        lam, weight = self._atoms(unmixed)
        return float(weight @ (1 - lam) ** j)

    def nodes(self, num: int, *, unmixed: bool = True, kind: RuleKind = "gauss") -> tuple[np.ndarray, np.ndarray]:
        """The values of λ and their probabilities; `num` and `kind` play no part."""
        return self._atoms(unmixed)

    def sample(
        self, shape: tuple[int, ...], *, unmixed: bool = True, generator=None, dtype=None, device=None
    ) -> Tensor:
        """Random values of λ."""
        atoms, weights = self._atoms(unmixed)
        u = uniform(shape, generator, device)
        first, second = torch.as_tensor(atoms, dtype=u.dtype, device=u.device)[[0, -1]]
        lam = torch.where(u < float(weights[0]), first, second)
        return lam.to(dtype or torch.get_default_dtype()).to(device)
