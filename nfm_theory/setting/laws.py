r"""The laws of the mixing weight and of the noise: exact moments, quadrature nodes, samples.

| symbol | here |
|---|---|
| $\lambda \sim \mathrm{Beta}(\alpha, \beta)$ | `MixingLaw(alpha, beta)`, `unmixed=False` |
| $\lambda \sim \tilde D$, the law after label unmixing | `MixingLaw(alpha, beta)`, `unmixed=True` |
| $m_j = \mathbb E_{\tilde D}(1-\lambda)^j$ | `MixingLaw.moment(j)` |
| $\xi$ | `NoiseLaw` |
| $\mathbb E\xi_j^2,\ \mathbb E\xi_j^4,\ \mathbb E\xi_j^2\xi_k^2$ | `NoiseLaw.second`, `.fourth`, `.mixed_fourth` |
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
import torch
from scipy import special
from torch import Tensor

#: The released code multiplies both noises by one Beta(2, 5) scalar per call.
SCALE_ALPHA, SCALE_BETA = 2.0, 5.0
_BASE_MOMENTS = {"normal": (1.0, 3.0), "uniform": (1 / 3, 1 / 5), "rademacher": (1.0, 1.0)}


def _uniform(shape: tuple[int, ...], generator: torch.Generator | None, device) -> Tensor:
    """Uniform(0, 1) in float64, drawn where the generator lives: a CPU seed gives the same numbers on any device."""
    source = generator.device if generator is not None else device
    return torch.rand(shape, generator=generator, dtype=torch.float64, device=source)


def _beta_moment(a: float, b: float, j: int) -> float:
    """E X^j for X ~ Beta(a, b)."""
    return prod((a + k) / (a + b + k) for k in range(j))


def _jacobi_nodes(num: int, a: float, b: float) -> tuple[np.ndarray, np.ndarray]:
    """Gauss nodes and weights (summing to 1) of Beta(a, b) on (0, 1)."""
    nodes, weights = special.roots_jacobi(num, b - 1, a - 1)
    return (nodes + 1) / 2, weights / weights.sum()


@dataclass(frozen=True)
class MixingLaw:
    r"""Beta(α, β) of the mixing weight λ (weight of the first sample), and its unmixed companion.

    $$ \tilde D = \tfrac{\alpha}{\alpha+\beta}\,\mathrm{Beta}(\alpha+1, \beta)
       + \tfrac{\beta}{\alpha+\beta}\,\mathrm{Beta}(\beta+1, \alpha) \qquad \text{(book: eq-unmixing)} $$

    Args:
        alpha: first Beta parameter, ≥ 0. 0 switches mixing off: λ = 1, every sample stays as it is.
        beta: second Beta parameter; `None` means `alpha`.

    Raises:
        ValueError: if a parameter is negative or not finite.
    """

    alpha: float = 1.0
    beta: float | None = None

    def __post_init__(self):
        """Fill in β = α and refuse what is no Beta law."""
        object.__setattr__(self, "beta", self.alpha if self.beta is None else self.beta)
        for name in ("alpha", "beta"):
            value = getattr(self, name)
            if not (np.isfinite(value) and value >= 0):
                raise ValueError(f"{name}: expected a finite number >= 0 (0: no mixing), got {value!r}.")

    @property
    def mixes(self) -> bool:
        """Whether two different samples are ever combined."""
        return self.alpha > 0 and self.beta > 0

    def _parts(self, unmixed: bool) -> list[tuple[float, float, float]]:
        """The Beta mixture as (weight, a, b)."""
        a, b = self.alpha, self.beta
        if not unmixed:
            return [(1.0, a, b)]
        if a == b:
            return [(1.0, a + 1, b)]
        return [(a / (a + b), a + 1, b), (b / (a + b), b + 1, a)]

    def moment(self, j: int, *, unmixed: bool = True) -> float:
        """Exact `E (1 - lam)^j`; `m_j` of the theory.

        Example:
            >>> MixingLaw(1.0).moment(1), MixingLaw(1.0).moment(2)
            (0.3333333333333333, 0.16666666666666666)
        """
        if not self.mixes:
            return float(j == 0)
        return sum(w * _beta_moment(b, a, j) for w, a, b in self._parts(unmixed))

    def nodes(self, num: int, *, unmixed: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Gauss-Jacobi nodes λ and weights: exact for polynomials in λ of degree `2 num - 1`."""
        if not self.mixes:
            return np.ones(1), np.ones(1)
        rules = [(w, *_jacobi_nodes(num, a, b)) for w, a, b in self._parts(unmixed)]
        return np.concatenate([lam for _, lam, _ in rules]), np.concatenate([w * weight for w, _, weight in rules])

    def sample(
        self, shape: tuple[int, ...], *, unmixed: bool = True, generator=None, dtype=None, device=None
    ) -> Tensor:
        """Draws of λ by inversion: torch's own Beta sampler takes no generator."""
        u = _uniform((2, *shape), generator, device).cpu().numpy()
        lam = np.ones(shape)
        if self.mixes:
            parts = self._parts(unmixed)
            a, b = (np.where(u[1] < parts[0][0], parts[0][k], parts[-1][k]) for k in (1, 2))
            lam = special.betaincinv(a, b, u[0])
        return torch.as_tensor(lam).to(device=device, dtype=dtype or torch.get_default_dtype())


