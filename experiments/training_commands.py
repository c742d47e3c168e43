"""The commands that train and measure networks: `train`, `sweep` and `evaluate`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from nfm_theory.cli.device import parse_device
from nfm_theory.cli.errors import BAD_INPUT

from .cluster import gpus_here
from .console import MOST_PROCESSES, plain_errors, wide_console
from .cost import THROUGHPUT, Estimate, estimate
from .precision import NOTICE, computed_in
from .recipes import Recipe, all_recipes, get_recipe, in_bfloat16, select_recipes
from .record.files import writable_file
from .record.ledger import finished
from .runner import BUSY, FAILED, failures_file, own_ledger, run_recipe, runs_folder
from .sweep import CLUSTERS, Sweep, check_choices, make_tasks, run_sweep
from .training import Execution
from .training.board import check_board

#: PyTorch's random generators take no larger seed.
LARGEST_SEED = 2**63 - 1
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto for a GPU if there is one.")]
OwnLedger = Annotated[
    Path | None,
    typer.Option(
        "--ledger", help="File to which results are appended; by default $NFM_LEDGER or a file in the cache folder."
    ),
]
Runs = Annotated[Path | None, typer.Option(help="Folder of checkpoints; by default $NFM_RUNS or a cache folder.")]
Loaders = Annotated[
    int, typer.Option(min=0, max=MOST_PROCESSES, help="Number of data loading processes for each training run.")
]
Compile = Annotated[bool, typer.Option("--compile", help="Use torch.compile.")]
Bfloat16 = Annotated[
    bool, typer.Option("--bf16", help="Train in bfloat16. Results stand in a column of their own in the tables.")
]
TestImages = Annotated[
    int, typer.Option(min=0, help="Test on this many images after each epoch, for the log; 0 for no test.")
]
Board = Annotated[bool, typer.Option("--tensorboard", help="Write the log also for TensorBoard, if it is installed.")]


def check_places(device: str, ledger: Path | None, runs: Path | None) -> Path:
    """Refuse a device that there is not, and files that cannot be read or written, before anything is trained.

    Args:
        device: name of the device.
        ledger: the ledger; `None` for the reader's own one, whose folder is made.
        runs: folder of checkpoints.

    Returns:
        The ledger.
    """
    if device != "auto":
        parse_device(device)
    if ledger is None:
        ledger = own_ledger()
        ledger.parent.mkdir(parents=True, exist_ok=True)
    finished(ledger)
    writable_file(ledger)
    writable_file((runs or runs_folder()) / "new")
    return ledger


def train_command(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe, such as digits/nfm.")],
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Random seed of the training run.")] = 1,
    device: Device = "auto",
    ledger: OwnLedger = None,
    runs: Runs = None,
    loaders: Loaders = 0,
    compile_model: Compile = False,
    bf16: Bfloat16 = False,
    test_images: TestImages = 2000,
    tensorboard: Board = False,
    stop_after: Annotated[
        int | None, typer.Option(min=1, help="Stop after this many epochs; the next call continues from there.")
    ] = None,
) -> None:
    """Train the network of a recipe and measure it. An interrupted run continues. Also works under torchrun.

    What the recipe trains on and measures: python -m experiments recipes show NAME.
    The results are appended to the ledger, and `tables` and `claims` show them.

    Exit status: 0 done, 1 failed, 2 wrong input, 3 another process works on it.
    """
    with plain_errors():
        ledger = check_places(device, ledger, runs)
        chosen = in_bfloat16(get_recipe(recipe)) if bf16 else get_recipe(recipe)
        execution = _execution(device, loaders, compile_model, test_images, tensorboard)
        _tell_arithmetic([chosen], device)
    outcome = run_recipe(chosen, seed, ledger=ledger, runs=runs, execution=execution, stop_after=stop_after)
    typer.echo(f"{outcome.recipe} seed {outcome.seed}: {outcome.status} {outcome.message}".rstrip())
    if outcome.status == FAILED:
        typer.echo(f"The traceback is in {failures_file(ledger)}.", err=True)
    failed = BAD_INPUT if outcome.wrong_input else 1
    raise typer.Exit({FAILED: failed, BUSY: 3}.get(outcome.status, 0))


def _execution(device: str, loaders: int, compile_model: bool, test_images: int, tensorboard: bool) -> Execution:
    if tensorboard:
        check_board()
    return Execution(
        device=device, workers=loaders, compile=compile_model, test_images=test_images, tensorboard=tensorboard
    )


def _tell_arithmetic(recipes: Sequence[Recipe], device: str) -> None:
    """Say so if recipes in bfloat16 are going to be computed in float32."""
    place = ("cuda" if gpus_here() else "cpu") if device == "auto" else device
    if any(computed_in(one.training.precision, place) for one in recipes):
        typer.echo(NOTICE, err=True)


def _parameters(texts: list[str]) -> dict[str, object]:
    found: dict[str, object] = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not key or not sign:
            raise ValueError(f"--parameter: expected name=value, such as slurm_partition=gpu, got {text!r}.")
        found[key] = _value(value)
    return found


def _value(text: str) -> object:
    """A number, a list, a mapping or a truth value, if it reads as one; otherwise the text."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    fits = isinstance(value, list | dict | bool) or (isinstance(value, int | float) and len(text) < 19)
    return value if fits else text


