"""The adversarial bound: both sides against closed forms and finer rules, slack, verdicts, assumptions."""

import json
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from problems import finish, mlp, randn
from tiers import slow
from torch import nn
from torch.testing import assert_close

from nfm_theory import Law, Problem
from nfm_theory.adversarial import Effort, bound, validity_radius
from nfm_theory.adversarial.linear_bounds import region_distance
from nfm_theory.adversarial.relaxations import network_steps


def homogeneous(seed, sizes, scale=4.0):
    """Leaky ReLU without biases: positively homogeneous."""

    def build():
        layers = []
        for width, next_width in pairwise(sizes):
            layers += [nn.Linear(width, next_width, bias=False), nn.LeakyReLU(0.1)]
        return nn.Sequential(*layers[:-1])

    model = finish(build, seed)
    with torch.no_grad():
        model[-1].weight.mul_(scale)
    return model


def centered(seed, n, d):
    x = randn(seed, n // 2, d)
    return torch.cat([x, -x])


def labelled(model, x):
    """Labels on the side of the network, so that Θ holds."""
    f = model(x).detach()
    return (f[:, 0] > 0).long() if f.shape[1] == 1 else f.argmax(1)


def setting(seed=3, classes=1, sizes=(4, 16, 8), n=16):
    """Centered data on the right side, none next to an activation boundary (those of -x are those of x)."""
    model = homogeneous(seed, [*sizes, classes])
    x = randn(seed + 1, 2 * n, sizes[0])
    x = x[region_distance(network_steps(model), x) > 1e-3][: n // 2]
    x = torch.cat([x, -x])
    return (model, x, labelled(model, x)), "logistic" if classes == 1 else "cross_entropy"


SLACK = [(seed, alpha, beta, noise) for seed in range(4) for alpha, beta, noise in ((1, None, 0.0), (2, 0.5, 0.3))]


@pytest.mark.parametrize(("seed", "alpha", "beta", "noise"), [*SLACK[:4], *slow(SLACK[4:])])
def test_slack_is_the_predicted_one(seed, alpha, beta, noise):
    data, loss = setting(seed, n=10)
    law = Law(alpha, beta)
    problem = Problem(*data, law=law, loss=loss)
    report = bound(problem, 1e-4)
    f = data[0](data[1]).detach()[:, 0]
    variance = law.mixing.moment(2) - law.mixing.moment(1) ** 2
    bernoulli = f.sigmoid() * (1 - f.sigmoid())
    expected = 1e-8 * variance / 2 * float((bernoulli * f**2).mean())
    assert_close(report.predicted_slack, expected, rtol=1e-4, atol=0)
    assert report.inside == 10
    assert report.failed == []
    assert report.slack_ratio[0] == pytest.approx(1, abs=0.02)
    assert report.slack_ratio[1] == pytest.approx(1, abs=0.02)
    assert report.verdict == "certified"
    if noise:
        noisy_law = replace(law, add_noise=noise, mult_noise=noise)
        noisy = bound(
            Problem(*data, law=noisy_law, loss=loss), 1e-3, method="monte_carlo", effort=Effort(samples=40_000)
        )
        plain = bound(problem, 1e-3)
        rows = torch.autograd.functional.jacobian(lambda x: data[0](x)[:, 0].sum(), data[1])
        extra = noise**2 * ((rows**2).sum(1) + ((rows * data[1]) ** 2).sum(1))
        assert_close(noisy.regularizer - plain.regularizer, 5e-7 * float((bernoulli * extra).mean()), rtol=1e-8, atol=0)


@pytest.mark.parametrize("kind", ["sharp", "paper", "mean"])
@pytest.mark.parametrize("classes", [1, 2, 3])
@pytest.mark.parametrize("layer", ["", "1"])
def test_every_radius_has_its_predicted_slack(kind, classes, layer):
    data, loss = setting(1, classes, n=10)
    problem = Problem(*data, layer=layer, law=Law(), loss=loss)
    report = bound(problem, 1e-5, radius=kind, certificate="none", effort=Effort(steps=60))
    if layer and kind != "mean":
        assert report.failed == ["centring"]
    elif not layer:
        assert report.slack_ratio[1] == pytest.approx(1, abs=0.02)
        if kind != "mean":
            assert (report.paper_radius <= report.sharp_radius * (1 + 1e-9)).all()
        else:
            assert_close(report.radius, report.sharp_radius)
    if kind == "mean":  # nothing is needed but one linear region: it also predicts at the hidden layer
        assert report.slack_ratio[1] == pytest.approx(1, abs=0.02)


def test_radius_about_the_mean_needs_neither_homogeneity_nor_centring():
    model = mlp(5, [3, 12, 1], "relu")
    x = torch.cat([randn(6, 6, 3) + 2, randn(7, 6, 3) - 1])
    jacobian = torch.autograd.functional.jacobian(lambda z: model(z)[:, 0].sum(), x)
    y = ((jacobian * (x - x.mean(0))).sum(1) > 0).long()
    report = bound(Problem(model, x, y, law=Law(), loss="logistic"), 1e-4, radius="mean")
    assert report.failed == []
    assert {a.name for a in report.assumptions if not a.holds} == {"homogeneity", "centring"}
    assert report.slack_ratio == pytest.approx((1, 1), abs=0.02)
    assert report.verdict == "certified"


def test_the_bound_is_refuted_where_it_is_false():
    """At a large scale the second-order regularizer exceeds what the loss can rise by."""
    model = nn.Linear(2, 1, bias=False).double().eval()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, 0.0]]))
    x = torch.tensor([[0.1, 0.0], [-0.1, 0.0], [3.0, 0.0], [-3.0, 0.0]], dtype=torch.float64)
    y = labelled(model, x)
    problem = Problem(model, x, y, law=Law(), loss="logistic")
    small = bound(problem, 0.01)
    large = bound(problem, 1.0)
    assert small.verdict == "certified"
    assert large.verdict == "refuted"
    assert large.failed == []
    # with pencil and paper: both sides by a fine grid in λ (density of D̃ is 2λ for Beta(1, 1))
    lam = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    f, sign = 3 * x[:, 0], 2.0 * y - 1
    mixed = lam[:, None, None] * f[None, :, None] + (1 - lam)[:, None, None] * f[None, None, :]
    left = (2 * lam * nn.functional.softplus(-sign[None, :, None] * mixed).mean((1, 2))).mean()
    right = nn.functional.softplus(-sign * f * (1 - 1 / 3)).mean()
    right += (f.sigmoid() * (1 - f.sigmoid())).mean() * (f**2).mean() / 12
    assert_close(large.nfm_loss, float(left), rtol=1e-6, atol=0)
    assert_close(large.right_upper, float(right), rtol=1e-8, atol=0)
    # with the paper's radius: the least norm is 0.1 and every cosine 1, so that each margin falls by 3 · 0.1 / 3
    paper = bound(problem, 1.0, radius="paper")
    right += (nn.functional.softplus(0.1 - sign * f) - nn.functional.softplus(-sign * f * (1 - 1 / 3))).mean()
    assert paper.verdict == "refuted"
    assert_close(paper.right_upper, float(right), rtol=1e-8, atol=0)
    found = validity_radius(problem, [0.01, 0.1, 1.0], 6)
    assert 0.01 <= found.certified < found.refuted <= 1.0
    assert found.refuted / found.certified < 1.1
    assert f"up to eps = {found.certified:.4g}" in str(found)
    assert json.loads(json.dumps(found.to_dict()))["refuted"] == found.refuted


