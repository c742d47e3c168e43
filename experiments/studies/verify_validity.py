"""Where the theory is valid: expansions of order 1 to 4 and the adversarial bound on networks as they are trained.

    python -m experiments.studies.verify_validity [--out DIR] [--quick] [--check] [--workers N]
    python -m experiments.studies.verify_validity --recipes 'cifar10-small/*' --samples 48 --bound-samples 8 [--runs DIR]

For every network, eligible layer and law of the perturbation: the exact loss up to ε = 1, the relative error of the
polynomials of order 1 to 4 with its standard error, the ε at which each is 10 % off, and both sides of the bound.
Without `--recipes` the networks are those trained on digits, which are trained here where they are not in the runs
folder; the records go to `validity_trained.jsonl`. Other recipes must have been trained (`nfm sweep`); theirs go to
`validity_<data>.jsonl`; those that are not trained are named and left out. `--check` measures a few networks again and
compares them with the records. A large error is a finding and no failure: the exit status is 1 only if the coefficients
of order 1 and 2 along the random paths contradict the exact ones, or a check fails.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

import nfm_theory as nt

from ..console import wide_console
from ..data.integrity import DataError
from ..processes import map_cases
from ..recipes import select_recipes
from ..record.files import RESULTS, read_lines, versions, write_lines
from ..runner import runs_folder
from .validity_networks import (
    BOUND_SAMPLES,
    LAWS,
    PATHS,
    SAMPLES,
    Case,
    Subject,
    cases,
    is_finished,
    prepare,
    subject,
)

ORDERS = (1, 2, 3, 4)
#: Scales of the error curves, and of the bound.
EPS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.55, 0.75, 1.0)
BOUND_EPS = (0.02, 0.1, 0.3, 1.0)
#: Monte-Carlo evaluations of the left side of the bound from each image.
BOUND_EVALUATIONS = 80
#: Up to this ε the quadratic control variate pays; beyond, a polynomial hurts.
SMALL_EPS = 0.1
#: The file of the main job; what `--check` measures again, and how far that may differ.
TRACKED = "validity_trained.jsonl"
CHECKED = (("digits_resnet", "baseline"), ("digits_resnet", "nfm"), ("mlp", "nfm"))
CHECK_ERROR, CHECK_RADIUS = 0.15, 0.35
#: Standard errors by which a coefficient may miss the exact one.
MISS = 5.0


def rounded(value):
    """Six digits of every number; what JSON does not know becomes None."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def witness(found: Subject, layer: str, law: dict, curve: nt.ErrorCurve) -> dict:
    """The exact coefficients of order 0 to 2, and by how many standard errors those along the paths miss them."""
    terms = nt.taylor_terms(found.model, found.x, found.y, layer=layer, remainder=False, **law)
    exact = [float(c) for c in terms.coefficients(2)]
    pairs = zip(exact[1:], curve.coefficients.value[1:3].tolist(), curve.coefficients.stderr[1:3].tolist(), strict=True)
    return {"exact": exact, "miss": [(value - truth) / error for truth, value, error in pairs]}


def bound(found: Subject, layer: str, law: dict, count: int) -> dict:
    """Both sides of the adversarial bound at several ε, on the first images, in float64."""
    double = copy.deepcopy(found.model).double()
    x, y = found.x[:count].double(), found.y[:count]
    sides = []
    for eps in BOUND_EPS:
        report = nt.adversarial.adversarial_bound(
            double, x, y, layer=layer, eps=eps, method="monte_carlo", samples=BOUND_EVALUATIONS * len(x),
            control_variate="quadratic" if eps <= SMALL_EPS else "none", steps=20, restarts=1, progress=False, **law,
        )  # fmt: skip
        names = ("eps", "verdict", "standard_loss", "nfm_loss", "nfm_error", "regularizer", "right_lower",
                 "right_upper", "label_kept")  # fmt: skip
        record = report.to_dict()
        sides.append({name: record[name] for name in names})
    return {"n": len(x), "assumptions": record["assumptions"], "failed": record["failed"], "sides": sides}


