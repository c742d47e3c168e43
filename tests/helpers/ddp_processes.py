"""Two processes with averaged gradients: `python -m torch.distributed.run ... tests/ddp_processes.py FOLDER`.

Each process writes what it saw; the test compares it with one process.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from experiments.recipes.recipe import Training
from experiments.recipes.schemes import SCHEMES
from experiments.schemes import build_step
from experiments.training import Execution, MemorySource, run_folder, train
from experiments.training.distributed import join_world

#: 20 samples in batches of 9: 9, 9 and 2, shared unequally.
TRAINING = Training(
    data="toy_rings", model="nfm_toy", scheme=SCHEMES["nfm"], epochs=2, batch_size=9, learning_rate=0.05,
    model_options=(("width", 6),), nesterov=True,
)  # fmt: skip
X = torch.randn((8, 2), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
Y = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1])


def source():
    rng = np.random.default_rng(0)
    return MemorySource(rng.standard_normal((20, 2)).astype(np.float32), rng.integers(0, 2, 20))


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 2)).double()


def mixing_step(folder, layer):
    """The gradient of one step with the draws of this process."""
    with join_world("cpu") as (world, device):
        model = network()
        generator = torch.Generator().manual_seed(10 + world.rank)
        scheme = replace(SCHEMES["nfm"], layers="eligible")
        step = build_step(scheme, model, layers=(layer,), classes=2, mean=(), std=(), generator=generator)
        step.forward = world.wrap(model, device)
        rows = world.share(np.arange(8))
        step.loss(X[rows], Y[rows]).backward()
        draw = dict(vars(step.mixing.last.draw).items())
        gradient = [p.grad for p in model.parameters()]
        torch.save({"rows": rows.tolist(), "draw": draw, "gradient": gradient}, folder / f"step{layer}-{world.rank}.pt")
        return world.rank


def main(folder):
    rank = mixing_step(folder, "1")
    execution = Execution(device="cpu", progress=False, look_steps=2, checkpoint_minutes=0)
    pieces = {"source": source(), "classes": 2, "seed": 1, "runs": folder / "runs", "execution": execution}
    assert train(TRAINING, stop_after=1, **pieces) is None
    assert (run_folder(folder / "runs", TRAINING, 1) / "checkpoint.pt").exists()
    trained = train(TRAINING, **pieces)
    torch.save({"model": trained.model.state_dict(), "record": trained.record}, folder / f"trained-{rank}.pt")
    whole = train(TRAINING, **{**pieces, "runs": folder / "whole"})
    torch.save(whole.model.state_dict(), folder / f"whole-{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
