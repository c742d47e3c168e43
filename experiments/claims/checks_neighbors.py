"""Quick computations on what Mixup training converges to: points on a line, and linear models."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import nfm_theory as nt
from nfm_theory.generalization.mixup_optimal import alternating_line, empirical_report

from ..record.comparison import paired_difference
from .check import FAILS, LIMITS, Check
from .checks_numeric import seeded

#: Resolution, and values of α, the last of which is λ = 1/2.
RADIUS, ALPHAS = 0.1, (0.5, 1.0, 4.0, 16.0, 32.0, 128.0, math.inf)
#: Samples, dimensions, and data sets of the linear models; shift of each class from zero; ridge penalty.
POINTS, DIMENSIONS, SETS, SHIFT, RIDGE = 40, (10, 100, 400), 10, 3.0, 1e-4
#: Cosine from which two directions count as one.
SAME = 0.99


def alternating() -> Check:
    """Does the Mixup-optimal classifier err on the alternating line where λ is close to 1/2, and nowhere else?"""
    x, y = alternating_line()
    wrong = {a: bool(empirical_report(x, y, radius=RADIUS, alpha=a).wrong.any()) for a in ALPHAS}
    apart = torch.cat([x, torch.tensor([[0.0], [1.0], [0.0]], dtype=x.dtype)], 1)  # the middle point leaves the line
    others = any(bool(empirical_report(apart, y, radius=RADIUS, alpha=a).wrong.any()) for a in ALPHAS)
    right, bad = [a for a in ALPHAS if not wrong[a]], [a for a in ALPHAS if wrong[a]]
    good = bool(right and bad) and max(right) < min(bad) and not others
    names = ["λ = 1/2" if math.isinf(a) else f"{a:g}" for a in bad]
    detail = (
        f"points 0, 1, 2 of classes 0, 1, 0 at resolution {RADIUS:g}: the middle one is wrong for α = "
        f"{', '.join(names)}, right up to α = {max(right, default=0):g}; off the line all three are "
        f"{'not always ' if others else ''}right"
    )
    return Check.of(good, detail)


def logistic_direction(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """The direction of logistic regression without a bias on weighted samples with soft labels, by Newton's method.

    Args:
        x: samples, `(n, d)`.
        y: labels in [0, 1], `(n,)`.
        weights: weights with sum 1, `(n,)`.

    Returns:
        The minimizer with a small ridge penalty, scaled to length 1, `(d,)`.
    """
    theta = torch.zeros(x.shape[1], dtype=x.dtype)
    eye = RIDGE * torch.eye(len(theta), dtype=x.dtype)

    def value(theta: Tensor) -> float:
        z = x @ theta
        return float(weights @ (torch.nn.functional.softplus(z) - y * z) + RIDGE / 2 * theta @ theta)

    for _ in range(60):
        p = torch.sigmoid(x @ theta)
        slope = x.T @ (weights * (p - y)) + RIDGE * theta
        step = torch.linalg.solve((x.T * (weights * p * (1 - p))) @ x + eye, slope)
        size = 1.0
        while value(theta - size * step) > value(theta) - 0.1 * size * float(slope @ step) and size > 1e-6:
            size /= 2
        theta = theta - size * step
        if float(slope.norm()) < 1e-10:
            break
    return theta / theta.norm()


def cosine(dimension: int, seed: int) -> float:
    """The cosine of the angle between plain and Mixup logistic regression, for two normal classes."""
    y = (torch.arange(POINTS) % 2).double()
    x = torch.randn(POINTS, dimension, generator=seeded(seed), dtype=torch.float64)
    x[:, 0] += SHIFT * (2 * y - 1)
    left, sizes, _ = torch.linalg.svd(x, full_matrices=False)
    x = left * sizes  # coordinates in the span of the samples, which has the solution
    lam, weight = (torch.from_numpy(v) for v in nt.MixingLaw(1.0).nodes(8, unmixed=False))
    i, r, j = (v.flatten() for v in torch.meshgrid(*map(torch.arange, (POINTS, POINTS, len(lam))), indexing="ij"))
    mixed, labels = (lam[j].reshape(-1, *[1] * (v.ndim - 1)) * (v[i] - v[r]) + v[r] for v in (x, y))
    plain = logistic_direction(x, y, torch.full((POINTS,), 1 / POINTS, dtype=x.dtype))
    return float(plain @ logistic_direction(mixed, labels, weight[j] / POINTS**2))


def linear_direction() -> Check:
    """Do plain training and Mixup give a linear classifier the same direction, the more so the larger the dimension?"""
    found = {d: {seed: cosine(d, seed) for seed in range(SETS)} for d in DIMENSIONS}
    means = {d: sum(values.values()) / SETS for d, values in found.items()}
    rise = paired_difference(found[DIMENSIONS[-1]], found[DIMENSIONS[0]])
    words = ", ".join(f"d = {d}: {mean:.4f}" for d, mean in means.items())
    low, high = rise.interval or (rise.difference, rise.difference)
    detail = (
        f"two normal classes, n = {POINTS}, {SETS} data sets, mean cosine {words}; from the smallest to the largest "
        f"dimension it rises by {rise.difference:.3f} ({low:.3f} to {high:.3f})"
    )
    if not (rise.clear and rise.difference > 0 and means[DIMENSIONS[-1]] >= SAME):
        return Check(FAILS, detail)
    return Check.of(True, detail) if min(means.values()) >= SAME else Check(LIMITS, detail)
