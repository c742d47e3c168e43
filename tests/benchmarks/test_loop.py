"""The training loop beside a plain PyTorch loop: the benchmark runs. It is not timed here."""

import math

import torch

from benchmarks import training_loop


def test_both_loops_are_timed_in_turns():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ratios = training_loop.measure(images=32, epochs=1, rounds=2)
    finally:
        torch.set_num_threads(threads)
    assert len(ratios) == 2
    assert all(math.isfinite(ratio) and ratio > 0 for ratio in ratios)
