"""The exact loss and its expansion on a grid of α and σ, for the book's interactive figure.

    python -m experiments.studies.explore [--out DIR] [--quick]

Writes `explore.jsonl`, one record for each network and layer. All terms of the expansion scale with moments of the
laws that are known, so that a dozen coefficients give them at every α and σ; what no polynomial says, the exact loss,
is computed at every point of the grid, as what it has above the polynomial of order 2.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor

import nfm_theory as nt

from ..data.digits import load_digits, verification_subset
from ..models.small import HIDDEN
from ..record.files import RESULTS, versions, write_lines
from .networks import TrainedNetwork, trained_network

NAME = "explore.jsonl"
MODEL, CLASSES = "mlp", 10
#: Networks of which the loss is expanded: how they were trained.
NETWORKS: dict[str, dict] = {"plain": {}, "nfm": {"alpha": 1.0, "add_noise": 0.4, "mult_noise": 0.2}}


@dataclass(frozen=True)
class Grid:
    """Where the exact loss is computed.

    Attributes:
        eps: scales, increasing and positive.
        alpha: parameters of Beta(α, α); 0 for no mixing.
        add_noise: σ_add.
        mult_noise: σ_mult.
        n: training samples.
        samples: evaluations of the head at each ε where there is noise.
    """

    eps: tuple[float, ...] = (0.02, 0.04, 0.06, 0.08, *(k / 20 for k in range(2, 21)))
    alpha: tuple[float, ...] = (0.0, 0.2, 0.5, 1.0, 2.0)
    add_noise: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6)
    mult_noise: tuple[float, ...] = (0.0, 0.2, 0.4)
    n: int = 50
    samples: int = 40_000


QUICK = Grid(eps=(0.1, 0.5, 1.0), alpha=(0.0, 1.0), add_noise=(0.0, 0.4), mult_noise=(0.0, 0.2), n=6, samples=2000)


def moments(alpha: float) -> list[float]:
    """`E (1 - λ)^j` under the unmixed law of Beta(α, α), j = 1, 2, 3."""
    law = nt.MixingLaw(alpha)
    return [float(law.moment(j)) for j in (1, 2, 3)]


def coefficients(model, x: Tensor, y: Tensor, **options) -> dict[str, float]:
    """The terms of the expansion divided by the moments they scale with.

    `R1` by m1, `R2` and `R3` by m2, the noise terms by σ². C3 has three parts: `C3` by m3, `C3_add` and `C3_mult` by
    m1 σ². So `C3(α, σ) = m3 C3 + m1 (σ_add² C3_add + σ_mult² C3_mult)` (book: eq-remainder).

    Args:
        model: network in eval mode.
        x: inputs.
        y: labels.
        **options: `layer` and `loss`.
    """
    m1, m2, m3 = moments(1.0)
    data, add, mult = (
        nt.taylor_terms(model, x, y, alpha=1.0, remainder=True, **noise, **options).to_dict()
        for noise in ({}, {"add_noise": 1.0}, {"mult_noise": 1.0})
    )
    found = {"standard": data["standard"], "R1": data["R1"] / m1, "R2": data["R2"] / m2, "R3": data["R3"] / m2}
    for suffix, terms in (("_add", add), ("_mult", mult)):
        found |= {name + suffix: terms[name + suffix] for name in ("R2", "R3")}
    found["C3"] = data["C3"] / m3
    return found | {"C3_add": (add["C3"] - data["C3"]) / m1, "C3_mult": (mult["C3"] - data["C3"]) / m1}


def terms_at(found: dict[str, float], moment: Sequence[float], add_noise: float, mult_noise: float) -> nt.TaylorTerms:
    """The expansion at other laws, from `coefficients`: what the figure in the book computes.

    Args:
        found: of `coefficients`.
        moment: of `moments`.
        add_noise: σ_add.
        mult_noise: σ_mult.
    """
    m1, m2, m3 = moment
    add, mult = add_noise**2, mult_noise**2
    values = {
        "standard": found["standard"],
        "R1": m1 * found["R1"],
        "R2": m2 * found["R2"],
        "R3": m2 * found["R3"],
        "R2_add": add * found["R2_add"],
        "R3_add": add * found["R3_add"],
        "R2_mult": mult * found["R2_mult"],
        "R3_mult": mult * found["R3_mult"],
        "C3": m3 * found["C3"] + m1 * (add * found["C3_add"] + mult * found["C3_mult"]),
    }
    return nt.TaylorTerms(**{name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()})


def excess(model, x: Tensor, y: Tensor, grid: Grid, laws: dict, **options) -> tuple[list[float], list[float]]:
    """The exact loss less its polynomial of order 2, at every ε, and its standard error.

    By the deterministic rule where nothing is noisy, by Monte Carlo with the same draws at every point otherwise.

    Args:
        model: network in eval mode.
        x: inputs.
        y: labels.
        grid: scales and numbers of samples.
        laws: `alpha`, `add_noise`, `mult_noise`.
        **options: `layer` and `loss`.
    """
    settings = {**laws, **options}
    if not any(laws.values()):
        return [0.0] * len(grid.eps), [0.0] * len(grid.eps)
    if laws["add_noise"] or laws["mult_noise"]:
        rule = {"method": "monte_carlo", "samples": grid.samples, "generator": torch.Generator().manual_seed(0)}
    else:
        rule = {"method": "exact", "num_lam": 12}
    loss = nt.nfm_loss(model, x, y, eps=grid.eps, progress=False, **rule, **settings)
    polynomial = nt.taylor_terms(model, x, y, **settings).polynomial(torch.tensor(grid.eps, dtype=torch.float64))
    return (loss.value - polynomial).tolist(), loss.stderr.tolist()


def _significant(values: Sequence[float], digits: int) -> list[float]:
    return [float(f"{value:.{digits}g}") for value in values]


def records(grid: Grid, networks: dict[str, TrainedNetwork], *, progress: bool = False) -> Iterator[dict]:
    """A record for each network and layer.

    `excess` and `stderr` are nested lists by α, σ_add, σ_mult and ε.

    Args:
        grid: where.
        networks: by name.
        progress: whether to show a bar.
    """
    data = load_digits(CLASSES)
    x, y = verification_subset(data, grid.n)
    for name, network in networks.items():
        for layer in ("", HIDDEN[MODEL]):
            start = time.perf_counter()
            options = {"layer": layer, "loss": data.loss}
            laws = [
                {"alpha": a, "add_noise": s, "mult_noise": t}
                for a in grid.alpha for s in grid.add_noise for t in grid.mult_noise
            ]  # fmt: skip
            shown = track(laws, f"{name}, {layer or 'input'}", disable=not progress)
            points = iter([excess(network.model, x, y, grid, law, **options) for law in shown])
            nested = [[[next(points) for _ in grid.mult_noise] for _ in grid.add_noise] for _ in grid.alpha]
            yield {
                "network": name, "model": MODEL, "classes": CLASSES, "layer": layer, "grid": asdict(grid),
                "moments": [moments(alpha) for alpha in grid.alpha],
                "coefficients": coefficients(network.model, x, y, **options),
                "excess": [[[_significant(p[0], 5) for p in row] for row in block] for block in nested],
                "stderr": [[[_significant(p[1], 2) for p in row] for row in block] for block in nested],
                "training": {**asdict(network.recipe), "train_accuracy": network.train_accuracy,
                             "test_accuracy": network.test_accuracy},
                "versions": versions(), "device": "cpu", "seconds": round(time.perf_counter() - start, 2),
            }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Compute and write it; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.studies.explore", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS, help="directory of the file")
    parser.add_argument("--quick", action="store_true", help="a toy grid")
    chosen = parser.parse_args(arguments)
    networks = {name: trained_network(MODEL, CLASSES, **options) for name, options in NETWORKS.items()}
    found = list(records(QUICK if chosen.quick else Grid(), networks, progress=True))
    write_lines(chosen.out / NAME, found)
    print(f"written: {chosen.out / NAME}; {sum(record['seconds'] for record in found):.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
