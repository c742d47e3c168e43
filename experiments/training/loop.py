"""Train one recipe with one seed. An interrupted training continues from its last checkpoint with the same bits.

On a GPU the bits may differ, as cuDNN chooses the fastest algorithms anew.

runs/<hash>/seed-<seed>/checkpoint.pt    while the training runs
                        log.jsonl        loss, learning rate and test accuracy of each epoch
                        tensorboard/     the same for TensorBoard, if asked for
                        final.pt         weights of the last epoch, and the record of the training
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor, nn

from ..models import build_model, eligible_layers
from ..precision import computed_in, uses_autocast
from ..recipes.recipe import Training
from ..record.files import write_lines
from ..schemes import Step, build_step
from .batches import Batches, Source
from .board import open_board
from .checkpoint import CheckpointError, exclusive, load_checkpoint, save_checkpoint
from .distributed import World, join_world
from .optimization import build_optimiser, learning_rate
from .pretrained import load_pretrained
from .seeds import STEP, stream_seed

_DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.float32}


class DivergedError(RuntimeError):
    """The loss is not a finite number any more."""


@dataclass(frozen=True)
class Execution:
    """How a training runs. None of these settings is part of the recipe.

    Attributes:
        device: `"cpu"`, `"cuda"` or `"auto"`.
        workers: number of loader processes.
        channels_last: True for the channels-last memory format of images.
        compile: True to compile the model.
        compile_backend: backend of `torch.compile`.
        look_steps: number of steps between two looks at the loss. A look waits for the device, and is an opportunity
            for a checkpoint.
        checkpoint_minutes: time between checkpoints. At the end of an epoch a tenth of it is enough.
        progress: True to show a progress bar.
        test_images: number of test images on which the network is tested after each epoch, for the log; 0 for no test.
        tensorboard: True to write the log also for TensorBoard, which must be installed.
    """

    device: str = "auto"
    workers: int = 0
    channels_last: bool = True
    compile: bool = False
    compile_backend: str = "inductor"
    look_steps: int = 100
    checkpoint_minutes: float = 5.0
    progress: bool = True
    test_images: int = 2000
    tensorboard: bool = False


@dataclass(frozen=True)
class Trained:
    """A trained network, in evaluation mode on its device, and the record of its training."""

    model: nn.Module
    record: dict


@dataclass
class _State:
    """Progress of a training."""

    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0
    samples: int = 0
    history: list[dict] = field(default_factory=list)


def run_folder(runs: Path, training: Training, seed: int) -> Path:
    """The folder of a training."""
    return Path(runs) / training.hash / f"seed-{seed}"


def effective_epochs(training: Training) -> int:
    """Passes over the data. There are fewer of them if every batch is used several times."""
    return max(1, math.ceil(training.epochs / training.scheme.replays))


class _Run:
    """One training: network, optimiser, step and progress."""

    def __init__(self, training: Training, source: Source, classes: int, seed: int, world: World, device, execution):
        self.training, self.source, self.seed = training, source, seed
        self.world, self.device, self.execution = world, device, execution
        dtype = _DTYPES[training.precision]
        model = build_model(training.model, classes, seed=seed, **dict(training.model_options)).to(device, dtype)
        self.images = bool(source.mean)
        if execution.channels_last and self.images:
            model = model.to(memory_format=torch.channels_last)
        self.model, self.dtype = model, dtype
        self.autocast = uses_autocast(training.precision, device)
        self.generator = torch.Generator()
        # Hooks first, then the wrappers: a compiled model ignores hooks that are added later
        self.step: Step = build_step(
            training.scheme, model, layers=eligible_layers(training.model), classes=classes, mean=source.mean,
            std=source.std, generator=self.generator, batch_size=training.batch_size,
        )  # fmt: skip
        wrapped = world.wrap(model, device)
        self.step.forward = wrapped
        if execution.compile:
            # Graphs of earlier trainings count towards the limit of recompilations, beyond which hooks are ignored
            torch._dynamo.reset()
            self.step.forward = torch.compile(wrapped, backend=execution.compile_backend)
        self.optimiser = build_optimiser(training, model)
        self.state = _State()
        self.batches = math.ceil(len(source.labels) / training.batch_size)
        self.loader = Batches(source, training, seed=seed, world=world, workers=execution.workers)
        #: Number, size and loss of the batches since the last look; the losses are still on the device.
        self.unseen: list[tuple[int, int, Tensor]] = []
        self.looked = self.saved = time.perf_counter()

    def save(self, path: Path) -> None:
        self.saved = time.perf_counter()
        steps = self.world.collect(self.step.state_dict())
        if self.world.leads:
            save_checkpoint(path, {
                "hash": self.training.hash, "seed": self.seed, "world": self.world.size, "state": vars(self.state),
                "model": self.model.state_dict(), "optimiser": self.optimiser.state_dict(), "step": steps,
            })  # fmt: skip

    def resume(self, path: Path) -> None:
        content = load_checkpoint(path, hash=self.training.hash, seed=self.seed)
        if content["world"] != self.world.size:
            raise CheckpointError(
                f"{path}: expected a checkpoint of {self.world.size} process(es), got one of {content['world']}; start "
                "as many processes, or delete it to train from the start."
            )
        self.model.load_state_dict(content["model"])
        self.optimiser.load_state_dict(content["optimiser"])
        step = content["step"][self.world.rank]
        self.step.load_state_dict({k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in step.items()})
        self.state = _State(**content["state"])

    def save_in_time(self, path: Path, share: float = 1.0) -> None:
        """Write a checkpoint if a share of the time between two of them has passed."""
        passed = time.perf_counter() - self.saved
        if self.world.agree(passed >= 60 * share * self.execution.checkpoint_minutes):
            self.save(path)

    def epoch(self, checkpoint: Path) -> None:
        state, training = self.state, self.training
        self.model.train()
        self.looked, loss = time.perf_counter(), math.nan
        for number, x, y, size in self.loader.epoch(state.epoch, state.batch):
            self.unseen.append((number, size, self.one_batch(number, x, y, size)))
            if len(self.unseen) == self.execution.look_steps:
                loss = self.look(loss)
                self.save_in_time(checkpoint)
        self.look(loss)
        rate = learning_rate(training, state.epoch * self.batches, self.batches)
        state.history.append({
            "epoch": state.epoch, "loss": state.loss_sum / max(1, state.samples), "learning_rate": rate,
            "seconds": round(state.seconds, 3),
        })  # fmt: skip
        state.epoch, state.batch, state.loss_sum, state.samples = state.epoch + 1, 0, 0.0, 0

    def test(self, accuracy: Callable[[nn.Module], float] | None) -> None:
        """Write the accuracy of the network into the last line of the log."""
        if accuracy is not None:
            self.model.eval()
            self.state.history[-1]["test_accuracy"] = accuracy(self.model)
            self.model.train()

    def look(self, before: float) -> float:
        """Take the losses from the device, and add them to the state. Returns the last one."""
        state = self.state
        losses = torch.stack([loss for *_, loss in self.unseen]).tolist() if self.unseen else []
        for (number, size, _), loss in zip(self.unseen, losses, strict=True):
            if not math.isfinite(loss):
                where = f"epoch {state.epoch}, batch {number}"
                raise DivergedError(f"loss {loss} in {where}, after a loss of {before:.3g}; lower the learning rate.")
            state.loss_sum, state.samples = state.loss_sum + loss * size, state.samples + size
            state.batch, before = number + 1, loss
        self.unseen.clear()
        now = time.perf_counter()
        state.seconds, self.looked = state.seconds + now - self.looked, now
        return before

    def one_batch(self, number: int, x: Tensor, y: Tensor, size: int) -> Tensor:
        """The optimiser's steps on one batch. Returns the loss on the device, without waiting for it."""
        training, epoch = self.training, self.state.epoch
        x = x.to(self.device, self.dtype, non_blocking=True)
        y = y.to(self.device, non_blocking=True)
        if self.execution.channels_last and self.images:
            x = x.contiguous(memory_format=torch.channels_last)
        rate = learning_rate(training, epoch * self.batches + number, self.batches)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        share = len(y) * self.world.size / size  # a process with more samples has a larger weight
        for repeat in range(self.step.repeats):
            seed = stream_seed(STEP, self.seed, self.world.rank, epoch, number, repeat)
            self.generator.manual_seed(seed)
            torch.manual_seed(seed)  # for dropout, which has no generator argument; `train` restores the state
            self.optimiser.zero_grad(set_to_none=True)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
                loss = self.step.loss(x, y)
            (share * loss).backward()
            self.step.after_backward()
            self.optimiser.step()
        return loss.detach()


