"""Rules for layer, group, instance and RMS norm."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .rules import rule
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
        total = None if of_y is None else _standardized_tangent(of_y, y, r, ctx.axes, ctx.center)[0]
        if of_r is not None:
            part = y * (of_r * r * r / -math.prod(y.shape[a] for a in ctx.axes))
            total = part if total is None else total + part
        return total, None, None, None


def standardized(rec: Recorder, name: str, input: Tensor, dims: int, eps: float, *, center: bool = True) -> Tensor:
    r"""Record `y = c / sqrt(mean c² + eps)` over the last `dims` dimensions as one operation.

    c is the centered input, or with `center=False` the input itself.

    With r = 1 / sqrt(mean c² + eps) and μ = mean(y ċ): ẏ = r (ċ - y μ), ÿ = -y (mean ẏ² + eps r⁴ μ²) - 2 r μ ẏ.
    """
    x = rec.find(input)
    if x is None or x.layout[0] >= input.ndim - dims:
        raise UnsupportedOperationError(f"{name} across samples")
    axes = tuple(range(-dims, 0))
    out, r = _Standardized.apply(input, axes, eps, center)
    y, r = (rec.keep(z).unsqueeze(0) for z in (out, r))  # as many dimensions as tangents: gradients need no sums

    def push(t):
        return _standardized_tangent(t, y, r, axes, center)[0]

    def form(adj):
        adj = adj.unsqueeze(0)
        along = (adj * y).sum(axes, keepdim=True)

        def second(t):
            tangent, mixed = _standardized_tangent(t, y, r, axes, center)
            mixed = r * mixed
            squares = _mean(tangent * tangent, axes) + eps * (r * mixed).square()
            return -along * squares - 2 * mixed * (adj * tangent).sum(axes, keepdim=True), tangent

        return second

    def series(t):
        t = [z if z is None or not center else z - z.mean(axes, keepdim=True) for z in t]
        scale = r[0]
        c = y[0] / scale
        squares = product(c, t, c, t, lambda a, b: (a * b).mean(axes, keepdim=True))
        return product(c, t, scale, power(scale, scale**-2, squares, -0.5))

    return rec.emit([x], out, push, form, series, layout=x.layout, joint=True)


def _mean(z: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The mean, whose gradient takes no pass over z."""
    return z.sum(axes, keepdim=True) / math.prod(z.shape[a] for a in axes)


def _standardized_tangent(
    t: Tensor, y: Tensor, r: Tensor, axes: tuple[int, ...], center: bool
) -> tuple[Tensor, Tensor]:
    """ẏ and μ from a tangent."""
    t = t.contiguous()  # in the usual order of its entries, which is faster
    mixed = _mean(y * t, axes)  # the mean of y is 0 if the input is centered
    t = t - _mean(t, axes) if center else t
    return torch.addcmul(t, y, mixed, value=-1) * r, mixed


@rule("layer_norm")
def _layer_norm(rec, func, input, normalized_shape, weight=None, bias=None, eps=1e-5, cudnn_enable=True):
    out = standardized(rec, "layer_norm", input, len(normalized_shape), eps)
    return _scaled_and_shifted(rec, out, weight, bias, tuple(normalized_shape))


@rule(also=(F.rms_norm, torch.rms_norm))
def _rms_norm(rec, func, input, normalized_shape, weight=None, eps=None):
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    out = standardized(rec, "rms_norm", input, len(normalized_shape), eps, center=False)
    return out if weight is None else rec.run(torch.mul, out, weight)


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
