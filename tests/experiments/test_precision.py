"""bfloat16 where the processor has it, and float32 where it would only be imitated."""

from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from experiments import precision
from experiments.commands import app
from experiments.recipes import get_recipe
from experiments.record.files import read_lines
from experiments.record.ledger import read
from experiments.runner import Outcome, run_recipe
from experiments.studies import choice
from experiments.training import Execution

QUIET = Execution(device="cpu", progress=False, test_images=0)


def small(number_format):
    recipe = get_recipe("fashion-compact/nfm")
    training = replace(
        recipe.training, epochs=1, samples=64, precision=number_format,
        model_options=(("widths", (4, 4, 4)), ("stem", 4), ("in_channels", 1)),
    )  # fmt: skip
    evaluation = replace(recipe.evaluation, precision=number_format, images=50)
    return replace(recipe, training=training, suites=("clean",), evaluation=evaluation)


def run(folder, number_format, monkeypatch, *, has):
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: has)
    recipe, ledger = small(number_format), folder / "ledger.jsonl"
    outcome = run_recipe(recipe, 1, ledger=ledger, runs=folder / "runs", execution=QUIET)
    assert outcome.status == "done", outcome.message
    (line,) = read(ledger)
    return line


def test_without_instructions_for_bfloat16_a_recipe_is_computed_in_float32_and_says_so(tmp_path, monkeypatch):
    native = run(tmp_path / "a", "bfloat16", monkeypatch, has=True)
    fallback = run(tmp_path / "b", "bfloat16", monkeypatch, has=False)
    exact = run(tmp_path / "c", "float32", monkeypatch, has=False)
    assert fallback.hash == native.hash != exact.hash
    assert fallback.training["final_loss"] == exact.training["final_loss"] != native.training["final_loss"]
    assert fallback.metrics == exact.metrics
    assert fallback.training["computed_in"] == "float32"
    assert fallback.suite_settings == native.suite_settings | {"computed_in": "float32"}
    assert "computed_in" not in native.training.keys() | exact.training.keys() | exact.suite_settings.keys()


def test_a_gpu_is_taken_to_have_bfloat16(monkeypatch):
    assert precision.has_bfloat16("cuda:0")
    assert precision.has_bfloat16("cpu") == torch.ops.mkldnn._is_mkldnn_bf16_supported()
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: False)
    assert not precision.uses_autocast("bfloat16", "cpu")
    assert precision.computed_in("float32", "cpu") == {}


@pytest.mark.parametrize("has", [True, False])
def test_the_commands_tell_it_before_they_start(tmp_path, monkeypatch, has):
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: has)
    done = Outcome("name", 1, "done")
    monkeypatch.setattr("experiments.training_commands.run_recipe", lambda recipe, seed, **options: done)
    for recipe in ("fashion-compact/nfm", "digits/nfm"):
        arguments = ["train", recipe, "--device", "cpu", "--ledger", str(tmp_path / "l.jsonl"), "--runs", str(tmp_path)]
        told = precision.NOTICE in " ".join(CliRunner().invoke(app, arguments).output.split())
        assert told == (recipe.startswith("fashion") and not has)


# The choice of the settings ------------------------------------------------------------------------------------------


def test_a_candidate_is_measured_on_training_images_that_it_has_not_seen(tmp_path, monkeypatch):
    monkeypatch.setenv("NFM_RUNS", str(tmp_path / "runs"))
    seen = {}
    whole = choice.train
    monkeypatch.setattr(choice, "train", lambda training, source, **more: seen.update(
        count=len(source.labels), seed=more["seed"]
    ) or whole(training, source, **more))  # fmt: skip
    arguments = ["study", "choice", "--quick", "--workers", "1", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    (line,) = read_lines(tmp_path / "out" / choice.FILE)
    assert (line["samples"], line["held_out"], line["seed"]) == (256, 100, 0)
    assert seen == {"count": 256, "seed": 0}
    assert 0 <= line["accuracy"] <= 1


def test_the_candidates_leave_out_the_images_they_are_measured_on_and_the_recipe_is_one_of_them():
    for case in choice.cases():
        assert case.samples is None
        assert case.held_out == choice.HELD_OUT
        assert choice.SEED not in get_recipe(case.recipe).seeds
    for name, candidates in choice.CANDIDATES.items():
        training = get_recipe(name).training
        widths = dict(training.model_options).get("widths", choice.NARROW)
        assert (widths, training.epochs, training.batch_size, training.learning_rate) in candidates
    done = CliRunner().invoke(app, ["study", "choice", "--recipes", "digits/nfm"])
    assert done.exit_code == 2
