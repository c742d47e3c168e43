"""The study `decomposition`: what is the NFM loss made of while networks train?

The schemes of `SCHEMES` are trained on digits by their recipes, with ReLU and with SiLU. At some epochs the network is
set to evaluation mode, and on some training images

    L_NFM(1) = L_std + R1 + R2 + R3 + R2_add + R3_add + R2_mult + R3_mult + remainder

is computed at each eligible layer, with the noise of the released code. The terms are exact over all pairs, the loss is
a Monte Carlo estimate with its standard error, and the remainder is the difference. The NFM loss is the mean over the
layers. `decomposition.jsonl` has a record for each network, seed and epoch.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor, nn

import nfm_theory as nt
from nfm_theory.setting.results import SECOND_ORDER

from ..data.digits_images import digits_images
from ..models import build_model, eligible_layers
from ..recipes import get_recipe
from ..recipes.recipe import Training
from ..recipes.schemes import SCHEMES as ALL_SCHEMES
from ..record.files import versions
from ..runner import load_training_data
from ..training import Execution, train
from .recorded import RecordedStudy, RecordFile, results_table

FILE = "decomposition.jsonl"
#: The recipes for each activation, and the schemes that are trained.
STUDIES = {"relu": "digits-terms", "silu": "digits-terms-smooth"}
SCHEMES = ("baseline", "nfm", "taylor_nfm")
EPOCHS = (0, 1, 2, 4, 8, 14, 20)
SEEDS = (1,)
#: Number of training images, and of evaluations of the head for each layer.
NUM_SAMPLES, EVALUATIONS = 100, 6_000
#: The terms of the loss, in the order in which they are shown.
PARTS = ("standard", "R1", *SECOND_ORDER)


@dataclass(frozen=True)
class DecompositionCase:
    """One training run, and when its loss is taken apart.

    Attributes:
        activation: activation of the network, a key of `STUDIES`.
        scheme: last part of the recipe's name.
        seed: random seed of the training run.
        epochs: epochs after which the loss is taken apart; those after the end are left out.
        num_samples: number of training images.
        evaluations: number of evaluations of the head for Monte Carlo at each layer.
        length: number of epochs of a shorter training; `None` for that of the recipe.
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
        """The settings of the training run."""
        found = get_recipe(f"{STUDIES[self.activation]}/{self.scheme}").training
        return found if self.length is None else replace(found, epochs=self.length)


def cases(*, seeds: Sequence[int] = SEEDS, quick: bool = False) -> list[DecompositionCase]:
    """The cases; `quick` gives small ones of the same kind, for tests."""
    if quick:
        small = {"epochs": (0, 1), "num_samples": 12, "evaluations": 240, "length": 1}
        return [DecompositionCase(activation, "nfm", 1, **small) for activation in STUDIES]
    return [
        DecompositionCase(activation, scheme, seed) for activation in STUDIES for scheme in SCHEMES for seed in seeds
    ]


def law() -> nt.Law:
    """The law of mixing and noise with which NFM trains."""
    return ALL_SCHEMES["nfm"].law


def images(n: int) -> tuple[Tensor, Tensor]:
    """The first n training images as networks see them, in float64, and their labels."""
    data = digits_images()
    mean, std = (torch.tensor(values, dtype=torch.float64).reshape(-1, 1, 1) for values in (data.mean, data.std))
    return (data.train.images[:n].double() / 255 - mean) / std, data.train.labels[:n]


