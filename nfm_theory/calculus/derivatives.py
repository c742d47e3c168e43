r"""Derivatives of heads: Jacobian rows, directional derivatives of any order, their sums over directions.

Everything works on a batch at once and treats samples as independent. Directions are streamed in blocks, each
direction of each sample being one row of an enlarged batch, so that any head works that maps rows to rows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import jvp, vjp
from tqdm import tqdm


def scalar_derivatives(path: Callable[[Tensor], Tensor], at: Tensor, order: int) -> list[Tensor]:
    """`[φ(t), φ'(t), .., φ^(order)(t)]` of a function of one number, by nested forward mode.

    Args:
        path: maps a 0-dim tensor to a tensor of any shape, or t `(rows,)` to `(rows,)`, row by row.
        at: the point t, 0-dim, or one for each row.
        order: highest derivative, ≥ 0.

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


def directional_derivatives(
    function: Callable[[Tensor], Tensor], h: Tensor, direction: Tensor, order: int
) -> list[Tensor]:
    r"""`D^k function(h)[v, .., v]` for k = 0..order, sample by sample.

    Args:
        function: maps `(b, *feature)` to `(b, ...)`; samples must not interact.
        h: points, `(b, *feature)`.
        direction: directions v, `(b, *feature)`.
        order: highest order.
    """
    zero = torch.zeros((), dtype=h.dtype, device=h.device)
    return scalar_derivatives(lambda t: function(h + t * direction), zero, order)


def jacobian_rows(head: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
    """Jacobian of the head at every sample, `(b, K, *feature)`, by K vector-Jacobian products.

    Args:
        head: maps `(b, *feature)` to `(b, K)`; samples must not interact.
        h: points, `(b, *feature)`.
    """
    outputs, pullback = vjp(head, h)
    basis = torch.eye(outputs.shape[-1], dtype=outputs.dtype, device=outputs.device)
    return torch.stack([pullback(e.expand_as(outputs).contiguous())[0] for e in basis], dim=1)


def gauss_newton_forms(curvature: Tensor, tangents: Tensor) -> Tensor:
    """`tᵀ F t` for F `(b, K, K)` and tangents `(b, K, *rest)`: `(b, *rest)`."""
    flat = tangents.flatten(2) if tangents.ndim > 2 else tangents.unsqueeze(-1)
    return ((curvature @ flat) * flat).sum(1).reshape(len(flat), *tangents.shape[2:])


def _rows(tensor: Tensor, repeats: int) -> Tensor:
    """Every sample `repeats` times, direction index fastest."""
    return tensor.repeat_interleave(repeats, dim=0)


def mapped_over_directions(
    function: Callable[[Tensor, Tensor, Tensor], Tensor],
    h: Tensor,
    directions: Tensor,
    *,
    block_rows: int,
    reduce: bool = True,
) -> Tensor:
    """Apply `function(points, directions, sample index)` to every sample × shared direction, in blocks.

    Args:
        function: maps rows `(m, *feature)`, `(m, *feature)`, `(m,)` to `(m, *out)`.
        h: points, `(b, *feature)`.
        directions: shared directions, `(s, *feature)`.
        block_rows: rows per call.
        reduce: sum over directions, giving `(b, *out)`; otherwise `(b, s, *out)`.
    """
    samples, per_block = len(h), max(1, block_rows // len(h))
    index = torch.arange(samples, device=h.device)
    parts = []
    # A bar on a terminal only, and only for sweeps that take long.
    for block in tqdm(directions.split(per_block), desc="directions", disable=None, delay=2, leave=False):
        size = len(block)
        rows = function(_rows(h, size), block.repeat(samples, *[1] * (h.ndim - 1)), _rows(index, size))
        parts.append(rows.reshape(samples, size, *rows.shape[1:]))
    if reduce:
        return sum(part.sum(1) for part in parts)
    return torch.cat(parts, dim=1)
