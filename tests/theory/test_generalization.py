import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import randn
from scipy import integrate, special
from torch.testing import assert_close

from nfm_theory import observed_order
from nfm_theory.generalization.glm import (
    POISSON_FAMILY,
    generalization_bound,
    glm_cubic,
    glm_family,
    glm_mixup_loss,
    glm_regularizer,
    rescaled_moment,
)

FAMILIES = ("logistic", "square", "poisson")


def unmixed_density(lam, a, b):
    """λ (p(λ) + p(1 - λ)), straight from the lemma."""
    p = lambda s: s ** (a - 1) * (1 - s) ** (b - 1) / special.beta(a, b)  # noqa: E731
    return lam * (p(lam) + p(1 - lam))


def centered(seed, n, d, skew=0.3):
    x = randn(seed, n, d)
    x = x + skew * x**2  # not symmetric: the cubic term must not vanish
    return x - x.mean(0)


@pytest.mark.parametrize(("a", "b"), [(2.0, 2.0), (3.5, 1.5), (1.3, 4.0), (5.0, 6.0)])
def test_moment_is_the_integral_over_the_unmixed_density(a, b):
    for order in (1, 2, 3):
        if min(a, b) <= order - 1:
            continue

        def integrand(s, j=order):  # λ = s⁸ makes the integrable pole at 0 smooth
            return unmixed_density(s**8, a, b) * (1 / s**8 - 1) ** j * 8 * s**7

        value, _ = integrate.quad(integrand, 0, 1, limit=400)
        assert rescaled_moment(a, b, order=order) == pytest.approx(value, rel=1e-6)


def test_moment_in_closed_form():
    assert rescaled_moment(4.0) == pytest.approx(5 / 3)
    a, b = 2.5, 3.5
    assert rescaled_moment(a, b) == pytest.approx((b * (b + 1) / (a - 1) + a * (a + 1) / (b - 1)) / (a + b))
    assert rescaled_moment(a, b) == rescaled_moment(b, a)


@pytest.mark.parametrize(("a", "b"), [(1.0, None), (0.2, None), (1.0, 5.0), (5.0, 0.5)])
def test_divergence_is_refused_and_real(a, b):
    x, theta = centered(0, 5, 2), randn(1, 2)
    with pytest.raises(ValueError, match="infinite") as caught:
        glm_regularizer(theta, x, alpha=a, beta=b)
    assert "min(α, β) > 1" in str(caught.value)
    assert "nfm_theory.terms(problem)" in str(caught.value)
    b = a if b is None else b
    integrand = lambda s: unmixed_density(s, a, b) * ((1 - s) / s) ** 2  # noqa: E731
    cuts = [1e-2, 1e-4, 1e-6, 1e-8]
    pieces = [integrate.quad(integrand, low, high, limit=200)[0] for high, low in pairwise(cuts)]
    assert all(new > 0.99 * old for old, new in pairwise(pieces))  # no piece dies out


@pytest.mark.parametrize("family", FAMILIES)
def test_derivatives_of_the_families(family):
    family, u = glm_family(family), torch.linspace(-3, 3, 13, dtype=torch.float64)
    chain = [family.potential, family.mean, family.variance, family.skewness]
    for low, high in pairwise(chain):
        derivative = torch.func.vmap(torch.func.grad(low))(u)
        assert_close(derivative, high(u).expand_as(u), rtol=1e-10, atol=1e-12)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(2, 6),
    d=st.integers(1, 4),
    family=st.sampled_from(FAMILIES),
    a=st.sampled_from([1.2, 2.0, 4.5]),
    b=st.sampled_from([None, 3.0]),
)
def test_regularizer_is_the_double_loop(seed, n, d, family, a, b):
    x, theta = centered(seed, n, d), randn(seed + 1, d)
    second = glm_family(family).variance
    total = 0.0
    for i in range(n):
        for r in range(n):
            total += rescaled_moment(a, b) / 2 * second(x[i] @ theta) * (x[r] @ theta) ** 2 / n**2
    sigma = x.T @ x / n
    stated = rescaled_moment(a, b) * second(x @ theta).sum() * (theta @ sigma @ theta) / (2 * n)
    value = glm_regularizer(theta, x, alpha=a, beta=b, family=family)
    assert_close(value, total, rtol=1e-10, atol=1e-12)
    assert_close(value, stated, rtol=1e-10, atol=1e-12)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), a=st.sampled_from([0.4, 1.0, 2.5]), b=st.sampled_from([None, 1.7]))
