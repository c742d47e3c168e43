"""The comparison of estimators: every way gives the same number, and a run keeps what it measured."""

import importlib.util
import json
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from nfm_theory.expansion.terms import problem_terms
from nfm_theory.losses.monte_carlo import CONTROL_VARIATES, monte_carlo_loss

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import control_variate
from benchmarks.estimators import arithmetic, guard, peers
from benchmarks.estimators.__main__ import main
from benchmarks.estimators.arithmetic import count_flops
from benchmarks.estimators.cases import SETTINGS, STANDARD, build_case
from benchmarks.estimators.method import Method
from benchmarks.estimators.methods import METHODS
from benchmarks.estimators.ours import CUBES, ours
from benchmarks.estimators.peer_packages import CollapsedTaylorMode, MissingPackage, linear_operator
from benchmarks.estimators.run import Options, Record, _Unit, measure_group, table

CASES = {name: build_case(name, dtype=torch.float64) for name in ("tiny", "tiny_cnn")}


def exact_terms(case):
    with torch.no_grad():
        return problem_terms(case.problem, remainder=False)


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


@pytest.fixture(params=["data", "additive", "merged"])
def reference(request, case):
    """Directions of a case with the exact `(R2, R3)` along them."""
    terms = exact_terms(case)
    data, add = torch.stack([terms.R2, terms.R3]), torch.stack([terms.R2_add, terms.R3_add])
    return {
        "data": (case.data_directions, data),
        "additive": ((case.additive_directions,), add),
        "merged": (case.merged_directions, data + add),
    }[request.param]


def package(name):
    return pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed")


# Control variate --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("control", ["none", "quadratic"])
@pytest.mark.parametrize("both_signs", [False, True])
def test_variances_are_those_of_the_estimator(case, control, both_signs):
    eps = torch.tensor([0.3, 0.1], dtype=case.x.dtype)
    run = monte_carlo_loss(
        case.problem, eps, samples=2_000, control_variate=control, antithetic_noise=both_signs,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    found = control_variate.variances(case.problem, eps, CONTROL_VARIATES[control], both_signs, 2_000)
    torch.testing.assert_close(found, run.stderr**2 * run.samples, rtol=1e-8, atol=0)


# Values -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantity", ["R2+R3", "R3"])
@pytest.mark.parametrize(
    ("way", "tolerance"),
    [
        (partial(peers.full_hessian, chunk=4), 1e-8),
        (partial(peers.output_hessians, chunk=4), 1e-8),
        (peers.double_backward, 1e-8),
        (partial(peers.jvp_of_grad, chunk=3), 1e-8),
        (partial(peers.jvp_of_grad, rewritten=True), 1e-8),
        (partial(peers.jvp_of_jvp, chunk=3), 1e-8),
        (peers.finite_differences, 1e-4),
    ],
    ids=[
        "vmap(hessian)",
        "vmap(hessian), every output",
        "double backward",
        "jvp(grad)",
        "exact_derivatives",
        "jvp(jvp)",
        "finite differences",
    ],
)
def test_peers_agree_with_the_exact_terms(case, reference, way, tolerance, quantity):
    sets, (gauss_newton, residual) = reference
    expected = residual if quantity == "R3" else gauss_newton + residual
    assert float(way(case, *sets, quantity=quantity)) == pytest.approx(float(expected), rel=tolerance)


@package("curvlinops")
@pytest.mark.parametrize("chunk", [None, 2])
def test_curvlinops_agrees_with_the_exact_terms(case, reference, chunk):
    sets, (gauss_newton, residual) = reference
    found = [float(linear_operator(case, *sets, quantity=q, chunk=chunk)) for q in ("R2", "R2+R3")]
    assert found == pytest.approx([float(gauss_newton), float(gauss_newton + residual)], rel=1e-8)


@package("jet")
def test_taylor_mode_agrees_with_the_exact_terms_or_names_what_it_lacks(case, reference):
    sets, expected = reference
    if case.name == "tiny_cnn":
        with pytest.raises(NotImplementedError, match=r"No jet rule for aten\.silu"):
            CollapsedTaylorMode(case)(*sets)
    else:
        torch.testing.assert_close(CollapsedTaylorMode(case)(*sets), expected, rtol=1e-8, atol=0)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "curvlinops", None)
    with pytest.raises(MissingPackage, match="not installed: curvlinops"):
        linear_operator(CASES["tiny"], CASES["tiny"].probes(1))


