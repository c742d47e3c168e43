r"""The law of one noise tensor ξ: exact moments, quadrature nodes, samples.

| symbol | here |
|---|---|
| $\xi$ | `NoiseLaw` |
| $\mathbb E\xi_j^2,\ \mathbb E\xi_j^4,\ \mathbb E\xi_j^2\xi_k^2$ | `NoiseLaw.second`, `.fourth`, `.mixed_fourth` |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .checks import one_of
from .mixing import beta_moment
from .random_numbers import at_least_single, home_of, uniform
from .rules import Rule, RuleKind, beta_nodes, normal_nodes, sign_nodes, uniform_nodes

NoiseName = Literal["normal", "uniform", "rademacher", "released"]
#: The released code of the papers multiplies both noises by one Beta(2, 5) number per call.
SCALE_ALPHA, SCALE_BETA = 2.0, 5.0


def _sample_uniform(shape: tuple[int, ...], **place) -> Tensor:
    return torch.rand(shape, **place).mul_(2).sub_(1)


def _sample_signs(shape: tuple[int, ...], **place) -> Tensor:
    z = _sample_uniform(shape, **place)
    return torch.where(z < 0, -1.0, 1.0).to(z)  # the sign of 0 would be 0


@dataclass(frozen=True)
class BaseLaw:
    """The law of one element of the noise, with zero mean and zero third moment.

    Attributes:
        second: E z².
        fourth: E z⁴.
        nodes: a number n and a kind of rule to nodes and weights, see `rules`; n Gauss nodes are exact for polynomials
            of degree 2n - 1.
        sample: a shape, and `generator`, `dtype` and `device`, to independent elements.
    """

    second: float
    fourth: float
    nodes: Callable[[int, RuleKind], Rule]
    sample: Callable[..., Tensor]


#: The base laws by name. A new one goes here, into `NoiseName`, and into `symbolic.moments`.
BASES: dict[str, BaseLaw] = {
    "normal": BaseLaw(1.0, 3.0, normal_nodes, torch.randn),
    "uniform": BaseLaw(1 / 3, 1 / 5, uniform_nodes, _sample_uniform),
    "rademacher": BaseLaw(1.0, 1.0, sign_nodes, _sample_signs),
}


@dataclass(frozen=True)
class NoiseLaw:
    r"""The law of a noise tensor `b * mask * z`, elementwise, with zero mean and zero third moments.

    Args:
        base: law of the independent elements z: `"normal"` N(0, 1), `"uniform"` on (-1, 1), or `"rademacher"` ±1.
        beta_scaled: multiply all elements by one random number b ~ Beta(2, 5), as the released code does.
        sparsity: probability with which an element is set to 0 (`sparse_level` in the released code), in [0, 1).

    Raises:
        ValueError: for an unknown base law, or a sparsity outside [0, 1).
    """

    base: str = "normal"
    beta_scaled: bool = False
    sparsity: float = 0.0

    def __post_init__(self):
        one_of("base", self.base, BASES)
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity: expected 0 <= sparsity < 1, got {self.sparsity!r}.")

    def _scale_moment(self, j: int) -> float:
        return beta_moment(SCALE_ALPHA, SCALE_BETA, j) if self.beta_scaled else 1.0

    @cached_property
    def second(self) -> float:
        """The exact E ξ_j² (3/28 for the additive noise of the released code, 1/28 for the multiplicative noise)."""
        return self._scale_moment(2) * (1 - self.sparsity) * BASES[self.base].second

    @cached_property
    def fourth(self) -> float:
        """The exact E ξ_j⁴."""
        return self._scale_moment(4) * (1 - self.sparsity) * BASES[self.base].fourth

    @cached_property
    def mixed_fourth(self) -> float:
        """The exact E ξ_j² ξ_k² for j ≠ k; it differs from `second**2` when the elements are dependent."""
        return self._scale_moment(4) * ((1 - self.sparsity) * BASES[self.base].second) ** 2

    def nodes(self, num: int, kind: RuleKind = "gauss") -> Rule:
        """A rule for one element given b = 1: `num` Gauss nodes (two for Rademacher), and 0 if elements may vanish."""
        z, w = BASES[self.base].nodes(num, kind)
        w = w / w.sum()
        if self.sparsity:
            z, w = np.append(z, 0.0), np.append(w * (1 - self.sparsity), self.sparsity)
        return z, w

    def scale_nodes(self, num: int, kind: RuleKind = "gauss") -> Rule:
        """A rule for the shared number b; the single node 1 where there is none."""
        return beta_nodes(num, SCALE_ALPHA, SCALE_BETA, kind) if self.beta_scaled else (np.ones(1), np.ones(1))

    def sample(self, shape: tuple[int, ...], *, shared: int = 1, generator=None, dtype=None, device=None) -> Tensor:
        """Random ξ with `shape[0]` rows; each group of `shared` consecutive rows has one number b.

        `shared=1` draws b for every row, `shared=batch` draws it once per batch as the released code does. Half
        precision is drawn in float32 and then rounded, since it has too few random numbers for the law.
        """
        dtype = dtype or torch.get_default_dtype()
        source = home_of(generator, device)
        options = {"generator": generator, "dtype": at_least_single(dtype), "device": source}
        z = BASES[self.base].sample(shape, **options)
        if self.sparsity:
            z.mul_(torch.rand(shape, **options) >= self.sparsity)
        if self.beta_scaled:
            from scipy.special import betaincinv

            u = uniform((-(-shape[0] // shared),), generator, device).cpu().numpy()
            b = torch.as_tensor(betaincinv(SCALE_ALPHA, SCALE_BETA, u)).to(z.dtype).to(z.device)
            b = b if len(b) == 1 else b.repeat_interleave(shared)[: shape[0]]
            z.mul_(b.reshape(-1, *[1] * (len(shape) - 1)))
        return z.to(device, dtype)


def released_noise(sparsity: float = 0.0) -> tuple[NoiseLaw, NoiseLaw]:
    """Additive and multiplicative noise of the papers' released code: normal and uniform, scaled by Beta(2, 5).

    Args:
        sparsity: `sparse_level` of the NoisyMix code (0.65 in its commands; 0 in NFM's).

    Example:
        >>> add, mult = released_noise()
        >>> round(add.second * 28, 12), round(mult.second * 28, 12)
        (3.0, 1.0)
    """
    return NoiseLaw("normal", True, sparsity), NoiseLaw("uniform", True, sparsity)


def noise_pair(noise: NoiseName | NoiseLaw | tuple[NoiseLaw, NoiseLaw]) -> tuple[NoiseLaw, NoiseLaw]:
    """The `noise=` option as the pair (additive law, multiplicative law).

    Args:
        noise: `"normal"`, `"uniform"`, `"rademacher"`, `"released"`, one `NoiseLaw` for both, or a pair of them.

    Raises:
        TypeError: for anything else.
        ValueError: for an unknown name.
    """
    if noise == "released":
        return released_noise()
    if isinstance(noise, str):
        noise = NoiseLaw(one_of("noise", noise, (*BASES, "released")))
    pair = (noise, noise) if isinstance(noise, NoiseLaw) else noise
    if isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(law, NoiseLaw) for law in pair):
        return pair
    raise TypeError(f"noise: expected a name, a NoiseLaw or a pair (additive, multiplicative) of them, got {noise!r}.")
