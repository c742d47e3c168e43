"""Rules for operations that are linear or piecewise linear in the features: layers, pooling, changes of shape."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .activations import all_names
from .rules import common, mapped, rule, spread, tracked_elsewhere
from .tape import Layout, UnsupportedOperationError, Value

#: The functions behind the attributes of a tensor.
_T, _MT, _DATA = (getattr(torch.Tensor, name).__get__ for name in ("T", "mT", "data"))


@rule("linear")
def _linear(rec, func, input, weight, bias=None):
    x = rec.find(input)
    if x is None or rec.find(weight) or rec.find(bias) or x.layout[0] == input.ndim - 1:
        return rec.local(rec, func, input, weight, bias)
    out = func(input, weight, bias)

    def push(t):  # one product of matrices, also if the tangent is not contiguous
        return F.linear(t.flatten(0, -2), weight).unflatten(0, t.shape[:-1])

    return rec.emit([x], out, push, layout=x.layout, shared=x.layout[0] == 0)


@rule("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _convolution(rec, func, input, weight, bias=None, *args, **kwargs):
    x = rec.find(input)
    spatial = weight.ndim - 2
    if x is None or rec.find(weight) or rec.find(bias) or input.ndim != spatial + 2 or x.layout[0] != 0:
        return rec.local(rec, func, input, weight, bias, *args, **kwargs)
    out = func(input, weight, bias, *args, **kwargs)

    def push(t):
        return func(t.flatten(0, 1), weight, None, *args, **kwargs).unflatten(0, t.shape[:2])

    return rec.emit([x], out, push, layout=x.layout, shared=True)


@rule(also=(F.batch_norm,))
def _batch_norm(
    rec, func, input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5
):
    x = rec.find(input)
    if training or x is None or x.layout[0] != 0:
        raise UnsupportedOperationError("batch norm on the statistics of the batch")
    out = func(input, running_mean, running_var, weight, bias, False, momentum, eps)
    scale = torch.rsqrt(running_var + eps) if weight is None else torch.rsqrt(running_var + eps) * weight
    scale = scale.reshape(-1, *[1] * (input.ndim - 2))
    return rec.emit([x], out, lambda t: t * scale, layout=x.layout, shared=True)


def _spatial(rec, func, input, *args, **kwargs):
    """Average pooling and interpolation: linear operations on the dimensions after samples and channels."""
    x = rec.find(input)
    if x is None or x.layout[0] != 0 or kwargs.get("value") or input.ndim < 3:
        return rec.local(rec, func, input, *args, **kwargs)
    if func is F.interpolate and kwargs.get("mode", args[2] if len(args) > 2 else "nearest") == "bicubic":
        return rec.local(rec, func, input, *args, **kwargs)
    out = func(input, *args, **kwargs)

    def push(t):
        return func(t.flatten(0, 1), *args, **kwargs).unflatten(0, t.shape[:2])

    return rec.emit([x], out, push, layout=x.layout, shared=True)


_POOLS = [f"{kind}{n}d" for kind in ("avg_pool", "adaptive_avg_pool") for n in (1, 2, 3)]
rule(*_POOLS, also=(F.interpolate,))(_spatial)


@rule(also=(F.pad,))
def _pad(rec, func, input, pad, mode="constant", value=None):
    x = rec.find(input)
    if x is None or x.layout != (0, 1) or len(pad) > 2 * (input.ndim - 1):
        return rec.local(rec, func, input, pad, mode, value)
    out = func(input, pad, mode, value)
    push = mapped(lambda t: F.pad(t, pad, mode, 0.0 if mode == "constant" else None), x)
    return rec.emit([x], out, push, layout=x.layout)


@rule(also=(F.max_pool1d, F.max_pool2d, F.max_pool3d))
def _max_pool(rec, func, input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
    x = rec.find(input)
    spatial = {F.max_pool1d: 1, F.max_pool2d: 2, F.max_pool3d: 3}[func]
    if return_indices or x.layout[0] != 0 or input.ndim != spatial + 2:
        raise UnsupportedOperationError("max pooling that returns indices, or without a sample dimension")
    out, index = func(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices=True)
    flat, spatial_shape = index.flatten(2), out.shape[2:]

    def push(t):
        t = spread(t, x).flatten(3)
        return t.gather(3, flat.expand(len(t), *flat.shape)).unflatten(3, spatial_shape)

    return rec.emit([x], out, push, layout=x.layout)


def _reduction(rec, func, input, dim=None, keepdim=False, **kwargs):
    """Sums and means over some dimensions."""
    x = rec.find(input)
    if dim is None:
        raise UnsupportedOperationError(f"{func.__name__} over all samples")
    dims = {d % input.ndim for d in ([dim] if isinstance(dim, int) else dim)}
    out = func(input, dim, keepdim, **kwargs)
    k, per = x.layout
    layout = None if k in dims else (k if keepdim else k - sum(d < k for d in dims), per)
    shifted = tuple(sorted(d + 1 for d in dims))
    return rec.emit([x], out, lambda t: func(t, shifted, keepdim, **kwargs), layout=layout, shared=k == 0)


rule("sum", "mean")(_reduction)


@rule("flatten", "reshape", "view", "unflatten", "reshape_as", "view_as", "contiguous", "clone", "squeeze", "unsqueeze")
def _reshape(rec, func, input, *args, **kwargs):
    x = rec.find(input)
    if x is None:
        return rec.local(rec, func, input, *args, **kwargs)
    out = func(input, *args, **kwargs)
    shape = tuple(out.shape)
    layout = _reshaped(x.layout, tuple(input.shape), shape, rec.samples)
    shared = x.layout == layout == (0, 1)

    def push(t):
        samples = t.shape[1] if shared else None
        return t.reshape(len(t), samples, *shape[1:]) if shared else spread(t, x).reshape(len(t), *shape)

    return rec.emit([x], out, push, layout=layout, shared=shared)


def _reshaped(layout: Layout, before: tuple[int, ...], after: tuple[int, ...], samples: int) -> Layout | None:
    """The layout of the samples after a change of shape that keeps the order of the entries.

    The dimensions before that of the samples have as many entries as before. `None` if no dimension qualifies.
    """
    entries_before = prod(before[: layout[0]])
    for k, size in enumerate(after):
        if prod(after[:k]) == entries_before and size % samples == 0:
            return k, size // samples
    return None


def _key(t: Tensor, ndim: int, key) -> Tensor:
    return t[(slice(None), *key)] if isinstance(key, tuple) else t[:, key]


#: Views of a stack of tangents, for values with `ndim` dimensions: the same view of each, without the cost of `vmap`.
_STACKED: dict[str, Callable[..., Any]] = {
    "transpose": lambda t, ndim, first, second: t.transpose(first % ndim + 1, second % ndim + 1),
    "permute": lambda t, ndim, *dims: t.permute(
        0, *(d % ndim + 1 for d in (dims[0] if isinstance(dims[0], (tuple, list)) else dims))
    ),
    "select": lambda t, ndim, dim, index: t.select(dim % ndim + 1, index),
    "unbind": lambda t, ndim, dim=0: t.unbind(dim % ndim + 1),
    "chunk": lambda t, ndim, chunks, dim=0: t.chunk(chunks, dim % ndim + 1),
    "split": lambda t, ndim, size, dim=0: t.split(size, dim % ndim + 1),
    "__getitem__": _key,
}
_STACKED |= dict.fromkeys(("swapaxes", "swapdims"), _STACKED["transpose"])


def _stacked_view(func: Callable, args, kwargs, x: Value, part: int | None) -> Callable[[Tensor], Tensor]:
    """A function that takes a view of every tangent in a stack; `part` is which of several results it returns."""
    stacked, ndim = _STACKED.get(func.__name__), x.ndim
    if stacked is None or not kwargs.keys() <= {"dim"}:
        return mapped(lambda t: func(t, *args, **kwargs) if part is None else func(t, *args, **kwargs)[part], x)

    def push(t: Tensor) -> Tensor:
        found = stacked(spread(t, x), ndim, *args, **kwargs)
        return found if part is None else found[part]

    return push


def _view(rec, func, input, *args, **kwargs):
    """Operations that only select or reorder entries; the strides of an empty copy show where the samples go."""
    x = rec.find(input)
    if x is None or tracked_elsewhere(rec, args, kwargs):
        raise UnsupportedOperationError(f"{func.__name__}, which selects by values")
    dim, per = x.layout
    strides = [0] * input.ndim
    strides[dim] = 1
    probe = torch.empty(input.shape[dim], device="meta").as_strided(tuple(input.shape), strides)
    outs = func(input, *args, **kwargs)
    try:
        stands = func(probe, *args, **kwargs)
    except (RuntimeError, TypeError, IndexError, ValueError) as error:
        raise UnsupportedOperationError(f"{func.__name__}: {error}") from error
    single = isinstance(outs, Tensor)
    results = []
    for k, (out, stand) in enumerate(zip([outs] if single else outs, [stands] if single else stands, strict=True)):
        here = [d for d in range(stand.ndim) if stand.stride(d) and stand.shape[d] == input.shape[dim]]
        if not stand._is_view() or (len(here) != 1 and input.shape[dim] > 1):
            raise UnsupportedOperationError(f"{func.__name__}, which selects samples or copies")
        push = _stacked_view(func, args, kwargs, x, None if single else k)
        layout = (here[0], per) if here else None
        results.append(rec.emit([x], out, push, layout=layout))
    return results[0] if single else type(outs)(results)


rule(
    *("transpose", "permute", "movedim", "swapaxes", "swapdims", "moveaxis", "t", "narrow", "select", "expand"),
    *("chunk", "split", "unbind", "tensor_split", "__getitem__", "expand_as"),
    also=(_T, _MT),
)(_view)


@rule("to", "float", "double", "type_as", "cuda", "cpu")
def _cast(rec, func, input, *args, **kwargs):
    x = rec.find(input)
    out = func(input, *args, **kwargs)
    if x is None or not out.is_floating_point():
        return out
    dtype = out.dtype
    return rec.emit([x], out, lambda t: t.to(dtype, copy=False), layout=x.layout, shared=True)


@rule("cat", "concat", "concatenate", "stack")
def _join(rec, func, tensors, dim=0):
    values = [rec.find(t) for t in tensors]
    known = [v for v in values if v is not None]
    stack = func in all_names("stack")
    dim = dim % (known[0].ndim + stack)
    out = func(tensors, dim)
    layout = common([v.layout for v in known])
    if layout is not None:
        layout = (layout[0] + (stack and dim <= layout[0]), layout[1]) if stack or dim != layout[0] else None

    fixed = [t if v is None else None for v, t in zip(values, tensors, strict=True)]

    def push(*tangents):
        given = iter(tangents)
        m = len(tangents[0])
        return func(
            [
                spread(next(given), v) if t is None else t.new_zeros(()).expand(m, *t.shape)
                for v, t in zip(values, fixed, strict=True)
            ],
            dim + 1,
        )

    return rec.emit(known, out, push, layout=layout)


@rule("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout", also=(F.dropout,))
def _dropout(rec, func, input, p=0.5, training=True, inplace=False):
    if training and p > 0:
        raise UnsupportedOperationError("dropout in training mode")
    return input


rule("detach")(lambda rec, func, input: func(input))


@rule(also=(_DATA,))
def _data(rec, func, input):
    raise UnsupportedOperationError("data, which hides a dependence from reverse mode but not from forward mode")


@rule("item", "tolist", "numpy", "__bool__", "__float__", "__int__")
def _read(rec, func, input, *args, **kwargs):
    raise UnsupportedOperationError(f"{func.__name__}, which reads a value of the tensor")
