"""Partners by optimal transport between random batches, as in k-mixup.

Source: K. Greenewald et al., *k-Mixup regularization for deep learning via optimal transport*.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .random_numbers import home_of


def squared_distances(points: Tensor) -> np.ndarray:
    """Squared Euclidean distances between all samples, `(n, n)`, in float64.

    Args:
        points: samples, `(n, *feature)`.

    Raises:
        TypeError: if the samples are no floating-point numbers, such as indices of words, which have no distance.
    """
    if not points.is_floating_point():
        raise TypeError(
            f"points: expected floating-point samples, got {points.dtype}, which have no distance; match their "
            "embeddings, or leave the matching out."
        )
    flat = points.detach().flatten(1).double()
    return torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist").square().cpu().numpy()


def matched(cost: np.ndarray, first: Sequence[int] | np.ndarray, second: Sequence[int] | np.ndarray) -> np.ndarray:
    """The partners in `second` of the samples `first`, so that the sum of their costs is smallest.

    Args:
        cost: cost of each pair of samples, `(n, n)`.
        first: indices of one batch, `(k,)`.
        second: indices of the other batch, `(k,)`.
    """
    from scipy.optimize import linear_sum_assignment

    rows, others = np.asarray(first), np.asarray(second)
    _, columns = linear_sum_assignment(cost[np.ix_(rows, others)])
    return others[columns]


def matched_partners(cost: np.ndarray, k: int, generator: torch.Generator | None = None) -> np.ndarray:
    """The partner of each sample if two random orders of all samples are cut into batches of k, which are matched.

    The i-th batch of one order is matched with the i-th batch of the other. If k does not divide n, the last two
    batches are smaller. Every sample is the partner of exactly one sample.

    Args:
        cost: cost of each pair of samples, `(n, n)`.
        k: size of the batches.
        generator: random generator; the global one if `None`.

    Returns:
        Index of the partner of each sample, `(n,)`.

    Example:
        >>> import numpy as np
        >>> matched_partners(np.array([[0.0, 1.0], [1.0, 0.0]]), 2).tolist()
        [0, 1]
    """
    n = len(cost)
    source = home_of(generator, "cpu")
    orders = torch.rand((2, n), generator=generator, device=source).argsort(1).cpu().numpy()
    index = np.empty(n, dtype=np.int64)
    for start in range(0, n, k):
        first, second = orders[:, start : start + k]
        index[first] = matched(cost, first, second)
    return index


def rematched(x: object, count: int, k: int, generator: torch.Generator | None = None) -> Tensor:
    """The partners of the first `count` samples of a batch, matched in batches of k, `(count,)`.

    Args:
        x: the inputs, `(n, *input)`.
        count: number of samples.
        k: size of the batches.
        generator: random generator; the global one if `None`.
    """
    if not isinstance(x, Tensor):
        raise TypeError("x: expected one tensor with matching, which compares inputs; leave matching at 1.")
    return torch.from_numpy(matched_partners(squared_distances(x[:count]), k, generator))
