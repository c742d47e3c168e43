"""Where the theory is valid: coefficients along paths against closed forms and nesting, errors of known networks."""

import json
import math

import pytest
import torch
from building import build_problem
from hypothesis import given, settings
from problems import mlp, randn, small_cnn
from strategies import settings_of_the_theory
from tiers import random_cases
from torch.testing import assert_close

import nfm_theory as nt
from nfm_theory.calculus.engine import linearize
from nfm_theory.expansion.paths import taylor_coefficients
from nfm_theory.expansion.random_paths import PathSample, jets, sample_paths, stratified

MODEL, X, Y = mlp(0, [3, 5, 3]), randn(1, 6, 3), torch.tensor([0, 1, 2, 1, 0, 2])
NOISY = {"add_noise": 0.4, "mult_noise": 0.3}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def along(model, x, y, order=4, replicates=2, **options):
    problem = build_problem(model, x, y, **options)
    draw = problem.draw(len(x), replicates, generator=generator())
    at = linearize(problem.head, problem.features, differentiable=False)
    return problem, draw, at, jets(at, problem.path(draw), order)


def hessian_chain(problem, draw, row, order):
    """Derivatives of φ at 0 of one row by nested reverse mode, with the perturbation written out."""
    g, i, r = problem.features, int(draw.anchor[row]), int(draw.index[row])
    eps = torch.zeros((), dtype=g.dtype, requires_grad=True)
    mixed = g[i] + eps * (1 - draw.lam[row]) * (g[r] - g[i])
    mixed = (1 + eps * problem.law.mult_noise * draw.mult[row]) * mixed + eps * problem.law.add_noise * draw.add[row]
    value = problem.losses(mixed[None], torch.tensor([i]))[0]
    found = [value]
    for _ in range(order):
        (value,) = torch.autograd.grad(value, eps, create_graph=True)
        found.append(value)
    return torch.stack([d.detach() / math.factorial(k) for k, d in enumerate(found)])


def test_coefficients_against_nested_reverse_mode():
    problem, draw, _, (found, _) = along(MODEL, X, Y, **NOISY)
    for row in range(len(draw)):
        assert_close(found[row], hessian_chain(problem, draw, row, 4), rtol=1e-9, atol=1e-12)


