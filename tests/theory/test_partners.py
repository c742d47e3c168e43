import copy
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from building import build_problem
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import third
from problems import finish, generator, mlp, randn
from tiers import some_slow
from torch import nn
from torch.func import hessian, jacrev
from torch.testing import assert_close

import nfm_theory as nt
from nfm_theory.generalization.partners import (
    direction_moments,
    k_mixup_weights,
    self_weights,
)
from nfm_theory.setting.matching import matched, matched_partners, squared_distances
from nfm_theory.setting.mixing import FixedMixing

seeds = st.integers(0, 10_000)


def time_series_network(seed, channels=2, classes=3):
    """1-D convolutions as for physiological signals."""

    def build():
        return nn.Sequential(
            *(nn.Conv1d(channels, 4, 3, padding=1), nn.SiLU(), nn.AvgPool1d(2)),
            *(nn.Conv1d(4, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, classes)),
        )

    return finish(build, seed)


def random_law(seed, n, symmetric):
    """A random P(r|i); symmetric ones are mixtures of involutions."""
    if not symmetric:
        law = randn(seed, n, n).abs()
        return law / law.sum(1, keepdim=True)
    law = torch.zeros(n, n, dtype=torch.float64)
    for k in range(3):
        order = torch.randperm(n, generator=generator(seed + k))
        matrix = torch.eye(n, dtype=torch.float64)[order]
        law += (matrix + matrix.T) / 6
    return law


def setting(seed, n=5, loss="cross_entropy", activation="tanh", **options):
    outputs = 1 if loss == "logistic" else 3
    model, x = mlp(seed, [2, 5, outputs], activation), randn(seed + 1, n, 2)
    y = randn(seed + 2, n, outputs) if loss == "square" else torch.arange(n) % max(outputs, 2)
    return model, x, y, build_problem(model, x, y, loss=loss, **options)


def looped_terms(problem, weights):
    """All terms with loops over pairs and dense derivatives."""
    g, mixing = problem.features, problem.mixing
    names = ("standard", "R1", "R2", "R3", "C3")
    total, n = dict.fromkeys(names, 0.0), len(g)
    f = lambda h: problem.head(h[None])[0]  # noqa: E731
    for i in range(n):
        label = problem.labels[i : i + 1]
        inner = lambda u, label=label: problem.loss(u[None], label)[0]  # noqa: E731
        loss = lambda h, inner=inner: inner(f(h))  # noqa: E731
        slope, curvature, jac = jacrev(inner)(f(g[i])), hessian(inner)(f(g[i])), jacrev(f)(g[i])
        residual, cubic = torch.einsum("k,kij->ij", slope, hessian(f)(g[i])), third(loss, g[i])
        total["standard"] += loss(g[i]) / n
        for r in range(n):
            v, p = g[r] - g[i], weights[i, r] / n
            total["R1"] += p * mixing.moment(1) * slope @ jac @ v
            total["R2"] += p * mixing.moment(2) / 2 * (jac @ v) @ curvature @ (jac @ v)
            total["R3"] += p * mixing.moment(2) / 2 * v @ residual @ v
            total["C3"] += p * mixing.moment(3) / 6 * torch.einsum("ijk,i,j,k", cubic, v, v, v)
    return total


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    seed=seeds,
    loss=st.sampled_from(["cross_entropy", "logistic", "square"]),
    symmetric=st.booleans(),
    midpoint=st.booleans(),
)
def test_terms_are_the_loop(seed, loss, symmetric, midpoint):
    weights = random_law(seed, 4, symmetric)
    *_, problem = setting(seed, 4, loss, partners=weights, **({"lam": 0.5} if midpoint else {"alpha": 0.7}))
    terms = nt.terms(problem)
    for name, value in looped_terms(problem, weights).items():
        assert_close(getattr(terms, name).detach(), value.detach(), rtol=1e-9, atol=1e-11)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(seed=seeds, loss=st.sampled_from(["cross_entropy", "logistic", "square"]))
