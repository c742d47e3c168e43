r"""The Rademacher complexity of the classes of models that Mixup prefers: its value, and bounds of it.

| class | bound | here |
|---|---|---|
| $W_\gamma$: $E A''(\theta\cdot x)\,\theta^\top\Sigma\theta \le \gamma$ | eq-rademacher-glm | `glm_bound` |
| $\theta^\top\Sigma_\sigma\theta \le \gamma$ on ReLU features | eq-rademacher-two-layer | `two_layer_bound` |
| ellipsoid $\theta^\top\Sigma\theta \le q$ | its value, eq-empirical-rademacher | `ellipsoid_rademacher` |

The complexity of a class on data x_1..x_n is $E_s \sup_f \frac1n \sum_i s_i f(x_i)$ over independent signs s. For an
ellipsoid the supremum is $\frac{\sqrt q}{n} \lVert \Sigma^{\dagger/2} \sum_i s_i x_i \rVert$ (book:
eq-empirical-rademacher). For small n the mean over all 2^n signs is exact; otherwise it is an estimate with a standard
error.

Source of the bounds: arXiv 2010.04819, in the notation of this package.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ..setting.checks import one_of
from ..setting.random_numbers import home_of
from ..setting.results import Estimate
from .glm import check_features, check_positive, glm_radius

Method = Literal["auto", "exact", "monte_carlo"]
#: Largest n for which all 2^n signs are enumerated.
MAX_ENUMERATED = 14
#: Number of sign patterns in memory at once.
BLOCK = 4096


def covariance(features: Tensor) -> Tensor:
    """The covariance Σ of data about their mean, with the factor 1/n, `(d, d)`.

    Args:
        features: data or hidden features, `(n, d)`.

    Example:
        >>> covariance(torch.tensor([[1.0], [3.0]]))
        tensor([[1.]])
    """
    centered = features - features.mean(0)
    return centered.T @ centered / len(features)


def whitening(sigma: Tensor) -> Tensor:
    r"""A matrix W with `W Wᵀ = Σ^†`, `(d, rank Σ)`; it leaves out the null space of Σ, as the bounds do.

    Args:
        sigma: positive semi-definite matrix Σ, `(d, d)`.

    Example:
        >>> whitening(torch.tensor([[4.0, 0.0], [0.0, 0.0]])).abs()
        tensor([[0.5000],
                [0.0000]])
    """
    values, vectors = torch.linalg.eigh(sigma)
    keep = values > values.max() * len(values) * torch.finfo(values.dtype).eps * 8
    return vectors[:, keep] / values[keep].sqrt()


def _sign_blocks(n: int, method: Method, samples: int, generator, like: Tensor) -> Iterator[Tensor]:
    """Blocks `(b, n)` of sign patterns: all of them, or random ones."""
    if method == "exact":
        patterns = itertools.product((1.0, -1.0), repeat=n)
        while block := list(itertools.islice(patterns, BLOCK)):
            yield torch.tensor(block, dtype=like.dtype, device=like.device)
        return
    source = home_of(generator, like.device)
    for start in range(0, samples, BLOCK):
        size = min(BLOCK, samples - start)
        bits = torch.randint(2, (size, n), generator=generator, device=source)
        yield bits.to(like.device, like.dtype) * 2 - 1


def _mean_over_signs(
    function: Callable[[Tensor], Tensor], like: Tensor, n: int, method: Method, samples: int, generator
) -> Estimate:
    one_of("method", method, get_args(Method))
    if method == "auto":
        method = "exact" if n <= MAX_ENUMERATED else "monte_carlo"
    if (method == "exact" and n > MAX_ENUMERATED) or samples < 2:
        raise ValueError(
            f"method and samples: expected n <= {MAX_ENUMERATED} to enumerate all signs, and samples >= 2; got n = {n} "
            f"and {samples} samples."
        )
    values = torch.cat([function(signs) for signs in _sign_blocks(n, method, samples, generator, like)])
    exact = method == "exact"
    stderr = torch.zeros_like(values[0]) if exact else values.std() / len(values) ** 0.5
    words = f"all 2^{n} signs" if exact else f"Monte Carlo, {samples} draws of the signs"
    return Estimate(values.mean(), stderr, len(values), words)


def ellipsoid_rademacher(
    features: Tensor,
    radius: float,
    *,
    sigma: Tensor | None = None,
    method: Method = "auto",
    samples: int = 20_000,
    generator: torch.Generator | None = None,
) -> Estimate:
    r"""Empirical Rademacher complexity of `{x → θ·x : θᵀΣθ ≤ q}` on the data (book: eq-empirical-rademacher).

    $$ \frac{\sqrt q}{n}\, E_s \Big\lVert \Sigma^{\dagger/2} \sum_i s_i x_i \Big\rVert $$

    θ lies in the range of Σ, since the class is unbounded in the directions of the null space.

    Args:
        features: data x or hidden features, `(n, d)`.
        radius: number q > 0.
        sigma: matrix Σ, `(d, d)`; `None` for the covariance of the data about their mean.
        method: `"exact"` enumerates all signs, for n ≤ 14; `"monte_carlo"` draws them; `"auto"` enumerates if it can.
        samples: number of draws for Monte Carlo.
        generator: random generator of Monte Carlo; the global one if `None`.

    Raises:
        ValueError: for data that are no floating-point matrix, q ≤ 0, and a method that does not fit.

    Example:
        >>> x = torch.tensor([[1.0], [-1.0]])
        >>> ellipsoid_rademacher(x, 1.0).value  # |s1 - s2| / 2 on average
        tensor(0.5000)
    """
    check_features(features)
    check_positive(radius=radius)
    white = features @ whitening(covariance(features) if sigma is None else sigma)
    n = len(features)
    norms = lambda signs: radius**0.5 / n * (signs @ white).norm(dim=1)  # noqa: E731
    return _mean_over_signs(norms, features, n, method, samples, generator)


def ellipsoid_bound(features: Tensor, radius: float, *, sigma: Tensor | None = None) -> float:
    r"""Jensen's bound of `ellipsoid_rademacher`, `√q / n · (Σ_i x_iᵀ Σ^† x_i)^{1/2}`.

    If Σ is the covariance of the data, it is half of `two_layer_bound`.

    Args:
        features: data x or hidden features, `(n, d)`.
        radius: number q > 0.
        sigma: matrix Σ, `(d, d)`; `None` for the covariance of the data about their mean.

    Raises:
        ValueError: for data that are no floating-point matrix, and q ≤ 0.

    Example:
        >>> round(ellipsoid_bound(torch.tensor([[1.0], [-1.0]]), 1.0), 4)
        0.7071
    """
    check_features(features)
    check_positive(radius=radius)
    white = features @ whitening(covariance(features) if sigma is None else sigma)
    return float(radius**0.5 * white.norm() / len(features))


def glm_bound(gamma: float, rho: float, *, rank: int, num_samples: int, sharp: bool = False) -> float:
    r"""The bound of the Rademacher complexity of W_γ (book: eq-rademacher-glm).

    $$ \mathrm{Rad}(W_\gamma) \le \max\{(\gamma/\rho)^{1/4}, (\gamma/\rho)^{1/2}\} \sqrt{\mathrm{rank}\,\Sigma / n} $$

    Args:
        gamma: bound γ > 0 that defines W_γ.
        rho: retentiveness ρ in (0, 1/2].
        rank: rank of Σ.
        num_samples: number n of samples.
        sharp: True for the smaller ellipsoid of `glm_radius`, False for that of the paper.

    Raises:
        ValueError: for γ ≤ 0, ρ outside (0, 1/2], and a rank or n below 1.

    Example:
        >>> glm_bound(1.0, 0.25, rank=4, num_samples=16)
        1.0
    """
    if rank < 1 or num_samples < 1:
        raise ValueError(f"rank and num_samples: expected >= 1, got {rank} and {num_samples}.")
    return math.sqrt(glm_radius(gamma, rho, sharp=sharp) * rank / num_samples)


def two_layer_bound(features: Tensor, gamma: float) -> float:
    r"""The bound for the second layer of a two-layer ReLU network (book: eq-rademacher-two-layer).

    $$ \mathrm{Rad} \le 2 \sqrt{\gamma\,(\mathrm{rank}\,\Sigma_\sigma
       + \lVert \Sigma_\sigma^{\dagger/2} \mu_\sigma \rVert^2) / n} $$

    Args:
        features: hidden features `σ(Wx)`, `(n, d)`, with mean μ_σ and covariance Σ_σ.
        gamma: bound γ > 0 that defines the class.

    Raises:
        ValueError: for features that are no floating-point matrix, and γ ≤ 0.

    Example:
        >>> round(two_layer_bound(torch.tensor([[0.0], [2.0]]), 1.0), 6)  # rank 1, mean 1, variance 1
        2.0
    """
    check_features(features)
    check_positive(gamma=gamma)
    white = whitening(covariance(features))
    mean = features.mean(0) @ white
    return 2 * math.sqrt(gamma * (white.shape[1] + float(mean @ mean)) / len(features))


@dataclass(frozen=True)
class RademacherComparison:
    """The Rademacher complexity of an ellipsoid, Jensen's bound of it, and the bound of the paper.

    Attributes:
        empirical: the complexity.
        jensen: Jensen's bound, see `ellipsoid_bound`.
        bound: the bound of the paper.
    """

    empirical: Estimate
    jensen: float
    bound: float

    @property
    def ratio(self) -> float:
        """The bound divided by the complexity, ≥ 1."""
        return self.bound / float(self.empirical.value)

    @property
    def holds(self) -> bool:
        """True if complexity ≤ Jensen's bound ≤ bound, up to 5 standard errors and rounding."""
        slack = 5 * float(self.empirical.stderr) + 1e-6 * self.bound
        return float(self.empirical.value) <= self.jensen + slack and self.jensen <= self.bound + 1e-6 * self.bound


