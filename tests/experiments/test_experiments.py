"""Data, training and the study `expansion`, at toy size."""

import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import nfm_theory as nt
from experiments.commands import app
from experiments.data.digits import load_digits, verification_subset
from experiments.models.small import HIDDEN, MODELS
from experiments.record.files import read_lines, replace_file, write_json
from experiments.studies import expansion
from experiments.studies import networks as training
from experiments.studies.networks import NetworkRecipe, train, trained_network

SHORT = {"epochs": 2}


def test_digits_are_standardized_split_once_and_balanced():
    data = load_digits(10)
    assert data.x.shape[1:] == (1, 8, 8)
    assert float(data.x.mean()) == pytest.approx(0, abs=1e-12)
    assert float(data.x.std(correction=0)) == pytest.approx(1)
    assert len(data.x) + len(data.x_test) == 1797
    assert torch.equal(load_digits(10).x, data.x)
    x, y = verification_subset(data, 23)
    assert len(x) == 23
    assert torch.bincount(y).max() - torch.bincount(y).min() <= 1
    binary = load_digits(2, images=False)
    assert binary.loss == "logistic"
    assert binary.x.shape[1:] == (64,)
    assert set(binary.y.tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: load_digits(7), "classes: expected one of"),
        (lambda: verification_subset(load_digits(2), 0), "n: expected 1 to"),
        (lambda: train(NetworkRecipe(model="vit")), "model: expected one of"),
    ],
)
def test_bad_requests_say_what_was_expected(call, match):
    with pytest.raises(ValueError, match=match):
        call()


@pytest.mark.parametrize("scheme", [{}, {"alpha": 1.0, "add_noise": 0.4, "mult_noise": 0.2, "noise": "released"}])
def test_training_is_the_same_to_the_bit_and_leaves_the_global_generator_alone(scheme):
    state = torch.random.get_rng_state()
    first, second = (train(NetworkRecipe(classes=2, **SHORT, **scheme)) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not first.model.training
    assert first.test_accuracy > 0.8


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("classes", [2, 10])
def test_networks_have_the_layers_and_outputs_they_promise(name, classes):
    model = MODELS[name](classes).double().eval()
    assert model(load_digits(classes).x[:3]).shape == (3, 1 if classes == 2 else 10)
    assert HIDDEN[name] in dict(model.named_modules())


def test_cache_is_used_and_a_corrupt_file_is_trained_again(tmp_path, monkeypatch):
    monkeypatch.setenv("NFM_CACHE", str(tmp_path))
    calls = []
    original = training.train
    monkeypatch.setattr(training, "train", lambda *a, **k: calls.append(1) or original(*a, **k))
    first = trained_network("mlp", classes=2)
    again = trained_network("mlp", classes=2)
    assert len(calls) == 1
    assert again.test_accuracy == first.test_accuracy
    (path,) = [p for p in tmp_path.rglob("*") if p.is_file()]
    path.write_bytes(b"not a file of torch")
    with pytest.warns(UserWarning, match="again"):
        repaired = trained_network("mlp", classes=2)
    assert len(calls) == 2
    for a, b in zip(first.model.parameters(), repaired.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_changed_library_does_not_meet_networks_of_the_old_one(tmp_path, monkeypatch):
    recipe = NetworkRecipe(classes=2)
    before = training.cache_file(recipe)
    package = Path(shutil.copytree(Path(nt.__file__).parent, tmp_path / "nfm_theory"))
    monkeypatch.setattr(nt, "__file__", str(package / "__init__.py"))
    monkeypatch.setattr(training, "_code", training._code.__wrapped__)  # reads again
    assert training.cache_file(recipe) == before  # the place does not count, the text does
    with (package / "problem.py").open("a") as source:
        source.write("# changed")
    assert training.cache_file(recipe) != before


def test_a_file_is_the_old_or_the_new_one_never_half(tmp_path):
    path = tmp_path / "r.json"
    write_json(path, {"a": 1})

    def killed_while_writing():
        with replace_file(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        killed_while_writing()
    assert path.read_text() == '{\n  "a": 1\n}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


def test_the_study_at_toy_size(tmp_path, monkeypatch):
    monkeypatch.setenv("NFM_CACHE", str(tmp_path / "cache"))
    arguments = ["study", "expansion", "--quick", "--workers", "1", "--out", str(tmp_path)]
    run = CliRunner().invoke(app, arguments)
    found, curves = (read_lines(tmp_path / f"{name}.jsonl") for name in ("expansion", "validity"))
    assert len(found) == len(curves) == len(expansion.cases(quick=True))
    assert run.exit_code == 0, [r["report"]["reason"] for r in found]
    assert {r["report"]["verdict"] for r in found} == {"holds"}
    assert all(r["versions"]["torch"] for r in found)
    assert f"{len(found)} holds, 0 refuted, 0 undecided" in run.output


def test_the_full_list_covers_every_network_task_layer_and_scheme():
    cases = expansion.cases()
    for scheme in ("mixup", "noise", "nfm"):
        combos = {(c.model, c.classes, c.layer) for c in cases if c.scheme == scheme}
        assert combos == {(m, k, layer) for m in MODELS for k in (2, 10) for layer in ("", HIDDEN[m])}


@pytest.mark.parametrize(
    ("verdicts", "status"),
    [(["holds"], 0), (["holds", "undecided"], 3), (["undecided", "refuted", "holds"], 1)],
)
def test_the_worst_verdict_is_the_exit_status(verdicts, status):
    records = [
        {"model": "mlp", "classes": 2, "layer": "", "scheme": "nfm", "report": {"verdict": v, "reason": "why"}}
        for v in verdicts
    ]
    found, lines = expansion.conclude(records, [])
    assert found == status
    assert len(lines) == 1 + sum(v != "holds" for v in verdicts)
