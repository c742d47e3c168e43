import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import mlp, randn
from scipy import integrate, special
from torch.testing import assert_close

from nfm_theory import Law, Problem, Quadrature, loss
from nfm_theory.generalization.mixup_optimal import (
    alternating_line,
    empirical_report,
    line_optimal,
    minimal_mixup_loss,
    mixup_optimal,
)

seeds = st.integers(0, 10_000)


def quantiles(alpha, beta, num):
    """Equally likely values of λ."""
    return special.betaincinv(alpha, beta, (np.arange(num) + 0.5) / num)


def labels_of(seed, n, classes):
    return (torch.arange(n) + seed) % classes


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    seed=seeds,
    n=st.integers(2, 4),
    d=st.integers(1, 3),
    alpha=st.sampled_from([0.5, 1.0, 3.0]),
    beta=st.sampled_from([None, 2.0]),
    self_pairs=st.booleans(),
)
def test_closed_form_is_the_count_of_mixed_points(seed, n, d, alpha, beta, self_pairs):
    x, y, num = randn(seed, n, d), labels_of(seed, n, 3), 20_000
    hot = np.eye(3)[y.numpy()]
    points = torch.cat([x[:2], (x[:1] + x[1:2]) / 2, x[:1] + 100])
    found = mixup_optimal(points, x, y, radius=0.4, alpha=alpha, beta=beta, self_pairs=self_pairs)
    lam = quantiles(alpha, alpha if beta is None else beta, num)[:, None]
    pairs = n**2 if self_pairs else n * (n - 1)
    for q, z in enumerate(points.numpy()):
        mass, label = 0.0, np.zeros(3)
        for i in range(n):
            for r in range(n):
                if i == r and not self_pairs:
                    continue
                near = np.linalg.norm(lam * x.numpy()[i] + (1 - lam) * x.numpy()[r] - z, axis=1) <= 0.4
                mass += near.mean() / pairs
                label += (near[:, None] * (lam * hot[i] + (1 - lam) * hot[r])).mean(0) / pairs
        assert float(found.mass[q]) == pytest.approx(mass, abs=4 / num)
        if mass > 0.01:
            assert_close(
                found.probabilities[q, : y.max() + 1].numpy(), (label / mass)[: y.max() + 1], rtol=0, atol=1e-2
            )
    assert found.mass[3] == 0
    assert found.decision[3] == -1
    assert found.probabilities[3].isnan().all()


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    seed=seeds,
    n=st.integers(2, 6),
    alpha=st.sampled_from([0.3, 1.0, 20.0, math.inf]),
    scale=st.sampled_from([0.1, 7.0]),
)
def test_probabilities_and_invariances(seed, n, alpha, scale):
    x, y = randn(seed, n, 2), labels_of(seed, n, 2)
    found = mixup_optimal(x, x, y, radius=0.3, alpha=alpha)
    assert_close(found.probabilities.sum(1), torch.ones(n, dtype=x.dtype), rtol=1e-9, atol=1e-9)
    assert (found.probabilities >= -1e-12).all()
    assert (found.mass >= 1 / n**2 - 1e-12).all()  # the atom of (i, i)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    moved = mixup_optimal(scale * x[order] + 1, scale * x[order] + 1, y[order], radius=0.3 * scale, alpha=alpha)
    assert_close(moved.probabilities, found.probabilities[order], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.5])
def test_the_line_is_the_limit_of_small_balls(alpha):
    x, y = torch.tensor([0.0, 1.0, 2.5, 3.0]).double(), torch.tensor([0, 1, 0, 2])
    points = torch.tensor([0.4, 1.3, 1.7, 2.9, 2.99]).double()
    limit, ball = line_optimal(points, x, y, alpha=alpha), mixup_optimal(points, x, y, radius=1e-5, alpha=alpha)
    assert_close(limit.probabilities, ball.probabilities, rtol=1e-5, atol=1e-8)
    assert_close(limit.mass, ball.mass / 2e-5, rtol=1e-5, atol=1e-8)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=seeds, n=st.integers(2, 5), alpha=st.sampled_from([0.5, 1.0, 30.0]), lam=st.sampled_from([0.2, 0.45, 0.7]))
