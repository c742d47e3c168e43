"""Attacks, certificates, margins and bounds of a `Problem`: what they need of it, and what it costs them."""

import inspect
import math
from dataclasses import FrozenInstanceError, fields, replace

import pytest
import torch
from problems import generator, mlp, randn, small_cnn
from torch import nn
from torch.testing import assert_close

import nfm_theory.adversarial.bounds as bounds_module
from nfm_theory import Branches, Law, Problem, loss, terms
from nfm_theory.adversarial import (
    Attack,
    BoundReport,
    Effort,
    NoisyMixBoundReport,
    bound,
    certify,
    flip_radius,
    pgd_attack,
    validity_radius,
    worst_case,
)
from nfm_theory.generalization import jacobian_norms, segment_margins
from nfm_theory.setting import branches as branches_module
from nfm_theory.setting import layers
from nfm_theory.setting import problem as problem_module

QUICK = Effort(steps=4, restarts=1)


def network():
    """Leaky ReLU without biases: positively homogeneous; layer "0" is the first linear one."""
    model = nn.Sequential(nn.Linear(3, 6, bias=False), nn.LeakyReLU(0.1), nn.Linear(6, 1, bias=False)).double().eval()
    for k, p in enumerate(model.parameters()):
        p.data = randn(k, *p.shape)
    return model.requires_grad_(False)