def run_case(case: Case) -> list[dict]:
    """The records of one case, one for each law."""
    found = subject(case.recipe, case.model, case.training, case.seed, case.samples, case.runs, case.epochs)
    records = []
    for name, law in LAWS.items():
        start = time.perf_counter()
        signs = 2 if "add_noise" in law else 1
        # Without noise there is no second sign, and twice as many paths for the same price
        samples = 2 * case.paths * len(found.x)
        curve = nt.expansion_error(
            found.model, found.x, found.y, layer=case.layer, method="pathwise", orders=ORDERS, eps=EPS,
            samples=samples, **law,
        )  # fmt: skip
        facts = {key: value for key, value in asdict(case).items() if key in ("model", "training", "layer", "recipe")}
        records.append(rounded({
            "data": found.data, **facts, "law": name, "smooth": curve.linearised is None, "n": len(found.x),
            "paths": samples // (signs * len(found.x)), "curve": curve.to_dict(),
            "witness": witness(found, case.layer, law, curve),
            "bound": bound(found, case.layer, law, case.bound_samples),
            "trained": found.facts, "versions": versions(), "device": "cpu",
            "seconds": time.perf_counter() - start,
        }))  # fmt: skip
    return records


def run(todo: Sequence[Case], workers: int) -> Iterator[list[dict]]:
    """Records of all cases in order, computed in several processes of one thread each."""
    return map_cases(run_case, todo, workers)


def file_name(records: Sequence[dict], *, main: bool) -> str:
    """The file of some records.

    Args:
        records: of one run.
        main: whether they are those of the main job.
    """
    return TRACKED if main else f"validity_{records[0]['data']}.jsonl"


def _at_one(record: dict, order: int) -> float:
    return record["curve"]["relative_error"][str(order)][-1]


def summary_table(records: Sequence[dict]) -> Table:
    """One row per network, layer and law."""
    table = Table(title="Order 1 to 4 on trained networks, and the bound", box=None, pad_edge=False)
    for name in ("model", "training", "layer", "law"):
        table.add_column(name, no_wrap=True)
    for name in ("loss, ε = 1", *(f"order {p}" for p in ORDERS), "10 % at (order 2)", "bound, ε = 1", "miss"):
        table.add_column(name, no_wrap=True, justify="right")
    for r in records:
        radius = r["curve"]["radius"]["2"]
        table.add_row(
            r["model"], r["training"], r["layer"] or "input", r["law"], f"{r['curve']['loss'][-1]:.3g}",
            *(f"{100 * _at_one(r, p):.0f} %" for p in ORDERS), "> 1" if radius is None else f"{radius:.2f}",
            r["bound"]["sides"][-1]["verdict"], f"{max(map(abs, r['witness']['miss'])):.1f}",
        )  # fmt: skip
    return table


def _key(record: dict) -> tuple:
    return tuple(record[name] for name in ("data", "model", "training", "layer", "law"))


def disagreements(records: Sequence[dict], tracked: Sequence[dict]) -> list[str]:
    """Where another measurement differs from the tracked one by more than sampling and another machine explain.

    The error of order 2 at ε = 1 may differ by `CHECK_ERROR`, the ε at which it is 10 % off by a share `CHECK_RADIUS`.

    Args:
        records: measured now.
        tracked: the records to compare with.
    """
    known = {_key(r): r for r in tracked}
    found = []
    for r in records:
        name = ", ".join(part or "input" for part in _key(r))
        if _key(r) not in known:
            found.append(f"{name}: not in the records")
            continue
        old = known[_key(r)]
        errors = _at_one(old, 2), _at_one(r, 2)
        radii = [1.0 if q["curve"]["radius"]["2"] is None else q["curve"]["radius"]["2"] for q in (old, r)]
        if abs(errors[0] - errors[1]) > CHECK_ERROR or abs(math.log(radii[0] / radii[1])) > math.log1p(CHECK_RADIUS):
            found.append(
                f"{name}: error {errors[0]:.2f} recorded, {errors[1]:.2f} now; 10 % at {radii[0]:.2f}, {radii[1]:.2f}"
            )
    return found