def test_a_leaky_network_is_refuted_at_a_large_scale():
    verdicts = []
    for seed in range(6):
        data, loss = setting(seed, sizes=(2, 8), n=12)
        problem = Problem(*data, law=Law(), loss=loss)
        found = validity_radius(problem, [1e-5, 1e-2, 0.3, 1], 0, certificate="enumeration")
        assert found.verdicts[0] == "certified"
        verdicts += found.verdicts
    assert "refuted" in verdicts


def test_failed_assumptions_are_named():
    x, y = centered(2, 8, 3), torch.arange(8) % 2
    biased = bound(Problem(mlp(1, [3, 8, 1], "relu"), x + 1, y, law=Law(), loss="logistic"))
    assert {"homogeneity", "centring", "Θ"} <= set(biased.failed)
    assert "fails: homogeneity" in biased.reason
    smooth = bound(Problem(mlp(1, [3, 8, 1], "tanh", bias=False), x, y, law=Law(), loss="logistic"))
    assert {"homogeneity", "Hessian"} <= set(smooth.failed)
    named = {a.name: a.value for a in smooth.assumptions}
    model = mlp(1, [3, 8, 1], "tanh", bias=False)
    hessian = torch.func.vmap(torch.func.hessian(lambda z: model(z)[0]))(x)
    jacobian = torch.func.vmap(torch.func.grad(lambda z: model(z)[0]))(x)
    largest = (torch.linalg.matrix_norm(hessian, 2) * x.norm(dim=1) / jacobian.norm(dim=1)).detach()
    assert 0.9 * float(largest.max()) <= named["Hessian"] <= 1.0001 * float(largest.max())
    assert "FAILS" in str(smooth)


class Own(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


def test_report_without_a_certificate():
    (model, x, y), loss = setting()
    problem = Problem(Own(model), x, y, law=Law(), loss=loss)
    report = bound(problem, 1e-4)
    assert report.verdict == "undecided"
    assert "nn.Sequential" in report.reason
    assert math.isinf(report.right_upper)
    values = json.loads(json.dumps(report.to_dict()))
    assert values["right_upper"] is None
    assert values["assumptions"]["Θ"]["holds"]
    with pytest.raises(ValueError, match="no relaxation"):
        bound(problem, 1e-4, certificate="crown")


ERRORS = [
    ({"radius": "wide"}, "radius: expected one of"),
    ({"method": "grid"}, "method: expected"),
    ({"eps": 0.0}, "eps: expected"),
    ({"law": Law(alpha=0.0)}, "needs mixing"),
    ({"law": None}, "law: expected a law of mixing and noise"),
    ({"partners": torch.full((4, 4), 0.25)}, "partners: the bound is about uniform partners"),
    ({"loss": "square"}, "'cross_entropy' and 'logistic'"),
    ({"certificate": "magic"}, "certificate: expected one of"),
]


def unfit(model, x, y, loss, options):
    """The problem of some options, which are taken out."""
    names = ("law", "loss", "partners")
    return [Problem(model, x, y, **{"law": Law(), "loss": loss, **{n: options.pop(n) for n in names if n in options}})]


@pytest.mark.parametrize(("options", "match"), ERRORS)
def test_unfit_options_are_refused(options, match):
    (model, x, y), loss = setting(n=4)
    options = dict(options)
    with pytest.raises(ValueError, match=match):
        bound(*unfit(model, x, y, loss, options), **options)


def test_soft_labels_and_unordered_scales_are_refused():
    (model, x, y), loss = setting(n=4)
    with pytest.raises(ValueError, match="no mixtures"):
        bound(Problem(model, x, torch.full((4,), 0.5), law=Law(), loss=loss))
    with pytest.raises(ValueError, match="scales: expected increasing"):
        validity_radius(Problem(model, x, y, law=Law(), loss=loss), [0.1, 0.01])
