"""The numbers in the README are those of the ledger."""

import json
import re
from pathlib import Path

import pytest

from experiments.record.files import RESULTS, read_lines

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def quoted(pattern):
    match = re.search(pattern, README)
    assert match, f"README has nothing like {pattern}"
    return float(match.group(1).replace(",", ""))


def test_worst_ratio_order_and_draws_are_those_of_the_tracked_verifications():
    reports = [record["report"] for record in read_lines(RESULTS / "expansion.jsonl")]
    assert quoted(r"the worst of (\d+) verifications") == len(reports)
    assert all(report["verdict"] == "holds" for report in reports)
    ratio = max(abs(report["coefficient_ratio"] - 1) for report in reports)
    order = max(abs(report["observed_order"] - report["leading_order"]) for report in reports)
    # a run on another machine differs in the last digits of a rounding error, not in these
    assert quoted(r"ratio to 1: ([\d.]+)") == pytest.approx(ratio, abs=2e-4)
    assert quoted(r"\| order: ([\d.]+)") == pytest.approx(order, abs=2e-3)
    assert quoted(r"\| (\d+) draws outside") == sum(report["pathwise"][1] for report in reports)


def test_gain_of_the_control_variate_is_the_benchmarks():
    record = json.loads((ROOT / "benchmarks" / "results" / "control_variate.json").read_text(encoding="utf-8"))
    row = record["tables"]["mlp, trained on digits"]["quadratic"]
    gain = row["effective_gain"][record["eps"].index(0.1)]
    assert quoted(r"remainder ([\d.]+) times cheaper") == pytest.approx(gain, rel=0.01)
    assert gain >= 15
    assert row["gain"][record["eps"].index(0.1)] >= 50  # in samples, time left out