def _seeds(text: str) -> list[int] | None:
    parts = [part.strip() for part in text.split(",")] if text else []
    if not all(part.isdecimal() and len(part) < 19 for part in parts):
        raise ValueError(f"--seeds: expected whole numbers separated by commas, such as 1,2,3, got {text!r}.")
    seeds = [int(part) for part in parts]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds: expected each seed once, got {text!r}.")
    return seeds or None


def sweep_command(
    patterns: Annotated[list[str], typer.Argument(help="Names of recipes; * and ? work as in a shell.")],
    size: Annotated[str | None, typer.Option(help="Only recipes of this size: toy, digits, compact or paper.")] = None,
    seeds: Annotated[str, typer.Option(help="Seeds such as 1,2,3; by default those of the recipes.")] = "",
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, max=MOST_PROCESSES, help="How many training runs at the same time; by default one for each GPU here."
        ),
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, max=64, help="Processes of each training run, each with a GPU, started by torchrun.")
    ] = 1,
    cluster: Annotated[str, typer.Option(help=f"Where to run: {', '.join(CLUSTERS)}.")] = "local",
    parameter: Annotated[
        list[str] | None, typer.Option(help="Option of the submitit executor, name=value, such as timeout_min=600.")
    ] = None,
    device: Device = "auto",
    ledger: OwnLedger = None,
    runs: Runs = None,
    loaders: Loaders = 0,
    threads: Annotated[int, typer.Option(min=0, max=MOST_PROCESSES, help="Threads of each worker; 0 for all.")] = 0,
    compile_model: Compile = False,
    bf16: Bfloat16 = False,
    test_images: TestImages = 2000,
    tensorboard: Board = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what it would cost: networks, results, GPU-hours, disk.")
    ] = False,
) -> None:
    """Train and measure many recipes. Finished ones are skipped, and a failure does not stop the others.

    With --dry-run nothing is trained; it says what the sweep would cost.

        python -m experiments sweep "digits/*" --workers 2 --threads 1
        python -m experiments sweep "nfm-table1/*" --dry-run

    On this machine each worker has a GPU of its own, if there are GPUs. Slurm
    is asked for a GPU, processors, memory and a day for each worker, and starts
    it again after its time limit; --parameter replaces any of these.

    Exit status: 0 all done, 1 something failed or is unfinished, 2 wrong input,
    also if that is why all failed.
    """
    with plain_errors():
        wanted = _seeds(seeds)
        given = _parameters(parameter or [])
        ledger = check_places(device, ledger, runs)
        chosen = select_recipes(*patterns, size=size)
        tasks = make_tasks([in_bfloat16(one) for one in chosen] if bf16 else chosen, wanted)
        execution = _execution(device, loaders, compile_model, test_images, tensorboard)
        sweep = Sweep(tasks, ledger, runs or runs_folder(), execution, threads=threads, processes=processes)
        if workers is None:
            gpus = len(gpus_here()) if cluster == "local" and device != "cpu" else 0
            workers = max(1, min(gpus // processes, len(tasks)))
        check_choices(sweep, cluster, workers, given)
        if dry_run:
            return show_estimate(estimate(sweep), workers)
        if cluster != "slurm":
            _tell_arithmetic(chosen, device)
        report = run_sweep(sweep, cluster=cluster, workers=workers, parameters=given)
    for outcome in report.failed:
        typer.echo(f"failed: {outcome.recipe} seed {outcome.seed}: {outcome.message}")
    for line in report.lost:
        typer.echo(f"lost: {line}")
    if report.failed:
        typer.echo(f"Tracebacks are in {failures_file(ledger)}.", err=True)
    left = f"{len(report.unfinished)} of {len(tasks)} left"
    typer.echo(f"{len(report.done)} done now, {len(report.failed)} failed, {left}")
    if report.complete:
        raise typer.Exit(0)
    only_input = not report.done and len(report.failed) == len(report.unfinished)
    raise typer.Exit(BAD_INPUT if only_input and all(one.wrong_input for one in report.failed) else 1)


def show_estimate(found: Estimate, workers: int) -> None:
    """Print what a sweep would cost."""
    table = Table()
    table.add_column("recipes", no_wrap=True)
    for name in ("networks", "cells", *(f"GPU-hours, {one}" for one in THROUGHPUT), "disk, GB"):
        table.add_column(name, justify="right")
    for cost in (*found.costs, found.total) if len(found.costs) > 1 else found.costs:
        hours = (f"{one:,.1f}" if one >= 1 else f"{one:.2g}" for one in map(cost.hours, THROUGHPUT))
        table.add_row(
            "total" if cost.study == "total" else f"{cost.study}/*", f"{cost.networks:,} of {cost.tasks:,}",
            f"{cost.cells:,}", *hours, f"{cost.kept / 1e9:,.2f}",
        )  # fmt: skip
    wide_console().print(table)
    rates = " and ".join(f"{rate / 1e12:g} TFLOP/s in {name}" for name, rate in THROUGHPUT.items())
    total, word = found.total, "worker" if workers == 1 else "workers"
    typer.echo(f"GPU-hours of training on an A100 that reaches {rates}; measurements take a few percent more.")
    typer.echo(
        f"The weights take {total.kept / 1e9:.2f} GB. With {workers} {word}, checkpoints take up to "
        f"{2 * workers * total.checkpoint / 1e9:.2f} GB more meanwhile."
    )
    if found.terms:
        typer.echo(f"{found.terms} networks train on regularizers of the theory, which cost more than counted here.")
    for name, why in found.refused.items():
        typer.echo(f"cannot be run: {name}: {why}")
    names = {recipe.hash: name for name, recipe in reversed(all_recipes().items())}
    for start in found.lacking:
        typer.echo(f"some start from {names.get(start, start)}, which is not trained yet: add it to the sweep")


def evaluate_command(
    recipe: Annotated[str, typer.Argument(help="Name of the recipe whose network and measurements are used.")],
    weights: Annotated[Path, typer.Option(help="File of weights that were trained elsewhere.")],
    suite: Annotated[
        list[str] | None, typer.Option(help="What to measure; may be repeated; by default what the recipe measures.")
    ] = None,
    mean: Annotated[
        str,
        typer.Option(help="Mean of each channel, such as 0.5,0.5,0.5, if the file has none and the recipe another."),
    ] = "",
    std: Annotated[str, typer.Option(help="Standard deviation of each channel, likewise.")] = "",
    resize_corrupted: Annotated[
        bool, typer.Option(help="Resize the images of ImageNet-C to 256 pixels and crop 224, which they have already.")
    ] = False,
    device: Device = "auto",
    ledger: OwnLedger = None,
    loaders: Loaders = 0,
) -> None:
    """Measure weights that were trained elsewhere, with the network and the measurements of a recipe.

    Keys may be those of torchvision, RobustBench or a wrapper (module., model.).
    A normalization in the file is used instead of the recipe's. Tables show the
    results as trained elsewhere; they decide no claim.

    Exit status: 0 done, 2 wrong input.
    """
    from .elsewhere import View, measure_elsewhere, open_elsewhere

    with plain_errors():
        ledger = check_places(device, ledger, None)
        view = View(_numbers("--mean", mean), _numbers("--std", std), resize_corrupted)
        chosen = open_elsewhere(get_recipe(recipe), weights, view)
        place = f" under {chosen.weights.container!r}" if chosen.weights.container else ""
        typer.echo(f"{weights.name}: {len(chosen.weights.state)} tensors{place}, sha256 {chosen.weights.sha256}")
        typer.echo(f"normalization of the {chosen.normalization}: {chosen.settings['normalization']}")
        new, metrics = measure_elsewhere(chosen, ledger, suites=suite or (), device=device, loaders=loaders)
    for name, values in metrics.items():
        for key, value in values.items():
            if key.count("/") < 2:
                typer.echo(f"{name:12} {key:40} {value:.4f}" + ("" if name in new else "  (measured before)"))
    typer.echo(f"{len(new)} suites measured now, written to {ledger}")


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise ValueError(
            f"{option}: expected numbers separated by commas, such as 0.5,0.5,0.5, got {text!r}."
        ) from None


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this module to an application."""
    for name, command in (("train", train_command), ("sweep", sweep_command), ("evaluate", evaluate_command)):
        app.command(name)(command)
