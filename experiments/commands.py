"""The commands on experiments: `nfm recipes`, `train`, `sweep`, `sets`, `tables`, `audit`, `claims` and `ledger`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from nfm_theory.cli.errors import UsageError

from .console import wide_console
from .recipes import Recipe, get_recipe, select_recipes
from .record.ledger import LEDGER, differences, merge, read, validate, within_seeds
from .runner import BUSY, FAILED, load_training_data, run_recipe, runs_folder
from .sweep import CLUSTERS, Sweep, make_tasks, run_sweep
from .tables.__main__ import app as tables_app
from .tables.__main__ import audit_command
from .training import Execution, train

app = typer.Typer(no_args_is_help=True)
recipes_app = typer.Typer(no_args_is_help=True, help="Named settings: one for each row of the published tables.")
ledger_app = typer.Typer(no_args_is_help=True, help="The record of all results.")

Device = Annotated[str, typer.Option(help="cpu, cuda or auto.")]
Ledger = Annotated[Path, typer.Option(help="File of results, only ever appended to.")]
Runs = Annotated[Path | None, typer.Option(help="Folder of checkpoints; default $NFM_RUNS or the cache.")]
Loaders = Annotated[int, typer.Option(help="Loader processes of each training.")]


@contextmanager
def _plainly() -> Iterator[None]:
    """Errors that a user can put right are sentences, not tracebacks."""
    try:
        yield
    except (UsageError, ValueError, OSError) as error:
        typer.echo(f"nfm: {error}", err=True)
        raise typer.Exit(2) from None


@recipes_app.command("list")
def list_recipes(
    patterns: Annotated[list[str] | None, typer.Argument(help="Names; * and ? as in a shell.")] = None,
    size: Annotated[str | None, typer.Option(help="toy, digits, small or paper.")] = None,
) -> None:
    """Print the recipes."""
    with _plainly():
        chosen = select_recipes(*(patterns or ()), size=size)
    table = Table()
    for name in ("recipe", "size", "data", "network", "epochs", "seeds", "measured", "hash"):
        table.add_column(name, no_wrap=name in ("recipe", "hash"))
    for recipe in chosen:
        training = recipe.training
        table.add_row(
            recipe.name, recipe.size, training.data, training.model, str(training.epochs), str(len(recipe.seeds)),
            ", ".join(recipe.suites), recipe.hash,
        )  # fmt: skip
    wide_console().print(table)
    typer.echo(f"{len(chosen)} recipes, {len({r.hash for r in chosen})} different trainings")


@recipes_app.command("show")
def show_recipe(name: str) -> None:
    """Print everything about one recipe: settings, what is our own choice and why."""
    with _plainly():
        recipe = get_recipe(name)
    for line in describe(recipe):
        typer.echo(line)


def describe(recipe: Recipe) -> list[str]:
    """A recipe in lines, its settings first, then our choices.

    Args:
        recipe: a recipe.
    """
    settings = asdict(recipe.training)
    scheme = settings.pop("scheme")
    lines = [f"{recipe.name}  ({recipe.size}, {recipe.hash})", "", "training"]
    lines += [f"  {key} = {value!r}" for key, value in settings.items()]
    lines += ["scheme"] + [f"  {key} = {value!r}" for key, value in scheme.items()]
    lines += [f"seeds     {', '.join(map(str, recipe.seeds))}", f"measured  {', '.join(recipe.suites)}"]
    lines += ["our choices"] + [f"  {setting}: {why}" for setting, why in recipe.choices] if recipe.choices else []
    return lines + ([f"not run: {recipe.note}"] if recipe.note else [])


@app.command("train")
def train_command(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe.")],
    seed: Annotated[int, typer.Option(min=0)] = 1,
    device: Device = "auto",
    ledger: Ledger = LEDGER,
    runs: Runs = None,
    loaders: Loaders = 0,
    compile_model: Annotated[bool, typer.Option("--compile", help="Compile the model.")] = False,
    stop_after: Annotated[int | None, typer.Option(help="Stop after so many epochs, with a checkpoint.")] = None,
) -> None:
    """Train one recipe and measure it; goes on where it was left. Also under torchrun.

    Exit status: 0 done, 1 failed, 2 bad input, 3 another process works on it.
    """
    execution = Execution(device=device, workers=loaders, compile=compile_model)
    with _plainly():
        chosen = get_recipe(recipe)
        if stop_after is not None:
            source, _, classes = load_training_data(chosen.training)
            train(
                chosen.training, source, classes=classes, seed=seed, runs=runs or runs_folder(), execution=execution,
                stop_after=stop_after,
            )  # fmt: skip
            raise typer.Exit(0)
        outcome = run_recipe(chosen, seed, ledger=ledger, runs=runs, execution=execution)
    typer.echo(f"{outcome.recipe} seed {outcome.seed}: {outcome.status} {outcome.message}".rstrip())
    raise typer.Exit({FAILED: 1, BUSY: 3}.get(outcome.status, 0))


def _parameters(texts: list[str]) -> dict[str, str | int]:
    found: dict[str, str | int] = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not key or not sign:
            raise UsageError(f"--parameter: expected name=value, such as slurm_partition=gpu, got {text!r}.")
        found[key] = int(value) if value.isdigit() else value
    return found


def _seeds(text: str) -> list[int] | None:
    parts = text.split(",") if text else []
    if not all(part.strip().isdigit() for part in parts):
        raise UsageError(f"--seeds: expected whole numbers separated by commas, such as 1,2,3, got {text!r}.")
    return [int(part) for part in parts] or None


@app.command("sweep")
def sweep_command(
    patterns: Annotated[list[str], typer.Argument(help="Recipes; * and ? as in a shell.")],
    size: Annotated[str | None, typer.Option(help="Only recipes of this size.")] = None,
    seeds: Annotated[str, typer.Option(help="Seeds such as 1,2,3; default those of the recipes.")] = "",
    workers: Annotated[int, typer.Option(min=1, help="How many at once.")] = 1,
    cluster: Annotated[str, typer.Option(help=f"Where: {', '.join(CLUSTERS)}.")] = "local",
    parameter: Annotated[list[str] | None, typer.Option(help="Of submitit's executor, name=value.")] = None,
    device: Device = "auto",
    ledger: Ledger = LEDGER,
    runs: Runs = None,
    loaders: Loaders = 0,
    threads: Annotated[int, typer.Option(help="Threads of each worker; 0 for all.")] = 0,
) -> None:
    """Run many recipes; what is finished is skipped, what fails takes nothing else with it.

    Exit status: 0 all done, 1 something failed or is unfinished, 2 bad input.
    """
    with _plainly():
        wanted = _seeds(seeds)
        tasks = make_tasks(select_recipes(*patterns, size=size), wanted)
        sweep = Sweep(tasks, ledger, runs or runs_folder(), Execution(device=device, workers=loaders), threads=threads)
        report = run_sweep(sweep, cluster=cluster, workers=workers, **_parameters(parameter or []))
    for outcome in report.failed:
        typer.echo(f"failed: {outcome.recipe} seed {outcome.seed}: {outcome.message}")
    for line in report.lost:
        typer.echo(f"lost: {line}")
    typer.echo(
        f"{len(report.done)} done now, {len(report.failed)} failed, {len(report.unfinished)} of {len(tasks)} left"
    )
    raise typer.Exit(0 if report.complete else 1)


@app.command("sets")
def sets_command(
    data: Annotated[str, typer.Argument(help="digits, cifar10 or cifar100.")],
    workers: Annotated[int, typer.Option(min=1)] = 1,
    flips: Annotated[bool, typer.Option(help="Also the sequences of frames.")] = False,
) -> None:
    """Generate the corrupted version of a test set into the cache; recipes of our own sizes are measured on it."""
    from .data import load_data
    from .evaluation.sets import generated_corrupted, generated_perturbed

    with _plainly():
        images = load_data(data)
        typer.echo(generated_corrupted(images, workers=workers).folder)
        if flips:
            typer.echo(generated_perturbed(images, workers=workers).folder)


@app.command("claims")
def claims_command(
    ids: Annotated[list[str] | None, typer.Argument(help="Of statements; * and ? as in a shell.")] = None,
    paper: Annotated[str | None, typer.Option(help="nfm, noisymix, mixup or here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
) -> None:
    """Judge every statement of the papers, from the records and by quick computations; takes a minute.

    Page, evidence and the command that does it again are in the JSON, and in the book.

    Exit status: 0 judged, 2 bad input.
    """
    from .claims import count, index, load_records

    with _plainly():
        rows = index(load_records(), paper, ids or ())
    if as_json:
        typer.echo(json.dumps([row.to_dict() for row in rows], indent=2, ensure_ascii=False))
        return
    table = Table(show_lines=True)
    table.add_column("id", no_wrap=True)
    for name in ("verdict", "statement"):
        table.add_column(name, overflow="fold")
    for row in rows:
        cell = row.to_dict()
        verdict, statement = f"{row.verdict.text}: {row.verdict.detail}", f"{cell['number']}: {cell['statement']}"
        table.add_row(*(Text(text) for text in (cell["id"], verdict, statement)))
    wide_console().print(table)
    for group, counts in count(rows).items():
        typer.echo(f"{group}: " + ", ".join(f"{number} {words}" for words, number in counts.items()))


@ledger_app.command("check")
def check_ledger(path: Annotated[Path, typer.Argument()] = LEDGER) -> None:
    """List everything that is wrong with a ledger. Exit status 1 if anything is."""
    with _plainly():
        problems = validate(path)
    for problem in problems:
        typer.echo(problem)
    raise typer.Exit(1 if problems else 0)


@ledger_app.command("compare")
def compare_ledgers(
    path: Annotated[Path, typer.Argument(help="Ledger of what was run again.")],
    with_: Annotated[Path, typer.Option("--with", help="Ledger to compare it with.")] = LEDGER,
) -> None:
    """Are results that were run again the same? On another processor they may be as far apart as two seeds."""
    with _plainly():
        again, known = read(path), read(with_)
    gaps = differences(again, known)
    same = sum(gap == 0 for gap in gaps.values())
    typer.echo(f"{len(gaps)} results are in both ledgers, {same} of them identical")
    if same < len(gaps):
        cell, gap = max(gaps.items(), key=lambda item: item[1])
        typer.echo(f"largest difference of a metric: {gap:.3g}, suite {cell.suite}, seed {cell.seed}, {cell.hash}")
        inside, total, expected = within_seeds(again, known)
        if total:
            typer.echo(
                f"{inside / total:.0%} of {total} metrics lie within the range of the seeds that were recorded; "
                f"of the metrics of a new seed about {expected / total:.0%} would"
            )


@ledger_app.command("merge")
def merge_ledgers(
    paths: Annotated[list[Path], typer.Argument(help="Ledgers to read.")],
    into: Annotated[Path, typer.Option(help="Ledger to add to.")] = LEDGER,
) -> None:
    """Gather ledgers, of the nodes of a cluster say, into one."""
    with _plainly():
        typer.echo(f"{merge(paths, into)} new results in {into}")


app.add_typer(recipes_app, name="recipes")
app.add_typer(ledger_app, name="ledger")
app.add_typer(tables_app, name="tables", help="The papers' tables with ours beside them.")
app.command("audit")(audit_command)
