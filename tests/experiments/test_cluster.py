"""What Slurm is asked for, which GPU a worker gets, who waits for whom, and training under torchrun."""

import os
import stat
import sys
from dataclasses import replace

import pytest
from ledger_entries import shortened

from experiments import cluster, sweep, torchrun
from experiments.cluster import Needs, gpus_here, gpus_of, plan
from experiments.recipes import get_recipe, in_bfloat16
from experiments.record.ledger import read
from experiments.runner import BUSY, DONE, FAILED, Outcome
from experiments.sweep import Sweep, Worker, make_tasks, run_sweep
from experiments.training import Execution, run_folder
from experiments.training.checkpoint import exclusive

TOY = shortened(get_recipe("nfm-figure-toy/nfm"), epochs=2)
OTHER = shortened(get_recipe("nfm-figure-toy/baseline"), epochs=2)


def sweep_of(folder, *recipes, device="cpu", **options):
    execution = Execution(device=device, progress=False)
    tasks = make_tasks(recipes or (TOY,), (1,))
    return Sweep(tasks, ledger=folder / "l.jsonl", runs=folder / "runs", execution=execution, **options)


# A cluster that there is not


@pytest.fixture
def fake_slurm(tmp_path, monkeypatch):
    """Commands of Slurm that write down what they get. The queue is empty, so all jobs have ended."""
    folder = tmp_path / "bin"
    folder.mkdir()
    scripts = {
        "sbatch": f'cat "$1" > {tmp_path}/asked.sh; if [ -f {tmp_path}/refusal ]; then cat {tmp_path}/refusal >&2; '
        "exit 1; fi; echo Submitted batch job 7",
        "srun": "exit 0",
        "squeue": "exit 0",
        "scancel": f"echo $@ >> {tmp_path}/cancelled",
    }
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(cluster.Watch, "pause", 0.0)
    return tmp_path


def asked(folder):
    """The lines `#SBATCH --name=value` of the job, by name."""
    lines = (folder / "asked.sh").read_text().splitlines()
    pairs = [line.removeprefix("#SBATCH --").partition("=") for line in lines if line.startswith("#SBATCH")]
    return {name: value for name, _, value in pairs}


def test_slurm_is_asked_for_a_gpu_processors_memory_and_time(fake_slurm):
    report = run_sweep(sweep_of(fake_slurm, device="auto"), cluster="slurm", progress=False, poll=0.01)
    found = asked(fake_slurm)
    assert (found["gpus-per-node"], found["cpus-per-task"], found["mem"]) == ("1", "2", "16GB")
    assert (found["time"], found["job-name"], found["signal"]) == ("1440", "nfm", "USR2@120")
    (line,) = report.lost
    assert "ended without a result" in line
    assert str(fake_slurm / "runs" / "logs") in line


def test_what_the_user_gives_replaces_the_defaults(fake_slurm):
    chosen = sweep_of(fake_slurm, device="cuda", processes=4)
    given = {"slurm_gres": "gpu:a100:4", "timeout_min": 30, "slurm_mem_per_cpu": "4GB", "slurm_max_num_timeout": 3}
    run_sweep(chosen, cluster="slurm", progress=False, poll=0.01, parameters=given)
    found = asked(fake_slurm)
    assert (found["gres"], found["time"], found["mem-per-cpu"], found["cpus-per-task"]) == (
        "gpu:a100:4", "30", "4GB", "8",
    )  # fmt: skip
    assert not {"gpus-per-node", "mem"} & found.keys()


def test_no_gpu_is_asked_for_on_the_cpu(fake_slurm):
    run_sweep(sweep_of(fake_slurm), cluster="slurm", progress=False, poll=0.01)
    assert "gpus-per-node" not in asked(fake_slurm)


@pytest.mark.parametrize(
    ("said", "way"),
    [
        ("sbatch: error: invalid partition specified: gpu", "slurm_partition=NAME"),
        ("sbatch: error: Batch job submission failed: Requested node configuration is not available", "slurm_gres"),
        ("sbatch: error: Batch job submission failed: Requested time limit is invalid", "timeout_min=MINUTES"),
        ("sbatch: error: Batch job submission failed: Invalid account or account/partition combination", "slurm_"),
        ("sbatch: error: Memory specification can not be satisfied", "mem_gb=GB"),
    ],
)
def test_a_refusal_is_a_sentence_with_the_way_out(fake_slurm, said, way):
    (fake_slurm / "refusal").write_text(said + "\n")
    with pytest.raises(ValueError, match="Slurm refused the job") as caught:
        run_sweep(sweep_of(fake_slurm), cluster="slurm", progress=False)
    assert said.removeprefix("sbatch: error: ") in str(caught.value)
    assert way in str(caught.value)
    assert "subprocess" not in str(caught.value)


