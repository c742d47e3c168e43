"""The rule for all operations without a rule of their own: nested forward mode through this one operation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ..derivatives import curve_coefficients
from ..failures import DerivativeError, cause, running_module
from ..forward_mode import jvp
from ..replacements import exact_derivatives
from .rules import common, spread, tracked_elsewhere
from .tape import Layout, Recorder, UnsupportedOperationError, tensors_in


def local_rule(rec: Recorder, func: Callable, *args, **kwargs):
    """Record one operation with derivatives by nested forward mode."""
    name = getattr(func, "__name__", str(func))
    found = {k: value for k, item in enumerate(args) if (value := rec.find(item)) is not None}
    places, inputs = list(found), list(found.values())
    if not places or tracked_elsewhere(rec, (), kwargs):
        raise UnsupportedOperationError(f"{name} with features inside a list or as a keyword argument")
    out = func(*args, **kwargs)
    if not isinstance(out, Tensor):
        if any(part.grad_fn is not None for part in tensors_in(out)):
            raise UnsupportedOperationError(f"{name}, which has several results")
        return out
    if out.grad_fn is None:  # comparisons and indices are constant almost everywhere
        return out
    layout = common([v.layout for v in inputs])
    owner = running_module()
    label = f"{name} in {owner}" if owner else name
    points = tuple(rec.keep(args[k]) for k in places)
    fixed = [None if k in places else item for k, item in enumerate(args)]

    def function(*moved):
        filled = list(fixed)
        for k, item in zip(places, moved, strict=True):
            filled[k] = item
        with exact_derivatives():
            return func(*filled, **kwargs)

    if layout is None or not _keeps_samples(function, points, layout, out, rec.samples):
        raise UnsupportedOperationError(f"{name}, after which the samples cannot be told apart")

    def once(*d):
        return jvp(function, points, d)[1]

    def twice(*d):
        return jvp(lambda *z: jvp(function, z, d)[1], points, d)[1]

    def along(derivative, tangents):
        return _along(derivative, [spread(t, v) for t, v in zip(tangents, inputs, strict=True)], label)

    def push(*tangents):
        return along(once, tangents)

    def form(adj):
        return lambda *tangents: adj * along(twice, tangents)

    def series(*given):
        places = [(i, k) for i, row in enumerate(given) for k, t in enumerate(row) if t is not None]
        derivatives = partial(_derivatives, function, points, places, len(given[0]))
        found = _along(derivatives, [spread(given[i][k], inputs[i]) for i, k in places], label)
        return list(found.unbind(1))

    return rec.emit(inputs, out, push, form, series, layout=layout)


def _derivatives(function, points, places, order: int, *coefficients) -> Tensor:
    """Taylor coefficients 1, .., order of the function along a path; `places` are (input, power - 1) of the given."""
    curves = [[point] for point in points]
    for (i, k), coefficient in sorted(zip(places, coefficients, strict=True), key=lambda given: given[0]):
        curves[i] += [torch.zeros_like(coefficient)] * (k + 1 - len(curves[i])) + [coefficient]
    return torch.stack(curve_coefficients(function, *curves, order=order)[1:])


def _along(derivative: Callable[..., Tensor], tangents: list[Tensor], name: str) -> Tensor:
    """A derivative along every direction: for all at once, or one by one if the operation does not allow that."""
    try:
        return torch.vmap(derivative)(*tangents)
    except RuntimeError as error:
        try:
            if cause(error) is None:
                raise
            return torch.stack([derivative(*directions) for directions in zip(*tangents, strict=True)])
        except RuntimeError as again:
            if (known := cause(again)) is None:
                raise
            meaning, cure = known
            raise DerivativeError(f"model: no derivative of {name}: {meaning}; {cure}.") from again


def _keeps_samples(function, points, layout: Layout, out: Tensor, samples: int) -> bool:
    """True if the operation keeps the samples where they are: a change of one sample changes no other.

    The numbers of two samples differ in some bit. For each bit, the samples with this bit are changed, and the others
    must stay the same; then the other way round.
    """
    dim, per = layout
    if dim >= out.ndim or out.shape[dim] != samples * per:
        return False
    number = torch.arange(samples, device=out.device).repeat_interleave(per)
    bits = [(number >> k) % 2 == 1 for k in range((samples - 1).bit_length())]
    with torch.no_grad():
        for moves in [z for bit in bits for z in (bit, ~bit)]:
            step = moves.to(out.dtype).reshape(-1, *[1] * (out.ndim - 1 - dim))
            same = function(*(z + moves.to(z.dtype).reshape(-1, *[1] * (z.ndim - 1 - dim)) for z in points)) == out
            if not (same | step.bool()).all():
                return False
    return True
