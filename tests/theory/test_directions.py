"""Sets of directions with a given second moment, and the exact terms that are made of them."""

import itertools

import pytest
import torch
from building import build_problem
from naive import naive_terms
from problems import finish, mlp, randn, small_cnn
from tiers import some_slow
from torch import nn
from torch.testing import assert_close

import nfm_theory as nt
from nfm_theory import linearize
from nfm_theory.calculus.directions import (
    centered_features,
    compressed,
    coordinate_basis,
    joint_directions,
    second_moment_directions,
)
from nfm_theory.expansion import second_order
from nfm_theory.setting.pointwise import PointwiseLoss, pointwise_loss

NAMES = ("R1", "R2", "R3", "R2_add", "R3_add", "R2_mult", "R3_mult")


def moment(directions, weights=None):
    w = directions.flatten(1)
    return w.T @ w if weights is None else (w * weights.unsqueeze(1)).T @ w


def covariance(x):
    flat = x.flatten(1) - x.flatten(1).mean(0)
    return flat.T @ flat / len(x)


# Sets of directions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 2, 3), (7, 1)])
def test_directions_of_data_have_its_second_moment(shape):
    x = randn(0, *shape)
    assert_close(moment(centered_features(x)), covariance(x), rtol=1e-12, atol=1e-14)
    eigen = second_moment_directions(x)
    assert_close(moment(eigen), covariance(x), rtol=1e-12, atol=1e-14)
    assert len(eigen) == min(len(x) - 1, x[0].numel())
    sizes = eigen.flatten(1).norm(dim=1)
    assert (sizes[:-1] >= sizes[1:]).all()


def test_coordinates():
    basis = coordinate_basis(randn(0, 5, 2, 3))
    assert basis.shape == (6, 2, 3)
    assert torch.equal(basis.flatten(1), torch.eye(6, dtype=torch.float64))


@pytest.mark.parametrize(("m", "w"), [(7, 3), (3, 3), (2, 5)])
def test_compression_keeps_the_second_moment_and_its_gradient(m, w):
    directions = randn(0, m, w).requires_grad_()
    few = compressed(directions)
    assert few.shape == (min(m, w), w)
    assert_close(moment(few), moment(directions), rtol=1e-12, atol=1e-13)
    weight = randn(1, w, w)
    found, expected = (torch.autograd.grad((moment(z) * weight).sum(), directions)[0] for z in (few, directions))
    assert_close(found, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("noise", "w"), [(None, 4), (4, 4), (9, 4), (2, 4)])
def test_joint_directions_have_both_moments(noise, w, dtype):
    if noise is None:
        data, second = randn(0, 3, w), None
    else:
        second = randn(1, noise, w)
        data = randn(0, 3, noise) @ second  # in the span of the noise
    data, second = data.to(dtype), None if second is None else second.to(dtype)
    directions, weights = joint_directions(data, second)
    assert directions.dtype == weights.dtype == dtype
    assert len(directions) == len(weights) <= w
    assert (weights >= 0).all()
    tolerance = {"rtol": 1e-10, "atol": 1e-11} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-4}
    expected = torch.eye(w, dtype=dtype) if second is None else moment(second)
    assert_close(moment(directions), expected, **tolerance)
    assert_close(moment(directions, weights), moment(data), **tolerance)


# Exact terms ---------------------------------------------------------------------------------------------------


def linear_first(seed, d, w, outputs=3):
    """A network whose first layer is linear, from d features to w coordinates."""
    return mlp(seed, [d, w, 4, outputs], "gelu")


PROBLEMS = {
    "linear first, n < w < d": lambda: (linear_first(0, 6, 4), randn(1, 3, 6)),
    "linear first, n > d > w": lambda: (linear_first(0, 4, 2), randn(1, 7, 4)),
    "linear first, d < w": lambda: (linear_first(0, 2, 5), randn(1, 4, 2)),
    "nonlinear first, n < d": lambda: (nn.Sequential(nn.Softplus(), *linear_first(0, 5, 3)), randn(1, 3, 5)),
    "nonlinear first, n > d": lambda: (nn.Sequential(nn.Tanh(), *linear_first(0, 2, 3)), randn(1, 6, 2)),
    "convolution": lambda: (
        finish(lambda: nn.Sequential(nn.Conv2d(1, 2, 2, 2), nn.SiLU(), nn.Flatten(), nn.Linear(8, 3)), 0),
        randn(1, 3, 1, 4, 4),
    ),
    "pooling": lambda: (
        finish(lambda: nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)), 0),
        randn(1, 3, 1, 4, 4),
    ),
    "a single sample": lambda: (linear_first(0, 3, 2), randn(1, 1, 3)),
}


def naive(model, x, y, add_noise, mult_noise):
    flat = lambda h: model(h.reshape(-1, *x.shape[1:]))  # noqa: E731
    moments = [nt.MixingLaw(1.0).moment(j) for j in (1, 2, 3)]
    labels = torch.nn.functional.one_hot(y, 3).double()
    return naive_terms(
        *(flat, x.flatten(1), labels, lambda u: u.logsumexp(-1)),
        moments=moments, add_second=add_noise**2, mult_second=mult_noise**2,
    )  # fmt: skip


NOISES = list(itertools.product(PROBLEMS, [(0.4, 0.3), (0.0, 0.0), (0.4, 0.0), (0.0, 0.3)]))