def test_exact_loss_is_the_integral(seed, a, b):
    """A second witness: adaptive integration in λ, pair by pair, with the definition of the density."""
    n = 3
    x, theta = centered(seed, n, 2), randn(seed + 1, 2)
    y = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)
    scores, targets, second = (x @ theta).numpy(), y.numpy(), a if b is None else b

    def density(near, far):
        """λ (p(λ) + p(1 - λ)) from λ and 1 - λ, each given without cancellation."""
        p = lambda s, t: s ** (a - 1) * t ** (second - 1) / special.beta(a, second)  # noqa: E731
        return near * (p(near, far) + p(far, near))

    def integrand(s, u, v, target, mirrored):
        lam, rest = (1 - s**6, s**6) if mirrored else (s**6, 1 - s**6)
        mixed = u + rest / lam * v
        return density(lam, rest) * (np.logaddexp(0, mixed) - target * mixed) * 6 * s**5

    total, half = 0.0, 0.5 ** (1 / 6)
    for i in range(n):
        for r in range(n):
            for mirrored in (False, True):
                args = (scores[i], scores[r], targets[i], mirrored)
                total += integrate.quad(integrand, 0, half, args=args, limit=300)[0]
    value = glm_mixup_loss(theta, x, y, alpha=a, beta=b, num_lam=300)
    assert float(value) == pytest.approx(total / n**2, rel=1e-6)


def test_square_loss_is_its_own_expansion():
    x, theta, y = centered(0, 6, 3), randn(1, 3), randn(2, 6)
    scores = x @ theta
    standard = (scores**2 / 2 - y * scores).mean()
    scale = torch.tensor([0.0, 0.3, 1.0], dtype=x.dtype)
    exact = glm_mixup_loss(theta, x, y, alpha=1.5, beta=3.0, family="square", scale=scale)
    added = glm_regularizer(theta, x, alpha=1.5, beta=3.0, family="square")
    assert_close(exact, standard + added * scale**2, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("a", "b"), [(8.0, None), (7.0, 9.0)])
def test_remainder_is_third_order_with_the_predicted_coefficient(a, b):
    x, theta = torch.tensor([[-0.5], [-0.4], [-0.3], [0.0], [1.2]], dtype=torch.float64), torch.ones(1).double()
    y = (randn(5, 5) > 0).double()
    scores = x @ theta
    standard = glm_family("logistic").potential(scores).mean() - (y * scores).mean()
    scales = torch.tensor([0.016, 0.008, 0.004, 0.002], dtype=x.dtype)
    exact = glm_mixup_loss(theta, x, y, alpha=a, beta=b, scale=scales, num_lam=400)
    remainder = exact - standard - scales**2 * glm_regularizer(theta, x, alpha=a, beta=b)
    cubic = glm_cubic(theta, x, alpha=a, beta=b)
    ratio = remainder / (scales**3 * cubic)
    assert abs(float(ratio[-1]) - 1) < 0.02
    assert abs(observed_order(scales.tolist(), remainder.tolist()) - 3) < 0.1


def test_order_of_the_remainder_below_min_two():
    """1 < min(α, β) < 2: the second-order term exists, the remainder falls like t^(1 + min(α, β)) only."""
    x, theta = centered(3, 6, 2), 2 * randn(4, 2)
    y = torch.zeros(6, dtype=x.dtype)
    scales = torch.tensor([4e-3, 2e-3, 1e-3], dtype=x.dtype)
    exact = glm_mixup_loss(theta, x, y, alpha=1.5, scale=scales, num_lam=2000)
    standard = glm_family("logistic").potential(x @ theta).mean()
    remainder = exact - standard - scales**2 * glm_regularizer(theta, x, alpha=1.5)
    assert abs(observed_order(scales.tolist(), remainder.tolist()) - 2.5) < 0.1
    with pytest.raises(ValueError, match="infinite"):
        glm_cubic(theta, x, alpha=1.5)


