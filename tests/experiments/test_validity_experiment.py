"""Trained networks at toy size: records, checks against the tracked ones, and the words that are made of them."""

import copy
import json
import math

import pytest
from ledger_entries import shortened
from trained_records import TRAINED, trained_record
from typer.testing import CliRunner

from experiments.commands import app
from experiments.recipes import get_recipe
from experiments.record.files import RESULTS, read_lines
from experiments.studies import commands, validity, validity_networks
from experiments.studies import validity_summary as summary
from experiments.studies.recorded import compare, run_study
from experiments.studies.validity_networks import (
    LAWS,
    RECIPES,
    SMOOTH_LAYERS,
    SMOOTH_TRAININGS,
    cases,
    is_finished,
    prepare,
)
from nfm_theory.verification.error_curve import crossing

#: Noise has two signs; without noise there is one.
SOME_LAWS = {name: LAWS[name] for name in ("released", "mixing")}


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    folder = tmp_path_factory.mktemp("validity")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NFM_CACHE", str(folder / "cache"))
        patch.setattr(validity, "EPS", (0.1, 1.0))
        patch.setattr(validity, "BOUND_EPS", (1.0,))
        patch.setattr(validity, "BOUND_EVALUATIONS", 10)
        patch.setattr(validity, "LAWS", SOME_LAWS)
        patch.setattr(validity_networks, "get_recipe", lambda name: shortened(get_recipe(name), epochs=1))
        small = [c for c in cases(quick=True, runs=str(folder)) if c.layer in ("hidden1", "layer2")]
        patch.setattr(commands, "layer_cases", lambda recipes, **options: small)
        status = CliRunner().invoke(app, ["study", "validity", "--quick", "--workers", "1", "--out", str(folder)])
        records = read_lines(folder / "validity_trained.jsonl")
        again = run_study(validity.study(), small[-1:], out=folder / "again", tracked=folder)
    return status.exit_code, records, again


def test_a_quick_run_writes_valid_records_and_repeats_them(quick):
    status, records, again = quick
    assert (status, again) == (0, 0)
    assert [(r["model"], r["layer"]) for r in records[::2]] == [("digits_resnet", "layer2"), ("mlp", "hidden1")]
    assert [r["law"] for r in records] == list(SOME_LAWS) * 2
    for record in records:
        json.dumps(record, allow_nan=False)
        curve = record["curve"]
        for order in ("1", "2", "3", "4"):
            gaps = [abs(a - b) / a for a, b in zip(curve["loss"], curve["polynomials"][order], strict=True)]
            assert curve["relative_error"][order] == pytest.approx(gaps, rel=1e-3, abs=1e-5)
            wanted = crossing(curve["eps"], curve["relative_error"][order], 0.1)
            found = curve["radius"][order]
            assert (math.inf if found is None else found) == pytest.approx(wanted, rel=1e-3)
        assert (curve["linearised"] is None) == (record["model"] == "mlp") == record["smooth"]
        assert record["witness"]["exact"][0] == pytest.approx(curve["standard"], rel=1e-4)
        assert record["bound"]["sides"][-1]["eps"] == 1.0
        assert "homogeneity" in record["bound"]["failed"]
    assert summary.findings(records, [])["cases"] == str(len(records))


def test_the_main_job_has_every_network_and_eligible_layer():
    todo = cases()
    assert len(todo) == 3 * (len(RECIPES) + len(SMOOTH_LAYERS) * len(SMOOTH_TRAININGS))
    assert {(c.model, c.training) for c in todo} >= set(validity.SAMPLE)
    tracked = read_lines(RESULTS / validity.TRACKED)
    known = {(r["model"], r["training"], r["layer"], r["law"]) for r in tracked}
    assert known == {(c.model, c.training, c.layer, law) for c in todo for law in LAWS}
    assert validity.conclude(tracked) == (0, [])


def test_what_is_not_trained_is_refused_with_the_command(tmp_path):
    large = get_recipe("cifar10-preact/nfm")
    assert not is_finished(large, 1, tmp_path)
    with pytest.raises(FileNotFoundError, match="python -m experiments sweep"):
        prepare(cases([large], runs=str(tmp_path)))
    wrong = (["--recipes", "cifar10-preact/nfm", "--runs", str(tmp_path)], ["--paths", "1"])
    for arguments in wrong:
        assert CliRunner().invoke(app, ["study", "validity", *arguments]).exit_code == 2


def test_a_changed_record_is_a_contradiction():
    (file,) = validity.study().files
    new = copy.deepcopy(TRAINED)
    assert compare(file, new, TRAINED).contradictions == []
    new[0]["curve"]["relative_error"]["2"][-1] += 0.2
    new[1]["curve"]["radius"]["2"] *= 1.5
    new[2]["curve"]["radius"]["2"] *= 1.1
    found = compare(file, new, TRAINED)
    assert (len(found.contradictions), found.agreeing, found.same) == (2, len(new) - 2, len(new) - 3)
    assert compare(file, [trained_record("small_cnn", "nfm", "", "mixing")], new).unknown == 1
    new[3]["witness"]["miss"] = [0.0, -6.0]
    status, lines = validity.conclude(new)
    assert (status, len(lines)) == (1, 1)


def test_numbers_follow_the_records():
    found = summary.findings(TRAINED, [{"bound": [{"failed": [], "verdict": "certified"}]}])
    assert (found["networks"], found["layers"], found["cases"]) == ("6", "12", "24")
    assert [found[f"error_{p}"] for p in summary.ORDERS] == ["60", "30", "20", "15"]  # 0.6 / p
    assert (found["error_least"], found["error_most"], found["near"]) == ("30", "30", "0")
    assert (found["radius_least"], found["radius_most"], found["kinks"]) == ("0.30", "0.30", "20")
    assert (found["further"], found["witness"]) == ("0 of 8", "1.0")
    assert (found["made"], found["made_assumed"], found["made_certified"]) == ("1", "1", "1")
    better = copy.deepcopy(TRAINED)
    for r in better:
        r["curve"]["relative_error"]["2"][-1] = 0.05
        if r["training"] == "nfm":
            r["curve"]["radius"]["2"] = 0.6
    found = summary.findings(better, [])
    assert (found["near"], found["further"], found["times"]) == ("24", "8 of 8", "2.0")


def test_verdicts_are_named_for_what_they_are():
    open_ = trained_record("mlp", "nfm", "", "released", upper=3.0)
    attack = trained_record("digits_resnet", "nfm", "", "released")
    sure = trained_record("mlp", "baseline", "", "released", verdict="certified", upper=0.5)
    assert [summary.verdict(r) for r in (open_, attack, sure)] == ["undecided", "not refuted", "certified"]
    found = summary.findings([open_, attack, sure], [])
    names = ("certified", "refuted", "open", "refuted_below", "assumed")
    assert [found[name] for name in names] == ["1", "0", "2", "3", "0"]
