"""No derivative of an operation is wrong: a sample is examined again, and the record covers the installed PyTorch."""

import json
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

pytest.importorskip("expecttest", reason="PyTorch's own tests import it")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import operations

CONSTRAINTS = Path(__file__).resolve().parents[2] / "constraints.txt"
RECORD = json.loads(operations.RECORD.read_text())
SAME_VERSION = RECORD["versions"]["torch"] == torch.__version__.split("+")[0]
SAMPLE = [
    "linalg.det", "linalg.slogdet", "linalg.solve", "linalg.householder_product", "linalg.eigh", "cumprod", "prod",
    "nn.functional.layer_norm", "logaddexp", "nn.functional.max_unpool2d", "nn.functional.silu", "norm", "svd", "exp",
]  # fmt: skip


def test_no_recorded_verdict_is_wrong():
    wrong = [name for name, found in RECORD["operations"].items() if found["verdict"] == "wrong"]
    assert wrong == []
    assert RECORD["counts"]["wrong"] == 0
    assert RECORD["counts"]["right"] > 400


def test_the_record_is_of_the_pinned_pytorch_and_its_counts_are_those_of_its_verdicts():
    pinned = dict(line.split("==") for line in CONSTRAINTS.read_text().split() if "==" in line)
    assert RECORD["versions"]["torch"] == pinned["torch"]
    found = Counter(one["verdict"] for one in RECORD["operations"].values())
    assert {verdict: count for verdict, count in RECORD["counts"].items() if count} == found


@pytest.mark.skipif(not SAME_VERSION, reason="another PyTorch than that of the record")
def test_the_record_covers_every_operation():
    assert set(operations.operations()) == set(RECORD["operations"])


@pytest.mark.parametrize("name", [name for name in SAMPLE if name in RECORD["operations"]])
def test_a_sample_agrees_with_differences_of_values(name, monkeypatch):
    monkeypatch.setattr(operations, "SAMPLES", 2)
    found = operations.run([name])["operations"]
    assert found[name]["verdict"] == "right", found


def test_new_operations_of_other_versions_are_not_wrong(monkeypatch):
    """What the record does not know is examined here, so that a new PyTorch fails by name."""
    monkeypatch.setattr(operations, "SAMPLES", 1)
    new = sorted(set(operations.operations()) - set(RECORD["operations"]))
    found = operations.run(new)["operations"]
    assert [name for name in new if found[name]["verdict"] == "wrong"] == []


def test_a_wrong_derivative_is_seen():
    """The comparison itself: PyTorch's own determinant, without the library's composition."""
    op = operations.operations()["linalg.det"]
    sample = next(iter(operations.samples_of(op)))
    phi = operations.Curve(op, sample)
    known, errors = operations.from_values(phi)
    plain = operations.exact_derivatives
    operations.exact_derivatives = torch.enable_grad
    try:
        found = dict(operations.compare(phi, known, errors))
    finally:
        operations.exact_derivatives = plain
    assert found["jj"].startswith("wrong")