def test_uniform_partners_are_mixup(seed, loss):
    model, x, y, problem = setting(seed, 5, loss, partners=torch.full((5, 5), 0.2, dtype=torch.float64))
    ours, known = nt.terms(problem), nt.terms(build_problem(model, x, y, loss=loss))
    for name in ("standard", "R1", "R2", "R3", "C3"):
        assert_close(getattr(ours, name), getattr(known, name), rtol=1e-9, atol=1e-12)
    scales = [1.0, 0.3]
    assert_close(
        nt.loss(problem, scales, "exact").value,
        nt.loss(build_problem(model, x, y, loss=loss), method="exact", eps=scales).value,
    )


LAWS = {
    "k-mixup, k = 2": lambda x: k_mixup_weights(x, 2).value,
    "k-mixup, k = 3": lambda x: k_mixup_weights(x, 3).value,
    "DP-Mix self": lambda x: self_weights(torch.arange(len(x)) // 2),
    "uniform": lambda x: torch.full((len(x), len(x)), 1 / len(x), dtype=x.dtype),
    "any": lambda x: random_law(3, len(x), False),
}


MIXING = list(itertools.product(LAWS, ({}, {"alpha": 0.4, "beta": 2.0}, {"lam": 0.5})))


@pytest.mark.parametrize(("law", "mixing"), some_slow(MIXING, lambda case: not case[1] or case[0] == "any"))
def test_expansion_is_verified(law, mixing):
    model, x, y, _ = setting(11, 6)
    problem = nt.Problem(model, x, y, law=nt.Law(**mixing), partners=LAWS[law](x))
    report = nt.verify(problem, eps=(0.01, 0.005, 0.0025))
    assert report.verdict == "holds", report
    assert abs(report.observed_order - 3) < 0.1
    assert abs(report.ratios[-1] - 1) < 0.02


@pytest.mark.parametrize("layer", ["", "2"])
@pytest.mark.parametrize("law", ["k-mixup, k = 2", "DP-Mix self", "uniform"])
def test_expansion_on_a_time_series_network(law, layer):
    x, y = randn(0, 6, 2, 10).cumsum(-1) / 3, torch.arange(6) % 3
    model = time_series_network(1)
    weights = LAWS[law](build_problem(model, x, y, layer=layer).features)
    report = nt.verify(build_problem(model, x, y, layer=layer, partners=weights), eps=(0.01, 0.005, 0.0025))
    assert report.verdict == "holds", report
    assert abs(report.observed_order - 3) < 0.1
    assert abs(report.ratios[-1] - 1) < 0.02
    assert abs(float(report.terms.R3)) > 0


def test_a_wrong_term_is_seen():
    model, x, y, _ = setting(11, 6)
    problem = build_problem(model, x, y, partners=LAWS["k-mixup, k = 2"](x))
    terms = nt.terms(problem)
    for name in ("R1", "R2", "R3"):
        wrong = replace(terms, **{name: 1.01 * getattr(terms, name)})
        eps = torch.tensor([0.004, 0.001], dtype=x.dtype)
        remainders = (nt.loss(problem, eps, "exact").value - wrong.polynomial(eps, 2)).detach()
        assert abs(float(remainders[1]) / float(eps[1] ** 3 * terms.C3.detach()) - 1) > 0.1
        assert nt.verify(problem, terms=wrong).verdict == "refuted"


@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=seeds, midpoint=st.booleans(), beta=st.sampled_from([None, 2.3]))
def test_labels_unmix_for_symmetric_laws_only(seed, midpoint, beta):
    model, x, y, _ = setting(seed, 4)
    law = {"lam": 0.3} if midpoint else {"alpha": 0.6, "beta": beta}
    rule = nt.Quadrature(num_lam=40)
    symmetric, skew = (build_problem(model, x, y, partners=random_law(seed, 4, even), **law) for even in (True, False))
    mixed, unmixed = (nt.loss(symmetric, 1.0, "exact", f, quadrature=rule).value for f in ("mixed", "unmixed"))
    assert_close(mixed, unmixed, rtol=1e-10, atol=1e-12)
    mixed, unmixed = (nt.loss(skew, 1.0, "exact", f, quadrature=rule).value for f in ("mixed", "unmixed"))
    assert abs(float((mixed - unmixed).detach())) > 1e-8


