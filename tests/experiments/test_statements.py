"""The index of statements: no empty cell, links to what exists, and verdicts that follow the records."""

import importlib.util
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from ledger_entries import entry, full_ledger
from tiers import slow
from typer.testing import CliRunner

from experiments import claims as statements
from experiments.claims import VOCABULARY, Records, Verdict, all_statements, count, index
from experiments.claims import evidence as records_module
from experiments.claims.check import Check
from experiments.claims.checks import CHECKS
from experiments.claims.comparisons import by_size
from experiments.claims.index import CLASSES, GROUPS, class_of, escape, num_judged, reference
from experiments.commands import app
from experiments.recipes import select_recipes
from experiments.record.files import write_lines
from experiments.tables import TABLES
from experiments.tables.claims_list import all_claims
from figures import fig_overview

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "book"
STATEMENTS = {statement.id: statement for statement in all_statements()}


def checks(outcome="holds", **others):
    """Every quick computation with a given outcome."""
    found = {name: lambda: Check(outcome, "a number") for name in CHECKS}
    return found | {name: (lambda value=value: Check(value, "another")) for name, value in others.items()}


def expansion(verdict="holds", *, layer="", scheme="mixup", outside=0, ratio=1.01):
    report = {
        "verdict": verdict, "coefficient_ratio": ratio, "observed_order": 2.98, "leading_order": 3,
        "pathwise": [64, outside], "predicted_coefficient": 2.0, "eps": [0.1, 0.05], "remainders": [0.0022, 0.00026],
    }  # fmt: skip
    return {"layer": layer, "scheme": scheme, "report": report}


def network(*sides, classes=2, mean=None):
    """A network of the bounds: verdicts by (ε, verdict, assumptions that fail)."""
    return {
        "classes": classes,
        "bound": [{"eps": eps, "verdict": verdict, "failed": failed} for eps, verdict, failed in sides],
        "points": {"paper": [0.1, 0.2], "sharp": [0.2, 0.2]},
        "validity": {} if mean is None else {"mean": {"certified": mean[0], "refuted": mean[1]}},
    }


def curve(radius, error):
    return {"curve": {"radius": {"2": radius}, "relative_error": {"2": [0.0, error]}, "tolerance": 0.1}}


def word(name, records):
    return STATEMENTS[name].verdict(records).word


EMPTY = Records(checks=checks())


def test_every_published_table_and_every_claim_has_a_row():
    assert set(TABLES) <= STATEMENTS.keys()
    assert {f"claim-{claim.id}" for claim in all_claims()} <= STATEMENTS.keys()
    assert len(STATEMENTS) == len(all_statements())
    assert {statements.group_of(s) for s in STATEMENTS.values()} == set(GROUPS)


@pytest.mark.parametrize("records", [EMPTY, Records(checks=checks("fails"))], ids=["nothing", "failed"])
def test_no_cell_is_empty(records):
    rows = index(records)
    assert len(rows) == len(STATEMENTS)
    for row in rows:
        assert all(cell.strip() for cell in row.cells())
        assert not any("\n" in cell for cell in row.cells())
        plain = row.to_dict()
        optional = ("qualifier", "size", "weakness", "seeds", "comparisons")
        assert all(plain[key] for key in plain if key not in optional), plain


@pytest.mark.parametrize("statement", STATEMENTS.values(), ids=STATEMENTS)
def test_links_and_evidence_exist(statement):
    page = BOOK / f"{statement.page}.md"
    text = page.read_text(encoding="utf-8")
    if statement.label:
        assert re.search(rf"(:label: {statement.label}$)|(\(({statement.label})\)=?$)", text, re.MULTILINE)
    for path in statement.evidence:
        assert (ROOT / path).exists(), path


def commands_of(group, prefix=()):
    """All commands by their names, those of groups included."""
    found = {}
    for name, command in group.commands.items():
        found[(*prefix, name)] = command
        if hasattr(command, "commands"):
            found |= commands_of(command, (*prefix, name))
    return found


COMMANDS = commands_of(typer.main.get_command(app))


