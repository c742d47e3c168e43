"""The expansion of the stability loss: terms against loops and the generic engine, remainder against its prediction."""

import functools
import itertools
import json
from dataclasses import replace

import matplotlib as mpl
import pytest
import torch
from building import build_branches, build_problem
from hypothesis import given
from hypothesis import strategies as st
from judging import judging
from problems import mlp, randn, small_cnn
from tiers import random_cases, some_slow
from torch.testing import assert_close

import nfm_theory as nt
from nfm_theory import MixingLaw, NoiseLaw, StabilityTerms, equal_branches_term, lagrange_interval
from nfm_theory.expansion.branch_terms import branch_terms
from nfm_theory.expansion.terms import problem_coefficients, problem_terms
from nfm_theory.verification.report import ORDER_TOLERANCE, RATIO_TOLERANCE

mpl.use("agg")
EXACT = {"rtol": 1e-9, "atol": 1e-13}
NOISY = {"add_noise": 0.3, "mult_noise": 0.4}
WEIGHTS = {2: [0.3, 0.7], 3: [0.5, 0.2, 0.3]}
FIELDS = ("standard", "R1", "R2", "R3", "R2_add", "R3_add", "R2_mult", "R3_mult", "C3")


def inputs(m, n=4, d=3, equal=False):
    x = randn(1, n, d)
    return torch.stack([x] * m if equal else [x, *(x + 0.3 * randn(5 + j, n, d) for j in range(m - 1))])


def divergence(logits, weights):
    """JSD in probabilities, of logits (m, K)."""
    p = torch.cat([1 - logits.sigmoid(), logits.sigmoid()], -1) if logits.shape[-1] == 1 else logits.softmax(-1)
    pi = torch.tensor(weights, dtype=p.dtype).unsqueeze(-1)
    mixture = (pi * p).sum(0)
    return (pi * p * (p.log() - mixture.log())).sum()


def naive_stability(model, xs, weights, *, law, add_noise, mult_noise, noise, shared):
    """All terms by loops over samples, partners and noise directions, dense derivatives of the stacked map."""
    m, n, d = xs.shape
    second = NoiseLaw(noise).second
    total = dict.fromkeys(FIELDS, 0.0)
    units = []  # directions of the noise in the space of all branches, (m, d)
    for c in range(d):
        single = torch.zeros(m, d, dtype=xs.dtype)
        single[:, c] = 1.0
        units += [single] if shared else [single * torch.eye(m, dtype=xs.dtype)[j, :, None] for j in range(m)]
    shape = model(xs[:, 0]).shape
    outer_loss = lambda z: divergence(z.reshape(shape), weights)  # noqa: E731
    for i in range(n):
        g = xs[:, i]
        value = lambda h: divergence(model(h.reshape(m, d)), weights)  # noqa: E731
        u = model(g)
        outer = torch.func.hessian(outer_loss)(u.flatten())
        slope = torch.func.grad(outer_loss)(u)
        jac = torch.func.jacrev(lambda h: model(h.reshape(m, d)).flatten())(g.flatten())
        gauss = jac.T @ outer @ jac
        full = torch.func.hessian(value)(g.flatten())
        residual = torch.zeros_like(full)
        for j in range(m):
            dense = torch.func.hessian(lambda z: model(z[None])[0])(g[j])
            residual[j * d : (j + 1) * d, j * d : (j + 1) * d] = torch.einsum("k,kab->ab", slope[j], dense)
        assert_close(full, gauss + residual, rtol=1e-9, atol=1e-11)
        cubic = torch.func.jacfwd(torch.func.hessian(value))(g.flatten())
        total["standard"] += value(g.flatten())
        sources = {"_add": (add_noise**2, [e.flatten() for e in units])}
        sources["_mult"] = (mult_noise**2, [(e * g).flatten() for e in units])
        for suffix, (level, directions) in sources.items():
            for w in directions:
                total["R2" + suffix] += level * second / 2 * w @ gauss @ w
                total["R3" + suffix] += level * second / 2 * w @ residual @ w
        for r in range(n):
            v = (xs[:, r] - g).flatten()
            total["R1"] += law.moment(1) * (slope.flatten() @ jac @ v) / n
            total["R2"] += law.moment(2) / 2 * v @ gauss @ v / n
            total["R3"] += law.moment(2) / 2 * v @ residual @ v / n
            total["C3"] += law.moment(3) / 6 * torch.einsum("abc,a,b,c", cubic, v, v, v) / n
            for level, directions in sources.values():
                for w in directions:
                    total["C3"] += law.moment(1) / 2 * level * second * torch.einsum("abc,a,b,c", cubic, v, w, w) / n
            for e in units:
                across = (e.flatten() * v) @ full @ (e * g).flatten()
                total["C3"] += law.moment(1) * mult_noise**2 * second * across / n
    return {name: torch.as_tensor(part, dtype=xs.dtype) / n for name, part in total.items()}