@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=seeds, n=st.integers(2, 6), d=st.integers(1, 3), symmetric=st.booleans())
def test_moments_of_the_directions(seed, n, d, symmetric):
    g, weights = randn(seed, n, d), random_law(seed, n, symmetric)
    first, second = direction_moments(g, weights)
    for i in range(n):
        vs = [g[r] - g[i] for r in range(n)]
        assert_close(first[i], sum(p * v for p, v in zip(weights[i], vs, strict=True)), rtol=1e-9, atol=1e-11)
        outer = sum(p * torch.outer(v, v) for p, v in zip(weights[i], vs, strict=True))
        assert_close(second[i], outer, rtol=1e-9, atol=1e-11)


def test_terms_depend_on_the_moments_alone():
    """R1 and R2 of a linear head from `direction_moments`."""
    weight, x, y = randn(0, 3, 2), randn(1, 5, 3), torch.tensor([0, 1, 1, 0, 1])
    weights = random_law(2, 5, False)
    problem = build_problem(lambda u: u @ weight, x, y, partners=weights)
    mean, second = direction_moments(x, weights)
    p = (x @ weight).softmax(-1)
    fisher = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    terms = nt.terms(problem)
    slope = p - problem.labels
    assert_close(terms.R1, torch.einsum("ik,dk,id->i", slope, weight, mean).mean() / 3)
    assert_close(terms.R2, torch.einsum("ikl,dk,el,ide->i", fisher, weight, weight, second).mean() / 12)
    assert terms.R3 == 0


def brute_force_k_mixup(points, k):
    """Matching by trying every permutation."""
    n = len(points)
    cost = torch.cdist(points, points).numpy() ** 2
    law, count = np.zeros((n, n)), 0
    for first, second in itertools.product(itertools.combinations(range(n), k), repeat=2):
        best = min(itertools.permutations(second), key=lambda p: sum(cost[i, r] for i, r in zip(first, p, strict=True)))
        for i, r in zip(first, best, strict=True):
            law[i, r] += 1
        count += 1
    return torch.from_numpy(law * n / k / count)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(seed=seeds, n=st.integers(2, 5), k=st.integers(1, 5))
def test_k_mixup_by_brute_force(seed, n, k):
    k = min(k, n)
    points = randn(seed, n, 2)
    found = k_mixup_weights(points, k)
    assert_close(found.value, brute_force_k_mixup(points, k), rtol=1e-10, atol=1e-12)
    assert_close(found.value, found.value.T)
    assert_close(found.value.sum(1), torch.ones(n, dtype=torch.float64))


def test_k_mixup_runs_from_mixup_to_nothing_and_shortens_the_directions():
    points = randn(0, 6, 2)
    laws = [k_mixup_weights(points, k).value for k in range(1, 7)]
    assert_close(laws[0], torch.full((6, 6), 1 / 6, dtype=torch.float64))
    assert_close(laws[-1], torch.eye(6, dtype=torch.float64))
    lengths = [float(direction_moments(points, law)[1].diagonal(dim1=1, dim2=2).sum()) for law in laws]
    assert lengths == sorted(lengths, reverse=True)


def test_k_mixup_by_monte_carlo():
    points = randn(0, 6, 2)
    exact = k_mixup_weights(points, 2).value
    drawn = k_mixup_weights(points, 2, method="monte_carlo", sweeps=2000, generator=generator(0))
    assert ((drawn.value - exact).abs() <= 5 * drawn.stderr + 1e-3).all()
    assert_close(drawn.value.sum(0), torch.ones(6, dtype=torch.float64))
    assert k_mixup_weights(randn(1, 30, 2), 5, sweeps=20, generator=generator(0)).samples == 120


