"""The study `expansion`: is the expansion of the NFM loss right on networks trained on digits?

Every scheme, at the input and at a hidden layer. `expansion.jsonl` has one verdict per line, `validity.jsonl` the
relative error of the expansion up to ε = 1.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

import nfm_theory as nt

from ..data.digits import CLASSES, load_digits, verification_subset
from ..models.small import HIDDEN, MODELS
from ..record.files import versions
from .networks import trained_network
from .recorded import RecordedStudy, RecordFile, curve_difference, results_table

#: The levels that the NFM paper trains with.
NOISE = {"add_noise": 0.4, "mult_noise": 0.2}
SCHEMES: dict[str, nt.Law] = {
    "mixup": nt.Law(),
    "noise": nt.Law(alpha=0.0, add_noise=NOISE["add_noise"]),
    "nfm": nt.Law(**NOISE),
    "nfm_released": nt.Law.released(**NOISE),
}
#: Training samples per scheme, for the MLP and the (slower) CNN. Pairs cost n²; without mixing the remainder starts at
#: ε⁴, which needs the rule of degree 5 with some 8,000 points per sample.
NUM_SAMPLES = {
    "mixup": {"mlp": 50, "small_cnn": 50},
    "noise": {"mlp": 10, "small_cnn": 4},
    "nfm": {"mlp": 20, "small_cnn": 10},
    "nfm_released": {"mlp": 20, "small_cnn": 10},
}
#: Number of samples and of Monte Carlo evaluations for the error curves.
VALIDITY_N, VALIDITY_SAMPLES = 50, 20_000


@dataclass(frozen=True)
class ExpansionCase:
    """One layer of one network, with one law of the perturbation."""

    model: str
    classes: int
    layer: str
    scheme: str
    n: int
    validity_n: int = VALIDITY_N
    validity_samples: int = VALIDITY_SAMPLES


def cases(*, quick: bool = False) -> list[ExpansionCase]:
    """The cases, the longest first; `quick` gives small ones of the same kind, for tests."""
    if quick:
        small = {"validity_n": 4, "validity_samples": 2000}
        return [ExpansionCase(m, 2, HIDDEN[m], s, 4, **small) for m in MODELS for s in ("mixup", "nfm")]
    found = [
        ExpansionCase(model, classes, layer, scheme, NUM_SAMPLES[scheme][model])
        for scheme in ("noise", "nfm", "nfm_released", "mixup")
        for classes in reversed(CLASSES)
        for model in MODELS
        for layer in ("", HIDDEN[model])
    ]
    # The released law differs from the normal one by its moments only: one K is enough.
    return [c for c in found if c.scheme != "nfm_released" or c.classes == 10]


def run_case(case: ExpansionCase) -> tuple[list[dict], list[dict]]:
    """The records of one case: the verdict, and the error curve."""
    network = trained_network(case.model, case.classes)
    data = load_digits(case.classes)
    setting = {"layer": case.layer, "law": SCHEMES[case.scheme], "loss": data.loss}
    facts = {name: getattr(case, name) for name in ("model", "classes", "scheme", "layer")}
    provenance = {"training": network.facts, "versions": versions(), "device": "cpu"}
    start = time.perf_counter()
    with nt.options(progress=False):
        report = nt.verify(nt.Problem(network.model, *verification_subset(data, case.n), **setting))
        middle = time.perf_counter()
        problem = nt.Problem(network.model, *verification_subset(data, case.validity_n), **setting)
        curve = nt.error_curve(problem, samples=case.validity_samples)
    end = time.perf_counter()
    return (
        [{**facts, "report": report.to_dict(), "seconds": round(middle - start, 2), **provenance}],
        [{**facts, "n": case.validity_n, "curve": curve.to_dict(), "seconds": round(end - middle, 2), **provenance}],
    )


def prepare(todo: Sequence[ExpansionCase]) -> None:
    """Train the networks of all cases, so that each is trained once."""
    for model, classes in sorted({(case.model, case.classes) for case in todo}):
        trained_network(model, classes)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def rule_name(record: dict) -> str:
    """The integration rule of a report, as a short name."""
    return record["report"]["method"].removeprefix("deterministic, ").split(" (")[0]


def verdict_table(expansion: Sequence[dict], validity: Sequence[dict]) -> Table:
    """The table of verdicts, with the ε at which the second-order expansion is 10 % off."""
    colors = {"holds": "green", "refuted": "bold red", "undecided": "yellow"}
    rows = []
    for record, curve in zip(expansion, validity, strict=True):
        report, radius = record["report"], curve["curve"]["radius"]["2"]
        rows.append([
            record["model"], str(record["classes"]), record["layer"] or "input", record["scheme"],
            str(report["num_samples"]), rule_name(record), _number(report["observed_order"], ".3f"),
            str(report["leading_order"]), _number(report["coefficient_ratio"], ".4f"),
            "> 1" if radius is None else f"{radius:.2f}", f"{record['seconds']:.1f}",
            f"[{colors[report['verdict']]}]{report['verdict']}",
        ])  # fmt: skip
    header = ("model", "K", "layer", "scheme", "n", "rule", "order", "predicted", "ratio", "10 % at", "s", "verdict")
    text = ("model", "layer", "scheme", "rule", "verdict")
    return results_table("The NFM expansion on networks trained on digits", header, rows, text=text)


def conclude(expansion: Sequence[dict], validity: Sequence[dict]) -> tuple[int, list[str]]:
    """The exit status (1 if an expansion is refuted, 3 if one is undecided), and the reasons."""
    verdicts = [record["report"]["verdict"] for record in expansion]
    lines = [
        f"{EXPANSION.words(record)}: {record['report']['verdict']}, {record['report']['reason']}"
        for record in expansion
        if record["report"]["verdict"] != "holds"
    ]
    counts = ", ".join(f"{verdicts.count(word)} {word}" for word in ("holds", "refuted", "undecided"))
    return 1 if "refuted" in verdicts else 3 if "undecided" in verdicts else 0, [*lines, counts]


def _difference(new: dict, old: dict) -> str:
    """Another verdict contradicts, and so does a coefficient that is more than a tenth away."""
    reports = [record["report"] for record in (old, new)]
    verdicts = [report["verdict"] for report in reports]
    coefficients = [report["predicted_coefficient"] for report in reports]
    if verdicts[0] == verdicts[1] and math.isclose(*coefficients, rel_tol=0.1):
        return ""
    return f"{verdicts[0]}, coefficient {coefficients[0]:.4g} recorded; {verdicts[1]}, {coefficients[1]:.4g} now"


def _in_sample(case: ExpansionCase) -> bool:
    return case.classes == 10 and case.scheme in ("mixup", "nfm") and case.layer != ""


_KEY = ("model", "classes", "layer", "scheme")
EXPANSION = RecordFile("expansion.jsonl", _KEY, _difference)
STUDY = RecordedStudy(
    "expansion", (EXPANSION, RecordFile("validity.jsonl", _KEY, curve_difference)), run_case, verdict_table, prepare,
    conclude, _in_sample, "ten classes, Mixup and NFM at the hidden layers",
)  # fmt: skip
