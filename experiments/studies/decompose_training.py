"""What the NFM loss is made of while networks train: each term of the expansion, and what it leaves out.

    python -m experiments.studies.decompose_training [--out DIR] [--quick] [--seeds 1,2,3]

Trains the schemes of `SCHEMES` on digits, with ReLU and with SiLU, by their recipes. At some epochs the network is
taken as it is tested, in evaluation mode with the running statistics of its batch norms, and on some training images

    L_NFM(1) = L_std + R1 + R2 + R3 + R2_add + R3_add + R2_mult + R3_mult + remainder

is computed at each eligible layer, with the laws of NFM as released; NFM's loss is the mean over these layers. The
terms are exact over all pairs, the loss is Monte Carlo with its standard error, the remainder is the difference.
Writes `decomposition.jsonl`, a record per network, seed and epoch, and prints those of the last epoch.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

import nfm_theory as nt
from nfm_theory.setting.results import SECOND_ORDER

from ..console import wide_console
from ..data.digits_images import digits_images
from ..models import build_model, eligible_layers
from ..recipes import get_recipe
from ..recipes.recipe import Training
from ..recipes.schemes import SCHEMES as ALL_SCHEMES
from ..record.files import RESULTS, versions, write_lines
from ..runner import load_training_data
from ..training import Execution, train

FILE = "decomposition.jsonl"
#: Recipes by activation, and their rows.
STUDIES = {"relu": "digits-terms", "silu": "digits-terms-smooth"}
SCHEMES = ("baseline", "nfm", "taylor_nfm")
EPOCHS = (0, 1, 2, 4, 8, 14, 20)
SEEDS = (1,)
#: Training images, and evaluations of the head for each layer.
NUM_SAMPLES, EVALUATIONS = 100, 6_000
#: Everything that the loss is made of, in the order in which it is shown.
PARTS = ("standard", "R1", *SECOND_ORDER)


@dataclass(frozen=True)
class Case:
    """One training that is looked at.

    Attributes:
        activation: of the network, a key of `STUDIES`.
        scheme: row of the recipes.
        seed: of the training.
        epochs: at which the loss is taken apart, those beyond the end are left out.
        num_samples: n.
        evaluations: of the head for the Monte Carlo at each layer.
        length: epochs of a shorter training; `None` for the recipe's.
    """

    activation: str
    scheme: str
    seed: int
    epochs: tuple[int, ...] = EPOCHS
    num_samples: int = NUM_SAMPLES
    evaluations: int = EVALUATIONS
    length: int | None = None

    @property
    def training(self) -> Training:
        """Settings of the training."""
        found = get_recipe(f"{STUDIES[self.activation]}/{self.scheme}").training
        return found if self.length is None else replace(found, epochs=self.length)


def cases(*, seeds: Sequence[int] = SEEDS, quick: bool = False) -> list[Case]:
    """What is trained; `quick` is a toy of the same shape."""
    if quick:
        small = {"epochs": (0, 1), "num_samples": 12, "evaluations": 240, "length": 1}
        return [Case(activation, "nfm", 1, **small) for activation in STUDIES]
    return [Case(activation, scheme, seed) for activation in STUDIES for scheme in SCHEMES for seed in seeds]


def laws() -> dict:
    """Laws of λ and of the noise with which NFM trains."""
    scheme = ALL_SCHEMES["nfm"]
    return {name: getattr(scheme, name) for name in ("alpha", "add_noise", "mult_noise", "noise")}


def images(n: int) -> tuple[Tensor, Tensor]:
    """The first n training images as networks see them, float64, and their labels."""
    data = digits_images()
    mean, std = (torch.tensor(values, dtype=torch.float64).reshape(-1, 1, 1) for values in (data.mean, data.std))
    return (data.train.images[:n].double() / 255 - mean) / std, data.train.labels[:n]


def decompose(
    model: nn.Module, x: Tensor, y: Tensor, *, layers: Sequence[str], evaluations: int, seed: int, **options
) -> dict:
    """The NFM loss at ε = 1 and what it is made of, at each layer and on average.

    Args:
        model: network in evaluation mode.
        x: inputs.
        y: class indices.
        layers: names, `""` for the input.
        evaluations: of the head at each layer.
        seed: of the draws; each layer has its own.
        **options: laws, as in `nt.nfm_loss`.

    Returns:
        `"loss"`, its `"stderr"`, `"terms"`, `"remainder"`, and the same for each layer under `"per_layer"`.
    """
    found = {}
    for number, layer in enumerate(layers):
        with torch.no_grad():
            terms = nt.taylor_terms(model, x, y, layer=layer, remainder=False, **options)
            # At ε = 1 a polynomial as control variate costs more than it saves
            loss = nt.nfm_loss(
                model, x, y, layer=layer, method="monte_carlo", samples=evaluations, control_variate="none",
                generator=torch.Generator().manual_seed(1000 * seed + number), progress=False, **options,
            )  # fmt: skip
        found[layer] = _record(float(loss.value), float(loss.stderr), terms.to_dict())
    mean = {name: math.fsum(r["terms"][name] for r in found.values()) / len(found) for name in PARTS}
    loss = math.fsum(r["loss"] for r in found.values()) / len(found)
    stderr = math.sqrt(math.fsum(r["stderr"] ** 2 for r in found.values())) / len(found)
    return _record(loss, stderr, mean) | {"per_layer": found}


def _record(loss: float, stderr: float, terms: dict[str, float]) -> dict:
    terms = {name: terms[name] for name in PARTS}
    return {"loss": loss, "stderr": stderr, "terms": terms, "remainder": loss - math.fsum(terms.values())}


def run_case(case: Case) -> list[dict]:
    """Train a network by its recipe and take the loss apart at each epoch asked for."""
    training = case.training
    source, _, classes = load_training_data(training)
    layers = eligible_layers(training.model)
    x, y = images(case.num_samples)
    records: list[dict] = []

    def watch(epoch: int, model: nn.Module) -> None:
        if epoch not in case.epochs:
            return
        # A network of its own: no hooks of the scheme, no state of the training
        twin = build_model(training.model, classes, **dict(training.model_options)).double().eval()
        twin.load_state_dict(model.state_dict())
        start = time.perf_counter()
        found = decompose(twin, x, y, layers=layers, evaluations=case.evaluations, seed=case.seed, **laws())
        with torch.no_grad():
            accuracy = float((twin(x).argmax(1) == y).double().mean())
        records.append({
            "activation": case.activation, "scheme": case.scheme, "seed": case.seed, "epoch": epoch,
            "epochs": training.epochs, "hash": training.hash, "n": case.num_samples, "evaluations": case.evaluations,
            "laws": laws(), "accuracy": accuracy, **found, "seconds": round(time.perf_counter() - start, 2),
            "versions": versions(), "device": "cpu",
        })  # fmt: skip

    with tempfile.TemporaryDirectory() as folder:
        execution = Execution(device="cpu", progress=False, checkpoint_steps=10**9)
        train(training, source, classes=classes, seed=case.seed, runs=Path(folder), execution=execution, watch=watch)
    return records


def run(todo: Sequence[Case]) -> Iterator[list[dict]]:
    """Records of all cases in order, in one process with one thread: the same bits whatever the number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield from map(run_case, todo)
    finally:
        torch.set_num_threads(before)