def test_third_derivatives_along_directions_agree_with_differences(case):
    directions = case.data_directions[0]
    found = next(method for method in ours(case) if method.quantity == CUBES).ready()()
    assert float(peers.jvp_of_jvp_of_jvp(case, directions, chunk=3)) == pytest.approx(float(found), rel=1e-9)
    g, total, step = case.problem.features, 0.0, 1e-2
    rows = torch.arange(len(g))
    with torch.no_grad():
        for v in directions:
            values = [case.problem.losses(g + k * step * v, rows).mean() for k in (-2, -1, 1, 2)]
            total += float(values[3] - 2 * values[2] + 2 * values[1] - values[0]) / (2 * step**3) / 6
    assert float(found) == pytest.approx(total, rel=1e-3)


def within_five_errors(samples, expected):
    return abs(float(samples.mean() - expected)) < 5 * float(samples.std() / len(samples) ** 0.5)


def test_stochastic_peers_have_the_right_mean(case):
    terms = exact_terms(case)
    assert within_five_errors(peers.monte_carlo(case, replicates=2000), terms.second)
    assert within_five_errors(peers.jacobian_projections(case, projections=400), terms.R2_add)
    assert within_five_errors(
        torch.stack([peers.jvp_of_grad(case, v[None] * 200**0.5) for v in case.probes(200)]), terms.R2 + terms.R3
    )