def test_parameters_that_nobody_knows_are_refused_in_words(fake_slurm):
    with pytest.raises(ValueError, match="names of parameters are those of submitit"):
        run_sweep(sweep_of(fake_slurm), cluster="slurm", progress=False, parameters={"slurm_moon": 1})


def test_without_slurm_the_message_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="found no Slurm"):
        run_sweep(sweep_of(tmp_path), cluster="slurm", progress=False)


def test_a_worker_that_is_still_in_the_queue_has_not_ended(fake_slurm, monkeypatch):
    from submitit.slurm.slurm import SlurmJob

    job, watch = SlurmJob(folder=fake_slurm, job_id="7"), cluster.Watch()
    queue = fake_slurm / "bin" / "squeue"
    queue.write_text("#!/bin/sh\necho 7\n")
    assert not watch.ended(job)
    queue.write_text("#!/bin/sh\nexit 1\n")  # Slurm does not answer
    assert not watch.ended(job)
    queue.write_text("#!/bin/sh\nexit 0\n")
    watch.ended(job)
    assert watch.ended(job)


# GPUs


def test_every_worker_of_this_machine_gets_its_gpus(monkeypatch):
    monkeypatch.setattr(cluster.torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpus_here() == ["0", "1", "2", "3"]
    assert [gpus_of(k, 1, gpus_here()) for k in range(5)] == ["0", "1", "2", "3", "0"]
    assert [gpus_of(k, 2, gpus_here()) for k in range(2)] == ["0,1", "2,3"]
    assert gpus_of(0, 1, []) is None
    monkeypatch.setattr(cluster.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-7a,5")
    assert [gpus_of(k, 1, gpus_here()) for k in range(3)] == ["GPU-7a", "5", "GPU-7a"]


def test_a_worker_sees_its_gpu_alone(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # as submitit starts it
    monkeypatch.setattr(sweep, "run_recipe", lambda *_, **__: seen.append(os.environ["CUDA_VISIBLE_DEVICES"]) or
                        Outcome("a", 1, DONE))  # fmt: skip
    Worker(sweep_of(tmp_path), gpus="3")()
    assert seen == ["3"]


def test_local_workers_are_given_different_gpus(tmp_path, monkeypatch):
    made = []

    class Executor:
        def submit(self, worker):
            made.append(worker)
            raise RuntimeError("stop")

    monkeypatch.setattr(sweep, "make_executor", lambda *_: Executor())
    monkeypatch.setattr(sweep, "gpus_here", lambda: ["0", "1"])
    chosen = sweep_of(tmp_path, device="auto")
    with pytest.raises(ValueError, match="stop"):
        run_sweep(chosen, workers=2, progress=False)
    assert made[0].gpus == "0"
    with pytest.raises(ValueError, match="processes: expected at most 2, the GPUs of this machine, got 3"):
        run_sweep(replace(chosen, processes=3), progress=False)


@pytest.mark.parametrize("name", ["tasks_per_node", "slurm_ntasks_per_node", "nodes"])
def test_several_copies_of_a_worker_are_refused(name):
    with pytest.raises(ValueError, match="use --workers for more trainings"):
        plan("slurm", Needs(), {name: 8})
    assert plan("slurm", Needs(), {name: 1})[1][name] == 1


def test_gpus_of_this_machine_are_not_named_by_parameters():
    with pytest.raises(ValueError, match="environment variable CUDA_VISIBLE_DEVICES"):
        plan("local", Needs(), {"gpus_per_node": 2})


def test_parameters_of_another_cluster_are_not_ignored():
    with pytest.raises(ValueError, match="expected a parameter of the cluster 'local', got one of 'slurm'"):
        plan("local", Needs(), {"slurm_partition": "gpu"})


def test_restarts_belong_to_the_executor():
    start, asked = plan("slurm", Needs(loaders=8, processes=2), {"max_num_timeout": 50})
    assert start == {"slurm_max_num_timeout": 50}
    assert (asked["gpus_per_node"], asked["cpus_per_task"], asked["mem_gb"]) == (2, 20, 32)


# What starts from another network


def test_a_task_waits_for_the_network_that_it_starts_from(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "_LOOK", 0.0)
    after = replace(shortened(TOY, pretrained=TOY.hash, epochs=3), name="toy/after")
    chosen = sweep_of(tmp_path, after, TOY)
    assert chosen.waits_for(chosen.tasks[0]) is chosen.tasks[1]
    report = run_sweep(chosen, cluster="here", progress=False)
    assert report.complete, report.failed
    assert [o.recipe for o in report.done] == [TOY.name, "toy/after"]


def test_it_fails_with_a_reason_if_that_network_failed_or_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "_LOOK", 0.0)
    broken = replace(shortened(TOY, learning_rate=1e30, epochs=4), name="toy/broken")
    after = replace(shortened(TOY, pretrained=broken.hash, epochs=3), name="toy/after")
    for recipes in ((after, broken), (after,)):
        report = run_sweep(sweep_of(tmp_path / str(len(recipes)), *recipes), cluster="here", progress=False)
        assert "expected initial weights" in {o.recipe: o.message for o in report.failed}["toy/after"]


def test_the_start_is_taken_over_if_its_worker_died(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "_LOOK", 0.0)
    after = replace(shortened(TOY, pretrained=TOY.hash, epochs=3), name="toy/after")
    chosen, calls, full = sweep_of(tmp_path, TOY, after), [], sweep.run_recipe

    def busy_at_first(recipe, seed, **options):
        calls.append(recipe.name)
        return Outcome(recipe.name, seed, BUSY) if len(calls) < 3 else full(recipe, seed, **options)

    monkeypatch.setattr(sweep, "run_recipe", busy_at_first)
    Worker(chosen)()
    assert not chosen.unfinished()
    assert calls == [TOY.name] * 3 + ["toy/after"]


def test_networks_in_bfloat16_start_from_networks_in_bfloat16():
    recipe = in_bfloat16(get_recipe("noisymix-table5/cifar10-noisymix"))
    start = in_bfloat16(get_recipe("noisymix-table1/noisymix"))
    assert recipe.training.pretrained == start.hash != get_recipe("noisymix-table1/noisymix").hash
    assert in_bfloat16(start) is start


# torchrun


def test_the_command_of_several_processes(tmp_path):
    recipe = get_recipe("nfm-table3/baseline")
    command = torchrun.command_of(
        in_bfloat16(recipe), 2, processes=4, ledger=tmp_path / "l", runs=tmp_path / "r",
        execution=Execution(device="cuda", workers=8, compile=True),
    )  # fmt: skip
    assert command[0] == sys.executable
    assert "--nproc-per-node 4 -m experiments train nfm-table3/baseline --seed 2 --device cuda" in " ".join(command)
    assert {"--bf16", "--compile"} < set(command)
    assert "--tensorboard" not in command
    plain = torchrun.command_of(recipe, 2, processes=4, ledger=tmp_path, runs=tmp_path, execution=Execution())
    assert "--bf16" not in plain


@pytest.fixture
def launched(monkeypatch):
    """Commands that would be started, and what they answer."""
    seen, answer = [], [(0, "")]
    monkeypatch.setattr(torchrun, "_finished", lambda command: seen.append(command) or answer[0])
    return seen, answer


def run(folder, recipe=TOY):
    return torchrun.run_in_processes(
        recipe, 1, processes=2, ledger=folder / "l.jsonl", runs=folder / "runs",
        execution=Execution(device="cpu", progress=False),
    )  # fmt: skip


def test_what_the_processes_leave_is_done_by_the_worker(tmp_path, launched):
    assert run(tmp_path).status == DONE  # these processes did nothing, so the worker trains itself
    assert len(launched[0]) == 1
    assert len(read(tmp_path / "l.jsonl")) == 1
    run(tmp_path)
    assert len(launched[0]) == 1  # finished


def test_a_failure_of_the_processes_is_told(tmp_path, launched):
    launched[1][0] = (1, f"noise\n{TOY.name} seed 1: failed DivergedError: loss nan\nmore noise\n")
    outcome = run(tmp_path)
    assert (outcome.status, outcome.message) == (FAILED, "DivergedError: loss nan")
    launched[1][0] = (7, "")
    assert run(tmp_path).message == "torchrun ended with status 7"


def test_no_processes_are_started_for_a_training_in_other_hands(tmp_path, launched):
    with exclusive(run_folder(tmp_path / "runs", TOY.training, 1)):
        assert run(tmp_path).status == BUSY
    assert launched[0] == []


def test_processes_end_with_what_started_them():
    status, output = torchrun._finished([sys.executable, "-c", "import os; print(os.environ['NFM_OWNER'])"])
    assert (status, output.strip()) == (0, str(os.getpid()))


def test_processes_end_if_the_worker_is_interrupted(monkeypatch):
    started = []

    def interrupted(process):
        started.append(process)
        raise KeyboardInterrupt

    monkeypatch.setattr(torchrun.subprocess.Popen, "communicate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        torchrun._finished([sys.executable, "-c", "import time; time.sleep(600)"])
    assert started[0].returncode is not None