@pytest.mark.parametrize("command", sorted({s.command for s in STATEMENTS.values()}))
def test_commands_parse(command):
    program, flag, module, *words = shlex.split(command)
    assert (program, flag) == ("python", "-m")
    assert importlib.util.find_spec(module)
    if module != "experiments":
        return
    path = tuple(words[:2]) if tuple(words[:2]) in COMMANDS else tuple(words[:1])
    assert path in COMMANDS
    rest = words[len(path) :]
    COMMANDS[path].make_context(path[-1], list(rest), resilient_parsing=False)
    if path == ("claims",):
        assert rest[0] in STATEMENTS
    if path == ("sweep",):
        assert select_recipes(rest[0])
    if "--table" in rest:
        assert rest[rest.index("--table") + 1] in TABLES


def test_quick_computations_decide():
    records = {outcome: Records(checks=checks(outcome)) for outcome in ("holds", "limits", "fails", "open")}
    named = {s.id for s in STATEMENTS.values() if s.verdict(EMPTY) != s.verdict(records["fails"])}
    assert len(named) >= len(CHECKS)
    for name in named:
        outcomes = {outcome: word(name, known) for outcome, known in records.items()}
        assert outcomes["holds"] in ("proved", "verified", "reproduced")
        assert (outcomes["limits"], outcomes["fails"]) == ("holds, within limits", "refuted")
        assert outcomes["open"] == "undecided"
    wrong = Records(checks=checks(**{"chain-rule": "fails"}))
    assert [r.statement.id for r in index(wrong) if r.verdict.word == "refuted"] == ["noisymix-proposition-1"]


def test_a_quick_computation_runs_once():
    calls = []

    def counted():
        calls.append(1)
        return Check("holds", "a number")

    records = Records(checks=checks() | {"expansion-terms": counted})
    assert word("nfm-theorem-1-terms", records) == word("mixup-lemma-terms", records) == "proved"
    assert calls == [1]


def test_how_many_are_judged_is_known_without_a_quick_computation():
    def carried_out():
        raise AssertionError("a quick computation was carried out")

    judged = [row for row in index(EMPTY) if row.verdict.word != "not run"]
    assert num_judged(Records(checks=dict.fromkeys(CHECKS, carried_out))) == len(judged) > len(CHECKS)


def test_expansions_decide():
    good = (expansion(), expansion(layer="hidden1", scheme="nfm"))
    assert word("nfm-theorem-1", replace(EMPTY, expansion=good)) == "verified"
    assert word("nfm-theorem-1", EMPTY) == "not run"
    bad = replace(EMPTY, expansion=(*good, expansion("refuted", layer="hidden1", scheme="nfm")))
    assert word("nfm-theorem-1", bad) == word("predicted-remainder", bad) == "refuted"
    assert word("mixup-lemma", bad) == word("noisymix-theorem-1", bad) == "verified"  # inputs only
    assert word("nfm-theorem-1", replace(EMPTY, expansion=(*good, expansion("undecided")))) == "undecided"
    assert word("lagrange", bad) == "verified"
    assert word("lagrange", replace(EMPTY, expansion=(expansion(outside=1),))) == "refuted"


def test_bounds_decide():
    holds = network((0.1, "certified", []), (1.0, "undecided", []))
    beyond = network((0.1, "refuted", ["homogeneity"]))
    assert word("nfm-theorem-2", replace(EMPTY, bounds=(holds, beyond))) == "verified"
    assert word("sharp-radius", replace(EMPTY, bounds=(holds, beyond))) == "holds, within limits"
    assert word("sharp-radius", replace(EMPTY, bounds=(holds,))) == "verified"
    large = network((0.1, "certified", []), (1.0, "refuted", []))
    assert word("nfm-theorem-2", replace(EMPTY, bounds=(large,))) == "holds, within limits"
    small = network((0.1, "refuted", []), (1.0, "certified", []))
    assert word("nfm-theorem-2", replace(EMPTY, bounds=(holds, small))) == "refuted"
    assert word("mixup-bound", replace(EMPTY, bounds=(holds,), bounds_cifar=(small,))) == "refuted"
    assert word("nfm-theorem-2", replace(EMPTY, bounds=(beyond,))) == "not run"


def test_the_radius_about_the_mean_decides():
    def records(*means):
        return replace(EMPTY, bounds=tuple(network((0.1, "certified", []), mean=mean) for mean in means))

    assert word("mean-radius", records((1.0, None))) == "verified"
    assert word("mean-radius", records((1.0, None), (0.0, 0.1))) == "holds, within limits"
    assert word("mean-radius", records((0.0, 0.1))) == "refuted"


