"""Transformers on the engine: attention with every kind of mask and three architectures, against nested derivatives."""

import math

import pytest
import torch
import torch.nn.functional as F
from problems import finish, randn
from test_engine import exact
from tiers import slow
from torch import nn
from torch.testing import assert_close

import nfm_theory as nt
from nfm_theory import linearize
from nfm_theory.calculus.engine import local
from nfm_theory.calculus.engine.standardization import _Moved, _Sums
from nfm_theory.expansion import terms as terms_module
from nfm_theory.expansion.paths import series_coefficients, taylor_coefficients

TOKENS, DIM, CLASSES = 5, 8, 3
PADDED = torch.tensor([True, True, True, True, False])


class Bert(nn.Module):
    """Learned positions, attention that skips padding, norms after the residual connections, a pooled first token."""

    def __init__(self):
        super().__init__()
        self.embed, self.position = nn.Embedding(11, DIM), nn.Embedding(TOKENS, DIM)
        self.norm0, self.norm1, self.norm2 = (nn.LayerNorm(DIM) for _ in range(3))
        self.query, self.key, self.value, self.dense, self.pooler = (nn.Linear(DIM, DIM) for _ in range(5))
        self.up, self.down, self.classify = nn.Linear(DIM, 12), nn.Linear(12, DIM), nn.Linear(DIM, CLASSES)

    def forward(self, ids):
        z = self.norm0(self.embed(ids) + self.position(torch.arange(TOKENS)))
        q, k, v = (f(z).view(len(z), TOKENS, 2, -1).transpose(1, 2) for f in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=PADDED.expand(len(z), 1, 1, -1))
        z = self.norm1(self.dense(mixed.transpose(1, 2).reshape(z.shape)) + z)
        z = self.norm2(self.down(F.gelu(self.up(z))) + z)
        return self.classify(torch.tanh(self.pooler(z[:, 0])))


class Llama(nn.Module):
    """Rotary positions, causal attention with grouped queries, root-mean-square norms, a gated perceptron."""

    def __init__(self, grouped: bool = True):
        super().__init__()
        self.embed, self.norm1, self.norm2 = nn.Embedding(11, DIM), nn.RMSNorm(DIM), nn.RMSNorm(DIM, eps=1e-5)
        self.scale, self.grouped = nn.Parameter(torch.ones(DIM)), grouped
        self.query, self.key, self.value = (nn.Linear(DIM, width, bias=False) for width in (DIM, 4, 4))
        self.mix, self.gate, self.up = (nn.Linear(DIM, width, bias=False) for width in (DIM, 12, 12))
        self.down, self.classify = nn.Linear(12, DIM, bias=False), nn.Linear(DIM, CLASSES, bias=False)

    def heads(self, layer, z):
        return layer(z).view(*z.shape[:2], -1, 2).transpose(1, 2)

    def rotated(self, z):
        angle = torch.arange(TOKENS, dtype=z.dtype)[:, None] * torch.tensor([1.0, 1.0], dtype=z.dtype)
        half = z.shape[-1] // 2
        return z * angle.cos() + torch.cat((-z[..., half:], z[..., :half]), -1) * angle.sin()

    def forward(self, ids):
        z = self.embed(ids)
        n = self.norm1(z)
        q, k = (self.rotated(self.heads(layer, n)) for layer in (self.query, self.key))
        v = self.heads(self.value, n)
        if not self.grouped:  # as libraries write it
            k, v = (t[:, :, None].expand(-1, 2, 2, -1, -1).reshape(q.shape) for t in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.grouped)
        z = z + self.mix(mixed.transpose(1, 2).flatten(2))
        n = self.norm2(z)
        z = z + self.down(F.silu(self.gate(n)) * self.up(n))
        z = self.scale * (z * torch.rsqrt(z.pow(2).mean(-1, keepdim=True) + 1e-6))
        return self.classify(z[:, -1])


class ViT(nn.Module):
    """Patches by a convolution, a class token, the encoder layer and the attention module of PyTorch."""

    def __init__(self):
        super().__init__()
        self.patches, self.token = nn.Conv2d(2, DIM, 2, 2), nn.Parameter(torch.zeros(1, 1, DIM))
        self.layer = nn.TransformerEncoderLayer(DIM, 2, 12, 0.0, "gelu", batch_first=True, norm_first=True)
        self.attention = nn.MultiheadAttention(DIM, 2, batch_first=True)
        self.classify = nn.Linear(DIM, CLASSES)

    def forward(self, x):
        z = self.patches(x).flatten(2).transpose(1, 2)
        z = self.layer(torch.cat([self.token.expand(len(z), -1, -1), z], 1))
        return self.classify(self.attention(z, z, z, need_weights=False)[0][:, 0])


