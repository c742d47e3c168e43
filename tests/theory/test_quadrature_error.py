"""The error that a quadrature rule states covers its true error, whatever the head: kinks and jumps included.

The witnesses are closed forms in the noise, adaptive integration between the kinks, and distribution functions.
"""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from problems import generator, mlp, randn
from scipy import integrate, special, stats
from tiers import some_slow
from torch import nn
from torch.testing import assert_close

import nfm_theory as nt
from nfm_theory.adversarial import Effort, bound
from nfm_theory.setting.mixing import MixingLaw
from nfm_theory.setting.rules import beta_nodes, normal_nodes, uniform_nodes

REFINED = nt.Quadrature(rtol=1e-6, max_rows=100_000)


# The rules of one variable ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("a", "b"), [(1, 2), (0.1, 1.1), (1.3, 0.3), (0.2, 0.2), (2, 5), (0.01, 1.01), (5, 3)])
def test_closed_rules_and_panels_have_the_moments_of_a_beta_law(a, b):
    for kind, num, tolerance in (("closed", 6, 1e-13), ("closed", 2, None), ("panels", 16, 1e-7)):
        nodes, weights = beta_nodes(num, a, b, kind)
        assert (weights > 0).all()
        assert ((nodes >= 0) & (nodes <= 1)).all()
        for power in range(5 if tolerance else 2):
            expected = stats.beta(a, b).moment(power) if power else 1.0
            assert weights @ nodes**power == pytest.approx(expected, abs=tolerance or 1e-14)


@pytest.mark.parametrize(("a", "b"), [(1, 2), (0.1, 1.1), (1.1, 0.1), (0.3, 0.3)])
def test_panels_find_any_probability(a, b):
    nodes, weights = beta_nodes(64, a, b, "panels")
    for share in np.linspace(0.02, 0.98, 25):
        place = special.betaincinv(a, b, share)
        assert weights[nodes < place].sum() == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize(("rule", "law"), [(normal_nodes, stats.norm()), (uniform_nodes, stats.uniform(-1, 2))])
def test_panels_of_the_noise_have_its_moments_and_probabilities(rule, law):
    nodes, weights = rule(32, "panels")
    weights = weights / weights.sum()
    for power in (1, 2, 3, 4):
        assert weights @ nodes**power == pytest.approx(law.moment(power), abs=1e-9)
    for place in (-0.9, -0.3, 0.1, 0.77):
        assert weights[nodes < place].sum() == pytest.approx(law.cdf(place), abs=0.03)


# One feature and noise: the mean over the noise is a closed form on every piece of the head -------------------


def piecewise(seed, name):
    """A random head of one feature, and the points where its slope changes."""
    g = np.random.default_rng(seed)
    w, b, v = g.normal(size=4) * 1.2, g.normal(size=4) * (seed % 2), g.normal(size=4)
    levels = (-1.0, 1.0) if name == "hardtanh" else (0.0,)
    act = {
        "relu": torch.relu, "abs": torch.abs, "hardtanh": nn.functional.hardtanh,
        "leaky": lambda u: nn.functional.leaky_relu(u, 0.1), "clamp": lambda u: u.clamp(min=0),
        "max": lambda u: torch.stack([u, 0 * u, 0.3 * u]).amax(0),
    }[name]  # fmt: skip
    w, b, v = map(torch.from_numpy, (w, b, v))
    return lambda x: act(x * w + b) @ v.unsqueeze(-1), np.unique([(float(c) - b) / w for c in levels])


def partial_moments(low, high, noise):
    """∫ z^k dP(z) over low..high for k = 0, 1, 2."""
    if noise == "uniform":
        low, high = np.clip(low, -1, 1), np.clip(high, -1, 1)
        return [(high**k - low**k) / (2 * k) for k in (1, 2, 3)]
    at, to = ({"z": z, "pdf": stats.norm.pdf(z), "cdf": special.ndtr(z)} for z in (low, high))
    zero = to["cdf"] - at["cdf"]
    edge = [np.where(np.isinf(e["z"]), 0, e["z"]) * e["pdf"] for e in (at, to)]
    return [zero, at["pdf"] - to["pdf"], zero + edge[0] - edge[1]]