def test_general_position_interpolates_linearly_and_fits_the_data(seed, n, alpha, lam):
    x, y = randn(seed, n, 3), labels_of(seed, n, 2)
    hot = torch.eye(2, dtype=x.dtype)[y]
    found = mixup_optimal((lam * x[0] + (1 - lam) * x[1])[None], x, y, radius=1e-7, alpha=alpha)
    assert_close(found.probabilities[0], lam * hot[0] + (1 - lam) * hot[1], rtol=0, atol=1e-4)
    assert empirical_report(x, y, radius=1e-7, alpha=alpha).error == 0


def test_three_points_by_hand():
    """Uniform λ: the atom 1/9, four half-segments of length ρ with labels 1 - ρ/2, two passing with label 0."""
    x, y = alternating_line()
    for rho in (0.05, 0.1, 0.3):
        found = mixup_optimal(x[1:2], x, y, radius=rho)
        assert float(found.mass) == pytest.approx((1 + 4 * rho + 2 * rho) / 9)
        assert float(found.probabilities[0, 1]) == pytest.approx((1 + 4 * rho * (1 - rho / 2)) / (1 + 6 * rho))
    # next to the point, without the atom: two thirds for its label if λ is uniform
    beside = line_optimal(torch.tensor([1 - 1e-9, 1 + 1e-9], dtype=x.dtype), x, y)
    assert_close(beside.probabilities[:, 1], torch.full((2,), 2 / 3, dtype=x.dtype), rtol=1e-6, atol=0)


def test_mixup_does_not_minimise_the_empirical_loss_on_the_alternating_line():
    """The failure case: the middle point is lost once α is large, the more so the finer α concentrates λ at 1/2."""
    x, y = alternating_line()
    reports = [empirical_report(x, y, radius=0.1, alpha=a) for a in (1.0, 4.0, 16.0, 32.0, 128.0, math.inf)]
    assert [r.wrong.tolist() for r in reports] == [[False] * 3] * 3 + [[False, True, False]] * 3
    losses = [r.loss for r in reports]
    assert losses == sorted(losses)
    assert reports[-1].error == pytest.approx(1 / 3)
    assert float(reports[-1].probabilities[1, 1]) == pytest.approx(1 / 3)
    assert reports[-1].loss == pytest.approx(math.log(3) / 3)
    # a finer resolution needs a larger α
    assert not empirical_report(x, y, radius=0.05, alpha=64.0).wrong.any()
    assert empirical_report(x, y, radius=0.05, alpha=128.0).wrong[1]


def test_without_self_pairs_it_fails_for_every_alpha_above_one():
    x, y = alternating_line()
    for alpha, wrong in [(0.5, False), (1.0, False), (1.5, True), (3.0, True)]:
        assert bool(empirical_report(x, y, radius=1e-6, alpha=alpha, self_pairs=False).wrong[1]) is wrong
        beside = line_optimal(
            torch.tensor([1 + 1e-6], dtype=x.dtype), x, y, alpha=alpha
        )  # a continuous function sees this
        assert (int(beside.decision) != 1) is wrong


@pytest.mark.parametrize("num_points", [4, 5, 7])
def test_longer_lines_fail_as_well(num_points):
    x, y = alternating_line(num_points)
    found = empirical_report(x, y, radius=0.1, alpha=1000.0)
    assert not found.wrong[0]
    assert found.error > 0
    assert empirical_report(x, y, radius=0.01, alpha=1.0).error == 0


def binned_minimum(x, y, alpha, width, num=4000):
    """The Mixup loss of functions constant on bins, minimised by gradient descent: knows nothing of the formulas.

    λ takes `num` equally likely values; returns (minimal loss, probabilities of class 1 by bin).
    """
    lam = torch.from_numpy(quantiles(alpha, alpha, num))
    i, r = (p.flatten() for p in torch.meshgrid(torch.arange(len(x)), torch.arange(len(x)), indexing="ij"))
    point = lam[:, None] * x[i] + (1 - lam[:, None]) * x[r]
    target = (lam[:, None] * y[i] + (1 - lam[:, None]) * y[r]).flatten()
    bins = ((point.flatten() - x.min()) / width + 0.5).floor().long()  # bins centered at the data
    logits = torch.zeros(int(bins.max()) + 1, dtype=x.dtype, requires_grad=True)
    mass = torch.zeros(len(logits), dtype=x.dtype).index_add(0, bins, torch.ones_like(target)) / len(target)
    label = torch.zeros(len(logits), dtype=x.dtype).index_add(0, bins, target) / len(target)
    optimizer = torch.optim.LBFGS([logits], max_iter=400, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = (mass * torch.nn.functional.softplus(logits) - label * logits).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return float(closure().detach()), logits.detach().sigmoid()


@pytest.mark.parametrize("alpha", [1.0, 32.0])
def test_against_minimisation_on_a_grid(alpha):
    x, y = alternating_line()
    _, by_bin = binned_minimum(x[:, 0], y.double(), alpha, width=0.2)
    centres = torch.arange(len(by_bin), dtype=x.dtype) * 0.2
    found = mixup_optimal(centres, x[:, 0], y, radius=0.1, alpha=alpha)
    assert_close(by_bin, found.probabilities[:, 1], rtol=0, atol=5e-3)
    assert (int(by_bin[5] > 0.5) == 1) is (alpha == 1.0)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 3.0])
