"""Closed-form derivatives of elementwise functions against mpmath, far tails and options included."""

import mpmath
import pytest
import torch
import torch.nn.functional as F
from problems import randn
from torch.testing import assert_close

from nfm_theory import linearize
from nfm_theory.calculus.engine.activations import ACTIVATIONS, PIECEWISE_LINEAR, all_names, power
from nfm_theory.calculus.engine.nonlinear import _Bent

EVERYWHERE = [-60.0, -25.0, -7.0, -3.2, -1.3, -0.2, 0.3, 0.9, 2.1, 3.4, 8.0, 21.0, 70.0]
POSITIVE = [1e-3, 0.2, 0.9, 1.7, 40.0]
MODERATE = [-5.0, -1.3, -0.2, 0.3, 2.1, 4.0]


def sigmoid(x):
    return 1 / (1 + mpmath.exp(-x))


def softplus(x, beta=1, threshold=20):
    return x if beta * x > threshold else mpmath.log1p(mpmath.exp(beta * x)) / beta


def elu(x, alpha=1):
    return x if x > 0 else alpha * mpmath.expm1(x)


def gelu_tanh(x):
    return x / 2 * (1 + mpmath.tanh(mpmath.sqrt(2 / mpmath.pi) * (x + mpmath.mpf("0.044715") * x**3)))


def clipped(x, low, high):
    return min(max(x, mpmath.mpf(low)), mpmath.mpf(high))


SELU = (mpmath.mpf("1.0507009873554804934193349852946"), mpmath.mpf("1.6732632423543772848170429916717"))

#: id -> (torch function, options, formula, points)
CASES = {
    "tanh": (torch.tanh, {}, mpmath.tanh, EVERYWHERE),
    "sigmoid": (torch.sigmoid, {}, sigmoid, EVERYWHERE),
    "silu": (F.silu, {}, lambda x: x * sigmoid(x), EVERYWHERE),
    "mish": (F.mish, {}, lambda x: x * mpmath.tanh(mpmath.log1p(mpmath.exp(x))), EVERYWHERE),
    "gelu": (F.gelu, {}, lambda x: x * mpmath.ncdf(x), EVERYWHERE),
    "gelu by tanh": (F.gelu, {"approximate": "tanh"}, gelu_tanh, EVERYWHERE),
    "softplus": (F.softplus, {}, softplus, EVERYWHERE),
    "softplus, beta": (F.softplus, {"beta": 2.25}, lambda x: softplus(x, 2.25), EVERYWHERE),
    "softplus, threshold": (F.softplus, {"beta": 0.5, "threshold": 1.0}, lambda x: softplus(x, 0.5, 1), EVERYWHERE),
    "logsigmoid": (F.logsigmoid, {}, lambda x: mpmath.log(sigmoid(x)), EVERYWHERE),
    "elu": (F.elu, {}, elu, EVERYWHERE),
    "elu, alpha": (F.elu, {"alpha": 0.3}, lambda x: elu(x, mpmath.mpf(0.3)), EVERYWHERE),
    "selu": (F.selu, {}, lambda x: SELU[0] * elu(x, SELU[1]), EVERYWHERE),
    "softsign": (F.softsign, {}, lambda x: x / (1 + abs(x)), EVERYWHERE),
    "tanhshrink": (F.tanhshrink, {}, lambda x: x - mpmath.tanh(x), EVERYWHERE),
    "relu": (F.relu, {}, lambda x: max(x, 0), EVERYWHERE),
    "leaky_relu": (F.leaky_relu, {}, lambda x: x if x > 0 else mpmath.mpf(0.01) * x, EVERYWHERE),
    "leaky_relu, slope": (
        *(F.leaky_relu, {"negative_slope": 0.3}),
        *(lambda x: x if x > 0 else mpmath.mpf(0.3) * x, EVERYWHERE),
    ),
    "relu6": (F.relu6, {}, lambda x: clipped(x, 0, 6), EVERYWHERE),
    "hardtanh": (F.hardtanh, {}, lambda x: clipped(x, -1, 1), EVERYWHERE),
    "hardtanh, bounds": (F.hardtanh, {"min_val": -0.25, "max_val": 2.5}, lambda x: clipped(x, -0.25, 2.5), EVERYWHERE),
    "abs": (torch.abs, {}, abs, EVERYWHERE),
    "hardswish": (F.hardswish, {}, lambda x: x * clipped(x + 3, 0, 6) / 6, EVERYWHERE),
    "exp": (torch.exp, {}, mpmath.exp, MODERATE),
    "log": (torch.log, {}, mpmath.log, POSITIVE),
    "log1p": (torch.log1p, {}, mpmath.log1p, POSITIVE),
    "sqrt": (torch.sqrt, {}, mpmath.sqrt, POSITIVE),
    "rsqrt": (torch.rsqrt, {}, lambda x: 1 / mpmath.sqrt(x), POSITIVE),
    "reciprocal": (torch.reciprocal, {}, lambda x: 1 / x, EVERYWHERE),
    "square": (torch.square, {}, lambda x: x**2, EVERYWHERE),
    "sin": (torch.sin, {}, mpmath.sin, MODERATE),
    "cos": (torch.cos, {}, mpmath.cos, MODERATE),
    "erf": (torch.erf, {}, mpmath.erf, MODERATE),
}
FLAT = {"relu", "leaky_relu", "leaky_relu, slope", "relu6", "hardtanh", "hardtanh, bounds", "abs"}


