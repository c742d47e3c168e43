"""Rules for elementwise functions and softmax."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack

from .activations import ACTIVATIONS, FROM_BOTH, FROM_RESULT, PIECEWISE_LINEAR, ZERO_ONE_SLOPES, Derivatives
from .base import gradients
from .rules import RULES, rule, tracked_elsewhere
from .series import composed, softmax
from .tape import Recorder, Value


class _Slopes:
    """σ' and σ'' at a point, computed when they are first needed.

    If no gradients are needed (`light`), the second derivative is requested only once, by the only reverse pass of a
    recording. It is then not stored, and the point that it is computed from is released.
    """

    def __init__(self, derivatives: Callable[[], Derivatives], light: bool):
        self.derivatives, self.light = derivatives, light
        self.known: Derivatives | None = None
        self.higher: list[Tensor] = []

    def _derivatives(self) -> Derivatives:
        """With their graph, whoever asks first: autograd may ask while it records none."""
        with gradients(not self.light):
            return self.derivatives()

    def first(self) -> Tensor:
        if self.known is None:
            found = self._derivatives()
            self.known = (found[0], None) if self.light else found
        return self.known[0]

    def second(self) -> Tensor | None:
        if self.light:
            first, second = self._derivatives()
            self.known, self.derivatives = (first, None), _released
            return second
        if self.known is None:
            self.known = self._derivatives()
        return self.known[1]

    def taylor(self, x: Value, order: int) -> list[Tensor]:
        """`σ^(k) / k!` at the argument x, k = 1, .., order, for recordings that keep their graph.

        From the third on, each is the derivative of the formula of the one before.
        """
        keep = torch.is_grad_enabled()
        with torch.enable_grad():
            if not self.higher:
                second = self.second()
                assert second is not None
                self.higher = [self.first(), second / 2]
            while len(self.higher) < order:
                last, found = self.higher[-1], None
                if last.requires_grad:
                    (found,) = torch.autograd.grad(
                        last.sum(), [x.edge], create_graph=True, retain_graph=True, allow_unused=True
                    )
                self.higher.append(torch.zeros_like(last) if found is None else found / (len(self.higher) + 1))
        return [z if keep else z.detach() for z in self.higher[:order]]


def _released() -> Derivatives:
    raise RuntimeError("The second derivative has been requested twice, and its point is released.")


def added_up(z: Tensor) -> Tensor:
    """The sum over the directions; no pass if there is only one."""
    return z.squeeze(0) if len(z) == 1 else z.sum(0)


def in_place() -> bool:
    """True if fresh tensors may be overwritten: on a CPU, new memory costs more than arithmetic."""
    return not torch.is_grad_enabled() and peek_interpreter_stack() is None


def times(fresh: Tensor, factor: Tensor) -> Tensor:
    """The product with a factor, in the memory of `fresh` if that is allowed."""
    return fresh.mul_(factor) if in_place() else fresh * factor


def applied(function: type[torch.autograd.Function], *arguments):
    """The results of a function with gradients of its own, without their bookkeeping where none are needed."""
    return function.forward(*arguments) if in_place() else function.apply(*arguments)


def weighted_squares(t: Tensor, weight: Tensor) -> Tensor:
    """`Σ w t²` over the entries of each sample, `(m, b)`, for t `(m, b, ...)` and w `(b, ...)`."""
    return times(t * t, weight).flatten(2).sum(-1)


def gradients_of_squares(
    t: Tensor, weight: Tensor, of_squares: Tensor, start: Tensor | None
) -> tuple[Tensor | None, Tensor]:
    """What `Σ w t²` adds to the gradient `start` of t, `None` if that is not wanted, and the gradient of w."""
    scaled = t * of_squares.reshape(*of_squares.shape, *[1] * (t.ndim - 2))
    if start is not None:
        weight = weight.unsqueeze(0)
        fresh = start.addcmul_ if in_place() else partial(torch.addcmul, start)
        start = fresh(scaled, weight, value=2)
    return start, added_up(times(scaled, t))


class _Bent(torch.autograd.Function):
    """`Σ w t²` over the entries of each sample, `(m, b)`, and `t s`, with gradients of few passes."""

    generate_vmap_rule = True

    @staticmethod
    def forward(t: Tensor, slope: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return weighted_squares(t, weight), t * slope

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, of_form: Tensor, of_tangent: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        t, slope, weight = ctx.saved_tensors
        through = of_tangent * slope if ctx.needs_input_grad[0] else None
        of_t, of_weight = gradients_of_squares(t, weight, of_form, through)
        return of_t, added_up(of_tangent * t), of_weight


class _Applied(torch.autograd.Function):
    """σ(z), computed before, with the derivative of its rule, whose own derivative is known in closed form."""

    @staticmethod
    def forward(ctx, z: Tensor, out: Tensor, slopes: _Slopes) -> Tensor:
        ctx.slopes = slopes
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient * ctx.slopes.first(), None, None


def emit_elementwise(
    rec: Recorder, x: Value, out: Tensor, derivatives: Callable[[], Derivatives], curved: bool = True
) -> Tensor:
    """Record `out = σ(x)`; σ' and σ'' are computed when a tangent first needs them."""
    return _emit_slopes(rec, x, out, _Slopes(derivatives, rec.light), curved)


