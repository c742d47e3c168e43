"""The report on a network: its parts against the functions behind them, its words, its page, and how it ends early."""

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from building import build_problem
from problems import mlp as trainable
from problems import randn
from torch import nn

import nfm_theory as nt
from nfm_theory.reporting import page, parts, plots
from nfm_theory.reporting.parts import PARTS, RADII, Task, cost, measure_margins, measure_robustness
from nfm_theory.reporting.words import PARAGRAPHS, joined, overview, percent


def mlp(*arguments):
    return trainable(*arguments).requires_grad_(False)


X, Y = randn(1, 6, 3), torch.tensor([0, 1, 2, 1, 0, 2])
LAW = nt.Law(add_noise=0.2, mult_noise=0.1)
BUDGET = "3000 passes"


def layers(model, names=("", "1"), y=Y, **options):
    return nt.Problem.at_layers(model, X, y, layers=names, law=options.pop("law", LAW), **options)


@pytest.fixture(scope="module")
def problems():
    model = mlp(0, [3, 5, 3])
    return layers(model, y=model(X).argmax(1))  # right decisions, so that there is something to attack


@pytest.fixture(scope="module")
def found(problems):
    return nt.report(problems, BUDGET, title="A small <network>")


# Numbers -------------------------------------------------------------------------------------------------------------


def test_every_part_is_there(found):
    assert [one.layer for one in found.layers] == ["", "1"]
    for one in found.layers:
        assert not one.missing
        assert all(getattr(one, part) is not None for part in PARTS)
    assert found["1"] is found.layers[1]
    with pytest.raises(KeyError, match=r"expected one of the layers \['', '1'\], got '2'"):
        found["2"]


def test_what_is_added_is_the_sum_of_the_terms(found, problems):
    for one, problem in zip(found.layers, problems, strict=True):
        with torch.no_grad():
            terms = nt.terms(problem, remainder=False)
        assert one.predicted == pytest.approx(float(terms.polynomial(1.0) - terms.standard), rel=1e-10)
        assert sum(one.shares.values()) == pytest.approx(1)
        largest = max(one.shares, key=lambda name: one.shares[name])
        assert abs(float(terms[largest])) == max(abs(float(terms[name])) for name in one.shares)
        size, error = one.added
        exact = float(nt.loss(problem, 1.0, "monte_carlo", samples=30_000, generator=torch.Generator().manual_seed(5)))
        assert abs(size + float(terms.standard) - exact) < 1.5 * error


def test_margins_against_loops(problems):
    m = measure_margins(problems[1])
    head, h = problems[1].head, problems[1].features
    for i in range(len(h)):
        jacobian = torch.func.jacrev(lambda u: head(u[None])[0])(h[i])
        scores = head(h[i][None])[0]
        own = int(problems[1].labels[i].argmax())
        others = [float(s) for k, s in enumerate(scores) if k != own]
        assert float(m.gap[i]) == pytest.approx(float(scores[own]) - max(others), rel=1e-10)
        assert float(m.spectral[i]) == pytest.approx(float(torch.linalg.matrix_norm(jacobian, 2)), rel=1e-8)
        assert float(m.size[i]) == pytest.approx(float(h[i].norm()))


def test_distances_are_lower_bounds_for_a_linear_head():
    model = mlp(3, [3, 4])
    y = model(X).argmax(1)
    m, weight = measure_margins(layers(model, [""], y)[0]), model[0].weight
    for k, i in enumerate(range(len(X))):
        scores = model(X[i])
        exact = min(
            float((scores[y[i]] - scores[j]) / (weight[y[i]] - weight[j]).norm()) for j in range(4) if j != y[i]
        )
        assert 0 < float(m.distance[k]) <= exact * (1 + 1e-12)


def test_a_single_output_has_its_exact_distance():
    model = mlp(3, [3, 1])
    problem = nt.Problem(model, X, (model(X)[:, 0] > 0).long(), law=LAW, loss="logistic")
    exact = model(X)[:, 0].abs() / model[0].weight.norm()
    torch.testing.assert_close(measure_margins(problem).distance, exact.detach())


