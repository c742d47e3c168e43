r"""The rule for attention, as one operation: scores `S = QKᵀ / √d`, weights P = softmax(S), result O = PV.

With U = P ∘ Ṡ and its row sums μ, the tangents are Ṗ = U - μ ∘ P and

$$ \dot O = \dot P V + P \dot V = U V - \mu \circ O + P \dot V. $$

With the cotangents a of O and W of S, the local second derivative is

$$ \textstyle\sum W \circ \dot S^2 + 2 \sum a \circ (U \dot V - \mu \circ \dot O)
   + \frac{2}{\sqrt d} \sum \dot Q \circ W \dot K. $$

So a direction needs two passes over arrays of the size of S, besides products of matrices.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..replacements import REPLACEMENTS
from .nonlinear import added_up, gradients_of_squares, times, weighted_squares
from .rules import rule, spread
from .series import product, softmax
from .tape import Recorder

_composed = REPLACEMENTS[F.scaled_dot_product_attention]


def _repeated(z: Tensor, heads: int) -> Tensor:
    """Keys or values of grouped queries, one for each of the heads of the queries."""
    groups = z.shape[-3]
    shape = (*z.shape[:-3], groups, heads // groups, *z.shape[-2:])
    return z.unsqueeze(-3).expand(shape).reshape(*z.shape[:-3], heads, *z.shape[-2:])


def _allowed(mask: Tensor | None, is_causal: bool, query: Tensor, key: Tensor) -> Tensor | None:
    """The mask, also if it is only said to be causal."""
    if is_causal:
        return torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    return mask


def _scores_and_weights(query: Tensor, key: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Scores and weights of queries that are scaled already; a row without any allowed key has the weights 0."""
    scores = query @ key.mT
    if mask is None:
        return scores, torch.softmax(scores, -1)
    allowed = mask if mask.dtype == torch.bool else mask != -math.inf
    masked = scores if mask.dtype == torch.bool else scores + mask.masked_fill(~allowed, 0)
    weights = torch.softmax(masked.masked_fill(~allowed, torch.finfo(scores.dtype).min), -1)
    return scores, weights if allowed.any(-1).all() else weights * allowed.any(-1, keepdim=True)


def _times(left: Tensor, t: Tensor) -> Tensor:
    """`left @ t[s]` for every direction s, without a copy of `left` for each."""
    if len(t) == 1:
        return (left @ t[0]).unsqueeze(0)
    return (left @ t.movedim(0, -2).flatten(-2)).unflatten(-1, (len(t), -1)).movedim(-2, 0)


class _Weighed(torch.autograd.Function):
    """U = P ∘ Ṡ, its row sums and `Σ W Ṡ²` over the entries of each sample, with gradients of few passes."""

    generate_vmap_rule = True

    @staticmethod
    def forward(moved: Tensor, p: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        u = moved * p
        return u, u.sum(-1, keepdim=True), weighted_squares(moved, weight)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, of_u: Tensor, of_mean: Tensor, of_squares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        moved, p, weight = ctx.saved_tensors
        of_u = of_u + of_mean
        of_moved, of_weight = gradients_of_squares(moved, weight, of_squares, of_u * p)
        assert of_moved is not None  # it was asked for
        return of_moved, added_up(times(of_u, moved)), of_weight


@rule(also=(F.scaled_dot_product_attention,))
def _attention(
    rec: Recorder, func, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None,
    enable_gqa=False,
):  # fmt: skip
    if enable_gqa and key.shape[-3] != query.shape[-3]:
        key, value = (rec.run(_repeated, z, query.shape[-3]) for z in (key, value))
    inputs = [found for z in (query, key, value) if (found := rec.find(z)) is not None]
    same = query.shape[:-2] == key.shape[:-2] == value.shape[:-2] and query.ndim > 2
    same = same and [z.layout for z in inputs] == [(0, 1)] * 3
    if not same or dropout_p > 0 or (is_causal and attn_mask is not None) or rec.find(attn_mask) is not None:
        return rec.run(_composed, query, key, value, attn_mask, dropout_p, is_causal, scale)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scaled = query * scale
    scores, weights = _scores_and_weights(scaled, key, _allowed(attn_mask, is_causal, query, key))
    out = weights @ value
    q, k, v, p, o = (rec.keep(z) for z in (scaled, key, value, weights, out))
    scaled_k = rec.keep(key * scale)

    scratch: list[Tensor] = []

    def memory(m):
        """Of every block of m directions, if no gradients are needed: (Q̇, Q), (K, K̇), (V, V̇), Ṡ and U."""
        if not scratch or len(scratch[0]) != m:
            pairs = (torch.cat([z, z], -1).expand(m, *z.shape[:-1], -1).contiguous() for z in (q, scaled_k, v))
            scratch[:] = [*pairs, *p.new_empty(2, m, *p.shape).unbind(0)]
        return scratch

    def scores_moved(tq, tk, weight):
        """U, its row sums μ and ΣWṠ²."""
        if torch.is_grad_enabled():
            moved = torch.cat([tq, q.expand_as(tq)], -1) @ torch.cat([scaled_k.expand_as(tk), tk], -1).mT
            if weight is not None:
                return _Weighed.apply(moved, p, weight)
            u = moved * p
            return u, u.sum(-1, keepdim=True), None
        left, right, _, moved, u = memory(len(tq))
        left[..., : q.shape[-1]], right[..., q.shape[-1] :] = tq, tk
        torch.mul(torch.matmul(left, right.mT, out=moved), p, out=u)
        squares = None if weight is None else moved.square_().mul_(weight).flatten(2).sum(-1)
        return u, u.sum(-1, keepdim=True), squares

    def values_moved(u, tv):
        """UV and UV̇."""
        if torch.is_grad_enabled():
            both = torch.cat([v.expand_as(tv), tv], -1)
        else:
            both = memory(len(tv))[2]
            both[..., v.shape[-1] :] = tv
        return (u @ both).split(v.shape[-1], -1)

    def parts(tangents, weight=None):
        """The tangent of the result, UV̇, μ, ΣWṠ², and the tangents of queries and keys."""
        tq, tk, tv = (spread(t, z) for t, z in zip(tangents, inputs, strict=True))
        u, mean, squares = scores_moved(tq, tk, weight)
        of_v, of_tangent = values_moved(u, tv)
        return torch.addcmul(of_v, mean, o, value=-1) + _times(p, tv), of_tangent, mean, squares, tq, tk

    def form(adj, weight):
        def second(*tangents):
            tangent, of_tangent, mean, squares, tq, tk = parts(tangents, weight)
            assert squares is not None  # it was asked for
            rest = torch.addcmul(of_tangent, mean, tangent, value=-1) * adj
            rest = torch.addcmul(rest, tq, _times(weight, tk), value=scale).flatten(2).sum(-1)
            return squares + 2 * rest, tangent

        return second

    def series(tq, tk, tv):
        tq, tk = [None if t is None else t * scale for t in tq], [None if t is None else t.mT for t in tk]
        moved = softmax(p, product(q, tq, k.mT, tk, torch.matmul), -1)[0]
        return product(p, moved, v, tv, torch.matmul)

    known = (rec.track(scores, (0, 1)),)
    return rec.emit(inputs, out, lambda *t: parts(t)[0], form, series, layout=(0, 1), joint=True, cotangents=known)