def noisy_square_loss(head, kinks, x, y, center, scale, noise):
    """E of f(center + scale z)²/2 - y f(center + scale z), for many centers."""
    edges = np.concatenate([[-np.inf], kinks, [np.inf]])
    total = 0.0
    for low, high in pairwise(edges):
        inside = min(max(0.0, low + 1), high - 1) if high - low > 2 else (low + high) / 2
        pair = torch.tensor([[inside], [inside + 1e-3 * min(1.0, high - low)]], dtype=torch.float64)
        f = head(pair).squeeze(1).numpy()
        slope = (f[1] - f[0]) / float(pair[1] - pair[0])
        start = f[0] + slope * (center - inside)  # the head is start + slope scale z on this piece
        m0, m1, m2 = partial_moments((low - center) / scale, (high - center) / scale, noise)
        second = start**2 * m0 + 2 * start * slope * scale * m1 + (slope * scale) ** 2 * m2
        total = total + second / 2 - y * (start * m0 + slope * scale * m1)
    return total


def closed_form(head, kinks, x, y, law, eps):
    lam, weights = np.ones(1), np.ones(1)
    if law.alpha and law.noise == "normal":  # the mean over normal noise is smooth in λ
        lam, weights = MixingLaw(law.alpha, law.beta).nodes(150)
    elif law.alpha:  # Beta(2, 1), on fine panels
        lam = (np.arange(20_000) + 0.5) / 20_000
        weights = 2 * lam / len(lam)
    total = 0.0
    for i in range(len(x)):
        for other in x if law.alpha else x[i : i + 1]:
            center = x[i] + eps * (1 - lam) * (other - x[i])
            total += weights @ noisy_square_loss(head, kinks, x, y[i], center, eps * law.add_noise, law.noise)
    return total / len(x) ** (2 if law.alpha else 1)


NOISY = [
    (seed, name, alpha, noise)
    for seed, (name, (alpha, noise)) in enumerate(
        (name, setting)
        for name in ("relu", "leaky", "hardtanh", "abs", "clamp", "max")
        for setting in ((1.0, "normal"), (0.1, "normal"), (0.0, "normal"), (0.0, "uniform"), (1.0, "uniform"))
    )
]