@random_cases(
    4,
    12,
    given(
        seed=st.integers(0, 10_000),
        m=st.integers(2, 3),
        classes=st.sampled_from([1, 2, 4]),
        shared=st.booleans(),
        noise=st.sampled_from(["normal", "uniform", "rademacher"]),
        alpha=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
        activation=st.sampled_from(["tanh", "silu", "gelu", "softplus"]),
    ),
)
def test_terms_are_those_of_loops_and_dense_derivatives(seed, m, classes, shared, noise, alpha, activation):
    model = mlp(seed, [2, 3, classes], activation)
    xs = randn(seed + 1, m, 3, 2)
    options = {"noise": noise, **NOISY}
    terms = nt.terms(build_branches(model, xs, weights=WEIGHTS[m], alpha=alpha, shared_noise=shared, **options))
    expected = naive_stability(model, xs, WEIGHTS[m], law=MixingLaw(alpha), shared=shared, **options)
    for name in FIELDS:
        assert_close(
            getattr(terms, name), expected[name], rtol=1e-8, atol=1e-11, msg=lambda text, k=name: f"{k}: {text}"
        )


@pytest.mark.parametrize("gamma", [None, 12.0])
@pytest.mark.parametrize("noise", ["normal", "released"])
@pytest.mark.parametrize("layer", ["", "1"])
def test_independent_noise_is_the_generic_engine_on_stacked_features(layer, noise, gamma):
    """`exact_terms` and `predicted_remainder` know nothing of branches: they see one head of all features."""
    y = torch.tensor([0, 1, 2, 0])
    options = {"weights": WEIGHTS[3], "layer": layer, "noise": noise, "gamma": gamma, **NOISY}
    branches = build_branches(mlp(0, [3, 4, 3]), inputs(3), y, **options)
    with torch.no_grad():
        ours, generic = branch_terms(branches), problem_terms(branches)
    for name in FIELDS:
        assert_close(getattr(ours, name), getattr(generic, name), **EXACT)


@pytest.mark.parametrize("shared", [False, True])
def test_coefficients_by_derivatives_along_the_rows_of_a_rule(shared):
    branches = build_branches(mlp(0, [3, 4, 2]), inputs(2), weights=WEIGHTS[2], shared_noise=shared, **NOISY)
    found = problem_coefficients(branches, 3, rule="auto", max_rows=10**6)
    terms = branch_terms(branches)
    expected = torch.stack([terms.S0, terms.S1, terms.S2, terms.C3])
    assert_close(found, expected.detach(), **EXACT)


def test_one_branch_is_the_nfm_loss():
    """m = 1 and a loss of the label: the expansion of a `Problem`."""
    model, x, y = mlp(0, [3, 5, 4]), randn(1, 6, 3), torch.tensor([0, 1, 2, 3, 1, 0])

    def label_loss(outputs, labels):
        return torch.nn.functional.cross_entropy(outputs[:, 0], labels, reduction="none")

    ours = nt.terms(build_branches(model, x[None], y, loss=label_loss, layer="1", **NOISY))
    theirs = nt.terms(build_problem(model, x, y, layer="1", **NOISY))
    for name in FIELDS:
        assert_close(getattr(ours, name), getattr(theirs, name), **EXACT)


