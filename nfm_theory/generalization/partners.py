r"""Relatives of Mixup: other laws of the partner or of λ in the same expansion (book: eq-expansion).

The partner r of sample i is drawn with probability `P(r|i)`, an `(n, n)` matrix with rows that sum to 1. For Mixup all
its entries are 1/n.

| relative | what changes | here |
|---|---|---|
| k-mixup | partner by optimal transport between two batches | `Problem(..., partners=k_mixup_weights(x, k).value)` |
| DP-Mix self | partner among the augmentations of the same image | `Problem(..., partners=self_weights(groups))` |
| midpoint Mixup | λ = 1/2 | `Law(lam=0.5)` |

With v = g_r - g_i the terms are those of Mixup with `E_r` over P: `R1 = m1 E a·J v`, `R2 = ½ m2 E (J v)ᵀF(J v)`,
`R3 = ½ m2 E a·∇²f[v, v]`, `C3 = m3/6 E D³ℓ[v, v, v]`. They depend on P through the moments of v alone. If P is
symmetric, as those above are, the loss with mixed labels equals the unmixed loss (book: eq-unmixing). `terms`, `loss`
and `verify` take such problems like all others.

Sources: K. Greenewald et al., *k-Mixup regularization for deep learning via optimal transport*; W. Bao et al., *DP-Mix:
Mixup-based data augmentation for differentially private learning*; M. Chidambaram et al., *Provably learning diverse
features in multi-view data with Midpoint Mixup* (ICML 2023).
"""

from __future__ import annotations

import itertools
from math import comb
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..setting.checks import one_of
from ..setting.matching import matched, matched_partners, squared_distances
from ..setting.results import Estimate

#: Largest number of pairs of batches that k-mixup enumerates.
MAX_BATCH_PAIRS = 40_000


def self_weights(groups: Tensor) -> Tensor:
    """The law of the partner in DP-Mix self: uniform among the views of the same image, `(n, n)`.

    A view can be its own partner.

    Args:
        groups: number of the image of each view, `(n,)`; the samples of the problem are the views.

    Raises:
        ValueError: if `groups` is not a vector.

    Example:
        >>> self_weights(torch.tensor([0, 0, 1]))
        tensor([[0.5000, 0.5000, 0.0000],
                [0.5000, 0.5000, 0.0000],
                [0.0000, 0.0000, 1.0000]], dtype=torch.float64)
    """
    if groups.ndim != 1:
        raise ValueError(f"groups: expected (n,), got {tuple(groups.shape)}.")
    same = (groups[:, None] == groups).double()
    return same / same.sum(1, keepdim=True)


def k_mixup_weights(
    points: Tensor,
    k: int,
    *,
    method: Literal["auto", "exact", "monte_carlo"] = "auto",
    sweeps: int = 2000,
    generator: torch.Generator | None = None,
) -> Estimate:
    """The law `P(r|i)` of the partner in k-mixup, `(n, n)`: two random batches of k samples are matched.

    The batches are matched by optimal transport in squared distance. They are independent, and each has k different
    samples. So k = 1 is Mixup, and k = n matches every sample with itself. P is symmetric and doubly stochastic; if the
    matching is not unique, the two orders of the batches share the probability.

    Args:
        points: inputs or features between which distances are measured, `(n, *feature)`.
        k: size of the batches, 1 ≤ k ≤ n.
        method: `"exact"` enumerates all pairs of batches. `"monte_carlo"` cuts pairs of random permutations into
            batches, and k must divide n. `"auto"` enumerates up to 40,000 pairs.
        sweeps: number of pairs of permutations for Monte Carlo.
        generator: random generator of Monte Carlo; the global one if `None`.

    Returns:
        `Estimate` of shape `(n, n)`; `stderr` is zero if all pairs are enumerated.

    Raises:
        ValueError: for k outside 1..n and an unknown method; for Monte Carlo also for a k that does not divide n.

    Example:
        >>> k_mixup_weights(torch.tensor([[0.0], [1.0]]), 1).value
        tensor([[0.5000, 0.5000],
                [0.5000, 0.5000]], dtype=torch.float64)
    """
    n = len(points)
    if not 1 <= k <= n:
        raise ValueError(f"k: expected 1 <= k <= n = {n}, got {k}.")
    one_of("method", method, ("auto", "exact", "monte_carlo"))
    cost = squared_distances(points)
    if method == "auto":
        method = "exact" if comb(n, k) ** 2 <= MAX_BATCH_PAIRS else "monte_carlo"
    if method == "exact":
        batches = list(itertools.combinations(range(n), k))
        law = np.zeros((n, n))
        for first, second in itertools.product(batches, repeat=2):
            law[list(first), matched(cost, first, second)] += n / k / len(batches) ** 2
        value = torch.from_numpy((law + law.T) / 2).to(points.device)
        return Estimate(value, torch.zeros_like(value), len(batches) ** 2, "all pairs of batches")
    if n % k or sweeps < 2:
        raise ValueError(
            f"k and sweeps: expected k to divide n and sweeps >= 2 for Monte Carlo, got k = {k}, n = {n} and {sweeps}."
        )
    mean, square = np.zeros((n, n)), np.zeros((n, n))
    for _ in range(sweeps):
        one = np.zeros((n, n))
        one[np.arange(n), matched_partners(cost, k, generator)] = 1
        one = (one + one.T) / 2
        mean, square = mean + one / sweeps, square + one**2 / sweeps
    stderr = np.sqrt(np.maximum(square - mean**2, 0) / (sweeps - 1))
    value, error = (torch.from_numpy(a).to(points.device) for a in (mean, stderr))
    return Estimate(value, error, sweeps * (n // k), f"Monte Carlo, {sweeps} pairs of permutations")


def direction_moments(features: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `Σ_r P(r|i) v` and second moment `Σ_r P(r|i) v vᵀ` of the directions v = g_r - g_i of every sample.

    Args:
        features: features g, `(n, *feature)`.
        weights: law `P(r|i)` of the partner, `(n, n)`.

    Returns:
        Means `(n, d)` and second moments `(n, d, d)` of the flattened directions.

    Example:
        >>> g = torch.tensor([[0.0], [2.0]])
        >>> [m.flatten().tolist() for m in direction_moments(g, torch.full((2, 2), 0.5))]
        [[1.0, -1.0], [2.0, 2.0]]
    """
    flat, weights = features.flatten(1), weights.to(features)
    mean = weights @ flat
    cross = mean.unsqueeze(2) * flat.unsqueeze(1)
    second = torch.einsum("ir,rd,re->ide", weights, flat, flat) - cross - cross.mT
    return mean - flat, second + flat.unsqueeze(2) * flat.unsqueeze(1)
