r"""First and second derivatives of elementwise functions, in closed form.

| function | σ' | σ'' |
|---|---|---|
| tanh, s = tanh z | 1 - s² | -2 s σ' |
| sigmoid, s | s (1 - s) | (1 - 2 s) σ' |
| SiLU, z s | s + z s' | 2 s' + z s'' |
| softplus | s(βz) | β s' |
| GELU, z Φ(z) | Φ + z φ | (2 - z²) φ |
| ReLU and other piecewise-linear functions | a step function | 0 almost everywhere, returned as `None` |

Every rule can be differentiated again, so that a penalty built from it has parameter gradients. For this it is a
composition of PyTorch operations or, for the most common functions, comes with a closed form of the next derivative.
Each rule is registered under all names that PyTorch gives the function (`torch.tanh`, `Tensor.tanh`, ..).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Derivatives = tuple[Tensor, Tensor | None]

#: Maps a function of PyTorch to its rule `(z, out, *args, **kwargs) -> (σ'(z), σ''(z) or None)`.
ACTIVATIONS: dict[Callable, Callable[..., Derivatives]] = {}
#: Functions whose second derivative is 0 almost everywhere.
PIECEWISE_LINEAR: set[Callable] = set()
#: Functions whose rules need only the result.
FROM_RESULT: set[Callable] = set()
#: Functions whose rules need the argument and the result.
FROM_BOTH: set[Callable] = set()
# PyTorch's stub of `torch._C` lacks `_nn`
_NAMESPACES = (torch, torch.Tensor, F, torch.special, torch._C._nn)  # pyright: ignore[reportAttributeAccessIssue]


def all_names(*names: str) -> list[Callable]:
    """All functions that the namespaces of PyTorch have under these names."""
    found = (getattr(space, name, None) for space in _NAMESPACES for name in names)
    return [function for function in found if callable(function)]


#: Piecewise-linear functions whose first derivative is 0 or 1.
ZERO_ONE_SLOPES: set[Callable] = set(all_names("relu", "relu6", "hardtanh"))


def _activation(*names: str, piecewise_linear: bool = False, reads: str = "argument"):
    def register(rule):
        ACTIVATIONS.update(dict.fromkeys(all_names(*names), rule))
        if piecewise_linear:
            PIECEWISE_LINEAR.update(all_names(*names))
        if reads != "argument":
            (FROM_RESULT if reads == "result" else FROM_BOTH).update(all_names(*names))
        return rule

    return register


class _Closed(torch.autograd.Function):
    """σ' and σ'' with gradients in closed form, which are faster than the gradients of the formulas."""

    generate_vmap_rule = True

    @staticmethod
    def forward(point: Tensor, formulas: Callable, raised: tuple[Callable, ...]) -> tuple[Tensor, ...]:
        """`formulas` maps the point to (σ', σ'', ..), `raised` the point and these results to their derivatives."""
        return formulas(point)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.raised = inputs[2]
        ctx.save_for_backward(inputs[0], *output)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, *gradients: Tensor | None) -> tuple[Tensor | None, None, None]:
        total = None
        for gradient, raised in zip(gradients, ctx.raised, strict=True):
            if gradient is not None:
                slope = raised(*ctx.saved_tensors)
                total = gradient * slope if total is None else torch.addcmul(total, gradient, slope)
        return total, None, None


def _second(point, first, second, *others):
    return second


def _tanh_formulas(out):
    first = torch.addcmul(out.new_ones(()), out, out, value=-1)
    return first, torch.addcmul(out.new_zeros(()), out, first, value=-2)


_TANH_RAISED = (lambda t, first, second: -2 * t, lambda t, first, second: torch.rsub(first, 4, alpha=6))


@_activation("tanh", reads="result")
def _tanh(z, out):
    return _Closed.apply(out, _tanh_formulas, _TANH_RAISED)


def _sigmoid_formulas(out):
    first = out * (1 - out)
    return first, first * (1 - 2 * out)


_SIGMOID_RAISED = (lambda s, first, second: 1 - 2 * s, lambda s, first, second: 1 - 6 * first)


@_activation("sigmoid", "expit", reads="result")
def _sigmoid(z, out):
    return _Closed.apply(out, _sigmoid_formulas, _SIGMOID_RAISED)


def _silu_formulas(z):
    s = torch.sigmoid(z)
    slope = s * (1 - s)
    return s + z * slope, slope * (2 + z * (1 - 2 * s))


def _silu_raised(z, first, second):
    s = torch.sigmoid(z)
    slope, turn = s * (1 - s), 1 - 2 * s
    return slope * (turn * (3 + z * turn) - 2 * z * slope)


@_activation("silu")
def _silu(z, out, inplace=False):
    return _Closed.apply(z, _silu_formulas, (_second, _silu_raised))


@_activation("mish")
def _mish(z, out, inplace=False):
    t, s = torch.tanh(F.softplus(z)), torch.sigmoid(z)
    inner, slope = 1 - t * t, s * (1 - s)
    curvature = inner * (slope - 2 * t * s * s)
    return t + z * inner * s, 2 * inner * s + z * curvature


