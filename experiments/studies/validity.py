"""The study `validity`: where is the theory valid on networks as they are trained?

For every network, eligible layer and law of the perturbation: the exact loss up to ε = 1, the relative error of the
polynomials of order 1 to 4 with its standard error, the ε at which each is 10 % off, and both sides of the adversarial
bound. The records of the networks on digits are in `validity_trained.jsonl`, those of other recipes in
`validity_DATA.jsonl`. A large error is a finding. A contradiction is a coefficient of order 1 or 2 along the random
paths that differs from the exact one by more than the sampling error allows.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import asdict

from rich.table import Table

import nfm_theory as nt

from ..record.files import versions
from .recorded import RecordedStudy, RecordFile, curve_difference, results_table
from .validity_networks import LAWS, LayerCase, MeasuredNetwork, measured_network, prepare

ORDERS = (1, 2, 3, 4)
#: The ε of the error curves, and of the bound.
EPS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.55, 0.75, 1.0)
BOUND_EPS = (0.02, 0.1, 0.3, 1.0)
#: Number of Monte Carlo evaluations of the left side of the bound for each image.
BOUND_EVALUATIONS = 80
#: Up to this ε the quadratic control variate reduces the variance; beyond it, it does harm.
SMALL_EPS = 0.1
#: The file of the networks trained on digits, and those of them that belong to the sample.
TRACKED = "validity_trained.jsonl"
SAMPLE = (("digits_resnet", "nfm"), ("mlp", "nfm"))
#: How many standard errors an estimated coefficient may be away from the exact one.
MISS = 5.0


def rounded(value):
    """A record with six digits of every number; numbers that are not finite become `None`."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def witness(problem: nt.Problem, curve: nt.ErrorCurve) -> dict:
    """The exact coefficients of order 0 to 2, and how many standard errors the estimated ones are away."""
    terms = nt.terms(problem, remainder=False)
    exact = [float(c) for c in terms.coefficients(2)]
    pairs = zip(exact[1:], curve.coefficients.value[1:3].tolist(), curve.coefficients.stderr[1:3].tolist(), strict=True)
    return {"exact": exact, "miss": [(value - truth) / error for truth, value, error in pairs]}


def bound(found: MeasuredNetwork, layer: str, law: nt.Law, count: int) -> dict:
    """Both sides of the adversarial bound at several ε, in float64.

    Args:
        found: network and images.
        layer: name of the layer.
        law: law of mixing and noise.
        count: how many of the images are used, from the first on.
    """
    double = copy.deepcopy(found.model).double()
    problem, sides = nt.Problem(double, found.x[:count].double(), found.y[:count], layer=layer, law=law), []
    n = len(problem.features)
    for eps in BOUND_EPS:
        effort = nt.adversarial.Effort(
            steps=20, restarts=1, samples=BOUND_EVALUATIONS * n,
            control_variate="quadratic" if eps <= SMALL_EPS else "none",
        )  # fmt: skip
        with nt.options(progress=False):
            report = nt.adversarial.bound(problem, eps, method="monte_carlo", effort=effort)
        names = ("eps", "verdict", "standard_loss", "nfm_loss", "nfm_error", "regularizer", "right_lower",
                 "right_upper", "label_kept")  # fmt: skip
        record = report.to_dict()
        sides.append({name: record[name] for name in names})
    return {"n": n, "assumptions": record["assumptions"], "failed": record["failed"], "sides": sides}


def run_case(case: LayerCase) -> tuple[list[dict]]:
    """The records of one case, one for each law."""
    found = measured_network(case.recipe, case.model, case.training, case.seed, case.samples, case.runs, case.epochs)
    records = []
    for name, law in LAWS.items():
        start = time.perf_counter()
        signs = 2 if law.add_noise else 1
        # Without noise there is no second sign, and twice as many paths for the same price
        samples = 2 * case.paths * len(found.x)
        problem = nt.Problem(found.model, found.x, found.y, layer=case.layer, law=law)
        curve = nt.error_curve(problem, EPS, method="pathwise", orders=ORDERS, samples=samples)
        facts = {key: value for key, value in asdict(case).items() if key in ("model", "training", "layer", "recipe")}
        records.append(rounded({
            "data": found.data, **facts, "law": name, "smooth": curve.linearised is None, "n": len(found.x),
            "paths": samples // (signs * len(found.x)), "curve": curve.to_dict(),
            "witness": witness(problem, curve),
            "bound": bound(found, case.layer, law, case.bound_samples),
            "trained": found.facts, "versions": versions(), "device": "cpu",
            "seconds": time.perf_counter() - start,
        }))  # fmt: skip
    return (records,)


def summary_table(records: Sequence[dict]) -> Table:
    """The table of results, one row for each network, layer and law."""
    rows = []
    for r in records:
        radius = r["curve"]["radius"]["2"]
        rows.append([
            r["model"], r["training"], r["layer"] or "input", r["law"], f"{r['curve']['loss'][-1]:.3g}",
            *(f"{100 * r['curve']['relative_error'][str(p)][-1]:.0f} %" for p in ORDERS),
            "> 1" if radius is None else f"{radius:.2f}", r["bound"]["sides"][-1]["verdict"],
            f"{max(map(abs, r['witness']['miss'])):.1f}",
        ])  # fmt: skip
    text = ("model", "training", "layer", "law")
    header = (*text, "loss, ε = 1", *(f"order {p}" for p in ORDERS), "10 % at (order 2)", "bound, ε = 1", "miss")
    return results_table("Order 1 to 4 on trained networks, and the bound", header, rows, text=text)


def conclude(records: Sequence[dict]) -> tuple[int, list[str]]:
    """The exit status, 1 if coefficients along the paths miss the exact ones, and which do."""
    missed = [
        f"{', '.join(str(record[name]) or 'input' for name in KEY)}: the coefficients along the paths miss the exact "
        f"ones by {record['witness']['miss']} standard errors"
        for record in records
        if max(map(abs, record["witness"]["miss"])) > MISS
    ]
    return int(bool(missed)), missed


def _in_sample(case: LayerCase) -> bool:
    return (case.model, case.training) in SAMPLE


KEY = ("data", "model", "training", "layer", "law")


def study(data: str = "") -> RecordedStudy:
    """The study, on the networks trained on digits, or on recipes with the data of this name."""
    file = RecordFile(f"validity_{data}.jsonl" if data else TRACKED, KEY, curve_difference)
    return RecordedStudy(
        "validity", (file,), run_case, summary_table, prepare, conclude, _in_sample,
        "an MLP and a residual network trained with NFM",
    )  # fmt: skip
