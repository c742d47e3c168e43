r"""Rademacher complexity of the classes that Mixup regularizes towards: computed, bounded, compared.

| class | bound | here |
|---|---|---|
| $W_\gamma$: $E A''(\theta\cdot x)\,\theta^\top\Sigma\theta \le \gamma$ | eq-rademacher-glm | `glm_bound` |
| $\theta^\top\Sigma_\sigma\theta \le \gamma$ on ReLU features | eq-rademacher-two-layer | `two_layer_bound` |
| ellipsoid $\theta^\top\Sigma\theta \le q$, itself | eq-empirical-rademacher | `ellipsoid_rademacher` |

The complexity of a class on data x_1..x_n is $E_s \sup_f \frac1n \sum_i s_i f(x_i)$ over independent signs s. For an
ellipsoid the supremum is $\frac{\sqrt q}{n} \lVert \Sigma^{\dagger/2} \sum_i s_i x_i \rVert$ (book:
eq-empirical-rademacher): the mean over all 2^n signs is exact for small n, an estimate with standard error otherwise.

Source of the bounds: arXiv 2010.04819, as stated in the notation of this package.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy import optimize
from torch import Tensor

from ..setting.results import Estimate
from .glm import MAX_RHO, GLMFamily, check_positive, glm_family, glm_radius

#: Largest n whose 2^n signs are enumerated.
MAX_ENUMERATED = 14
#: Lengths of each direction that `retentiveness` tries, and how many starts it refines.
LENGTHS, REFINED = 24, 4
#: Signs held at once.
BLOCK = 4096


def _check_features(features: Tensor) -> None:
    if features.ndim != 2 or not features.is_floating_point() or len(features) < 1:
        raise ValueError(f"features: expected floating-point (n, d), got {tuple(features.shape)}; flatten them first.")


def covariance(features: Tensor) -> Tensor:
    """Σ of the data about their mean, with 1/n, `(d, d)`.

    Args:
        features: `(n, d)`.

    Example:
        >>> covariance(torch.tensor([[1.0], [3.0]]))
        tensor([[1.]])
    """
    centred = features - features.mean(0)
    return centred.T @ centred / len(features)


def whitening(sigma: Tensor) -> Tensor:
    r"""Columns W with `W Wᵀ = Σ^†`, `(d, rank Σ)`; the null space of Σ is left out, as in the statements.

    Args:
        sigma: positive semi-definite, `(d, d)`.

    Example:
        >>> whitening(torch.tensor([[4.0, 0.0], [0.0, 0.0]])).abs()
        tensor([[0.5000],
                [0.0000]])
    """
    values, vectors = torch.linalg.eigh(sigma)
    keep = values > values.max() * len(values) * torch.finfo(values.dtype).eps * 8
    return vectors[:, keep] / values[keep].sqrt()


def _sign_blocks(n: int, method: str, samples: int, generator, like: Tensor) -> Iterator[Tensor]:
    """Blocks `(b, n)` of signs: all of them, or random ones."""
    if method == "exact":
        patterns = itertools.product((1.0, -1.0), repeat=n)
        while block := list(itertools.islice(patterns, BLOCK)):
            yield torch.tensor(block, dtype=like.dtype, device=like.device)
        return
    source = generator.device if generator is not None else like.device
    for start in range(0, samples, BLOCK):
        size = min(BLOCK, samples - start)
        bits = torch.randint(2, (size, n), generator=generator, device=source)
        yield bits.to(like.device, like.dtype) * 2 - 1


def _mean_over_signs(
    function: Callable[[Tensor], Tensor], like: Tensor, n: int, method: str, samples: int, generator
) -> Estimate:
    if method not in ("auto", "exact", "monte_carlo"):
        raise ValueError(f"method: expected 'auto', 'exact' or 'monte_carlo', got {method!r}.")
    if method == "auto":
        method = "exact" if n <= MAX_ENUMERATED else "monte_carlo"
    if (method == "exact" and n > MAX_ENUMERATED) or samples < 2:
        raise ValueError(
            f"Expected n <= {MAX_ENUMERATED} to enumerate 2^n signs and samples >= 2, got n = {n} and {samples}."
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
    method: str = "auto",
    samples: int = 20_000,
    generator: torch.Generator | None = None,
) -> Estimate:
    r"""Empirical Rademacher complexity of `{x → θ·x : θᵀΣθ ≤ q}` on the data (book: eq-empirical-rademacher).

    $$ \frac{\sqrt q}{n}\, E_s \Big\lVert \Sigma^{\dagger/2} \sum_i s_i x_i \Big\rVert $$

    θ is taken in the range of Σ: across its null space the class is unbounded.

    Args:
        features: the data x (or hidden features), `(n, d)`.
        radius: q > 0.
        sigma: Σ, `(d, d)`; `None` for the covariance of the data about their mean.
        method: `"exact"` enumerates all signs (n ≤ 14), `"monte_carlo"` draws them, `"auto"` chooses.
        samples: draws for Monte Carlo.
        generator: seeds Monte Carlo.

    Raises:
        ValueError: for data that are no floating-point matrix, q ≤ 0, or an unfit method.

    Example:
        >>> x = torch.tensor([[1.0], [-1.0]])
        >>> ellipsoid_rademacher(x, 1.0).value  # |s1 - s2| / 2 on average
        tensor(0.5000)
    """
    _check_features(features)
    check_positive(radius=radius)
    white = features @ whitening(covariance(features) if sigma is None else sigma)
    n = len(features)
    norms = lambda signs: radius**0.5 / n * (signs @ white).norm(dim=1)  # noqa: E731
    return _mean_over_signs(norms, features, n, method, samples, generator)


def ellipsoid_bound(features: Tensor, radius: float, *, sigma: Tensor | None = None) -> float:
    r"""Jensen's bound of `ellipsoid_rademacher`: `√q / n · (Σ_i x_iᵀ Σ^† x_i)^{1/2}`.

    With the data's own Σ it is half of `two_layer_bound`.

    Args:
        features: `(n, d)`.
        radius: q > 0.
        sigma: as `ellipsoid_rademacher`.

    Raises:
        ValueError: as `ellipsoid_rademacher`.

    Example:
        >>> round(ellipsoid_bound(torch.tensor([[1.0], [-1.0]]), 1.0), 4)
        0.7071
    """
    _check_features(features)
    check_positive(radius=radius)
    white = features @ whitening(covariance(features) if sigma is None else sigma)
    return float(radius**0.5 * white.norm() / len(features))


def glm_bound(gamma: float, rho: float, *, rank: int, num_samples: int, sharp: bool = False) -> float:
    r"""Bound of the Rademacher complexity of W_γ (book: eq-rademacher-glm).

    $$ \mathrm{Rad}(W_\gamma) \le \max\{(\gamma/\rho)^{1/4}, (\gamma/\rho)^{1/2}\} \sqrt{\mathrm{rank}\,\Sigma / n} $$

    Args:
        gamma: γ > 0.
        rho: ρ in (0, 1/2].
        rank: rank of Σ.
        num_samples: n.
        sharp: use the sharper radius of `glm_radius`.

    Raises:
        ValueError: as `glm_radius`, or for a rank or n below 1.

    Example:
        >>> glm_bound(1.0, 0.25, rank=4, num_samples=16)
        1.0
    """
    if rank < 1 or num_samples < 1:
        raise ValueError(f"Expected rank >= 1 and num_samples >= 1, got {rank} and {num_samples}.")
    return math.sqrt(glm_radius(gamma, rho, sharp=sharp) * rank / num_samples)


def two_layer_bound(features: Tensor, gamma: float) -> float:
    r"""Bound for the second layer of a two-layer ReLU network (book: eq-rademacher-two-layer).

    $$ \mathrm{Rad} \le 2 \sqrt{\gamma\,(\mathrm{rank}\,\Sigma_\sigma
       + \lVert \Sigma_\sigma^{\dagger/2} \mu_\sigma \rVert^2) / n} $$

    Args:
        features: hidden features `σ(Wx)`, `(n, d)`; their mean is μ_σ, their covariance Σ_σ.
        gamma: γ > 0.

    Raises:
        ValueError: for features that are no floating-point matrix, or γ ≤ 0.

    Example:
        >>> round(two_layer_bound(torch.tensor([[0.0], [2.0]]), 1.0), 6)  # rank 1, mean 1, variance 1
        2.0
    """
    _check_features(features)
    check_positive(gamma=gamma)
    white = whitening(covariance(features))
    mean = features.mean(0) @ white
    return 2 * math.sqrt(gamma * (white.shape[1] + float(mean @ mean)) / len(features))


@dataclass(frozen=True)
class Retentiveness:
    """Outcome of `retentiveness`.

    Attributes:
        lower: a ρ that is proved for the data (0 where nothing is proved).
        upper: smallest ratio found, at most 1/2: the true ρ is not above it. An estimate, since a search may miss.
        worst: the v at which it was found, `(d,)`.
        evaluations: vectors tried.
    """

    lower: float
    upper: float
    worst: Tensor
    evaluations: int


def retention_ratio(v: Tensor, x: Tensor, *, family: str | GLMFamily = "logistic") -> Tensor:
    """`(E A''(x·v))² / min{1, E(v·x)²}` over the data, `(*batch)`; ρ is its infimum over v, at most 1/2.

    Args:
        v: `(*batch, d)`, not orthogonal to all data.
        x: data, `(n, d)`.
        family: generalised linear model.

    Example:
        >>> retention_ratio(torch.tensor([0.5]), torch.tensor([[1.0], [-1.0]]), family="square")
        tensor(4.)
    """
    scores = v @ x.T
    return glm_family(family).variance(scores).mean(-1) ** 2 / (scores**2).mean(-1).clamp_max(1.0)


def _proved(x: Tensor, family: GLMFamily, max_norm: float | None) -> float:
    """A lower bound of the retention ratio over all v with ‖v‖ ≤ max_norm.

    Logistic: A'' falls with |u| and |x·v| ≤ ‖x‖ ‖v‖, so the ratio is at least that of collinear data with the norms of
    x, which falls with ‖v‖. Square: A'' = 1. Poisson, centred: E e^u ≥ e^{E u} = 1.
    """
    if family.name == "square" or (family.name == "poisson" and float(x.mean(0).norm()) <= 1e-6 * float(x.norm())):
        return MAX_RHO
    if family.name != "logistic" or max_norm is None:
        return 0.0
    largest = float(torch.linalg.eigvalsh(x.T @ x / len(x)).max())
    value = float(family.variance(max_norm * x.norm(dim=1)).mean()) ** 2
    return min(MAX_RHO, value / min(1.0, max_norm**2 * largest))


def retentiveness(
    x: Tensor,
    *,
    max_norm: float | None,
    family: str | GLMFamily = "logistic",
    num_directions: int = 256,
    generator: torch.Generator | None = None,
) -> Retentiveness:
    r"""ρ of the ρ-retentive property on data: a proved lower and a searched upper estimate (book: eq-rademacher-glm).

    x is ρ-retentive if `(E A''(x·v))² ≥ ρ min{1, E(v·x)²}` for all v ≠ 0. For the logistic family and finite data A''
    dies out as ‖v‖ grows, and no ρ > 0 holds for *all* v: the statement needs a bounded Θ, `max_norm`.

    Principal axes, data and random directions are tried at many lengths, the best refined by L-BFGS. The expectation
    is that of the data, not of the distribution behind them.

    Args:
        x: data, `(n, d)`.
        max_norm: largest ‖v‖ considered; `None` only where A'' does not die out.
        family: generalised linear model.
        num_directions: random directions.
        generator: seeds the random directions.

    Raises:
        ValueError: for unfit data, or a family that needs `max_norm`.

    Example:
        >>> retentiveness(torch.tensor([[1.0], [-1.0]]), max_norm=None, family="square").lower
        0.5
    """
    _check_features(x)
    family = glm_family(family)
    if max_norm is None and family.name == "logistic":
        raise ValueError("max_norm: A'' dies out, no rho > 0 holds for all v; pass the largest norm of theta allowed.")
    check_positive(max_norm=1.0 if max_norm is None else max_norm)
    data = x.detach().double()
    axes = torch.linalg.svd(data, full_matrices=False)[2]
    source = generator.device if generator is not None else x.device
    random = torch.randn((num_directions, x.shape[1]), generator=generator, dtype=torch.float64, device=source)
    directions = torch.cat([axes, data, random.to(data.device)])
    directions = directions[((directions @ data.T) ** 2).mean(1) > 0]
    if not len(directions):
        raise ValueError("x: expected data that are not all zero.")
    directions = torch.cat([directions, -directions]) / directions.norm(dim=1).repeat(2).unsqueeze(1)
    reach = max_norm if max_norm is not None else 10 / float(data.norm(dim=1).max())
    lengths = reach * torch.logspace(-3, 0, LENGTHS, dtype=torch.float64, device=data.device)
    tried = (lengths[:, None, None] * directions).reshape(-1, x.shape[1])
    ratios = retention_ratio(tried, data, family=family)
    evaluations = len(tried)

    def inside(z: Tensor) -> Tensor:
        return z if max_norm is None else z * (max_norm / z.norm().clamp_min(1e-300)).clamp_max(1.0)

    def objective(z: np.ndarray) -> tuple[float, np.ndarray]:
        point = torch.from_numpy(z).to(data.device).requires_grad_()
        with torch.enable_grad():
            value = retention_ratio(inside(point), data, family=family).log()
            (gradient,) = torch.autograd.grad(value, point)
        return float(value.detach()), gradient.cpu().numpy()

    found = [tried[ratios.argmin()]]
    for start in tried[ratios.argsort()[:REFINED]]:
        result = optimize.minimize(
            objective, start.cpu().numpy(), jac=True, method="L-BFGS-B", options={"maxiter": 100}
        )
        evaluations += result.nfev
        found.append(inside(torch.from_numpy(result.x).to(data.device)))
    final = retention_ratio(torch.stack(found), data, family=family).nan_to_num(math.inf)
    best = int(final.argmin())
    return Retentiveness(
        lower=_proved(data, family, max_norm),
        upper=min(MAX_RHO, float(final[best])),
        worst=found[best].to(x),
        evaluations=evaluations,
    )


@dataclass(frozen=True)
class RademacherComparison:
    """A bound beside the complexity of the ellipsoid that it is about, and Jensen's bound of it, the link between."""

    empirical: Estimate
    jensen: float
    bound: float

    @property
    def ratio(self) -> float:
        """Tightness, bound / empirical ≥ 1."""
        return self.bound / float(self.empirical.value)

    @property
    def holds(self) -> bool:
        """Whether empirical ≤ Jensen ≤ bound, with 5 standard errors and rounding allowed."""
        slack = 5 * float(self.empirical.stderr) + 1e-6 * self.bound
        return float(self.empirical.value) <= self.jensen + slack and self.jensen <= self.bound + 1e-6 * self.bound


