"""Where the workers of a sweep run: the GPUs of this machine, and what Slurm is asked for.

submitit starts the workers. Its parameters have the names of its executor. `plan` fills in what a first try needs: a
GPU for each training, processors, memory, a day of time, and new starts after the time limit, each of which goes on
from the last checkpoint.
"""

from __future__ import annotations

import getpass
import os
import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import submitit
import torch
from submitit.slurm.slurm import SlurmJob

#: How often Slurm starts a worker again after its time limit.
RESTARTS = 50
_DAY = 24 * 60
#: GB of memory for each process of a training.
_MEMORY = 16
#: Processors for each process of a training, besides those that load data.
_PROCESSORS = 2
#: Seconds between the signal before the time limit and the limit.
_WARNING = 120
#: Parameters that submitit takes when the executor is made, not later.
_AT_START = ("max_num_timeout", "max_pickle_size_gb", "python")
#: Parameters of Slurm that stand for one of our defaults.
_INSTEAD = {
    "gpus_per_node": ("gres", "gpus_per_task", "num_gpus"),
    "cpus_per_task": ("cpus_per_gpu",),
    "mem_gb": ("mem", "mem_per_cpu", "mem_per_gpu"),
    "timeout_min": ("time",),
}
#: What Slurm's refusals mean, and the way out.
_HINTS = (
    ("partition", "name a partition with --parameter slurm_partition=NAME; `sinfo` lists them"),
    ("account", "name your account with --parameter slurm_account=NAME"),
    ("qos", "name a quality of service with --parameter slurm_qos=NAME"),
    ("time limit", "ask for less time with --parameter timeout_min=MINUTES; a worker is started again after its limit"),
    ("memory", "ask for less memory with --parameter mem_gb=GB"),
    ("gres|gpu|node configuration|node count", "no node has what was asked for: --parameter slurm_gres=gpu:TYPE:1, "
     "cpus_per_task=N and mem_gb=GB name another size, --device cpu asks for no GPU"),
)  # fmt: skip


@dataclass(frozen=True)
class Needs:
    """What one worker needs.

    Attributes:
        device: `"cpu"`, `"cuda"` or `"auto"`.
        processes: number of processes of a training, each with a GPU of its own.
        loaders: number of processes that load data, for each of these.
        threads: number of threads of each process; 0 if it does not matter.
    """

    device: str = "auto"
    processes: int = 1
    loaders: int = 0
    threads: int = 0


def gpus_here() -> list[str]:
    """The GPUs that this process may use, by their names in `CUDA_VISIBLE_DEVICES`. No GPU is touched."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    if named is None:
        return [str(number) for number in range(count)]
    return [name for part in named.split(",") if (name := part.strip())][:count]


def gpus_of(worker: int, processes: int, gpus: list[str]) -> str | None:
    """The GPUs of a worker on this machine, for `CUDA_VISIBLE_DEVICES`; workers share them if there are too few.

    Args:
        worker: number of the worker.
        processes: GPUs for each worker.
        gpus: the GPUs of this machine; none for training on the CPU, which returns `None`.

    Example:
        >>> [gpus_of(worker, 1, ["0", "1"]) for worker in range(3)]
        ['0', '1', '0']
    """
    if not gpus:
        return None
    return ",".join(gpus[(worker * processes + k) % len(gpus)] for k in range(processes))


def plan(cluster: str, needs: Needs, given: Mapping[str, object] | None = None) -> tuple[dict, dict]:
    """What submitit is told: options of the executor, and parameters of its jobs.

    Args:
        cluster: `"local"` or `"slurm"`.
        needs: what one worker needs.
        given: parameters by name, which replace the defaults. Names may begin with the cluster, as in
            `slurm_partition`.

    Raises:
        ValueError: for parameters of another cluster, that would start several copies of a worker, or that name GPUs
            of this machine.
    """
    given = dict(given or {})
    other = {"local": "slurm", "slurm": "local"}[cluster]
    if wrong := next((name for name in given if name.startswith(f"{other}_")), None):
        raise ValueError(f"{wrong}: expected a parameter of the cluster {cluster!r}, got one of {other!r}.")
    plain = {name.removeprefix(f"{cluster}_"): value for name, value in given.items()}
    for name in ("tasks_per_node", "ntasks_per_node", "nodes"):
        if plain.get(name, 1) != 1:
            raise ValueError(
                f"{name}: expected 1, got {plain[name]!r}, which would start copies of one worker on the same GPU; use "
                "--workers for more trainings at the same time, and --processes for one training on several GPUs."
            )
    if cluster == "local" and (wrong := {"gpus_per_node", "visible_gpus"} & plain.keys()):
        raise ValueError(
            f"{min(wrong)}: each worker on this machine gets its GPU by itself; name the GPUs with the environment "
            "variable CUDA_VISIBLE_DEVICES."
        )
    defaults: dict[str, object] = {"timeout_min": 7 * _DAY}
    start: dict[str, object] = {}
    if cluster == "slurm":
        start = {"slurm_max_num_timeout": RESTARTS}
        defaults = {
            "timeout_min": _DAY, "mem_gb": _MEMORY * needs.processes,
            "cpus_per_task": needs.processes * max(needs.threads, _PROCESSORS + needs.loaders),
            "slurm_job_name": "nfm", "slurm_signal_delay_s": _WARNING,
        }  # fmt: skip
        if needs.device != "cpu":
            defaults["gpus_per_node"] = needs.processes
    replaced = {ours for ours, others in _INSTEAD.items() for other in others if other in plain}
    kept = {
        name: value
        for name, value in defaults.items()
        if name not in replaced and name.removeprefix(f"{cluster}_") not in plain
    }
    for name in list(given):
        if (bare := name.removeprefix(f"{cluster}_")) in _AT_START:
            start[f"{cluster}_{bare}"] = given.pop(name)
    return start, kept | given


@contextmanager
def refusals_told(cluster: str) -> Iterator[None]:
    """Say in a sentence what submitit or the cluster refuses, which raise errors of many kinds."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"cluster {cluster!r}: {_refusal(str(error)) or type(error).__name__}.") from error