def test_self_mixing_needs_no_mixed_labels():
    """Views of one image have one label: mixed and unmixed losses are the same for any law of λ, term by term."""
    views, groups = randn(0, 3, 1, 2) + 0.1 * randn(1, 3, 4, 2), torch.arange(3).repeat_interleave(4)
    model, x = mlp(2, [2, 6, 3]), views.reshape(12, 2)
    problem = build_problem(model, x, groups, alpha=2.0, partners=self_weights(groups))
    mixed, unmixed = (nt.loss(problem, 1.0, "exact", form).value for form in ("mixed", "unmixed"))
    assert_close(mixed, unmixed)
    uniform = build_problem(model, x, groups, alpha=2.0, partners=torch.full((12, 12), 1 / 12))
    terms, mixup = nt.terms(problem), nt.terms(uniform)
    assert terms.R2 < 0.2 * mixup.R2


def test_midpoint_mixup_in_the_engine():
    model, x, y, midpoint = setting(5, 5, lam=0.5)
    uniform = build_problem(model, x, y, lam=0.5, partners=torch.full((5, 5), 0.2, dtype=torch.float64))
    ours, engine = nt.terms(uniform), nt.terms(midpoint)
    for name in ("R1", "R2", "R3", "C3"):
        assert_close(getattr(ours, name), getattr(engine, name), rtol=1e-9, atol=1e-12)
    pairs = [(i, r) for i in range(5) for r in range(5)]
    total = 0.0
    for i, r in pairs:
        outputs = model((x[i] + x[r])[None] / 2)
        total += (nn.functional.cross_entropy(outputs, y[[i]]) + nn.functional.cross_entropy(outputs, y[[r]])) / 50
    for problem in (uniform, midpoint):
        assert_close(nt.loss(problem, 1.0, "exact").value, total)
    # the limit of Beta(a, a)
    peaked = nt.loss(build_problem(model, x, y, alpha=1e5), method="exact").value
    assert_close(peaked, total, rtol=1e-4, atol=0)
    draw = midpoint.draw(5, 3, generator=generator(0))
    assert (draw.lam == 0.5).all()


@pytest.mark.parametrize("lam", [0.0, 0.2, 0.5, 1.0])
def test_fixed_mixing_is_the_unmixed_law_of_an_atom(lam):
    law = FixedMixing(lam)
    for j in (1, 2, 3):
        expected = lam * (1 - lam) ** j + (1 - lam) * lam**j
        assert law.moment(j) == pytest.approx(expected)
        assert law.moment(j, unmixed=False) == pytest.approx((1 - lam) ** j)
    nodes, weights = law.nodes(7)
    assert weights.sum() == pytest.approx(1)
    drawn = law.sample((4000,), generator=generator(0), dtype=torch.float64)
    spread = float(drawn.std()) / 4000**0.5
    assert abs(float(drawn.mean()) - float(weights @ nodes)) <= 5 * spread + 1e-12
    assert law.mixes == (0 < lam < 1)


def test_relu_heads_have_no_residual_curvature():
    *_, problem = setting(0, 5, activation="relu", partners=random_law(0, 5, True))
    assert nt.terms(problem, remainder=False).R3 == 0
    assert nt.terms(problem, remainder=False).C3 is None