def compare_glm_bound(x: Tensor, gamma: float, rho: float, *, sharp: bool = False, **options) -> RademacherComparison:
    """`glm_bound` against the complexity of the ellipsoid that contains W_γ (book: eq-rademacher-glm).

    Args:
        x: data, `(n, d)`; they are centred here, as the statement asks.
        gamma: γ.
        rho: ρ.
        sharp: as `glm_radius`.
        **options: `method`, `samples`, `generator` of `ellipsoid_rademacher`.

    Raises:
        ValueError: as `glm_radius` and `ellipsoid_rademacher`.
    """
    centred, radius = x - x.mean(0), glm_radius(gamma, rho, sharp=sharp)
    rank = whitening(covariance(x)).shape[1]
    return RademacherComparison(
        empirical=ellipsoid_rademacher(centred, radius, **options),
        jensen=ellipsoid_bound(centred, radius),
        bound=glm_bound(gamma, rho, rank=rank, num_samples=len(x), sharp=sharp),
    )


def compare_two_layer_bound(features: Tensor, gamma: float, **options) -> RademacherComparison:
    """`two_layer_bound` against the complexity of its class (book: eq-rademacher-two-layer).

    Args:
        features: hidden features, `(n, d)`.
        gamma: γ.
        **options: `method`, `samples`, `generator` of `ellipsoid_rademacher`.

    Raises:
        ValueError: as `ellipsoid_rademacher`.
    """
    return RademacherComparison(
        empirical=ellipsoid_rademacher(features, gamma, **options),
        jensen=ellipsoid_bound(features, gamma),
        bound=two_layer_bound(features, gamma),
    )
