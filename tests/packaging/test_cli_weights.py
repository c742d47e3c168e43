"""Weights and data that `nfm` reads: used as they were saved, or refused with the way out."""

import json

import numpy as np
import pytest
import torch
from installed import run_nfm as run
from torch import nn

from nfm_theory.cli.errors import BAD_INPUT, HOLDS, UsageError
from nfm_theory.cli.weights import load_state, load_tensors

FACTORY = """
from torch import nn

def build():
    return nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3))
"""


def build():
    return nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3))


@pytest.fixture
def trained():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return build()


def prefixed(state, prefix):
    return {prefix + name: value for name, value in state.items()}


def averaged(model):
    return torch.optim.swa_utils.AveragedModel(model).state_dict()


SAVED = {
    "plain": lambda m: m.state_dict(),
    "ordered by name": lambda m: dict(sorted(m.state_dict().items())),
    "DataParallel": lambda m: nn.DataParallel(m).state_dict(),
    "compiled": lambda m: prefixed(m.state_dict(), "_orig_mod."),
    "compiled in parallel": lambda m: prefixed(m.state_dict(), "module._orig_mod."),
    "compiled layers": lambda m: {k.replace(".", "._orig_mod.", 1): v for k, v in m.state_dict().items()},
    "averaged": averaged,
    "trainer": lambda m: {"model": m.state_dict(), "epoch": 3},
    "checkpoint": lambda m: {"epoch": 3, "model_state_dict": m.state_dict(), "optimizer_state_dict": {"state": {}}},
    "deeper": lambda m: {"checkpoint": {"net": prefixed(m.state_dict(), "net.")}, "args": {"lr": 0.1}},
    "lightning": lambda m: {
        "pytorch-lightning_version": "2.4", "epoch": 1,
        "state_dict": prefixed(m.state_dict(), "model.") | {"criterion.weight": torch.ones(3)},
    },
    "with an average beside": lambda m: {
        "state_dict": m.state_dict(), "state_dict_ema": {k: v + 1 for k, v in m.state_dict().items()}
    },
    "average beside model": lambda m: {"model": m.state_dict(), "ema": averaged(m)},
    "float16": lambda m: {k: v.half().float() for k, v in m.state_dict().items()},
}  # fmt: skip


@pytest.mark.parametrize("name", SAVED)
@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "old format"])
def test_weights_as_trainers_save_them(name, new_format, trained, tmp_path):
    torch.save(SAVED[name](trained), tmp_path / "w.pt", _use_new_zipfile_serialization=new_format)
    model = build()
    notes = load_state(model, tmp_path / "w.pt")
    assert (notes == []) == (name in ("plain", "ordered by name", "compiled", "compiled layers", "float16"))
    for key, value in model.state_dict().items():
        rtol = 1e-3 if name == "float16" else 0
        torch.testing.assert_close(value, trained.state_dict()[key], rtol=rtol, atol=rtol)


