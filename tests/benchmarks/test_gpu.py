"""The command for a machine with a GPU: stand-ins, the record, what happens to failures, and a few of its cells."""

import json
import subprocess
import sys
from pathlib import Path

import lazy_loader
import pytest
import torch

import nfm_theory as nt

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import cells, stand_ins
from benchmarks.gpu.cells import SUITES, Place
from experiments.evaluation import SUITES as ALL_SUITES
from experiments.recipes.schemes import SCHEMES

# Stand-ins ------------------------------------------------------------------------------------------------------------


def test_the_stub_gives_the_names_that_lazy_loader_gives():
    load, names, public = stand_ins.attach_stub("nfm_theory", nt.__file__)
    _, expected, listed = lazy_loader.attach_stub("nfm_theory", nt.__file__)
    assert set(public) == set(names()) == set(expected()) == set(listed)
    for name in public:
        assert load(name) is getattr(nt, name)
    with pytest.raises(AttributeError, match="No nfm_theory attribute nosuch"):
        load("nosuch")


def test_a_bar_without_a_bar(capsys):
    with stand_ins.NoBar(range(3), desc="words", total=3) as bar:
        assert list(bar) == [0, 1, 2]
        bar.update(2)
    stand_ins.NoBar.write("a line")
    assert capsys.readouterr().err == "a line\n"


def test_only_what_is_missing_is_replaced(monkeypatch):
    monkeypatch.setattr(stand_ins.importlib.util, "find_spec", lambda name: None if name == "cv2" else object())
    monkeypatch.delitem(sys.modules, "cv2", raising=False)
    assert stand_ins.install() == ["cv2"]
    import cv2

    with pytest.raises(ImportError, match="opencv-python-headless is not installed"):
        cv2.resize(None, None)
    del sys.modules["cv2"]


# The record and the order ---------------------------------------------------------------------------------------------


def work(folder, monkeypatch, measured):
    monkeypatch.setattr(cells, "cells", lambda small: measured)
    assert command.main(["--out", str(folder), "--device", "cpu", "--small", "--work"]) == 0
    return json.loads((folder / "gpu.json").read_text())


def test_a_failure_is_recorded_and_a_second_call_goes_on(tmp_path, monkeypatch):
    calls = []

    def good(place):
        calls.append("good")
        return {"device": place.device}

    def bad(place):
        calls.append("bad")
        raise RuntimeError("out of memory")

    found = work(tmp_path, monkeypatch, {"a": good, "b": bad, "c": good})
    assert [cell["status"] for cell in found["cells"].values()] == ["done", "failed", "done"]
    assert found["cells"]["a"]["result"] == {"device": "cpu"}
    assert found["cells"]["b"]["error"] == "RuntimeError: out of memory"
    assert found["about"]["versions"]["torch"] == torch.__version__
    assert calls == ["good", "bad", "good"]
    found["cells"]["c"] = {"status": "begun"}  # the time was over
    (tmp_path / "gpu.json").write_text(json.dumps(found))
    again = work(tmp_path, monkeypatch, {"a": good, "b": bad, "c": good})
    assert again["cells"]["c"]["status"] == "done"
    assert calls == ["good", "bad", "good", "good"]


def test_results_of_another_machine_are_not_mixed(tmp_path, monkeypatch, capsys):
    work(tmp_path, monkeypatch, {})
    content = json.loads((tmp_path / "gpu.json").read_text())
    content["about"]["versions"]["torch"] = "1.0"
    (tmp_path / "gpu.json").write_text(json.dumps(content))
    assert command.main(["--out", str(tmp_path), "--device", "cpu", "--small", "--work"]) == 2
    assert "measured elsewhere or with other versions; name another folder" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_the_command_says_so(tmp_path, capsys):
    assert command.main(["--out", str(tmp_path), "--work"]) == 2
    assert "expected a CUDA device, found none" in capsys.readouterr().err


class Died:
    """Stands in for `subprocess.run`: the first process dies in its second cell, the second one ends well."""

    def __init__(self, folder):
        self.folder, self.calls = folder, 0

    def __call__(self, arguments, **options):
        self.calls += 1
        results = command.Results(self.folder / "gpu.json")
        results.put("a", status="done", result=1)
        if self.calls == 1:
            results.put("b", status="begun")
            return subprocess.CompletedProcess(arguments, -11)
        assert results.cells["b"] == {"status": "failed", "error": "the process ended with the status -11"}
        return subprocess.CompletedProcess(arguments, 0)


def test_a_process_that_dies_costs_one_cell(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command.subprocess, "run", Died(tmp_path))
    assert command.main(["--out", str(tmp_path), "--minutes", "1"]) == 0
    assert "1 cells done, 1 failed, 0 cut off" in capsys.readouterr().out


def test_the_time_ends_the_work(tmp_path, monkeypatch, capsys):
    def slow(arguments, **options):
        assert 0 < options["timeout"] <= 60
        command.Results(tmp_path / "gpu.json").put("a", status="begun")
        raise subprocess.TimeoutExpired(arguments, options["timeout"])

    monkeypatch.setattr(command.subprocess, "run", slow)
    assert command.main(["--out", str(tmp_path), "--minutes", "1"]) == 1
    assert "0 cells done, 0 failed, 1 cut off by the time" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command.main(["--out", str(tmp_path), "--minutes", "0"])


def test_every_scheme_is_measured_and_the_most_telling_comes_first():
    names = list(cells.cells(small=False))
    epochs = {name.split("/")[1] for name in names if name.startswith("epoch/")}
    assert epochs == set(SCHEMES)
    for precision in ("bfloat16", "float32"):
        assert sum(name.startswith("epoch/") and name.endswith(precision) for name in names) == len(SCHEMES)
    kinds = list(dict.fromkeys(name.split("/")[0] for name in names))
    assert kinds == ["tests", "agreement", "verdict", "epoch", "estimators", "steps", "compact"]
    compact = [name for name in names if name.startswith("compact/")]
    assert compact[0] == "compact/fashion-compact/baseline/1"
    assert names.index("verdict/preactresnet18/float32") < names.index(compact[0])
    assert set(SUITES) <= set(ALL_SUITES)


# Cells ----------------------------------------------------------------------------------------------------------------


def test_cells_of_small_cases(tmp_path):
    place = Place("cpu", tmp_path, small=True)
    found = cells.agreement("tiny")(place)
    assert found["agrees"]
    assert set(found["terms"]) > {"R1", "R2", "R3_mult"}
    assert cells.verdict_of_case(place)["verdict"] in ("holds", "undecided")
    json.dumps(cells.verdict_of_case(place), allow_nan=False)


def test_an_epoch_is_that_of_the_training_loop(tmp_path, monkeypatch):
    monkeypatch.delenv("NFM_CIFAR10", raising=False)
    monkeypatch.delenv("NFM_DATA", raising=False)
    found = cells.epoch("nfm", "bfloat16")(Place("cpu", tmp_path, small=True))
    assert found["seconds_per_epoch"] == pytest.approx(50_000 * found["seconds"] / found["images"])
    assert found["data"] == "random bytes of the shape of CIFAR-10"
    assert found["peak_bytes"] is None