def test_error_curves_and_benchmarks_decide():
    assert word("scale-of-training", replace(EMPTY, validity=(curve(None, 0.02),))) == "verified"
    assert word("scale-of-training", replace(EMPTY, validity=(curve(None, 0.02), curve(0.3, 0.7)))) == (
        "holds, within limits"
    )
    for violation, expected in ((1e-15, "verified"), (1e-3, "refuted")):
        found = {"certificates": {"found": {"networks": 10, "violation": violation}}}
        assert word("certificates", replace(EMPTY, benchmarks=found)) == expected
    for gain, expected in ((20.0, "verified"), (0.5, "refuted")):
        found = {"control_variate": {"tables": {"mlp": {"quadratic": {"effective_gain": [gain]}}}}}
        assert word("control-variate", replace(EMPTY, benchmarks=found)) == expected


def test_claims_on_tables_follow_the_ledger_and_the_print():
    def records(*gains):
        lines = [entry("digits/baseline", s, clean=0.8) for s, _ in enumerate(gains, 1)]
        return replace(
            EMPTY, entries=(*lines, *(entry("digits/nfm", s, clean=0.8 + g) for s, g in enumerate(gains, 1)))
        )

    def verdict(*gains):
        return STATEMENTS["claim-nfm-clean-1"].verdict(records(*gains)).text

    assert verdict(0.1, 0.11) == "reproduced (digits)"
    assert verdict(-0.1, -0.11) == "not reproduced (digits)"
    assert verdict(-0.1, 0.09) == "not reproduced (digits, within noise)"
    assert verdict(-0.1) == "not reproduced (digits, one seed)"
    assert word("claim-nfm-clean-1", EMPTY) == "not run"
    assert word("claim-nfm-star", EMPTY) == "not testable"
    assert word("claim-imagenet-p-6", EMPTY) == "contradicted in print"
    detail = STATEMENTS["claim-puzzlemix-cifar100-3"].verdict(EMPTY).detail
    assert "PuzzleMix 81.2, Manifold Mixup 81.8 (cifar100)" in detail
    assert word("nfm-table1", records(0.1, 0.11)) == "reproduced"
    assert word("nfm-table1", records(-0.1, -0.11)) == "not reproduced"
    assert word("nfm-table1", EMPTY) == "not run"


def test_with_a_full_ledger_every_claim_is_judged_or_says_why_not():
    full = replace(EMPTY, entries=tuple(full_ledger()))
    claims = {s.id: s.verdict(full) for s in STATEMENTS.values() if s.id.startswith("claim-")}
    open_ = {name: verdict.word for name, verdict in claims.items() if not verdict.seeds}
    # The rows of the toy problems are no paper recipes, and no number is printed for NFM with stronger noise.
    toys = dict.fromkeys(("claim-nfm-toy", "claim-noisymix-toy"), "not run")
    assert open_ == toys | {"claim-nfm-star": "not testable"}
    assert all("no two of the rows that it compares were run" in claims[name].detail for name in toys)
    decided = [verdict for name, verdict in claims.items() if name not in open_]
    assert {verdict.word for verdict in decided} == {"reproduced", "not reproduced"}
    assert {(verdict.size, verdict.seeds) for verdict in decided} == {("paper", 2)}
    assert "8 of 9 comparisons" in claims["claim-noisymix-imagenet-c"].detail
    for name in TABLES:
        if name not in ("nfm-figure-toy", "noisymix-figure4"):
            assert "paper: " in STATEMENTS[name].verdict(full).detail