def test_training_peers_agree_in_value_and_gradient(case):
    probes = case.probes(2)
    first, second = (way(case, probes) for way in (peers.train_double_backward, peers.train_jvp_of_grad))
    torch.testing.assert_close(first, second, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(first[0], peers.double_backward(case, probes), rtol=1e-10, atol=0)
    parameters = list(case.trained.model.parameters())
    assert [g.shape for g in first[1:]] == [p.shape for p in parameters]
    # against a difference of penalty and loss in one direction of the parameters
    total = []
    for sign in (1, -1):
        with torch.no_grad():
            for p, g in zip(parameters, first[1:], strict=True):
                p.add_(g, alpha=sign * 1e-5)
        penalty = peers.train_double_backward(case, probes)[0]
        total.append(penalty + peers.mean_function(case.trained, "R2+R3")(case.x).detach())
        with torch.no_grad():
            for p, g in zip(parameters, first[1:], strict=True):
                p.sub_(g, alpha=sign * 1e-5)
    slope = float(total[0] - total[1]) / 2e-5
    assert slope == pytest.approx(sum(float(g.square().sum()) for g in first[1:]), rel=1e-6)


def test_gradient_peers_refuse_hidden_layers_and_unknown_quantities():
    hidden = build_case("tiny_hidden")
    with pytest.raises(NotImplementedError, match="perturb the input only"):
        peers.train_double_backward(hidden, hidden.probes(1))
    with pytest.raises(ValueError, match="expected 'R2\\+R3' or 'R3'"):
        peers.double_backward(hidden, hidden.probes(1), quantity="R1")


def test_our_methods_give_the_exact_terms(case):
    terms = exact_terms(case)
    data, add = terms.R2 + terms.R3, terms.R2_add + terms.R3_add
    expected = {
        "R2+R3, data, exact": data,
        "R2+R3, data + additive, exact": data + add,
        "R2, data, exact": terms.R2,
        "R2, data + additive, exact": terms.R2 + terms.R2_add,
        "R3, data, exact": terms.R3,
        "R3, data + additive, exact": terms.R3 + terms.R3_add,
        "all six exact": terms.second,
    }
    found = {method.quantity: method.ready()() for method in ours(case) if method.quantity in expected}
    assert set(expected) <= set(found)
    for quantity, value in expected.items():
        torch.testing.assert_close(found[quantity], value, rtol=1e-9, atol=0)


# Cases ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETTINGS)
def test_cases_are_reproducible_and_their_unit_is_the_head(name):
    case = build_case(name)
    if name in STANDARD and name != "mlp64":
        case = type(case)(case.name, case.setting, case.model, case.x[:2], case.y[:2])
    assert set(METHODS) == set(SETTINGS)
    assert torch.equal(build_case(name).x[:2], case.x[:2])
    with torch.no_grad():
        expected = case.problem.head(case.problem.features)
    torch.testing.assert_close(case.forward(), expected, rtol=1e-4, atol=1e-5)
    assert case.problem.layer == case.setting.layer
    assert all(g.shape == p.shape for g, p in zip(case.training_step(), case.model.parameters(), strict=True))


# The command ------------------------------------------------------------------------------------------------


def test_one_group_reports_what_failed_and_what_is_over_budget():
    case = CASES["tiny"]

    def fails():
        raise RuntimeError("no rule\n\nlong trace")

    methods = [
        Method("works", "R2", lambda: torch.tensor(2.0)),
        Method("fails", "R2", fails),
        Method("missing", "R2", prepare=partial(_raise, MissingPackage("not installed: x"))),
        Method("endless", "R2", fails, passes=1e12),
    ]
    cells = measure_group(case, _Unit.of(case, "value"), methods, Options(repeats=2, budget=0.5))
    assert [cell["method"] for cell in cells] == ["works", "fails", "missing", "endless"]
    assert cells[0]["value"] == 2
    assert cells[0]["repeats"] == 2
    assert cells[1]["skipped"] == "RuntimeError: no rule"
    assert cells[2]["skipped"] == "not installed: x"
    assert cells[3]["skipped"].startswith("over budget")
    text = table("tiny", cells)
    assert text.index("works") < text.index("not installed: x")


def _raise(error):
    raise error


def test_record_keeps_cells_and_refuses_another_machine(tmp_path):
    path, method = tmp_path / "record.json", Method("a", "R2", lambda: 0)
    about = {"machine": {"processor": "p"}, "versions": {}}
    record = Record(path, about)
    record.add({"case": "tiny", "quantity": "R2", "method": "a", "skipped": "over budget"})
    assert not Record(path, about).has("tiny", method)
    record.add({"case": "tiny", "quantity": "R2", "method": "a", "time": 1.0})
    again = Record(path, about)
    assert again.has("tiny", method)
    assert len(again.cells) == 1
    assert not Record(path, about, fresh=True).cells
    with pytest.raises(ValueError, match="another machine"):
        Record(path, {"machine": {"processor": "q"}, "versions": {}})


def test_quick_run_of_a_tiny_case_resumes(tmp_path, capsys):
    path = tmp_path / "tiny.json"
    command = ["--case", "tiny", "--quick", "--budget", "0.05", "--only", "probe", "--json", str(path)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    found = json.loads(path.read_text())
    assert found["machine"]["threads"] == 1
    measured = {cell["method"]: cell for cell in found["cells"] if cell["quantity"] == "R2+R3, 4 probes"}
    assert {"double backward, loop", "jvp(grad), vmap", "curvlinops, Hessian"} <= set(measured)
    assert all(name in printed for name in measured)
    values = [cell["value"] for cell in measured.values() if "value" in cell]
    assert values == pytest.approx([values[0]] * len(values), rel=1e-3)
    assert {cell["kind"] for cell in found["cells"]} == {"value", "gradient"}
    before = path.read_text()
    assert main([*command[:-2], "--only", "double backward", "--json", str(path)]) == 0
    kept = {(c["quantity"], c["method"]): c for c in json.loads(before)["cells"] if "time" in c}
    after = {(c["quantity"], c["method"]): c for c in json.loads(path.read_text())["cells"] if "time" in c}
    assert all(after[key] == kept[key] for key in kept)
    assert main([*command[:-2], "--only", "R2+R3, 4 probes / jvp(grad)", "--again", "--json", str(path)]) == 0
    again = {(c["quantity"], c["method"]): c for c in json.loads(path.read_text())["cells"] if "time" in c}
    assert [key for key in after if again[key] != after[key]] == [("R2+R3, 4 probes", "jvp(grad), vmap")]


# Arithmetic -------------------------------------------------------------------------------------------------


def test_operations_of_a_product_are_counted():
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    assert count_flops(lambda: a @ b) == 2 * 3 * 5 * 7
    assert count_flops(lambda: torch.func.vmap(lambda row: row @ b)(a)) == 2 * 3 * 5 * 7
    assert count_flops(lambda: a.exp()) == 0


def test_operations_of_attention_are_counted_however_it_is_computed():
    query, key, value = (torch.ones(2, 3, n, 8, requires_grad=True) for n in (5, 7, 7))
    attention = torch.nn.functional.scaled_dot_product_attention
    products = 2 * 2 * 3 * 5 * 7 * 8
    assert count_flops(lambda: torch.softmax(query @ key.mT, -1) @ value) == 2 * products
    assert count_flops(lambda: attention(query, key, value)) == 2 * products
    both = count_flops(lambda: torch.autograd.grad(attention(query, key, value).sum(), (query, key, value)))
    assert both == (2 + 5) * products  # the kernel computes the scores again


def test_arithmetic_is_added_to_what_was_measured(tmp_path, monkeypatch):
    case = CASES["tiny"]
    names = ("nfm_theory", "jvp(grad), vmap", "double backward, loop")
    cells = [{"case": "tiny", "quantity": "R2+R3, 4 probes", "method": n, "kind": "value", "time": 1.0} for n in names]
    skipped = {"case": "tiny", "quantity": "R2+R3, data, exact", "method": names[0], "kind": "value", "skipped": "why"}
    path = tmp_path / "costs.json"
    path.write_text(json.dumps({"cells": [*cells, skipped], "scaling": {}}))
    monkeypatch.setattr(sys, "argv", ["arithmetic", "--json", str(path)])
    arithmetic.main()
    found = json.loads(path.read_text())
    assert found["scaling"] == {}
    assert "flops" not in found["cells"][3]
    ours, vmapped, loop = (cell["flops"] for cell in found["cells"][:3])
    # A forward pass, the adjoint and four tangents are at most as much as seven passes; a double backward costs more
    assert 4 < ours <= 7
    assert ours < loop <= vmapped
    assert vmapped == pytest.approx(12, abs=1)  # forward, backward, and four times tangents of both
    assert len(case.problem.labels) == 6  # built now, so that building it is not counted
    assert count_flops(case.forward) == 2 * 6 * (5 * 8 + 8 * 3)


# The guard --------------------------------------------------------------------------------------------------

LIMIT = {"case": "mlp", "quantity": "R2", "method": "rows", "time": 4.0, "memory": 3.0}


@pytest.mark.parametrize(
    ("measured", "messages"),
    [
        ({"time": 3.9, "memory": 3.0}, []),
        ({"time": 5.9, "memory": 4.4}, []),
        ({"time": 6.1, "memory": 3.0}, ["mlp / R2 / rows: time 6.1 exceeds limit 4 x tolerance 1.5"]),
        ({"time": 1.0, "memory": 5.0}, ["mlp / R2 / rows: memory 5 exceeds limit 3 x tolerance 1.5"]),
        ({"skipped": "over budget"}, ["mlp / R2 / rows: not measured (over budget)"]),
    ],
)
def test_guard_names_what_got_worse(measured, messages, tmp_path, capsys):
    cell = {"case": "mlp", "quantity": "R2", "method": "rows"} | measured
    assert guard.violations([cell], [LIMIT], 1.5) == messages
    results, limits = tmp_path / "results.json", tmp_path / "limits.json"
    results.write_text(json.dumps({"cells": [cell]}))
    limits.write_text(json.dumps([LIMIT]))
    assert guard.main(["--limits", str(limits), "--results", str(results)]) == int(bool(messages))
    assert all(message in capsys.readouterr().err for message in messages)


def test_guard_misses_methods_that_are_gone():
    assert guard.violations([], [LIMIT], 1.5) == ["mlp / R2 / rows: not measured (no such method)"]


def test_committed_limits_name_methods_that_exist():
    limits = json.loads(guard.LIMITS.read_text())
    assert limits
    for case in {limit["case"] for limit in limits}:
        known = {(m.quantity, m.name) for m in METHODS[case](build_case(case))}
        assert {(limit["quantity"], limit["method"]) for limit in limits if limit["case"] == case} <= known


def test_guard_measures_anew(tmp_path, capsys):
    limits = tmp_path / "limits.json"
    name = {"case": "tiny", "quantity": "R2+R3, 4 probes", "method": "double backward, loop"}
    limits.write_text(json.dumps([name | {"time": 1e6, "memory": 1e6}]))
    assert guard.main(["--limits", str(limits)]) == 0
    assert "1 limits, 0 exceeded" in capsys.readouterr().out