def test_the_minimal_loss_is_the_limit_of_the_grids(alpha):
    x, y = alternating_line()
    exact = minimal_mixup_loss(x, y, alpha=alpha)
    coarse, fine, finest = (binned_minimum(x[:, 0], y.double(), alpha, w, 20_000)[0] for w in (0.1, 0.02, 0.004))
    assert coarse > fine > finest > exact - 1e-4
    assert finest - exact < 0.35 * (coarse - exact)
    assert finest - exact < 0.02


@pytest.mark.parametrize(("alpha", "beta"), [(0.2, None), (0.5, 2.0), (1.0, None), (4.0, None)])
def test_the_minimal_loss_of_two_points_is_an_integral(alpha, beta):
    """Two samples: half of the pairs mix, and the label at λ is λ."""
    b = alpha if beta is None else beta

    def integrand(s, swap):  # λ = s^8 on either half
        p, q = (b, alpha) if swap else (alpha, b)
        lam = s**8
        density = lam ** (p - 1) * (1 - lam) ** (q - 1) / special.beta(p, q)
        return density * (special.entr(lam) + special.entr(1 - lam)) * 8 * s**7

    value = sum(integrate.quad(integrand, 0, 0.5**0.125, args=(swap,), limit=200)[0] for swap in (False, True)) / 2
    found = minimal_mixup_loss(torch.tensor([1.0, 3.0]), torch.tensor([0, 1]), alpha=alpha, beta=beta)
    assert found == pytest.approx(value, rel=1e-7)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=seeds, alpha=st.sampled_from([0.4, 1.0, 5.0]))
def test_no_network_goes_below_the_minimal_loss(seed, alpha):
    x, y = alternating_line(4)
    model = mlp(seed, [1, 8, 2])
    problem = Problem(model, x, y, law=Law(alpha))
    value = loss(problem, 1.0, "exact", "mixed", quadrature=Quadrature(num_lam=60)).value.detach()
    assert float(value) > minimal_mixup_loss(x, y, alpha=alpha)


def test_coinciding_samples_share_an_atom():
    x, y = torch.tensor([0.0, 0.0]), torch.tensor([0, 1])
    assert minimal_mixup_loss(x, y) == pytest.approx(math.log(2))
    soft = torch.tensor([[0.3, 0.7], [0.3, 0.7]])
    assert_close(mixup_optimal(x, x, soft, radius=0.1).probabilities, soft.double(), rtol=1e-6, atol=0)


def test_refusals():
    x, y = alternating_line()
    for call, message in [
        (lambda: alternating_line(2), "num_points"),
        (lambda: mixup_optimal(x, x, y, radius=0.0), "radius"),
        (lambda: mixup_optimal(x, x, y[:2], radius=0.1), "x, y"),
        (lambda: mixup_optimal(x, x, y, radius=0.1, alpha=0.0), "alpha, beta"),
        (lambda: mixup_optimal(x, x, y, radius=0.1, alpha=math.inf, beta=1.0), "alpha, beta"),
        (lambda: mixup_optimal(torch.zeros(1, 2), x, y, radius=0.1), "dimension"),
        (lambda: line_optimal(x[:1], x, y), "none of the data"),
        (lambda: line_optimal(x + 0.1, x, y, alpha=math.inf), "finite"),
        (lambda: minimal_mixup_loss(randn(0, 3, 2), y), "on a line"),
        (lambda: empirical_report(x, torch.eye(3), radius=0.1), "class indices"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