def test_attacks_and_proofs_count_the_same_as_the_functions_behind_them(found, problems):
    for one, problem in zip(found.layers, problems, strict=True):
        a = one.attacks
        middle = float(one.margins.distance.median())
        assert a.radii == pytest.approx([part * middle for part in RADII])
        assert all(proved <= kept for proved, kept in zip(a.certified, a.attacked, strict=True))
        assert a.certified[0] >= a.certified[-1]
        for radius, proved in zip(a.radii, a.certified, strict=True):
            assert int(nt.adversarial.certify(problem, radius).robust.sum()) == proved


def test_a_network_without_a_certificate_is_attacked_alone():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = mlp(0, [3, 3, 3]), mlp(1, [3, 3])

        def forward(self, x):
            return self.last(x + self.first(x))

    model = Residual().double().eval()
    (problem,) = layers(model, [""], model(X).argmax(1))
    found = measure_robustness(Task(problem, 1000, 0.05, 0))
    assert found.certified is None
    assert "nn.Sequential" in found.method
    assert found.attacked[0] >= found.attacked[-1]
    report = nt.report(problem, BUDGET, parts=["attacks"])
    assert "There is no certificate: " in PARAGRAPHS["attacks"](report[""])


def test_the_same_seed_gives_the_same_report(problems):
    one, again, other = (
        nt.report(problems[1], "100 passes", generator, parts=["reach", "terms"]).to_dict()["layers"]
        for generator in (None, None, torch.Generator().manual_seed(1))
    )
    assert one == again
    assert one != other


def test_everything_is_json(found):
    record = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert record["layers"][0]["shares"] == pytest.approx(found[""].shares)
    assert record["num_samples"] == 6
    assert record["settings"]["law"].startswith("alpha = 1")


def test_the_plan_counts_what_is_asked_for(problems):
    task = Task(problems[0], 5000, 0.05, 0)
    assert {part: cost(task, part) > 0 for part in PARTS} == dict.fromkeys(PARTS, True)
    larger = Task(problems[0], 50_000, 0.05, 0)
    for part in ("reach", "bound", "verdict"):
        assert cost(larger, part) > 3 * cost(task, part)
    plan = nt.report(problems, "50 passes", parts=["margins"]).plan
    assert plan.steps == {"margins": sum(cost(Task(p, 300, 0.05, 0), "margins") for p in problems)}


def test_a_long_plan_is_printed_before_the_start(problems, capsys):
    with nt.options(progress=True):
        nt.report(problems, "50 passes", parts=["margins"])
    assert "Plan: up to about" in "".join(capsys.readouterr())


# What is missing ------------------------------------------------------------------------------------------------------


def test_what_the_law_or_the_labels_do_not_allow_is_missing_with_its_reason():
    model = mlp(0, [3, 5, 3])
    (noise,) = layers(model, [""], law=nt.Law(alpha=0, add_noise=0.1))
    found = nt.report(noise, BUDGET, parts=["bound", "terms"])[""]
    assert found.bound is None
    assert "the bound needs mixing" in found.missing["bound"]
    assert "the bound needs mixing" in PARAGRAPHS["bound"](found)
    assert found.missing["verdict"] == "it was not asked for"
    square = build_problem(model, X, randn(2, 6, 3), loss="square")
    found = nt.report(square, BUDGET, parts=["margins", "attacks"])[""]
    assert found.margins.gap is None
    assert "expected samples that are classified right" in found.missing["attacks"]
    assert "there are no margins" in PARAGRAPHS["margins"](found)


def test_an_interrupt_gives_what_is_known(problems, monkeypatch):
    def stop(task, known):
        raise KeyboardInterrupt

    monkeypatch.setitem(parts.MEASURES, "reach", stop)
    found = nt.report(problems, "50 passes")
    assert found.interrupted
    assert found[""].terms is not None
    assert found["1"].margins is not None
    assert found["1"].missing["reach"] == found["1"].missing["verdict"] == "the report was stopped before"
    assert "stopped before its end" in found.to_html()
    assert "stopped before its end" in str(found)