def decompose(
    model: nn.Module, x: Tensor, y: Tensor, law: nt.Law, *, layers: Sequence[str], evaluations: int, seed: int
) -> dict:
    """The NFM loss at ε = 1 and its parts, at each layer and averaged over the layers.

    Args:
        model: network in evaluation mode.
        x: inputs.
        y: class indices.
        law: law of mixing and noise.
        layers: names of layers, `""` for the input.
        evaluations: number of evaluations of the head at each layer.
        seed: random seed of the draws; each layer has draws of its own.

    Returns:
        A record with `"loss"`, its standard error `"stderr"`, `"terms"`, `"remainder"`, and the same for each layer
        under `"per_layer"`.
    """
    found = {}
    for number, layer in enumerate(layers):
        problem = nt.Problem(model, x, y, layer=layer, law=law)
        with torch.no_grad(), nt.options(progress=False):
            terms = nt.terms(problem, remainder=False)
            # At ε = 1 a polynomial as control variate costs more than it saves
            loss = nt.loss(
                problem, method="monte_carlo", samples=evaluations, control_variate="none",
                generator=torch.Generator().manual_seed(1000 * seed + number),
            )  # fmt: skip
        found[layer] = _record(float(loss.value), float(loss.stderr), terms.to_dict())
    mean = {name: math.fsum(r["terms"][name] for r in found.values()) / len(found) for name in PARTS}
    loss = math.fsum(r["loss"] for r in found.values()) / len(found)
    stderr = math.sqrt(math.fsum(r["stderr"] ** 2 for r in found.values())) / len(found)
    return _record(loss, stderr, mean) | {"per_layer": found}


def _record(loss: float, stderr: float, terms: dict[str, float]) -> dict:
    terms = {name: terms[name] for name in PARTS}
    return {"loss": loss, "stderr": stderr, "terms": terms, "remainder": loss - math.fsum(terms.values())}


def run_case(case: DecompositionCase) -> tuple[list[dict]]:
    """Train a network by its recipe, and take its loss apart after each of the epochs."""
    training = case.training
    source, _, classes = load_training_data(training)
    layers = eligible_layers(training.model)
    x, y = images(case.num_samples)
    records: list[dict] = []

    def watch(epoch: int, model: nn.Module) -> None:
        if epoch not in case.epochs:
            return
        # A copy without the hooks of the training scheme
        twin = build_model(training.model, classes, **dict(training.model_options)).double().eval()
        twin.load_state_dict(model.state_dict())
        start = time.perf_counter()
        found = decompose(twin, x, y, law(), layers=layers, evaluations=case.evaluations, seed=case.seed)
        with torch.no_grad():
            accuracy = float((twin(x).argmax(1) == y).double().mean())
        records.append({
            "activation": case.activation, "scheme": case.scheme, "seed": case.seed, "epoch": epoch,
            "epochs": training.epochs, "hash": training.hash, "n": case.num_samples, "evaluations": case.evaluations,
            "laws": {name: getattr(law(), name) for name in ("alpha", "add_noise", "mult_noise", "noise")},
            "accuracy": accuracy, **found, "seconds": round(time.perf_counter() - start, 2),
            "versions": versions(), "device": "cpu",
        })  # fmt: skip

    with tempfile.TemporaryDirectory() as folder:
        execution = Execution(device="cpu", progress=False, checkpoint_minutes=math.inf)
        train(training, source, classes=classes, seed=case.seed, runs=Path(folder), execution=execution, watch=watch)
    return (records,)


def last_epochs(records: Sequence[dict]) -> Table:
    """The table of the last epoch of each training run."""
    last = {(r["activation"], r["scheme"], r["seed"]): r for r in records}
    rows = []
    for record in last.values():
        numbers = (record["loss"], *(record["terms"][name] for name in PARTS), record["remainder"])
        where = (record["activation"], record["scheme"], str(record["seed"]), str(record["epoch"]))
        rows.append([*where, *(f"{value:.4f}" for value in numbers)])
    header = ("network", "scheme", "seed", "epoch", "L_NFM", *PARTS, "remainder")
    title = "The NFM loss on networks trained on digits, last epoch"
    return results_table(title, header, rows, text=("network", "scheme"))


def _difference(new: dict, old: dict) -> str:
    """A loss that is further away than a fifth and five standard errors contradicts."""
    gap = abs(new["loss"] - old["loss"])
    if gap <= 0.2 * old["loss"] + 5 * math.hypot(new["stderr"], old["stderr"]):
        return ""
    return f"loss {old['loss']:.4g} recorded, {new['loss']:.4g} now"


def _in_sample(case: DecompositionCase) -> bool:
    return (case.activation, case.scheme, case.seed) == ("relu", "nfm", 1)


STUDY = RecordedStudy(
    "decomposition", (RecordFile(FILE, ("activation", "scheme", "seed", "epoch"), _difference),), run_case, last_epochs,
    sample=_in_sample, sample_words="one training run with NFM, with ReLU",
)  # fmt: skip
