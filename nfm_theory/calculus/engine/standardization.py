"""Rules for layer, group, instance and RMS norm."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .nonlinear import applied, times
from .rules import rule, tracked_elsewhere
from .series import power, product
from .tape import Recorder, UnsupportedOperationError


class _Standardized(torch.autograd.Function):
    """`y = c r` and `r = 1 / sqrt(mean c² + eps)` of a centered c, whose gradient is a tangent: ∂y/∂x is symmetric."""

    @staticmethod
    def forward(ctx, x: Tensor, axes: tuple[int, ...], eps: float, center: bool) -> tuple[Tensor, Tensor]:
        if center:
            y, _, r = torch.native_layer_norm(x, x.shape[-len(axes) :], None, None, eps)
        else:
            r = torch.rsqrt((x * x).mean(axes, keepdim=True) + eps)
            y = x * r
        ctx.axes, ctx.center = axes, center
        ctx.save_for_backward(y, r)
        ctx.set_materialize_grads(False)
        return y, r

    @staticmethod
    def backward(ctx, of_y: Tensor | None, of_r: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        y, r = ctx.saved_tensors
        total = None if of_y is None else times(applied(_Moved, of_y.contiguous(), y, ctx.axes, ctx.center)[0], r)
        if of_r is not None:
            part = y * (of_r * r * r / -math.prod(y.shape[a] for a in ctx.axes))
            total = part if total is None else total + part
        return total, None, None, None


class _Moved(torch.autograd.Function):
    """`u = ẏ / r` and `s = Σ y ċ` of a tangent, with gradients of few passes."""

    generate_vmap_rule = True

    @staticmethod
    def forward(t: Tensor, y: Tensor, axes: tuple[int, ...], center: bool) -> tuple[Tensor, Tensor]:
        part = 1 / math.prod(y.shape[a] for a in axes)
        s = (y * t).sum(axes, keepdim=True)  # the mean of y is 0 if the input is centered
        t = torch.sub(t, t.sum(axes, keepdim=True), alpha=part) if center else t
        return torch.addcmul(t, y, s, value=-part), s

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        t, y, ctx.axes, ctx.center = inputs
        ctx.save_for_backward(t, y, output[1])

    @staticmethod
    def backward(ctx, of_u: Tensor, of_s: Tensor) -> tuple[Tensor, Tensor, None, None]:
        t, y, s = ctx.saved_tensors
        part = 1 / math.prod(y.shape[a] for a in ctx.axes)
        of_s = torch.sub(of_s, (of_u * y).sum(ctx.axes, keepdim=True), alpha=part)
        of_t = torch.sub(of_u, of_u.sum(ctx.axes, keepdim=True), alpha=part) if ctx.center else of_u
        of_y = torch.addcmul(of_s * t, of_u, s, value=-part)
        return torch.addcmul(of_t, y, of_s).sum_to_size(t.shape), of_y.sum_to_size(y.shape), None, None


class _Sums(torch.autograd.Function):
    """`Σ u²` and `Σ u a`, with gradients of few passes."""

    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor, a: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        return (u * u).sum(axes, keepdim=True), (u * a).sum(axes, keepdim=True)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx, of_squares: Tensor, of_products: Tensor) -> tuple[Tensor, Tensor, None]:
        u, a = ctx.saved_tensors
        of_u = torch.addcmul(2 * of_squares * u, of_products, a)
        return of_u, (of_products * u).sum_to_size(a.shape), None


def standardized(
    rec: Recorder, name: str, input: Tensor, dims: int, eps: float, weight: Tensor | None = None,
    bias: Tensor | None = None, *, center: bool = True,
) -> Tensor:  # fmt: skip
    r"""Record `w ∘ y + bias` with `y = c / sqrt(mean c² + eps)` over the last `dims` dimensions as one operation.

    c is the centered input, or with `center=False` the input itself.

    With r = 1 / sqrt(mean c² + eps) and μ = mean(y ċ): ẏ = r (ċ - y μ), ÿ = -y (mean ẏ² + eps r⁴ μ²) - 2 r μ ẏ.
    """
    x = rec.find(input)
    if x is None or x.layout[0] >= input.ndim - dims:
        raise UnsupportedOperationError(f"{name} across samples")
    axes = tuple(range(-dims, 0))
    out, r = _Standardized.apply(input, axes, eps, center)
    y, r = (rec.keep(z).unsqueeze(0) for z in (out, r))  # as many dimensions as tangents: gradients need no sums
    if weight is not None:
        out = out * weight if bias is None else torch.addcmul(bias, out, weight)

    def moved(t):
        return applied(_Moved, t.contiguous(), y, axes, center)  # in the usual order of its entries, which is faster

    def scaled(u):
        u = times(u, r)
        return u if weight is None else times(u, weight)

    def push(t):
        return scaled(moved(t)[0])

    def form(adj):
        adj = (adj if weight is None else adj * weight).unsqueeze(0)
        along, part = (adj * y).sum(axes, keepdim=True), r * r / -math.prod(y.shape[a] for a in axes)
        floor = -eps * part

        def second(t):
            u, s = moved(t)
            squares, products = applied(_Sums, u, adj, axes)
            bent = along * torch.addcmul(squares, floor * s, s)
            return torch.addcmul(bent, s, products, value=2) * part, scaled(u)

        return second

    def series(t):
        t = [z if z is None or not center else z - z.mean(axes, keepdim=True) for z in t]
        c = y[0] / r[0]
        squares = product(c, t, c, t, lambda a, b: (a * b).mean(axes, keepdim=True))
        found = product(c, t, r[0], power(r[0], r[0] ** -2, squares, -0.5))
        return found if weight is None else [z if z is None else z * weight for z in found]

    return rec.emit([x], out, push, form, series, layout=x.layout, joint=True)


@rule("layer_norm")
def _layer_norm(rec, func, input, normalized_shape, weight=None, bias=None, eps=1e-5, cudnn_enable=True):
    if tracked_elsewhere(rec, (weight, bias), {}):
        return rec.local(rec, func, input, normalized_shape, weight, bias, eps)
    return standardized(rec, "layer_norm", input, len(normalized_shape), eps, weight, bias)


@rule(also=(F.rms_norm, torch.rms_norm))
def _rms_norm(rec, func, input, normalized_shape, weight=None, eps=None):
    if tracked_elsewhere(rec, (weight,), {}):
        return rec.local(rec, func, input, normalized_shape, weight, eps)
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    return standardized(rec, "rms_norm", input, len(normalized_shape), eps, weight, center=False)


def _scaled_and_shifted(rec: Recorder, out: Tensor, weight: Tensor | None, bias: Tensor | None, shape) -> Tensor:
    """Multiply by the weight and add the bias, both brought to `shape`."""
    out = out if weight is None else rec.run(torch.mul, out, rec.run(torch.reshape, weight, shape))
    return out if bias is None else rec.run(torch.add, out, rec.run(torch.reshape, bias, shape))


@rule("group_norm")
def _group_norm(rec, func, input, num_groups, weight=None, bias=None, eps=1e-5, cudnn_enabled=True):
    grouped = rec.run(torch.reshape, input, (input.shape[0], num_groups, -1))
    out = rec.run(torch.reshape, standardized(rec, "group_norm", grouped, 1, eps), input.shape)
    return _scaled_and_shifted(rec, out, weight, bias, (1, -1) + (1,) * (input.ndim - 2))


@rule(also=(F.instance_norm,))
def _instance_norm(
    rec, func, input, running_mean=None, running_var=None, weight=None, bias=None, use_input_stats=True,
    momentum=0.1, eps=1e-5,
):  # fmt: skip
    if running_mean is not None and use_input_stats:
        raise UnsupportedOperationError("instance norm that updates its statistics")
    if not use_input_stats:
        return rec.run(F.batch_norm, input, running_mean, running_var, weight, bias, False, momentum, eps)
    out = standardized(rec, "instance_norm", input, input.ndim - 2, eps)
    return _scaled_and_shifted(rec, out, weight, bias, (-1,) + (1,) * (input.ndim - 2))
