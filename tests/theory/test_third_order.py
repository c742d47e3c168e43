"""Third derivatives through the recording of a head, against nested differentiation, closed forms and differences."""

import itertools

import pytest
import torch
from problems import mlp, preact_resnet18, randn, small_cnn, tiny_transformer
from test_engine import ACTIVATIONS, DIFFERENTIATED, Builder, assert_same, exact, finish
from tiers import some_slow
from torch import nn
from torch.testing import assert_close

import nfm_theory as nt
from nfm_theory import linearize
from nfm_theory.calculus.derivatives import directional_derivatives
from nfm_theory.calculus.forward_mode import jvp
from nfm_theory.expansion.third_order import LossDerivatives, noise_diagonal, pair_cubic


def assert_orders_agree(head, h, directions, classes):
    slope = randn(7, len(h), classes)
    with torch.no_grad():
        tape = linearize(head, h, engine="tangent-adjoint", order=3)
        nested = linearize(head, h, engine="nested", order=3)
        found, expected = (at.third_order(directions, slope) for at in (tape, nested))
    size = float(expected[0].abs().max()) + 0.01 * float(tape.outputs.abs().max())
    for ours, theirs in zip(found, expected, strict=True):
        assert_same(ours, theirs, floor=size, rtol=1e-9, what=head)


@pytest.mark.parametrize("seed", some_slow(range(0, 200, 4), lambda seed: seed < 48))
def test_recording_agrees_with_nested_differentiation_on_random_architectures(seed):
    builder, shape = Builder(seed), []

    def build():
        model, feature = builder.build()
        shape.append(feature)
        return model

    model = finish(build, seed)
    h = randn(seed + 1, builder.batch, *shape[0])
    for directions in (randn(seed + 3, 2, 1, *shape[0]), randn(seed + 4, 2, *h.shape)):
        assert_orders_agree(exact(model), h, directions, builder.classes)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation(name):
    model = finish(lambda: nn.Sequential(nn.Linear(3, 5), ACTIVATIONS[name](), nn.Linear(5, 2)), 0)
    assert_orders_agree(exact(model), randn(1, 6, 3), randn(2, 3, 1, 3), 2)


def with_softmax(h):
    return (h @ randn(0, 4, 4)).softmax(-1) * h


def with_logsumexp(h):
    return torch.stack([(h**3).logsumexp(-1), (h * h.tanh()).logsumexp(1)], dim=-1)


def without_a_rule(h):
    return torch.stack([torch.special.bessel_j0(h).prod(-1), torch.atan2(h[:, 0], 2 + h[:, 1] ** 2)], dim=-1)


@pytest.mark.parametrize(("head", "classes"), [(with_softmax, 4), (with_logsumexp, 2), (without_a_rule, 2)])
def test_operations_with_and_without_a_rule(head, classes):
    assert_orders_agree(head, randn(1, 3, 4), randn(2, 2, 3, 4), classes)


def test_closed_form_of_a_cubic():
    b, h, v = randn(1, 3), randn(2, 5, 3), randn(3, 4, 5, 3)
    at = linearize(lambda u: (u @ b).pow(3).unsqueeze(-1) + u.square().sum(-1, keepdim=True), h, order=3)
    tangents, seconds, cubic = at.third_order(v, 2 * torch.ones(5, 1, dtype=h.dtype))
    assert_close(cubic, 12 * (v @ b) ** 3)
    assert_close(seconds.squeeze(-1), 6 * (h @ b) * (v @ b) ** 2 + 2 * v.square().sum(-1))
    assert_close(tangents.squeeze(-1), 3 * (h @ b) ** 2 * (v @ b) + 2 * (h * v).sum(-1))


def test_a_piecewise_linear_head_has_none():
    at = linearize(mlp(0, [3, 4, 2], "relu"), randn(1, 5, 3), order=3)
    tangents, seconds, cubic = at.third_order(randn(2, 4, 1, 3), randn(3, 5, 2))
    assert tangents.abs().max() > 0
    assert not seconds.any()
    assert not cubic.any()


