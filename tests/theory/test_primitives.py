"""Derivatives inside `exact_derivatives()` against three witnesses that share nothing with it.

1. mpmath's Taylor coefficients, for activations.
2. Nested reverse mode through formulas written out here, for everything else.
3. Chebyshev interpolation of plain forward values, for whole networks.
"""

import math

import mpmath
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import mlp, preact_resnet18, randn, small_cnn, tiny_transformer
from tiers import slow, some_slow
from torch import nn
from torch.func import functional_call, grad, jvp, vmap
from torch.testing import assert_close

from nfm_theory.calculus.replacements import REPLACEMENTS, exact_derivatives

ZERO = torch.zeros((), dtype=torch.float64)
ONE = torch.ones((), dtype=torch.float64)


def forward(phi):
    return lambda t: jvp(phi, (t,), (torch.ones_like(t),))[1]


def backward(phi):
    return grad(lambda t: phi(t).sum())


def differentiate(phi, word):
    """Derivative of a function of a scalar; each letter, inside out, is a `jvp` (j) or a `grad` (g)."""
    for letter in word:
        phi = forward(phi) if letter == "j" else backward(phi)
    return phi


def words(order):
    """Forward over forward, forward over reverse, reverse over forward, reverse over reverse."""
    if order == 1:
        return ["j", "g"]
    return ["j" * order, "g" + "j" * (order - 1), "j" * (order - 1) + "g", "g" * order]


def reverse(phi, order):
    """Value and derivatives of `phi` at zero, up to `order`, by nested double backward."""
    t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    jet = [phi(t)]
    for _ in range(order):  # a polynomial of lower degree ends in a constant
        constant = not jet[-1].requires_grad
        jet.append(ZERO if constant else torch.autograd.grad(jet[-1], t, create_graph=True)[0])
    return jet


# Activations against mpmath -----------------------------------------------------------------------------------


def mp_sigmoid(x):
    return 1 / (1 + mpmath.exp(-x))


def mp_softplus(x):
    return mpmath.log(1 + mpmath.exp(x))


def mp_gelu_tanh(x):
    return x / 2 * (1 + mpmath.tanh(mpmath.sqrt(2 / mpmath.pi) * (x + mpmath.mpf("0.044715") * x**3)))


SMOOTH = {
    "silu": (F.silu, lambda x: x * mp_sigmoid(x)),
    "silu in place": (lambda t: F.silu(t * 1, inplace=True), lambda x: x * mp_sigmoid(x)),
    "mish": (F.mish, lambda x: x * mpmath.tanh(mp_softplus(x))),
    "mish in place": (lambda t: nn.Mish(inplace=True)(t * 1), lambda x: x * mpmath.tanh(mp_softplus(x))),
    "gelu": (F.gelu, lambda x: x * mpmath.ncdf(x)),
    "gelu tanh": (lambda t: F.gelu(t, approximate="tanh"), mp_gelu_tanh),
    "softplus": (F.softplus, mp_softplus),
    "elu": (lambda t: F.elu(t - 3), lambda x: mpmath.exp(x - 3) - 1),
    "celu": (lambda t: F.celu(t - 3, 1.5), lambda x: 1.5 * (mpmath.exp((x - 3) / 1.5) - 1)),
    "elu in place": (lambda t: F.elu(t - 3, inplace=True), lambda x: mpmath.exp(x - 3) - 1),
    "sigmoid": (torch.sigmoid, mp_sigmoid),
    "tanh": (torch.tanh, mpmath.tanh),
    "logsigmoid": (F.logsigmoid, lambda x: -mp_softplus(-x)),
    "relu in place": (lambda t: F.relu(t + 3, inplace=True) ** 5, lambda x: (x + 3) ** 5),
    "hardsigmoid": (lambda t: F.hardsigmoid(t) ** 5, lambda x: (x / 6 + 0.5) ** 5),
    "hardsigmoid in place": (lambda t: F.hardsigmoid(t * 1, inplace=True) ** 5, lambda x: (x / 6 + 0.5) ** 5),
    "glu": (lambda t: F.glu(torch.stack([t, t * t]), 0)[0], lambda x: x * mp_sigmoid(x**2)),
    "bce": (lambda t: F.binary_cross_entropy_with_logits(t, 0 * t.detach() + 0.3, reduction="none"),
            lambda x: mp_softplus(x) - 0.3 * x),
    "soft margin": (lambda t: F.soft_margin_loss(t, -ONE, reduction="none"), mp_softplus),
    "logsumexp": (lambda t: torch.logsumexp(torch.stack([t, -2 * t, t * t]), 0),
                  lambda x: mpmath.log(mpmath.exp(x) + mpmath.exp(-2 * x) + mpmath.exp(x * x))),
    "log_softmax": (lambda t: F.log_softmax(torch.stack([t, -t]), 0)[0], lambda x: -mp_softplus(-2 * x)),
    "softmax": (lambda t: F.softmax(torch.stack([t, -t]), 0)[0], lambda x: mp_sigmoid(2 * x)),
}  # fmt: skip