def _emit_slopes(rec: Recorder, x: Value, out: Tensor, slopes: _Slopes, curved: bool) -> Tensor:
    several = rec.samples > 1  # closures must not hold the recorder
    if rec.light and not curved:  # a step function takes less memory than the point it is computed from
        with torch.no_grad():
            slopes.known, slopes.derivatives = (slopes.derivatives()[0], None), _released

    def push(t):  # both factors have the same number of dimensions: the gradient for one direction needs no sum
        return t * slopes.first().unsqueeze(0)

    def form(adj):
        weight = adj * slopes.second()

        def second(t):
            if several and t.shape[1] == 1 and x.layout == (0, 1):  # the same tangent for all samples
                return (t * t).reshape(len(t), -1) @ weight.reshape(len(weight), -1).T, push(t)
            if x.layout != (0, 1) or t.ndim == 2 or t.shape[1:] != weight.shape:
                return t * t * weight, push(t)
            if torch.is_grad_enabled():
                return _Bent.apply(t, slopes.first(), weight)
            square = t * t  # one buffer for all three results: on a CPU, new memory costs more than arithmetic
            return square.mul_(weight).flatten(2).sum(-1), torch.mul(t, slopes.first(), out=square)

        return second

    if not curved:
        return rec.emit([x], out, push, layout=x.layout)

    def series(t):
        return composed(slopes.taylor(x, len(t)), t)

    def cubic(adj):
        first, second, third = slopes.taylor(x, 3)
        mixed, cubed = 2 * adj * second, adj * third

        def along(t, u):
            square = t * t
            if several and u is None and t.shape[1] == 1 and x.layout == (0, 1):  # the same tangent for all samples
                total = (square * t).reshape(len(t), -1) @ cubed.reshape(len(cubed), -1).T
                return t * first, square * second, total
            bent = square * second
            if not in_place() or square.shape[1:] != cubed.shape:
                bent, total = (bent, square * cubed) if u is None else (bent + u * first, square * cubed + u * mixed)
                return t * first, bent, total * t
            total = square.mul_(cubed)
            if u is not None:
                bent.addcmul_(u, first)
                total.addcmul_(u, mixed)
            return t * first, bent, total.mul_(t)

        return along

    return rec.emit([x], out, push, form, series, layout=x.layout, joint=True, cubic=cubic)


def _mask(derivatives: Callable[[], Derivatives]) -> Derivatives:
    """A first derivative of 0 or 1 as a Boolean mask, which is faster and at most a quarter as large."""
    return derivatives()[0].bool(), None