def contradictions(records: Sequence[dict]) -> list[str]:
    """Records whose coefficients along the paths miss the exact ones."""
    return [
        f"{', '.join(part or 'input' for part in _key(r))}: misses by {r['witness']['miss']} standard errors"
        for r in records
        if max(map(abs, r["witness"]["miss"])) > MISS
    ]


def _arguments(arguments: Sequence[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.studies.verify_validity", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--out", type=Path, help="directory of the file (default: experiments/results)")
    parser.add_argument("--quick", action="store_true", help="a toy run; writes nothing unless --out is given")
    parser.add_argument("--check", action="store_true", help="measure a few networks again, compare with the records")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    parser.add_argument("--recipes", nargs="+", metavar="PATTERN", help="networks of these recipes instead")
    parser.add_argument("--runs", type=Path, help="folder of trained recipes (default: $NFM_RUNS, or in the cache)")
    parser.add_argument("--seed", type=int, default=1, help="of the trainings of recipes (default: 1)")
    parser.add_argument("--samples", type=int, help=f"training images (default: {SAMPLES})")
    parser.add_argument("--paths", type=int, help=f"random paths from each image, at least 2 (default: {PATHS})")
    parser.add_argument("--bound-samples", type=int, help=f"images for the bound (default: {BOUND_SAMPLES})")
    chosen = parser.parse_args(arguments)
    for name, least in (("workers", 1), ("samples", 2), ("paths", 2), ("bound_samples", 1)):
        value = getattr(chosen, name)
        if value is not None and value < least:
            parser.error(f"--{name.replace('_', '-')}: expected at least {least}, got {value}")
    return parser, chosen


def _todo(parser: argparse.ArgumentParser, chosen: argparse.Namespace, console: Console) -> list[Case]:
    """The cases that the arguments ask for, with their networks trained."""
    runs = chosen.runs or runs_folder()
    options = {name: getattr(chosen, name) for name in ("samples", "paths", "bound_samples") if getattr(chosen, name)}
    options |= {"runs": str(runs), "seed": chosen.seed}
    recipes = None
    try:
        if chosen.recipes:
            named = select_recipes(*chosen.recipes)
            recipes = [r for r in named if r.size == "digits" or is_finished(r, chosen.seed, runs)]
            missing = [r.name for r in named if r not in recipes]
            if missing:
                console.print(f"not trained in {runs}, left out: {', '.join(missing)}", highlight=False)
            if not recipes:
                parser.error(f"--recipes: none of them is trained in {runs}")
        todo = cases(recipes, quick=chosen.quick, **options)
        if chosen.check:
            todo = [c for c in todo if (c.model, c.training) in CHECKED]
        prepare(todo)
    except (DataError, ValueError) as error:
        parser.error(str(error))
    return todo


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; returns the exit status."""
    parser, chosen = _arguments(arguments)
    out = chosen.out if chosen.out or chosen.quick or chosen.check else RESULTS
    console = wide_console(170)
    start = time.perf_counter()
    todo = _todo(parser, chosen, console)
    records: list[dict] = []
    for part in track(run(todo, chosen.workers), total=len(todo), description="validity", transient=True,
                      disable=not console.is_terminal):  # fmt: skip
        records += part
        if out is not None and not chosen.check:  # hours of a large run are not lost with its last network
            path = out / file_name(records, main=not chosen.recipes)
            write_lines(path, records)
    console.print(summary_table(records))
    console.print(f"{len(records)} measurements; {time.perf_counter() - start:.0f} s", highlight=False)
    wrong = contradictions(records)
    if chosen.check:
        wrong += disagreements(records, read_lines((chosen.out or RESULTS) / TRACKED))
        console.print(f"{len(wrong)} disagreements with the records", highlight=False)
    elif out is not None:
        console.print(f"written: {path}", highlight=False, soft_wrap=True)
    for line in wrong:
        console.print(line, highlight=False)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
