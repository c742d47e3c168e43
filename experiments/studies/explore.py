"""The study `explore`: the exact loss and its expansion on a grid of α and σ, for the book's interactive figure.

All terms of the expansion scale with known moments of λ and of the noise, so a dozen coefficients give them at every α
and σ. The exact loss has no such formula: what it has above the polynomial of order 2 is computed at every point of the
grid. `explore.jsonl` has a record for each network and layer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from rich.table import Table
from torch import Tensor

import nfm_theory as nt

from ..data.digits import load_digits, verification_subset
from ..models.small import HIDDEN
from ..record.files import versions
from .networks import trained_network
from .recorded import RecordedStudy, RecordFile, results_table

NAME = "explore.jsonl"
MODEL, CLASSES = "mlp", 10
#: The networks, and how they are trained.
NETWORKS: dict[str, dict] = {"plain": {}, "nfm": {"alpha": 1.0, "add_noise": 0.4, "mult_noise": 0.2}}


@dataclass(frozen=True)
class Grid:
    """Where the exact loss is computed.

    Attributes:
        eps: scales ε, increasing and positive.
        alpha: parameters of Beta(α, α); 0 for no mixing.
        add_noise: levels σ_add of the additive noise.
        mult_noise: levels σ_mult of the multiplicative noise.
        n: number of training samples.
        samples: number of evaluations of the head at each ε, if there is noise.
    """

    eps: tuple[float, ...] = (0.02, 0.04, 0.06, 0.08, *(k / 20 for k in range(2, 21)))
    alpha: tuple[float, ...] = (0.0, 0.2, 0.5, 1.0, 2.0)
    add_noise: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6)
    mult_noise: tuple[float, ...] = (0.0, 0.2, 0.4)
    n: int = 50
    samples: int = 40_000


QUICK = Grid(eps=(0.1, 0.5, 1.0), alpha=(0.0, 1.0), add_noise=(0.0, 0.4), mult_noise=(0.0, 0.2), n=6, samples=2000)


def moments(alpha: float) -> list[float]:
    """`E (1 - λ)^j` for j = 1, 2, 3, where λ has the unmixed law of Beta(α, α)."""
    law = nt.MixingLaw(alpha)
    return [float(law.moment(j)) for j in (1, 2, 3)]


def coefficients(model, x: Tensor, y: Tensor, *, layer: str, loss: str) -> dict[str, float]:
    """The terms of the expansion divided by the moments they scale with.

    `R1` by m1, `R2` and `R3` by m2, the noise terms by σ². C3 has three parts: `C3` by m3, `C3_add` and `C3_mult` by
    m1 σ². So `C3(α, σ) = m3 C3 + m1 (σ_add² C3_add + σ_mult² C3_mult)` (book: eq-remainder).
    """
    m1, m2, m3 = moments(1.0)
    data, add, mult = (
        nt.terms(nt.Problem(model, x, y, law=law, layer=layer, loss=loss)).to_dict()
        for law in (nt.Law(), nt.Law(add_noise=1.0), nt.Law(mult_noise=1.0))
    )
    found = {"standard": data["standard"], "R1": data["R1"] / m1, "R2": data["R2"] / m2, "R3": data["R3"] / m2}
    for suffix, terms in (("_add", add), ("_mult", mult)):
        found |= {name + suffix: terms[name + suffix] for name in ("R2", "R3")}
    found["C3"] = data["C3"] / m3
    return found | {"C3_add": (add["C3"] - data["C3"]) / m1, "C3_mult": (mult["C3"] - data["C3"]) / m1}


def terms_at(found: dict[str, float], moment: Sequence[float], add_noise: float, mult_noise: float) -> nt.TaylorTerms:
    """The expansion at any α and σ, computed from `coefficients` as the figure in the book does."""
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


def excess(problem: nt.Problem, grid: Grid) -> tuple[list[float], list[float]]:
    """The exact loss minus its polynomial of order 2 at every ε, and the standard error.

    It is computed by a deterministic rule without noise, and by Monte Carlo with the same draws at every point with it.
    """
    if not problem.law.perturbs:
        return [0.0] * len(grid.eps), [0.0] * len(grid.eps)
    with nt.options(progress=False):
        if problem.noises == (None, None):
            loss = nt.loss(problem, grid.eps, "exact", quadrature=nt.Quadrature(num_lam=12))
        else:
            generator = torch.Generator().manual_seed(0)
            loss = nt.loss(problem, grid.eps, "monte_carlo", samples=grid.samples, generator=generator)
    polynomial = nt.terms(problem).polynomial(torch.tensor(grid.eps, dtype=torch.float64))
    return (loss.value - polynomial).tolist(), loss.stderr.tolist()


def _significant(values: Sequence[float], digits: int) -> list[float]:
    return [float(f"{value:.{digits}g}") for value in values]


@dataclass(frozen=True)
class GridCase:
    """One layer of one network, with the grid on which its loss is computed."""

    network: str
    layer: str
    grid: Grid


def cases(*, quick: bool = False) -> list[GridCase]:
    """Every network at the input and at the hidden layer; `quick` gives a small grid, for tests."""
    grid = QUICK if quick else Grid()
    return [GridCase(network, layer, grid) for network in NETWORKS for layer in ("", HIDDEN[MODEL])]


def prepare(todo: Sequence[GridCase]) -> None:
    """Train the networks of all cases, so that each is trained once."""
    for name in {case.network for case in todo}:
        trained_network(MODEL, CLASSES, **NETWORKS[name])


def run_case(case: GridCase) -> tuple[list[dict]]:
    """The record of one case; `excess` and `stderr` are nested lists by α, σ_add, σ_mult and ε."""
    start, grid = time.perf_counter(), case.grid
    data, network = load_digits(CLASSES), trained_network(MODEL, CLASSES, **NETWORKS[case.network])
    x, y = verification_subset(data, grid.n)
    options = {"layer": case.layer, "loss": data.loss}
    problem = nt.Problem(network.model, x, y, **options)

    def at(alpha: float, add_noise: float, mult_noise: float) -> tuple[list[float], list[float]]:
        return excess(problem.with_law(nt.Law(alpha, None, add_noise, mult_noise)), grid)

    nested = [[[at(a, s, t) for t in grid.mult_noise] for s in grid.add_noise] for a in grid.alpha]
    record = {
        "network": case.network, "model": MODEL, "classes": CLASSES, "layer": case.layer, "grid": asdict(grid),
        "moments": [moments(alpha) for alpha in grid.alpha],
        "coefficients": coefficients(network.model, x, y, **options),
        "excess": [[[_significant(p[0], 5) for p in row] for row in block] for block in nested],
        "stderr": [[[_significant(p[1], 2) for p in row] for row in block] for block in nested],
        "training": network.facts, "versions": versions(), "device": "cpu",
        "seconds": round(time.perf_counter() - start, 2),
    }  # fmt: skip
    return ([record],)


def summary_table(records: Sequence[dict]) -> Table:
    """The table of coefficients, one row for each network and layer."""
    names = list(records[0]["coefficients"])
    rows = [
        [record["network"], record["layer"] or "input", *(f"{record['coefficients'][name]:.3g}" for name in names)]
        for record in records
    ]
    return results_table("Coefficients of the expansion", ("network", "layer", *names), rows, text=("network", "layer"))


def _difference(new: dict, old: dict) -> str:
    """A coefficient that is more than a hundredth away contradicts."""
    pairs = {name: (old["coefficients"][name], value) for name, value in new["coefficients"].items()}
    wrong = [name for name, pair in pairs.items() if not math.isclose(*pair, rel_tol=0.01, abs_tol=1e-9)]
    return "; ".join(f"{name}: {pairs[name][0]:.4g} recorded, {pairs[name][1]:.4g} now" for name in wrong)


STUDY = RecordedStudy(
    "explore", (RecordFile(NAME, ("network", "layer"), _difference),), run_case, summary_table, prepare
)  # fmt: skip
