"""The commands on experiments, as a user calls them."""

import json
import sys

import pytest
from ledger_entries import entry, shortened
from typer.testing import CliRunner

from experiments import commands, runner, training_commands
from experiments.__main__ import main, run_command
from experiments.commands import app
from experiments.recipes import all_recipes, get_recipe
from experiments.record.ledger import read
from experiments.training import DivergedError, run_folder
from experiments.training.checkpoint import exclusive

TOY = "nfm-figure-toy/nfm"


@pytest.fixture
def nfm():
    def call(*arguments):
        return CliRunner().invoke(app, [str(a) for a in arguments])

    return call


@pytest.fixture
def short(monkeypatch):
    """The toy recipes with three epochs."""
    quick = {name: shortened(r, epochs=3) for name, r in all_recipes().items() if name.startswith("nfm-figure-toy/")}

    def select(*patterns, size=None):
        return [quick[name] for name in patterns]

    monkeypatch.setattr(training_commands, "get_recipe", quick.__getitem__)
    monkeypatch.setattr(training_commands, "select_recipes", select)


def test_list_counts_recipes_and_trainings(nfm):
    result = nfm("recipes", "list", "noisymix-table2/*")
    assert result.exit_code == 0
    assert "16 recipes, 16 different trainings" in result.output
    shared = nfm("recipes", "list", "noisymix-table2/cifar10-*", "noisymix-table7/*")
    assert "16 recipes, 8 different trainings" in shared.output


def test_show_tells_settings_and_choices(nfm):
    output = nfm("recipes", "show", "nfm-table1/label_smoothing").output
    recipe = get_recipe("nfm-table1/label_smoothing")
    assert recipe.hash in output
    assert "weight_decay = 0.0005" in output
    assert "label_smoothing: 0.1: nowhere stated" in output
    assert "not run: needs stylized images" in nfm("recipes", "show", "noisymix-table1/stylized_imagenet").output


def test_unknown_recipe_is_a_sentence_with_the_nearest_name(nfm):
    result = nfm("recipes", "show", "nfm-table1/nmf")
    assert result.exit_code == 2
    assert "nfm-table1/nfm" in result.output
    assert "Traceback" not in result.output


def test_train_writes_the_ledger_once(nfm, short, tmp_path):
    places = ("--ledger", tmp_path / "ledger.jsonl", "--runs", tmp_path / "runs", "--device", "cpu")
    first = nfm("train", TOY, "--seed", 3, *places)
    assert first.exit_code == 0, first.output
    assert "done" in first.output
    (found,) = read(tmp_path / "ledger.jsonl")
    assert (found.scheme, found.seed, found.suite, found.training["epochs"]) == ("nfm", 3, "clean", 3)
    again = nfm("train", TOY, "--seed", 3, *places)
    assert "finished before" in again.output
    assert len(read(tmp_path / "ledger.jsonl")) == 1


def test_train_in_pieces_is_the_same_training(nfm, short, tmp_path):
    whole = ("--ledger", tmp_path / "whole.jsonl", "--runs", tmp_path / "whole", "--device", "cpu")
    parts = ("--ledger", tmp_path / "parts.jsonl", "--runs", tmp_path / "parts", "--device", "cpu")
    nfm("train", TOY, *whole)
    for _ in range(2):
        assert nfm("train", TOY, *parts, "--stop-after", 1).exit_code == 0
        assert not (tmp_path / "parts.jsonl").exists()
    nfm("train", TOY, *parts)
    compared = nfm("ledger", "compare", tmp_path / "parts.jsonl", "--with", tmp_path / "whole.jsonl")
    assert "1 results are in both ledgers, 1 of them identical" in compared.output


