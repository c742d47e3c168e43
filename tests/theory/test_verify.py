import copy
import functools
import json
from dataclasses import replace

import matplotlib as mpl
import pytest
import torch
from building import build_problem, parted
from hypothesis import given
from hypothesis import strategies as st
from judging import judging
from problems import mlp, preact_resnet18, randn, tiny_transformer
from strategies import settings_of_the_theory
from tiers import random_cases

import nfm_theory as nt
from nfm_theory.verification.report import ORDER_TOLERANCE, RATIO_TOLERANCE

mpl.use("agg")
MODEL, X, Y = mlp(0, [3, 6, 6, 4]), randn(1, 6, 3), torch.tensor([0, 1, 2, 3, 1, 0])
NOISY = {"add_noise": 0.3, "mult_noise": 0.4}
SCHEMES = {"mixup": {}, "noise": {"alpha": 0.0, **NOISY}, "nfm": NOISY, "released": {"noise": "released", **NOISY}}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("layer", ["", "1", "3"])
def test_the_expansion_holds_with_the_predicted_coefficient(scheme, layer):
    report = nt.verify(build_problem(MODEL, X, Y, layer=layer, **SCHEMES[scheme]))
    assert report.verdict == "holds", report
    assert report.leading_order == (4 if scheme == "noise" else 3)
    assert abs(report.observed_order - report.leading_order) <= ORDER_TOLERANCE
    assert abs(report.coefficient_ratio - 1) <= RATIO_TOLERANCE
    assert report.pathwise[0] > 0
    assert report.pathwise[1] == 0


@random_cases(8, 40, given(settings_of_the_theory(), st.integers(0, 3)))
def test_no_network_of_the_theory_is_refuted(case, order):
    model, x, y, options = case
    if options["alpha"] * 0 == 0 and not (options["add_noise"] or options["mult_noise"]):
        options["alpha"] = 1.0
    report = nt.verify(build_problem(model, x, y, **options), order=order, budget=100_000)
    assert report.verdict != "refuted", report
    if report.verdict == "undecided":  # rounding, a next coefficient that dominates, or a budget that is too small
        assert any(word in report.reason for word in ("dominates", "fewer than three", "raise the budget"))


@pytest.mark.parametrize("order", [0, 1, 2, 3, 4])
def test_any_order(order):
    report = nt.verify(build_problem(MODEL, X, Y, layer="1"), order=order)
    assert report.verdict == "holds", report
    assert report.leading_order == order + 1


@functools.cache
def evidence():
    return judging(build_problem(MODEL, X, Y, **NOISY), [0.1, 0.05, 0.02])


@pytest.mark.parametrize("name", ["", "R1", "R2", "R3", "R2_add", "R3_add", "R2_mult", "R3_mult", "C3"])
def test_a_term_one_percent_off_is_refuted(name):
    right, judge = evidence()
    report = judge(replace(right.terms, **({name: getattr(right.terms, name) * 1.01} if name else {})))
    assert report.verdict == ("refuted" if name else "holds")
    assert not name or f"eps^{ {'R1': 1, 'C3': 3}.get(name, 2) }" in report.reason


def test_a_wrong_term_also_shows_in_the_order_of_the_remainder():
    terms = nt.terms(build_problem(MODEL, X, Y, **NOISY))
    eps = [0.001 / 2**k for k in range(6)]
    report = nt.verify(build_problem(MODEL, X, Y, **NOISY), eps=eps, terms=replace(terms, R2=terms.R2 * 1.01))
    assert report.observed_order == pytest.approx(2.0, abs=0.1)


def test_monte_carlo_verifies_what_no_grid_can():
    report = nt.verify(build_problem(MODEL, X, Y, layer="1", **NOISY), method="monte_carlo", budget=300_000)
    assert "Monte Carlo" in report.method
    assert report.verdict in ("holds", "undecided")
    assert abs(report.coefficient_ratio - 1) <= RATIO_TOLERANCE + 5 * report.stderr[-1] / abs(report.remainders[-1])
    terms = nt.terms(build_problem(MODEL, X, Y, layer="1", **NOISY))
    wrong = replace(terms, R2=terms.R2 * 1.5)
    problem = build_problem(MODEL, X, Y, layer="1", **NOISY)
    assert nt.verify(problem, method="monte_carlo", budget=300_000, terms=wrong).verdict == "refuted"


def test_too_few_samples_are_undecided_and_say_so():
    report = nt.verify(build_problem(MODEL, X, Y, **NOISY), method="monte_carlo", budget=1_000)
    assert report.verdict == "undecided"
    assert "raise the budget" in report.reason
    assert report.usable.count(True) <= len(report.eps)