def test_what_was_not_run_has_its_reason():
    """Data that is not here, a GPU, or no recipe at a smaller size."""
    claims = {s.id: s.verdict(EMPTY) for s in STATEMENTS.values() if s.id.startswith("claim-")}
    reasons = {name: verdict.detail for name, verdict in claims.items() if verdict.word == "not run"}
    assert all(re.search("ImageNet|GPU|there are recipes", detail) for detail in reasons.values()), reasons
    assert "ImageNet is not part of this project" in reasons["claim-noisymix-imagenet-c"]
    assert "start from networks trained on ImageNet" in reasons["claim-transfer-c"]
    assert "there are recipes cifar100-compact/" in reasons["claim-puzzlemix-long-2"]
    assert "there are recipes nfm-figure-toy/" in reasons["claim-nfm-toy"]
    assert "no two of the rows that it compares were run" in reasons["claim-nfm-white-1"]
    assert re.search("there are recipes cifar100-[a-z]+/", reasons["claim-nfm-white-2"])
    for name in ("noisymix-table6", "noisymix-figure-6"):
        assert "ImageNet is not part of this project" in STATEMENTS[name].verdict(EMPTY).detail
    assert "needs a GPU" in STATEMENTS["nfm-vit"].verdict(EMPTY).detail


def test_the_vision_transformers_have_recipes_and_a_verdict():
    lines = [
        entry(f"nfm-vit/{row}", seed, clean=0.9, **{"white_noise/0.1": value + 0.001 * seed})
        for row, value in (("baseline", 0.6), ("nfm", 0.7))
        for seed in (1, 2, 3)
    ]
    assert STATEMENTS["nfm-vit"].verdict(replace(EMPTY, entries=tuple(lines))).word == "reproduced"


def test_one_network_does_not_decide_over_several():
    several = [entry(f"digits/{s}", seed, clean=v) for s, v in (("baseline", 0.8), ("nfm", 0.9)) for seed in (1, 2)]
    alone = [entry("cifar10-compact/baseline", 1, clean=0.9), entry("cifar10-compact/nfm", 1, clean=0.8)]
    both = replace(EMPTY, entries=(*several, *alone))
    assert [one.size for one in by_size(both, "nfm-clean-1")] == ["compact", "digits"]
    assert STATEMENTS["claim-nfm-clean-1"].verdict(both).text == "reproduced (digits)"
    only = replace(EMPTY, entries=tuple(alone))
    assert STATEMENTS["claim-nfm-clean-1"].verdict(only).text == "not reproduced (compact, one seed)"


def test_orders_of_schemes_follow_the_ledger():
    def records(gains):
        lines = [entry("digits/baseline", s, "attacks", **{"fgsm_linf/0.1": 0.5}) for s, _ in enumerate(gains, 1)]
        lines += [entry("digits/mixup", s, "attacks", **{"fgsm_linf/0.1": 0.5 + g}) for s, g in enumerate(gains, 1)]
        return replace(EMPTY, entries=tuple(lines))

    texts = [STATEMENTS["mixup-attacks"].verdict(records(g)).text for g in ((0.1, 0.11), (-0.1, -0.11), (0.1, -0.09))]
    assert texts == ["reproduced (digits)", "not reproduced (digits)", "reproduced (digits, within noise)"]
    assert word("mixup-attacks", EMPTY) == "not run"


def test_taylor_nfm_is_held_against_nfm():
    def records(*gaps):
        lines = [entry("digits/nfm", s, clean=0.8) for s, _ in enumerate(gaps, 1)]
        lines += [entry("digits/taylor_nfm", s, clean=0.8 + g) for s, g in enumerate(gaps, 1)]
        return replace(EMPTY, entries=tuple(lines))

    assert word("nfm-second-order", records(0.1, 0.11)) == "not reproduced"
    assert word("nfm-second-order", records(0.01, -0.012)) == "reproduced"


def test_words_are_those_of_the_vocabulary():
    with pytest.raises(ValueError, match="word: expected"):
        Verdict("true", "a number")
    with pytest.raises(ValueError, match="detail: expected"):
        Verdict("verified", " ")
    with pytest.raises(ValueError, match="outcome: expected"):
        Check("true", "a number")
    with pytest.raises(ValueError, match="words is empty"):
        replace(STATEMENTS["nfm-theorem-1"], words="")
    assert {name for names in CLASSES.values() for name in names} == set(VOCABULARY)
    for name in VOCABULARY:
        assert class_of(Verdict(name, "a number")) in CLASSES


def test_only_reasons_are_typed():
    typed = [s.id for s in STATEMENTS.values() if s.verdict.__qualname__.startswith("not_run.")]
    assert typed == []


def test_cells_of_a_table_are_escaped_outside_formulas():
    assert escape(r"a|b_c $|x|_2$") == r"a\|b\_c $\vert x\vert _2$"