# Each function and each law once, by the number of the case
@pytest.mark.parametrize(
    ("seed", "name", "alpha", "noise"), some_slow(NOISY, lambda case: case[0] % 5 == case[0] // 5 % 5)
)
def test_the_stated_error_covers_with_kinks_under_noise(seed, name, alpha, noise):
    head, kinks = piecewise(seed, name)
    g = np.random.default_rng(1000 + seed)
    x, y = g.normal(size=1 + seed % 3), g.normal(size=1 + seed % 3)
    eps, law = (0.3, 1.0)[seed % 2], nt.Law(alpha=alpha, add_noise=0.8, noise=noise)
    truth = closed_form(head, kinks, x, y, law, eps)
    problem = nt.Problem(head, torch.from_numpy(x)[:, None], torch.from_numpy(y), law=law, loss="square")
    slack = 2e-8 if (alpha, noise) == (1.0, "uniform") else 1e-11  # of the witness
    refined, first = (nt.loss(problem, eps, "exact", quadrature=q) for q in (REFINED, nt.Quadrature()))
    for found in (refined, first):
        assert abs(float(found) - truth) <= float(found.error) + slack
        assert found.stderr == 0
    assert float(refined.error) <= (1e-5 if alpha == 0 else 0.05) * max(1.0, abs(truth))
    assert float(refined.error) <= float(first.error)
    sampled = nt.loss(problem, eps, samples=4_000, quadrature=nt.Quadrature(max_rows=5_000), generator=generator(seed))
    assert abs(float(sampled) - truth) <= float(sampled.error) + slack


def test_relu_under_unit_noise_is_the_closed_form():
    x, y = torch.tensor([[0.3], [-0.5]], dtype=torch.float64), torch.tensor([0.2, 0.5], dtype=torch.float64)
    found = nt.loss(nt.Problem(torch.relu, x, y, law=nt.Law(alpha=0, add_noise=1.0), loss="square"), method="exact")
    g = x[:, 0]
    cdf, pdf = torch.special.ndtr(g), torch.exp(-(g**2) / 2) / math.sqrt(2 * math.pi)
    mean, second = g * cdf + pdf, (g**2 + 1) * cdf + g * pdf
    assert_close(found.value, (second / 2 - y * mean).mean(), rtol=1e-6, atol=0)
    assert 0 < found.error < 1e-5 * found.value.abs()
    assert "panels" in found.method


# Mixing alone -------------------------------------------------------------------------------------------------


ALONG = [
    (k, seed, alpha, beta)
    for k, (alpha, beta) in enumerate([(0.02, None), (0.1, None), (0.5, 1.5), (1.0, None), (3.0, 0.4)])
    for seed in range(3)
]


@pytest.mark.parametrize(("k", "seed", "alpha", "beta"), some_slow(ALONG, lambda case: case[0] % 3 == case[1]))
def test_the_stated_error_covers_with_kinks_along_the_mixing_path(k, seed, alpha, beta):
    head, kinks = piecewise(10 + seed, ("relu", "hardtanh", "abs")[seed])
    x, y = randn(seed, 3, 1), randn(seed + 1, 3)
    law, eps = nt.Law(alpha=alpha, beta=beta), (1.0, 0.4)[seed % 2]
    a, b = law.mixing.parameters
    truth = 0.0
    for i in range(3):
        for r in range(3):
            step = eps * float(x[r] - x[i])
            places = [(k - float(x[i])) / step for k in kinks if step]
            ends = np.sort([0.0, *(t for t in places if 0 < t < 1), 1.0])

            def value(t, i=i, step=step):
                f = float(head(x[i : i + 1] + t * step))
                return f**2 / 2 - float(y[i]) * f

            for share, p, q in ((a / (a + b), a + 1, b), (b / (a + b), b + 1, a)):
                # with u = t^q the density of t = 1 - λ near its singular end becomes smooth
                for low, high in pairwise(ends):
                    part, _ = integrate.quad(
                        lambda u, p=p, q=q, value=value: value(u ** (1 / q)) * (1 - u ** (1 / q)) ** (p - 1),
                        low**q, high**q, epsabs=1e-12, epsrel=1e-11, limit=200,
                    )  # fmt: skip
                    truth += share * part / (q * special.beta(p, q)) / 9
    problem = nt.Problem(head, x, y, law=law, loss="square")
    for quadrature in (None, nt.Quadrature(), nt.Quadrature(num_lam=5)):
        found = nt.loss(problem, eps, "exact", quadrature=quadrature)
        assert abs(float(found) - truth) <= float(found.error) + 1e-10
        assert quadrature or float(found.error) <= 1e-5 * max(1.0, abs(truth))


@pytest.mark.parametrize("place", [1e-9, 1e-6, 1e-4, 0.03, 0.999])
def test_a_jump_between_the_sample_and_the_first_node_is_seen(place):
    """With α = 0.1 almost half of the probability lies between λ = 1 and the first of 16 Gauss nodes."""
    x, y = torch.tensor([[0.0], [1.0]], dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    problem = nt.Problem(lambda u: (u > place).to(u), x, y, law=nt.Law(alpha=0.1), loss="square")
    far = special.betaincc(0.1, 1.1, place)  # of the first sample with the second: P(1 - λ > place)
    near = special.betainc(0.1, 1.1, 1 - place)
    truth = 0.5 * (far + near + 1) / 4
    for quadrature in (REFINED, nt.Quadrature()):
        found = nt.loss(problem, method="exact", quadrature=quadrature)
        assert abs(float(found) - truth) <= float(found.error) + 1e-12


# Smooth heads -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "law", [nt.Law(alpha=0.1), nt.Law(0.5, 1.5), nt.Law(add_noise=0.3), nt.Law(mult_noise=0.3, noise="uniform"),
            nt.Law(add_noise=0.4, mult_noise=0.2, noise="rademacher"), nt.Law.released(add_noise=0.4), nt.Law(lam=0.3)],
    ids=str,
)  # fmt: skip
def test_smooth_heads_keep_their_value_and_have_a_tiny_error(law):
    problem = nt.Problem(mlp(0, [1, 6, 3], "tanh"), randn(1, 4, 1), torch.tensor([0, 1, 2, 1]), law=law)
    with torch.no_grad():
        found, plain = nt.loss(problem, 0.5, "exact"), nt.loss(problem, 0.5, "exact", quadrature=nt.Quadrature())
        finer = nt.loss(problem, 0.5, "exact", quadrature=nt.Quadrature(num_lam=40, num_noise=30))
    assert found.value == plain.value  # bit by bit
    assert found.method in ("deterministic, no noise", "deterministic, tensor")
    assert float(found.error) < 1e-8 * abs(float(found))
    assert abs(found.value - finer.value) <= found.error + finer.error