def _refusal(text: str) -> str:
    """What Slurm said, without the command around it, and the way out."""
    said = re.findall(r"(?:sbatch|srun|scontrol): (?:error: )?(.+)", text)
    words = "; ".join(dict.fromkeys(one.strip().rstrip(".") for one in said)) or " ".join(text.split()).rstrip(".")
    if said:
        hint = next((way for sign, way in _HINTS if re.search(sign, words, re.IGNORECASE)), "")
        return f"Slurm refused the job ({words})" + (f"; {hint}" if hint else "")
    if "Could not detect" in words:
        return f"submitit found no Slurm ({words}); leave --cluster out, or call the command on a login node"
    return (
        f"submitit did not start the workers ({words}); check --cluster and --parameter. The names of parameters are "
        "those of submitit's executor, such as timeout_min or slurm_partition"
    )


class Watch:
    """Says which workers have ended. A worker of Slurm has if it left a result, or is no longer in the queue.

    Slurm's accounting is not asked, as many clusters have none.

    Attributes:
        pause: seconds between two looks at the queue. A worker must be missing in two of them, since a result may show
            late on a network file system.
    """

    pause = 15.0

    def __init__(self):
        self._looked, self._missing, self._queue = -self.pause, {}, None

    def ended(self, job) -> bool:
        """True if a worker has ended."""
        if not isinstance(job, SlurmJob):
            return job.done()
        if job.paths.result_pickle.exists():
            return True
        if time.monotonic() - self._looked >= self.pause:
            self._looked, self._queue = time.monotonic(), _queue()
            if self._queue is not None:
                self._missing = {name: n for name, n in self._missing.items() if name not in self._queue}
        if self._queue is not None and job.job_id not in self._queue:
            first = self._missing.setdefault(job.job_id, self._looked)
            return self._looked - first >= self.pause
        return False


def _queue() -> set[str] | None:
    """The jobs of this user that wait or run; `None` if Slurm does not answer now."""
    command = ["squeue", "--noheader", "--format=%i", f"--user={getpass.getuser()}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return set(done.stdout.split())


def outcomes_of(job) -> list:
    """What a worker returned.

    Raises:
        RuntimeError: if it left no result; the message names its log.
        Exception: if it failed itself.
    """
    if isinstance(job, SlurmJob) and not job.paths.result_pickle.exists():
        raise RuntimeError(f"it ended without a result, and may have been killed; its log is {job.paths.stderr}")
    return job.result()


def make_executor(cluster: str, folder, options: Mapping, parameters: Mapping) -> submitit.AutoExecutor:
    """The executor of submitit."""
    executor = submitit.AutoExecutor(folder=folder, cluster=cluster, **options)
    executor.update_parameters(**parameters)
    return executor