def test_auto_turns_to_monte_carlo_where_no_rule_fits_and_exact_refuses():
    problem = build_problem(MODEL, X, Y, **NOISY)
    assert "remainders along draws" in str(nt.verify(problem, budget=1_000).plan)
    with pytest.raises(nt.GridTooLargeError):
        nt.verify(problem, budget=1_000, method="exact")


def test_float32_verifies_by_the_integral_form():
    model = mlp(0, [3, 6, 6, 4]).float()
    report = nt.verify(build_problem(model, X.float(), Y, **NOISY))
    assert report.verdict == "holds", report
    assert report.settings["dtype"] == "float32"
    double = nt.verify(build_problem(MODEL, X, Y, **NOISY), remainder_form="integral", eps=report.eps)
    for single, reference in zip(report.remainders, double.remainders, strict=True):
        assert single == pytest.approx(reference, rel=1e-4)
    wrong = nt.terms(build_problem(model, X.float(), Y, **NOISY))
    wrong = replace(wrong, R2=wrong.R2 * 1.01)
    assert nt.verify(build_problem(model, X.float(), Y, **NOISY), terms=wrong).verdict == "refuted"


def test_layers_are_averaged():
    report = nt.verify(build_problem(MODEL, X, Y, layer=["", "1"], **NOISY))
    assert report.verdict == "holds"
    assert report.layer == ("", "1")
    assert list(report.terms.per_layer) == ["", "1"]


@pytest.mark.parametrize(
    ("model", "x", "layer"),
    [(preact_resnet18(0), randn(1, 3, 3, 4, 4), "layer4"), (tiny_transformer(0), randn(1, 4, 3, 4), "blocks.0")],
    ids=["resnet", "transformer"],
)
def test_real_architectures(model, x, layer):
    report = nt.verify(build_problem(model, x, torch.arange(len(x)) % 3, layer=layer, add_noise=0.1))
    assert report.verdict == "holds", report


def test_a_kink_is_not_called_smooth():
    head = lambda h: h.abs() @ torch.ones(3, 2, dtype=torch.float64)  # noqa: E731
    kinked = nt.verify(build_problem(head, X - X, Y % 2, alpha=0.0, add_noise=1.0, noise="uniform"))
    assert kinked.verdict in ("refuted", "undecided")


def test_report_prints_plots_and_serialises(tmp_path):
    report = nt.verify(build_problem(MODEL, X, Y, layer="1", **NOISY))
    text = str(report)
    for part in ("HOLDS", "observed order", "coefficient ratio", "predicted remainder", "ratio to C3 eps^3"):
        assert part in text
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["verdict"] == "holds"
    assert data["terms"]["R1"] == pytest.approx(float(report.terms.R1))
    ax = report.plot()
    assert len(ax.get_lines()) >= 2
    ax.figure.savefig(tmp_path / "plot.png")
    empty = nt.verify(build_problem(MODEL, X, Y, **NOISY), method="monte_carlo", budget=600, eps=[1e-9, 1e-10])
    assert empty.verdict == "undecided"
    assert json.loads(json.dumps(empty.to_dict(), allow_nan=False))["coefficient_ratio"] is None
    assert "UNDECIDED" in str(empty)
    empty.plot()
    mpl.pyplot.close("all")


BAD = [
    ({"method": "guess"}, "method: expected"),
    ({"remainder_form": "guess"}, "remainder_form: expected"),
    ({"order": -1}, "order: expected >= 0"),
    ({"eps": []}, "eps: expected positive"),
    ({"eps": [0.1, -0.1]}, "eps: expected positive"),
    ({"alpha": 0.0}, "Nothing is perturbed"),
    ({"eps": "0.1"}, "eps: expected positive finite numbers, got '0.1'"),
    ({"method": "monte_carlo", "budget": 10}, "budget: expected at least 100 draws of each"),
]


@pytest.mark.parametrize(("options", "match"), BAD)
def test_bad_requests_say_what_to_do(options, match):
    own, verb = parted(options)
    with pytest.raises(ValueError, match=match):
        nt.verify(build_problem(MODEL, X, Y, **own), **verb)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"R2": "0.1"}, TypeError, "terms.R2: expected a number or a tensor, got str"),
        ({"R3_add": torch.ones(2)}, ValueError, r"terms.R3_add: expected one number, .* shape \(2,\)"),
        ({"C3": float("nan")}, ValueError, "terms.C3: expected a finite number, got nan"),
    ],
)
def test_given_terms_are_numbers(change, error, match):
    problem = build_problem(MODEL, X, Y, layer="1", add_noise=0.3)
    right = nt.terms(problem, remainder=True)
    with pytest.raises(error, match=match):
        nt.verify(problem, terms=replace(right, **change))
    with pytest.raises(TypeError, match=r"terms: expected TaylorTerms, .* got dict"):
        nt.verify(problem, terms=right.to_dict())