def _elementwise(rec, func, input, *args, **kwargs):
    x = rec.find(input)
    if x is None or tracked_elsewhere(rec, args, kwargs):
        return rec.local(rec, func, input, *args, **kwargs)
    # PyTorch's own function suffices: only its first and second derivatives in reverse mode are used, which are right.
    curved = func not in PIECEWISE_LINEAR
    slopes = _Slopes(_released, rec.light)
    if not curved or not input.requires_grad or peek_interpreter_stack() is not None:
        out = func(input, *args, **kwargs)
    else:
        with torch.no_grad():
            out = func(input, *args, **kwargs)
        out = _Applied.apply(input, out, slopes)
    point = None if func in FROM_RESULT else rec.keep(input)
    result = rec.keep(out) if func in FROM_RESULT | FROM_BOTH else None
    derivatives = partial(ACTIVATIONS[func], point, result, *args, **kwargs)
    slopes.derivatives = partial(_mask, derivatives) if func in ZERO_ONE_SLOPES else derivatives
    return _emit_slopes(rec, x, out, slopes, curved)


RULES.update(dict.fromkeys(ACTIVATIONS, _elementwise))


@rule("clamp", "clip")
def _clamp(rec, func, input, min=None, max=None):
    x = rec.find(input)
    if tracked_elsewhere(rec, (min, max), {}):
        return rec.local(rec, func, input, min, max)
    inside = torch.ones_like(input, dtype=torch.bool)
    inside = inside if min is None else inside & (input >= min)
    inside = inside if max is None else inside & (input <= max)
    out = func(input, min, max)
    return emit_elementwise(rec, x, out, lambda: (inside, None), curved=False)


@rule("masked_fill")
def _masked_fill(rec, func, input, mask, value):
    x = rec.find(input)
    if x is None or rec.find(value) is not None or input.shape != torch.broadcast_shapes(input.shape, mask.shape):
        return rec.local(rec, func, input, mask, value)
    keep = (~mask).expand(input.shape)
    return emit_elementwise(rec, x, func(input, mask, value), lambda: (keep, None), curved=False)


@rule("softmax")
def _softmax(rec, func, input, dim, dtype=None, **kwargs):
    x = rec.find(input)
    dim = dim % input.ndim
    if dim == x.layout[0] or dtype is not None:
        return rec.local(rec, func, input, dim, dtype=dtype)
    out = func(input, dim, **kwargs)
    axis = dim - input.ndim  # counted from the end, because tangents have one more dimension at the start
    s = rec.keep(out)

    def centered(t):
        return t - (s * t).sum(axis, keepdim=True)

    def form(adj):
        weight = (adj - (adj * s).sum(axis, keepdim=True)) * s

        def second(t):
            t = centered(t)
            return t * t * weight

        return second

    def series(t):
        return softmax(s, t, axis)[0]

    return rec.emit([x], out, lambda t: s * centered(t), form, series, layout=x.layout)


@rule("log_softmax")
def _log_softmax(rec, func, input, dim, dtype=None, **kwargs):
    input = input if dtype is None else rec.run(torch.Tensor.to, input, dtype)
    return rec.run(torch.sub, input, rec.run(torch.logsumexp, input, dim, True))


@rule("logsumexp")
def _logsumexp(rec, func, input, dim, keepdim=False):
    x = rec.find(input)
    if not isinstance(dim, int) or dim % input.ndim == x.layout[0]:
        return rec.local(rec, func, input, dim, keepdim)
    axis = dim % input.ndim - input.ndim
    out = func(input, axis, True)
    p = rec.keep((input - out).exp())

    def form(adj):
        def second(t):
            t = t - (p * t).sum(axis, keepdim=True)
            return adj * (p * t * t).sum(axis, keepdim=True)

        return second

    def mean(t):
        return (p * t).sum(axis, keepdim=True)

    def series(t):
        return softmax(p, t, axis)[1]

    result = rec.emit([x], out, mean, form, series, layout=x.layout)
    return result if keepdim else rec.run(torch.squeeze, result, axis)