def ids():
    return torch.arange(15).reshape(3, TOKENS) % 11


MODELS = {
    "vit": (ViT, "", lambda: randn(1, 3, 2, 4, 4)),
    "bert": (Bert, "embed", ids),
    "llama": (Llama, "embed", ids),
    "llama, repeated keys": (lambda: Llama(grouped=False), "embed", ids),
}


def refuse(derivative, tangents, name):
    raise AssertionError(f"no rule for {name}")


@pytest.fixture
def only_rules(monkeypatch):
    """Fail if an operation is differentiated by the general rule."""
    monkeypatch.setattr(local, "_along", refuse)


def problem_of(name):
    build, layer, data = MODELS[name]
    model, x = finish(build, 0), data()
    return nt.Problem(model, x, torch.tensor([0, 1, 2]), layer=layer, law=nt.Law(add_noise=0.3, mult_noise=0.2))


def assert_all_close(ours, theirs):
    for found, known in zip(ours, theirs, strict=True):
        known = known.detach()
        assert_close(found.detach(), known, rtol=1e-10, atol=1e-10 * float(known.abs().max()))


@pytest.mark.parametrize("name", MODELS)
def test_a_transformer_has_the_derivatives_of_nested_differentiation(name, only_rules):
    problem = problem_of(name)
    h, slope, parameters = problem.features, randn(3, 3, CLASSES), list(problem.model.parameters())
    nested = linearize(problem.head, h, engine="nested", order=4)
    at = linearize(problem.head, h, engine="tangent-adjoint", order=4)
    plain = linearize(problem.head, h, engine="tangent-adjoint", differentiable=False)
    for directions in (randn(2, 2, 1, *h.shape[1:]), randn(4, 2, *h.shape)):
        expected = nested.sweep(directions, slope)
        assert_all_close(plain.sweep(directions, slope), expected)
        assert_all_close(at.sweep(directions, slope), expected)
        found, known = (e.series([directions, directions.flip(0)], slope, 4) for e in (at, nested))
        assert_all_close((*found[0], found[1]), (*known[0], known[1]))
    values = [sum((z**2).sum() for z in e.sweep(directions, slope)) for e in (at, nested)]
    options = {"allow_unused": True, "retain_graph": True}
    ours, theirs = (torch.autograd.grad(value, parameters, **options) for value in values)
    size = max(float(g.abs().max()) for g in theirs if g is not None)
    for found, known, parameter in zip(ours, theirs, parameters, strict=True):
        found, known = (torch.zeros_like(parameter) if g is None else g for g in (found, known))
        assert_close(found, known, rtol=1e-9, atol=1e-10 * size)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("order", [3, *slow([5])])
