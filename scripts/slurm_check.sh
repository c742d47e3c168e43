#!/usr/bin/env bash
# Does a sweep give the same results through Slurm as in one process?
#
#     scripts/slurm_check.sh              with Slurm and munge installed
#     scripts/slurm_check.sh --install    install them first (Debian or Ubuntu)
#
# As root, from anywhere. Starts a cluster of one node on this machine, all files of which lie in a temporary folder,
# runs a sweep of short toy trainings on it with two workers, and the same sweep in one process, and compares the
# ledgers. The daemons are stopped at the end, whatever happens. Set PYTHON to choose an interpreter.
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [[ -z ${PYTHON:-} ]]; then
    PYTHON=python3
    [[ -x $repository/.venv/bin/python ]] && PYTHON=$repository/.venv/bin/python
fi

if [[ ${1:-} == --install ]]; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        slurmctld slurmd slurm-client munge
elif [[ $# -gt 0 ]]; then
    sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 2
fi
if [[ $(id -u) != 0 ]]; then
    echo "slurm_check: expected to run as root, which starts jobs; use sudo." >&2
    exit 2
fi
for tool in slurmctld slurmd sbatch munged; do
    PATH=$PATH:/usr/sbin command -v "$tool" >/dev/null || {
        echo "slurm_check: $tool is not installed; run with --install, or install Slurm and munge." >&2
        exit 2
    }
done
export PATH=$PATH:/usr/sbin

place=$(mktemp -d)
pids=()
cleanup() {
    status=$?
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
    if [[ $status != 0 ]]; then
        for log in "$place"/*.log; do
            echo "--- ${log##*/}" >&2
            tail -n 15 "$log" >&2
        done
    fi
    rm -rf "$place"
}
trap cleanup EXIT
chmod 755 "$place"
mkdir "$place/state" "$place/spool" "$place/munge"
chmod 700 "$place/munge"

host=$(hostname -s)
cores=$(nproc)
head -c 1024 /dev/urandom >"$place/munge/key"
chmod 400 "$place/munge/key"
cat >"$place/slurm.conf" <<CONF
ClusterName=check
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$place/munge/socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
StateSaveLocation=$place/state
SlurmdSpoolDir=$place/spool
SlurmctldPidFile=$place/slurmctld.pid
SlurmdPidFile=$place/slurmd.pid
SlurmctldPort=16817
SlurmdPort=16818
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cores State=UNKNOWN
PartitionName=check Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF=$place/slurm.conf

munged --foreground --force --key-file="$place/munge/key" --socket="$place/munge/socket" \
    --pid-file="$place/munge/pid" --log-file="$place/munge/log" --seed-file="$place/munge/seed" \
    >"$place/munged.log" 2>&1 &
pids+=($!)
for _ in $(seq 50); do [[ -S $place/munge/socket ]] && break; sleep 0.1; done
chmod 755 "$place/munge"
slurmctld -D -f "$SLURM_CONF" >"$place/slurmctld.log" 2>&1 &
pids+=($!)
slurmd -D -f "$SLURM_CONF" >"$place/slurmd.log" 2>&1 &
pids+=($!)
for _ in $(seq 100); do
    state=$(sinfo -h -o %t 2>/dev/null || true)
    [[ $state == idle ]] && break
    sleep 0.2
done
if [[ $state != idle ]]; then
    echo "slurm_check: expected an idle node after 20 seconds, got '$state'." >&2
    exit 1
fi
echo "slurm_check: $(sinfo -V), node $host is idle."

cd "$repository"
export PYTHONPATH=$repository OMP_NUM_THREADS=1
"$PYTHON" - "$place" <<'SWEEP'
import sys
from pathlib import Path

from experiments.record.ledger import comparable, read
from experiments.recipes import select_recipes
from experiments.runner import shortened
from experiments.sweep import Sweep, make_tasks, run_sweep
from experiments.training import Execution

if __name__ == "__main__":
    place = Path(sys.argv[1])
    recipes = [shortened(r, epochs=3) for r in select_recipes("nfm-figure-toy/nfm", "noisymix-figure4/noisymix")]
    tasks = make_tasks(recipes, seeds=(1, 2))
    found = {}
    for cluster, options in (("here", {}), ("slurm", {"workers": 2, "slurm_partition": "check", "cpus_per_task": 1})):
        sweep = Sweep(
            tasks, ledger=place / f"{cluster}.jsonl", runs=place / cluster,
            execution=Execution(device="cpu", progress=False),
        )  # fmt: skip
        report = run_sweep(sweep, cluster=cluster, progress=False, **options)
        assert report.complete and not report.failed and not report.lost, report
        found[cluster] = sorted((comparable(e) for e in read(sweep.ledger)), key=str)
    assert len(found["slurm"]) == len(tasks), found
    assert found["slurm"] == found["here"], found
    print(f"slurm_check: {len(tasks)} cells through Slurm, equal to those of one process.")
SWEEP