def test_sweep_check_merge_and_compare(nfm, short, tmp_path):
    ledger = tmp_path / "ledger.jsonl"
    options = ("--cluster", "here", "--ledger", ledger, "--runs", tmp_path / "runs", "--device", "cpu")
    result = nfm("sweep", TOY, "nfm-figure-toy/mixup", "--seeds", "1,2", *options)
    assert result.exit_code == 0, result.output
    assert "4 done now, 0 failed, 0 of 4 left" in result.output
    assert nfm("ledger", "check", ledger).exit_code == 0

    lines = ledger.read_text().splitlines()
    changed = json.loads(lines[0])
    changed["metrics"]["clean"] -= 0.25
    other = tmp_path / "other.jsonl"
    other.write_text("\n".join([json.dumps(changed), *lines[1:], ""]))
    output = nfm("ledger", "compare", other, "--with", ledger).output
    assert "4 results are in both ledgers, 3 of them identical" in output
    assert "0.25" in output
    assert "range of the seeds" not in output  # two seeds only
    three = [dict(json.loads(lines[0]), seed=seed) for seed in (3, 4)]
    ledger.write_text("\n".join([*lines, *map(json.dumps, three), ""]))
    output = nfm("ledger", "compare", other, "--with", ledger).output
    assert "of 2 metrics lie within the range of the seeds that were recorded" in output
    assert "a new seed about 60% would" in output
    ledger.write_text("\n".join([*lines, ""]))

    assert "4 new results" in nfm("ledger", "merge", other, ledger, "--into", tmp_path / "all.jsonl").output
    other.write_text(lines[0] + "\n" + lines[0] + "\n")
    broken = nfm("ledger", "check", other)
    assert broken.exit_code == 1
    assert "stands in line 1 already" in broken.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--cluster", "moon"), "expected one of"),
        (("--parameter", "partition"), "name=value"),
        (("--seeds", "1,one"), "separated by commas"),
    ],
)
def test_bad_options_of_a_sweep(nfm, short, tmp_path, arguments, words):
    result = nfm("sweep", TOY, "--ledger", tmp_path / "l.jsonl", "--runs", tmp_path / "r", *arguments)
    assert result.exit_code == 2
    assert words in result.output


def places(folder, **changes):
    """Options of a training that end at once, with some of them changed."""
    given = {"ledger": folder / "l.jsonl", "runs": folder / "r", "device": "cpu"} | changes
    return [part for name, value in given.items() for part in (f"--{name}", value)]


FAULTS = {
    "device": {"device": "cpu:7"}, "no such device": {"device": "abacus"}, "ledger": {"ledger": "a_folder"},
    "ledger in a file": {"ledger": "a_file/l.jsonl"}, "damaged ledger": {"ledger": "a_file"},
    "runs": {"runs": "a_file"}, "loaders": {"loaders": -1}, "seeds": {"seed": -1}, "no file": {"ledger": "/dev/null"},
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_one_fault_has_one_status_in_train_and_sweep(nfm, short, tmp_path, monkeypatch, fault):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_folder").mkdir()
    (tmp_path / "a_file").write_text("{}\n")
    trained = nfm("train", TOY, *places(tmp_path, **FAULTS[fault]))
    plain = {"seeds" if name == "seed" else name: value for name, value in FAULTS[fault].items()}
    swept = nfm("sweep", TOY, *places(tmp_path, **({"cluster": "here", "seeds": "1"} | plain)))
    for result in (trained, swept):
        assert result.exit_code == 2, result.output
        assert isinstance(result.exception, SystemExit)
        assert result.stderr.strip()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a_file", "a_folder"]


def test_a_recipe_that_cannot_be_run_is_wrong_input_everywhere(nfm, tmp_path):
    name = "noisymix-table1/stylized_imagenet"
    for call in (("train", name), ("train", name, "--stop-after", 1), ("sweep", name, "--cluster", "here")):
        result = nfm(*call, *places(tmp_path))
        assert result.exit_code == 2, result.output
        assert "needs stylized images" in result.output


def test_missing_data_are_wrong_input_everywhere(nfm, tmp_path, monkeypatch):
    monkeypatch.delenv("NFM_CIFAR10", raising=False)
    monkeypatch.setenv("NFM_DATA", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    for call in (("train", "nfm-table1/nfm"), ("sweep", "nfm-table1/nfm", "--cluster", "here", "--seeds", 1)):
        assert nfm(*call, *places(tmp_path)).exit_code == 2


def test_a_training_in_other_hands_is_busy_also_in_pieces(nfm, short, tmp_path):
    with exclusive(run_folder(tmp_path / "r", training_commands.get_recipe(TOY).training, 1)):
        for extra in ((), ("--stop-after", 1)):
            assert nfm("train", TOY, *places(tmp_path), *extra).exit_code == 3


def test_a_loss_that_is_not_finite_is_a_failure_also_in_pieces(nfm, short, tmp_path, monkeypatch):
    def diverge(*arguments, **options):
        raise DivergedError("loss nan")

    monkeypatch.setattr(runner, "train", diverge)
    for extra in ((), ("--stop-after", 1)):
        result = nfm("train", TOY, *places(tmp_path), *extra)
        assert (result.exit_code, "loss nan" in result.output) == (1, True)


def test_a_clock_that_runs_backwards_fails_nothing(nfm, short, tmp_path, monkeypatch):
    ticks = iter(range(10**6, 0, -1))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(ticks)))
    assert nfm("train", TOY, *places(tmp_path)).exit_code == 0
    (found,) = read(tmp_path / "l.jsonl")
    assert (found.seconds, found.training["seconds"]) == (0, 0)