def derivatives(name):
    function, options, _, points = CASES[name]
    z = torch.tensor(points, dtype=torch.float64, requires_grad=True)
    return z, ACTIVATIONS[function](z, function(z, **options), **options)


def witness(name, order):
    _, _, formula, points = CASES[name]
    with mpmath.workdps(60):
        values = [mpmath.diff(formula, mpmath.mpf(x), order, h=mpmath.mpf(10) ** -15) for x in points]
    return torch.tensor([float(v) for v in values], dtype=torch.float64)


def test_every_function_is_tested():
    assert set(ACTIVATIONS.values()) == {ACTIVATIONS[function] for function, *_ in CASES.values()}


@pytest.mark.parametrize("name", CASES)
def test_derivatives_are_those_of_mpmath(name):
    z, (first, second) = derivatives(name)
    assert_close(first.detach(), witness(name, 1), rtol=1e-12, atol=1e-14)
    if second is None:
        second = torch.zeros_like(z)
    assert first.dtype == second.dtype == torch.float64
    assert_close(second.detach(), witness(name, 2), rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("name", CASES)
def test_what_has_no_second_derivative_is_told(name):
    _, (_, second) = derivatives(name)
    assert (second is None) == (name in FLAT) == (CASES[name][0] in PIECEWISE_LINEAR)


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "silu", "gelu", "softplus", "mish", "gelu by tanh"])
def test_the_derivatives_are_themselves_differentiable_twice(name):
    function, options, *_ = CASES[name]
    z = torch.tensor([-3.0, -0.7, 0.2, 1.9], dtype=torch.float64, requires_grad=True)

    def both(z):
        return ACTIVATIONS[function](z, function(z, **options), **options)

    torch.autograd.gradcheck(both, z)
    torch.autograd.gradgradcheck(both, z)
    third = torch.func.vmap(torch.func.grad(lambda v: both(v)[1]))(z)  # torch.func differentiates them too
    assert_close(third, torch.autograd.grad(both(z)[1].sum(), z)[0])