def test_an_interrupt_that_the_verification_took_ends_the_report_as_well(problems, found, monkeypatch):
    monkeypatch.setitem(parts.MEASURES, "verdict", lambda task, known: replace(found[""].verdict, interrupted=True))
    stopped = nt.report(problems, "50 passes", parts=["verdict"])
    assert stopped.interrupted
    assert stopped[""].verdict.interrupted
    assert stopped["1"].verdict is None


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"parts": ["term"]}, ValueError, "parts: expected one of"),
        ({"eps": 0.0}, ValueError, "eps: expected a finite number > 0"),
        ({"budget": "soon"}, ValueError, "budget: expected a number of evaluations"),
    ],
)
def test_bad_arguments(problems, arguments, error, words):
    with pytest.raises(error, match=words):
        nt.report(problems, **arguments)


def test_bad_problems(problems):
    with pytest.raises(TypeError, match=r"expected an nfm_theory\.Problem"):
        nt.report("model")
    with pytest.raises(ValueError, match="Nothing is perturbed"):
        nt.report(problems[0].with_law(nt.Law(alpha=0)))
    branches = nt.Branches(mlp(0, [3, 5, 3]), [X, X + 0.1], Y, law=LAW)
    with pytest.raises(TypeError, match="expected a Problem, got Branches"):
        nt.report(branches)


# Words ----------------------------------------------------------------------------------------------------------------


def test_words_follow_from_the_numbers(found):
    one = found[""]
    text = PARAGRAPHS["terms"](one)
    assert f"adds {one.predicted:.3g} to the loss" in text
    largest = max(one.shares, key=lambda name: one.shares[name])
    assert f"largest second-order term is {largest}" in text
    flipped = {name: replace(e, value=-e.value.abs()) for name, e in one.terms.estimates.items()}
    changed = replace(one, terms=replace(one.terms, estimates=flipped))
    assert "are negative: what is added lowers the loss" in PARAGRAPHS["terms"](changed)
    noisy = {name: replace(e, stderr=e.value.abs()) for name, e in one.terms.estimates.items()}
    assert "cannot be told from 0" in PARAGRAPHS["terms"](replace(one, terms=replace(one.terms, estimates=noisy)))
    assert "cannot be told from 0" not in text
    linear = replace(one, terms=replace(one.terms, piecewise_linear=True))
    assert "piecewise linear" in PARAGRAPHS["terms"](linear)


def test_words_on_the_reach_know_all_cases(found):
    one = found[""]
    near = replace(one, reach=replace(one.reach, radius={1: 0.1, 2: 0.25}))
    assert "up to ε = 0.25 (sampling allows" in PARAGRAPHS["reach"](near)
    far = replace(one, reach=replace(one.reach, radius={1: math.inf, 2: math.inf}))
    assert "at every scale tried" in PARAGRAPHS["reach"](far)
    nothing = replace(one.reach.loss, stderr=one.reach.loss.stderr + 10)
    assert "cannot be told from 0" in PARAGRAPHS["reach"](replace(one, reach=replace(one.reach, loss=nothing)))
    sure = replace(one, reach=replace(one.reach, loss=replace(one.reach.loss, stderr=0 * one.reach.loss.stderr)))
    expected = one.reach.polynomials[2][-1] - one.reach.standard
    assert f"says {expected:.3g}, which is {percent(expected / one.added[0])} of it" in PARAGRAPHS["reach"](sure)


def test_words_on_kinks_need_a_difference_that_sampling_does_not_explain(found):
    one, loss = found[""], found[""].reach.loss.value.tolist()
    for factor, stderr, words in ((1.2, 0.01, "loss is 20 % off"), (1.2, 0.1, "no difference is seen")):
        curve = replace(
            one.reach, linearised=[factor * value for value in loss],
            relative_stderr=one.reach.relative_stderr | {"linearised": [stderr] * len(loss)},
        )  # fmt: skip
        assert words in PARAGRAPHS["reach"](replace(one, reach=curve))
    assert "linear region" not in PARAGRAPHS["reach"](one)  # a smooth network has none


def test_a_relu_network_is_compared_with_its_linear_regions():
    (problem,) = layers(mlp(0, [3, 9, 3], "relu"), [""])
    found = nt.report(problem, "50 passes", parts=["reach"])[""]
    assert len(found.reach.linearised) == len(found.reach.eps)
    assert "linear region" in PARAGRAPHS["reach"](found)


