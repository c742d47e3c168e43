"""Norms, distances and the standard deviation, of which PyTorch has no gradient through nested forward mode."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .substitutes import power_norm


def _std(input, dim=None, unbiased=None, keepdim=False, *, correction=None):
    if isinstance(dim, bool):  # the overload std(input, unbiased)
        dim, unbiased = None, dim
    if correction is None:
        correction = 1 if unbiased is None else int(unbiased)
    return torch.var(input, dim, correction=correction, keepdim=keepdim).sqrt()


def _std_mean(input, dim=None, unbiased=None, keepdim=False, *, correction=None):
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    mean = input.mean() if dim is None and not keepdim else input.mean(dim, keepdim=keepdim)
    return _std(input, dim, unbiased, keepdim, correction=correction), mean


def _vector_norm(x: Tensor, ord: float = 2, dim=None, keepdim=False, *, dtype=None, out=None):
    if out is not None or x.is_complex():
        return torch.linalg.vector_norm(x, ord, dim, keepdim, dtype=dtype, out=out)
    x = x if dtype is None else x.to(dtype)
    dim = tuple(range(x.dim())) if dim is None else dim
    if ord == 2:
        return (x * x).sum(dim, keepdim=keepdim).sqrt()
    if ord == 1:
        return x.abs().sum(dim, keepdim=keepdim)
    if ord in (0, math.inf, -math.inf):
        return torch.linalg.vector_norm(x, ord, dim, keepdim)
    return power_norm(x, ord, dim, keepdim)


def _norm(input, p="fro", dim=None, keepdim=False, out=None, dtype=None):
    if p == "nuc" or out is not None:
        return torch.norm(input, p, dim, keepdim, out=out, dtype=dtype)
    return _vector_norm(input, 2 if isinstance(p, str) or p is None else p, dim, keepdim, dtype=dtype)


def _matrix_norm(A, ord="fro", dim=(-2, -1), keepdim=False, *, dtype=None, out=None):
    if ord != "fro" or out is not None:
        return torch.linalg.matrix_norm(A, ord, dim, keepdim, dtype=dtype, out=out)
    return _vector_norm(A, 2, dim, keepdim, dtype=dtype)


def _linalg_norm(A, ord=None, dim=None, keepdim=False, *, dtype=None, out=None):
    plain = ord is None or isinstance(dim, int) or (dim is None and A.ndim == 1)
    if out is None and plain:
        return _vector_norm(A, 2 if ord is None else ord, dim, keepdim, dtype=dtype)
    if out is None and ord == "fro":
        return _matrix_norm(A, ord, (-2, -1) if dim is None else dim, keepdim, dtype=dtype)
    return torch.linalg.norm(A, ord, dim, keepdim, dtype=dtype, out=out)


def _pairwise_distance(x1, x2, p=2.0, eps=1e-6, keepdim=False):
    return _vector_norm(x1 - x2 + eps, p, -1, keepdim)


def _dist(input, other, p=2):
    return _vector_norm(input - other, p)


def _normalize(input, p=2.0, dim=1, eps=1e-12, out=None):
    if out is not None:
        return F.normalize(input, p, dim, eps, out)
    if p != 2:
        return input / _vector_norm(input, p, dim, True).clamp_min(eps)
    # Clamp before the root: the slope of the root is infinite at a row of zeros.
    return input * torch.rsqrt((input * input).sum(dim, keepdim=True).clamp_min(eps * eps))


def _cosine_similarity(x1, x2, dim=1, eps=1e-8):
    x1, x2 = torch.broadcast_tensors(x1, x2)
    return (_normalize(x1, dim=dim, eps=eps) * _normalize(x2, dim=dim, eps=eps)).sum(dim)


#: Maps a function of PyTorch to a composition with the same signature and the same value.
NORMS: dict[Callable, Callable] = {
    F.normalize: _normalize,
    F.cosine_similarity: _cosine_similarity,
    torch.linalg.vector_norm: _vector_norm,
    torch.linalg.matrix_norm: _matrix_norm,
    torch.linalg.norm: _linalg_norm,
    F.pairwise_distance: _pairwise_distance,
    torch.pairwise_distance: _pairwise_distance,
    torch.dist: _dist,
    Tensor.dist: _dist,
    torch.std_mean: _std_mean,
    torch.norm: _norm,
    Tensor.norm: _norm,
    torch.std: _std,
    Tensor.std: _std,
}