REFUSED = {
    "nosuch=1": "submitit did not start the workers", "cluster=here": "submitit did not start the workers",
    "nodes=2": "nodes: expected 1, got 2", "gpus_per_node=x": "CUDA_VISIBLE_DEVICES",
    "tasks_per_node=8": "--processes", "slurm_max_num_timeout=50": "found no Slurm",
}  # fmt: skip


@pytest.mark.parametrize("text", REFUSED)
def test_what_submitit_refuses_is_a_sentence_also_when_nothing_is_left_to_do(nfm, tmp_path, monkeypatch, text):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "done.jsonl").write_text(entry(TOY, 1, clean=0.5).to_json() + "\n")
    cluster = ("--cluster", "slurm") if text.startswith("slurm_") else ()
    said = []
    for ledger in ("new.jsonl", "done.jsonl"):
        given = places(tmp_path, ledger=tmp_path / ledger)
        result = nfm("sweep", TOY, "--seeds", 1, *given, "--parameter", text, *cluster)
        assert result.exit_code == 2, result.output
        assert REFUSED[text] in result.stderr
        assert "Traceback" not in result.output
        said.append(result.stderr)
    assert said[0] == said[1]
    done = nfm("sweep", TOY, "--seeds", 1, *places(tmp_path, ledger=tmp_path / "done.jsonl"))
    assert (done.exit_code, "0 of 1 left" in done.output) == (0, True)


BAD_CHOICES = (
    (("--cluster", "moon"), "expected one of"),
    (("--cluster", "here", "--parameter", "timeout_min=9"), "takes no parameter"),
    (("--parameter", "slurm_partition=gpu"), "cluster 'local'"),
    (("--parameter", "nodes=2"), "nodes: expected 1"),
)


@pytest.mark.parametrize(("options", "words"), BAD_CHOICES)
def test_choices_are_checked_also_in_a_dry_run(nfm, tmp_path, options, words):
    result = nfm("sweep", TOY, "--dry-run", *places(tmp_path), *options)
    assert (result.exit_code, words in result.stderr) == (2, True), result.output


def test_folders_are_looked_at_before_anything_is_computed(nfm, tmp_path):
    (tmp_path / "file").write_text("kept")
    for call in (("tables", "--out"), ("audit", "--out"), ("study", "bounds", "--out"), ("claims", "--json")):
        path = tmp_path / "file" / ("x.json" if call[0] == "claims" else "")
        assert nfm(*call, path).exit_code == 2
    assert (tmp_path / "file").read_text() == "kept"


def test_a_crash_is_no_verdict_and_a_missing_package_is_a_sentence(monkeypatch, capsys):
    monkeypatch.setattr(commands, "app", lambda **_: 1 / 0)
    with pytest.raises(SystemExit) as stop:
        run_command(main)
    assert stop.value.code == 70
    monkeypatch.setitem(sys.modules, "rich.console", None)
    for name in ("experiments.commands", "experiments.console"):
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(SystemExit) as stop:
        run_command(main)
    assert stop.value.code == 2
    assert "pip install -e '.[experiments]'" in capsys.readouterr().err


def test_tables_and_audit_are_commands(nfm):
    assert "misprint" in nfm("audit").output
    assert nfm("tables", "--table", "nfm-table9").exit_code == 2