def test_noisymix_is_the_sum_of_the_two_expansions():
    model, xs, y = mlp(0, [3, 5, 4]), inputs(3), torch.tensor([0, 1, 2, 3])
    both = nt.terms(build_branches(model, xs, y, gamma=12.0, **NOISY))
    jsd, nfm = nt.terms(build_branches(model, xs, **NOISY)), nt.terms(build_problem(model, xs[0], y, **NOISY))
    for name in FIELDS:
        assert_close(getattr(both, name), getattr(nfm, name) + 12 * getattr(jsd, name), **EXACT)


# --- equal branches ---------------------------------------------------------------------------------------------------


EQUAL = list(itertools.product([1, 2, 10], [(0.3, 0.7), (0.5, 0.2, 0.3), (0.25,) * 4]))


@pytest.mark.parametrize(("classes", "weights"), some_slow(EQUAL, lambda case: case in EQUAL[::4]))
def test_equal_branches_have_the_closed_form(classes, weights):
    model, m = mlp(0, [3, 5, classes]), len(weights)
    xs = inputs(m, equal=True)
    for layer, noise in itertools.product(["", "1"], ["normal", "released"]):
        terms = nt.terms(build_branches(model, xs, weights=weights, layer=layer, noise=noise, **NOISY))
        expected = equal_branches_term(
            build_branches(model, xs[:1].expand_as(xs), weights=weights, layer=layer, noise=noise, **NOISY)
        )
        assert_close(terms.S2, expected, rtol=1e-10, atol=1e-14)
        assert abs(terms.S0) < 1e-15
        assert abs(terms.S1) < 1e-15
        assert abs(terms.residual) < 1e-15
        assert abs(terms.data) < 1e-15
        shared = nt.terms(
            build_branches(model, xs, weights=weights, layer=layer, noise=noise, shared_noise=True, **NOISY)
        )
        assert abs(shared.S2) < 1e-15


def test_two_equal_branches_cost_pi1_pi2_times_the_fisher_trace():
    model, x = mlp(0, [3, 5, 4]), randn(1, 4, 3)
    expected = 0.0
    for row in x:
        p, jac = model(row).softmax(-1), torch.func.jacrev(model)(row)
        expected += 0.3 * 0.7 * 0.5**2 * torch.trace(jac.T @ (p.diag() - torch.outer(p, p)) @ jac) / len(x)
    branches = build_branches(model, [x, x], weights=[0.3, 0.7], alpha=0.0, add_noise=0.5)
    assert_close(equal_branches_term(branches), expected, **EXACT)
    assert_close(
        nt.terms(build_branches(model, torch.stack([x, x]), weights=[0.3, 0.7], add_noise=0.5)).S2, expected, **EXACT
    )
    assert equal_branches_term(build_branches(model, [x, x])) == 0


# --- the verdict ------------------------------------------------------------------------------------------------------

CASES = list(itertools.product([2, 3], [1, 2, 10], [False, True], ["", "1"]))


@pytest.mark.parametrize(("m", "classes", "equal", "layer"), some_slow(CASES, lambda case: case in CASES[::5]))
def test_the_expansion_holds_with_the_predicted_coefficient(m, classes, equal, layer):
    model = mlp(0, [3, 5, classes])
    report = nt.verify(build_branches(model, inputs(m, equal=equal), weights=WEIGHTS[m], layer=layer, **NOISY))
    assert report.verdict == "holds", report
    assert report.leading_order == 3
    assert abs(report.observed_order - 3) <= ORDER_TOLERANCE
    assert abs(report.coefficient_ratio - 1) <= RATIO_TOLERANCE
    assert report.pathwise == (64, 0)


OPTIONS = {
    "mixing": {},
    "noise only": {"alpha": 0.0, **NOISY},
    "shared": {"shared_noise": True, **NOISY},
    "shared noise only": {"shared_noise": True, "alpha": 0.0, **NOISY},
    "released": {"noise": "released", "alpha": 0.6, "beta": 1.5, **NOISY},
    "released noise only": {"noise": "released", "alpha": 0.0, **NOISY},
    "a branch without weight": {"weights": [0.0, 0.4, 0.6], **NOISY},
    "noisymix": {"gamma": 12.0, "y": torch.tensor([0, 1, 2, 0]), **NOISY},
}


QUICK = ("shared", "released noise only", "a branch without weight", "noisymix")


