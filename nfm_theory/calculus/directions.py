r"""Few directions that represent a second moment: `Σ_s w_s w_sᵀ` equal to the moment of data or noise.

Directions are rows of a matrix `(m, w)`, in whatever coordinates: sums over them of quadratic forms depend on
`Σ_s w_s w_sᵀ` alone, so that they may be rotated, merged and compressed without changing a result.
"""

from __future__ import annotations

import torch
from torch import Tensor


def coordinate_basis(h: Tensor) -> Tensor:
    """The unit vectors of one sample's feature space, `(d, *feature)`."""
    d = h[0].numel()
    return torch.eye(d, dtype=h.dtype, device=h.device).reshape(d, *h.shape[1:])


def centred_features(features: Tensor) -> Tensor:
    r"""Directions, one fewer than samples, whose second moment is the covariance of the features, `(n - 1, *feature)`.

    They are the features in an orthonormal basis of the vectors that sum to zero (Helmert), over √n. A single sample
    has one direction, zero.
    """
    n = len(features)
    if n == 1:
        return torch.zeros_like(features)
    k = torch.arange(1, n, dtype=features.dtype, device=features.device)
    helmert = torch.ones(n - 1, n, dtype=features.dtype, device=features.device).tril() / (k * (k + 1)).sqrt()[:, None]
    helmert[k.long() - 1, k.long()] = -(k / (k + 1)).sqrt()
    return torch.tensordot(helmert, features, dims=1) / n**0.5


def second_moment_directions(features: Tensor) -> Tensor:
    r"""Directions w_s with `Σ_s w_s w_sᵀ = (1/n) Σ_r (g_r - ḡ)(g_r - ḡ)ᵀ`: at most min(n - 1, d) of them.

    They are the scaled eigen-directions of the covariance, the largest first. Gradients flow through the features
    exactly: the rotation `U` that finds them is held fixed, which changes nothing because `Σ_s` is invariant under any
    fixed rotation and the directions left out are zero to first order.

    Args:
        features: `(n, *feature)`.

    Returns:
        `(rank, *feature)`.
    """
    centred = (features - features.mean(0)).flatten(1) / len(features) ** 0.5
    left, values, _ = torch.linalg.svd(centred.detach(), full_matrices=False)
    keep = values > values.max() * max(centred.shape) * torch.finfo(values.dtype).eps
    return (left[:, keep].T @ centred).reshape(-1, *features.shape[1:])


def compressed(directions: Tensor) -> Tensor:
    """As many directions as coordinates at most, with the same second moment: `(m, w)` to `(min(m, w), w)`.

    The rotation is held fixed for gradients, as in `second_moment_directions`.

    Example:
        >>> v = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], dtype=torch.float64)
        >>> w = compressed(v)
        >>> w.shape, torch.allclose(w.T @ w, v.T @ v)
        (torch.Size([2, 2]), True)
    """
    if len(directions) <= directions.shape[1]:
        return directions
    rotation, _ = torch.linalg.qr(directions.detach())
    return rotation.T @ directions


def joint_directions(data: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
    r"""One set of directions for two moments: `Σ_s w_s w_sᵀ` is that of `noise`, `Σ_s c_s w_s w_sᵀ` that of `data`.

    The two moments are diagonalised together. The span of `noise` must contain that of `data`.

    Args:
        data: `(m, w)`.
        noise: `(k, w)`; `None` stands for the unit vectors.

    Returns:
        directions `(s, w)` with s ≤ w, and the weights c `(s,)`.
    """
    moment = (data.T @ data).double()
    if noise is None:
        weights, basis = torch.linalg.eigh(moment)
        return basis.T.to(data), weights.clamp_min(0).to(data)
    sizes, basis = torch.linalg.eigh((noise.T @ noise).double())
    keep = sizes > sizes.max() * len(sizes) * torch.finfo(data.dtype).eps
    root, basis = sizes[keep].sqrt(), basis[:, keep]
    white = (basis / root).T @ moment @ (basis / root)
    weights, rotation = torch.linalg.eigh(white)
    return (rotation.T @ (basis * root).T).to(data), weights.clamp_min(0).to(data)