@dataclass(frozen=True)
class NoiseLaw:
    r"""Law of one noise tensor: `b * mask * z`, elementwise, with zero mean and zero third moments.

    Args:
        base: law of the independent elements z: `"normal"` N(0, 1), `"uniform"` on (-1, 1), `"rademacher"` ±1.
        beta_scaled: multiply by one scalar b ~ Beta(2, 5), shared by all elements, as the released code does.
        sparsity: probability with which an element is set to 0 (the released code's `sparse_level`), in [0, 1).

    Raises:
        ValueError: for an unknown base or a sparsity outside [0, 1).
    """

    base: str = "normal"
    beta_scaled: bool = False
    sparsity: float = 0.0

    def __post_init__(self):
        """Refuse unknown laws."""
        if self.base not in _BASE_MOMENTS:
            raise ValueError(f"noise law: expected one of {sorted(_BASE_MOMENTS)} or 'released', got {self.base!r}.")
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity: expected 0 <= sparsity < 1, got {self.sparsity!r}.")

    def _scale_moment(self, j: int) -> float:
        return _beta_moment(SCALE_ALPHA, SCALE_BETA, j) if self.beta_scaled else 1.0

    @cached_property
    def second(self) -> float:
        """E ξ_j², exact (3/28 for the released additive noise, 1/28 for the multiplicative)."""
        return self._scale_moment(2) * (1 - self.sparsity) * _BASE_MOMENTS[self.base][0]

    @cached_property
    def fourth(self) -> float:
        """E ξ_j⁴, exact."""
        return self._scale_moment(4) * (1 - self.sparsity) * _BASE_MOMENTS[self.base][1]

    @cached_property
    def mixed_fourth(self) -> float:
        """E ξ_j² ξ_k² for j ≠ k, exact; differs from `second**2` when the elements are dependent."""
        return self._scale_moment(4) * ((1 - self.sparsity) * _BASE_MOMENTS[self.base][0]) ** 2

    def nodes(self, num: int) -> tuple[np.ndarray, np.ndarray]:
        """One element's law given b = 1: Gauss rule of `num` nodes (two atoms for Rademacher), 0 added if sparse."""
        if self.base == "normal":
            z, w = special.roots_hermitenorm(num)
        elif self.base == "uniform":
            z, w = special.roots_legendre(num)
        else:
            z, w = np.array([-1.0, 1.0]), np.array([0.5, 0.5])
        w = w / w.sum()
        if self.sparsity:
            z, w = np.append(z, 0.0), np.append(w * (1 - self.sparsity), self.sparsity)
        return z, w

    def scale_nodes(self, num: int) -> tuple[np.ndarray, np.ndarray]:
        """Gauss-Jacobi rule of the shared scalar b (a single node 1 where there is none)."""
        return _jacobi_nodes(num, SCALE_ALPHA, SCALE_BETA) if self.beta_scaled else (np.ones(1), np.ones(1))

    def sample(self, shape: tuple[int, ...], *, shared: int = 1, generator=None, dtype=None, device=None) -> Tensor:
        """Draws of ξ with leading dimension `shape[0]`; consecutive groups of `shared` rows have one scalar b.

        `shared=1` draws b for each row, `shared=batch` draws it once per batch as the released code does.
        """
        dtype = dtype or torch.get_default_dtype()
        source = generator.device if generator is not None else device
        if self.base == "normal":
            z = torch.randn(shape, generator=generator, dtype=dtype, device=source)
        else:
            z = torch.rand(shape, generator=generator, dtype=dtype, device=source).mul_(2).sub_(1)
            z = z.sign_() if self.base == "rademacher" else z
        if self.sparsity:
            z.mul_(torch.rand(shape, generator=generator, dtype=dtype, device=source) >= self.sparsity)
        if self.beta_scaled:
            u = _uniform((-(-shape[0] // shared),), generator, device).cpu().numpy()
            b = torch.as_tensor(special.betaincinv(SCALE_ALPHA, SCALE_BETA, u)).to(z)
            b = b if len(b) == 1 else b.repeat_interleave(shared)[: shape[0]]
            z.mul_(b.reshape(-1, *[1] * (len(shape) - 1)))
        return z.to(device)


def released_noise(*, sparsity: float = 0.0) -> tuple[NoiseLaw, NoiseLaw]:
    """Additive and multiplicative noise of the papers' released code: Beta(2,5)-scaled normal and uniform.

    Args:
        sparsity: the NoisyMix code's `sparse_level` (0.65 in its commands; 0 in NFM's).

    Example:
        >>> add, mult = released_noise()
        >>> round(add.second * 28, 12), round(mult.second * 28, 12)
        (3.0, 1.0)
    """
    return NoiseLaw("normal", True, sparsity), NoiseLaw("uniform", True, sparsity)


def noise_laws(noise: str | NoiseLaw | tuple[NoiseLaw, NoiseLaw]) -> tuple[NoiseLaw, NoiseLaw]:
    """The `noise=` option as (additive law, multiplicative law).

    Args:
        noise: `"normal"`, `"uniform"`, `"rademacher"`, `"released"`, one `NoiseLaw` for both, or a pair of them.

    Raises:
        TypeError: for anything else.
        ValueError: for an unknown name.
    """
    if noise == "released":
        return released_noise()
    if isinstance(noise, str):
        noise = NoiseLaw(noise)
    pair = (noise, noise) if isinstance(noise, NoiseLaw) else noise
    if isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(law, NoiseLaw) for law in pair):
        return pair
    raise TypeError(f"noise: expected a name, a NoiseLaw or a pair (additive, multiplicative) of them, got {noise!r}.")
