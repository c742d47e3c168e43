"""The training loop beside a plain PyTorch loop. The limit is loose, since a short measurement is noisy."""

from statistics import median

import torch

from benchmarks import training_loop


def test_our_loop_costs_little_more_than_a_plain_one():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ratios = training_loop.measure(images=1280, epochs=2, rounds=3)
    finally:
        torch.set_num_threads(threads)
    assert 0.5 < median(ratios) < 1.5
