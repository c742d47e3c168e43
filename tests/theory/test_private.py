"""Private training: per-sample gradients against a loop, the step against its formula, the accountant against twins."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import generator, mlp, randn
from scipy import integrate, stats
from torch.testing import assert_close

import nfm_theory as nt
from nfm_theory.training.private import (
    ORDERS,
    gradients_by_sample,
    noise_for_privacy,
    privacy_spent,
    private_gradient,
    self_mixed,
)

X, Y = randn(0, 5, 3, 4), torch.eye(3).double()[torch.tensor([0, 2, 1, 1, 0])]


def looped(model, inputs, targets):
    """The gradient of every sample by itself, as one vector each."""
    found = []
    for x, y in zip(inputs, targets, strict=True):
        loss = F.cross_entropy(model(x), y)
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]))
    return torch.stack(found)


@settings(derandomize=True, deadline=None, max_examples=15)
@given(seed=st.integers(0, 1000), clip=st.sampled_from([1e-3, 0.3, 100.0]), count=st.integers(0, 3))
def test_a_step_without_noise_is_the_mean_of_clipped_gradients(seed, clip, count):
    model = mlp(seed, [4, 5, 3])
    inputs, targets = self_mixed(X, Y, count, generator=generator(seed))
    each = looped(model, inputs, targets)
    found, losses = gradients_by_sample(model, inputs, targets)
    assert_close(torch.cat([g.flatten(1) for g in found], 1), each, rtol=1e-9, atol=1e-12)
    assert losses.shape == (5,)
    private_gradient(model, inputs, targets, clip_norm=clip, noise_multiplier=0.0, batch_size=7)
    expected = sum(g * min(1.0, clip / float(g.norm())) for g in each) / 7
    assert_close(torch.cat([p.grad.flatten() for p in model.parameters()]), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("count", [0, 4])
def test_one_sample_changes_the_sum_by_at_most_the_norm(count):
    """Self-mixing keeps the sensitivity: whatever the views of one sample are, the others' gradients do not change."""
    model, clip = mlp(1, [4, 5, 3]), 0.1
    sums = []
    for rows in (5, 4):
        inputs, targets = self_mixed(X[:rows], Y[:rows], count, law=nt.Law(lam=0.5), generator=generator(0))
        if count:  # the same draws for the samples that stay
            inputs, targets = (v[:rows] for v in self_mixed(X, Y, count, law=nt.Law(lam=0.5), generator=generator(0)))
        private_gradient(model, inputs, targets, clip_norm=clip, noise_multiplier=0.0, batch_size=1)
        sums.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert 0 < float((sums[0] - sums[1]).norm()) <= clip * (1 + 1e-12)


def test_the_noise_has_its_level_and_does_not_touch_the_signal():
    model = mlp(0, [4, 40, 3])
    plain = private_gradient(model, X, Y[:, None].expand(-1, 3, -1), clip_norm=2.0, noise_multiplier=0.0, batch_size=4)
    signal = torch.cat([p.grad.flatten() for p in model.parameters()])
    noisy = private_gradient(
        model,
        X,
        Y[:, None].expand(-1, 3, -1),
        clip_norm=2.0,
        noise_multiplier=3.0,
        batch_size=4,
        generator=generator(2),
    )
    noise = torch.cat([p.grad.flatten() for p in model.parameters()]) - signal
    assert torch.equal(plain, noisy)
    n, expected = len(noise), 3.0 * 2.0 / 4
    assert abs(float(noise.mean())) <= 5 * expected / n**0.5
    assert abs(float(noise.square().mean()) - expected**2) <= 5 * expected**2 * (2 / n) ** 0.5


def test_mixtures_are_those_of_the_views_of_one_sample():
    mixed, targets = self_mixed(X, Y, 50, generator=generator(3))
    assert torch.equal(mixed[:, :3], X)
    assert torch.equal(targets, Y[:, None].expand(-1, 53, -1))
    weights = torch.linalg.lstsq(X[:, None].mT.expand(-1, 50, -1, -1), mixed[:, 3:, :, None]).solution[..., 0]
    assert_close(weights.sum(-1), torch.ones(5, 50).double())
    assert ((weights > 1e-9).sum(-1) <= 2).all()
    assert (weights > -1e-9).all()


