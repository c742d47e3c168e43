"""The bound of NoisyMix against loops over every pair, branch and sign; slack, remainder, verdicts, assumptions."""

import itertools
import json
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from problems import finish, mlp, randn
from tiers import slow
from torch import nn

from nfm_theory import Branches, Law, Problem
from nfm_theory.adversarial import Effort, bound
from nfm_theory.adversarial.linear_bounds import region_distance
from nfm_theory.adversarial.relaxations import network_steps

GAMMA = 3.0
USUAL = 12.0  # of the released code
WEIGHTS = [0.3, 0.7]


def homogeneous(seed, sizes):
    """Leaky ReLU without biases: positively homogeneous."""

    def build():
        layers = []
        for width, next_width in pairwise(sizes):
            layers += [nn.Linear(width, next_width, bias=False), nn.LeakyReLU(0.1)]
        return nn.Sequential(*layers[:-1])

    model = finish(build, seed).requires_grad_(False)
    model[-1].weight.mul_(4)
    return model


def setting(seed=0, classes=1, n=6, d=2, turn=0.2):
    """Centered data on the right side and a turned, shrunk and shifted copy, all away from activation boundaries."""
    model = homogeneous(seed, [d, 8, classes])
    x = randn(seed + 1, 20 * n, d)
    augment = lambda z: 0.9 * z + turn * z.flip(-1) * torch.tensor([1.0, -1.0]).repeat(d // 2) + turn / 4  # noqa: E731
    steps = network_steps(model)
    distance = torch.stack([region_distance(steps, z) for z in (x, augment(x), augment(-x))]).amin(0)
    x = x[distance > 1e-2][: n // 2]
    x = torch.cat([x, -x])
    f = model(x)
    y = (f[:, 0] > 0).long() if classes == 1 else f.argmax(1)
    return model, [x, augment(x)], y, "logistic" if classes == 1 else "cross_entropy"


def noisymix(model, xs, y, loss, *, gamma=USUAL, law=None, **options):
    """The branches with the NoisyMix loss, by default those of Mixup without noise."""
    return Branches(model, xs, y, gamma=gamma, loss=loss, law=law or Law(), **options)


def probabilities(u):
    return torch.cat([1 - u.sigmoid(), u.sigmoid()], -1) if u.shape[-1] == 1 else u.softmax(-1)


def label_loss(u, y):
    return -probabilities(u).gather(-1, y.expand(u.shape[:-1]).unsqueeze(-1)).squeeze(-1).log()


def divergence(us):
    """Of logits, one tensor a branch, as it is defined: entropy of the mixture less the mean entropy."""
    entropy = lambda p: -(p * p.log()).sum(-1)  # noqa: E731
    ps = [probabilities(u) for u in us]
    mixture = sum(w * p for w, p in zip(WEIGHTS, ps, strict=True))
    return entropy(mixture) - sum(w * entropy(p) for w, p in zip(WEIGHTS, ps, strict=True))


def naive_left(model, xs, y, eps, sigma, num=400):
    """Every pair and every sign of the noise of either branch, λ on a midpoint grid with density 2 λ."""
    n, d = xs[0].shape
    lam = (torch.arange(num, dtype=torch.float64) + 0.5) / num
    signs = [torch.tensor(s, dtype=torch.float64).reshape(2, d) for s in itertools.product((-1, 1), repeat=2 * d)]
    signs = signs if sigma else [torch.zeros(2, d, dtype=torch.float64)]
    total = 0.0
    for i, r, noise in itertools.product(range(n), range(n), signs):
        step = eps * (1 - lam)[:, None]
        us = [model(x[i] + step * (x[r] - x[i]) + eps * sigma * e) for x, e in zip(xs, noise, strict=True)]
        total += float((2 * lam * (label_loss(us[0], y[i]) + GAMMA * divergence(us))).mean()) / len(signs)
    return total / n**2


def naive_mixed_left(model, xs, y, num=4000):
    """At ε = 1, as it is trained: λ uniform and mixed labels."""
    lam = (torch.arange(num, dtype=torch.float64) + 0.5) / num
    total = 0.0
    for i, r in itertools.product(range(len(y)), repeat=2):
        us = [model(lam[:, None] * x[i] + (1 - lam)[:, None] * x[r]) for x in xs]
        mixed = lam * label_loss(us[0], y[i]) + (1 - lam) * label_loss(us[0], y[r])
        total += float((mixed + GAMMA * divergence(us)).mean())
    return total / len(y) ** 2


def naive_right(model, xs, y, eps, sigma):
    """Discs searched on a polar grid; L_reg and S0, S1, S2 by nested autodiff in the features, sample by sample."""
    n, m1, m2 = len(y), 1 / 3, 1 / 6
    angle = torch.linspace(0, 2 * math.pi, 40_001, dtype=torch.float64)
    disc = torch.stack([angle.cos(), angle.sin()], 1) * torch.linspace(0, 1, 4, dtype=torch.float64)[:, None, None]
    mean = [x.mean(0) for x in xs]
    total = 0.0
    for i in range(n):
        u = model(xs[0][i])
        jacobian = torch.func.jacrev(model)(xs[0][i])
        p = probabilities(u)
        if len(u) == 1:
            margins, slopes, fisher = (2 * y[i] - 1) * u, jacobian, p[:1, None] * p[1:]
        else:
            others = [k for k in range(len(u)) if k != y[i]]
            margins = torch.stack([u[y[i]] - u[k] for k in others])
            slopes = torch.stack([jacobian[y[i]] - jacobian[k] for k in others])
            fisher = torch.diag(p) - p[:, None] * p
        radius = eps * m1 * (margins.abs() / slopes.norm(dim=1)).min()
        total += float(label_loss(model(xs[0][i] + radius * disc.flatten(0, 1)), y[i]).max())
        composite = lambda z: divergence([model(g) for g in z.unflatten(0, (2, -1))])  # noqa: E731
        here = torch.cat([x[i] for x in xs])
        gradient, hessian = torch.func.grad(composite)(here), torch.func.hessian(composite)(here)
        ways = [torch.cat([x[r] - x[i] for x in xs]) for r in range(n)]
        drift = torch.cat([c - x[i] for c, x in zip(mean, xs, strict=True)])
        second = m2 * sum(v @ hessian @ v for v in ways) / n / 2 + sigma**2 * hessian.trace() / 2
        total += GAMMA * float(divergence([model(x[i]) for x in xs]) + eps * m1 * gradient @ drift + eps**2 * second)
        pulled = jacobian.T @ fisher @ jacobian
        spread = sum(x @ pulled @ x for x in xs[0]) / n
        total += eps**2 / 2 * float(m2 * spread + sigma**2 * pulled.trace())
    return total / n


@pytest.mark.parametrize(
    ("classes", "eps", "sigma"),
    [
        *((3, 0.05, 0.3), (3, 1.0, 0.0), (1, 0.05, 0.3)),
        *slow([(3, 0.05, 0.0), (1, 1.0, 0.0), (1, 0.05, 0.0), (1, 0.5, 0.0), (3, 0.5, 0.0)]),
    ],
)
def test_both_sides_are_those_of_loops(classes, eps, sigma):
    model, xs, y, loss = setting(classes=classes)
    law = Law(add_noise=sigma, noise="rademacher")
    branches = noisymix(model, xs, y, loss, gamma=GAMMA, weights=WEIGHTS, law=law)
    found = bound(branches, eps, certificate="enumeration", effort=Effort(steps=80, restarts=3))
    left = naive_left(model, xs, y, eps, sigma, 100 if sigma else 400)
    assert found.left == pytest.approx(left, rel=2e-5)
    if eps == 1:
        assert found.left == pytest.approx(naive_mixed_left(model, xs, y), rel=2e-5)
    right = naive_right(model, xs, y, eps, sigma)
    assert found.right_lower == pytest.approx(right, rel=1e-6)
    assert right <= found.right_upper + 1e-9
    assert found.right_upper == pytest.approx(right, rel=1e-6 if classes == 1 else 0.01)  # the margins one by one
    assert found.failed == []


def test_without_the_stability_loss_it_is_the_adversarial_bound():
    model, xs, y, loss = setting(n=8)
    plain = bound(Problem(model, xs[0], y, law=Law(), loss=loss), 0.2)
    found = bound(noisymix(model, xs, y, loss, gamma=0.0), 0.2)
    assert found.left == pytest.approx(plain.nfm_loss, rel=1e-13)
    assert (found.right_lower, found.right_upper) == (plain.right_lower, plain.right_upper)
    assert (found.verdict, plain.verdict) == ("holds", "certified")
    assert found.expansion == 0
    assert found.predicted_remainder == 0


@pytest.mark.parametrize("branches", [2, 3])
def test_equal_branches_without_noise_leave_the_slack_of_the_adversarial_bound(branches):
    model, xs, y, loss = setting(1, n=8)
    reports = [bound(noisymix(model, [xs[0]] * branches, y, loss), e) for e in (2e-3, 1e-3)]
    for found in reports:
        assert abs(found.remainder) < 1e-13
        assert found.slack_ratio == pytest.approx((1, 1), abs=0.02)
        assert found.verdict == "holds"
    assert reports[0].slack[0] / reports[1].slack[0] == pytest.approx(4, abs=0.1)


@pytest.mark.parametrize("classes", [1, 3])
def test_augmented_branches_add_a_remainder_of_third_order(classes):
    model, xs, y, loss = setting(2, classes, n=8)
    reports = [bound(noisymix(model, xs, y, loss), e) for e in (4e-3, 2e-3, 1e-3)]
    for found in reports:
        clean = found.clean.slack
        assert found.slack == pytest.approx(tuple(s + found.remainder for s in clean), abs=1e-13)
        assert found.remainder == pytest.approx(found.predicted_remainder, rel=0.05)
    orders = [math.log2(a.remainder / b.remainder) for a, b in pairwise(reports)]
    assert orders == pytest.approx([3, 3], abs=0.1)
    if classes == 1:  # one margin: what is left is of second order
        assert reports[-1].slack_ratio == pytest.approx((1, 1), abs=0.1)
    without = replace(reports[-1], stability=replace(reports[-1].stability, C3=None))
    assert without.predicted_remainder is None
    assert without.slack == reports[-1].slack
    assert "predicted, order 3" in str(reports[-1])
    assert "predicted, order 3" not in str(without)


def test_the_stability_loss_alone_can_refute_it():
    """At a large scale the expansion exceeds the stability loss; the adversarial bound holds there all the same."""
    branches = noisymix(*setting(2, n=8))
    small, large = (bound(branches, eps, certificate="enumeration") for eps in (0.002, 1.0))
    assert small.verdict == "holds"
    assert large.verdict == "refuted"
    assert large.failed == []
    assert large.clean.verdict == "certified"
    assert "the attack alone exceeds the left side by" in large.reason
    assert "REFUTED" in str(large).splitlines()[0]
    assert "adversarial bound      certified" in str(large)
    assert large.remainder < -large.clean.slack[1] < 0


def test_failed_assumptions_are_named():
    model, xs, y, loss = setting()
    biased = bound(noisymix(mlp(1, [2, 8, 1], "relu"), xs, y, loss))
    assert "homogeneity" in biased.failed
    assert "homogeneity" in biased.reason
    assert "homogeneity" in str(biased)
    assert "FAILS" in str(biased)
    kinked = xs[1].clone()
    kinked[3] = 0.0  # the tip of every cone: no linear region around it
    assert bound(noisymix(model, [xs[0], kinked], y, loss)).failed == ["branches"]
    fine = {a.name: a for a in bound(noisymix(model, xs, y, loss)).assumptions}["branches"]
    nearest = min(float(((model[0](x)).abs() / model[0].weight.norm(dim=1)).min()) for x in xs)
    assert fine.value == pytest.approx(nearest)


def test_without_a_certificate_it_is_undecided():
    model, xs, y, loss = setting()
    report = bound(noisymix(lambda z: model(z), xs, y, loss), 1e-3)
    assert report.verdict == "undecided"
    assert "no certificate" in report.reason
    assert math.isinf(report.right_upper)
    assert "branches" not in {a.name for a in report.assumptions}
    values = json.loads(json.dumps(report.to_dict()))
    assert values["right_upper"] is None
    assert values["clean"]["verdict"] == "undecided"
    assert values["assumptions"]["homogeneity"]["holds"]
    assert values["stability"]["S0"] == float(report.stability.S0)


def test_monte_carlo_agrees_with_quadrature():
    model, xs, y, loss = setting(3, n=4)
    law = Law(add_noise=0.2, mult_noise=0.1, noise="rademacher")
    branches, effort = noisymix(model, xs, y, loss, law=law), Effort(steps=5, samples=20_000)
    exact = bound(branches, 0.1, effort=effort)
    sampled = bound(branches, 0.1, method="monte_carlo", effort=effort)
    assert exact.method.startswith("quadrature, tensor")
    assert 0 < sampled.left_error < 0.01
    assert abs(sampled.left - exact.left) <= 5 / 4 * sampled.left_error + exact.left_error


ERRORS = [
    ({"xs": 1}, "m >= 2 branches"),
    ({"gamma": -1.0}, "gamma: expected"),
    ({"eps": 0.0}, "eps: expected"),
    ({"law": Law(alpha=0.0)}, "needs mixing"),
    ({"gamma": None, "loss": None}, "set gamma="),
    ({"weights": [0.5, 0.6]}, "weights"),
    ({"radius": "largest"}, "radius: expected"),
    ({"method": "guess"}, "method: expected"),
    ({"y": torch.full((6,), 0.5)}, "no mixtures"),
    ({"y": torch.arange(5) % 2}, "same number of samples"),
]


@pytest.mark.parametrize(("wrong", "match"), ERRORS)
def test_unfit_arguments_are_refused(wrong, match):
    model, xs, y, loss = setting()
    wrong = dict(wrong)
    xs, y = xs[: wrong.pop("xs", 2)], wrong.pop("y", y)
    ways = {name: wrong.pop(name) for name in ("eps", "radius", "method") if name in wrong}
    with pytest.raises(ValueError, match=match):
        bound(noisymix(model, xs, y, **{"loss": loss, **wrong}), effort=Effort(steps=5), **ways)