@pytest.mark.parametrize(
    ("law", "change"),
    [
        (nt.Law(), {"R2_add": 0.01, "R3_add": -0.01}),
        (nt.Law(add_noise=0.3), {"R2_mult": 0.01, "R3_mult": -0.01}),
        (nt.Law(alpha=0, add_noise=0.3), {"R2": 0.01, "R3": -0.01}),
        (nt.Law(alpha=0, add_noise=0.3), {"C3": 0.01}),
    ],
)
def test_a_term_without_its_source_is_refuted_even_if_the_sum_is_right(law, change):
    problem = nt.Problem(MODEL, X, Y, law=law)
    report = nt.verify(problem, eps=[0.1, 0.05, 0.02], terms=replace(nt.terms(problem), **change))
    assert (report.verdict, report.reason.split()[0]) == ("refuted", next(iter(change))), report


def test_given_terms_may_be_plain_floats():
    problem = build_problem(MODEL, X, Y, layer="1", add_noise=0.3)
    right = nt.terms(problem, remainder=True)
    assert nt.verify(problem, terms=replace(right, R2=float(right.R2.detach()))).verdict == "holds"
    assert nt.verify(problem, terms=lambda _: replace(right, R2=1.01 * float(right.R2.detach()))).verdict == "refuted"


def test_given_terms_may_have_the_rounding_of_their_own_precision():
    """Terms that were computed in float32 are right for a float64 problem, but a thousandth is no rounding."""
    problem = build_problem(MODEL, X, Y, layer="1", **NOISY)
    single = nt.terms(build_problem(copy.deepcopy(MODEL).float(), X.float(), Y, layer="1", **NOISY))
    assert single.R1.detach().double() != nt.terms(problem).R1.detach()
    assert nt.verify(problem, terms=single).verdict == "holds"
    for name in ("R1", "R2", "R2_add", "R3_mult"):
        wrong = replace(single, **{name: 1.001 * single[name]})
        report = nt.verify(problem, eps=[0.1, 0.05, 0.02], terms=wrong)
        assert (report.verdict, report.reason.split()[0]) == ("refuted", name), report
    whole = replace(nt.terms(problem), R3_mult=torch.tensor(1))
    assert nt.verify(problem, eps=[0.1, 0.05, 0.02], terms=whole).verdict == "refuted"


def test_observed_order_needs_two_points():
    assert nt.observed_order([0.1], [1.0]) != nt.observed_order([0.1], [1.0])


def test_error_curve_finds_where_the_expansion_stops_being_good():
    curve = nt.error_curve(build_problem(MODEL, X, Y), max_rows=10_000)
    assert "deterministic" in curve.loss.method
    for order in (1, 2, 3):
        errors = curve.relative_error(order)
        assert errors[0] < 1e-3
        if curve.radius[order] <= 1:
            later = [e for eps, e in zip(curve.eps, errors, strict=True) if eps <= curve.radius[order]]
            assert max(later) <= 0.1
    strong = nt.error_curve(build_problem(MODEL, X, Y, add_noise=50.0), samples=20_000, max_rows=1_000)
    assert "Monte Carlo" in strong.loss.method
    assert strong.radius[2] < 1
    data = json.loads(json.dumps(strong.to_dict(), allow_nan=False))
    assert data["radius"]["2"] == strong.radius[2]
    with pytest.raises(ValueError, match="increasing positive"):
        nt.error_curve(build_problem(MODEL, X, Y), eps=[0.5, 0.1])


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_small_losses_of_large_logits_are_not_mistaken_for_wrong_terms(scale):
    model = torch.nn.Sequential(mlp(0, [3, 6, 3]), torch.nn.Linear(3, 3, bias=False).double())
    model[1].weight = torch.nn.Parameter(scale * torch.eye(3, dtype=torch.float64))
    labels = model(X).argmax(-1)
    report = nt.verify(build_problem(model.eval(), X, labels), generator=torch.Generator().manual_seed(3))
    assert report.verdict == "holds", report
    assert report.pathwise[1] == 0
