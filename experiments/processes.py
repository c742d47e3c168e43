"""Run independent cases in several processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor

import torch


def map_cases(function: Callable, cases: Sequence, workers: int) -> Iterator:
    """Results of all cases in order, each computed with one thread, so that their bits do not depend on `workers`.

    Args:
        function: a function of a module, so that other processes can import it.
        cases: the arguments, one for each call.
        workers: number of processes; with 1 everything runs in this process.
    """
    if workers > 1:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from pool.map(function, cases)
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield from map(function, cases)
    finally:
        torch.set_num_threads(before)
