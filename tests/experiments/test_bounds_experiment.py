"""The bound on trained networks, at toy size: schemes, records, summaries, and CIFAR-10 from a folder of any user."""

import dataclasses
import json
import math
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import nfm_theory as nt
from experiments.commands import app
from experiments.data import cifar
from experiments.data.digits import load_digits, verification_subset
from experiments.data.integrity import DataError, file_hash
from experiments.models.small import MODELS, NETWORKS, PIECEWISE
from experiments.record.files import read_lines
from experiments.studies import bounds, commands
from experiments.studies.networks import NetworkRecipe, centered, train
from nfm_theory.adversarial import certify

SHORT = {"classes": 2, "epochs": 2, "centre": 10}
#: An attack of a few steps: what is asserted about both sides holds for any.
BRIEF = dataclasses.replace(bounds._EFFORT, steps=5, samples=1500)


@pytest.mark.parametrize("scheme", bounds.SCHEMES)
def test_every_scheme_trains_to_the_bit_and_leaves_no_hooks(scheme):
    recipe = NetworkRecipe(model="leaky_mlp", **SHORT, **bounds.SCHEMES[scheme])
    first, second = train(recipe), train(recipe)
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in first.model.modules())
    assert not first.model.training
    assert first.test_accuracy > 0.7


def test_schemes_differ_and_ten_classes_mix_too():
    trained = [
        train(NetworkRecipe(model="relu_mlp", **SHORT, **s)).model.logits.weight for s in bounds.SCHEMES.values()
    ]
    for k, weight in enumerate(trained):
        assert not any(torch.equal(weight, other) for other in trained[:k])
    ten = train(NetworkRecipe(model="leaky_mlp", classes=10, epochs=3, **bounds.SCHEMES["nfm"]))
    assert ten.test_accuracy > 0.7


def test_the_checked_samples_are_centered_and_the_networks_are_what_they_claim():
    data = centered(load_digits(10), 20)
    x, _ = verification_subset(data, 20)
    assert float(x.mean(0).abs().max()) < 1e-12
    assert set(NETWORKS) == set(MODELS) | set(PIECEWISE)
    leaky = PIECEWISE["leaky_mlp"](10).double()
    torch.testing.assert_close(leaky(3 * x), 3 * leaky(x))
    assert not any("bias" in name for name, _ in leaky.named_parameters())
    assert PIECEWISE["cifar_cnn"](2)(torch.zeros(2, 3, 32, 32)).shape == (2, 1)


def test_certified_radius_of_a_linear_network_is_the_distance():
    net = nn.Sequential(nn.Linear(3, 1, bias=False)).double().requires_grad_(False)
    net[0].weight.copy_(torch.tensor([[1.0, 2.0, 2.0]]))
    x = torch.tensor([[1.0, 1.0, 1.0], [-2.0, 0.0, -0.5], [1.0, 0.0, 0.0]], dtype=torch.float64)
    y = torch.tensor([1, 0, 0])  # the last is wrong
    high = torch.full((3,), 10.0, dtype=torch.float64)
    found = bounds.certified_radius(nt.Problem(net, x, y, loss="logistic"), high, bisections=16)
    torch.testing.assert_close(found, torch.tensor([5 / 3, 1.0, 0.0], dtype=torch.float64), rtol=0, atol=2e-3)
    assert certify(nt.Problem(net, x[:2], y[:2], loss="logistic"), found[:2]).robust.all()


def study(*arguments, status=0):
    """Run the command; returns what it prints."""
    run = CliRunner().invoke(app, ["study", "bounds", *map(str, arguments)])
    assert run.exit_code == status, run.output
    return " ".join(run.output.replace("│", " ").split())


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bounds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NFM_CACHE", str(folder / "cache"))
        patch.setattr(bounds, "_EFFORT", BRIEF)
        study("--quick", "--workers", "1", "--out", folder)
    return read_lines(folder / "bounds.jsonl")