def test_the_command_says_what_it_did_to_the_names(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(FACTORY)
    torch.save((torch.linspace(-1, 1, 48).reshape(4, 12), torch.arange(4) % 3), "d.pt")
    quick = ("--model", "mine.py:build", "--data", "d.pt", "--add-noise", "0", "--mult-noise", "0")
    texts = []
    for name in ("plain", "averaged", "lightning"):
        torch.save(SAVED[name](trained), "w.pt")
        result = run(*quick, "--state-dict", "w.pt")
        assert result.exit_code == HOLDS, result.output
        texts.append(result.stdout)
        assert ("nfm: note: w.pt: " in result.stderr) == (name != "plain")
    assert texts[0] == texts[1] == texts[2]
    assert "criterion.weight" in result.stderr


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.student, self.teacher = build(), build()


REFUSED = {
    "two that fit": (lambda m: Pair().state_dict(), r"several sets .* student\.\*, teacher\.\*"),
    "two keys that fit": (lambda m: {"a": m.state_dict(), "b": m.state_dict()}, "several sets"),
    "one tensor more": (lambda m: m.state_dict() | {"4.weight": torch.ones(2)}, "1 tensors that the model has not"),
    "one tensor less": (lambda m: dict(list(m.state_dict().items())[1:]), "lacks 1 of the model's 4 names"),
    "other names": (lambda m: {f"layer{k}": v for k, v in m.state_dict().items()}, "Rename them"),
    "other shapes": (lambda m: m.state_dict() | {"2.weight": torch.ones(3, 7)}, "size mismatch for '2.weight'"),
    "no weights": (lambda m: {"epoch": 3, "loss": 0.5}, "no weights were found inside; its keys are 'epoch', 'loss'"),
    "nothing": (lambda m: {}, "no weights were found inside"),
    "numbers as keys": (lambda m: {0: torch.ones(2)}, "does not fit the model"),
    "nan": (lambda m: m.state_dict() | {"2.bias": torch.tensor([0.0, float("nan"), 1.0])}, "1 values of '2.bias'"),
    "infinite": (lambda m: m.state_dict() | {"2.bias": torch.full((3,), float("inf"))}, "3 values of '2.bias'"),
    "huge": (lambda m: m.state_dict() | {"2.bias": torch.tensor([0.1, 3.4e37, 0])}, "1 values of '2.bias'"),
    "complex": (lambda m: {k: v.to(torch.complex64) for k, v in m.state_dict().items()}, "expected torch.float32"),
    "integers": (lambda m: {k: v.long() for k, v in m.state_dict().items()}, "expected torch.float32"),
    "sparse": (lambda m: m.state_dict() | {"2.weight": torch.ones(3, 8).to_sparse()}, "expected plain tensors"),
    "quantized": (
        lambda m: m.state_dict() | {"2.bias": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)},
        "expected plain tensors",
    ),
    "numbers": (lambda m: m.state_dict() | {"2.bias": 0.5}, "expected plain tensors in .* got float"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # PyTorch warns of quantized and sparse tensors
@pytest.mark.parametrize("name", REFUSED)
def test_weights_that_do_not_fit_are_refused_with_the_way_out(name, trained, tmp_path):
    content, words = REFUSED[name]
    torch.save(content(trained), tmp_path / "w.pt")
    model = build()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UsageError, match=words):
        load_state(model, tmp_path / "w.pt")
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_buffer_may_be_infinite(tmp_path):
    class Masked(nn.Linear):
        def __init__(self):
            super().__init__(2, 2)
            self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))

    torch.save(Masked().state_dict(), tmp_path / "w.pt")
    assert load_state(Masked(), tmp_path / "w.pt") == []


def test_every_flipped_bit_is_refused_or_without_effect(trained, tmp_path):
    """Bits all over the file; `torch.load` alone accepts those in the values."""
    path = tmp_path / "w.pt"
    torch.save(trained.state_dict(), path)
    whole = path.read_bytes()
    chance, refused = np.random.default_rng(0), 0
    for place in chance.choice(len(whole), 120, replace=False):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << chance.integers(8)
        path.write_bytes(damaged)
        model = build()
        try:
            load_state(model, path)
        except UsageError:
            refused += 1
            continue
        for key, value in trained.state_dict().items():
            assert torch.equal(model.state_dict()[key], value), place
    assert refused > 20
    start = whole.index(trained[0].weight.detach().numpy().tobytes())
    damaged = bytearray(whole)
    damaged[start + 2] ^= 1
    path.write_bytes(damaged)
    assert not torch.equal(torch.load(path, weights_only=True)["0.weight"], trained[0].weight)
    with pytest.raises(UsageError, match="its checksums do not fit"):
        load_tensors("--state-dict", path)


@pytest.fixture
def data_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(FACTORY)
    return tmp_path


