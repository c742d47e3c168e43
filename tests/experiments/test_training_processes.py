"""Training in two processes under `torchrun`: equal weights, and the gradient of one process on the whole batch."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import ddp_processes
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import nfm_theory as nt
from experiments.recipes.schemes import SCHEMES
from experiments.training import CheckpointError, Execution, run_folder, train
from nfm_theory.setting.draws import Draw
from nfm_theory.training.mixup import LayerDraw

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("ddp")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"),
        *("--master-port", str(port), str(ROOT / "tests" / "helpers" / "ddp_processes.py"), str(place)),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return place


def read(folder, name):
    return [torch.load(folder / f"{name}-{rank}.pt", weights_only=True) for rank in range(2)]


def test_both_processes_have_the_same_weights(folder):
    one, other = read(folder, "trained")
    assert_close(one["model"], other["model"], rtol=0, atol=0)
    start = ddp_processes.train.__globals__["build_model"]("nfm_toy", 2, seed=1, width=6).state_dict()
    assert all(not torch.equal(start[name], value) for name, value in one["model"].items())
    assert one["record"]["steps"] == 6


def test_stopped_and_resumed_is_the_whole_in_two_processes(folder):
    assert_close(read(folder, "whole")[0], read(folder, "trained")[0]["model"], rtol=0, atol=0)


def test_the_averaged_gradient_is_that_of_both_draws_in_one_process(folder):
    """Partners of the second process count on from the samples of the first one; λ and noise are rows of their own."""
    parts = read(folder, "step1")
    assert_close(parts[0]["gradient"], parts[1]["gradient"], rtol=0, atol=0)
    assert float(parts[0]["draw"]["lam"][0]) != float(parts[1]["draw"]["lam"][0])
    rows = parts[0]["rows"] + parts[1]["rows"]
    assert sorted(rows) == list(range(8))
    first = len(parts[0]["rows"])
    both = {}
    for name in parts[0]["draw"]:
        offset = first if name in ("anchor", "index") else 0
        both[name] = torch.cat([parts[0]["draw"][name], parts[1]["draw"][name] + offset])
    model = ddp_processes.network()
    nfm = nt.NoisyFeatureMixup(model, "1", SCHEMES["nfm"].law, num_classes=2)
    inputs, targets = nfm(ddp_processes.X[rows], ddp_processes.Y[rows], replay=LayerDraw("1", Draw(**both)))
    F.cross_entropy(model(inputs), targets).backward()
    for p, averaged in zip(model.parameters(), parts[0]["gradient"], strict=True):
        assert_close(p.grad, averaged, rtol=1e-10, atol=1e-12)


def test_a_checkpoint_of_two_processes_needs_two(folder, tmp_path):
    training = ddp_processes.TRAINING
    options = {"classes": 2, "seed": 2, "runs": tmp_path, "execution": Execution(device="cpu", progress=False)}
    train(training, ddp_processes.source(), stop_after=1, **options)
    path = run_folder(tmp_path, training, 2) / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    torch.save(content | {"world": 2}, path)
    with pytest.raises(CheckpointError, match="got one of 2"):
        train(training, ddp_processes.source(), **options)