@pytest.mark.parametrize("scheme", some_slow(OPTIONS, lambda scheme: scheme in QUICK))
def test_every_scheme_holds(scheme):
    report = nt.verify(build_branches(mlp(0, [3, 5, 3]), inputs(3), layer="1", **OPTIONS[scheme]))
    assert report.verdict == "holds", report
    assert report.leading_order == (4 if "only" in scheme else 3)
    assert report.pathwise[1] == 0


def test_the_law_itself_holds_where_its_rule_is_finite():
    report = nt.verify(
        build_branches(mlp(2, [2, 4, 3]), inputs(2, 3, 2), noise="rademacher", add_noise=0.4, mult_noise=0.2)
    )
    assert report.verdict == "holds", report
    assert report.method == "deterministic, tensor"


@random_cases(3, 10, given(seed=st.integers(0, 10_000), m=st.integers(2, 3), shared=st.booleans(), equal=st.booleans()))
def test_no_network_is_refuted(seed, m, shared, equal):
    x = randn(seed + 1, 3, 2)
    xs = torch.stack([x, *(x if equal else x + 0.3 * randn(seed + k, 3, 2) for k in range(2, m + 1))])
    report = nt.verify(build_branches(mlp(seed, [2, 4, 3], "silu"), xs, shared_noise=shared and not equal, **NOISY))
    assert report.verdict != "refuted", report
    assert report.pathwise[1] == 0


@functools.cache
def evidence(shared):
    options = {"weights": WEIGHTS[2], "shared_noise": shared, **NOISY}
    return judging(build_branches(mlp(0, [3, 5, 3]), inputs(2), **options), [0.1, 0.05, 0.02])


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", ["", "R1", "R2", "R3", "R2_add", "R3_add", "R2_mult", "R3_mult", "C3"])
def test_a_term_one_percent_off_is_refuted(name, shared):
    right, judge = evidence(shared)
    report = judge(replace(right.terms, **({name: getattr(right.terms, name) * 1.01} if name else {})))
    assert report.verdict == ("refuted" if name else "holds")
    assert not name or f"eps^{ {'R1': 1, 'C3': 3}.get(name, 2) }" in report.reason


@pytest.mark.parametrize("equal", [False, True])
def test_terms_without_the_blocks_across_branches_are_refuted(equal):
    """With shared noise the blocks matter: the terms of independent noise are not those."""
    model, xs = mlp(0, [3, 5, 3]), inputs(2, equal=equal)
    wrong = nt.terms(build_branches(model, xs, shared_noise=not equal, **NOISY))
    terms = replace(wrong, R2_add=nt.terms(build_branches(model, xs, shared_noise=equal, **NOISY)).R2_add)
    assert nt.verify(build_branches(model, xs, shared_noise=not equal, **NOISY), terms=terms).verdict == "refuted"


