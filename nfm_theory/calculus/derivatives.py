r"""Derivatives of a head: its Jacobian, directional derivatives of any order, and sums of these over directions.

All functions take a batch whose samples are independent. Directions are processed in blocks: each pair of a sample and
a direction is one row of a larger batch. This works for every head that maps rows to rows.
"""

from __future__ import annotations

from collections.abc import Callable
from math import factorial

import torch
from torch import Tensor
from torch.func import vjp
from tqdm import tqdm

from .forward_mode import jvp


def scalar_derivatives(path: Callable[[Tensor], Tensor], at: Tensor, order: int) -> list[Tensor]:
    """The derivatives `[φ(t), φ'(t), .., φ^(order)(t)]` of a function of one number, by nested forward mode.

    Args:
        path: the function φ. It maps a 0-dim tensor to a tensor of any shape, or t `(rows,)` to `(rows,)` row by row.
        at: the point t, 0-dim, or one point for each row.
        order: order of the highest derivative, ≥ 0.

    Example:
        >>> t = torch.tensor(2.0, dtype=torch.float64)
        >>> [float(d) for d in scalar_derivatives(lambda s: s**3, t, 4)]
        [8.0, 12.0, 12.0, 6.0, 0.0]
    """
    one = torch.ones_like(at)

    def jet(k: int) -> Callable[[Tensor], tuple[Tensor, ...]]:
        if k == 0:
            return lambda t: (path(t),)

        def raised(t: Tensor) -> tuple[Tensor, ...]:
            values, tangents = jvp(jet(k - 1), (t,), (one,))
            return (*values, tangents[-1])

        return raised

    return list(jet(order)(at))


def scalar_coefficients(path: Callable[[Tensor], Tensor], like: Tensor, order: int) -> list[Tensor]:
    """The Taylor coefficients `φ^(k)(0)/k!`, k = 0..order, of a function of one number; `like` gives the dtype."""
    return [d / factorial(k) for k, d in enumerate(scalar_derivatives(path, like.new_zeros(()), order))]


def directional_derivatives(
    function: Callable[[Tensor], Tensor], h: Tensor, direction: Tensor, order: int
) -> list[Tensor]:
    """`D^k function(h)[v, .., v]` for k = 0..order, for points h and directions v, both `(b, *feature)`.

    The function maps `(b, *feature)` to `(b, ...)`, each sample on its own.
    """
    zero = torch.zeros((), dtype=h.dtype, device=h.device)
    return scalar_derivatives(lambda t: function(h + t * direction), zero, order)


def jacobian_rows(head: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
    """The Jacobian of a head at every sample, `(b, K, *feature)`, by K vector-Jacobian products.

    The head maps `(b, *feature)` to `(b, K)`, each sample on its own.
    """
    outputs, pullback = vjp(head, h)[:2]
    basis = torch.eye(outputs.shape[-1], dtype=outputs.dtype, device=outputs.device)
    return torch.stack([pullback(e.expand_as(outputs).contiguous())[0] for e in basis], dim=1)


def gauss_newton_forms(curvature: Tensor, tangents: Tensor) -> Tensor:
    """The quadratic forms `tᵀ F t`, `(b, *rest)`, of matrices F and tangents t `(b, K, *rest)`.

    F is `(b, K, K)`, or has the P diagonal blocks `(b, P, k, k)` with K = P k.
    """
    flat = tangents.flatten(2) if tangents.ndim > 2 else tangents.unsqueeze(-1)
    flat = in_blocks(curvature, flat)
    forms = ((curvature @ flat) * flat).sum(-2)
    return (forms if curvature.ndim == 3 else forms.sum(1)).reshape(len(flat), *tangents.shape[2:])


def in_blocks(curvature: Tensor, rows: Tensor) -> Tensor:
    """Rows `(b, K, *rest)` in the blocks of F: the same for `(b, K, K)`, `(b, P, k, *rest)` for `(b, P, k, k)`."""
    return rows if curvature.ndim == 3 else rows.unflatten(1, curvature.shape[1:3])


def mapped_over_directions(
    function: Callable[[Tensor, Tensor, Tensor], Tensor],
    h: Tensor,
    directions: Tensor,
    *,
    block_rows: int,
    reduce: bool = True,
) -> Tensor:
    """Apply `function(points, directions, sample index)` to every pair of a sample and a direction, in blocks.

    Args:
        function: maps rows `(m, *feature)`, `(m, *feature)`, `(m,)` to `(m, *out)`.
        h: the points, `(b, *feature)`.
        directions: directions that all samples share, `(s, *feature)`.
        block_rows: number of rows in one call.
        reduce: True returns the sum over the directions, `(b, *out)`; False returns all results, `(b, s, *out)`.
    """
    samples, per_block = len(h), max(1, block_rows // len(h))
    index = torch.arange(samples, device=h.device)
    parts = []
    # The progress bar appears on a terminal only, and only if the loop takes longer than the delay.
    for block in tqdm(directions.split(per_block), desc="directions", disable=None, delay=2, leave=False):
        size = len(block)
        points, numbers = (z.repeat_interleave(size, dim=0) for z in (h, index))  # the direction changes fastest
        rows = function(points, block.repeat(samples, *[1] * (h.ndim - 1)), numbers)
        parts.append(rows.reshape(samples, size, *rows.shape[1:]))
    return sum((part.sum(1) for part in parts), h.new_zeros(())) if reduce else torch.cat(parts, dim=1)
