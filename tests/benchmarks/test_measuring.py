"""What measures the estimators measures right: time in turn, peak memory, machine and versions."""

import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.estimators.measure import (
    Timing,
    interleaved,
    machine,
    num_threads,
    peak_memory,
    summary,
    versions,
)


def test_functions_are_timed_in_turn_with_medians():
    calls = []
    methods = {"slow": lambda: (calls.append("slow"), time.sleep(0.03)), "quick": lambda: calls.append("quick")}
    found = interleaved(methods, repeats=4, warmup=1, shortest=0, threads=1)
    assert calls == ["slow", "quick"] * 5
    assert found["slow"].median > 0.02 > found["quick"].median
    assert found["slow"].lower <= found["slow"].median <= found["slow"].upper
    assert summary([3.0, 1.0, 2.0]) == Timing(2.0, 1.5, 2.5, 3)
    assert summary([3.0]) == Timing(3.0, 3.0, 3.0, 1)


def test_slow_functions_are_called_less_and_quick_ones_more_often():
    found = interleaved(
        {"slow": lambda: time.sleep(0.02), "quick": lambda: None}, repeats=10, budget=0.03, warmup=0, shortest=0
    )
    assert found["slow"].repeats < 10
    assert found["quick"].repeats == 10
    calls = []
    interleaved({"quick": lambda: calls.append(0)}, repeats=2, warmup=0, shortest=0.001)
    assert len(calls) > 20


def test_threads_are_put_back():
    before = torch.get_num_threads()
    with num_threads(1):
        assert torch.get_num_threads() == 1
        assert machine()["threads"] == 1
    assert torch.get_num_threads() == before


def test_peak_memory_of_a_known_pattern():
    outside = torch.ones(1000)

    def pattern():
        first = torch.empty(100_000, dtype=torch.float64)
        second = torch.empty(50_000, dtype=torch.float64)
        del first
        third = torch.empty(40_000, dtype=torch.float64)  # less than what was released
        return outside, second, third

    assert peak_memory(pattern) == 1_200_000
    assert peak_memory(lambda: outside) == 0
    # what a backward pass keeps: two activations and the one that is computed
    x = torch.ones(10_000, dtype=torch.float64, requires_grad=True)
    assert peak_memory(lambda: x.exp().exp()) == 160_000
    with torch.no_grad():
        assert peak_memory(lambda: x.exp().sin().sin()) == 160_000


def test_peak_memory_lets_errors_through():
    def fails():
        raise RuntimeError("from inside")

    with pytest.raises(RuntimeError, match="from inside"):
        peak_memory(fails)
    assert peak_memory(lambda: torch.empty(10, dtype=torch.float64)) == 80


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_peak_memory_on_a_gpu():
    assert peak_memory(lambda: torch.empty(2**20, device="cuda"), "cuda") == 2**22


def test_record_of_machine_and_versions():
    assert machine()["processor"]
    assert "/" not in machine()["processor"]
    found = versions("no-such-distribution", "numpy")
    assert found["no-such-distribution"] == "not installed"
    assert found["torch"] == torch.__version__
    assert found["numpy"][0].isdigit()
