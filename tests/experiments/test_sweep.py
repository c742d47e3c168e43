"""Sweeps: every cell once, whoever works on it, whatever fails and whenever it is killed."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import submitit
from ledger_entries import comparable, shortened
from tiers import slow

from experiments import runner, sweep
from experiments.recipes import get_recipe
from experiments.record.ledger import finished, read
from experiments.runner import BUSY, DONE, FAILED, FINISHED, run_recipe
from experiments.sweep import Sweep, Task, Worker, make_tasks, run_sweep
from experiments.training import Execution, run_folder
from experiments.training.checkpoint import exclusive

ROOT = Path(__file__).resolve().parents[2]
EXECUTION = Execution(device="cpu", progress=False)
NFM = shortened(get_recipe("nfm-figure-toy/nfm"), epochs=2)
PLAIN = shortened(get_recipe("nfm-figure-toy/baseline"), epochs=2)
BAND = shortened(get_recipe("noisymix-figure4/noisymix"), epochs=2)
UNRUNNABLE = replace(shortened(PLAIN, epochs=3), name="toy/unrunnable", note="needs images that there are not")
UNKNOWN = replace(shortened(PLAIN, model="no_such_network"), name="toy/unknown")


def sweep_of(folder, *recipes, seeds=(1,), **options):
    return Sweep(
        make_tasks(recipes or (NFM, PLAIN), seeds), ledger=folder / "ledger.jsonl", runs=folder / "runs",
        execution=EXECUTION, **options,
    )  # fmt: skip


def here(chosen):
    return run_sweep(chosen, cluster="here", progress=False)


def results(chosen):
    return sorted((comparable(entry) for entry in read(chosen.ledger)), key=json.dumps)


@pytest.fixture
def trainings(monkeypatch):
    """Scheme and seed of each training that is started, finished or not."""
    started, full = [], runner.train

    def counted(training, *arguments, **options):
        started.append((training.scheme.name, options["seed"]))
        return full(training, *arguments, **options)

    monkeypatch.setattr(runner, "train", counted)
    return started


# Tasks --------------------------------------------------------------------------------------------------------------


def test_rows_that_are_one_training_are_one_task_with_all_suites():
    table2, table7 = get_recipe("noisymix-table2/cifar10-nfm"), get_recipe("noisymix-table7/nfm")
    flips, other = get_recipe("noisymix-table13/nfm"), get_recipe("noisymix-table2/cifar10-baseline")
    tasks = make_tasks([table2, other, table7, flips], seeds=(1, 2))
    assert [(t.recipe.name, t.seed) for t in tasks] == [
        (r.name, seed) for seed in (1, 2) for r in (table2, other)
    ]  # fmt: skip
    assert tasks[0].recipe.suites == ("clean", "corrupted", "flips")
    assert tasks[0].cells == {(table2.hash, 1, suite) for suite in ("clean", "corrupted", "flips")}
    assert [t.seed for t in make_tasks([NFM])] == [1, 2, 3, 4, 5]


def test_a_row_that_cannot_be_run_takes_no_other_row_with_it():
    tasks = make_tasks([get_recipe("noisymix-table1/stylized_imagenet"), get_recipe("noisymix-table6/baseline")])
    assert [bool(t.recipe.note) for t in tasks] == [True, False]


# One process, and several -------------------------------------------------------------------------------------------


def test_every_cell_once_in_one_process(tmp_path):
    chosen = sweep_of(tmp_path, seeds=(1, 2))
    report = here(chosen)
    assert report.complete
    assert [(o.recipe, o.seed, o.status) for o in report.done] == [
        (r.name, seed, DONE) for seed in (1, 2) for r in (NFM, PLAIN)
    ]  # fmt: skip
    assert len(read(chosen.ledger)) == 4
    single = tmp_path / "single"
    for task in chosen.tasks:
        outcome = run_recipe(
            task.recipe, task.seed, ledger=single / "ledger.jsonl", runs=single / "runs", execution=EXECUTION
        )
        assert outcome.status == DONE
    assert results(chosen) == results(sweep_of(single))


def test_two_worker_processes_give_the_same_ledger(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    alone, together = (sweep_of(tmp_path / name, NFM, UNKNOWN, BAND, seeds=(1, 2)) for name in ("a", "b"))
    first = here(alone)
    report = run_sweep(together, cluster="local", workers=2, progress=False, poll=0.2)
    assert report.lost == []
    assert results(alone) == results(together)
    assert len(finished(together.ledger)) == 4
    assert {(o.recipe, o.seed) for o in report.failed} == {(o.recipe, o.seed) for o in first.failed} == {
        ("toy/unknown", 1), ("toy/unknown", 2)
    }  # fmt: skip


def test_workers_start_at_different_tasks(tmp_path, monkeypatch):
    taken = []
    monkeypatch.setattr(
        sweep, "run_recipe", lambda recipe, seed, **_: taken.append(seed) or runner.Outcome("a", 1, BUSY)
    )
    chosen = sweep_of(tmp_path, NFM, seeds=(1, 2, 3, 4))
    for number in range(3):
        assert Worker(chosen, number, 3)() == []
    assert taken == [1, 2, 3, 4, 2, 3, 4, 1, 3, 4, 1, 2]


# Failures -----------------------------------------------------------------------------------------------------------


def test_a_failure_takes_nothing_else_with_it(tmp_path):
    chosen = sweep_of(tmp_path, UNRUNNABLE, NFM, UNKNOWN, PLAIN)
    report = here(chosen)
    assert [o.recipe for o in report.done] == [NFM.name, PLAIN.name]
    messages = {o.recipe: o.message for o in report.failed}
    assert messages["toy/unrunnable"] == "needs images that there are not"
    assert messages["toy/unknown"].startswith("ValueError: model: expected one of")
    assert "no_such_network" in messages["toy/unknown"]
    assert not report.complete
    assert [t.recipe.name for t in report.unfinished] == ["toy/unrunnable", "toy/unknown"]
    assert {e.recipe for e in read(chosen.ledger)} == {NFM.name, PLAIN.name}


def test_a_failure_is_tried_again_in_the_next_sweep_only(tmp_path, trainings):
    chosen = sweep_of(tmp_path, UNKNOWN)
    assert len(here(chosen).failed) == 1
    again = here(chosen)
    assert (again.failed, again.done) == ([], [])
    assert again.unfinished == list(chosen.tasks)
    assert "no_such_network" in chosen.failed_before(chosen.tasks[0])
    following = sweep_of(tmp_path, UNKNOWN)
    assert following.failed_before(following.tasks[0]) is None
    assert len(here(following).failed) == 1
    assert trainings == [("baseline", 1)] * 2


def test_a_marker_that_was_cut_off_is_no_failure(tmp_path):
    chosen = sweep_of(tmp_path, NFM)
    chosen.mark_failed(chosen.tasks[0], "once")
    marker = run_folder(chosen.runs, NFM.training, 1) / "failed.json"
    marker.write_text(marker.read_text()[:9])
    assert chosen.failed_before(chosen.tasks[0]) is None
    assert here(chosen).complete


# What is finished, and what is in other hands -----------------------------------------------------------------------


def test_what_is_finished_is_not_trained_again(tmp_path, trainings):
    chosen = sweep_of(tmp_path)
    here(chosen)
    before = chosen.ledger.read_bytes()
    trainings.clear()
    report = here(sweep_of(tmp_path))
    assert report.complete
    assert (report.done, trainings, chosen.ledger.read_bytes()) == ([], [], before)
    more = sweep_of(tmp_path, seeds=(1, 2))
    assert [o.seed for o in here(more).done] == [2, 2]
    assert trainings == [("nfm", 2), ("baseline", 2)]
    assert run_recipe(NFM, 1, ledger=chosen.ledger, runs=chosen.runs).status == FINISHED


def test_a_run_in_other_hands_is_passed_over(tmp_path):
    chosen = sweep_of(tmp_path)
    with exclusive(run_folder(chosen.runs, NFM.training, 1)):
        report = here(chosen)
    assert [o.recipe for o in report.done] == [PLAIN.name]
    assert [t.recipe.name for t in report.unfinished] == [NFM.name]
    assert here(chosen).complete


def test_two_workers_do_not_measure_the_same(tmp_path, monkeypatch):
    measured, full = [], runner.measure
    monkeypatch.setattr(runner, "measure", lambda *a, **b: measured.append(a[2]) or full(*a, **b))
    chosen = sweep_of(tmp_path, NFM)
    with exclusive(run_folder(chosen.runs, NFM.training, 1) / "measuring"):
        outcome = run_recipe(NFM, 1, ledger=chosen.ledger, runs=chosen.runs, execution=EXECUTION)
        assert outcome.status == BUSY
    assert measured == []
    assert here(chosen).complete
    assert measured == [["clean"]]


def test_only_the_first_process_of_several_measures(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    outcome = run_recipe(NFM, 1, ledger=tmp_path / "ledger.jsonl", runs=tmp_path / "runs", execution=EXECUTION)
    assert outcome.status == DONE
    assert not (tmp_path / "ledger.jsonl").exists()


def test_an_unreadable_ledger_is_a_failure_with_its_line(tmp_path):
    ledger = tmp_path / "ledger.jsonl"
    ledger.write_text('{"schema": 7}\n')
    outcome = run_recipe(NFM, 1, ledger=ledger, runs=tmp_path, execution=EXECUTION)
    assert outcome.status == FAILED
    assert "line 1" in outcome.message


# Killed -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kills", [6, *slow([20])])
def test_killed_at_random_moments_the_ledger_is_that_of_an_uninterrupted_sweep(tmp_path, kills):
    """From outside, inside the writing of checkpoints, and inside that of the ledger."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "tests" / "helpers" / "sweep_processes.py"), str(tmp_path), str(kills)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    dead = [(way, cells) for way, status, cells in found["kills"] if status == signal.SIGKILL]
    assert len(dead) >= kills
    assert {way for way, _ in dead} == {"outside", "replace", "write"}
    assert len({cells for _, cells in dead}) >= min(4, kills // 3)  # at the start, in the middle and near the end
    assert all(status in (0, signal.SIGKILL) for _, status, _ in found["kills"])
    assert found["equal"]
    assert (found["problems"], found["left"], found["cells"]) == ([], [], 8)


# Slurm --------------------------------------------------------------------------------------------------------------


class FakeExecutor:
    """Does at once what it is given."""

    made: ClassVar[list] = []

    def __init__(self, folder, cluster, **options):
        self.folder, self.cluster, self.options, self.parameters, self.jobs = folder, cluster, options, {}, []
        FakeExecutor.made.append(self)

    def update_parameters(self, **parameters):
        self.parameters |= parameters

    def submit(self, work):
        job = FakeJob(work, len(self.jobs))
        self.jobs.append(job)
        return job


class FakeJob:
    def __init__(self, work, number):
        self.work, self.job_id, self.cancelled = work, number, False
        self.outcomes = work()

    def done(self):
        return True

    def result(self):
        if self.work.number == 2:
            raise RuntimeError("job died\nof the time limit")
        return self.outcomes

    def cancel(self):
        self.cancelled = True


@pytest.fixture
def executors(monkeypatch):
    FakeExecutor.made = []
    monkeypatch.setattr(sweep.submitit, "AutoExecutor", FakeExecutor)
    return FakeExecutor.made


def test_parameters_reach_the_cluster(tmp_path, executors):
    chosen = sweep_of(tmp_path)
    report = run_sweep(
        chosen, cluster="slurm", workers=3, progress=False, logs=tmp_path / "logs",
        parameters={"slurm_partition": "long", "timeout_min": 30, "cpus_per_task": 4},
    )  # fmt: skip
    (executor,) = executors
    assert (executor.cluster, executor.folder) == ("slurm", tmp_path / "logs")
    given = {"slurm_partition": "long", "timeout_min": 30, "cpus_per_task": 4}
    assert executor.parameters.items() >= given.items()
    assert "gpus_per_node" not in executor.parameters  # the device is the CPU
    assert [(job.work.number, job.work.count) for job in executor.jobs] == [(0, 3), (1, 3), (2, 3)]
    assert not any(job.work.sweep.execution.progress for job in executor.jobs)
    assert report.complete
    assert report.lost == ["worker 2: RuntimeError: of the time limit"]


def test_logs_go_beside_the_runs(tmp_path, executors):
    run_sweep(sweep_of(tmp_path), cluster="slurm", progress=False)
    assert executors[0].folder == tmp_path / "runs" / "logs"


def test_an_interrupted_sweep_cancels_its_jobs(tmp_path, executors, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "_watch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(sweep_of(tmp_path), cluster="slurm", workers=2, progress=False)
    assert [job.cancelled for job in executors[0].jobs] == [True, True]


def test_nothing_is_started_where_nothing_is_left(tmp_path, executors):
    chosen = sweep_of(tmp_path, NFM)
    here(chosen)
    assert run_sweep(chosen, cluster="slurm").complete
    assert executors[0].jobs == []


def test_after_a_time_limit_the_same_worker_goes_on(tmp_path):
    worker = Worker(sweep_of(tmp_path), 1, 2)
    again = worker.checkpoint()
    assert isinstance(again, submitit.helpers.DelayedSubmission)
    assert again.function is worker


def test_threads_are_those_that_slurm_gives(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(sweep.torch, "set_num_threads", given.append)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    empty = Sweep((), ledger=tmp_path / "none.jsonl", runs=tmp_path)
    Worker(empty)()
    Worker(replace(empty, threads=2))()
    monkeypatch.delenv("SLURM_CPUS_PER_TASK")
    Worker(empty)()
    assert given == [3, 2]


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"cluster: expected one of .*, got 'cloud'"):
        run_sweep(sweep_of(tmp_path), cluster="cloud")
    with pytest.raises(ValueError, match="workers: expected at least 1, got 0"):
        run_sweep(sweep_of(tmp_path), workers=0)
    assert Task(NFM, 1).cells == {(NFM.hash, 1, "clean")}
