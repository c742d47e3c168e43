r"""Small sets of directions w_s whose second moment `Σ_s w_s w_sᵀ` is that of the data or of the noise.

A sum of a quadratic form over directions depends on their second moment alone. The directions may therefore be
rotated, merged and compressed without a change of the result. They are the rows of a matrix `(m, w)`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def coordinate_basis(h: Tensor) -> Tensor:
    """The unit vectors of the feature space of `h` `(n, *feature)`; shape `(d, *feature)`."""
    d = h[0].numel()
    return torch.eye(d, dtype=h.dtype, device=h.device).reshape(d, *h.shape[1:])


def unit_vectors(h: Tensor, coordinates: Tensor) -> Tensor:
    """Some of the unit vectors, flat: `(m, d)` for m coordinates of the feature space of `h` `(n, *feature)`."""
    units = h.new_zeros(len(coordinates), h[0].numel())
    units[torch.arange(len(coordinates)), coordinates] = 1.0
    return units


def centered_features(features: Tensor) -> Tensor:
    r"""Directions `(n - 1, *feature)` whose second moment is the covariance of the features.

    They are the features, divided by √n, in Helmert's orthonormal basis of the vectors that sum to zero. A single
    sample has the single direction 0.
    """
    n = len(features)
    if n == 1:
        return torch.zeros_like(features)
    k = torch.arange(1, n, dtype=features.dtype, device=features.device)
    helmert = torch.ones(n - 1, n, dtype=features.dtype, device=features.device).tril() / (k * (k + 1)).sqrt()[:, None]
    helmert[k.long() - 1, k.long()] = -(k / (k + 1)).sqrt()
    return torch.tensordot(helmert, features, dims=1) / n**0.5


def second_moment_directions(features: Tensor) -> Tensor:
    r"""At most min(n - 1, d) directions w_s with `Σ_s w_s w_sᵀ = (1/n) Σ_r (g_r - ḡ)(g_r - ḡ)ᵀ`, `(rank, *feature)`.

    They are the scaled eigenvectors of the covariance, the largest first. Gradients with respect to the features are
    exact although the rotation is held constant: the sum does not change under a constant rotation, and the directions
    that are left out are zero to first order.
    """
    centered = (features - features.mean(0)).flatten(1) / len(features) ** 0.5
    left, values, _ = torch.linalg.svd(centered.detach(), full_matrices=False)
    keep = values > values.max() * max(centered.shape) * torch.finfo(values.dtype).eps
    return (left[:, keep].T @ centered).reshape(-1, *features.shape[1:])


def compressed(directions: Tensor) -> Tensor:
    """Directions with the same second moment, at most as many as coordinates: `(m, w)` to `(min(m, w), w)`.

    Gradients are exact although the rotation is held constant, see `second_moment_directions`.

    Example:
        >>> v = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], dtype=torch.float64)
        >>> w = compressed(v)
        >>> w.shape, torch.allclose(w.T @ w, v.T @ v)
        (torch.Size([2, 2]), True)
    """
    if len(directions) <= directions.shape[1]:
        return directions
    half = directions.dtype in (torch.float16, torch.bfloat16)  # LAPACK has no QR in these precisions
    rotation, _ = torch.linalg.qr(directions.detach().float() if half else directions.detach())
    return rotation.to(directions.dtype).T @ directions


def joint_directions(data: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
    r"""One set of directions for two second moments, which are diagonalized together.

    Args:
        data: directions `(m, w)` of the data.
        noise: directions `(k, w)` of the noise, whose span contains that of the data; `None` means the unit vectors.

    Returns:
        Directions w_s `(s, w)`, s ≤ w, with `Σ_s w_s w_sᵀ` equal to the moment of the noise, and weights c_s `(s,)`
        with `Σ_s c_s w_s w_sᵀ` equal to the moment of the data.
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
