"""The study `where`: how much of NFM's second-order terms lies at which layer, on networks that are trained plainly.

The baselines of `fashion-where/...` and `fashion-where-full/...` are trained by their recipes. Before the training and
after each epoch the network is set to evaluation mode, with batch statistics of `STATISTICS` training images, and on
some training images the terms of NFM's law are computed at each eligible layer, exactly. `where.jsonl` has a record for
each study, seed and epoch.

To second order the noise at a layer acts through R2_add and R2_mult, which grow with the squares of their levels. As
the network is piecewise linear, R3_add and R3_mult are zero. A step draws one of the layers, so an intervention with
levels (α, a, m) at each layer has the share

    sum over layers of (a / σ_add)² R2_add + (m / σ_mult)² R2_mult, divided by the same sum for NFM

of the noise terms of NFM. Likewise an intervention that mixes at some layers only has the share of R2 that lies there.
`predictions` has both for each intervention.
"""

from __future__ import annotations

import copy
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor, nn

import nfm_theory as nt

from ..models import build_model
from ..recipes import get_recipe
from ..recipes.where import FULL, LARGE, LAYERS, SMALL, interventions
from ..record.files import versions
from ..runner import load_training_data
from ..training import Execution, train
from ..training.batches import MemorySource
from .recorded import RecordedStudy, RecordFile, results_table

FILE = "where.jsonl"
SEEDS = (1, 2)
#: Number of training images for the terms, and for the statistics of batch norm before them.
NUM_SAMPLES, STATISTICS = 100, 1000
TERMS = ("standard", "R1", "R2", "R2_add", "R2_mult")
METHODS = dict.fromkeys(("R2", "R2_add", "R2_mult"), "exact") | dict.fromkeys(("R3", "R3_add", "R3_mult"), "probes")
#: When the shares may be measured: before, during (the mean over all epochs), after the training. The prediction that
#: counts is the second one.
BEFORE, DURING, AFTER = "before", "during", "after"


@dataclass(frozen=True)
class WhereCase:
    """One training run.

    Attributes:
        study: the study whose baseline is trained.
        seed: random seed of the training run.
        num_samples: number of training images for the terms.
        length: number of epochs of a shorter training; `None` for that of the recipe.
        samples: number of training images of a smaller training; `None` for that of the recipe.
    """

    study: str
    seed: int
    num_samples: int = NUM_SAMPLES
    length: int | None = None
    samples: int | None = None


def cases(*, quick: bool = False) -> list[WhereCase]:
    """The cases; `quick` gives a small one of the same kind, for tests."""
    if quick:
        return [WhereCase(SMALL, 1, 6, 1, 64)]
    return [WhereCase(study, seed) for study in (SMALL, LARGE) for seed in SEEDS]


def layer_terms(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, dict[str, float]]:
    """The terms of NFM's law at each eligible layer.

    Args:
        model: network in evaluation mode.
        x: inputs.
        y: class indices.
    """
    law = get_recipe(f"{SMALL}/nfm").training.scheme.law
    found = {}
    for layer in LAYERS:
        problem = nt.Problem(model, x, y, layer=layer, law=law)
        with torch.no_grad():
            # Few probes for R3, which is zero here and would cost one pass for each feature
            terms = nt.regularizers(problem, METHODS, num_probes=2, generator=torch.Generator().manual_seed(0))
        values = {"standard": terms.standard} | {name: one.value for name, one in terms.estimates.items()}
        found[layer] = {name: float(values[name]) for name in TERMS}
    return found


def with_statistics(model: nn.Module, x: Tensor) -> nn.Module:
    """A copy in float64 and evaluation mode, whose batch norm has the statistics of one pass over inputs.

    Args:
        model: network.
        x: inputs of the pass.
    """
    twin = copy.deepcopy(model).double().train()
    for norm in twin.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.reset_running_stats()
            norm.momentum = None
    with torch.no_grad():
        twin(x)
    return twin.eval()


def images(source: MemorySource, n: int) -> tuple[Tensor, Tensor]:
    """The first n training images as networks see them, in float64, and their labels."""
    x = torch.from_numpy(source.samples[:n]).permute(0, 3, 1, 2).double() / 255
    mean, std = (torch.tensor(values, dtype=torch.float64).reshape(-1, 1, 1) for values in (source.mean, source.std))
    return (x - mean) / std, torch.from_numpy(source.labels[:n])


def run_case(case: WhereCase) -> tuple[list[dict]]:
    """Train a network plainly by its recipe, and compute the terms before the training and after each epoch."""
    training = get_recipe(f"{case.study}/baseline").training
    if case.length is not None:
        training = replace(training, epochs=case.length, samples=case.samples)
    source, _, classes = load_training_data(training)
    x, y = images(source, STATISTICS)
    records: list[dict] = []

    def watch(epoch: int, model: nn.Module) -> None:
        start = time.perf_counter()
        # A copy without the hooks of the training scheme
        twin = build_model(training.model, classes, **dict(training.model_options))
        twin.load_state_dict(model.state_dict())
        twin = with_statistics(twin, x)
        n = case.num_samples
        records.append({
            "study": case.study, "seed": case.seed, "epoch": epoch, "epochs": training.epochs, "hash": training.hash,
            "n": n, "per_layer": layer_terms(twin, x[:n], y[:n]), "seconds": round(time.perf_counter() - start, 2),
            "versions": versions(), "device": "cpu",
        })  # fmt: skip

    with tempfile.TemporaryDirectory() as folder:
        execution = Execution(device="cpu", progress=False, checkpoint_minutes=math.inf, test_images=0)
        train(training, source, classes=classes, seed=case.seed, runs=Path(folder), execution=execution, watch=watch)
    return (records,)