@pytest.mark.parametrize(("name", "noise"), some_slow(NOISES, lambda case: case in NOISES[:4] or case[1] == (0.4, 0.3)))
def test_exact_terms_are_those_of_the_naive_twin_with_and_without_gradients(name, noise):
    model, x = PROBLEMS[name]()
    y = torch.arange(len(x)) % 3
    expected = naive(model, x, y, *noise)
    problem = build_problem(model, x, y, add_noise=noise[0], mult_noise=noise[1])
    with torch.no_grad():
        joint = nt.terms(problem, remainder=False)
    live = nt.terms(problem, remainder=False)
    for term in NAMES:
        value = torch.as_tensor(expected[term], dtype=torch.float64).detach()
        for terms in (joint, live):
            assert_close(getattr(terms, term).detach(), value, rtol=1e-9, atol=1e-13, msg=lambda m, t=term: f"{t}: {m}")
        assert not getattr(joint, term).requires_grad


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_joint_basis_gives_what_separate_ones_give(name):
    model, x = PROBLEMS[name]()
    y = torch.arange(len(x)) % 3
    with torch.no_grad():
        problem = build_problem(model, x, y, add_noise=0.4)
        at = linearize(problem.head, problem.features)
        joint = second_order.exact_terms(problem, at)
        separate = {}
        for source in ("data", "additive"):
            found = second_order.exact_terms(problem, at, gauss_newton=[source], residual=[source])
            separate |= {
                k + second_order.SOURCES[source]: found[k + second_order.SOURCES[source]] for k in ("R2", "R3")
            }
            other = {"data": "_add", "additive": ""}[source]
            assert found["R3" + other] == found["R2" + other] == 0
    for term, value in separate.items():
        assert_close(joint[term], value, rtol=1e-10, atol=1e-14)


def test_fewer_directions_than_features_behind_a_narrow_linear_layer(monkeypatch):
    model, x = linear_first(0, 12, 3), randn(1, 8, 12)
    problem = build_problem(model, x, torch.arange(8) % 3, add_noise=0.3)
    for differentiable, most in ((False, 3 + 1), (True, 3 + 3 + 1)):
        at = linearize(problem.head, problem.features, differentiable=differentiable)
        spent, sweep = [], at.sweep
        monkeypatch.setattr(at, "sweep", lambda v, *a, s=sweep, n=spent, **k: n.append(len(v)) or s(v, *a, **k))
        second_order.exact_terms(problem, at)
        assert sum(spent) == most


@pytest.mark.parametrize("noise", [(0.4, 0.0), (0.4, 0.3)])
@pytest.mark.parametrize("name", ["linear first, n > d > w", "nonlinear first, n < d", "convolution"])
def test_gradients_of_the_terms_are_those_of_the_naive_twin(name, noise):
    model, x = PROBLEMS[name]()
    y = torch.arange(len(x)) % 3
    terms = nt.terms(build_problem(model, x, y, add_noise=noise[0], mult_noise=noise[1]), remainder=False)
    expected = naive(model, x, y, *noise)
    params = list(model.parameters())
    for term in NAMES if noise[1] else NAMES[:5]:
        found, value = getattr(terms, term), expected[term]
        grads = [torch.autograd.grad(z, params, retain_graph=True, materialize_grads=True) for z in (found, value)]
        for f, e in zip(*grads, strict=True):
            assert_close(f, e, rtol=1e-9, atol=1e-12, msg=lambda m, t=term: f"{t}: {m}")


def test_terms_carry_gradients_only_if_something_needs_them():
    model, x, y = mlp(0, [3, 4, 2]), randn(1, 4, 3), torch.tensor([0, 1, 1, 0])
    assert nt.terms(build_problem(model, x, y), remainder=False).R3.requires_grad
    frozen = model.requires_grad_(False)
    assert not nt.terms(build_problem(frozen, x, y), remainder=False).R3.requires_grad
    found = nt.terms(build_problem(frozen, x.clone().requires_grad_(), y), remainder=False).R3
    assert found.requires_grad


def test_results_do_not_depend_on_the_bytes_of_a_block():
    model, x, y = small_cnn(0, activation="tanh", pool=nn.AvgPool2d), randn(1, 3, 1, 6, 6), torch.tensor([0, 1, 2])
    problem = build_problem(model, x, y, add_noise=0.3, mult_noise=0.2)
    whole = nt.terms(problem, remainder=False)
    with nt.options(block_bytes=200_000):
        small = nt.terms(problem, remainder=False)
    for term in NAMES:
        assert_close(getattr(small, term), getattr(whole, term), rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize(("loss", "outputs"), [("cross_entropy", 3), ("logistic", 1), ("square", 2)])
def test_closed_forms_of_the_losses_are_those_of_differentiation(loss, outputs):
    closed = pointwise_loss(loss)
    u = 3 * randn(0, 5, outputs)
    labels = closed.prepare(u, {"square": randn(1, 5, outputs)}.get(loss, torch.arange(5) % max(2, outputs)))
    open_form = PointwiseLoss(loss, closed.function, closed.prepare)
    assert open_form.closed_gradient is open_form.closed_hessian is None
    assert_close(closed.gradient(u, labels), open_form.gradient(u, labels), rtol=1e-12, atol=1e-14)
    assert_close(closed.hessian(u, labels), open_form.hessian(u, labels), rtol=1e-11, atol=1e-13)
    far = closed.hessian(200 * u, labels)
    assert far.isfinite().all()
