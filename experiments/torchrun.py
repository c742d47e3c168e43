"""Train a recipe in several processes of one machine, which `torchrun` starts, each with a GPU of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from .recipes import Recipe, get_recipe
from .runner import BUSY, DONE, FAILED, FINISHED, Outcome, elapsed, missing_suites, run_recipe
from .training import BusyError, Execution, run_folder
from .training.checkpoint import exclusive

#: The folder of the repository, from which `-m experiments` runs.
ROOT = Path(__file__).resolve().parents[1]
#: Environment variable with the number of a process; the command ends when that process does.
OWNER = "NFM_OWNER"
_GRACE = 15.0


def command_of(
    recipe: Recipe, seed: int, *, processes: int, ledger: Path, runs: Path, execution: Execution
) -> list[str]:
    """The command that trains and measures a recipe in several processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    options = {
        "--seed": seed, "--device": execution.device, "--ledger": Path(ledger).absolute(),
        "--runs": Path(runs).absolute(), "--loaders": execution.workers, "--test-images": execution.test_images,
    }  # fmt: skip
    flags = {
        "--compile": execution.compile, "--tensorboard": execution.tensorboard,
        "--bf16": get_recipe(recipe.name).hash != recipe.hash,
    }  # fmt: skip
    given = [str(part) for pair in options.items() for part in pair]
    return [
        *launcher, "-m", "experiments", "train", recipe.name, *given, *(name for name, asked in flags.items() if asked)
    ]  # fmt: skip


def run_in_processes(
    recipe: Recipe, seed: int, *, processes: int, ledger: Path, runs: Path, execution: Execution
) -> Outcome:
    """Like `runner.run_recipe`, with the training in several processes."""
    start = time.perf_counter()
    options = {"ledger": ledger, "runs": runs, "execution": execution}
    if recipe.note or not missing_suites(recipe, seed, ledger):
        return run_recipe(recipe, seed, **options)
    try:
        with exclusive(run_folder(runs, recipe.training, seed)):
            pass  # so that no processes are started for a training that another worker does
    except BusyError as error:
        return Outcome(recipe.name, seed, BUSY, str(error), elapsed(start))
    status, output = _finished(command_of(recipe, seed, processes=processes, **options))
    if status:
        lines = [line for line in output.splitlines() if f"seed {seed}: {FAILED}" in line] or output.splitlines()[-1:]
        words = lines[0].partition(f"{FAILED} ")[2] if lines and FAILED in lines[0] else "".join(lines)
        return Outcome(recipe.name, seed, FAILED, words or f"torchrun ended with status {status}", elapsed(start))
    # A row of another table may have asked for further measurements of this training
    outcome = run_recipe(recipe, seed, **options)
    if outcome.status == FINISHED:
        return Outcome(recipe.name, seed, DONE, "", elapsed(start))
    return outcome


def _finished(command: list[str]) -> tuple[int, str]:
    """Status and output of a command, which ends when this process does, however that is."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    environment = os.environ | {OWNER: str(os.getpid()), "PYTHONPATH": path}
    # In a session of its own, so that a signal for this process, as before a time limit, does not end it half-way
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            output, _ = process.communicate()
        except BaseException:
            _end(process)
            raise
    return process.returncode, output


def _end(process: subprocess.Popen) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
            return
