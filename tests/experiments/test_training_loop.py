"""The training loop: the same bits from any checkpoint, checkpoints that are refused, rates, batches."""

import contextlib
import json
import math
import os
import pickle
import subprocess
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiers import slow
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from experiments.recipes.recipe import Scheme, Training
from experiments.recipes.schemes import SCHEMES
from experiments.training import (
    BusyError,
    CheckpointError,
    DivergedError,
    Execution,
    MemorySource,
    run_folder,
    train,
)
from experiments.training import loop as loop_module
from experiments.training.batches import batch_indices
from experiments.training.checkpoint import exclusive, load_checkpoint, save_checkpoint
from experiments.training.loop import effective_epochs

#: Not channels last: below 8 channels the backward pass of a 1x1 convolution with stride 2 writes beyond its memory
#: there (torch 2.13 with oneDNN on a CPU); no recipe is that narrow.
QUICK = Execution(device="cpu", progress=False, channels_last=False)
EACH_STEP = replace(QUICK, look_steps=1, checkpoint_minutes=0)


def toy_source(n=20):
    rng = np.random.default_rng(0)
    return MemorySource(rng.standard_normal((n, 2)).astype(np.float32), rng.integers(0, 2, n))


def image_source(n=10, side=8):
    rng = np.random.default_rng(1)
    return MemorySource(
        rng.integers(0, 256, (n, side, side, 1), dtype=np.uint8), rng.integers(0, 3, n), (0.5,), (0.25,)
    )


def toy(scheme="baseline", **changes):
    scheme = scheme if isinstance(scheme, Scheme) else SCHEMES[scheme]
    settings = {
        "data": "toy_rings", "model": "nfm_toy", "scheme": scheme, "epochs": 3, "batch_size": 8, "learning_rate": 0.05,
        "model_options": (("width", 6),),
    }  # fmt: skip
    return Training(**settings | changes)


def image_training(scheme="baseline", **changes):
    settings = {
        "data": "digits", "model": "digits_resnet", "scheme": SCHEMES[scheme], "epochs": 2, "batch_size": 4,
        "learning_rate": 0.05, "model_options": (("width", 2),), "augmentation": "crop_flip",
    }  # fmt: skip
    return Training(**settings | changes)


def run(training, folder, *, source=None, seed=1, execution=QUICK, **options):
    source = source or (image_source() if training.data == "digits" else toy_source())
    classes = 3 if training.data == "digits" else 2
    return train(training, source, classes=classes, seed=seed, runs=folder, execution=execution, **options)


