"""The theory as a loss: plain loss, penalties at the statistics of the batch, unbiased against the exact terms."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from test_schemes import EXACT, IMAGES, VIEWS, X, Y, divergence, generator, network, randn, step_of
from tiers import slow
from torch import nn
from torch.testing import assert_close

import nfm_theory as nt
from experiments.recipes.recipe import Scheme
from experiments.recipes.schemes import SCHEMES, TAYLOR_TERMS
from experiments.schemes.taylor import BatchStatistics, stability_penalty

LEVELS = {"alpha": 1.0, "add_noise": 0.4, "mult_noise": 0.2}
TAYLOR = Scheme("taylor_nfm", **LEVELS, noise="normal", layers="eligible", terms=TAYLOR_TERMS)


class Normed(nn.Module):
    """A network with two batch norms, and an activation whose second derivative is not zero."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 3, stride=2), nn.BatchNorm2d(4)
        self.out = nn.Linear(4, 3)

    def stage(self, x):
        return torch.tanh(self.norm1(self.conv1(x)))

    def forward(self, x):
        return self.out(torch.tanh(self.norm2(self.conv2(self.stage(x)))).mean((2, 3)))


def normed(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Normed().double().train()
        for norm in (model.norm1, model.norm2):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.5, 0.5)
    return model


class Affine(nn.Module):
    """The norm of one batch, written out: a fixed affine map that depends on the weights in front of it."""

    def __init__(self, norm, features):
        super().__init__()
        mean = features.mean((0, 2, 3), keepdim=True)
        variance = ((features - mean) ** 2).mean((0, 2, 3), keepdim=True)
        self.mean, self.scale = mean, norm.weight.reshape(1, -1, 1, 1) / (variance + norm.eps).sqrt()
        self.shift = norm.bias.reshape(1, -1, 1, 1)

    def forward(self, x):
        return (x - self.mean) * self.scale + self.shift


def explicit(model, x):
    """The same network with norms replaced; it shares the parameters, so gradients can be compared."""
    twin = Normed().double().eval()
    twin.conv1, twin.conv2, twin.out = model.conv1, model.conv2, model.out
    first = model.conv1(x)
    twin.norm1 = Affine(model.norm1, first)
    twin.norm2 = Affine(model.norm2, model.conv2(torch.tanh(twin.norm1(first))))
    return twin


def gradients(loss, model):
    return torch.autograd.grad(loss, list(model.parameters()))


def test_taylor_nfm_is_the_plain_loss_and_the_penalty_at_the_statistics_of_the_batch():
    model = normed()
    step = step_of(replace(TAYLOR, layers="input"), model, layers=("",))
    loss = step.loss(IMAGES, Y)
    twin, source = explicit(model, IMAGES), generator(0)
    torch.randint(1, (), generator=source)  # the layer
    penalty = nt.TaylorRegularizer("", nt.Law(**LEVELS), generator=source)
    plain = F.cross_entropy(twin(IMAGES), Y)
    expected = plain + penalty(twin, IMAGES, Y)
    assert abs(float((expected - plain).detach())) > 1e-3
    assert_close(loss, expected, **EXACT)
    for ours, theirs in zip(gradients(loss, model), gradients(expected, model), strict=True):
        assert_close(ours, theirs, rtol=1e-8, atol=1e-10)
    assert model.training
    assert model.norm1.training


