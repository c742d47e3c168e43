"""The command `nfm`: exit statuses, outputs, and every way to get it wrong."""

import json
import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

import nfm_theory as nt
from experiments.studies import factories
from nfm_theory import cli
from nfm_theory.cli.app import app
from nfm_theory.cli.errors import BAD_INPUT, CRASHED, HOLDS, REFUTED, UNDECIDED

FACTORY = """
import torch

def build():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(3, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2))

def with_data():
    return build(), torch.linspace(-1, 1, 18).reshape(6, 3), torch.arange(6) % 2

def in_training():
    return torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Softplus())

def number():
    return 3

def no_tensors():
    return build(), [[1.0, 2.0, 3.0]], [0]

def broken():
    raise KeyError("weights")

def bias_free():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Linear(3, 8, bias=False), torch.nn.LeakyReLU(0.1), torch.nn.Linear(8, 1, bias=False)
        )
        x = torch.randn(4, 3)
    x = torch.cat([x, -x])
    return model, x, (model(x)[:, 0] > 0).long()

def biased():
    model, x, y = bias_free()
    model.insert(0, torch.nn.Linear(3, 3))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(3))
        model[0].bias.fill_(3.0)
    return model, x, (model(x)[:, 0] > 0).long()

module = build()
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NFM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "mine.py").write_text(FACTORY)
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=rng.standard_normal((6, 3)), y=np.arange(6) % 2)
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, ["verify", *arguments])


MINE = ("--model", "mine.py:build", "--data", "data.npz")


def test_a_users_model_holds_and_writes_json_and_plot(work):
    result = run(*MINE, "--layer", "1", "--json", "out/report.json", "--plot", "out/plot.svg")
    assert result.exit_code == HOLDS, result.output
    assert "HOLDS" in result.output
    record = json.loads((work / "out" / "report.json").read_text())
    assert record["verdict"] == "holds"
    assert record["layer"] == "1"
    assert record["model"] == "mine.py:build"
    assert record["versions"]["nfm_theory"] == nt.__version__
    assert (work / "out" / "plot.svg").stat().st_size > 1000
    assert sorted(p.name for p in (work / "out").iterdir()) == ["plot.svg", "report.json"]


def test_several_layers_give_a_list_and_the_worst_status(work):
    result = run("--model", "mine.py:with_data", "--layer", "", "--layer", "1", "--json", "r.json")
    assert result.exit_code == HOLDS
    assert [r["layer"] for r in json.loads((work / "r.json").read_text())] == ["", "1"]


def test_a_network_of_the_repository_with_one_logit_needs_no_loss_named(work):
    factory = "experiments.studies.factories:mlp_binary"
    options = ("--model", factory, "--num-samples", "3", "--mult-noise", "0", "--add-noise", "0")
    result = run(*options)
    assert result.exit_code == HOLDS, result.output
    assert result.output == run(*options, "--loss", "logistic").output
    assert any((work / "cache").iterdir())


@pytest.mark.parametrize("name", ["mlp", "mlp_binary", "small_cnn", "small_cnn_binary"])
def test_factories_of_the_repository_give_a_network_with_balanced_data(name, monkeypatch):
    monkeypatch.setattr(factories, "trained_network", lambda model, classes: SimpleNamespace(model=(model, classes)))
    (kind, classes), x, y = getattr(factories, name)()
    assert name == kind + ("_binary" if classes == 2 else "")
    assert x.shape == (factories.SAMPLES, 1, 8, 8)
    assert y.bincount().tolist() == [factories.SAMPLES // classes] * classes


def test_float32_and_monte_carlo(work):
    result = run(*MINE, "--dtype", "float32", "--noise", "released")
    assert result.exit_code == HOLDS, result.output
    few = run(*MINE, "--method", "monte_carlo", "--budget", "1000")
    assert few.exit_code == UNDECIDED
    assert "raise the budget" in few.output
    words = run(*MINE, "--method", "monte_carlo", "--budget", "2000 passes", "--json", "r.json")
    assert json.loads((work / "r.json").read_text())["samples"] <= 2000 * 8, words.output


def test_a_refuted_expansion_has_status_1_and_still_writes_its_report(work, monkeypatch):
    correct = nt.verify

    def one_percent_off(problem, *arguments, **options):
        terms = nt.terms(problem)
        return correct(problem, *arguments, terms=replace(terms, R2=1.01 * terms.R2), **options)

    monkeypatch.setattr(nt, "verify", one_percent_off)
    result = run(*MINE, "--json", "r.json")
    assert result.exit_code == REFUTED
    assert json.loads((work / "r.json").read_text())["verdict"] == "refuted"


def test_weights_are_loaded_and_a_module_is_taken_as_it_is(work):
    model = torch.nn.Sequential(torch.nn.Linear(3, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2))
    torch.save(model.state_dict(), work / "w.pt")
    torch.save({"x": torch.randn(4, 3), "y": torch.arange(4) % 2}, work / "data.pt")
    result = run("--model", "mine:module", "--state-dict", "w.pt", "--data", "data.pt", "--eps", "0.1,0.01,0.001")
    assert result.exit_code in (HOLDS, UNDECIDED), result.output
    listed = run("--model", "mine.py:build", "--data", "data.pt", "--list-layers")
    assert listed.exit_code == 0
    assert listed.output.split()[-3:] == ["0", "1", "2"]


BOUND = ("--bound", "--add-noise", "0", "--mult-noise", "0", "--loss", "logistic")


def test_the_bound_of_a_users_model_is_certified(work):
    result = run("--model", "mine.py:bias_free", *BOUND, "--eps", "0.01,0.1", "--json", "r.json")
    assert result.exit_code == HOLDS, result.output
    assert result.output.count("CERTIFIED") == 2
    records = json.loads((work / "r.json").read_text())
    assert [r["eps"] for r in records] == [0.01, 0.1]
    assert [r["verdict"] for r in records] == ["certified"] * 2
    assert records[0]["failed"] == []
    assert records[0]["model"] == "mine.py:bias_free"
    assert records[0]["label_kept"]["certified"] == 8


def test_the_bound_is_refuted_or_undecided_with_a_status_of_its_own(work):
    refuted = run("--model", "mine.py:biased", *BOUND, "--eps", "0.1", "--json", "r.json")
    assert refuted.exit_code == REFUTED, refuted.output
    assert "homogeneity" in json.loads((work / "r.json").read_text())["failed"]
    undecided = run("--model", "mine.py:bias_free", *BOUND, "--certificate", "none")
    assert undecided.exit_code == UNDECIDED, undecided.output
    both = run("--model", "mine.py:biased", *BOUND, "--certificate", "none", "--eps", "0.1", "--radius", "mean")
    assert both.exit_code in (UNDECIDED, REFUTED)
    assert "radius mean" in both.output


def test_the_bound_of_a_network_of_the_repository_with_noise(work):
    factory = ("--model", "experiments.studies.factories:mlp_binary", "--num-samples", "4")
    result = run("--bound", *factory, "--eps", "0.01", "--budget", "20000")
    assert result.exit_code in (HOLDS, REFUTED, UNDECIDED), result.output
    assert "Monte Carlo" in result.output
    assert "Hessian" in result.output


def test_the_help_documents_the_bound():
    text = re.sub(r"\x1b\[[0-9;]*m", "", run("--help").output)  # colors split the names of options
    assert "--bound" in text
    assert "certified" in text


BAD = [
    (("--model", "mine.py:bias_free", *BOUND, "--radius", "round"), "radius: expected one of"),
    (("--model", "mine.py:bias_free", *BOUND, "--certificate", "oracle"), "certificate: expected one of"),
    (("--model", "mine.py:bias_free", *BOUND, "--alpha", "0"), "the bound needs mixing"),
    (("--model", "mine.py:bias_free", *BOUND, "--budget", "9 s"), "with --bound expected passes"),
    ((*MINE, "--budget", "soon"), "budget: expected a number of evaluations"),
    (("--model", "mine.py:bias_free", "--bound", "--loss", "square"), "'cross_entropy' and 'logistic'"),
    (("--model", "mine.py:bias_free", *BOUND, "--order", "3"), "--order: does not go with --bound"),
    (("--model", "mine.py:bias_free", *BOUND, "--plot", "p.png"), "--plot: does not go with --bound"),
    ((*MINE, "--radius", "sharp"), "--radius: needs --bound"),
    (("--model", "nosuch"), "expected path/to/file.py:factory or package.module:factory"),
    (("--model", "nosuch.py:build"), "no such file"),
    (("--model", "no_such_package:build"), "ModuleNotFoundError"),
    (("--model", "mine.py:nosuch"), "it has"),
    (("--model", "mine.py:number"), "expected mine.py:number to return an nn.Module"),
    (("--model", "mine.py:broken"), "raised KeyError"),
    ((*MINE, "--layer", "nosuch"), "no module 'nosuch'; nfm verify --list-layers lists them all"),
    ((*MINE, "--state-dict", "gone.pt"), "no such file: gone.pt"),
    ((*MINE, "--state-dict", "pickled.pt"), "holds more than tensors"),
    ((*MINE, "--state-dict", "other.pt"), "does not fit the model"),
    ((*MINE, "--state-dict", "list.pt"), "expected a dict of tensors"),
    (("--model", "mine.py:build", "--data", "gone.npz"), "no such file: gone.npz"),
    (
        ("--model", "mine.py:build", "--data", "text.npz"),
        "cannot be read; expected what np.savez(path, x=..., y=...) writes",
    ),
    (("--model", "mine.py:build", "--data", "nan.npz"), "finite"),
    (("--model", "mine.py:build", "--data", "wide.npz"), "does not take x of shape (4, 5)"),
    (("--model", "mine.py:build", "--data", "unnamed.npz"), "tensors named x and y, got unnamed.npz with a."),
    (("--model", "mine.py:build", "--data", "table.csv"), "expected a file .npz"),
    ((*MINE, "--eps", "0.1,x"), "--eps: expected positive numbers"),
    ((*MINE, "--dtype", "int8"), "--dtype: expected one of"),
    ((*MINE, "--device", "abacus"), "--device: expected cpu or cuda"),
    ((*MINE, "--noise", "pink"), "noise: expected one of"),
    ((*MINE, "--alpha", "-1"), "alpha: expected"),
    ((*MINE, "--json", "."), "--json: expected a file"),
    ((*MINE, "--plot", "plot.txt"), "--plot: expected a file .png"),
    ((*MINE, "--num-samples", "0"), "--num-samples: expected at least 1"),
    ((), "--model: name the network to verify: path/to/file.py:factory"),
    (("--model", "mine.py:build"), "returns no data"),
    (("--model", "mine.py:no_tensors"), "expected tensors x (n, *input)"),
]


@pytest.mark.parametrize(
    ("samples", "options", "note"),
    [
        (6, ("--num-samples", "999"), "--num-samples 999: the data have 6 samples; all of them are used"),
        (6, ("--num-samples", "6"), ""),
        (101, (), "the first 100 of 101 samples are used"),
        (101, ("--num-samples", "3"), ""),
        (100, (), ""),
    ],
)
def test_what_is_left_out_of_the_samples_is_said(work, samples, options, note):
    np.savez(work / "data.npz", x=np.random.default_rng(0).standard_normal((samples, 3)), y=np.arange(samples) % 2)
    stderr = run(*MINE, *options, "--list-layers").stderr
    assert note in stderr
    assert bool(stderr) == bool(note)


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=lambda value: str(value)[-40:])
def test_bad_input_has_status_2_and_one_clear_message(work, arguments, message):
    torch.save(torch.nn.Linear(2, 2), work / "pickled.pt")
    torch.save(torch.nn.Linear(2, 2).state_dict(), work / "other.pt")
    torch.save([torch.zeros(2)], work / "list.pt")
    (work / "text.npz").write_text("not an archive")
    np.savez(work / "nan.npz", x=np.full((4, 3), np.nan), y=np.arange(4) % 2)
    np.savez(work / "wide.npz", x=np.zeros((4, 5)), y=np.arange(4) % 2)
    np.savez(work / "unnamed.npz", a=np.zeros(3))
    result = run(*arguments)
    assert result.exit_code == BAD_INPUT, result.output
    assert result.stderr.startswith("nfm: ")
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_cuda_is_asked_for_only_where_it_is(work, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = run(*MINE, "--device", "cuda")
    assert result.exit_code == BAD_INPUT
    assert "found none" in result.stderr


def test_plot_without_matplotlib_says_what_to_install(work, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
    result = run(*MINE, "--plot", "p.png")
    assert result.exit_code == BAD_INPUT
    assert result.stderr.strip().endswith("pip install matplotlib")


def test_version():
    result = CliRunner().invoke(app, ["--version"])
    assert result.output.strip() == f"nfm_theory {nt.__version__}"


def test_a_crash_is_no_verdict(monkeypatch, capsys):
    monkeypatch.setattr("nfm_theory.cli.app.app", lambda: 1 / 0)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == CRASHED
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_without_typer_the_command_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "typer", None)  # as if it were not installed
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == BAD_INPUT
    assert capsys.readouterr().err.strip().endswith("pip install typer")


def test_every_option_says_what_it_does():
    options = typer.main.get_command(app).commands["verify"].params
    assert len(options) > 20
    for option in options:
        assert re.fullmatch(r"[A-Za-z].*[.)]", option.help), option.name