def test_outside_images_are_partners_with_their_own_labels():
    images, labels = randn(7, 2, 4), torch.eye(3).double()[[0, 1]]
    mixed, targets = self_mixed(X, Y, 200, outside=(images, labels), generator=generator(3))
    assert_close(targets.sum(-1), torch.ones(5, 203).double())
    share = float((targets[:, 3:] != Y[:, None]).any(-1).double().mean())
    changed = [0.4 * (1 - float((y * label).sum())) / 2 for y in Y for label in labels]
    expected = sum(changed) / len(Y)
    assert abs(share - expected) <= 5 * (0.25 / 1000) ** 0.5
    other = self_mixed(X, Y, 200, outside=(images + 1, labels), generator=generator(3))[0]
    assert float((other != mixed).any(-1)[:, 3:].double().mean()) == pytest.approx(0.4, abs=5 * (0.24 / 1000) ** 0.5)


# What the noise guarantees ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("noise", "rate"), [(0.8, 0.05), (2.0, 0.3), (1.5, 1.0)])
def test_the_divergence_is_that_of_the_two_densities(noise, rate):
    """E over the null law of the likelihood ratio to the power of the order, by numerical integration."""
    for order in (2, 3, 8):
        null, other = stats.norm(0, noise), stats.norm(1, noise)
        ratio = lambda z: ((1 - rate) + rate * other.pdf(z) / null.pdf(z)) ** order * null.pdf(z)  # noqa: E731, B023
        value = math.log(integrate.quad(ratio, -15 * noise, 15 * noise + order + 1, limit=500, epsabs=0)[0]) / (
            order - 1
        )
        delta = 1e-5
        spent = privacy_spent(noise, rate, 7, delta, orders=(order,))
        expected = 7 * value + math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)
        assert spent == pytest.approx(max(0.0, expected), rel=1e-6)


@pytest.mark.parametrize(("noise", "rate", "steps"), [(0.6, 0.01, 100), (1.4501, 0.19, 120), (7.4641, 0.19, 120)])
def test_the_accountant_is_that_of_opacus(noise, rate, steps):
    accountants = pytest.importorskip("opacus.accountants", reason="opacus is not installed")
    accountant = accountants.RDPAccountant()
    accountant.history = [(noise, rate, steps)]
    expected = accountant.get_epsilon(1e-4, alphas=list(ORDERS))
    assert privacy_spent(noise, rate, steps, 1e-4) == pytest.approx(expected, rel=1e-9)


def test_noise_for_a_guarantee_is_the_smallest():
    sigma = noise_for_privacy(1.0, 0.05, 50, 1e-4)
    assert privacy_spent(sigma, 0.05, 50, 1e-4) <= 1.0 < privacy_spent(sigma * (1 - 3e-4), 0.05, 50, 1e-4)
    spent = [privacy_spent(sigma, rate, steps, 1e-4) for rate, steps in ((0.04, 50), (0.05, 50), (0.05, 60))]
    assert spent == sorted(spent)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: self_mixed(X, Y[:3], 1), r"expected \(n, K, \*input\), \(n, classes\)"),
        (lambda: self_mixed(X, Y, -1), "count >= 0"),
        (lambda: self_mixed(X, Y, 1, outside=(randn(0, 2, 5), Y[:2])), r"outside: expected images \(m, 4\)"),
        (lambda: privacy_spent(0.0, 0.1, 1, 1e-5), "expected noise_multiplier > 0"),
        (lambda: privacy_spent(1.0, 1.5, 1, 1e-5), "0 < rate <= 1"),
        (lambda: noise_for_privacy(0.0, 0.1, 1, 1e-5), "epsilon: expected a value"),
        (
            lambda: private_gradient(
                mlp(0, [4, 3]), X, Y[:, None], clip_norm=0.0, noise_multiplier=1.0, batch_size=5
            ),
            "expected clip_norm > 0",
        ),
    ],
)  # fmt: skip
def test_bad_requests_say_what_was_expected(call, match):
    with pytest.raises(ValueError, match=match):
        call()
