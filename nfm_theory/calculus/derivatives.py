r"""Derivatives of a head: its Jacobian, directional derivatives of any order, and sums of these over directions.

All functions take a batch whose samples are independent. Directions are processed in blocks: each pair of a sample and
a direction is one row of a larger batch. This works for every head that maps rows to rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import factorial

import torch
from torch import Tensor
from torch.func import vjp
from tqdm import tqdm

from .forward_mode import jvp


def curve_derivatives(function: Callable[..., Tensor], *curves: Sequence[Tensor], order: int) -> list[Tensor]:
    """The derivatives `[φ, φ', .., φ^(order)]` of `φ(t) = function(c(t), ..)` at one t, by nested forward mode.

    A curve is given by its derivatives `c, c', c'', ..`, with zero for those that are left out. They are the tangents
    of nested forward mode as they stand, so that only the function itself is differentiated, and not the arithmetic
    that would move a point along the curve.

    Args:
        function: maps a tensor for each curve to a tensor of any shape.
        curves: derivatives of each argument at t, of one shape.
        order: order of the highest derivative, ≥ 0.

    Example:
        >>> two, one, zero = (torch.tensor(v, dtype=torch.float64) for v in (2.0, 1.0, 0.0))
        >>> [float(d) for d in curve_derivatives(lambda t: t**3, [two, one], order=4)]
        [8.0, 12.0, 12.0, 6.0, 0.0]
        >>> [float(d) for d in curve_derivatives(lambda p: p * p, [two, zero, one], order=4)]  # p = 2 + t²/2
        [4.0, 0.0, 4.0, 0.0, 6.0]
    """
    if order == 0:
        return [function(*(curve[0] for curve in curves))]
    known = [[_separate(tensor) for tensor in curve[: order + 1]] for curve in curves]
    moving = [tensor for curve in known for tensor in curve[:-1]]
    tangents = [tensor for curve in known for tensor in curve[1:]]

    def lower(*moved: Tensor) -> tuple[Tensor, ...]:
        left = iter(moved)
        inner = [[*(next(left) for _ in curve[:-1]), curve[-1]] for curve in known]
        return tuple(curve_derivatives(function, *inner, order=order - 1))

    values, derived = jvp(lower, tuple(moving), tuple(tangents))
    return [*values, derived[-1]]


def _separate(tensor: Tensor) -> Tensor:
    """The tensor, copied if its elements share memory, as after `expand`: such a tensor cannot have a tangent."""
    shared = any(step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True))
    return tensor.clone() if shared else tensor


def curve_coefficients(function: Callable[..., Tensor], *curves: Sequence[Tensor], order: int) -> list[Tensor]:
    """The Taylor coefficients `φ^(k)(0)/k!`, k = 0..order, along curves that are given by their Taylor coefficients."""
    jets = [[c if k < 2 else factorial(k) * c for k, c in enumerate(curve)] for curve in curves]
    return [d if k < 2 else d / factorial(k) for k, d in enumerate(curve_derivatives(function, *jets, order=order))]


def directional_derivatives(
    function: Callable[[Tensor], Tensor], h: Tensor, direction: Tensor, order: int
) -> list[Tensor]:
    """`D^k function(h)[v, .., v]` for k = 0..order, for points h and directions v, both `(b, *feature)`.

    The function maps `(b, *feature)` to `(b, ...)`, each sample on its own.
    """
    return curve_derivatives(function, [h, direction], order=order)


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
