import math

import pytest
import torch
from building import build_problem
from hypothesis import given, settings
from problems import mlp, randn
from strategies import settings_of_the_theory
from tiers import random_cases
from torch.testing import assert_close

import nfm_theory as nt
from nfm_theory.expansion.paths import Polynomials, second_order_coefficients, taylor_coefficients

MODEL, X, Y = mlp(0, [3, 5, 3]), randn(1, 6, 3), torch.tensor([0, 1, 2, 1, 0, 2])
NOISY = {"add_noise": 0.6, "mult_noise": 0.5}


def problem_and_draw(model=MODEL, x=X, y=Y, replicates=3, **options):
    problem = build_problem(model, x, y, **options)
    return problem, problem.draw(len(x), replicates, generator=torch.Generator().manual_seed(0))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(settings_of_the_theory())
def test_pathwise_terms_are_the_derivatives_along_the_path(case):
    model, x, y, options = case
    problem, draw = problem_and_draw(model, x, y, **options)
    assert_close(
        second_order_coefficients(problem.path(draw)), taylor_coefficients(problem.path(draw), 2), rtol=1e-9, atol=1e-11
    )


@random_cases(8, 30, given(settings_of_the_theory()))
def test_polynomials_of_whole_sweeps_are_those_of_the_rows(case):
    model, x, y, options = case
    problem, draw = problem_and_draw(model, x, y, **options)
    path, polynomials = problem.path(draw), Polynomials(problem)
    expected = taylor_coefficients(path, 3)
    for order in range(4):
        assert_close(polynomials(path, order), expected[:, : order + 1], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("noise", [{}, {"add_noise": 0.6}, NOISY])
def test_a_path_takes_numbers_and_tensors(noise):
    problem, draw = problem_and_draw(**noise)
    path = problem.path(draw)
    for eps in (0.0, 0.3, 1.0):
        at = torch.tensor(eps, dtype=torch.float64)
        assert_close(path(eps), path(at), rtol=1e-13, atol=1e-14)
        assert_close(path(eps), path(at.expand(len(draw))), rtol=1e-13, atol=1e-14)


@random_cases(5, 20, given(settings_of_the_theory()))
def test_lagrange_interval_holds_for_every_single_draw(case):
    model, x, y, options = case
    problem, draw = problem_and_draw(model, x, y, **options)
    eps = 0.1
    for order in (0, 1, 2):
        value = problem.path(draw)(torch.tensor(eps, dtype=torch.float64))
        powers = eps ** torch.arange(order + 1, dtype=torch.float64)
        remainder = value - second_order_coefficients(problem.path(draw))[:, : order + 1] @ powers
        interval = nt.lagrange_interval(problem, draw, eps, order=order)
        scaled = math.factorial(order + 1) * remainder / eps ** (order + 1)
        rounding = 1e-13 * value.abs() * math.factorial(order + 1) / eps ** (order + 1)
        assert interval.contains(scaled, slack=rounding).all()
        assert_close(nt.integral_remainder(problem, draw, eps, order=order), remainder, rtol=1e-5, atol=1e-13)


def test_a_hessian_term_one_percent_off_leaves_the_interval():
    problem, draw = problem_and_draw(**NOISY, replicates=20)
    eps = 0.003
    coefficients = second_order_coefficients(problem.path(draw))
    coefficients[:, 2] *= 1.01
    value = problem.path(draw)(torch.tensor(eps, dtype=torch.float64))
    remainder = value - coefficients @ eps ** torch.arange(3, dtype=torch.float64)
    outside = ~nt.lagrange_interval(problem, draw, eps).contains(6 * remainder / eps**3)
    assert outside.double().mean() > 0.5


@pytest.mark.parametrize("eps", [0.1, 0.03, 0.01, 0.003])
def test_integral_form_survives_float32_where_the_difference_is_noise(eps):
    reference, draw = problem_and_draw(**NOISY)
    single = mlp(0, [3, 5, 3]).float()
    problem = build_problem(single, X.float(), Y, **NOISY)
    draw32 = nt.Draw(draw.anchor, draw.lam.float(), draw.index, draw.add.float(), draw.mult.float())
    truth = nt.integral_remainder(reference, draw, eps)
    integral = nt.integral_remainder(problem, draw32, eps).double()
    path, powers = problem.path(draw32), eps ** torch.arange(3)
    difference = (path(torch.tensor(eps)) - taylor_coefficients(problem.path(draw32), 2) @ powers.float()).double()
    size = truth.abs().mean()
    assert (integral - truth).abs().mean() < 1e-4 * size
    assert abs(integral.mean() - truth.mean()) < 1e-4 * truth.mean().abs()
    if eps <= 0.01:
        assert (difference - truth).abs().mean() > 0.01 * size


def test_integral_is_exact_for_polynomials_of_the_stated_degree():
    x, y = randn(0, 3, 1), torch.zeros(3, 1, dtype=torch.float64)
    problem, draw = problem_and_draw(lambda h: h**4, x, y, loss="square", alpha=0.0, add_noise=1.0)  # phi of degree 8
    eps = torch.tensor(0.5, dtype=torch.float64)
    remainder = problem.path(draw)(eps) - taylor_coefficients(problem.path(draw), 2) @ eps ** torch.arange(3)
    assert_close(nt.integral_remainder(problem, draw, 0.5, num_nodes=3), remainder, rtol=1e-12, atol=1e-12)


def test_perturb_is_the_formula_row_by_row():
    _, draw = problem_and_draw(**NOISY)
    for eps in (0.4, torch.linspace(0, 1, len(draw), dtype=torch.float64)):
        out = nt.perturb(X, draw, nt.Law(**NOISY), eps=eps)
        for row in range(len(draw)):
            e = eps if isinstance(eps, float) else eps[row]
            g, v = X[draw.anchor[row]], X[draw.index[row]] - X[draw.anchor[row]]
            s = 1 - draw.lam[row]
            first = s * v + 0.5 * draw.mult[row] * g + 0.6 * draw.add[row]
            assert_close(out[row], g + e * first + e**2 * s * 0.5 * draw.mult[row] * v)