@random_cases(6, 25, given(settings_of_the_theory()))
def test_coefficients_against_nested_forward_mode(case):
    model, x, y, options = case
    problem, draw, _, (found, _) = along(model, x, y, order=3, **options)
    assert_close(found, taylor_coefficients(problem.path(draw), 3), rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize(
    ("model", "x", "layer"),
    [(mlp(0, [3, 6, 6, 3], "relu"), X, "0"), (small_cnn(0, activation="relu"), randn(1, 6, 1, 8, 8), "3")],
    ids=["mlp", "cnn"],
)
def test_two_tangents_are_all_orders_of_a_relu_network(model, x, layer):
    problem, draw, at, (found, outputs) = along(model, x, Y, layer=layer, **NOISY)
    assert at.piecewise_linear
    assert_close(found, taylor_coefficients(problem.path(draw), 4), rtol=1e-10, atol=1e-13)
    assert not outputs[3].any()
    assert not outputs[4].any()
    eps = torch.tensor(1e-9, dtype=torch.float64)  # before any kink
    moved = problem.head(nt.perturb(problem.features, draw, problem.law, eps=eps))
    assert_close(moved - at.outputs.repeat(2, 1), eps * outputs[1], rtol=1e-5, atol=1e-15)


def test_closed_form_of_a_quadratic_loss():
    """Square loss of the identity with target 0: φ = |g + ε e|²/2 has the coefficients |g|²/2, g·e, |e|²/2, 0, 0."""
    x, y = randn(0, 5, 2), torch.zeros(5, 2, dtype=torch.float64)
    problem, draw, _, (found, _) = along(lambda u: u, x, y, loss="square", add_noise=0.7)
    first, e, _ = problem.perturbation(draw)
    truth = torch.stack([(first**2).sum(1) / 2, (first * e).sum(1), (e**2).sum(1) / 2], dim=1)
    assert_close(found[:, :3], truth, rtol=1e-12, atol=1e-13)
    assert float(found[:, 3:].abs().max()) < 1e-14


def exponential(outputs, labels):
    return outputs[:, 0].exp()


def test_closed_form_of_an_exponential_loss():
    """exp(g + ε e) has the coefficients exp(g) e^k / k!, and normal noise the mean exp(g + ε²σ²/2)."""
    x, y = torch.zeros(4, 1, dtype=torch.float64), torch.zeros(4)
    options = {"loss": exponential, "alpha": 0.0, "add_noise": 0.5}
    problem, draw, _, (found, _) = along(lambda u: u, x, y, **options)
    e = problem.perturbation(draw)[1][:, 0]
    assert_close(found, torch.stack([e**k / math.factorial(k) for k in range(5)], dim=1), rtol=1e-12, atol=1e-14)
    curve = nt.error_curve(
        build_problem(lambda u: u, x, y, **options),
        method="pathwise",
        orders=(1, 2, 3, 4),
        eps=[0.5, 1.0, 2.0, 4.0],
        samples=40_000,
    )
    for k, eps in enumerate(curve.eps):
        s2 = (0.5 * eps) ** 2
        truth, polynomial = math.exp(s2 / 2), {1: 1.0, 2: 1 + s2 / 2, 3: 1 + s2 / 2, 4: 1 + s2 / 2 + s2**2 / 8}
        assert abs(float(curve.loss.value[k]) - truth) < 5 * float(curve.loss.stderr[k])
        for order, value in polynomial.items():
            wanted = abs(truth - value) / truth
            assert abs(curve.relative_error(order)[k] - wanted) < 5 * curve.relative_stderr[order][k] + 1e-12
    s2 = -2 * math.log(0.9)  # order 1 is 10 % off where exp(-σ²ε²/2) = 0.9
    low, high = curve.radius_range(1, 5.0)
    assert low <= curve.radius[1] <= high
    assert curve.radius[1] == pytest.approx(math.sqrt(s2) / 0.5, rel=0.05)
    assert curve.linearised is not None  # the identity is linear, so all orders together are the loss
    assert curve.linearised == pytest.approx(curve.loss.value.tolist())


@settings(max_examples=8, deadline=None, derandomize=True)
@given(settings_of_the_theory())
def test_orders_one_and_two_are_those_of_the_theorem(case):
    model, x, y, options = case
    options = {**options, "noise": "normal"}
    problem = build_problem(model, x, y, **options)
    sample = sample_paths(problem, torch.tensor([0.1]), 2, replicates=600, generator=generator())
    mean, stderr = stratified(sample.coefficients)
    exact = torch.stack(nt.terms(build_problem(model, x, y, **options), remainder=False).coefficients(2)).detach()
    assert ((mean - exact).abs() <= 5 * stderr + 1e-9 * exact.abs() + 1e-12).all()


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_error_of_order_p_falls_as_the_power_p_plus_one(order):
    problem = build_problem(MODEL, X, Y, add_noise=0.4)
    eps = torch.tensor([0.04, 0.02, 0.01, 0.005], dtype=torch.float64)
    sample = sample_paths(problem, eps, 4, replicates=2, generator=generator())
    # path by path, where nothing averages out
    gap = (sample.losses - sample.polynomial(order)).abs().mean((0, 1))
    slopes = torch.log2(gap[:-1] / gap[1:])
    assert float((slopes - (order + 1)).abs().max()) < 0.15


def test_errors_agree_with_quadrature_and_their_standard_error_is_right():
    scales = [0.3, 1.0]
    exact = nt.error_curve(build_problem(MODEL, X, Y), eps=scales, orders=(1, 2, 3), max_rows=100_000)
    assert exact.coefficients is None
    assert "relative_stderr" not in exact.to_dict()
    low, high = exact.radius_range(2)
    assert low == pytest.approx(exact.radius[2], rel=1e-8)  # the quadrature of a smooth head is almost exact
    assert high == pytest.approx(low, rel=1e-8)
    assert exact.to_dict()["error"] == exact.loss.error.tolist()
    misses = []
    for seed in range(20):
        curve = nt.error_curve(
            build_problem(MODEL, X, Y), eps=scales, method="pathwise", samples=600, generator=generator(seed)
        )
        signed = [
            (curve.relative_error(2)[k] - exact.relative_error(2)[k]) / curve.relative_stderr[2][k] for k in (0, 1)
        ]
        misses.append(signed)
    spread = torch.tensor(misses).square().mean(0).sqrt()
    assert ((spread > 0.6) & (spread < 1.5)).all(), spread


def test_layers_are_averaged():
    layers = ["", "0"]
    both = nt.error_curve(build_problem(MODEL, X, Y, layer=layers), eps=[1.0], method="pathwise", samples=8_000)
    alone = [nt.error_curve(build_problem(MODEL, X, Y, layer=name), eps=[1.0], max_rows=100_000) for name in layers]
    mean = sum(float(c.loss.value) for c in alone) / 2
    assert abs(float(both.loss.value) - mean) < 5 * float(both.loss.stderr)
    polynomial = sum(c.polynomials[2][0] for c in alone) / 2
    error = abs(mean - polynomial) / mean
    assert abs(both.relative_error(2)[0] - error) < 5 * both.relative_stderr[2][0]


def test_stratified_error_is_that_of_the_naive_loop():
    values = randn(3, 4, 5, 2)
    mean, stderr = stratified(values)
    for column in range(2):
        variances = [torch.var(values[:, i, column]) / 4 for i in range(5)]
        assert float(stderr[column]) == pytest.approx(math.sqrt(sum(variances)) / 5)
        assert float(mean[column]) == pytest.approx(float(values[..., column].mean()))


def test_joined_layers_have_kinks_only_if_all_have_them():
    curved, kinked = (
        sample_paths(build_problem(m, X, Y), torch.tensor([1.0]), 2, replicates=2, generator=generator())
        for m in (MODEL, mlp(0, [3, 5, 3], "relu"))
    )
    assert PathSample.joined([kinked, kinked]).linearised.shape == (2, 12, 1)
    assert PathSample.joined([kinked, curved]).linearised is None


def test_the_record_is_plain_and_bad_requests_say_what_to_do():
    curve = nt.error_curve(
        build_problem(MODEL, X, Y, **NOISY), method="pathwise", orders=(1, 4), eps=[0.1, 1.0], samples=100
    )
    record = json.loads(json.dumps(curve.to_dict(), allow_nan=False))
    assert set(record["radius_range"]) == set(record["relative_stderr"]) == {"1", "4"}
    assert len(record["coefficients"]) == 5
    with pytest.raises(ValueError, match="method: expected"):
        nt.error_curve(build_problem(MODEL, X, Y), method="guess")
    problem = build_problem(MODEL, X, Y)
    with pytest.raises(ValueError, match="replicates >= 2"):
        sample_paths(problem, torch.tensor([0.1]), 2, replicates=1)
    with pytest.raises(ValueError, match="order >= 2"):
        sample_paths(problem, torch.tensor([0.1]), 1, replicates=2)