def compare_glm_bound(
    x: Tensor,
    gamma: float,
    rho: float,
    *,
    sharp: bool = False,
    method: Method = "auto",
    samples: int = 20_000,
    generator: torch.Generator | None = None,
) -> RademacherComparison:
    """Compare `glm_bound` with the complexity of the ellipsoid that contains W_γ (book: eq-rademacher-glm).

    Args:
        x: data, `(n, d)`; the function centers them, as the bound assumes.
        gamma: bound γ > 0 that defines W_γ.
        rho: retentiveness ρ in (0, 1/2].
        sharp: True for the smaller ellipsoid of `glm_radius`, False for that of the paper.
        method: how the complexity is computed, see `ellipsoid_rademacher`.
        samples: sign vectors of Monte Carlo.
        generator: random generator of Monte Carlo; the global one if `None`.

    Raises:
        ValueError: for everything that `glm_radius` or `ellipsoid_rademacher` refuses.
    """
    centered, radius = x - x.mean(0), glm_radius(gamma, rho, sharp=sharp)
    rank = whitening(covariance(x)).shape[1]
    return RademacherComparison(
        empirical=ellipsoid_rademacher(centered, radius, method=method, samples=samples, generator=generator),
        jensen=ellipsoid_bound(centered, radius),
        bound=glm_bound(gamma, rho, rank=rank, num_samples=len(x), sharp=sharp),
    )


def compare_two_layer_bound(
    features: Tensor,
    gamma: float,
    *,
    method: Method = "auto",
    samples: int = 20_000,
    generator: torch.Generator | None = None,
) -> RademacherComparison:
    """Compare `two_layer_bound` with the complexity of its class (book: eq-rademacher-two-layer).

    Args:
        features: hidden features, `(n, d)`.
        gamma: bound γ > 0 that defines the class.
        method: how the complexity is computed, see `ellipsoid_rademacher`.
        samples: sign vectors of Monte Carlo.
        generator: random generator of Monte Carlo; the global one if `None`.

    Raises:
        ValueError: for everything that `ellipsoid_rademacher` refuses.
    """
    return RademacherComparison(
        empirical=ellipsoid_rademacher(features, gamma, method=method, samples=samples, generator=generator),
        jensen=ellipsoid_bound(features, gamma),
        bound=two_layer_bound(features, gamma),
    )
