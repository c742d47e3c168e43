"""What a run leaves besides its results: the reader's own ledger, tracebacks, the test accuracy, TensorBoard."""

import json
import sys
import types
from dataclasses import replace

import pytest
import torch
from ledger_entries import comparable, entry, shortened
from typer.testing import CliRunner

from experiments import commands, runner
from experiments.commands import app
from experiments.recipes import get_recipe
from experiments.record.ledger import LEDGER, append, read, read_together
from experiments.runner import FAILED, failures_file, own_ledger, run_recipe
from experiments.training import DivergedError, Execution, run_folder

TOY = shortened(get_recipe("nfm-figure-toy/nfm"), epochs=3)
DIGITS = replace(shortened(get_recipe("digits/nfm"), epochs=2, samples=128), suites=("clean",))
QUIET = Execution(device="cpu", progress=False)


def run(folder, recipe=TOY, seed=1, **changes):
    execution = Execution(device="cpu", progress=False, **changes)
    return run_recipe(recipe, seed, ledger=folder / "l.jsonl", runs=folder / "runs", execution=execution)


def log(folder, recipe=TOY):
    text = (run_folder(folder / "runs", recipe.training, 1) / "log.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


# The reader's ledger


def test_the_readers_ledger_is_not_the_tracked_one(tmp_path, monkeypatch):
    monkeypatch.delenv("NFM_LEDGER")
    monkeypatch.setenv("NFM_CACHE", str(tmp_path))
    assert own_ledger() == tmp_path / "experiments.jsonl" != LEDGER
    monkeypatch.setenv("NFM_LEDGER", str(tmp_path / "mine.jsonl"))
    assert own_ledger() == tmp_path / "mine.jsonl"
    before = LEDGER.read_bytes()
    assert run_recipe(TOY, 1, runs=tmp_path / "runs", execution=QUIET).status == "done"
    assert (len(read(own_ledger())), LEDGER.read_bytes()) == (1, before)


def test_tables_and_claims_read_both(tmp_path, monkeypatch):
    tracked, own = tmp_path / "tracked.jsonl", tmp_path / "new" / "own.jsonl"
    monkeypatch.setenv("NFM_LEDGER", str(own))
    monkeypatch.setattr(commands, "LEDGER", tracked)
    append(tracked, entry("digits/nfm", 1, clean=0.91))
    append(own, entry("digits/nfm", 1, clean=0.5))  # the same cell again: the tracked result counts
    append(own, entry("digits/nfm", 2, clean=0.93))
    assert [e.metrics["clean"] for e in read_together([tracked, own])] == [0.91, 0.93]
    shown = CliRunner().invoke(app, ["tables", "--table", "nfm-table1"]).output
    assert "92.0 ± 1.0 (2)" in shown
    seen = []
    monkeypatch.setattr("experiments.claims.load_records", lambda ledgers: seen.append(list(ledgers)) or 1 / 0)
    CliRunner().invoke(app, ["claims", "claim-nfm-white-1"])
    assert seen == [[tracked, own]]


# Failures


def test_a_failure_keeps_its_traceback_beside_the_ledger(tmp_path, monkeypatch):
    def diverge(*arguments, **options):
        raise DivergedError("loss nan")

    monkeypatch.setattr(runner, "train", diverge)
    assert run(tmp_path).status == run(tmp_path, seed=2).status == FAILED
    text = failures_file(tmp_path / "l.jsonl").read_text()
    assert text.count("Traceback (most recent call last)") == 2
    assert f"{TOY.name} seed 2" in text
    assert "in diverge" in text


def test_a_file_that_cannot_be_written_does_not_hide_the_failure(tmp_path):
    (tmp_path / "l.failures.log").mkdir()
    broken = shortened(TOY, model="no_such_network")
    assert "no_such_network" in run(tmp_path, broken).message


# The log


def test_the_log_has_the_accuracy_of_each_epoch(tmp_path):
    run(tmp_path, DIGITS)
    lines = log(tmp_path, DIGITS)
    assert [line["epoch"] for line in lines] == [0, 1]
    by_suite = {e.suite: e.metrics for e in read(tmp_path / "l.jsonl")}
    assert lines[-1]["test_accuracy"] == by_suite["clean"]["clean"]  # 450 images, fewer than 2000


def test_testing_changes_no_result(tmp_path):
    for count in (0, 7, 2000):
        run(tmp_path / str(count), DIGITS, test_images=count)
    found = [[comparable(e) for e in read(tmp_path / str(count) / "l.jsonl")] for count in (0, 7, 2000)]
    assert found[0] == found[1] == found[2]
    assert "test_accuracy" not in log(tmp_path / "0", DIGITS)[0]
    assert (7 * log(tmp_path / "7", DIGITS)[0]["test_accuracy"]).is_integer()


def test_few_images_are_spread_over_the_test_set():
    from experiments.data import load_data
    from experiments.evaluation import few_tests

    data = load_data("digits")
    few = few_tests(data, 10).test
    assert torch.equal(few.images[0], data.test.images[0])
    assert torch.equal(few.images[-1], data.test.images[-1])
    assert len(few) == 10
    assert few_tests(data, 10**6) is data
    toy = load_data("toy_rings")
    assert few_tests(toy, 1) is toy


class Writer:
    """Stands for TensorBoard's writer."""

    written: list = []  # noqa: RUF012

    def __init__(self, folder):
        self.folder = folder

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def add_scalar(self, name, value, step):
        Writer.written.append((name, value, step))


def test_tensorboard_gets_the_numbers_of_the_log(tmp_path, monkeypatch):
    Writer.written = []
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    run(tmp_path, tensorboard=True)
    for line in log(tmp_path):
        for name, key in (("train/loss", "loss"), ("test/accuracy", "test_accuracy")):
            assert (name, line[key], line["epoch"] + 1) in Writer.written
    assert len(Writer.written) == 9


def test_without_tensorboard_the_option_is_refused_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    result = CliRunner().invoke(
        app, ["train", "nfm-figure-toy/nfm", "--tensorboard", "--ledger", str(tmp_path / "l.jsonl")]
    )
    assert (result.exit_code, "pip install tensorboard" in result.output) == (2, True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flag", ["--bf16", "--compile"])
def test_options_of_the_execution_reach_the_training(tmp_path, monkeypatch, flag):
    from experiments import training_commands

    seen = []
    monkeypatch.setattr(training_commands, "run_recipe", lambda recipe, seed, **o: seen.append((recipe, o)) or 1 / 0)
    CliRunner().invoke(app, ["train", "nfm-table1/nfm", flag, "--loaders", "3", "--ledger", str(tmp_path / "l")])
    ((recipe, options),) = seen
    assert (recipe.training.precision == "bfloat16") == (flag == "--bf16")
    assert (options["execution"].compile, options["execution"].workers) == (flag == "--compile", 3)