def test_single_draws_stay_inside_lagranges_interval():
    branches = build_branches(mlp(0, [3, 5, 3]), inputs(3), layer="1", shared_noise=True, **NOISY)
    draw = branches.draw(4, 50, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        coefficients = torch.stack(
            torch.func.jacfwd(lambda e: branches.path(draw)(e))(torch.zeros((), dtype=torch.float64))
            .unsqueeze(0)
            .unbind()
        )
        interval = lagrange_interval(branches, draw, 0.05, order=1)
        path = branches.path(draw)
        remainder = path(torch.tensor(0.05)) - path(torch.tensor(0.0)) - 0.05 * coefficients[0]
    assert interval.contains(2 * remainder / 0.05**2, slack=1e-10).all()


def test_monte_carlo_and_float32():
    model, xs = mlp(0, [3, 5, 3]), inputs(2)
    chance = nt.verify(build_branches(model, xs, **NOISY), method="monte_carlo", budget=30_000)
    assert "Monte Carlo" in chance.method
    assert chance.verdict in ("holds", "undecided")
    single = mlp(0, [3, 5, 3]).float()
    for equal in (False, True):
        report = nt.verify(build_branches(single, inputs(2, equal=equal).float(), **NOISY))
        assert report.verdict == "holds", report
        assert report.settings["dtype"] == "float32"


def test_the_polynomial_is_close_to_the_loss_at_small_scales():
    model, xs = mlp(0, [3, 5, 3]), inputs(2, d=3)
    options = {"weights": WEIGHTS[2], "add_noise": 0.3, "noise": "rademacher"}
    terms = nt.terms(build_branches(model, xs, **options))
    for eps in (0.2, 0.1, 0.05):
        loss = nt.loss(build_branches(model, xs, **options), method="exact", eps=eps).value
        assert abs(loss - terms.polynomial(eps, 3)) < 0.2 * abs(terms.C3) * eps**3 + 1e-14


# --- records ----------------------------------------------------------------------------------------------------------


def test_parts_add_up_and_gradients_flow():
    model, xs = mlp(0, [3, 5, 3]), inputs(2)
    terms = nt.terms(build_branches(model, xs, layer="1", **NOISY), remainder=False)
    assert terms.C3 is None
    assert_close(terms.curvature + terms.residual, terms.S2, **EXACT)
    assert_close(terms.data + terms.additive + terms.multiplicative, terms.S2, **EXACT)
    assert set(terms.to_dict()) >= {"S0", "S1", "S2", "curvature", "residual"}
    weight = model[2].weight
    (slope,) = torch.autograd.grad(terms.S2, [weight])
    step = 1e-5 * randn(3, *weight.shape)
    moved = [
        nt.terms(build_branches(model, xs, layer="1", params={"2.weight": (weight + s * step).detach()}, **NOISY)).S2
        for s in (1, -1)
    ]
    assert_close((moved[0] - moved[1]) / 2, (slope * step).sum(), rtol=1e-6, atol=1e-12)


def test_layers_are_averaged():
    model, xs = mlp(0, [3, 5, 3]), inputs(2)
    terms = nt.terms(build_branches(model, xs, layer=["", "1"], **NOISY))
    assert isinstance(terms, StabilityTerms)
    assert list(terms.per_layer) == ["", "1"]
    report = nt.verify(build_branches(model, xs, layer=["", "1"], **NOISY))
    assert report.verdict == "holds", report


def test_a_convolutional_network_and_one_of_kinks():
    xs = torch.stack([randn(1, 2, 1, 6, 6), randn(1, 2, 1, 6, 6) + 0.2 * randn(2, 2, 1, 6, 6)])
    report = nt.verify(build_branches(small_cnn(0), xs, layer="4", add_noise=0.1))
    assert report.verdict == "holds", report
    kinked = nt.terms(build_branches(mlp(0, [3, 5, 3], "relu"), inputs(2), **NOISY), remainder=False)
    assert kinked.residual == 0


def test_report_names_the_loss_and_serialises():
    report = nt.verify(build_branches(mlp(0, [3, 5, 3]), inputs(3), weights=WEIGHTS[3], **NOISY))
    assert "of the stability loss at input: HOLDS" in str(report)
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["settings"]["branches"] == 3
    assert data["settings"]["weights"] == WEIGHTS[3]
    assert data["settings"]["shared_noise"] is False
    assert data["terms"]["S2"] == pytest.approx(float(report.terms.S2))
    mix = nt.verify(build_branches(mlp(0, [3, 5, 3]), inputs(2), torch.tensor([0, 1, 2, 0]), gamma=3.0))
    assert "of the NoisyMix loss" in str(mix)
    assert mix.settings["gamma"] == 3.0


def test_a_single_sample_has_no_partner():
    report = nt.verify(build_branches(mlp(0, [3, 5, 3]), inputs(2, n=1), **NOISY), eps=[0.1, 0.05, 0.02])
    assert (report.verdict, float(report.terms.R1)) == ("holds", 0.0)


def test_nothing_perturbed_is_refused():
    with pytest.raises(ValueError, match="Nothing is perturbed"):
        nt.verify(build_branches(mlp(0, [3, 5, 3]), inputs(2), alpha=0.0))


@pytest.mark.parametrize("options", [{"shared_noise": True, **NOISY}, {}], ids=["shared noise", "mixing"])
def test_branches_that_never_differ_have_nothing_to_verify(options):
    branches = build_branches(mlp(0, [3, 5, 3]), inputs(2, equal=True), **options)
    assert abs(nt.loss(branches, method="exact", quadrature=nt.Quadrature(rule="cubature-3")).value) < 1e-15
    with pytest.raises(ValueError, match="nothing tells the branches apart"):
        nt.verify(branches)