@contextmanager
def _fastest_convolutions() -> Iterator[None]:
    """Let cuDNN try its algorithms once for every shape, since all batches but the last have the same one."""
    now = torch.backends.cudnn
    with now.flags(now.enabled, benchmark=True, deterministic=now.deterministic, allow_tf32=now.allow_tf32):
        yield


def train(
    training: Training,
    source: Source,
    *,
    classes: int,
    seed: int,
    runs: Path,
    execution: Execution | None = None,
    stop_after: int | None = None,
    watch: Callable[[int, nn.Module], None] | None = None,
    test: Callable[[nn.Module], float] | None = None,
) -> Trained | None:
    """Train a network, continue its training, or load it if the training is finished.

    Under `torchrun` every process calls this function, and the first one writes.

    Args:
        training: settings of the training.
        source: training samples.
        classes: K, the number of classes.
        seed: random seed of weights, order, augmentation and steps.
        runs: folder of all runs.
        execution: device and other settings that do not affect the recipe.
        stop_after: number of epochs after which to stop with a checkpoint, to split a long training.
        watch: called with the number of finished epochs and the network, before the first epoch of this call and after
            each epoch. It must not change the weights. It is not called for a training that was finished before.
        test: computes an accuracy for the log from the network in evaluation mode, after each epoch, in the first
            process only. It must not change the weights or draw from the global generators.

    Returns:
        The trained network, or `None` if stopped before the end.

    Raises:
        BusyError: if another process is training this recipe and seed.
        CheckpointError: if a file is damaged or belongs to another training, or if the initial weights are missing.
        DivergedError: if the loss is not finite any more.
    """
    execution = execution or Execution()
    folder = run_folder(runs, training, seed)
    final, checkpoint, log = (folder / name for name in ("final.pt", "checkpoint.pt", "log.jsonl"))
    with (
        join_world(execution.device) as (world, device),
        exclusive(folder) if world.leads else nullcontext(),
        _fastest_convolutions(),
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        torch.enable_grad(),
    ):
        if world.leads:  # this process holds the lock, so temporary files are left from a process that was killed
            for left in folder.glob(".*.*"):
                left.unlink()
        board = open_board(folder / "tensorboard") if execution.tensorboard and world.leads else None
        run = _Run(training, source, classes, seed, world, device, execution)
        if final.exists():
            content = load_checkpoint(final, hash=training.hash, seed=seed)
            run.model.load_state_dict(content["model"])
            if world.leads:
                checkpoint.unlink(missing_ok=True)
            return _finished(run, content["record"])
        if checkpoint.exists():
            run.resume(checkpoint)
        elif training.pretrained:
            start = folder.parent.parent / training.pretrained / folder.name / final.name
            load_pretrained(run.model, start, hash=training.pretrained, seed=seed)
        if watch is not None:
            watch(run.state.epoch, run.model)
        epochs = range(run.state.epoch, effective_epochs(training))
        shown = execution.progress and world.leads
        for count, _ in enumerate(track(epochs, f"{training.scheme.name} seed {seed}", disable=not shown)):
            if count == stop_after:
                run.save(checkpoint)
                run.step.close()
                return None
            run.epoch(checkpoint)
            if world.leads:
                run.test(test)
                write_lines(log, run.state.history)
                if board is not None:
                    board(run.state.history[-1])
            if run.state.epoch < epochs.stop:
                run.save_in_time(checkpoint, share=0.1)
            if watch is not None:
                watch(run.state.epoch, run.model)
        record = {
            "epochs": run.state.epoch,
            "steps": run.state.epoch * run.batches * run.step.repeats,
            "samples": len(source.labels),
            "seconds": round(run.state.seconds, 2),
            "final_loss": run.state.history[-1]["loss"],
            "parameters": sum(p.numel() for p in run.model.parameters()),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            **computed_in(training.precision, device),
        }
        world.wait()
        if world.leads:
            model = run.model.state_dict()
            save_checkpoint(final, {"hash": training.hash, "seed": seed, "model": model, "record": record})
            checkpoint.unlink(missing_ok=True)
        return _finished(run, record)


def _finished(run: _Run, record: dict) -> Trained:
    run.step.close()
    return Trained(run.model.eval().requires_grad_(False), record)