@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_parameter_gradients(name):
    model, h = DIFFERENTIATED[name]()
    v, params = randn(2, 2, 1, *h.shape[1:]), list(model.parameters())
    slope = randn(4, *model(h).shape)

    def value(engine):
        parts = linearize(exact(model), h, engine=engine, order=3).third_order(v, slope)
        return sum((part**2).sum() for part in parts)

    ours, theirs = (torch.autograd.grad(value(e), params, allow_unused=True) for e in ("tangent-adjoint", "nested"))
    scale = max(float(g.abs().max()) for g in theirs if g is not None)
    for found, expected in zip(ours, theirs, strict=True):
        assert (found is None) == (expected is None) or not (expected if found is None else found).any()
        if found is not None and expected is not None:
            assert_same(found, expected, floor=scale, rtol=1e-8)


PROBLEMS = {
    "mlp": lambda: (mlp(0, [3, 5, 4]), randn(1, 5, 3)),
    "cnn": lambda: (small_cnn(0, num_classes=4), randn(1, 4, 1, 6, 6)),
    "resnet": lambda: (preact_resnet18(0, num_classes=4), randn(1, 3, 3, 4, 4)),
    "transformer": lambda: (tiny_transformer(0, num_classes=4), randn(1, 3, 3, 4)),
}


LOSSES = list(itertools.product(PROBLEMS, ["cross_entropy", "square", "custom"]))


@pytest.mark.parametrize(("name", "loss"), some_slow(LOSSES, lambda case: case not in LOSSES[7:9] + LOSSES[10:]))
def test_derivatives_of_the_losses_one_by_one(name, loss):
    """`D³ℓ[v, v, v]` over all pairs, and the slope of the Hessian's diagonal, one sample at a time."""
    model, x = PROBLEMS[name]()
    chosen = (lambda u, y: ((u - y) ** 4).sum(-1) + u.exp().prod(-1)) if loss == "custom" else loss
    y = randn(2, len(x), 4) if loss == "custom" else torch.arange(len(x)) % 4
    problem = nt.Problem(model, x, y, law=nt.Law(add_noise=0.4), loss=chosen)
    g, drift = problem.features, problem.drift
    with torch.no_grad():
        found = LossDerivatives(problem)
        ours, (seconds, slopes) = pair_cubic(problem, found), noise_diagonal(problem, found, drift)

    def losses(i):
        return lambda z: problem.losses(z, torch.full((len(z),), i))

    cubic = (
        sum(directional_derivatives(losses(i), g[i].expand_as(g), g - g[i], 3)[3].sum() for i in range(len(g)))
        / len(g) ** 2
    )
    assert_close(ours.mean(), cubic, rtol=1e-9, atol=1e-12)
    d = min(g[0].numel(), 8)
    basis = torch.eye(g[0].numel(), dtype=g.dtype)[:d].reshape(d, *g.shape[1:])
    for i in (0, len(g) - 1):
        point, along = g[i].expand_as(basis), drift[i].expand_as(basis)
        both = jvp(lambda z, i=i: directional_derivatives(losses(i), z, basis, 2)[2], (point,), (along,))
        assert_close(seconds[i, :d], both[0], rtol=1e-9, atol=1e-11)
        assert_close(slopes[i, :d], both[1], rtol=1e-8, atol=1e-10)


def test_a_sample_that_is_the_mean_has_no_drift():
    x = torch.tensor([[-1.0, 0.5], [0.0, 0.0], [1.0, -0.5]], dtype=torch.float64)
    problem = nt.Problem(mlp(0, [2, 4, 2]), x, torch.tensor([0, 1, 1]), law=nt.Law(add_noise=0.4, mult_noise=0.3))
    with torch.no_grad():
        slopes = noise_diagonal(problem, LossDerivatives(problem), problem.drift)[1]
        assert not slopes[1].any()
        assert nt.terms(problem).C3.isfinite()
