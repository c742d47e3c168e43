"""A sweep on a real Slurm of one node: a training outlasts its time limit, is requeued, and goes on."""

import math
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import slurm_node
from ledger_entries import shortened

from experiments import cluster
from experiments.recipes import get_recipe
from experiments.record.files import read_lines
from experiments.record.ledger import finished
from experiments.runner import run_recipe
from experiments.sweep import Sweep, make_tasks, run_sweep
from experiments.training import Execution, run_folder

DIGITS = replace(get_recipe("digits/baseline"), suites=("clean",))
EXECUTION = Execution(device="cpu", progress=False, checkpoint_minutes=0.05, test_images=0)


def seconds_of(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.skipif(bool(slurm_node.missing()), reason=slurm_node.missing() or "not skipped")
def test_a_cell_that_outlasts_its_time_limit_is_requeued_and_goes_on(tmp_path, monkeypatch):
    command = [sys.executable, "-c", "import experiments.sweep"]
    begin = seconds_of(lambda: subprocess.run(command, check=True))
    minutes = math.ceil((20 + 4 * begin) / 60)  # Slurm counts in minutes; before the imports a worker takes no signal
    short, here = shortened(DIGITS, epochs=20), {"ledger": tmp_path / "here.jsonl", "runs": tmp_path / "here"}
    run_recipe(shortened(DIGITS, epochs=1), 1, execution=EXECUTION, **here)  # reads the data
    each = seconds_of(lambda: run_recipe(short, 1, execution=EXECUTION, **here)) / 20
    long = shortened(DIGITS, epochs=(epochs := math.ceil(90 * minutes / each)))
    tasks = make_tasks([short, long], (1,))
    chosen = Sweep(tasks, tmp_path / "l.jsonl", tmp_path / "runs", EXECUTION, threads=1)
    asked = {"timeout_min": minutes, "slurm_signal_delay_s": 15, "mem_gb": 1, "cpus_per_task": 1}
    with slurm_node.slurm_node(tmp_path / "slurm") as environment:
        for name in ("PATH", "SLURM_CONF"):
            monkeypatch.setenv(name, environment[name])
        monkeypatch.setattr(cluster.Watch, "pause", 2.0)
        report = run_sweep(chosen, cluster="slurm", workers=2, progress=False, parameters=asked)
    logs = {path: path.read_text() for path in (tmp_path / "runs" / "logs").glob("*_log.*")}
    assert (report.failed, report.lost) == ([], []), logs
    assert report.complete
    assert finished(chosen.ledger) == {cell for task in tasks for cell in task.cells}
    assert any("Requeued job" in text for text in logs.values()), logs  # the short one may be, on a slow machine
    log = list(read_lines(run_folder(chosen.runs, long.training, 1) / "log.jsonl"))
    assert [line["epoch"] for line in log] == list(range(epochs))
