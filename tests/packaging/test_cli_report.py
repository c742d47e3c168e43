"""The command `nfm report`: the page and the JSON, what it is about, and every way to get it wrong."""

import json

import pytest
import torch
from typer.testing import CliRunner

import nfm_theory as nt
from nfm_theory.cli.app import app
from nfm_theory.cli.errors import BAD_INPUT, HOLDS, INTERRUPTED
from nfm_theory.reporting import parts

FACTORY = """
import torch
from torch import nn

def build():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))

def with_data():
    return build(), torch.linspace(-1, 1, 18).reshape(6, 3), torch.arange(6) % 2

class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.both, self.first, self.last = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.last(self.first(self.both(x[:, None])[0][:, 0]).tanh())

def pair():
    return Pair(), *with_data()[1:]
"""
QUICK = ("--budget", "20 passes")


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(FACTORY)
    torch.save({"x": torch.linspace(-1, 1, 12).reshape(4, 3), "y": torch.arange(4) % 2}, tmp_path / "data.pt")
    cheap = {name: parts.MEASURES[name] for name in ("terms", "margins")}

    def skipped(task, known):
        raise ValueError("not in this test")

    for name in parts.MEASURES:
        monkeypatch.setitem(parts.MEASURES, name, cheap.get(name, skipped))
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, ["report", *arguments])


def test_a_page_and_json(work):
    result = run("mine.py:build", "data.pt", "--layer", "1", "--html", "out/page.html", "--json", "out/r.json", *QUICK)
    assert result.exit_code == HOLDS, result.output
    html = (work / "out" / "page.html").read_text(encoding="utf-8")
    assert "mine.py:build on data.pt" in html
    assert "The page is in out/page.html." in result.output
    record = json.loads((work / "out" / "r.json").read_text())
    assert record["model"] == "mine.py:build"
    assert record["versions"]["nfm_theory"] == nt.__version__
    assert [one["layer"] for one in record["layers"]] == ["1"]
    assert record["layers"][0]["missing"]["verdict"] == "not in this test"
    assert record["num_samples"] == 4
    assert sorted(p.name for p in (work / "out").iterdir()) == ["page.html", "r.json"]


@pytest.mark.parametrize(("factory", "names"), [("with_data", ["", "0", "2", "3"]), ("pair", ["", "first"])])
def test_layers_are_chosen_among_those_that_work(work, factory, names):
    result = run(f"mine.py:{factory}", "--json", "r.json", *QUICK)
    assert result.exit_code == HOLDS, result.output
    assert [one["layer"] for one in json.loads((work / "r.json").read_text())["layers"]] == names
    assert (work / "report.html").is_file()


def test_an_interrupt_leaves_a_page(work, monkeypatch):
    def stop(task, known):
        raise KeyboardInterrupt

    monkeypatch.setitem(parts.MEASURES, "margins", stop)
    result = run("mine.py:with_data", "--layer", "", *QUICK)
    assert result.exit_code == INTERRUPTED
    assert "stopped before its end" in (work / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("mine.py:nothing",), "has no 'nothing'"),
        (("mine.py:with_data", "--layer", "9"), "layer"),
        (("mine.py:with_data", "--budget", "soon"), "budget: expected"),
        (("mine.py:with_data", "--eps", "-1"), "eps: expected"),
        (("mine.py:build", "data.pt", "--html", "data.pt"), "--html: expected a file of its own"),
        (("mine.py:with_data", "--html", "."), "--html: expected a file, got the directory"),
        (("mine.py:with_data", "--json", "same", "--html", "same"), "is the file of --html as well"),
        (("mine.py:with_data", "--add-noise", "0", "--mult-noise", "0", "--alpha", "0"), "Nothing is perturbed"),
    ],
)
def test_bad_input_has_a_sentence_and_no_page(work, arguments, words):
    result = run(*arguments, *(() if "--budget" in arguments else QUICK))
    assert result.exit_code == BAD_INPUT, result.output
    assert words in result.output
    assert not (work / "report.html").exists()