@pytest.mark.parametrize("name", CASES)
def test_gradients_of_the_derivatives_are_finite_and_follow_each_other(name):
    z, (first, second) = derivatives(name)
    if not first.requires_grad:
        return
    (slope,) = torch.autograd.grad(first.sum(), z, retain_graph=True)
    if second is not None:
        assert_close(slope, second.detach(), rtol=1e-10, atol=1e-13)
    if second is not None and second.requires_grad:
        assert torch.autograd.grad(second.sum(), z)[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_huge_arguments_do_no_harm(name, dtype):
    function, options, _, points = CASES[name]
    if points is not EVERYWHERE or name == "square":
        return  # not bounded in its derivatives
    z = torch.tensor([-1e8, -800.0, -90.0, 90.0, 800.0, 1e8], dtype=dtype, requires_grad=True)
    found = [d for d in ACTIVATIONS[function](z, function(z, **options), **options) if d is not None]
    for d in found:
        assert d.dtype == dtype
        assert d.isfinite().all()
        if d.requires_grad:
            (slope,) = torch.autograd.grad(d.sum(), z, retain_graph=True)
            assert slope.isfinite().all()


@pytest.mark.parametrize("exponent", [1, 2, 3, -1, 0.5, 2.5, -0.3])
def test_powers(exponent):
    z = torch.tensor(POSITIVE, dtype=torch.float64)
    first, second = power(z, exponent)
    with mpmath.workdps(60):
        formula = lambda x: x ** mpmath.mpf(exponent)  # noqa: E731
        expected = [[float(mpmath.diff(formula, mpmath.mpf(x), k)) for x in POSITIVE] for k in (1, 2)]
    assert_close(first, torch.tensor(expected[0], dtype=torch.float64), rtol=1e-12, atol=0)
    if exponent == 1:
        assert second is None
    else:
        assert_close(second, torch.tensor(expected[1], dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("exponent", [0, 1, 2, 3])
def test_powers_at_zero_and_below(exponent):
    h = torch.tensor([[0.0, -1.5]], dtype=torch.float64)
    v, slope = torch.eye(2, dtype=torch.float64).unsqueeze(1), torch.ones(1, 1, dtype=torch.float64)
    tangents, hessian_forms = linearize(lambda u: (u**exponent).sum(-1, keepdim=True), h).sweep(v, slope)
    first = {0: [0, 0], 1: [1, 1], 2: [0, -3.0], 3: [0, 6.75]}[exponent]
    second = {0: [0, 0], 1: [0, 0], 2: [2, 2], 3: [0, -9.0]}[exponent]
    assert tangents.flatten().tolist() == pytest.approx(first)
    assert hessian_forms.flatten().tolist() == pytest.approx(second)


@pytest.mark.parametrize("name", CASES)
def test_all_names_lead_to_the_same_result(name):
    function, options, _, points = CASES[name]
    h = torch.tensor(points, dtype=torch.float64).reshape(1, -1)
    slope, v = torch.ones(1, len(points), dtype=torch.float64), torch.ones(1, 1, len(points), dtype=torch.float64)
    _, (first, second) = derivatives(name)
    total = 0.0 if second is None else float(second.detach().sum())
    for other in all_names(function.__name__):
        try:
            other(h, **options)
        except TypeError:  # not all names take all options
            continue
        at = linearize(lambda u, other=other: other(u, **options), h, engine="tangent-adjoint")
        tangents, hessian_forms = at.sweep(v, slope)
        assert_close(tangents[0, 0], first.detach(), rtol=1e-14, atol=0)
        assert float(hessian_forms) == pytest.approx(total, rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("directions", [1, 3])
def test_bent_tangents_have_derivatives_of_both_orders(directions):
    t, slope, weight = (randn(seed, *s).requires_grad_() for seed, s in enumerate([(directions, 4, 5), (4, 5), (4, 5)]))
    forms, moved = _Bent.apply(t, slope, weight)
    assert_close(forms, (t**2 * weight).sum(-1))
    assert_close(moved, t * slope)
    torch.autograd.gradcheck(_Bent.apply, (t, slope, weight))
    torch.autograd.gradgradcheck(_Bent.apply, (t, slope, weight))
    torch.autograd.gradcheck(_Bent.apply, (t.detach(), slope, weight))
    torch.autograd.gradcheck(_Bent.apply, (t, slope.detach(), weight.detach()))