def weights(trained):
    return trained.model.state_dict()


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def log_of(training, folder, seed=1):
    lines = (run_folder(folder, training, seed) / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


class KilledError(Exception):
    """Stands for the end of the process."""


# The same bits ----------------------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_bits_and_another_one_others(tmp_path):
    training = toy("nfm")
    first, again = run(training, tmp_path / "a"), run(training, tmp_path / "b")
    assert same(weights(first), weights(again))
    assert log_of(training, tmp_path / "a") == log_of(training, tmp_path / "b")
    assert not same(weights(first), weights(run(training, tmp_path / "a", seed=2)))
    assert {k: v for k, v in first.record.items() if k != "seconds"} == {
        "epochs": 3, "steps": 9, "samples": 20, "final_loss": log_of(training, tmp_path / "a")[-1]["loss"],
        "parameters": sum(p.numel() for p in first.model.parameters()), "device": "cpu",
    }  # fmt: skip


def test_cudnn_chooses_its_algorithms_during_training_only(tmp_path):
    before, seen = torch.backends.cudnn.benchmark, []
    run(toy("nfm"), tmp_path, watch=lambda *_: seen.append(torch.backends.cudnn.benchmark))
    assert all(seen)
    assert torch.backends.cudnn.benchmark == before


def test_the_callers_random_state_is_left_alone(tmp_path):
    before = torch.get_rng_state()
    run(toy("nfm", model_options=(("width", 6), ("dropout", 0.5))), tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_watched_training_has_the_same_bits_and_shows_every_epoch(tmp_path):
    training, seen = toy("nfm", model_options=(("width", 6), ("dropout", 0.5))), {}

    def watch(epoch, model):
        seen[epoch] = {name: value.clone() for name, value in model.state_dict().items()}
        model.eval()
        torch.rand(3)

    plain = run(training, tmp_path / "plain")
    watched = run(training, tmp_path / "watched", watch=watch)
    assert list(seen) == [0, 1, 2, 3]
    assert same(seen[3], weights(watched))
    assert same(weights(watched), weights(plain))
    assert run(training, tmp_path / "pieces", stop_after=2) is None
    before = {epoch: seen.pop(epoch) for epoch in list(seen)}
    run(training, tmp_path / "pieces", watch=watch)
    assert list(seen) == [2, 3]
    assert all(same(seen[epoch], before[epoch]) for epoch in seen)
    run(training, tmp_path / "pieces", watch=lambda *_: pytest.fail("a finished training is only loaded"))


RESUMED = {
    "nfm": toy("nfm", nesterov=True),
    "dropout": toy("baseline", model_options=(("width", 6), ("dropout", 0.5))),
    "adam": toy(Scheme("noisy", alpha=1.0, layers="eligible", add_noise=0.4, jsd=12.0), optimiser="adam"),
    "cosine": toy("mixup", schedule="cosine", weight_decay=0.1),
    "taylor": toy(Scheme("taylor", alpha=1.0, add_noise=0.4, layers="eligible", terms=("R1", "R2", "R2_add"))),
    "adversarial": image_training("adversarial", epochs=16),
    "noisymix": image_training("noisymix", views="augmix", epochs=1),
    "batch_norm": image_training("nfm"),
}


@pytest.mark.parametrize("early", [False, *slow([True])])
@pytest.mark.parametrize("name", RESUMED)
def test_a_training_that_was_killed_goes_on_with_the_same_bits(name, early, tmp_path, monkeypatch):
    """Killed at each of a few checkpoints: right before it is written, and right after."""
    training = RESUMED[name]
    whole = run(training, tmp_path / "whole")
    steps = effective_epochs(training) * math.ceil((20 if training.data != "digits" else 10) / training.batch_size)
    for at in {1, 2} if early else {steps // 2 + 1, steps}:
        for after in (False, True):
            count = 0

            def save(path, content, at=at, after=after):
                nonlocal count
                count += 1
                if count == at and not after:
                    raise KilledError
                save_checkpoint(path, content)
                if count == at:
                    raise KilledError

            folder = tmp_path / f"{at}-{after}"
            with monkeypatch.context() as patch:
                patch.setattr(loop_module, "save_checkpoint", save)
                with pytest.raises(KilledError):
                    run(training, folder, execution=EACH_STEP)
            resumed = run(training, folder, execution=EACH_STEP)
            assert same(weights(whole), weights(resumed)), (at, after)
            assert log_of(training, tmp_path / "whole") == log_of(training, folder)
            assert whole.record["final_loss"] == resumed.record["final_loss"]
            assert not (run_folder(folder, training, 1) / "checkpoint.pt").exists()


@pytest.mark.parametrize("stop", [0, 1, 2])
def test_a_training_in_pieces_is_the_whole_one(stop, tmp_path):
    training = toy("nfm")
    assert run(training, tmp_path / "pieces", stop_after=stop) is None
    assert len(log_of(training, tmp_path / "pieces")) == stop if stop else True
    trained = run(training, tmp_path / "pieces")
    assert same(weights(trained), weights(run(training, tmp_path / "whole")))
    assert log_of(training, tmp_path / "pieces") == log_of(training, tmp_path / "whole")


def test_what_is_finished_is_loaded(tmp_path, monkeypatch):
    training = toy("nfm")
    first = run(training, tmp_path)
    monkeypatch.setattr(loop_module._Run, "epoch", None)
    again = run(training, tmp_path)
    assert same(weights(first), weights(again))
    assert first.record == again.record
    assert not again.model.training
    assert not any(p.requires_grad for p in again.model.parameters())
    assert not any(m._forward_hooks for m in again.model.modules())


def test_the_last_epoch_is_what_is_kept(tmp_path):
    """By hand: plain SGD with the order of the batches."""
    training = toy(model="noisymix_toy", momentum=0.0, weight_decay=0.01)
    source = toy_source()
    model = loop_module.build_model("noisymix_toy", 2, seed=1, width=6)
    losses = []
    for epoch in range(3):
        total = 0.0
        for batch in batch_indices(20, training, 1, epoch):
            x, y = torch.from_numpy(source.samples[batch]), torch.from_numpy(source.labels[batch])
            loss = torch.nn.functional.cross_entropy(model(x), y)
            total += float(loss.detach()) * len(batch) / 20
            grads = torch.autograd.grad(loss, list(model.parameters()))
            with torch.no_grad():
                for p, g in zip(model.parameters(), grads, strict=True):
                    p -= 0.05 * (g + 0.01 * p)
        losses.append(total)
    trained = run(training, tmp_path)
    assert_close(weights(trained), dict(model.state_dict()), rtol=1e-5, atol=1e-6)
    log = log_of(training, tmp_path)
    assert [line["epoch"] for line in log] == [0, 1, 2]
    assert [line["learning_rate"] for line in log] == [0.05] * 3
    assert [line["loss"] for line in log] == pytest.approx(losses, rel=1e-5)


def test_a_loss_that_is_no_number_ends_the_training(tmp_path):
    with pytest.raises(DivergedError, match=r"loss (nan|inf) in epoch \d+, batch \d+, after .*; lower the"):
        run(toy(learning_rate=1e30, epochs=5), tmp_path)
    assert not (run_folder(tmp_path, toy(learning_rate=1e30, epochs=5), 1) / "final.pt").exists()


class Reads(TorchDispatchMode):
    """Counts how often a number is taken from a tensor, for which the program waits on another device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("name", ["baseline", "label_smoothing"])
def test_no_step_waits_for_the_loss(name, tmp_path, monkeypatch):
    looks, reads, (look, step) = [], Reads(), (loop_module._Run.look, loop_module._Run.one_batch)

    def counted(self, before):
        looks.append(len(self.unseen))
        return look(self, before)

    def watched(*arguments):
        with reads:
            return step(*arguments)

    monkeypatch.setattr(loop_module._Run, "look", counted)
    monkeypatch.setattr(loop_module._Run, "one_batch", watched)
    run(image_training(name), tmp_path, execution=replace(QUICK, look_steps=2))
    assert looks == [2, 1, 2, 1]  # three batches in each of two epochs
    assert reads.count == 0
    with reads:
        float(torch.ones(()))
    assert reads.count == 1


@pytest.mark.parametrize("steps", [1, 2, 100])
def test_the_log_does_not_depend_on_the_looks(steps, tmp_path):
    training = image_training("nfm")
    whole = run(training, tmp_path / "whole")
    again = run(training, tmp_path / "again", execution=replace(QUICK, look_steps=steps))
    assert same(weights(whole), weights(again))
    assert log_of(training, tmp_path / "whole") == log_of(training, tmp_path / "again")


@pytest.mark.parametrize(("minutes", "expected"), [(0, 2 * 3 + 1), (1e-9, 2 * 3 + 1), (60, 0)])
def test_checkpoints_are_written_by_time(minutes, expected, tmp_path, monkeypatch):
    saves = []
    monkeypatch.setattr(loop_module._Run, "save", lambda run, path: saves.append((run.state.epoch, run.state.batch)))
    run(image_training(), tmp_path, execution=replace(QUICK, look_steps=1, checkpoint_minutes=minutes))
    assert len(saves) == expected
    assert not saves or saves == [(0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3)]


# Checkpoints ------------------------------------------------------------------------------------------------------


@pytest.fixture
def stopped(tmp_path):
    training = toy("nfm")
    run(training, tmp_path, stop_after=1)
    return training, tmp_path, run_folder(tmp_path, training, 1) / "checkpoint.pt"


@pytest.mark.parametrize("damage", ["empty", "truncated", "text", "zip", "middle"])
def test_a_damaged_checkpoint_is_an_error_with_file_and_remedy(damage, stopped):
    training, folder, path = stopped
    content = path.read_bytes()
    if damage == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("hello", "world")
    else:
        half = len(content) // 2
        path.write_bytes({
            "empty": b"", "truncated": content[:half], "text": b"no checkpoint",
            "middle": content[: half - 50] + bytes(100) + content[half + 50 :],
        }[damage])  # fmt: skip
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt: .*delete it to train from the start"):
        run(training, folder)


def test_one_wrong_byte_in_the_records_is_noticed(stopped):
    """In weights as well, where nothing but the checksum can tell."""
    training, _folder, path = stopped
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        records = [(info.filename, info.file_size, archive.read(info)) for info in archive.infolist()]
    rng = np.random.default_rng(0)
    for name, size, data in records:
        place = content.index(data) if size >= 16 else -1
        if place < 0:
            continue
        damaged = bytearray(content)
        damaged[place + int(rng.integers(size))] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="cannot be read"):
            load_checkpoint(path, hash=training.hash, seed=1)
        assert name
    assert sum(size >= 16 for _, size, _ in records) > 10


@pytest.mark.parametrize("seed", range(3))
def test_random_damage_gives_no_other_error(seed, stopped):
    training, _folder, path = stopped
    content = path.read_bytes()
    rng = np.random.default_rng(seed)
    for _ in range(40):
        damaged = bytearray(content)
        for place in rng.integers(len(content), size=4):
            damaged[place] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged[: int(rng.integers(len(content) // 2, len(content) + 1))])
        with contextlib.suppress(CheckpointError):
            load_checkpoint(path, hash=training.hash, seed=1)


def test_a_foreign_checkpoint_is_refused(stopped):
    training, folder, path = stopped
    other = run_folder(folder, training, 2)
    other.mkdir()
    (other / path.name).write_bytes(path.read_bytes())
    with pytest.raises(CheckpointError, match=f"expected recipe {training.hash} with seed 2, got .* with 1; use"):
        run(training, folder, seed=2)
    changed = replace(training, epochs=9)
    place = run_folder(folder, changed, 1)
    place.mkdir(parents=True)
    (place / "final.pt").write_bytes(path.read_bytes())
    with pytest.raises(CheckpointError, match=r"final\.pt: expected recipe .* delete it"):
        run(changed, folder)


def test_another_version_and_another_number_of_processes_are_refused(stopped):
    training, folder, path = stopped
    content = torch.load(path, weights_only=True)
    torch.save(content | {"version": 99}, path)
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt: expected a checkpoint of version 1, got 99; delete"):
        run(training, folder)
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match=r"version 1, got list; delete"):
        run(training, folder)
    torch.save(content | {"world": 2}, path)
    with pytest.raises(CheckpointError, match=r"a checkpoint of 1 process\(es\), got one of 2; start as many"):
        run(training, folder)


class Harmful:
    """Runs code when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_nothing_in_a_checkpoint_is_run(how, stopped):
    training, folder, path = stopped
    target = folder / "executed"
    content = torch.load(path, weights_only=True) | {"step": [{"delta": Harmful(target)}]}
    if how == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match="cannot be read"):
        run(training, folder)
    assert not target.exists()


def test_a_failed_write_leaves_the_old_checkpoint(stopped, monkeypatch):
    _, _, path = stopped
    before = path.read_bytes()

    def broken(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(path, {"hash": "x", "seed": 0})
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir() if p.suffix == ".pt"] == ["checkpoint.pt"]


def test_two_processes_do_not_train_the_same(tmp_path):
    training = toy()
    folder = run_folder(tmp_path, training, 1)
    hold = (
        "import sys, fcntl\nfile = open(sys.argv[1], 'w')\nfcntl.flock(file, fcntl.LOCK_EX)\n"
        "print('locked', flush=True)\nsys.stdin.read()"
    )
    folder.mkdir(parents=True)
    command = [sys.executable, "-c", hold, str(folder / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(BusyError, match=r"seed-1: another process is at work there; wait"):
            run(training, tmp_path)
        other.kill()  # the lock goes with the process
        other.wait()
    assert run(training, tmp_path) is not None
    with exclusive(folder):
        pass