def test_smooth_heads_under_large_noise_get_more_nodes():
    problem = nt.Problem(lambda u: torch.tanh(3 * u), randn(1, 2, 1), randn(2, 2), law=nt.Law(alpha=0, add_noise=1.0),
                         loss="square")  # fmt: skip
    found, plain = nt.loss(problem, method="exact"), nt.loss(problem, method="exact", quadrature=nt.Quadrature())
    truth = sum(
        integrate.quad(lambda z, g=g, y=y: (np.tanh(3 * (g + z)) / 2 - y) * np.tanh(3 * (g + z)) * stats.norm.pdf(z),
                       -9, 9, points=[-g], epsabs=1e-13)[0] / 2
        for g, y in zip(problem.features[:, 0].tolist(), problem.labels[:, 0].tolist(), strict=True)
    )  # fmt: skip
    for one in (found, plain):
        assert abs(float(one) - truth) <= float(one.error)
    assert found.error < 1e-2 * plain.error


# What the estimates say ---------------------------------------------------------------------------------------


def test_cubatures_state_how_far_they_are_from_the_law():
    x, y = randn(0, 4, 5), torch.tensor([0, 1, 2, 1])
    law = nt.Law(add_noise=0.6)
    for activation in ("tanh", "relu"):
        problem = nt.Problem(mlp(0, [5, 6, 3], activation), x, y, law=law)
        with torch.no_grad():
            sampled = nt.loss(problem, 1.0, "monte_carlo", samples=100_000, generator=generator(1))
            for rule in ("cubature-3", "cubature-5"):
                found = nt.loss(problem, 1.0, "exact", quadrature=nt.Quadrature(rule=rule))
                assert abs(found.value - sampled.value) <= found.error + sampled.error
                assert 0 < found.error < 0.05


def test_the_error_of_a_sampled_value_is_four_standard_errors_and_layers_add_up():
    model, x, y = mlp(0, [2, 4, 3], "relu"), randn(1, 3, 2), torch.tensor([0, 1, 2])
    problems = nt.Problem.at_layers(model, x, y, layers=["", "0"], law=nt.Law())
    sampled = nt.loss(problems, method="monte_carlo", samples=2_000, generator=generator(0))
    assert sampled.quadrature_error is None
    assert sampled.error == 4 * sampled.stderr
    rule = nt.Quadrature(num_lam=4)
    both = nt.loss(problems, [0.5, 1.0], "exact", quadrature=rule)
    alone = [nt.loss(p, [0.5, 1.0], "exact", quadrature=rule).error for p in problems]
    assert_close(both.error, sum(alone) / 2)
    assert f"± {float(both.error[0]):.2g}" in str(both)
    assert both.to_dict()["quadrature_error"] == both.error.tolist()


def test_a_larger_budget_never_states_a_larger_error():
    head, _ = piecewise(3, "relu")
    problem = nt.Problem(head, randn(0, 2, 1), randn(1, 2), law=nt.Law(), loss="square")
    rules = [nt.Quadrature(max_rows=rows, rtol=1e-6) for rows in (100, 1_000, 10_000, 100_000)]
    errors = [float(nt.loss(problem, method="exact", quadrature=rule).error) for rule in rules]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-2 * errors[0]


def test_auto_samples_where_that_is_more_accurate():
    law, x, y = nt.Law(add_noise=0.5, mult_noise=0.5), randn(0, 3, 1), torch.tensor([0, 1, 1])
    problem = nt.Problem(mlp(1, [1, 6, 2], "relu"), x, y, law=law)
    rough = nt.Quadrature(max_rows=50_000)
    by_rule = nt.loss(problem, method="exact", quadrature=rough)
    found = nt.loss(problem, quadrature=rough, samples=50_000, generator=generator(0))
    assert found.method.startswith("Monte Carlo")
    assert found.stderr > 0
    assert found.error < by_rule.error
    assert abs(found.value - by_rule.value) <= found.error + by_rule.error


