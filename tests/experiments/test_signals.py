"""Signals to commands that have started processes: all of them end, and what was finished stays."""

import os
import signal
import subprocess
import sys
import time
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from experiments.processes import is_alive, signals_end_the_block
from experiments.record.ledger import validate

ROOT = Path(__file__).resolve().parents[2]
linux = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc")
#: Starts a sweep of recipes that train for a long time, and of a short one.
SWEEP = """
import sys
from dataclasses import replace
from pathlib import Path
from experiments import training_commands
from experiments.recipes import all_recipes
from experiments.__main__ import main, run_command

known = {n: r for n, r in all_recipes().items() if n.startswith("nfm-figure-toy/")}
def select(*patterns, size=None):
    return [
        replace(known[n], training=replace(known[n].training, epochs=2 if n.endswith("baseline") else 10**6))
        for n in patterns
    ]
training_commands.select_recipes = select
sys.argv = ["experiments", "sweep", "nfm-figure-toy/baseline", "nfm-figure-toy/nfm", *sys.argv[1:]]
run_command(main)
"""


def marked(mark):
    """The processes with a mark in their environment."""
    found = []
    for place in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in place.read_bytes() and is_alive(int(place.parent.name)):
                found.append(int(place.parent.name))
        except OSError:
            continue
    return found


def wait_for(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)


@contextmanager
def running_sweep(folder, before=None):
    """A sweep that has finished its short recipe and trains the long one; the process, and the mark of its family.

    `before` runs in its process before it begins. In the end nothing is left of it, whatever went wrong.
    """
    mark = f"NFM_TEST_{uuid.uuid4().hex}"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", mark: "1"}
    ledger = folder / "ledger.jsonl"
    places = ("--ledger", str(ledger), "--runs", str(folder / "runs"), "--device", "cpu", "--seeds", "1")
    (folder / "sweep.py").write_text(SWEEP)
    command = [sys.executable, "sweep.py", *places, "--workers", "1"]
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        preexec_fn=before,
    ) as process:  # fmt: skip
        try:
            begun = folder.joinpath("runs").glob
            wait_for(lambda: process.poll() is not None or (ledger.exists() and any(begun("*/*/checkpoint.pt"))))
            assert process.poll() is None, process.stderr.read()
            yield process, mark
        finally:
            for left in marked(mark):
                with suppress(ProcessLookupError):
                    os.kill(left, signal.SIGKILL)


def deaf():
    """As a shell makes what a script starts in the background; it is inherited."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@linux
@pytest.mark.parametrize(
    ("number", "status", "before"),
    [
        # The pool below ends by SIGTERM in the quick run
        pytest.param(signal.SIGTERM, 143, deaf, marks=pytest.mark.slow, id="SIGTERM in the background"),
        pytest.param(signal.SIGKILL, -9, None, id="SIGKILL"),
    ],
)
def test_a_sweep_that_is_stopped_leaves_no_process(tmp_path, number, status, before):
    with running_sweep(tmp_path, before) as (process, mark):
        assert len(marked(mark)) >= 3  # the sweep, what watches over the worker, and the worker
        if before is not None:
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)
            assert process.poll() is None
        process.send_signal(number)
        assert process.wait(30) == status
        wait_for(lambda: marked(mark) == [], 15)
        assert "Traceback" not in process.stderr.read()
    assert len((tmp_path / "ledger.jsonl").read_text().splitlines()) == 1
    assert validate(tmp_path / "ledger.jsonl") == []


POOL = """
import time
from experiments.__main__ import run_command
from experiments.processes import process_pool, signals_end_the_block

def work(place):
    open(place, "w").close()
    time.sleep(600)

def main():
    with signals_end_the_block(), process_pool(2) as pool:
        list(pool.map(work, ["a", "b", "c", "d"]))

if __name__ == "__main__":
    run_command(main)
"""


@linux
def test_a_pool_ends_with_its_process(tmp_path):
    (tmp_path / "pool.py").write_text(POOL)
    mark = f"NFM_TEST_{uuid.uuid4().hex}"
    environment = os.environ | {"PYTHONPATH": str(ROOT), mark: "1"}
    process = subprocess.Popen([sys.executable, "pool.py"], cwd=tmp_path, env=environment)
    wait_for(lambda: (tmp_path / "a").exists() and (tmp_path / "b").exists())
    process.terminate()
    assert process.wait(15) == 143
    wait_for(lambda: marked(mark) == [], 15)


def test_signals_get_their_handlers_back():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)]
    with signals_end_the_block():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)] == before


def test_a_signal_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals_end_the_block():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda value: value.name)
def test_a_signal_ends_the_block_with_its_status(number):
    before = signal.signal(number, signal.SIG_DFL)  # under nohup, SIGHUP is ignored
    try:
        with pytest.raises(SystemExit) as stop, signals_end_the_block():
            signal.raise_signal(number)
    finally:
        signal.signal(number, before)
    assert stop.value.code == 128 + number