@pytest.fixture(scope="module")
def real():
    return statements.load_records()


def test_the_real_records_are_read(real):
    assert word("nfm-theorem-1", real) == "verified"
    assert len(real.entries) > 500
    assert statements.load_records(ROOT / "nowhere", ROOT / "nowhere").expansion == ()


@pytest.mark.parametrize(
    "name", ["telescoping", "partners", "rademacher-two-layer", *slow(["unmixing", "equal-branches", "slack"])]
)
def test_quick_computations_hold(name):
    found = CHECKS[name]()
    assert found.outcome == "holds", found.detail


def test_the_bound_of_logistic_regression_is_about_small_scales():
    found = CHECKS["linear-bound"]()
    assert found.outcome == "limits"
    assert "±3 of a line: certified at ε = 0.01, refuted at ε = 0.1" in found.detail
    assert "assumptions that fail: none" in found.detail


def test_a_statement_links_to_its_place_on_the_page():
    def link(name):
        return reference(STATEMENTS[name])

    assert link("claim-nfm-white-1") == "{ref}`experiments-claims`"
    assert link("mixup-bound-linear") == "{prf:ref}`thm-adversarial-bound`"
    assert link("mixup-bound") == "{doc}`bound` {eq}`eq-adversarial-bound`"
    assert link("nfm-second-order") == "{doc}`second_order`"


def test_the_command_prints_and_writes_the_index(monkeypatch, tmp_path, real):
    monkeypatch.setattr(records_module, "CHECKS", checks())
    monkeypatch.setattr(statements, "load_records", lambda **_: real)
    path = tmp_path / "claims.json"
    run = CliRunner().invoke(app, ["claims", "--json", str(path), "--paper", "nfm"])
    assert run.exit_code == 0, run.output
    found = json.loads(path.read_text(encoding="utf-8"))
    assert f"{len(found)} statements" in run.output
    assert {one["id"] for one in found} == {s.id for s in STATEMENTS.values() if s.paper == "nfm"}
    assert {one["verdict"] for one in found} <= set(VOCABULARY)
    assert {one["weakness"] for one in found} <= {"", "within noise", "one seed", "ceiling"}
    assert {
        "id",
        "group",
        "statement",
        "verdict",
        "weakness",
        "size",
        "seeds",
        "evidence",
        "comparisons",
        "command",
    } <= {*found[0]}
    some = [one for one in found if one["id"] == "claim-nfm-white-1"]
    assert {pair["row"] for one in some for pair in one["comparisons"]} <= {"nfm"}
    printed = CliRunner().invoke(app, ["claims", "--json", "-", "--paper", "nfm"])
    assert json.loads(printed.output) == found
    table = CliRunner().invoke(app, ["claims", "nfm-unmixing"])
    assert table.exit_code == 0
    assert "NFM, theory: 1 proved, verified or reproduced" in table.output
    assert CliRunner().invoke(app, ["claims", "nothing-like-it"]).exit_code == 2
    assert CliRunner().invoke(app, ["claims", "--paper", "nmf"]).exit_code == 2


def test_the_overview_shows_counts():
    rows = index(EMPTY)
    figure = fig_overview.draw(count(rows))
    (lower,) = figure.axes
    assert [text.get_text() for text in lower.get_yticklabels()] == list(count(rows))
    ends = [bar.get_x() + bar.get_width() for bar in lower.patches]
    assert max(ends) == pytest.approx(100)
    shown = sum(int(text.get_text()) for text in lower.texts)
    small = sum(n for c in count(rows).values() for n in c.values() if 100 * n / sum(c.values()) <= 5)
    assert shown + small == len(rows)
    assert figure.get_figwidth() <= 5.5  # a phone shows it without shrinking the text too far


def test_the_overview_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(records_module, "CHECKS", checks())
    (tmp_path / "results").mkdir()
    write_lines(tmp_path / "results" / "expansion.jsonl", [expansion()])
    written = fig_overview.make(tmp_path / "out", tmp_path / "results")
    assert {path.name for path in written} == {"overview.svg", "overview.png"}
    again = (tmp_path / "out" / "overview.svg").read_bytes()
    fig_overview.make(tmp_path / "out", tmp_path / "results")
    assert (tmp_path / "out" / "overview.svg").read_bytes() == again