def test_gradients_flow_through_a_refined_rule():
    model, x, y = mlp(2, [1, 8, 2], "relu"), 3 * randn(3, 3, 1), torch.tensor([0, 1, 1])
    name, weight = next(iter(model.named_parameters()))
    direction, h = randn(5, *weight.shape), 1e-4

    def value(shift):
        params = {name: weight + shift * direction}
        return nt.loss(nt.Problem(model, x, y, law=nt.Law(), params=params), method="exact")

    here = value(0.0)
    assert "panels" in here.method
    (slope,) = torch.autograd.grad(here.value, weight)
    with torch.no_grad():
        up, down = value(h), value(-h)
    assert_close((slope * direction).sum(), (up.value - down.value) / (2 * h), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["num_lam", "num_noise", "max_rows", "rtol"])
def test_numbers_of_a_rule_are_positive(name):
    with pytest.raises(ValueError, match=f"{name}: expected a number > 0, got 0"):
        nt.Quadrature(**{name: 0})


# Bounds -------------------------------------------------------------------------------------------------------


def dense_loss(head, x, y, eps):
    """The noisy Mixup loss for α = 1 and N(0, 1), on a dense product of Gauss-Legendre panels."""
    nodes, weights = np.polynomial.legendre.leggauss(6)

    def panels(low, high, num):
        edges = np.linspace(low, high, num + 1)
        middle, half = (edges[1:] + edges[:-1])[:, None] / 2, (edges[1:] - edges[:-1])[:, None] / 2
        return torch.from_numpy((middle + half * nodes).ravel()), torch.from_numpy((half * weights).ravel())

    (t, w), (z, v) = panels(0, 1, 40), panels(-8, 8, 300)
    v, total = v * torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi), 0.0
    for i in range(len(x)):
        for r in range(len(x)):
            center = x[i] + eps * (1 - t) * (x[r] - x[i])
            u = head((center[:, None] + eps * z).reshape(-1, 1)).reshape(len(t), len(z))
            total += float((2 * t * w) @ (nn.functional.softplus(u) - y[i] * u) @ v)
    return total / len(x) ** 2


# Weights of both layers, samples, labels and a scale at which the slack is tiny: a rule of 24 × 12 nodes, taken for
# exact, certifies the first inequality, which is false, and refutes the second one.
VERDICTS = [
    (
        (-0.7485893262137983, -1.472462718380352, -0.21468131934004217, -1.6609692894143941),
        (1.0087836126335683, -0.4842814151762897, -2.1664486818918314, 2.335681661872623),
        (0.6350967182056191, -0.27671558850183253, -0.35838112970378655),
        (0, 1, 1),
        0.10877,
    ),
    (
        (1.5449029405258465, 1.2830501135408507, -1.7715617854175902, 1.657780202701875),
        (-0.8440330536751787, -1.4531009879860621, 0.913494063250412, 0.799713726705967),
        (0.4393861462236839, 0.19749444303390398, -0.6368805892575878),
        (0, 0, 1),
        0.11505,
    ),
]


def leaky_problem(case, law):
    first, second, x, y, eps = VERDICTS[case]
    model = nn.Sequential(nn.Linear(1, 4, bias=False), nn.LeakyReLU(0.1), nn.Linear(4, 1, bias=False)).double()
    model.requires_grad_(False)[0].weight.copy_(torch.tensor(first)[:, None])
    model[2].weight.copy_(torch.tensor(second)[None])
    x = torch.tensor(x, dtype=torch.float64)[:, None]
    return nt.Problem(model.eval(), x, torch.tensor(y), law=law, loss="logistic"), eps


@pytest.mark.parametrize("case", [0, 1])
def test_a_bound_has_a_verdict_only_if_the_slack_exceeds_the_error(case):
    problem, eps = leaky_problem(case, nt.Law(add_noise=1.0))
    report = bound(problem, eps, certificate="enumeration", effort=Effort(max_rows=50_000, samples=4_000))
    truth = dense_loss(problem.model, problem.features, problem.labels[:, 0], eps)
    assert abs(report.left - truth) <= report.nfm_error
    assert abs(truth - report.right_lower) < 1e-5  # too close to call with this effort
    assert report.verdict == "undecided"
    assert "the error of the left side" in report.reason


def test_a_rule_is_refined_where_its_error_leaves_the_verdict_open():
    problem, eps = leaky_problem(1, nt.Law(add_noise=1.0))
    report = bound(problem, eps, certificate="enumeration", effort=Effort(max_rows=300_000, samples=4_000))
    first = nt.loss(problem, eps, "exact", quadrature=nt.Quadrature(num_lam=24))
    assert report.verdict == "certified"
    assert "panels" in report.method
    assert report.nfm_error < report.slack[0] < float(first.error)