@pytest.mark.parametrize("orders", [(1, 2, 3), pytest.param((4, 5), marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("name", SMOOTH)
def test_activations_have_their_taylor_coefficients(name, orders):
    function, mp_function = SMOOTH[name]
    points = [0.0, -0.7, 1.3]
    with mpmath.workdps(40):
        series = [mpmath.taylor(mp_function, mpmath.mpf(point), max(orders)) for point in points]
    for order in orders:
        expected = torch.tensor([float(c[order]) * math.factorial(order) for c in series], dtype=torch.float64)
        for word in words(order)[:3]:
            with exact_derivatives(), torch.no_grad():
                actual = differentiate(function, word)(torch.tensor(points, dtype=torch.float64))
            assert_close(actual, expected, rtol=1e-9, atol=1e-9, msg=lambda m, w=word: f"{w}: {m}")


@pytest.mark.parametrize("z", [-25.0, 25.0])
def test_logistic_loss_keeps_the_curvature_of_far_tails(z):
    with exact_derivatives():
        second = differentiate(lambda t: F.binary_cross_entropy_with_logits(t, ONE), "gj")(ONE * z)
    assert_close(second, ONE * math.exp(-25), rtol=1e-4, atol=0.0)


# Operations with several inputs against formulas written out --------------------------------------------------


def standardize(z, dims):
    centered = z - z.sum(dims, keepdim=True) / math.prod(z.shape[d] for d in dims)
    variance = (centered**2).sum(dims, keepdim=True) / math.prod(z.shape[d] for d in dims)
    return centered / (variance + 1e-5) ** 0.5


def per_channel(z, p):
    return z * p["weight"][:, None] + p["bias"][:, None]


def softmax(z):
    e = torch.exp(z)
    return e / e.sum(-1, keepdim=True)


def attend(q, k, v, allowed=None, extra=0.0, scale=None):
    scores = torch.einsum("...id,...jd->...ij", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale) + extra
    e = torch.exp(scores) if allowed is None else torch.exp(scores) * allowed
    empty = 0 if allowed is None else ~allowed.any(-1, keepdim=True)  # such a row is zero
    return torch.einsum("...ij,...jd->...id", e / (e.sum(-1, keepdim=True) + empty), v)


def heads_by_hand(x, p, num_heads=2, allowed=None):
    q, k, v = (x @ p["in_proj_weight"].T + p["in_proj_bias"]).chunk(3, -1)
    q, k, v = (z.unflatten(-1, (num_heads, -1)).transpose(1, 2) for z in (q, k, v))
    joined = attend(q, k, v, allowed).transpose(1, 2).flatten(2)
    return joined @ p["out_proj.weight"].T + p["out_proj.bias"]


def sub(p, prefix):
    return {name[len(prefix) + 1 :]: value for name, value in p.items() if name.startswith(prefix + ".")}


def encoder_by_hand(x, p, norm_first):
    def norm(z, name):
        return standardize(z, (-1,)) * p[f"{name}.weight"] + p[f"{name}.bias"]

    def feed(z):
        hidden = z @ p["linear1.weight"].T + p["linear1.bias"]
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
        return hidden @ p["linear2.weight"].T + p["linear2.bias"]

    if norm_first:
        x = x + heads_by_hand(norm(x, "norm1"), sub(p, "self_attn"))
        return x + feed(norm(x, "norm2"))
    x = norm(x + heads_by_hand(x, sub(p, "self_attn")), "norm1")
    return norm(x + feed(x), "norm2")


def module_case(module, shape, by_hand, **kwargs):
    def call(z, p):
        out = functional_call(module, p, (z, *((z, z) if isinstance(module, nn.MultiheadAttention) else ())), kwargs)
        return out[0] if isinstance(out, tuple) else out

    return call, by_hand, shape, {name: tuple(value.shape) for name, value in module.named_parameters()}


def encoder(norm_first):
    return nn.TransformerEncoderLayer(4, 2, 5, 0.0, "gelu", batch_first=True, norm_first=norm_first).double().eval()


MEAN, VAR = randn(1, 3), randn(2, 3).abs() + 0.5
MASK = torch.tensor([[1, 0, 1], [1, 1, 0], [0, 0, 0]], dtype=torch.bool)
BIAS = randn(3, 3, 3)
TARGET = torch.rand(3, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
AFFINE5, AFFINE3, AFFINE4 = ({"weight": (n,), "bias": (n,)} for n in (5, 3, 4))
PADDING = torch.tensor([[False, True, False], [False, False, False]])
qkv = lambda z: (z, torch.sin(z), z * z)  # noqa: E731


def group_norm_by_hand(z, p):
    return per_channel(standardize(z.reshape(2, 2, 10), (-1,)).reshape(2, 4, 5), p)


def running(z, p):
    return per_channel((z - MEAN[:, None]) / (VAR[:, None] + 1e-5) ** 0.5, p)


def bce(z, weight=1.0, pos_weight=1.0):
    probability = 1 / (1 + torch.exp(-z))
    return -weight * (pos_weight * TARGET * torch.log(probability) + (1 - TARGET) * torch.log(1 - probability))


# name -> PyTorch's function, the same by hand, shape of its input, shapes of its parameters
OPERATIONS = {
    "layer_norm": (lambda z, p: F.layer_norm(z, (5,), p["weight"], p["bias"]),
                   lambda z, p: standardize(z, (-1,)) * p["weight"] + p["bias"], (3, 5), AFFINE5),
    "layer_norm plain": (lambda z, p: torch.layer_norm(z, (3, 5)),
                         lambda z, p: standardize(z, (-2, -1)), (2, 3, 5), {}),
    "native_layer_norm": (lambda z, p: torch.native_layer_norm(z, (5,), None, None, 1e-5)[0],
                          lambda z, p: standardize(z, (-1,)), (3, 5), {}),
    "instance_norm": (lambda z, p: F.instance_norm(z, weight=p["weight"], bias=p["bias"]),
                      lambda z, p: per_channel(standardize(z, (-1,)), p), (2, 3, 5), AFFINE3),
    "torch.instance_norm": (lambda z, p: torch.instance_norm(z, None, None, None, None, True, 0.1, 1e-5, False),
                            lambda z, p: standardize(z, (-1,)), (2, 3, 5), {}),
    "instance_norm running": (lambda z, p: F.instance_norm(z, MEAN, VAR, p["weight"], p["bias"], False), running,
                              (2, 3, 5), AFFINE3),
    "group_norm": (lambda z, p: F.group_norm(z, 2, p["weight"], p["bias"]), group_norm_by_hand, (2, 4, 5), AFFINE4),
    "batch_norm": (lambda z, p: F.batch_norm(z, MEAN, VAR, p["weight"], p["bias"]), running, (2, 3, 5), AFFINE3),
    "torch.batch_norm": (lambda z, p: torch.batch_norm(z, None, p["bias"], MEAN, VAR, False, 0.1, 1e-5, False),
                         lambda z, p: running(z, {"weight": torch.ones(3), "bias": p["bias"]}), (2, 3, 5), AFFINE3),
    "batch_norm training": (lambda z, p: F.batch_norm(z, None, None, p["weight"], p["bias"], True),
                            lambda z, p: per_channel(standardize(z, (0, 2)), p), (2, 3, 5), AFFINE3),
    "batch_norm plain": (lambda z, p: F.batch_norm(z, MEAN, VAR),
                         lambda z, p: (z - MEAN[:, None]) / (VAR[:, None] + 1e-5) ** 0.5, (2, 3, 5), {}),
    "rms_norm": (lambda z, p: F.rms_norm(z, (5,), p["weight"]), lambda z, p: p["weight"] * z / (
        (z**2).sum(-1, keepdim=True) / 5 + torch.finfo(z.dtype).eps) ** 0.5, (3, 5), {"weight": (5,)}),
    "rms_norm plain": (lambda z, p: F.rms_norm(z, (5,), eps=0.1),
                       lambda z, p: z / ((z**2).sum(-1, keepdim=True) / 5 + 0.1) ** 0.5, (3, 5), {}),
    "vector norm": (lambda z, p: z.norm(dim=-1), lambda z, p: (z**2).sum(-1) ** 0.5, (3, 5), {}),
    "linalg norm": (lambda z, p: torch.linalg.vector_norm(z), lambda z, p: (z**2).sum() ** 0.5, (3, 5), {}),
    "normalize": (lambda z, p: F.normalize(z, dim=-1),
                  lambda z, p: z / (z**2).sum(-1, keepdim=True) ** 0.5, (3, 5), {}),
    "cosine": (lambda z, p: F.cosine_similarity(z, z[:1], dim=-1),
               lambda z, p: (z * z[:1]).sum(-1) / ((z**2).sum(-1) * (z[:1] ** 2).sum(-1)) ** 0.5, (3, 5), {}),
    "std": (lambda z, p: z.std(-1),
            lambda z, p: (((z - z.sum(-1, keepdim=True) / 5) ** 2).sum(-1) / 4) ** 0.5, (3, 5), {}),
    "biased std": (lambda z, p: torch.std(z, unbiased=False),
                   lambda z, p: (((z - z.sum() / 15) ** 2).sum() / 15) ** 0.5, (3, 5), {}),
    "bce": (lambda z, p: F.binary_cross_entropy_with_logits(z, TARGET, reduction="none"),
            lambda z, p: bce(z), (3, 5), {}),
    "weighted bce": (lambda z, p: F.binary_cross_entropy_with_logits(
        z, TARGET, weight=TARGET + 0.5, pos_weight=TARGET[0] + 0.3),
        lambda z, p: bce(z, TARGET + 0.5, TARGET[0] + 0.3).sum() / 15, (3, 5), {}),
    "cross_entropy": (lambda z, p: F.cross_entropy(z, TARGET, reduction="none"),
                      lambda z, p: -(TARGET * torch.log(softmax(z))).sum(-1), (3, 5), {}),
    "huber": (lambda z, p: F.huber_loss(z, TARGET, delta=1.0, weight=TARGET),
              lambda z, p: (TARGET * torch.where((z - TARGET).abs() < 1, (z - TARGET) ** 2 / 2,
                                                 (z - TARGET).abs() - 0.5)).sum() / 15, (3, 5), {}),
    "attention": (lambda z, p: F.scaled_dot_product_attention(*qkv(z)), lambda z, p: attend(*qkv(z)), (2, 2, 3, 4), {}),
    "causal attention": (lambda z, p: F.scaled_dot_product_attention(*qkv(z), is_causal=True),
                         lambda z, p: attend(*qkv(z), torch.ones(3, 3).tril().bool()), (2, 3, 4), {}),
    "masked attention": (lambda z, p: F.scaled_dot_product_attention(*qkv(z), attn_mask=MASK),
                         lambda z, p: attend(*qkv(z), MASK), (2, 3, 4), {}),
    "biased attention": (lambda z, p: F.scaled_dot_product_attention(
        *qkv(z), attn_mask=BIAS.masked_fill(~MASK, -math.inf), scale=0.3),
        lambda z, p: attend(*qkv(z), MASK, BIAS, 0.3), (2, 3, 4), {}),
    "grouped attention": (lambda z, p: F.scaled_dot_product_attention(z, z[:, :2], z[:, 2:], enable_gqa=True),
                          lambda z, p: attend(z, z[:, [0, 0, 1, 1]], z[:, [2, 2, 3, 3]]), (1, 4, 2, 3), {}),
    "multi-head": module_case(nn.MultiheadAttention(4, 2, batch_first=True).double().eval(), (2, 3, 4),
                              heads_by_hand, need_weights=False),
    "multi-head, padding": module_case(
        nn.MultiheadAttention(4, 2, batch_first=True).double().eval(), (2, 3, 4),
        lambda z, p: heads_by_hand(z, p, allowed=~PADDING[:, None, None]), need_weights=True, key_padding_mask=PADDING),
    "encoder layer": module_case(encoder(False), (2, 3, 4), lambda z, p: encoder_by_hand(z, p, False)),
    "encoder layer, norm first": module_case(encoder(True), (2, 3, 4), lambda z, p: encoder_by_hand(z, p, True)),
    "convolution, pools": (
        lambda z, p: F.avg_pool2d(F.adaptive_avg_pool2d(F.conv2d(z, p["weight"], p["bias"]), 2), 2),
        lambda z, p: (torch.einsum("nchwij,ocij->nohw", z.unfold(2, 2, 1).unfold(3, 2, 1), p["weight"])
                      + p["bias"][:, None, None]).sum((-2, -1), keepdim=True) / 16, (1, 2, 5, 5),
        {"weight": (3, 2, 2, 2), "bias": (3,)}),
    "max pool": (lambda z, p: torch.sin(F.max_pool2d(z, 2)),
                 lambda z, p: torch.sin(z.reshape(1, 2, 2, 2, 2, 2).amax((3, 5))), (1, 2, 4, 4), {}),
}  # fmt: skip


def line(operation, shape, shapes, seed=0):
    """A scalar function of (t, parameters), nonlinear in the operation's values, along a line; and parameters."""
    x, v = randn(seed, *shape), 0.5 * randn(seed + 1, *shape)
    params = {name: 1.0 + 0.4 * randn(seed + 2 + i, *s) for i, (name, s) in enumerate(sorted(shapes.items()))}
    params["inner"] = 1 + 0.2 * randn(seed + 50, *shape)  # in front of the operation: where PyTorch goes wrong
    with torch.no_grad():
        readout = randn(seed + 51, *operation(x, params).shape)

    def phi(t, params):
        out = operation((x + t * v) * params["inner"], params)
        return (readout * out + 0.1 * out**2).sum()

    return phi, params


def gradients(f, params):
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    found = torch.autograd.grad(f(leaves), list(leaves.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


def assert_same(actual, expected, **where):
    """Equal to 1e-9 of the largest entry."""
    size = max(float(e.abs().max()) for e in expected.values())
    for name, value in expected.items():
        assert_close(actual[name], value, rtol=1e-9, atol=1e-9 * size, msg=lambda m, n=name: f"{where} {n}: {m}")


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("orders", [(1, 2, 3), pytest.param((5,), marks=pytest.mark.slow)], ids=str)
def test_values_and_derivatives_of_higher_orders(name, orders):
    operation, by_hand, shape, shapes = OPERATIONS[name]
    (phi, params), (psi, _) = line(operation, shape, shapes), line(by_hand, shape, shapes)
    with torch.no_grad(), exact_derivatives():
        assert_close(phi(ZERO, params), psi(ZERO, params), rtol=1e-10, atol=1e-12)
    assert_close(phi(ZERO, params), psi(ZERO, params), rtol=1e-8, atol=1e-8)  # the same function as PyTorch's
    expected = [derivative.detach() for derivative in reverse(lambda t: psi(t, params), max(orders))]
    size = max(abs(float(e)) for e in expected)
    for order in orders:
        for word in words(order)[: 3 if order < 4 else 1]:
            with exact_derivatives(), torch.no_grad():
                actual = differentiate(lambda t: phi(t, params), word)(ZERO)
            assert_close(
                actual,
                expected[order],
                rtol=1e-9,
                atol=1e-10 * size,
                msg=lambda m, w=word: f"{w}: {m}",
            )


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("order", [2, *slow([1, 3])])
def test_parameter_gradients_of_derivatives(name, order):
    operation, by_hand, shape, shapes = OPERATIONS[name]
    (phi, params), (psi, _) = line(operation, shape, shapes), line(by_hand, shape, shapes)
    expected = gradients(lambda p: reverse(lambda t: psi(t, p), order)[-1], params)
    with exact_derivatives():
        for word in words(order)[: 3 if order < 3 else 1]:
            derivative = lambda p, w=word: differentiate(lambda t: phi(t, p), w)(ZERO)  # noqa: E731
            assert_same(grad(derivative)(params), expected, word=word)
            assert_same(gradients(derivative, params), expected, word=word)


@pytest.mark.parametrize("name", ["layer_norm", "instance_norm", "group_norm", "batch_norm"])
@pytest.mark.parametrize("word", ["jj", "gj", "jg", "gg"])
def test_plain_pytorch_is_wrong_through_norms_and_we_are_not(name, word):
    operation, by_hand, shape, shapes = OPERATIONS[name]
    (phi, params), (psi, _) = line(operation, shape, shapes), line(by_hand, shape, shapes)
    quadratic_form = lambda p: differentiate(lambda t: phi(t, p), word)(ZERO)  # noqa: E731, v' H v
    expected = gradients(lambda p: reverse(lambda t: psi(t, p), 2)[-1], params)
    with exact_derivatives():
        assert_same(gradients(quadratic_form, params), expected)
        assert_close(quadratic_form(params), reverse(lambda t: psi(t, params), 2)[-1], rtol=1e-9, atol=1e-12)
    plain = gradients(quadratic_form, params)
    size = max(float(e.abs().max()) for e in expected.values())
    error = max(float((plain[n] - e).abs().max()) for n, e in expected.items()) / size
    if name in ("group_norm", "batch_norm"):
        assert error < 1e-9
    elif error < 1e-9:
        pytest.skip("this PyTorch differentiates the norm correctly")
    else:
        assert error > 1e-3


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    word=st.text("jg", min_size=2, max_size=4),
    name=st.sampled_from(["layer_norm", "instance_norm", "attention", "batch_norm training"]),
)
def test_every_composition_gives_the_same_derivative(seed, word, name):
    operation, by_hand, shape, shapes = OPERATIONS[name]
    (phi, params), (psi, _) = line(operation, shape, shapes, seed), line(by_hand, shape, shapes, seed)
    with exact_derivatives():
        actual = differentiate(lambda t: phi(t, params), word)(ZERO)
    expected = [float(derivative.detach()) for derivative in reverse(lambda t: psi(t, params), len(word))]
    assert abs(float(actual) - expected[-1]) < 1e-9 * sum(map(abs, expected))


# Whole networks against interpolation of their values ---------------------------------------------------------


def chebyshev_derivatives(phi, radius, count=26):
    """Derivatives at zero, orders 1 to 5, from values alone."""
    nodes = np.cos(np.pi * (np.arange(count) + 0.5) / count)
    with torch.no_grad():
        values = [float(phi(ZERO + radius * t)) for t in nodes]
    series = np.polynomial.chebyshev.Chebyshev(np.polynomial.chebyshev.chebfit(nodes, values, count - 1))
    return [float(series.deriv(k)(0.0)) / radius**k for k in range(1, 6)]


NETWORKS = {
    "mlp": (lambda: mlp(0, (3, 5, 4, 2), "gelu"), (2, 3), 0.7),
    "cnn, instance norm": (
        lambda: small_cnn(1, norm=lambda c: nn.InstanceNorm2d(c, affine=True), activation="silu", pool=nn.AvgPool2d),
        (2, 1, 6, 6),
        0.1,
    ),
    "cnn, group norm": (
        lambda: small_cnn(2, norm=lambda c: nn.GroupNorm(2, c), pool=nn.AvgPool2d),
        (2, 1, 6, 6),
        0.1,
    ),
    "resnet": (lambda: preact_resnet18(3, width=1), (1, 3, 4, 4), 0.5),
    "transformer, norm first": (lambda: tiny_transformer(4), (2, 3, 4), 0.3),
    "transformer, norm last": (lambda: tiny_transformer(5, norm_first=False, depth=2), (2, 3, 4), 0.3),
}


@pytest.mark.parametrize("name", some_slow(NETWORKS, lambda name: name != "transformer, norm last"))
def test_networks_to_order_five(name):
    build, shape, radius = NETWORKS[name]
    model, x, v = build(), randn(20, *shape), randn(21, *shape)
    phi = lambda t: (model(x + t * v) ** 2).sum()  # noqa: E731
    expected = chebyshev_derivatives(phi, radius)
    for order, derivative in enumerate(expected[: 3 if name == "resnet" else 5], 1):
        scale = math.factorial(order) / radius**order * 1e-7 + 1e-5 * abs(derivative)
        with exact_derivatives(), torch.no_grad():
            assert abs(float(differentiate(phi, "j" * order)(ZERO)) - derivative) < scale


# The context ------------------------------------------------------------------------------------------------


def test_nests_restores_and_works_inside_transforms():
    x = randn(0, 3, 5)
    v = randn(1, 3, 5)
    enabled = torch.backends.mha.get_fastpath_enabled()
    norm = lambda t, v=v: (F.layer_norm(x + t * v, (5,)) ** 3).sum()  # noqa: E731

    def inside(t):
        with exact_derivatives():
            return norm(t)

    context = exact_derivatives()
    with context, exact_derivatives(), context:
        expected = differentiate(norm, "jj")(ZERO)
    assert_close(differentiate(inside, "jj")(ZERO), expected, rtol=1e-12, atol=0.0)
    with exact_derivatives():
        many = vmap(lambda v: differentiate(lambda t: norm(t, v), "jj")(ZERO))(torch.stack([v, -v, 2 * v]))
    assert_close(many, expected * torch.tensor([1.0, 1.0, 4.0], dtype=torch.float64), rtol=1e-10, atol=0.0)
    with pytest.raises(ZeroDivisionError), exact_derivatives():
        1 / 0  # noqa: B018
    assert torch.backends.mha.get_fastpath_enabled() == enabled
    assert torch.overrides._get_current_function_mode_stack() == []


@pytest.mark.parametrize(
    "activation",
    [
        nn.ReLU,
        nn.SiLU,
        nn.Mish,
        nn.ELU,
        nn.CELU,
        nn.SELU,
        nn.Hardswish,
        nn.LeakyReLU,
        nn.ReLU6,
        nn.Hardsigmoid,
    ],
)
def test_in_place_activations_work_out_of_place_under_vmap(activation):
    x, directions = randn(0, 4), randn(1, 2, 4)
    second = lambda act: vmap(  # noqa: E731
        lambda v: differentiate(lambda t: (act((x + t * v) * 1) ** 2).sum(), "jj")(ZERO)
    )(directions)
    with exact_derivatives():
        assert_close(second(activation(inplace=True)), second(activation()))


def test_augmented_assignment_works_out_of_place_under_vmap():
    def phi(t, v):
        y = torch.sin(t * v)
        y += v
        y *= y
        y -= t
        y /= 1 + v * v
        return y.sum()

    directions = randn(1, 2, 4)
    with exact_derivatives():
        many = vmap(lambda v: differentiate(lambda t: phi(t, v), "jj")(ZERO))(directions)
        counter = torch.zeros((), dtype=torch.long)
        alias = counter
        counter += 1
    by_hand = lambda v: lambda t: ((torch.sin(t * v) + v) ** 2 / (1 + v * v)).sum()  # noqa: E731
    assert_close(many, torch.stack([reverse(by_hand(v), 2)[-1] for v in directions]))
    assert alias == 1, "outside a transform the assignment stays in place"


def test_self_assignment_in_forward_mode():
    """PyTorch's forward mode overwrites y before it uses it in the derivative of y *= y."""

    def phi(t):
        y = torch.sin(t) + 2
        y *= y
        return y

    with exact_derivatives():
        assert [float(differentiate(phi, word)(ZERO)) for word in ("j", "jj", "gj", "gg")] == [4.0, 2.0, 2.0, 2.0]


def test_far_from_the_table_pytorch_itself_is_used():
    x = randn(0, 3, 5)
    buffers = torch.zeros(3), torch.ones(3)
    with exact_derivatives():
        assert_close(x.norm(1, -1), x.abs().sum(-1))
        assert_close(torch.linalg.vector_norm(x, 1, dim=-1), x.abs().sum(-1))
        assert_close(F.normalize(x, 1.0, -1), x / x.abs().sum(-1, keepdim=True))
        double = torch.linalg.vector_norm(x.float(), dtype=torch.float64)
        assert_close(double, x.float().double().norm())
        assert_close(torch.std(x, False), x.var(correction=0).sqrt())
        assert F.normalize(torch.zeros(2, 3)).eq(0).all()
        F.batch_norm(x.T.float(), *buffers, training=True, momentum=1.0)
    assert_close(buffers[0], x.float().mean(1))
    buffers = torch.zeros(3), torch.ones(3)
    with exact_derivatives():
        F.instance_norm(x[None].float(), *buffers, momentum=1.0)
    assert_close(buffers[0], x.float().mean(1))
    mean, rstd = (z.squeeze(-1) for z in torch.native_layer_norm(x, (5,), None, None, 1e-5)[1:])
    with exact_derivatives():
        ours = [z.squeeze(-1) for z in torch.native_layer_norm(x, (5,), None, None, 1e-5)[1:]]
    assert_close(ours, [mean, rstd])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_and_value_follow_pytorch(dtype):
    x = randn(0, 2, 4, 4).to(dtype)
    calls = [lambda: F.layer_norm(x, (4,)), lambda: F.group_norm(x, 2), lambda: F.instance_norm(x), lambda: F.silu(x),
             lambda: F.scaled_dot_product_attention(x, x, x, attn_mask=torch.ones(4, 4, dtype=torch.bool)),
             lambda: F.binary_cross_entropy_with_logits(x, x, reduction="sum"),
             lambda: F.rms_norm(x, (4,))]  # fmt: skip
    for call in calls:
        with exact_derivatives():
            ours = call()
        tolerance = {"rtol": 2e-2, "atol": 4e-2} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-5}
        assert_close(ours, call(), **tolerance)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.1), "without dropout"),
        (lambda x: F.scaled_dot_product_attention(x, x, x, torch.ones(3, 3), is_causal=True), "got both"),
        (lambda x: F.binary_cross_entropy_with_logits(x, x, size_average=True), "deprecated"),
        (lambda x: F.huber_loss(x, x, reduction="median"), "'median'"),
    ],
)
def test_refuses_with_advice(call, message):
    with exact_derivatives(), pytest.raises(ValueError, match=message):
        call(torch.ones(1, 3, 3))


def test_the_table_is_complete():
    """Every function of torch.nn.functional that keeps statistics of its own input is in the table."""
    names = [name for name in dir(F) if name.endswith("_norm") and not name.startswith("_")]
    assert {getattr(F, name) for name in names} - set(REPLACEMENTS) == {F.local_response_norm}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["layer_norm", "attention", "instance_norm"])
def test_on_cuda_as_on_the_processor(name):
    operation, _, shape, _ = OPERATIONS[name]
    x, v, params = (
        randn(0, *shape),
        randn(1, *shape),
        {"weight": randn(2, shape[1]), "bias": randn(3, shape[1])},
    )
    if name == "layer_norm":
        params = {"weight": randn(2, 5), "bias": randn(3, 5)}
    results = []
    for device in ("cpu", "cuda"):
        p = {n: z.to(device) for n, z in params.items()}
        phi = lambda t, p=p, d=device: (operation(x.to(d) + t * v.to(d), p) ** 3).sum()  # noqa: E731
        with exact_derivatives():
            results.append(differentiate(phi, "jj")(ZERO.to(device)).cpu())
    assert_close(results[0], results[1])
