r"""The retentiveness of data, an assumption of the Rademacher bound of a generalized linear model.

x is ρ-retentive if $(E A''(x\cdot v))^2 \ge \rho \min\{1, E(v\cdot x)^2\}$ for all v ≠ 0 (book: eq-rademacher-glm).

Source: arXiv 2010.04819, in the notation of this package.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy
import torch
from torch import Tensor

from ..setting.random_numbers import home_of
from .glm import MAX_RHO, Family, GLMFamily, check_features, check_positive, glm_family

#: Number of lengths of each direction that `retentiveness` tries, and number of vectors that it refines.
LENGTHS, REFINED = 24, 4


@dataclass(frozen=True)
class Retentiveness:
    """Bounds of the retentiveness ρ of data, from `retentiveness`.

    Attributes:
        lower: a lower bound of ρ that is proved for the data; 0 if nothing is proved.
        upper: smallest ratio that the search found, and at most 1/2. The true ρ is not larger, but may be smaller.
        worst: the vector v at which the ratio was found, `(d,)`.
        evaluations: number of vectors that were tried.
    """

    lower: float
    upper: float
    worst: Tensor
    evaluations: int


def retention_ratio(v: Tensor, x: Tensor, *, family: Family | GLMFamily = "logistic") -> Tensor:
    """The ratio `(E A''(x·v))² / min{1, E(v·x)²}` over the data, `(*batch)`.

    The retentiveness ρ is its infimum over v, or 1/2 if that is smaller.

    Args:
        v: vectors, `(*batch, d)`; none of them is orthogonal to all data.
        x: data, `(n, d)`.
        family: `"logistic"`, `"square"`, `"poisson"` or a `GLMFamily`.

    Example:
        >>> retention_ratio(torch.tensor([0.5]), torch.tensor([[1.0], [-1.0]]), family="square")
        tensor(4.)
    """
    scores = v @ x.T
    return glm_family(family).variance(scores).mean(-1) ** 2 / (scores**2).mean(-1).clamp_max(1.0)


def _proved(x: Tensor, family: GLMFamily, max_norm: float | None) -> float:
    """A lower bound of the retention ratio over all v with ‖v‖ ≤ max_norm.

    For the logistic family A'' decreases in |u|, and |x·v| ≤ ‖x‖ ‖v‖. So the ratio is at least that of collinear data
    with the norms of x, which decreases in ‖v‖. For the square family A'' = 1. For the Poisson family and centered data
    E e^u ≥ e^{E u} = 1.
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
    family: Family | GLMFamily = "logistic",
    num_directions: int = 256,
    generator: torch.Generator | None = None,
) -> Retentiveness:
    r"""Enclose the retentiveness ρ of data: a proved lower bound, and a search from above (book: eq-rademacher-glm).

    x is ρ-retentive if `(E A''(x·v))² ≥ ρ min{1, E(v·x)²}` for all v ≠ 0. For the logistic family and finite data A''
    tends to 0 as ‖v‖ grows, so that no ρ > 0 holds for *all* v. The norm must then be bounded, by `max_norm`.

    The search tries the principal axes, the data and random directions at many lengths, and refines the best vectors by
    L-BFGS. The expectation is the mean over the data, not over the distribution that they come from.

    Args:
        x: data, `(n, d)`.
        max_norm: largest ‖v‖ that is considered; `None` for no limit, if A'' does not tend to 0.
        family: `"logistic"`, `"square"`, `"poisson"` or a `GLMFamily`.
        num_directions: number of random directions.
        generator: random generator of the directions; the global one if `None`.

    Raises:
        ValueError: for data that do not fit, and a family that needs `max_norm`.

    Example:
        >>> retentiveness(torch.tensor([[1.0], [-1.0]]), max_norm=None, family="square").lower
        0.5
    """
    check_features(x)
    family = glm_family(family)
    if max_norm is None and family.name == "logistic":
        raise ValueError(
            "max_norm: no rho > 0 holds for all v, since A'' tends to 0; pass the largest norm that theta may have."
        )
    check_positive(max_norm=1.0 if max_norm is None else max_norm)
    data = x.detach().double()
    axes = torch.linalg.svd(data, full_matrices=False)[2]
    source = home_of(generator, x.device)
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
        result = scipy.optimize.minimize(
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