def test_refusals():
    model, x, y, _ = setting(0, 4)
    law = random_law(0, 4, True)
    problem = build_problem(model, x, y, partners=law)
    for call, message in [
        (lambda: build_problem(model, x, y, partners=law[:3]), r"partners: expected P\(r\|i\) of shape \(4, 4\)"),
        (lambda: build_problem(model, x, y, partners=law.tolist()), "of shape"),
        (lambda: build_problem(model, x, y, partners=2 * law), "sum to 1"),
        (lambda: build_problem(model, x, y, partners=law - 2 * torch.eye(4)), "non-negative"),
        (lambda: nt.loss(problem, method="as_trained"), "partners: one permutation"),
        (lambda: nt.loss(problem, 0.5, "exact", "mixed"), "form"),
        (lambda: k_mixup_weights(x, 0), "k: expected"),
        (lambda: k_mixup_weights(x, 2, method="magic"), "method"),
        (lambda: k_mixup_weights(x, 3, method="monte_carlo"), "divide"),
        (lambda: self_weights(x), "groups"),
        (lambda: FixedMixing(1.5), "lam"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


def test_float32_verifies_by_the_integral_form():
    model, x, y, _ = setting(0, 4)
    problem = build_problem(model.float(), x.float(), y, partners=random_law(0, 4, True))
    assert nt.verify(problem).verdict == "holds"


# Training with matched batches --------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_matching_equals_brute_force(k):
    """The cheapest of all k! assignments, for random batches of two orders that overlap."""
    for seed in range(20):
        cost = squared_distances(randn(seed, 9, 2))
        first, second = (randn(100 * seed + j, 9).argsort()[:k].tolist() for j in (1, 2))
        found = matched(cost, first, second)
        best = min(
            itertools.permutations(second), key=lambda order: sum(cost[i, r] for i, r in zip(first, order, strict=True))
        )
        assert found.tolist() == list(best)


@pytest.mark.parametrize("k", [1, 2, 4, 7, 16])
def test_partners_of_a_step_are_a_permutation_and_follow_their_law(k):
    """Over many steps the pairs have the frequencies of `k_mixup_weights`; k = n leaves every sample in place."""
    x, steps = randn(3, 8, 2), 2000
    cost, seeded = squared_distances(x), generator(5)
    counts = np.zeros((8, 8))
    for _ in range(steps):
        index = matched_partners(cost, k, seeded)
        assert sorted(index) == list(range(8))
        counts[np.arange(8), index] += 1 / steps
    if k >= 8:
        assert np.allclose(counts, np.eye(8))
    elif 8 % k == 0:
        law = k_mixup_weights(x, k).value.numpy()
        assert (abs((counts + counts.T) / 2 - law) <= 5 * np.sqrt(law * (1 - law) / steps) + 1e-12).all()


@pytest.mark.parametrize("layer", ["", "1"])
def test_a_training_step_mixes_matched_partners_at_any_layer(layer):
    model, x, y = mlp(0, [3, 5, 4, 3]).train(), randn(0, 12, 3), torch.arange(12) % 3
    nfm = nt.NoisyFeatureMixup(model, layer, nt.Law(), num_classes=3, matching=4, generator=generator(1))
    inputs, targets = nfm(x, y)
    model(inputs)
    index, lam = nfm.last.draw.index, nfm.last.draw.lam[0]
    source = generator(1)
    torch.randint(1, (), generator=source)
    nt.sample_draw(12, (), nt.Law(), unmixed=False, as_trained=True, generator=source, dtype=x.dtype)
    assert index.tolist() == matched_partners(squared_distances(x), 4, source).tolist()
    labels = torch.nn.functional.one_hot(y, 3).double()
    assert_close(targets, lam * labels + (1 - lam) * labels[index])
    if not layer:
        assert_close(inputs, lam * x + (1 - lam) * x[index])
    again = copy.deepcopy(nfm)
    assert again.matching == 4


@pytest.mark.parametrize("bad", [0, -1, 1.5, True, None])
def test_a_matching_that_is_no_number_is_refused(bad):
    with pytest.raises(ValueError, match="matching: expected a whole number"):
        nt.NoisyFeatureMixup(mlp(0, [3, 5, 3]), "", nt.Law(), matching=bad)


def test_words_have_no_distance():
    with pytest.raises(TypeError, match="expected floating-point samples"):
        squared_distances(torch.arange(6).reshape(3, 2))
