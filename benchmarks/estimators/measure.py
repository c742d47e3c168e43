"""Time and peak memory of functions that are compared with each other in one process."""

import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


@dataclass(frozen=True)
class Timing:
    """Seconds of one function: median and quartiles of `repeats` calls."""

    median: float
    lower: float
    upper: float
    repeats: int


def synchronize() -> None:
    """Wait for the accelerator, if there is one: its kernels run asynchronously."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextmanager
def num_threads(count: int | None):
    """Threads of PyTorch inside the context; `None` leaves them as they are."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def timed(function: Callable[[], object]) -> tuple[float, object]:
    """Seconds of one call, and what it returned."""
    synchronize()
    start = time.perf_counter()
    result = function()
    synchronize()
    return time.perf_counter() - start, result


def average(function: Callable[[], object], calls: int) -> float:
    """Seconds of one of several calls in a row."""

    def repeated() -> None:
        for _ in range(calls):
            function()

    return timed(repeated)[0] / calls


def summary(seconds: list[float]) -> Timing:
    """Median and quartiles."""
    if len(seconds) == 1:
        return Timing(*seconds * 3, 1)
    lower, median, upper = statistics.quantiles(seconds, n=4, method="inclusive")
    return Timing(median, lower, upper, len(seconds))


def interleaved(
    methods: dict[str, Callable[[], object]],
    *,
    repeats: int = 15,
    warmup: int = 1,
    budget: float = float("inf"),
    shortest: float = 0.01,
    threads: int | None = None,
) -> dict[str, Timing]:
    """Time functions in turn, one call each per round, so that a drift of the machine meets all of them.

    Args:
        methods: functions without arguments, by name.
        repeats: timed calls of each.
        warmup: untimed calls before.
        budget: seconds of timed calls after which a function drops out of the rounds; each is timed at least once.
        shortest: seconds; quicker functions are called several times in a row, so that they find their data in the
            caches whatever ran before.
        threads: threads of PyTorch during the measurement, `None` for those set.

    Returns:
        One `Timing` for each name.
    """
    seconds, calls = {name: [] for name in methods}, {}
    with num_threads(threads):
        for function in methods.values():
            for _ in range(warmup):
                function()
        for _ in range(repeats):
            for name, function in methods.items():
                if seconds[name] and sum(seconds[name]) * calls[name] >= budget:
                    continue
                once, _ = timed(function)
                calls.setdefault(name, max(1, math.ceil(shortest / max(once, 1e-9))))
                seconds[name].append(once if calls[name] == 1 else average(function, calls[name]))
    return {name: summary(values) for name, values in seconds.items()}


@contextmanager
def _quiet():
    """Without what the profiler writes past Python to the standard error when it starts and stops."""
    sys.stderr.flush()
    before = os.dup(2)
    try:
        with open(os.devnull, "w") as sink:
            os.dup2(sink.fileno(), 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def peak_memory(function: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """Peak of tensor memory during a call, in bytes above what was allocated at its start.

    On the CPU the allocations and releases that the profiler records are added up; on a GPU the allocator counts.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        start = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - start
    record = profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True)
    with _quiet():
        record.start()
    try:
        result = function()  # kept until the end: what is returned counts
    finally:
        with _quiet():
            record.stop()
    del result
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(accumulate(changes, initial=0))


def processor() -> str:
    """Model name of the CPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def machine(device: torch.device | str = "cpu") -> dict[str, str | int]:
    """What the numbers were measured on."""
    record = {
        "processor": processor(),
        "system": platform.system(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
    }
    if torch.device(device).type == "cuda":
        record["gpu"] = torch.cuda.get_device_name(device)
    return record


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python, PyTorch and the distributions named; "not installed" where one is missing."""
    record = {"python": platform.python_version(), "torch": torch.__version__}
    for name in packages:
        try:
            record[name] = version(name)
        except PackageNotFoundError:
            record[name] = "not installed"
    return record
