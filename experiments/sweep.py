"""Train many recipes with several seeds, on the cores of one machine or on a Slurm cluster.

All workers share one list of tasks. Each worker goes through it and takes every task that is not in the ledger and that
no other worker holds. If a worker dies, its lock is released, and the next sweep continues from the last checkpoint.
A task whose network starts from another one waits for that, if the sweep has it. submitit starts the workers (see
`cluster`). If the sweep ends early, for whatever reason, its workers on this machine end as well.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import submitit
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .cluster import Needs, Watch, gpus_here, gpus_of, make_executor, outcomes_of, plan, refusals_told
from .processes import end_with, is_alive, signals_end_the_block
from .recipes import Recipe
from .record.ledger import Cell, finished
from .runner import BUSY, FAILED, FINISHED, Outcome, own_ledger, run_recipe, runs_folder
from .torchrun import run_in_processes
from .training import Execution, run_folder

CLUSTERS = ("here", "local", "slurm")
#: Seconds that workers have to end when the sweep does.
_GRACE = 10.0
#: Seconds between two looks of a worker at what its tasks wait for.
_LOOK = 5.0


@dataclass(frozen=True)
class Task:
    """A recipe with a seed."""

    recipe: Recipe
    seed: int

    @property
    def cells(self) -> set[Cell]:
        """The cells of the ledger that the task fills."""
        return {Cell(self.recipe.hash, self.seed, suite) for suite in self.recipe.suites}

    def starts_from(self, other: Task) -> bool:
        """True if the network of this task starts from that of the other one."""
        return (other.recipe.hash, other.seed) == (self.recipe.training.pretrained, self.seed)


@dataclass(frozen=True)
class Sweep:
    """Tasks, and where their results go.

    Attributes:
        tasks: all tasks, finished or not.
        ledger: file to which results are appended.
        runs: folder of checkpoints.
        execution: device, number of loader processes and the like.
        name: name of this sweep; within one sweep a failed task is not tried again.
        threads: number of threads of each worker; 0 for the default of the environment.
        processes: number of processes of each training, each with a GPU of its own; above 1 `torchrun` starts them.
    """

    tasks: tuple[Task, ...]
    ledger: Path = field(default_factory=own_ledger)
    runs: Path = field(default_factory=runs_folder)
    execution: Execution = field(default_factory=Execution)
    name: str = field(default_factory=lambda: f"{time.time_ns():x}")
    threads: int = 0
    processes: int = 1

    @property
    def needs(self) -> Needs:
        """What one worker needs."""
        return Needs(self.execution.device, self.processes, self.execution.workers, self.threads)

    def unfinished(self) -> list[Task]:
        """The tasks for which the ledger lacks a result."""
        known = finished(self.ledger)
        return [task for task in self.tasks if not task.cells <= known]

    def waits_for(self, task: Task) -> Task | None:
        """The task of this sweep whose network is needed first; `None` if it is there, failed, or is not in here."""
        start = next((other for other in self.tasks if task.starts_from(other)), None)
        if start is None or start.recipe.note or self.failed_before(start) is not None:
            return None
        trained = (run_folder(self.runs, start.recipe.training, start.seed) / "final.pt").exists()
        return None if trained or start.cells <= finished(self.ledger) else start

    def _marker(self, task: Task) -> Path:
        return run_folder(self.runs, task.recipe.training, task.seed) / "failed.json"

    def failed_before(self, task: Task) -> str | None:
        """Why the task failed earlier in this sweep, or `None` if it did not."""
        try:
            content = json.loads(self._marker(task).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return content["message"] if content.get("sweep") == self.name else None

    def mark_failed(self, task: Task, message: str) -> None:
        """Tell the other workers that a task has failed."""
        self._marker(task).parent.mkdir(parents=True, exist_ok=True)
        self._marker(task).write_text(json.dumps({"sweep": self.name, "message": message}), encoding="utf-8")


def make_tasks(recipes: Sequence[Recipe], seeds: Sequence[int] | None = None) -> tuple[Task, ...]:
    """Make the tasks of a sweep, one seed after the other, so that a sweep that is stopped has complete seeds.

    Args:
        recipes: the recipes; those with the same training are merged, with the suites of all.
        seeds: seeds to use instead of those of the recipes.
    """
    merged: dict[str, Recipe] = {}
    for recipe in recipes:
        known = merged.get(recipe.hash)
        suites = dict.fromkeys((*known.suites, *recipe.suites) if known else recipe.suites)
        merged[recipe.hash] = replace(known or recipe, suites=tuple(suites))
    tasks = [Task(recipe, seed) for recipe in merged.values() for seed in (seeds or recipe.seeds)]
    return tuple(sorted(tasks, key=lambda task: task.seed))


class Worker:
    """Works through the tasks of a sweep. It can be sent to another machine, and again when its time limit is over.

    Args:
        sweep: the sweep.
        number: number of this worker; each starts at another place in the list.
        count: number of workers.
        owner: process of this machine without which the worker ends; `None` if it works on its own.
        gpus: the GPUs of this worker, for `CUDA_VISIBLE_DEVICES`; `None` for those of the environment.
    """

    def __init__(
        self, sweep: Sweep, number: int = 0, count: int = 1, owner: int | None = None, gpus: str | None = None
    ):
        self.sweep, self.number, self.count, self.owner, self.gpus = sweep, number, count, owner, gpus

    def __call__(self) -> list[Outcome]:
        """Work through the tasks, and return the outcomes of those that this worker did."""
        if self.gpus is not None:  # before CUDA is used; submitit hides all GPUs from workers on this machine
            os.environ["CUDA_VISIBLE_DEVICES"] = self.gpus
        if self.owner is None:  # submitit handles the signals of a cluster
            return self._work()
        end_with(self.owner)
        with signals_end_the_block():
            return self._work()

    def _work(self) -> list[Outcome]:
        threads = self.sweep.threads or int(os.environ.get("SLURM_CPUS_PER_TASK", 0))
        if threads:
            torch.set_num_threads(threads)
        found = []
        tasks = self.sweep.unfinished()
        first = self.number % max(1, len(tasks))
        tasks = [*tasks[first:], *tasks[:first]]
        while tasks:
            waiting: list[Task] = []
            for task in tasks:
                if self.sweep.failed_before(task) is not None:
                    continue
                if (start := self.sweep.waits_for(task)) is not None:
                    # The start is tried again as well: the worker that trained it may have died
                    waiting += [one for one in (start, task) if one not in waiting]
                    continue
                outcome = self._run(task)
                if outcome.status == FAILED:
                    self.sweep.mark_failed(task, outcome.message)
                if outcome.status not in (BUSY, FINISHED):
                    found.append(outcome)
            if any(self.sweep.waits_for(task) for task in waiting):
                time.sleep(_LOOK)
            tasks = waiting
        return found

    def _run(self, task: Task) -> Outcome:
        sweep = self.sweep
        options = {"ledger": sweep.ledger, "runs": sweep.runs, "execution": sweep.execution}
        if sweep.processes > 1:
            return run_in_processes(task.recipe, task.seed, processes=sweep.processes, **options)
        return run_recipe(task.recipe, task.seed, **options)

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """What submitit starts after a time limit: the same worker, which continues from the checkpoints."""
        return submitit.helpers.DelayedSubmission(self)


@dataclass(frozen=True)
class Report:
    """How a sweep ended.

    Attributes:
        done: outcomes of the tasks that were done.
        failed: outcomes of the tasks that failed.
        lost: messages about workers that died.
        unfinished: tasks that are still to be done, including the failed ones.
    """

    done: list[Outcome]
    failed: list[Outcome]
    lost: list[str]
    unfinished: list[Task]

    @property
    def complete(self) -> bool:
        """True if the ledger has everything."""
        return not self.unfinished


def run_sweep(
    sweep: Sweep,
    *,
    cluster: str = "local",
    workers: int = 1,
    logs: Path | None = None,
    progress: bool = True,
    poll: float = 1.0,
    parameters: Mapping[str, object] | None = None,
) -> Report:
    """Do all unfinished tasks. A task that fails is reported at the end, and does not stop the others.

    Args:
        sweep: the sweep.
        cluster: `"here"` (in this process), `"local"` (a process for each worker) or `"slurm"`.
        workers: number of workers.
        logs: folder for the logs of submitit; `None` for a folder beside the runs.
        progress: True to show a progress bar.
        poll: seconds between two looks at the ledger.
        parameters: parameters of the submitit executor, such as `slurm_partition` or `timeout_min`, instead of those
            of `cluster.plan`.

    Raises:
        ValueError: for an unknown cluster or no worker, and if submitit or the cluster refuses a parameter or a job;
            also if nothing is left to do.
    """
    options, asked = check_choices(sweep, cluster, workers, parameters)
    executor = None
    if cluster != "here":
        with refusals_told(cluster):
            executor = make_executor(cluster, logs or sweep.runs / "logs", options, asked)
    if not sweep.unfinished():
        return Report([], [], [], [])
    if executor is None:
        return _report(sweep, Worker(sweep)(), [])
    quiet = replace(sweep, execution=replace(sweep.execution, progress=False))
    owner, gpus = (os.getpid(), _gpus_for(sweep)) if cluster == "local" else (None, [])
    jobs: list = []
    try:
        with refusals_told(cluster):
            for number in range(workers):
                worker = Worker(quiet, number, workers, owner, gpus_of(number, sweep.processes, gpus))
                jobs.append(executor.submit(worker))
        _watch(sweep, jobs, progress, poll)
    except BaseException:  # also Ctrl-C, and signals that the command turns into SystemExit
        _end(jobs, here=cluster == "local")
        raise
    outcomes, lost = [], []
    for job in jobs:
        try:
            outcomes += outcomes_of(job)
        except Exception as error:  # the worker was killed, or could not be started
            lost.append(f"worker {job.job_id}: {type(error).__name__}: {(str(error).strip().splitlines() or [''])[-1]}")
    return _report(sweep, outcomes, lost)


def check_choices(
    sweep: Sweep, cluster: str, workers: int, parameters: Mapping[str, object] | None = None
) -> tuple[dict, dict]:
    """What `cluster.plan` makes of the choices of a sweep, whether or not anything is left to do.

    Returns:
        Options of the executor, and parameters of its jobs; both are empty for `"here"`.

    Raises:
        ValueError: for an unknown cluster, no worker, more processes than there are GPUs, and parameters that do not
            fit the cluster.
    """
    if cluster not in CLUSTERS:
        raise ValueError(f"cluster: expected one of {CLUSTERS}, got {cluster!r}.")
    if workers < 1:
        raise ValueError(f"workers: expected at least 1, got {workers}.")
    if cluster == "here":
        if parameters:
            raise ValueError(
                f"{min(parameters)}: the cluster 'here' is this process and takes no parameter; use 'local' or 'slurm'."
            )
        return {}, {}
    if cluster == "local" and 0 < len(gpus := _gpus_for(sweep)) < sweep.processes:
        raise ValueError(f"processes: expected at most {len(gpus)}, the GPUs of this machine, got {sweep.processes}.")
    return plan(cluster, sweep.needs, parameters)


def _gpus_for(sweep: Sweep) -> list[str]:
    """The GPUs of this machine that the workers of a sweep share."""
    return [] if sweep.execution.device == "cpu" else gpus_here()


def _end(jobs: list, *, here: bool) -> None:
    """End all jobs. The processes of this machine get SIGTERM first, and are waited for."""
    processes = [int(job.job_id) for job in jobs] if here else []
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGTERM)
    _wait(processes)
    for job in jobs:
        with suppress(Exception):  # one that cannot be cancelled must not keep the others
            if not here or is_alive(int(job.job_id)):
                job.cancel()
    _wait(processes)


def _wait(processes: list[int]) -> None:
    end = time.monotonic() + _GRACE
    while time.monotonic() < end and any(map(is_alive, processes)):
        time.sleep(0.05)


def _watch(sweep: Sweep, jobs: list, progress: bool, poll: float) -> None:
    """Show a bar of finished tasks until all workers have ended."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, disable=not progress) as bar:
        shown, counted, watch = bar.add_task("sweep", total=len(sweep.tasks)), None, Watch()
        while True:
            ended = all(watch.ended(job) for job in jobs)
            # Reading a long ledger takes time, so read it only if it has grown
            size = sweep.ledger.stat().st_size if sweep.ledger.exists() else 0
            if counted != size:
                counted = size
                bar.update(shown, completed=len(sweep.tasks) - len(sweep.unfinished()))
            if ended:
                return
            time.sleep(poll)


def _report(sweep: Sweep, outcomes: list[Outcome], lost: list[str]) -> Report:
    failed = [outcome for outcome in outcomes if outcome.status == FAILED]
    done = [outcome for outcome in outcomes if outcome.status != FAILED]
    return Report(done, failed, lost, sweep.unfinished())