def last_epochs(records: Sequence[dict]) -> Table:
    """The table of the last epoch of each training."""
    table = Table(title="The NFM loss on networks trained on digits, last epoch", box=None, pad_edge=False)
    for name in ("network", "scheme", "seed", "epoch", "L_NFM", *PARTS, "remainder"):
        table.add_column(name, no_wrap=True, justify="left" if name in ("network", "scheme") else "right")
    last = {(r["activation"], r["scheme"], r["seed"]): r for r in records}
    for record in last.values():
        numbers = (record["loss"], *(record["terms"][name] for name in PARTS), record["remainder"])
        where = (record["activation"], record["scheme"], str(record["seed"]), str(record["epoch"]))
        table.add_row(*where, *(f"{value:.4f}" for value in numbers))
    return table


def _seeds(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.studies.decompose_training", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--out", type=Path, help="directory of the file (default: experiments/results)")
    parser.add_argument("--quick", action="store_true", help="a toy run; writes nothing unless --out is given")
    parser.add_argument("--seeds", type=_seeds, default=SEEDS, help="seeds of the trainings, as in 1,2,3 (default: 1)")
    chosen = parser.parse_args(arguments)
    out = chosen.out if chosen.out or chosen.quick else RESULTS

    start = time.perf_counter()
    todo = cases(seeds=chosen.seeds, quick=chosen.quick)
    console = wide_console()
    progress = track(
        run(todo), total=len(todo), description="training", transient=True, disable=not console.is_terminal
    )
    records = [record for part in progress for record in part]
    if out is not None:
        write_lines(out / FILE, records)
    console.print(last_epochs(records))
    console.print(f"{len(records)} decompositions; {time.perf_counter() - start:.0f} s", highlight=False)
    if out is not None:
        console.print(f"written: {out / FILE}", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