def test_records_hold_both_sides_radii_and_provenance(records):
    assert [(r["model"], r["scheme"]) for r in records] == [("leaky_mlp", "nfm"), ("relu_mlp", "erm")]
    for record in records:
        json.dumps(record, allow_nan=False)
        assert record["versions"]["torch"]
        assert record["training"]["centre"] == record["n"] == 10
        for side in record["bound"]:
            assert side["right_lower"] <= side["right_upper"] * (1 + 1e-9)
            assert side["verdict"] in ("certified", "refuted", "undecided")
            if side["verdict"] == "certified":
                assert side["right_upper"] <= side["nfm_loss"]
            assert sum(side["label_kept"].values()) == 10
        points = {name: [math.inf if v is None else v for v in values] for name, values in record["points"].items()}
        names = ("paper", "sharp", "certified", "flip")
        for paper, sharp, certified, flip in zip(*(points[name] for name in names), strict=True):
            assert paper <= sharp * (1 + 1e-6) or "homogeneity" in record["bound"][0]["failed"]
            assert certified <= flip * (1 + 1e-6)
    assert "homogeneity" not in records[0]["bound"][0]["failed"]
    assert "homogeneity" in records[1]["bound"][0]["failed"]
    assert set(records[1]["validity"]) == {"sharp", "mean"}


def test_summaries(records):
    grouped = bounds.groups(records * 2)
    assert {key: len(some) for key, some in grouped.items()} == {("leaky_mlp", 10, "nfm"): 2, ("relu_mlp", 2, "erm"): 2}
    some = grouped["leaky_mlp", 10, "nfm"]
    middle, spread = bounds.mean_of_medians(some, "sharp")
    assert middle == pytest.approx(float(np.median(some[0]["points"]["sharp"])))
    assert spread == 0
    assert bounds.median([1.0, None, None]) == math.inf
    assert 0 <= bounds.kept(some, 0.5) <= bounds.kept(some, 0.1) <= 1
    fake = [{"validity": {"sharp": {"certified": 1.0, "refuted": r}}} for r in (None, None, 1.5)]
    assert bounds.interval(fake) == "2 × ≥ 1, 1 × 1 – 1.5"
    assert bounds.interval(fake[:2]) == "≥ 1"
    assert bounds.interval(fake, "mean") == "–"


def test_the_full_list_covers_both_networks_tasks_schemes_and_seeds():
    cases = bounds.cases()
    assert len(cases) == len(set(cases)) == 2 * 2 * len(bounds.SCHEMES) * len(bounds.SEEDS)
    assert len(bounds.SEEDS) >= 3


def write_cifar(folder, monkeypatch):
    """A toy of the official files, which takes the place of the official checksums."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in cifar.release(10).files:
        count = 30 if name == "test_batch" else 60
        labels = [k % 3 for k in range(count)]
        data = (rng.integers(0, 200, (count, 3072)) + 50 * (np.array(labels) == 1)[:, None]).astype(np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": labels}))
    md5 = {name: file_hash(folder / name) for name in cifar.release(10).files}
    monkeypatch.setitem(cifar.RELEASES, 10, dataclasses.replace(cifar.release(10), md5=md5, size={}))
    return folder


def test_cifar_is_read_from_a_folder_and_checked(tmp_path, monkeypatch):
    folder = write_cifar(tmp_path / "cifar-10-batches-py", monkeypatch)
    data = bounds.load_pair(folder)
    assert data.x.shape == (40, 3, 32, 32)
    assert data.x_test.shape == (20, 3, 32, 32)
    assert torch.bincount(data.y).tolist() == [20, 20]
    assert float(data.x.mean()) == pytest.approx(0, abs=1e-12)
    monkeypatch.setattr(bounds, "_EFFORT", BRIEF)
    monkeypatch.setattr(bounds, "certified_radius", partial(bounds.certified_radius, bisections=1))
    monkeypatch.setattr(bounds, "SCHEMES", {"nfm": bounds.SCHEMES["nfm"]})
    monkeypatch.setenv(commands.CIFAR_VARIABLE, str(folder))
    study("--cifar", "--quick", "--workers", "1", "--out", tmp_path / "out")
    (record,) = read_lines(tmp_path / "out" / "bounds_cifar.jsonl")
    assert record["data"] == "cifar10"
    assert record["training"]["samples"] == 40
    assert record["assumptions"]["homogeneity"]["holds"]
    assert str(tmp_path) not in json.dumps(record)


def test_cifar_is_skipped_or_named_when_it_is_not_there(tmp_path, monkeypatch):
    for name in (commands.CIFAR_VARIABLE, cifar.DATA_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    assert "skipped" in study("--cifar")
    assert "data_batch_1" in study("--cifar-folder", tmp_path, status=2)
    study("--workers", 0, status=2)


def test_other_files_than_the_official_ones_are_refused_and_not_run(tmp_path, monkeypatch):
    folder = write_cifar(tmp_path / "c", monkeypatch)
    (folder / "data_batch_1").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(DataError, match="md5"):
        bounds.load_pair(folder)
    with pytest.raises(DataError, match="expected arrays"):
        bounds.load_pair(folder, check=False)