def test_the_terms_of_a_transformer_and_its_coefficients(name, order):
    problem = problem_of(name)
    draw = problem.draw(3, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = taylor_coefficients(problem.path(draw), order)
        assert_close(series_coefficients(problem.path(draw), order), expected, rtol=1e-9, atol=1e-10)


def bias():
    given = randn(9, 1, 2, TOKENS, TOKENS)
    given[..., 2, :2] = -math.inf
    return given


#: Options of the attention, and whether the fused rule takes them.
OPTIONS = {
    "none": lambda: {},
    "causal": lambda: {"is_causal": True},
    "scale": lambda: {"scale": 0.3},
    "mask": lambda: {"attn_mask": (torch.arange(25) % 3 > 0).reshape(5, 5)},
    "a row without keys": lambda: {"attn_mask": (torch.arange(25) // 5 > 0).reshape(5, 5)},
    "bias": lambda: {"attn_mask": bias()},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_attention_with_every_option(option, only_rules):
    weights, chosen = randn(0, 3, 4, 4), OPTIONS[option]()

    def head(h):
        q, k, v = (h @ w for w in weights)
        return F.scaled_dot_product_attention(q, k.sin(), v, **chosen).flatten(1)

    h, slope = randn(1, 3, 2, TOKENS, 4), randn(2, 3, 2 * TOKENS * 4)
    for directions in (randn(3, 2, *h.shape), randn(4, 3, 1, *h.shape[1:])):
        for differentiable in (False, True):
            at = linearize(head, h, engine="tangent-adjoint", differentiable=differentiable)
            expected = linearize(exact(head), h, engine="nested", differentiable=False).sweep(directions, slope)
            for found, known in zip(at.sweep(directions, slope), expected, strict=True):
                assert_close(found, known, rtol=1e-10, atol=1e-12)
            tangents = at.sweep(directions)[0]  # without a second derivative
            assert_close(tangents, expected[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("activation", [torch.tanh, torch.sigmoid, torch.exp, F.silu])
def test_a_backward_pass_before_does_not_cut_the_gradients(activation):
    """Slopes are computed when they are first needed, here by a pass that records nothing."""
    weight, v = randn(0, 3, 3).requires_grad_(), randn(1, 2, 4, 3)

    def gradient(engine, before):
        at = linearize(exact(lambda h: activation(activation(h @ weight) @ weight)), randn(2, 4, 3), engine=engine)
        if before:
            torch.autograd.grad(at.outputs.sum(), weight, retain_graph=True)
        return torch.autograd.grad(sum(z.square().sum() for z in at.sweep(v, torch.ones(4, 3).double())), weight)[0]

    expected = gradient("nested", False)
    for before in (False, True):
        assert_close(gradient("tangent-adjoint", before), expected, rtol=1e-10, atol=1e-12)


def test_series_need_an_order_above_their_coefficients():
    at = linearize(lambda u: u**3, randn(0, 2, 3), order=3)
    with pytest.raises(ValueError, match=r"from 1 to order - 1 = 1 of them, got 2; raise the order"):
        at.series([randn(1, 1, 2, 3)] * 2, torch.ones(2, 3), 2)


@pytest.mark.parametrize("order", [2, 3, 6])
def test_series_of_a_polynomial_along_a_curve(order):
    """`(x + εa + ε²b)³` by hand: the coefficients of a cube of a series."""
    x, a, b = 1.5, -0.5, 2.0
    at = linearize(lambda u: u.pow(3), torch.full((1, 1), x, dtype=torch.float64), order=order)
    given = [torch.full((1, 1, 1), z, dtype=torch.float64) for z in ((a, b) if order > 2 else (a,))]
    lower, highest = at.series(given, torch.ones(1, 1, dtype=torch.float64), order)
    polynomial = torch.tensor([x, a, b if order > 2 else 0.0], dtype=torch.float64)
    cube = [0.0] * 7
    for i, p in enumerate(polynomial):
        for j, q in enumerate(polynomial):
            for k, r in enumerate(polynomial):
                cube[i + j + k] += float(p * q * r)
    assert_close(
        torch.stack([z.squeeze() for z in (*lower, highest)]), torch.tensor(cube, dtype=torch.float64)[1 : order + 1]
    )


@pytest.mark.parametrize("name", ["vit", *slow(["llama"])])
def test_coefficients_above_order_three_are_those_of_nested_differentiation(name, monkeypatch):
    problem = problem_of(name).with_law(nt.Law(mult_noise=0.0))
    with torch.no_grad():
        found = nt.coefficients(problem, order=5)
        monkeypatch.setattr(terms_module, "series_coefficients", taylor_coefficients)
        assert_close(found, nt.coefficients(problem, order=5), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("center", [True, False])
def test_closed_gradients_of_norms_are_those_of_differences(center, shared):
    """Of both orders, for tangents that all samples share as well: the penalty is differentiated, and so is that."""
    t, a = randn(0, 2, 1 if shared else 3, 4), randn(1, 1, 3, 4)
    y = randn(2, 1, 3, 4)
    y = y - y.mean(-1, keepdim=True) if center else y  # as a standardized value is
    t, a, y = (z.requires_grad_() for z in (t, a, y))
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda t, y: _Moved.apply(t, y, (-1,), center), (t, y))
        assert check(lambda t, a: _Sums.apply(t, a, (-1,)), (t.detach().expand(2, 3, 4).clone().requires_grad_(), a))


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_penalties_behind_norms_train_the_weights_as_nested_differentiation_does(norm):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), norm(6, eps=0.1), nn.Tanh(), nn.Linear(6, 3)).double()
    with torch.no_grad():
        model[1].weight.copy_(randn(3, 6))
    h, slope, found = randn(4, 5, 4), randn(5, 5, 3), []
    for directions in (randn(6, 2, 5, 4), randn(7, 2, 1, 4)):
        for engine in ("tangent-adjoint", "nested"):
            tangents, forms = linearize(exact(model), h, engine=engine).sweep(directions, slope)
            loss = tangents.square().sum() + forms.square().sum()
            found.append(torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, materialize_grads=True))
        assert_close(found[-2], found[-1], rtol=1e-9, atol=1e-11)
