"""Independent cases in several processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor

import torch


def map_cases(function: Callable, cases: Sequence, workers: int) -> Iterator:
    """Results of all cases in order, computed in processes of one thread each.

    Args:
        function: of a module, so that another process finds it.
        cases: its arguments.
        workers: how many processes; 1 stays in this one, with its threads.
    """
    if workers == 1:
        yield from map(function, cases)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from pool.map(function, cases)