def test_losses_that_are_infinite_are_refused():
    x, theta, y = centered(0, 4, 2), randn(1, 2), randn(2, 4)
    with pytest.raises(ValueError, match="square family is infinite"):
        glm_mixup_loss(theta, x, y, alpha=1.0, family="square")
    with pytest.raises(ValueError, match="poisson family is infinite"):
        glm_mixup_loss(theta, x, y, alpha=50.0, family=POISSON_FAMILY)
    assert glm_regularizer(theta, x, alpha=2.0, family="poisson") > 0


def test_gradient_of_the_regularizer():
    x, theta = centered(0, 5, 3), randn(1, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: glm_regularizer(t, x, alpha=2.0), (theta,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": lambda x: x + 1}, "centered"),
        ({"theta": lambda t: t[:1]}, "expected \\(d,\\) and \\(n, d\\)"),
        ({"x": lambda x: x * math.nan}, "finite"),
    ],
)
def test_unfit_data_are_refused(change, message):
    parts = {"x": centered(0, 5, 3), "theta": randn(1, 3)}
    for name, edit in change.items():
        parts[name] = edit(parts[name])
    with pytest.raises(ValueError, match=message):
        glm_regularizer(parts["theta"], parts["x"], alpha=2.0)


def test_unfit_options_are_refused():
    x, theta = centered(0, 5, 3), randn(1, 3)
    with pytest.raises(ValueError, match="family"):
        glm_regularizer(theta, x, alpha=2.0, family="probit")
    with pytest.raises(ValueError, match="alpha"):
        glm_regularizer(theta, x, alpha=-2.0)
    with pytest.raises(ValueError, match="order"):
        rescaled_moment(2.0, order=0)
    with pytest.raises(ValueError, match="y: expected"):
        glm_mixup_loss(theta, x, torch.zeros(4), alpha=2.0)


def test_generalization_bound_by_hand_and_monotone():
    options = {"lipschitz": 2.0, "loss_range": 3.0, "num_samples": 50, "delta": 0.1}
    value = generalization_bound(0.4, 0.05, **options)
    assert value == pytest.approx(0.4 + 0.2 + 3 * math.sqrt(math.log(10) / 100))
    assert generalization_bound(0.4, 0.05, **{**options, "delta": 0.01}) > value
    assert generalization_bound(0.4, 0.05, **{**options, "num_samples": 100}) < value
    for wrong in ({"delta": 0.0}, {"delta": 1.0}, {"num_samples": 0}, {"lipschitz": -1.0}):
        with pytest.raises(ValueError, match="xpected"):
            generalization_bound(0.4, 0.05, **{**options, **wrong})


def test_generalization_bound_holds_in_simulation():
    """Fresh samples of a linear class on the sphere, the worst member chosen on each: the bound fails rarely."""
    n, d, delta, failures = 40, 3, 0.1, 0
    generator = torch.Generator().manual_seed(0)
    grid = torch.randn(200, d, generator=generator, dtype=torch.float64)
    grid = grid / grid.norm(dim=1, keepdim=True)
    big = torch.randn(20_000, d, generator=generator, dtype=torch.float64)
    big = big / big.norm(dim=1, keepdim=True)
    loss = lambda x: torch.sigmoid(x @ grid.T)  # noqa: E731  1/4-Lipschitz, in [0, 1]
    truth = loss(big).mean(0)
    for _ in range(200):
        x = torch.randn(n, d, generator=generator, dtype=torch.float64)
        x = x / x.norm(dim=1, keepdim=True)
        found = loss(x).mean(0)
        worst = int((truth - found).argmax())
        rad = 1 / math.sqrt(n)  # ‖θ‖ = 1 on unit vectors
        bound = generalization_bound(found[worst], rad, lipschitz=0.25, loss_range=1.0, num_samples=n, delta=delta)
        failures += bound < truth[worst]
    assert failures <= delta * 200
