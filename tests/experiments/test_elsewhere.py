"""Weights that were trained elsewhere: what files are read, what is refused, and where the results stand."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import paper_sets
import pytest
import torch
from ledger_entries import entry
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from experiments.claims.comparisons import claim
from experiments.claims.evidence import Records
from experiments.commands import app
from experiments.data import load_data
from experiments.data.imagenet import load_imagenet
from experiments.elsewhere import View, measure_elsewhere, open_elsewhere
from experiments.evaluation import Subject, few_tests, run_suite
from experiments.evaluation.elsewhere import load_into, read_weights
from experiments.models import build_model
from experiments.recipes import get_recipe
from experiments.record.ledger import Entry, LedgerError, read, validate
from experiments.tables.build import build_table, judge_claims
from experiments.tables.claims import NOT_SUPPORTED, SUPPORTED
from experiments.tables.render import table_markdown

RECIPE = get_recipe("digits/nfm")
TRAINING = RECIPE.training


def network(seed=3):
    return build_model(TRAINING.model, 10, seed=seed, **dict(TRAINING.model_options))


STATE = network().state_dict()
NORMAL = {"mean": torch.full((1, 1, 1, 1), 0.25), "std": torch.full((1, 1, 1, 1), 0.5)}


def prefixed(*heads, state=STATE):
    return {"".join(heads) + name: value for name, value in state.items()}


@pytest.fixture
def saved(tmp_path):
    def save(content, name="weights.pt", **options):
        torch.save(content, tmp_path / name, **options)
        return tmp_path / name

    return save


# Files

STYLES = {
    "torchvision": STATE,
    "data parallel": {"state_dict": prefixed("module."), "epoch": 90, "arch": "resnet"},
    "lightning": {"state_dict": prefixed("model."), "global_step": 5},
    "compiled": {"model": prefixed("_orig_mod.")},
    "compiled and parallel": {"net": prefixed("module.", "_orig_mod."), "acc": 95.0, "epoch": 3},
    "a compiled part": {k.replace("layer1.", "layer1._orig_mod."): v for k, v in STATE.items()},
    "average": {"ema": prefixed("module."), "decay": 0.99},
    "nested": {"model": {"state_dict": STATE, "note": "x"}},
    "this project": {"version": 1, "hash": "0", "seed": 1, "model": STATE, "record": {}},
    "robustbench": prefixed("model.") | {f"normalize.{k}": v for k, v in NORMAL.items()},
    "robustbench, parallel": {
        "state_dict": prefixed("module.model.") | {f"module.normalize.{k}": v for k, v in NORMAL.items()}
    },
    "half precision": {k: v.half() if v.is_floating_point() else v for k, v in STATE.items()},
    "no counters": {k: v for k, v in STATE.items() if "num_batches" not in k},
}  # fmt: skip


@pytest.mark.parametrize("style", STYLES)
def test_all_styles_give_the_same_network(saved, style):
    weights = read_weights(saved(STYLES[style]))
    loaded = load_into(network(seed=8), weights)
    tolerance = {"rtol": 1e-3, "atol": 1e-3} if style == "half precision" else {"rtol": 0, "atol": 0}
    for name, value in loaded.state_dict().items():
        if "num_batches" not in name:
            torch.testing.assert_close(value, STATE[name], **tolerance)
    assert not any(p.requires_grad for p in loaded.parameters())
    assert not loaded.training
    assert (weights.mean, weights.std) == (((0.25,), (0.5,)) if "robustbench" in style else ((), ()))


@pytest.mark.parametrize(("model", "options"), [("wideresnet28", {"widen": 1}), ("preactresnet18", {"width": 8})])
def test_names_of_the_authors_code_for_cifar(saved, model, options):
    """In theirs the 1x1 convolution of a block is `shortcut.0`, and the last BatchNorm of WRN-28 `bn1`."""
    state = build_model(model, 10, seed=1, **options).state_dict()
    theirs = {
        ("bn1." + name.removeprefix("bn.") if name.startswith("bn.") else name).replace("project", "shortcut.0"): value
        for name, value in state.items()
    }
    assert theirs.keys() != state.keys()
    weights = read_weights(saved({"net": prefixed("module.", state=theirs)}))
    loaded = load_into(build_model(model, 10, seed=2, **options), weights)
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())


def test_old_files_and_the_checksum(saved):
    path = saved(STATE, _use_new_zipfile_serialization=False)
    assert read_weights(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


FAULTY = {
    "missing": ({k: v for k, v in STATE.items() if k != "conv1.weight"}, r"missing: conv1\.weight"),
    "unknown": (STATE | {"head.weight": torch.zeros(3)}, r"unknown: head\.weight"),
    "shape": (STATE | {"conv1.weight": torch.zeros(8, 3, 3, 3)}, r"conv1\.weight \(8, 3, 3, 3\) instead of"),
    "another network": ({f"blocks.{k}": v for k, v in STATE.items()}, r"missing: .*and \d+ more; unknown: blocks\."),
    "no weights": ({"epoch": 3, "note": "x"}, r"expected tensors by name.*'epoch', 'note'"),
    "empty": ({}, "got nothing"),
    "a tensor": (torch.zeros(3), "expected tensors by name, got Tensor"),
    "two sets": (prefixed("module.") | STATE, "got several"),
    "half a normalization": (STATE | {"normalize.mean": NORMAL["mean"]}, "got 1 and 0 numbers"),
    "two normalizations": (STATE | {"mean": NORMAL["mean"], "mu": NORMAL["mean"]}, "expected one normalization, got 2"),
    "channels": (STATE | {"mu": torch.zeros(3), "sigma": torch.ones(3)}, "expected 1 means"),
    "zero": (STATE | {"mu": torch.zeros(1), "sigma": torch.zeros(1)}, "positive deviations"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTY)
def test_what_does_not_fit_is_told_in_a_sentence(saved, fault):
    content, words = FAULTY[fault]
    with pytest.raises(ValueError, match=words):
        open_elsewhere(RECIPE, saved(content))


def test_code_in_a_file_is_not_run(saved, tmp_path):
    with pytest.raises(ValueError, match=r"nothing but weights.*save `network\.state_dict"):
        read_weights(saved(network()))
    (tmp_path / "text").write_text("no weights")
    with pytest.raises(ValueError, match="cannot be read"):
        read_weights(tmp_path / "text")
    with pytest.raises(FileNotFoundError, match="expected a file of weights"):
        read_weights(tmp_path / "none")


# Measurements


class Inside(nn.Module):
    """A network that normalizes its images itself."""

    def __init__(self, model, mean, std):
        super().__init__()
        self.model, self.mean, self.std = model.eval(), mean, std

    def forward(self, pixels):
        return self.model((pixels - self.mean) / self.std)


def plain_accuracy(model, mean, std):
    """Share of right answers, image by image, with the normalization inside the network."""
    test, inside = load_data("digits").test, Inside(model, mean, std)
    with torch.inference_mode():
        right = [
            int(inside(image[None].float() / 255).argmax()) == int(label)
            for image, label in zip(test.images, test.labels, strict=True)
        ]
    return sum(right) / len(right)


def accuracy_of(path, ledger, view=None):
    _, metrics = measure_elsewhere(open_elsewhere(RECIPE, path, view), ledger, suites=["clean"], device="cpu")
    return metrics["clean"]["clean"]


def test_the_normalization_of_the_file_the_user_or_the_recipe(saved, tmp_path):
    model, ledger = network(), tmp_path / "l.jsonl"
    data = load_data("digits")
    with_own = saved(STYLES["robustbench"], "own.pt")
    without = saved(STATE, "plain.pt")
    own = plain_accuracy(model, 0.25, 0.5)
    assert accuracy_of(with_own, ledger) == own
    assert accuracy_of(without, ledger, View(mean=(0.25,), std=(0.5,))) == own
    assert accuracy_of(without, ledger) == plain_accuracy(model, data.mean[0], data.std[0])
    sources = [line.settings["normalization"]["from"] for line in read(ledger)]
    assert sources == ["file", "user", "recipe"]
    assert len({line.hash for line in read(ledger)}) == 3
    with pytest.raises(ValueError, match=r"own\.pt holds a mean"):
        open_elsewhere(RECIPE, with_own, View(mean=(0.5,), std=(0.5,)))
    with pytest.raises(ValueError, match="both a mean and a standard deviation"):
        open_elsewhere(RECIPE, without, View(mean=(0.5,)))
    with pytest.raises(ValueError, match="expected a recipe on ImageNet"):
        open_elsewhere(RECIPE, without, View(resize_corrupted=True))


def test_the_line_of_the_ledger(saved, tmp_path):
    ledger, path = tmp_path / "l.jsonl", saved(STATE)
    accuracy_of(path, ledger)
    (line,) = read(ledger)
    assert (line.size, line.seed, line.recipe, line.scheme) == ("elsewhere", 0, "digits/nfm", "nfm")
    assert (line.settings["recipe"], line.settings["file"]) == (RECIPE.hash, "weights.pt")
    assert line.settings["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert line.training["steps"] == 0
    assert line.hash != RECIPE.hash
    assert validate(ledger) == []
    new, metrics = measure_elsewhere(open_elsewhere(RECIPE, path), ledger, suites=["clean"], device="cpu")
    assert (new, len(read(ledger))) == ([], 1)
    assert metrics["clean"] == line.metrics


def test_a_line_that_does_not_name_its_recipe_and_weights_is_refused():
    made = line("noisymix-table1/noisymix", 0.5)
    for name, wrong in (("recipe", None), ("sha256", "x")):
        with pytest.raises(LedgerError, match=rf"settings\.{name}: expected \d+ hexadecimal digits"):
            replace(made, settings=made.settings | {name: wrong})


def test_points_have_no_normalization(saved, tmp_path):
    toy = get_recipe("nfm-figure-toy/nfm")
    state = build_model(toy.training.model, 2, **dict(toy.training.model_options)).state_dict()
    chosen = open_elsewhere(toy, saved(state))
    assert measure_elsewhere(chosen, tmp_path / "l.jsonl", device="cpu")[0] == ["clean"]
    with pytest.raises(ValueError, match="points and no images"):
        open_elsewhere(toy, saved(state), View((0.5,), (0.5,)))


# ImageNet


class Recorder(nn.Module):
    """Keeps the first images that it sees."""

    def __init__(self):
        super().__init__()
        self.seen, self.weight = None, nn.Parameter(torch.zeros(1))

    def forward(self, x):
        self.seen = x.clone() if self.seen is None else self.seen
        return x.mean((2, 3))


def test_images_of_imagenet_c_as_they_are_or_resized(tmp_path, monkeypatch):
    monkeypatch.setenv("NFM_DATA", str(tmp_path))
    paper_sets.write_class_folders(tmp_path / "imagenet" / "val", {w: [0, 1] for w in paper_sets.WNIDS}, (70, 90))
    paper_sets.write_imagenet_c(tmp_path / "ImageNet-C")
    side = paper_sets.SIDE
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))
    place = tmp_path / "ImageNet-C" / "noise" / "gaussian_noise" / "1" / "n01" / "0.JPEG"
    image.save(place, "JPEG")
    stored = Image.open(place).convert("RGB")
    data = load_imagenet(tmp_path / "imagenet", classes=3, training=False)
    whole = stored.resize((73, 73), Image.Resampling.BILINEAR)
    border = round((73 - side) / 2)
    views = {False: stored, True: whole.crop((border, border, border + side, border + side))}
    for resized, expected in views.items():
        model = Recorder().eval()
        subject = Subject(model, data, "paper", image_size=side, resize_corrupted=resized)
        _, settings = run_suite("corrupted", subject)
        pixels = torch.from_numpy(np.array(expected)).permute(2, 0, 1)
        torch.testing.assert_close(model.seen[0], data.normalize(pixels), rtol=0, atol=1e-6)
        assert settings.get("resize") == (73 if resized else None)


def test_the_test_of_an_epoch_takes_images_of_all_classes(tmp_path):
    paper_sets.write_class_folders(tmp_path / "val", {w: [k] * 4 for k, w in enumerate(paper_sets.WNIDS)}, (70, 90))
    data = load_imagenet(tmp_path, classes=3, training=False)
    few = few_tests(data, 6)
    assert few.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert len(data.test) == 12
    subject = Subject(paper_sets.Color().eval(), few, "paper", image_size=paper_sets.SIDE)
    assert run_suite("clean", subject) == ({"clean": 1.0}, {"images": 6, "resize": 73, "crop": 64})


# Tables and claims


def line(name, value, *, number=0, resized=False):
    """A line of the ledger of weights that were trained elsewhere."""
    recipe = get_recipe(name)
    settings = {"recipe": recipe.hash, "file": f"{number}.pt", "sha256": "0" * 64, "resize_corrupted": resized}
    hash_ = hashlib.sha256(f"{name} {number} {resized}".encode()).hexdigest()[:16]
    made = entry(name, 1, "corrupted", **{"corrupted/mean": value})
    return replace(
        made, hash=hash_, seed=0, size="elsewhere", settings=settings,
        training={"epochs": 0, "steps": 0, "samples": 0, "seconds": 0.0, "final_loss": None},
    )  # fmt: skip


def all_rows(best="noisymix"):
    names = ("baseline", "adversarial", "autoaugment", "mixup", "cutmix", "augmix", "noisymix")
    return [line(f"noisymix-table1/{name}", 0.5 if name == best else 0.4) for name in names]


def test_they_stand_in_a_column_of_their_own():
    lines = [
        *all_rows(),
        line("noisymix-table1/noisymix", 0.52, number=1),
        entry("noisymix-table1/baseline", 1, clean=0.7),
    ]
    table = build_table("noisymix-table1", lines)
    assert [group.size for group in table.groups] == ["paper", "elsewhere"]
    group = table.groups[1]
    assert group.heading == "trained elsewhere: imagenet, resnet50"
    assert group.cells["noisymix", "imagenet_c"].by_seed == ((1, 50.0), (2, 52.0))
    assert "trained elsewhere" in table_markdown(table)
    assert ("noisymix", "imagenet_c") not in table.groups[0].cells
    assert [g.size for g in build_table("noisymix-table1", lines, ["elsewhere"]).groups] == ["elsewhere"]


def test_each_view_has_its_column():
    lines = [line("noisymix-table1/noisymix", 0.5), line("noisymix-table1/noisymix", 0.45, resized=True)]
    headings = [group.heading for group in build_table("noisymix-table1", lines).groups]
    assert headings[0] == "trained elsewhere: imagenet, resnet50"
    assert "resized to 256" in headings[1]


@pytest.mark.parametrize(("best", "word"), [("noisymix", SUPPORTED), ("augmix", NOT_SUPPORTED)])
def test_they_decide_no_claim_but_are_shown_beside(best, word):
    lines = all_rows(best)
    judged = {j.claim.id: j for j in judge_claims(lines)}["noisymix-imagenet-c"]
    assert judged.ours == {}
    assert judged.elsewhere.word == word
    verdict = claim("noisymix-imagenet-c")(Records(entries=tuple(lines)))
    assert verdict.word == "not run"
    assert f"networks trained elsewhere: {word}" in verdict.detail


def test_a_result_in_bfloat16_has_a_column_of_its_own():
    from experiments.recipes import in_bfloat16

    recipe = get_recipe("nfm-table1/nfm")
    low = replace(entry(recipe.name, 1, clean=0.9), hash=in_bfloat16(recipe).hash)
    table = build_table("nfm-table1", [entry(recipe.name, 1, clean=0.95), low])
    assert [group.cells["nfm", "clean"].mean for group in table.groups] == [95, 90]
    assert [("bfloat16" in group.heading) for group in table.groups] == [False, True]


# The command


def test_the_command_measures_and_tables_show_it(saved, tmp_path):
    path, ledger = saved(STYLES["robustbench"]), tmp_path / "l.jsonl"

    def call(*arguments):
        return CliRunner().invoke(app, [str(a) for a in arguments])

    options = ("--weights", path, "--suite", "clean", "--device", "cpu", "--ledger", ledger)
    result = call("evaluate", "digits/nfm", *options)
    assert result.exit_code == 0, result.output
    assert hashlib.sha256(path.read_bytes()).hexdigest() in result.output
    assert "normalization of the file" in result.output
    assert f"{read(ledger)[0].metrics['clean']:.4f}" in result.output
    assert "measured before" in call("evaluate", "digits/nfm", *options).output
    shown = call("tables", "--table", "nfm-table1", "--ledger", ledger)
    assert "trained elsewhere: digits" in shown.output

    for changes, words in (
        ({"--suite": "cleen"}, "expected one of"), ({"--weights": tmp_path / "none"}, "expected a file of weights"),
        ({"--mean": "a,b"}, "expected numbers"),
    ):  # fmt: skip
        wrong = dict(zip(options[::2], options[1::2], strict=True)) | changes
        result = call("evaluate", "digits/nfm", *(part for pair in wrong.items() for part in pair))
        assert (result.exit_code, words in result.output) == (2, True), result.output
        assert "Traceback" not in result.output
    assert isinstance(Entry.from_json(json.dumps(json.loads(ledger.read_text()))), Entry)