def _gelu_formulas(z):
    density = torch.addcmul(z.new_full((), -math.log(2 * math.pi) / 2), z, z, value=-0.5).exp_()
    first = torch.ops.aten.gelu_backward(z.new_ones(()).expand_as(z), z)
    return first, torch.addcmul(z.new_full((), 2), z, z, value=-1).mul_(density), density


def _gelu_raised(z, first, second, density):
    return torch.addcmul(z.new_zeros(()), z, torch.add(second, density, alpha=2), value=-1)


def _density_raised(z, first, second, density):
    return torch.addcmul(z.new_zeros(()), z, density, value=-1)


@_activation("gelu")
def _gelu(z, out, approximate="none"):
    if approximate == "none":
        return _Closed.apply(z, _gelu_formulas, (_second, _gelu_raised, _density_raised))[:2]
    scale, cubic = math.sqrt(2 / math.pi), 0.044715
    t = torch.tanh(scale * (z + cubic * z**3))
    inner, slope, curvature = 1 - t * t, scale * (1 + 3 * cubic * z * z), scale * 6 * cubic * z
    first = (1 + t) / 2 + z * inner * slope / 2
    return first, inner * slope + z * inner * (curvature / 2 - t * slope * slope)


@_activation("softplus")
def _softplus(z, out, beta=1.0, threshold=20.0):
    s = torch.sigmoid(beta * z)
    far = beta * z > threshold  # where PyTorch replaces the function by a line
    return torch.where(far, 1.0, s), torch.where(far, 0.0, beta * s * (1 - s))


@_activation("logsigmoid", "log_sigmoid")
def _logsigmoid(z, out):
    s = torch.sigmoid(-z)
    return s, -s * (1 - s)


@_activation("elu")
def _elu(z, out, alpha=1.0, inplace=False):
    # The clamp keeps exp finite where z > 0: otherwise inf * 0 would make the gradients nan.
    tail = alpha * torch.exp(z.clamp(max=0))
    return torch.where(z > 0, 1.0, tail), torch.where(z > 0, 0.0, tail)


@_activation("selu")
def _selu(z, out, inplace=False):
    scale, alpha = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717
    first, second = _elu(z, out, alpha)
    return scale * first, scale * second


@_activation("softsign")
def _softsign(z, out):
    r = 1 / (1 + z.abs())
    return r * r, -2 * z.sign() * r**3


@_activation("tanhshrink")
def _tanhshrink(z, out):
    first, second = _tanh(z, torch.tanh(z))
    return 1 - first, -second


@_activation("leaky_relu", piecewise_linear=True)
def _leaky_relu(z, out, negative_slope=0.01, inplace=False):
    return torch.where(z > 0, torch.ones_like(z), negative_slope), None


@_activation("hardtanh", piecewise_linear=True)
def _hardtanh(z, out, min_val=-1.0, max_val=1.0, inplace=False):
    return ((z > min_val) & (z < max_val)).to(z.dtype), None


@_activation("hardswish")
def _hardswish(z, out, inplace=False):
    inside = (z > -3) & (z < 3)
    return torch.where(inside, z / 3 + 0.5, (z >= 3).to(z.dtype)), inside.to(z.dtype) / 3


@_activation("log")
def _log(z, out):
    r = 1 / z
    return r, -r * r


@_activation("sqrt", reads="both")
def _sqrt(z, out):
    first = 0.5 / out
    return first, -0.5 * first / z


@_activation("rsqrt", reads="both")
def _rsqrt(z, out):
    first = -0.5 * out / z
    return first, -1.5 * first / z


@_activation("erf")
def _erf(z, out):
    first = 2 / math.sqrt(math.pi) * torch.exp(-z * z)
    return first, -2 * z * first


_activation("relu", piecewise_linear=True)(lambda z, out, inplace=False: ((z > 0).to(z.dtype), None))
_activation("relu6", piecewise_linear=True)(lambda z, out, inplace=False: _hardtanh(z, out, 0, 6))
_activation("abs", "absolute", piecewise_linear=True)(lambda z, out: (z.sign(), None))
_activation("exp", reads="result")(lambda z, out: (out, out))
_activation("log1p")(lambda z, out: _log(1 + z, out))
_activation("reciprocal", reads="result")(lambda z, out: (-out * out, 2 * out**3))
_activation("square")(lambda z, out: (2 * z, torch.full_like(z, 2.0)))
_activation("sin", reads="both")(lambda z, out: (torch.cos(z), -out))
_activation("cos", reads="both")(lambda z, out: (-torch.sin(z), -out))


def power(z: Tensor, exponent: float) -> Derivatives:
    """First and second derivative of `z ** exponent`, where the exponent is a number."""
    if exponent in (0, 1):
        return torch.full_like(z, exponent), None
    first = exponent * z ** (exponent - 1)
    return first, exponent * (exponent - 1) * z ** (exponent - 2)
