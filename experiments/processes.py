"""Processes: run independent cases in several of them, and leave none behind."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

#: Seconds between two looks at whether another process still runs.
_LOOK = 0.5


def is_alive(process: int) -> bool:
    """True if a process of this machine runs. One that has ended and waits for its parent does not."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # of another user
    try:
        status = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True  # no Linux
    return status.rpartition(")")[2].split()[0] not in "ZX"


def end_with(process: int) -> None:
    """End this process, by force, as soon as another one of this machine does not run any more."""

    def watch() -> None:
        while is_alive(process):
            time.sleep(_LOOK)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="end_with", daemon=True).start()


@contextmanager
def signals_end_the_block() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block as Ctrl-C does, with time to end what it has started.

    The exit status is 128 plus the number of the signal. A signal that is ignored, as by `nohup`, stays so. Processes
    that are started in the block listen to Ctrl-C, which a shell forbids to what it runs in the background.
    """

    def end(number: int, frame: object) -> None:
        for other in handled:
            signal.signal(other, signal.SIG_IGN)  # what follows is not disturbed again
        raise SystemExit(128 + number)

    handled = [
        number
        for name in ("SIGTERM", "SIGHUP")
        if (number := getattr(signal, name, None)) and signal.getsignal(number) is not signal.SIG_IGN
    ]
    before = {number: signal.signal(number, end) for number in handled}
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # Unlike SIG_IGN, a handler is not inherited by other programs
        before[signal.SIGINT] = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _begin(owner: int, begin: Callable | None, arguments: tuple) -> None:
    end_with(owner)
    if begin is not None:
        begin(*arguments)


@contextmanager
def process_pool(workers: int, begin: Callable | None = None, arguments: tuple = ()) -> Iterator[ProcessPoolExecutor]:
    """New processes that end with the block, even if it ends with an error while they are at work, and with this one.

    Args:
        workers: number of processes.
        begin: function that each process calls first; a function of a module.
        arguments: its arguments.
    """
    context = multiprocessing.get_context("spawn")
    initial = (os.getpid(), begin, arguments)
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=initial) as pool:
        before = set(multiprocessing.active_children())
        try:
            yield pool
        except BaseException:
            for process in set(multiprocessing.active_children()) - before:
                with contextlib.suppress(ValueError):  # it is closed already
                    process.terminate()
            raise


def map_cases(function: Callable, cases: Sequence, workers: int) -> Iterator:
    """Results of all cases in order, each computed with one thread, so that their bits do not depend on `workers`.

    Args:
        function: a function of a module, so that other processes can import it.
        cases: the arguments, one for each call.
        workers: number of processes; with 1 everything runs in this process.
    """
    import torch  # here, because not every process of a pool needs it

    if workers > 1:
        with process_pool(workers, torch.set_num_threads, (1,)) as pool:
            yield from pool.map(function, cases)
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield from map(function, cases)
    finally:
        torch.set_num_threads(before)
