"""Rules for sums, products and quotients."""

from __future__ import annotations

from functools import partial, reduce
from operator import add

import torch
from torch import Tensor

from .activations import power
from .nonlinear import emit_elementwise
from .rules import aligned, common, rule, spread
from .series import Series, product
from .tape import UnsupportedOperationError, Value


def _raised(tangent: Tensor, value: Value, ndim: int) -> Tensor:
    """The tangent of a value that is broadcast to `ndim` dimensions, reshaped for the same broadcast."""
    missing = ndim - value.ndim
    if not missing:
        return tangent
    return spread(tangent, value).reshape(len(tangent), *[1] * missing, *value.shape)


def _raised_series(series: Series, value: Value, ndim: int) -> Series:
    """`_raised` for every coefficient."""
    return [None if t is None else _raised(t, value, ndim) for t in series]


def _sum(rec, out, parts):
    """Record `Σ c x` for pairs (x, c) of a value and a number, given as `parts`."""
    values = [v for v, _ in parts]
    layout = common([aligned(v.layout, v, out) for v in values])
    shape, ndim = out.shape, out.ndim
    whole = all(v.shape == shape for v in values)

    def push(*tangents):
        pairs = list(zip(parts, tangents, strict=True))
        pairs.sort(key=lambda pair: not pair[1].is_contiguous())  # the sum takes the order of entries of the first
        total = reduce(add, (_raised(t, v, ndim) if c == 1 else _raised(t, v, ndim) * c for (v, c), t in pairs))
        return total if whole else total.expand(len(total), *shape)

    return rec.emit(values, out, push, layout=layout, shared=whole)


@rule("add", "__add__", "__radd__")
def _add(rec, func, input, other, *, alpha=1):
    return _plus(rec, func, input, other, alpha, {"alpha": alpha} if alpha != 1 else {})


@rule("sub", "subtract", "__sub__")
def _sub(rec, func, input, other, *, alpha=1):
    return _plus(rec, func, input, other, -alpha, {"alpha": alpha} if alpha != 1 else {})


def _plus(rec, func, x, y, factor, kwargs):
    out = func(x, y, **kwargs)
    parts = [(rec.find(z), c) for z, c in ((x, 1), (y, factor)) if rec.find(z) is not None]
    return _sum(rec, out, parts)


@rule("rsub", "__rsub__")
def _rsub(rec, func, input, other, *, alpha=1):
    return rec.run(torch.add, rec.run(torch.mul, input, -alpha), other)


@rule("neg", "negative")
def _neg(rec, func, input):
    return _sum(rec, func(input), [(rec.find(input), -1)])


@rule("mul", "multiply", "__mul__", "__rmul__")
def _mul(rec, func, input, other):
    x, y = rec.find(input), rec.find(other)
    out = func(input, other)
    if x is None or y is None:
        value, factor = (x, other) if y is None else (y, input)
        return _scaled(rec, value, factor, out)
    if x is y:
        z = rec.keep(input)
        return emit_elementwise(rec, x, out, lambda: (2 * z, torch.full_like(z, 2.0)))
    layout = common([aligned(v.layout, v, out) for v in (x, y)])

    left, right, ndim = rec.keep(input), rec.keep(other), out.ndim

    def push(s, t):
        return _raised(s, x, ndim) * right + left * _raised(t, y, ndim)

    def form(adj):
        return lambda s, t: (_raised(s, x, ndim) * (2 * adj)) * _raised(t, y, ndim)

    def series(s, t):
        s, t = (_raised_series(z, value, ndim) for z, value in ((s, x), (t, y)))
        return product(left, s, right, t)

    return rec.emit([x, y], out, push, form, series, layout=layout)


def _scaled(rec, value, factor, out):
    """Record a value times a constant."""
    layout = aligned(value.layout, value, out)
    shape, ndim = out.shape, out.ndim
    whole = value.shape == shape
    flat = not isinstance(factor, Tensor) or factor.ndim < ndim or factor.shape[0] == 1

    def push(t):
        t = _raised(t, value, ndim) * factor
        return t if whole else t.expand(len(t), *shape)

    return rec.emit([value], out, push, layout=layout, shared=whole and flat and value.layout[0] == 0)


@rule("div", "divide", "true_divide", "__truediv__")
def _div(rec, func, input, other, *, rounding_mode=None):
    if rounding_mode is not None:
        raise UnsupportedOperationError("division with rounding")
    if rec.find(other) is not None:
        return rec.run(torch.mul, rec.run(torch.reciprocal, other), input)
    out = func(input, other)
    # the reciprocal of integers would have PyTorch's default precision
    divisor = other.to(out.dtype) if isinstance(other, Tensor) else other
    return _scaled(rec, rec.find(input), 1 / divisor, out)


@rule("__rdiv__", "__rtruediv__")
def _rdiv(rec, func, input, other):
    return rec.run(torch.mul, rec.run(torch.reciprocal, input), other)


@rule("pow", "__pow__")
def _pow(rec, func, input, exponent):
    x = rec.find(input)
    if x is None or isinstance(exponent, Tensor):
        return rec.local(rec, func, input, exponent)
    derivatives = partial(power, rec.keep(input), exponent)
    return emit_elementwise(rec, x, func(input, exponent), derivatives, exponent not in (0, 1))


@rule("matmul", "__matmul__", "bmm", "mm")
def _matmul(rec, func, input, other):
    x, y = rec.find(input), rec.find(other)
    if min(input.ndim, other.ndim) < 2:
        return rec.local(rec, func, input, other)
    out = func(input, other)
    layouts = []
    for value, inner in ((x, input.ndim - 1), (y, other.ndim - 2)):
        if value is not None:
            layouts.append(None if value.layout[0] == inner else aligned(value.layout, value, out))
    layout = common(layouts)
    ndim = out.ndim
    if x is None or y is None:
        value, factor = (x, other) if y is None else (y, input)
        assert value is not None  # an operation is recorded only if it reads a value

        def push(t):
            t = _raised(t, value, ndim)
            return t @ factor if value is x else factor @ t

        shared = y is None and other.ndim == 2 and value.layout[0] == 0
        return rec.emit([value], out, push, layout=layout, shared=shared)
    left, right = rec.keep(input), rec.keep(other)

    def push_both(s, t):
        return _raised(s, x, ndim) @ right + left @ _raised(t, y, ndim)

    def form(adj):
        return lambda s, t: (_raised(s, x, ndim) @ _raised(t, y, ndim)) * (2 * adj)

    def series(s, t):
        s, t = (_raised_series(z, value, ndim) for z, value in ((s, x), (t, y)))
        return product(left, s, right, t, torch.matmul)

    return rec.emit([x, y], out, push_both, form, series, layout=layout)
