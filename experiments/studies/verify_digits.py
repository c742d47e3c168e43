"""The main job's verification: networks trained on the digits, every scheme, input and hidden layer.

    python -m experiments.studies.verify_digits [--out DIR] [--quick] [--workers N]

Writes `expansion.jsonl` (one verdict per line) and `validity.jsonl` (relative error of the expansion up to ε = 1),
prints the table of verdicts and exits with 1 if any expansion is refuted, with 3 if any is undecided.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.progress import track
from rich.table import Table

import nfm_theory as nt

from ..console import wide_console
from ..data.digits import CLASSES, load_digits, verification_subset
from ..models.small import HIDDEN, MODELS
from ..processes import map_cases
from ..record.files import RESULTS, versions, write_lines
from .networks import trained_network

#: The levels that the NFM paper trains with.
NOISE = {"add_noise": 0.4, "mult_noise": 0.2}
SCHEMES: dict[str, dict] = {
    "mixup": {"alpha": 1.0},
    "noise": {"alpha": 0.0, "add_noise": NOISE["add_noise"]},
    "nfm": {"alpha": 1.0, **NOISE},
    "nfm_released": {"alpha": 1.0, **NOISE, "noise": "released"},
}
#: Training samples per scheme, for the MLP and the (slower) CNN. Pairs cost n²; without mixing the remainder starts at
#: ε⁴, which needs the rule of degree 5 with some 8,000 points per sample.
NUM_SAMPLES = {
    "mixup": {"mlp": 50, "small_cnn": 50},
    "noise": {"mlp": 10, "small_cnn": 4},
    "nfm": {"mlp": 20, "small_cnn": 10},
    "nfm_released": {"mlp": 20, "small_cnn": 10},
}
#: Samples and Monte-Carlo evaluations for the error curves.
VALIDITY_N, VALIDITY_SAMPLES = 50, 20_000


@dataclass(frozen=True)
class Case:
    """One verification."""

    model: str
    classes: int
    layer: str
    scheme: str
    n: int
    validity_n: int = VALIDITY_N
    validity_samples: int = VALIDITY_SAMPLES


def cases(*, quick: bool = False) -> list[Case]:
    """What is verified, the longest first; `quick` is a toy of the same shape."""
    if quick:
        small = {"validity_n": 4, "validity_samples": 2000}
        return [Case(m, 2, HIDDEN[m], s, 4, **small) for m in MODELS for s in ("mixup", "nfm")]
    found = [
        Case(model, classes, layer, scheme, NUM_SAMPLES[scheme][model])
        for scheme in ("noise", "nfm", "nfm_released", "mixup")
        for classes in reversed(CLASSES)
        for model in MODELS
        for layer in ("", HIDDEN[model])
    ]
    # The released law differs from the normal one by its moments only: one K is enough.
    return [c for c in found if c.scheme != "nfm_released" or c.classes == 10]


def run_case(case: Case) -> tuple[dict, dict]:
    """The records of one case: verdict, and error curve."""
    network = trained_network(case.model, case.classes)
    data = load_digits(case.classes)
    options = {**SCHEMES[case.scheme], "layer": case.layer, "loss": data.loss, "progress": False}
    facts = {name: getattr(case, name) for name in ("model", "classes", "scheme", "layer")}
    provenance = {
        "training": {
            **asdict(network.recipe),
            "train_accuracy": network.train_accuracy,
            "test_accuracy": network.test_accuracy,
        },
        "versions": versions(),
        "device": "cpu",
    }
    start = time.perf_counter()
    x, y = verification_subset(data, case.n)
    report = nt.verify_expansion(network.model, x, y, **options)
    middle = time.perf_counter()
    x, y = verification_subset(data, case.validity_n)
    curve = nt.expansion_error(network.model, x, y, samples=case.validity_samples, **options)
    end = time.perf_counter()
    return (
        {**facts, "report": report.to_dict(), "seconds": round(middle - start, 2), **provenance},
        {**facts, "n": case.validity_n, "curve": curve.to_dict(), "seconds": round(end - middle, 2), **provenance},
    )


def run(todo: Sequence[Case], workers: int) -> Iterator[tuple[dict, dict]]:
    """Records of all cases in order, computed in several processes of one thread each."""
    for model, classes in sorted({(c.model, c.classes) for c in todo}):
        trained_network(model, classes)  # before the processes start, so that each network is trained once
    yield from map_cases(run_case, todo, workers)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def rule_name(record: dict) -> str:
    """The rule of a report, short."""
    return record["report"]["method"].removeprefix("deterministic, ").split(" (")[0]


def verdict_table(expansion: Sequence[dict], validity: Sequence[dict]) -> Table:
    """The table of verdicts, with the ε at which the second-order expansion is 10 % off."""
    table = Table(title="The NFM expansion on networks trained on digits", box=None, pad_edge=False)
    for name in ("model", "K", "layer", "scheme", "n", "rule"):
        table.add_column(name, no_wrap=True, justify="right" if name in ("K", "n") else "left")
    for name in ("order", "predicted", "ratio", "10 % at", "s"):
        table.add_column(name, no_wrap=True, justify="right")
    table.add_column("verdict", no_wrap=True)
    colours = {"holds": "green", "refuted": "bold red", "undecided": "yellow"}
    for record, curve in zip(expansion, validity, strict=True):
        report = record["report"]
        radius = curve["curve"]["radius"]["2"]
        table.add_row(
            record["model"],
            str(record["classes"]),
            record["layer"] or "input",
            record["scheme"],
            str(report["num_samples"]),
            rule_name(record),
            _number(report["observed_order"], ".3f"),
            str(report["leading_order"]),
            _number(report["coefficient_ratio"], ".4f"),
            "> 1" if radius is None else f"{radius:.2f}",
            f"{record['seconds']:.1f}",
            f"[{colours[report['verdict']]}]{report['verdict']}",
        )
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.studies.verify_digits", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--out", type=Path, help="directory of the two files (default: experiments/results)")
    parser.add_argument("--quick", action="store_true", help="a toy run; writes nothing unless --out is given")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    chosen = parser.parse_args(arguments)
    if chosen.workers < 1:
        parser.error(f"--workers: expected at least 1, got {chosen.workers}")
    out = chosen.out if chosen.out or chosen.quick else RESULTS

    start = time.perf_counter()
    todo = cases(quick=chosen.quick)
    console = wide_console(130)
    progress = track(run(todo, chosen.workers), total=len(todo), description="verifying", transient=True,
                     disable=not console.is_terminal)  # fmt: skip
    expansion, validity = (list(part) for part in zip(*progress, strict=True))
    if out is not None:
        write_lines(out / "expansion.jsonl", expansion)
        write_lines(out / "validity.jsonl", validity)
    console.print(verdict_table(expansion, validity))
    verdicts = [record["report"]["verdict"] for record in expansion]
    for record in expansion:
        if record["report"]["verdict"] != "holds":
            where = f"{record['model']}, K = {record['classes']}, {record['layer'] or 'input'}, {record['scheme']}"
            console.print(f"{where}: {record['report']['verdict']}, {record['report']['reason']}", highlight=False)
    counts = ", ".join(f"{verdicts.count(v)} {v}" for v in ("holds", "refuted", "undecided"))
    console.print(f"{counts}; {time.perf_counter() - start:.0f} s", highlight=False)
    if out is not None:
        console.print(f"written: {out / 'expansion.jsonl'}, {out / 'validity.jsonl'}", highlight=False, soft_wrap=True)
    return 1 if "refuted" in verdicts else 3 if "undecided" in verdicts else 0


if __name__ == "__main__":
    raise SystemExit(main())
