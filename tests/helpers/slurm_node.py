"""A real Slurm of one node on this machine, with its daemons, for one test."""

import getpass
import os
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")
_CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobRequeue=1
KillWait=5
SchedulerParameters=sched_interval=1,bf_interval=1
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} State=UNKNOWN
PartitionName=test Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why there can be no Slurm here; empty if there can."""
    path = os.pathsep.join((os.environ["PATH"], "/usr/sbin", "/sbin"))
    lacking = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    return f"needs a Slurm on this machine; {', '.join(lacking)} not found" if lacking else ""


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextmanager
def slurm_node(folder: Path):
    """Start the daemons, yield the environment for the commands of Slurm, and end the daemons.

    Args:
        folder: folder for the configuration, logs and state. Its path must be short enough for a socket.
    """
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    path = os.pathsep.join((os.environ["PATH"], "/usr/sbin", "/sbin"))
    environment = {**os.environ, "PATH": path, "SLURM_CONF": str(folder / "slurm.conf")}
    cpus = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20 - 64
    host = socket.gethostname().partition(".")[0]
    (folder / "slurm.conf").write_text(_CONFIGURATION.format(
        folder=folder, host=host, user=getpass.getuser(), cpus=cpus, memory=memory, controller=_free_port(),
        node=_free_port(),
    ))  # fmt: skip
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o600)
    folder.chmod(0o755)
    munge = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
    commands = (
        ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *munge],
        ["slurmctld", "-D"],
        ["slurmd", "-D", "-N", host],
    )
    daemons = []
    try:
        for command in commands:
            with (folder / f"{command[0]}.out").open("w") as out:
                daemons.append(subprocess.Popen(command, env=environment, stdout=out, stderr=out))
            time.sleep(1)
        _wait_for_node(environment, daemons)
        try:
            yield environment
        finally:
            _cancel_jobs(environment)
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()


def _cancel_jobs(environment: dict, seconds: float = 30) -> None:
    """End what still runs: the processes of a job outlive the daemons."""
    subprocess.run(["scancel", "--user", getpass.getuser()], env=environment, check=True)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not subprocess.run(["squeue", "-h"], env=environment, capture_output=True, text=True).stdout.strip():
            return
        time.sleep(0.5)


def _wait_for_node(environment: dict, daemons: list, seconds: float = 60) -> None:
    end, state = time.monotonic() + seconds, ""
    while time.monotonic() < end:
        ended = [daemon.args[0] for daemon in daemons if daemon.poll() is not None]
        assert not ended, f"ended at once: {ended}"
        state = subprocess.run(["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, text=True).stdout
        if state.strip() == "idle":
            return
        time.sleep(0.5)
    raise AssertionError(f"the node is {state!r} after {seconds:g} seconds")