X, Y = torch.linspace(-1, 1, 72).reshape(6, 12), torch.arange(6) % 3
DATA = {
    "targets missing": (lambda: (X, Y[:5]), "got 6 inputs and 5 targets"),
    "targets too many": (lambda: (X[:5], Y), "got 5 inputs and 6 targets"),
    "complex inputs": (lambda: (X + 1j, Y), "a complex tensor for x"),
    "complex targets": (lambda: (X, Y + 1j), "a complex tensor for y"),
    "sparse": (lambda: (X.to_sparse(), Y), "a sparse tensor for x"),
    "compressed": (lambda: (X.to_sparse_csr(), Y), "a sparse tensor for x"),
    "nested": (lambda: (torch.nested.nested_tensor([X[0], X[1, :5]]), Y[:2]), "a nested tensor for x"),
    "quantized": (lambda: (torch.quantize_per_tensor(X, 0.1, 0, torch.quint8), Y), "a quantized tensor for x"),
    "a number": (lambda: (X, torch.tensor(1)), "got shape () for y"),
    "empty": (lambda: (X[:0], Y[:0]), "got shape (0, 12) for x"),
    "no tensor": (lambda: {"x": X, "y": 3}, "expected a file with tensors named x and y, got d.pt with y of type int"),
}


@pytest.mark.filterwarnings("ignore")  # PyTorch warns of nested, quantized and sparse tensors
@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("options", [(), ("--num-samples", "2")], ids=["all", "two"])
def test_data_that_are_no_samples_with_targets_are_refused(name, options, data_folder):
    content, words = DATA[name]
    torch.save(content(), "d.pt")
    result = run("--model", "mine.py:build", "--data", "d.pt", *options)
    assert result.exit_code == BAD_INPUT, result.output
    assert words in result.stderr


def test_data_of_the_factory_are_checked_too(data_folder):
    with (data_folder / "mine.py").open("a") as file:
        file.write("\nimport torch\ndef bad():\n    return build(), torch.ones(4, 12) + 1j, torch.arange(4) % 3\n")
    result = run("--model", "mine.py:bad")
    assert result.exit_code == BAD_INPUT
    assert "a complex tensor for x" in result.stderr


def test_complex_arrays_and_damaged_archives_are_refused(data_folder):
    np.savez(data_folder / "d.npz", x=X.numpy() * 1j, y=Y.numpy())
    assert "a complex tensor for x" in run("--model", "mine.py:build", "--data", "d.npz").stderr
    np.savez(data_folder / "d.npz", x=X.numpy(), y=Y.numpy())
    content = bytearray((data_folder / "d.npz").read_bytes())
    content[content.index(X.numpy().tobytes()) + 2] ^= 1
    (data_folder / "d.npz").write_bytes(content)
    assert "cannot be read" in run("--model", "mine.py:build", "--data", "d.npz").stderr


def test_data_that_need_a_gradient_are_data(data_folder):
    torch.save((nn.Parameter(X[:3]), Y[:3]), "d.pt")
    quick = ("--add-noise", "0", "--mult-noise", "0", "--json", "r.json")
    assert run("--model", "mine.py:build", "--data", "d.pt", *quick).exit_code == HOLDS
    assert json.loads((data_folder / "r.json").read_text())["verdict"] == "holds"


BAD_OPTIONS = {
    "--eps": ["0.1,0.1,0.1", "0.1,0.10", ",", "0.1,,0.2", "nan", "inf", "-0.1", "0"],
    "--device": ["cpu:7", "cpu:0", "meta", "cuda:99", "cuda:-1", "mps", "xpu:0", "", "cuda:1:2"],
    "--seed": ["-1", "1e3", "9" * 30],
    "--num-samples": ["-3", "0", "two"],
}


@pytest.mark.parametrize(("option", "value"), [(o, v) for o, values in BAD_OPTIONS.items() for v in values])
def test_options_out_of_range_are_refused(option, value, data_folder):
    torch.save((X, Y), "d.pt")
    result = run("--model", "mine.py:build", "--data", "d.pt", option, value)
    assert result.exit_code == BAD_INPUT, result.output
    assert option in result.stderr