def test_words_on_bound_and_verdict(found):
    one = found[""]
    assert one.bound.verdict in PARAGRAPHS["bound"](one)
    fine = tuple(replace(a, holds=True) for a in one.bound.assumptions)
    held = replace(one, bound=replace(one.bound, assumptions=fine))
    assert "All assumptions that the theorem needs hold here" in PARAGRAPHS["bound"](held)
    assert f"verdict {one.verdict.verdict}: " in PARAGRAPHS["verdict"](one)
    assert "Every term agrees with values of the loss" in PARAGRAPHS["verdict"](one)
    wrong = tuple(replace(w, measured=w.measured + 10) for w in one.verdict.evidence)
    off = replace(one, verdict=replace(one.verdict, verdict="refuted", evidence=wrong))
    assert "Every term agrees" not in PARAGRAPHS["verdict"](off)


def test_the_overview_compares_layers(found):
    most, least = sorted(found.layers, key=lambda one: -one.predicted)
    assert f"adds most at {most.title} ({most.predicted:.3g}) and least at {least.title}" in overview(found)[0]
    with_verdicts = {}
    for words in (("holds", "undecided"), ("holds", "holds"), ("refuted", "refuted")):
        pairs = zip(found.layers, words, strict=True)
        changed = tuple(replace(one, verdict=replace(one.verdict, verdict=word)) for one, word in pairs)
        with_verdicts[words] = overview(replace(found, layers=changed))
    assert "The verdict on the expansion is undecided at layer 1." in with_verdicts["holds", "undecided"]
    assert "The expansion holds at all 2 layers." in with_verdicts["holds", "holds"]
    assert "The verdict on the expansion is refuted at the input and layer 1." in with_verdicts["refuted", "refuted"]
    assert overview(replace(found, layers=found.layers[:1])) == []


def test_small_words():
    assert joined(["R2"]) == "R2"
    assert [percent(v) for v in (0.5, 0.0123, 1e-5)] == ["50 %", "1.2 %", "0.001 %"]


# The page -------------------------------------------------------------------------------------------------------------


class Reader(HTMLParser):
    """Open and closed tags, identifiers and what is referred to."""

    VOID = ("meta", "br", "link", "use", "path")

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.used, self.links, self.svgs = [], [], [], [], 0

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.svgs += tag == "svg"
        if "id" in values:
            self.ids.append(values["id"])
        for name, value in attrs:
            self.used += re.findall(r"url\(#([^)]+)\)", value or "")
            if name in ("href", "xlink:href", "src"):
                (self.used if value.startswith("#") else self.links).append(value.lstrip("#"))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def read(html):
    reader = Reader()
    reader.feed(html)
    assert not reader.open
    return reader


def test_the_page_stands_alone(found):
    html = found.to_html()
    reader = read(html)
    assert reader.svgs == 2 + 2 * len(PARTS)
    assert not reader.links
    assert len(set(reader.ids)) == len(reader.ids)
    assert set(reader.used) <= set(reader.ids)
    assert "A small &lt;network&gt;" in html
    assert "<network>" not in html
    assert "prefers-color-scheme: dark" in html
    assert 'name="viewport"' in html
    assert "#000000" not in html
    for part in PARTS:
        assert page.escape(PARAGRAPHS[part](found["1"])) in html


def test_the_page_does_without_matplotlib(found, monkeypatch):
    monkeypatch.setattr(page.importlib.util, "find_spec", lambda name: None)
    html = found.to_html()
    assert "<svg" not in html
    assert "pip install matplotlib" in html
    read(html)


def test_a_page_of_one_part_of_one_layer(problems):
    found = nt.report(problems[0], "50 passes", parts=["margins"])
    html = found.to_html()
    assert found._repr_html_() in html
    assert read(html).svgs == 1
    assert html.count("There is nothing here: it was not asked for.") == len(PARTS) - 1


def test_plots_leave_the_users_settings_alone(found):
    import matplotlib as mpl

    with mpl.rc_context({"text.color": "#123456", "font.size": 31}):
        svg = plots.draw(lambda ax: plots.plot_terms(found[""], ax), "words", "p")
        assert mpl.rcParams["font.size"] == 31
    assert "#123456" not in svg
    assert svg == plots.draw(lambda ax: plots.plot_terms(found[""], ax), "words", "p")


def test_the_text_has_every_paragraph(found):
    text = str(found)
    for one in found.layers:
        for part in PARTS:
            assert PARAGRAPHS[part](one) in text