def studies(records: Sequence[Mapping]) -> list[str]:
    """The studies that have records, the small one first."""
    return list(dict.fromkeys(record["study"] for record in records))


def mean_terms(records: Sequence[Mapping], study: str, when: str = DURING) -> dict[str, dict[str, float]]:
    """The terms at each layer, averaged over seeds and, during training, over the epochs.

    Args:
        records: records of this study.
        study: the study whose baseline was trained.
        when: `BEFORE`, `DURING` or `AFTER`.
    """
    keep = {BEFORE: lambda r: r["epoch"] == 0, DURING: lambda r: r["epoch"], AFTER: lambda r: r["epoch"] == r["epochs"]}
    chosen = [record["per_layer"] for record in records if record["study"] == study and keep[when](record)]
    return {
        layer: {name: math.fsum(one[layer][name] for one in chosen) / len(chosen) for name in TERMS} for layer in LAYERS
    }


def noise_share(levels: Mapping[str, tuple[float, float, float]], terms: Mapping[str, Mapping[str, float]]) -> float:
    """The noise terms of an intervention, divided by those of NFM.

    Args:
        levels: α, σ_add and σ_mult at each layer.
        terms: the terms of NFM at each layer.
    """
    _, add, mult = FULL

    def total(at: Mapping[str, tuple[float, float, float]]) -> float:
        return math.fsum(
            (at[layer][1] / add) ** 2 * terms[layer]["R2_add"] + (at[layer][2] / mult) ** 2 * terms[layer]["R2_mult"]
            for layer in LAYERS
        )

    return total(levels) / total(dict.fromkeys(LAYERS, FULL))


def mixing_share(levels: Mapping[str, tuple[float, float, float]], terms: Mapping[str, Mapping[str, float]]) -> float:
    """R2 at the layers at which an intervention mixes, divided by the sum over all layers.

    Args:
        levels: α, σ_add and σ_mult at each layer; α is 0 or that of NFM.
        terms: the terms of NFM at each layer.
    """
    kept = math.fsum(terms[layer]["R2"] for layer in LAYERS if levels[layer][0])
    return kept / math.fsum(terms[layer]["R2"] for layer in LAYERS)


def predictions(
    records: Sequence[Mapping], study: str, when: str = DURING, *, mixing: bool = False
) -> dict[str, float]:
    """The share of NFM's noise terms that each intervention has, by its name.

    Args:
        records: records of this study.
        study: the study whose networks are predicted.
        when: `BEFORE`, `DURING` or `AFTER`.
        mixing: True for the share of NFM's R2.
    """
    terms, share = mean_terms(records, study, when), mixing_share if mixing else noise_share
    return {one.name: share({layer: one.levels(layer) for layer in LAYERS}, terms) for one in interventions(study)}


def equal_levels(terms: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """σ_add at each layer with which R2_add is everywhere what NFM has at the input.

    Args:
        terms: the terms of NFM at each layer.
    """
    return {layer: FULL[1] * math.sqrt(terms[""]["R2_add"] / terms[layer]["R2_add"]) for layer in LAYERS}


def total_level(terms: Mapping[str, Mapping[str, float]]) -> float:
    """σ_add with which noise at the input alone has the R2_add of NFM's four layers together.

    Args:
        terms: the terms of NFM at each layer.
    """
    return FULL[1] * math.sqrt(math.fsum(one["R2_add"] for one in terms.values()) / terms[""]["R2_add"])


def layers_table(records: Sequence[dict]) -> Table:
    """The table of the terms at each layer, before, during and after the training."""
    rows = [
        [study, when, layer or "input", *(f"{terms[layer][name]:.4g}" for name in TERMS)]
        for study in studies(records)
        for when in (BEFORE, DURING, AFTER)
        for terms in [mean_terms(records, study, when)]
        for layer in LAYERS
    ]
    title, columns = "NFM's terms on plainly trained networks", ("study", "when", "layer", *TERMS)
    return results_table(title, columns, rows, text=("study", "when"))


def _difference(new: dict, old: dict) -> str:
    """An R2_add that is further away than a fifth of that at the input contradicts."""
    for layer in LAYERS:
        a, b = (record["per_layer"][layer]["R2_add"] for record in (old, new))
        if abs(a - b) > 0.2 * old["per_layer"][""]["R2_add"]:
            return f"R2_add at {layer or 'input'}: {a:.4g} recorded, {b:.4g} now"
    return ""


def _conclude(records: Sequence[dict]) -> tuple[int, list[str]]:
    """No exit status of its own; a line with the predicted share of each intervention."""
    return 0, [
        f"predicted share of NFM's noise terms, {study}/{name}: {share:.2f}"
        for study in studies(records)
        for name, share in predictions(records, study).items()
    ]


STUDY = RecordedStudy(
    "where", (RecordFile(FILE, ("study", "seed", "epoch"), _difference),), run_case, layers_table,
    conclude=_conclude, sample=lambda case: (case.study, case.seed) == (SMALL, 1), sample_words="one training run",
)  # fmt: skip