def data(model, n=8):
    x = randn(7, n // 2, 3)
    x = torch.cat([x, -x])
    return x, (model(x)[:, 0] > 0).long()


def setting(law=None, layer="", **options):
    model = network()
    return Problem(model, *data(model), layer=layer, law=law or Law(), loss="logistic", **options)


def two_branches(gamma=3.0, law=None, **options):
    model = network()
    x, y = data(model)
    return Branches(model, [x, 0.9 * x + 0.01], y, gamma=gamma, loss="logistic", law=law or Law(), **options)


# Effort -----------------------------------------------------------------------------------------------------


def test_every_effort_reaches_what_it_is_for(monkeypatch):
    seen = {}

    def watched(name, *wanted):
        original = getattr(bounds_module, name)

        def call(*args, **options):
            seen[name] = {w: options[w] for w in wanted if w in options}
            if "quadrature" in options:
                seen["max_rows"] = options["quadrature"].max_rows
            return original(*args, **options)

        monkeypatch.setattr(bounds_module, name, call)

    watched("ascend", "steps", "restarts")
    watched("steps_certificate", "slope_steps")
    watched("loss", "samples", "control_variate")
    effort = Effort(steps=3, restarts=5, slope_steps=2, samples=900, max_rows=7, control_variate="none")
    report = bound(setting(), 0.01, effort=effort)
    assert seen["ascend"] == {"steps": 3, "restarts": 5}
    assert seen["steps_certificate"] == {"slope_steps": 2}
    assert seen["loss"] == {"samples": 900, "control_variate": "none"}  # the rule of 7 rows is too small
    assert seen["max_rows"] == 7
    assert "quadrature" not in report.method
    assert report.nfm_error > 0
    assert {f.name for f in fields(Effort)} == set(inspect.signature(Effort).parameters)


def test_the_usual_effort_is_what_none_means():
    assert Effort() == Effort(40, 2, 0, 200_000, 500_000, "auto")
    given, usual = (bound(setting(), 0.01, effort=effort) for effort in (Effort(), None))
    assert given.slack == usual.slack
    with pytest.raises(FrozenInstanceError):
        Effort().steps = 3


@pytest.mark.parametrize(
    ("effort", "match"),
    [
        (Effort(steps=0), "steps and restarts: expected >= 1"),
        (Effort(restarts=0), "steps and restarts: expected >= 1"),
        (Effort(samples=1, max_rows=1), "samples"),
        (Effort(max_rows=1, control_variate="third"), "control_variate"),
    ],
)
def test_unfit_efforts_are_refused(effort, match):
    with pytest.raises(ValueError, match=match):
        bound(setting(), 0.01, effort=effort)


def test_more_slope_steps_never_loosen_the_right_side():
    model = mlp(3, [3, 8, 8, 1], "relu").requires_grad_(False)
    x = randn(4, 6, 3)
    problem = Problem(model, x, torch.arange(6) % 2, law=Law(), loss="logistic")
    rough, fine = (bound(problem, 1.0, certificate="crown", effort=replace(QUICK, slope_steps=n)) for n in (0, 10))
    assert fine.right_upper <= rough.right_upper + 1e-12
    assert "10 slope steps" in fine.method


# How often the network is cut ---------------------------------------------------------------------------------


@pytest.fixture
def cuts(monkeypatch):
    """Counts how often a network is cut at a layer."""
    calls, original = [], layers.split

    def counted(*args, **options):
        calls.append(options.get("layer", ""))
        return original(*args, **options)

    for module in (layers, problem_module):
        monkeypatch.setattr(module, "split", counted)
    assert not hasattr(branches_module, "split")
    return calls


def test_the_setting_is_built_once_however_many_scales_are_tried(cuts):
    problem = setting(layer="0")
    assert cuts == ["0"]
    found = validity_radius(problem, [0.01, 0.1, 1.0], 3, effort=QUICK)
    assert len(found.scales) >= 3
    assert cuts == ["0"]
    bound(problem, 0.1, effort=QUICK)
    worst_case(problem, 0.1, steps=2)
    flip_radius(problem, 0.1, steps=2)
    jacobian_norms(problem)
    assert cuts == ["0"]


def test_branches_are_cut_once(cuts):
    bound(two_branches(), 0.1, effort=QUICK)
    assert cuts == [""]


def test_what_does_not_depend_on_the_scale_is_measured_once(monkeypatch):
    calls, original = [], bounds_module.measure
    monkeypatch.setattr(bounds_module, "measure", lambda *args: calls.append(0) or original(*args))
    validity_radius(setting(), [0.01, 0.1, 1.0], 2, effort=QUICK)
    assert len(calls) == 1


def test_the_radius_of_validity_is_that_of_single_bounds():
    problem = setting()
    found = validity_radius(problem, [0.01, 0.3, 1.0], 2, effort=QUICK)
    assert found.scales == sorted(found.scales)
    assert found.verdicts == [bound(problem, e, effort=QUICK).verdict for e in found.scales]


# Seeds ------------------------------------------------------------------------------------------------------


def test_without_a_generator_a_bound_is_always_the_same():
    options = {"eps": 0.1, "method": "monte_carlo", "effort": replace(QUICK, samples=2000)}
    problem = setting(Law(add_noise=0.3))
    state = torch.get_rng_state()
    first, again = (bound(problem, **options) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.nfm_loss == again.nfm_loss
    one, same, other = (bound(problem, generator=generator(s), **options).nfm_loss for s in (1, 1, 2))
    assert one == same != other
    assert one != first.nfm_loss


# No law -----------------------------------------------------------------------------------------------------


def test_attacks_certificates_and_margins_need_no_law():
    model = network()
    x, y = data(model)
    bare, lawful = (Problem(model, x, y, layer="0", law=law, loss="logistic") for law in (None, Law(add_noise=1.0)))
    ends = x.roll(1, 0)
    for verb in (
        lambda p: pgd_attack(p, 0.3, steps=5, generator=generator(0)),
        lambda p: flip_radius(p, 2.0, steps=5, generator=generator(0)),
        lambda p: certify(p, 0.3),
        lambda p: worst_case(p, 0.3, steps=5, generator=generator(0)).certificate,
        lambda p: worst_case(p, 0.3, steps=5, generator=generator(0)).attack,
        jacobian_norms,
        lambda p: segment_margins(p, ends),
    ):
        ours, theirs = vars(verb(bare)), vars(verb(lawful))
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            same = torch.equal(value, theirs[name]) if isinstance(value, torch.Tensor) else value == theirs[name]
            assert same, name


@pytest.mark.parametrize("verb", [bound, lambda p: validity_radius(p, [0.1])])
def test_the_bound_needs_a_law(verb):
    model = network()
    with pytest.raises(ValueError, match=r"law: expected a law of mixing and noise; build the problem with law="):
        verb(Problem(model, *data(model), loss="logistic"))


def test_the_layer_of_the_problem_is_attacked_and_certified():
    """The same as the head alone at the features of the layer."""
    model = network()
    x, y = data(model)
    inside = Problem(model, x, y, layer="0", loss="logistic")
    alone = Problem(model[1:], model[0](x), y, loss="logistic")
    for verb in (
        lambda p: pgd_attack(p, 0.5, steps=10, restarts=1).losses,
        lambda p: flip_radius(p, 5.0, steps=10, restarts=1).radius,
        lambda p: certify(p, 0.5, method="enumeration").loss_upper,
        lambda p: jacobian_norms(p).spectral,
    ):
        assert_close(verb(inside), verb(alone), rtol=1e-9, atol=1e-11)
    both = worst_case(inside, 0.5, method="enumeration")
    assert_close(both.lower, both.upper, rtol=1e-4, atol=1e-6)


def test_the_loss_of_the_problem_is_attacked():
    model, x = small_cnn(3, activation="relu"), randn(4, 5, 1, 6, 6)
    y = torch.nn.functional.one_hot(torch.arange(5) % 3, 3).double()
    for name, value in (("cross_entropy", None), ("square", lambda u: (u.square() / 2 - y * u).sum(1))):
        found = pgd_attack(Problem(model, x, y, loss=name), 0.5, steps=5, restarts=1)
        assert isinstance(found, Attack)
        outputs = model(found.features)
        expected = value(outputs) if value else nn.functional.cross_entropy(outputs, y, reduction="none")
        assert_close(found.losses, expected.detach())


def test_without_a_radius_a_flip_is_searched_as_far_as_the_features_are_long():
    problem = setting()
    for norm, longest in (("l2", problem.features.norm(dim=1)), ("linf", problem.features.abs().amax(1))):
        found, same = (
            flip_radius(problem, reach, norm=norm, bisections=6, restarts=1, generator=generator(0)).radius
            for reach in (None, longest)
        )
        assert torch.equal(found, same)


# Margins ----------------------------------------------------------------------------------------------------


def test_norms_of_jacobians_are_those_of_dense_ones_behind_a_layer():
    model = mlp(2, [3, 5, 4], "tanh")
    problem = Problem(model, randn(1, 6, 3), torch.arange(6) % 4, layer="1")
    found = jacobian_norms(problem)
    rows = torch.func.vmap(torch.func.jacrev(lambda h: model[2](h)))(problem.features)
    assert_close(found.spectral, torch.linalg.matrix_norm(rows, 2).detach())
    assert_close(found.frobenius, rows.flatten(1).norm(dim=1).detach())


@pytest.mark.parametrize("layer", ["", "1"])
def test_segments_are_straight_at_the_layer_of_the_problem(layer):
    model = mlp(2, [3, 5, 4, 3], "tanh")
    x, y = randn(1, 6, 3), torch.arange(6) % 3
    problem, ends = Problem(model, x, y, layer=layer), randn(9, 6, 3)
    found = segment_margins(problem, ends, num_points=17)
    start, reach = problem.features, problem.encode(ends) - problem.features
    assert_close(found.length, reach.norm(dim=1).detach())
    largest = torch.zeros(6, dtype=torch.float64)
    for t in torch.linspace(0, 1, 17, dtype=torch.float64):
        at = Problem(problem.head, (start + t * reach).detach(), y)
        largest = torch.maximum(largest, jacobian_norms(at).spectral)
    assert_close(found.jacobian, largest)
    assert found.consistent.all()


def test_margins_need_hard_labels():
    model = mlp(2, [3, 5, 3], "tanh")
    soft = Problem(model, randn(1, 4, 3), torch.full((4, 3), 1 / 3, dtype=torch.float64))
    with pytest.raises(ValueError, match="labels: expected one class for each example"):
        segment_margins(soft, randn(2, 4, 3))
    assert jacobian_norms(soft).spectral.shape == (4,)


# Branches ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True])
def test_the_bound_of_branches_is_the_noisymix_bound(shared):
    law = Law(add_noise=0.2, noise="rademacher")
    branches = two_branches(law=law, weights=[0.3, 0.7], shared_noise=shared)
    effort = replace(QUICK, samples=20_000)
    found = bound(branches, 0.1, effort=effort)
    assert isinstance(found, NoisyMixBoundReport)
    clean = bound(branches.clean, 0.1, effort=effort)
    assert isinstance(clean, BoundReport)
    assert found.clean.slack == clean.slack
    assert (found.gamma, found.weights, found.shared_noise) == (3.0, (0.3, 0.7), shared)
    expansion = 3.0 * float(terms(branches.divergence).polynomial(0.1, 2))
    assert found.expansion == pytest.approx(expansion, rel=1e-12)
    assert found.right_upper == pytest.approx(clean.right_upper + expansion, rel=1e-12)
    exact = loss(branches, 0.1, "exact")
    assert abs(found.left - float(exact)) <= found.left_error + 1e-12


def test_the_clean_branch_is_the_problem_of_the_first_inputs():
    model = network()
    x, _ = data(model)
    assert torch.equal(two_branches().clean.features, x)
    plain = bound(setting(), 0.2, effort=QUICK)
    assert bound(two_branches(), 0.2, effort=QUICK).clean.slack == plain.slack


def test_branches_without_gamma_have_no_bound():
    model = network()
    x, _ = data(model)
    with pytest.raises(ValueError, match="set gamma="):
        bound(Branches(model, [x, 0.9 * x], law=Law()))


# Anything else ----------------------------------------------------------------------------------------------

VERBS = [
    lambda p: bound(p),
    lambda p: validity_radius(p),
    lambda p: pgd_attack(p, 0.1),
    lambda p: flip_radius(p),
    lambda p: certify(p, 0.1),
    lambda p: worst_case(p, 0.1),
    lambda p: jacobian_norms(p),
    lambda p: segment_margins(p, torch.zeros(8, 3)),
]


@pytest.mark.parametrize("verb", VERBS)
def test_a_model_or_a_list_is_no_problem(verb):
    for wrong, kind in ((network(), "Sequential"), ([setting()], "list"), (None, "NoneType")):
        with pytest.raises(TypeError, match=rf"problem: expected one nfm_theory\.Problem, got {kind}"):
            verb(wrong)


@pytest.mark.parametrize("verb", VERBS[1:])
def test_branches_are_no_problem_where_one_point_is_moved(verb):
    with pytest.raises(TypeError, match=r"expected a Problem, got Branches; `branches\.clean`"):
        verb(two_branches())


UNKNOWN = [
    (lambda p: pgd_attack(p, 0.1, norm="l_2"), "norm: expected one of"),
    (lambda p: certify(p, 0.1, method="crowm"), "did you mean 'crown'"),
    (lambda p: worst_case(p, 0.1, method="crowm"), "did you mean 'crown'"),
    (lambda p: bound(p, radius="sharpe"), "did you mean 'sharp'"),
    (lambda p: bound(p, method="exakt"), "did you mean 'exact'"),
    (lambda p: bound(p, certificate="crowm"), "did you mean 'crown'"),
    (lambda p: validity_radius(p, [0.1], certificate="nome"), "did you mean 'none'"),
]


@pytest.mark.parametrize(("verb", "match"), UNKNOWN)
def test_unknown_names_are_refused_with_a_suggestion(verb, match):
    with pytest.raises(ValueError, match=match):
        verb(setting())


def test_an_unknown_certificate_is_refused_before_anything_is_measured(monkeypatch):
    monkeypatch.setattr(bounds_module, "measure", lambda *args: pytest.fail("measured"))
    with pytest.raises(ValueError, match="certificate: expected one of"):
        bound(setting(), certificate="magic")


@pytest.mark.parametrize("eps", [0.0, -1.0, math.inf, math.nan])
def test_scales_are_positive_numbers(eps):
    with pytest.raises(ValueError, match="eps: expected a finite number > 0"):
        bound(setting(), eps)
    with pytest.raises(ValueError, match="scales: expected increasing numbers > 0"):
        validity_radius(setting(), [eps])
