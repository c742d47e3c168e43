"""The measurement of the import: what it counts, and its exit status."""

import json

import pytest

from benchmarks import import_time


@pytest.fixture
def clock(monkeypatch):
    """Imports that take a given time; returns the order in which they were asked for."""
    asked = []

    def seconds(module):
        asked.append(module)
        slow = 100.0 if len(asked) <= 2 else 1.0  # the first pair reads from the disk
        return slow * (1.2 if module == "nfm_theory" else 1.0)

    monkeypatch.setattr(import_time, "import_seconds", seconds)
    return asked


def test_pairs_are_interleaved_and_the_first_does_not_count(clock):
    seconds = import_time.measure(3)
    assert seconds == {"torch": [1.0] * 3, "nfm_theory": [1.2] * 3}
    assert [set(clock[k : k + 2]) for k in (0, 2, 4, 6)] == [set(import_time.IMPORTS)] * 4
    assert clock[2] != clock[4]


def test_the_ratio_is_the_median_within_pairs():
    assert import_time.median_ratio({"torch": [1.0, 2.0, 4.0], "nfm_theory": [1.5, 2.2, 8.0]}) == 1.5


def test_the_limit_decides_the_exit_status(clock, tmp_path):
    out = ("--out", str(tmp_path / "import_time.json"))
    assert import_time.main(["--pairs", "1", "--limit", "1.15", *out]) == 1
    assert import_time.main(["--pairs", "1", "--limit", "1.25", *out]) == 0
    assert json.loads((tmp_path / "import_time.json").read_text())["ratio"] == 1.2


def test_an_import_is_timed_in_a_process_of_its_own():
    assert 0 < import_time.import_seconds("torch") < 30