def test_statistics_are_put_on_and_taken_off():
    model = normed()
    reference = normed()
    statistics = BatchStatistics(model)
    outputs = model(IMAGES)
    assert_close(outputs, reference(IMAGES), **EXACT)
    model.eval()
    with statistics.applied():
        assert_close(model(IMAGES), outputs, **EXACT)
        assert_close(model(IMAGES[:2]), outputs[:2], **EXACT)
    assert_close(model(IMAGES), reference.eval()(IMAGES), **EXACT)  # the running statistics again
    assert all("forward" not in vars(m) for m in model.modules())
    statistics.close()
    assert all(not m._forward_pre_hooks for m in model.modules())
    for (name, ours), (other, theirs) in zip(model.state_dict().items(), reference.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(ours, theirs)


def test_statistics_are_taken_off_after_an_error():
    model = normed()
    statistics = BatchStatistics(model)
    model(IMAGES)
    with pytest.raises(KeyError), statistics.applied():
        raise KeyError
    assert "forward" not in vars(model.norm1)


def test_the_norms_scale_does_not_see_the_weights_in_front_of_it():
    """Weights before a batch norm may be scaled: the penalty must not change, or it would shrink them."""
    model = normed()
    values = []
    for factor in (1.0, 3.0):
        with torch.no_grad():
            model.conv2.weight.mul_(factor)
            model.conv2.bias.mul_(factor)
        model.norm2.eps = 1e-5 * factor**2
        step = step_of(replace(TAYLOR, layers="input"), model, layers=("",))
        values.append(step.loss(IMAGES, Y))
        step.close()
        model.norm2.eps = 1e-5
    assert_close(*values, rtol=1e-9, atol=1e-12)


def statistic(sample, times):
    values = torch.stack([sample() for _ in range(times)])
    return float(values.mean()), float(values.std() / times**0.5)


@pytest.mark.parametrize("layer", ["", "1"])
def test_taylor_nfm_is_unbiased(layer):
    """The mean of many steps and the exact terms, within 5 standard errors."""
    model = network(3)
    scheme = replace(TAYLOR, layers="eligible", eps=0.7)
    step = step_of(scheme, model, layers=(layer,))
    terms = nt.terms(nt.Problem(model.eval(), X, Y, layer=layer, law=nt.Law(**LEVELS)), remainder=False)
    model.train()
    exact = F.cross_entropy(model(X), Y) + 0.7 * terms.R1 + 0.49 * terms.second
    mean, error = statistic(lambda: step.loss(X, Y).detach(), 200)
    assert 0 < error < 0.05
    assert abs(mean - float(exact.detach())) < 5 * error


def penalty_of(model, x, *, seed, layer="1", view_noise=(1.0, 1.0, 1.0), eps=1.0, **levels):
    source = generator(seed)
    levels = {"add_noise": 0.4, "mult_noise": 0.3, **levels}
    return lambda: stability_penalty(
        model, x, nt.Law(**levels), layer=layer, views=3, eps=eps, view_noise=view_noise, generator=source
    ).detach()  # fmt: skip


@pytest.mark.parametrize(
    ("views", "layer"), [("equal", "1"), ("unequal", ""), *slow([("equal", ""), ("unequal", "1")])]
)
def test_the_stability_penalty_is_unbiased(views, layer):
    model = network(3)
    x = X.repeat(3, 1) if views == "equal" else VIEWS
    weights = (1 / 3,) * 3
    law = nt.Law(add_noise=0.4, mult_noise=0.3)
    branches = nt.Branches(model.eval(), x.unflatten(0, (3, 6)), layer=layer, law=law, weights=weights)
    terms = nt.terms(branches, remainder=False)
    model.train()
    for eps in (1.0, 0.1):
        exact = float((eps * terms.S1 + eps**2 * terms.S2).detach())
        mean, error = statistic(penalty_of(model, x, seed=int(10 * eps), layer=layer, eps=eps), 100)
        assert error > 0
        assert abs(mean - exact) < 5 * error, eps
    assert model.training


def test_the_first_order_of_the_stability_penalty_is_exact():
    model = network(3)
    branches = nt.Branches(model.eval(), VIEWS.unflatten(0, (3, 6)), layer="1", law=nt.Law())
    terms = nt.terms(branches, remainder=False)
    values = [penalty_of(model, VIEWS, seed=s, eps=1e-9)() / 1e-9 for s in range(3)]
    for value in values:
        assert_close(value, terms.S1, rtol=1e-6, atol=1e-8)


def test_factors_of_the_views_scale_their_additive_noise():
    """Noise on one view alone, by brute force: half the second derivative of the divergence along unit noise."""
    model = network(3).eval()
    factors = (0.0, 0.0, 2.0)
    split = nt.split(model, VIEWS, layer="1")
    g = split.encode(VIEWS)

    def loss(h):
        return nt.jensen_shannon(split.head(h).unflatten(0, (3, 6)))

    hessian = torch.autograd.functional.hessian(loss, g.detach()).reshape(g.numel(), g.numel())
    own = hessian.diagonal().reshape(g.shape)[12:].sum()
    exact = float(0.5 * (2.0 * 0.4) ** 2 * own)
    source = generator(0)

    def sample():
        return stability_penalty(
            model, VIEWS, nt.Law(alpha=0.0, add_noise=0.4), layer="1", views=3, eps=1.0, view_noise=factors,
            generator=source,
        ).detach()  # fmt: skip

    mean, error = statistic(sample, 250)
    assert abs(mean - exact) < 5 * error
    assert abs(exact) > 10 * error


def test_taylor_noisymix_adds_up():
    """Plain loss, γ times the divergence, and both penalties, drawn in this order."""
    scheme = replace(SCHEMES["taylor_noisymix"], noise="normal", sparsity=0.0)
    model = network(3)
    step = step_of(scheme, model, layers=("1",))
    loss = step.loss(VIEWS, Y)
    source = generator(0)
    torch.randint(1, (), generator=source)
    logits = model(VIEWS).chunk(3)
    law = nt.Law(add_noise=0.5, mult_noise=0.5)
    penalty = nt.TaylorRegularizer("1", law, generator=source)
    expected = F.cross_entropy(logits[0], Y) + 12 * divergence(*logits) + penalty(model, VIEWS[:6], Y)
    expected = expected + 12 * stability_penalty(
        model, VIEWS, law, layer="1", views=3, eps=1.0, view_noise=(1.0, 2.0, 3.0), generator=source
    )  # fmt: skip
    assert_close(loss, expected, **EXACT)


def test_taylor_noisymix_takes_a_step_through_batch_norm():
    model = normed()
    step = step_of(replace(SCHEMES["taylor_noisymix"], layers="input"), model)
    step.loss(randn(4, 18, 3, 8, 8), Y).backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters())
    assert "forward" not in vars(model.norm1)
    step.close()
    assert not model.norm1._forward_pre_hooks
