"""The commands of `python -m experiments`: train the papers' networks, and set the results beside the printed ones."""

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

from .console import wide_console
from .recipes import Recipe, get_recipe, select_recipes
from .record.files import write_json
from .record.ledger import LEDGER, differences, merge, read, validate, within_seeds
from .runner import BUSY, FAILED, load_training_data, run_recipe, runs_folder
from .studies.commands import app as studies_app
from .sweep import CLUSTERS, Sweep, make_tasks, run_sweep
from .tables import TABLES, audit, build_table, judge_claims
from .tables.audit import report_markdown
from .tables.build import SIZES
from .tables.render import CLAIM_FORMATS, TABLE_FORMATS
from .training import Execution, train

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
recipes_app = typer.Typer(no_args_is_help=True, help="The recipes: how each row of the published tables is trained.")
ledger_app = typer.Typer(no_args_is_help=True, help="The ledger: the file with all results of training.")

SUFFIXES = {"md": ".md", "latex": ".tex", "html": ".html"}
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto for a GPU if there is one.")]
Ledger = Annotated[Path, typer.Option(help="File to which results are appended.")]
Runs = Annotated[Path | None, typer.Option(help="Folder of checkpoints; by default $NFM_RUNS or a cache folder.")]
Loaders = Annotated[int, typer.Option(help="Number of data loading processes for each training run.")]
Out = Annotated[Path | None, typer.Option(help="Folder to write to; by default the text is printed.")]


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Print errors that a user can put right as a sentence instead of a traceback."""
    try:
        yield
    except (ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None


@recipes_app.command("list")
def list_recipes(
    patterns: Annotated[list[str] | None, typer.Argument(help="Names of recipes; * and ? work as in a shell.")] = None,
    size: Annotated[str | None, typer.Option(help="Only recipes of this size: toy, digits, small or paper.")] = None,
) -> None:
    """List recipes."""
    with _plain_errors():
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
    """Show one recipe: all settings, and which of them are our own choice and why."""
    with _plain_errors():
        recipe = get_recipe(name)
    for line in describe(recipe):
        typer.echo(line)


def describe(recipe: Recipe) -> list[str]:
    """A recipe as lines of text: first its settings, then our choices.

    Args:
        recipe: the recipe.
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
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the training run.")] = 1,
    device: Device = "auto",
    ledger: Ledger = LEDGER,
    runs: Runs = None,
    loaders: Loaders = 0,
    compile_model: Annotated[bool, typer.Option("--compile", help="Use torch.compile.")] = False,
    stop_after: Annotated[
        int | None, typer.Option(help="Stop after this many epochs; the next call continues from there.")
    ] = None,
) -> None:
    """Train the network of a recipe and measure it. An interrupted run continues. Also works under torchrun.

    Exit status: 0 done, 1 failed, 2 wrong input, 3 another process works on it.
    """
    execution = Execution(device=device, workers=loaders, compile=compile_model)
    with _plain_errors():
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
            raise ValueError(f"--parameter: expected name=value, such as slurm_partition=gpu, got {text!r}.")
        found[key] = int(value) if value.isdigit() else value
    return found


def _seeds(text: str) -> list[int] | None:
    parts = text.split(",") if text else []
    if not all(part.strip().isdigit() for part in parts):
        raise ValueError(f"--seeds: expected whole numbers separated by commas, such as 1,2,3, got {text!r}.")
    return [int(part) for part in parts] or None


@app.command("sweep")
def sweep_command(
    patterns: Annotated[list[str], typer.Argument(help="Names of recipes; * and ? work as in a shell.")],
    size: Annotated[str | None, typer.Option(help="Only recipes of this size.")] = None,
    seeds: Annotated[str, typer.Option(help="Seeds such as 1,2,3; by default those of the recipes.")] = "",
    workers: Annotated[int, typer.Option(min=1, help="How many training runs at the same time.")] = 1,
    cluster: Annotated[str, typer.Option(help=f"Where to run: {', '.join(CLUSTERS)}.")] = "local",
    parameter: Annotated[list[str] | None, typer.Option(help="Option of the submitit executor, name=value.")] = None,
    device: Device = "auto",
    ledger: Ledger = LEDGER,
    runs: Runs = None,
    loaders: Loaders = 0,
    threads: Annotated[int, typer.Option(help="Threads of each worker; 0 for all.")] = 0,
) -> None:
    """Train and measure many recipes. Finished ones are skipped, and a failure does not stop the others.

    Exit status: 0 all done, 1 something failed or is unfinished, 2 wrong input.
    """
    with _plain_errors():
        wanted = _seeds(seeds)
        tasks = make_tasks(select_recipes(*patterns, size=size), wanted)
        sweep = Sweep(tasks, ledger, runs or runs_folder(), Execution(device=device, workers=loaders), threads=threads)
        report = run_sweep(sweep, cluster=cluster, workers=workers, **_parameters(parameter or []))
    for outcome in report.failed:
        typer.echo(f"failed: {outcome.recipe} seed {outcome.seed}: {outcome.message}")
    for line in report.lost:
        typer.echo(f"lost: {line}")
    left = f"{len(report.unfinished)} of {len(tasks)} left"
    typer.echo(f"{len(report.done)} done now, {len(report.failed)} failed, {left}")
    raise typer.Exit(0 if report.complete else 1)


@app.command("sets")
def sets_command(
    data: Annotated[str, typer.Argument(help="digits, cifar10 or cifar100.")],
    workers: Annotated[int, typer.Option(min=1, help="Number of processes.")] = 1,
    flips: Annotated[bool, typer.Option(help="Also make the sequences of slowly changing images.")] = False,
) -> None:
    """Make the corrupted version of a test set, on which the recipes of our own sizes are measured."""
    from .data import load_data
    from .evaluation.sets import generated_corrupted, generated_perturbed

    with _plain_errors():
        images = load_data(data)
        typer.echo(generated_corrupted(images, workers=workers).folder)
        if flips:
            typer.echo(generated_perturbed(images, workers=workers).folder)


def _check_names(option: str, names: list[str], known) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{option}: expected one of {', '.join(known)}; got {name!r}.")


def _write(text: str, name: str, out: Path | None) -> None:
    """Print a text, or write it to a file in a folder."""
    if out is None:
        typer.echo(text)
        return
    out.mkdir(parents=True, exist_ok=True)
    (out / name).write_text(text, encoding="utf-8")


@app.command("tables")
def tables_command(
    form: Annotated[str, typer.Option("--format", help="md, latex or html.")] = "md",
    table: Annotated[list[str] | None, typer.Option(help="Id of a table; may be repeated; by default all.")] = None,
    size: Annotated[list[str] | None, typer.Option(help="Size of our recipes; may be repeated.")] = None,
    ledger: Annotated[list[Path] | None, typer.Option(help="File of results; may be repeated.")] = None,
    out: Out = None,
) -> None:
    """Write the papers' tables with our results beside them, and the verdicts on the claims about them."""
    with _plain_errors():
        _check_names("--format", [form], TABLE_FORMATS)
        _check_names("--table", table or [], TABLES)
        _check_names("--size", size or [], SIZES)
        entries = [entry for path in ledger or ([LEDGER] if LEDGER.exists() else []) for entry in read(path)]
        for name in table or TABLES:
            _write(TABLE_FORMATS[form](build_table(name, entries, size)), name + SUFFIXES[form], out)
        judged = [j for j in judge_claims(entries, size) if j.claim.table in (table or TABLES)]
        _write(CLAIM_FORMATS[form](judged), "claims" + SUFFIXES[form], out)


@app.command("audit")
def audit_command(out: Out = None) -> None:
    """Cross-check the printed numbers of both papers, and list those that cannot be right."""
    with _plain_errors():
        _write(report_markdown(audit()), "audit.md", out)


@app.command("claims")
def claims_command(
    ids: Annotated[list[str] | None, typer.Argument(help="Ids of statements; * and ? work as in a shell.")] = None,
    paper: Annotated[str | None, typer.Option(help="Only this paper: nfm, noisymix, mixup or here.")] = None,
    json_path: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write everything to this file; - for the terminal.")
    ] = None,
) -> None:
    """Judge the statements of the papers, from the records and by quick computations. All of them take a minute.

    The JSON file also has the page of the book, the evidence, and the command that computes a verdict again.

    Exit status: 0 judged, 2 wrong input.
    """
    from .claims import count, index, load_records

    with _plain_errors():
        judged = index(load_records(), paper, ids or ())
        found = [one.to_dict() for one in judged]
        if json_path == Path("-"):
            return typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
        if json_path is not None:
            write_json(json_path, found)
            return typer.echo(f"{len(found)} statements written to {json_path}")
    table = Table(show_lines=True)
    table.add_column("id", no_wrap=True)
    for name in ("verdict", "statement"):
        table.add_column(name, overflow="fold")
    for one, cell in zip(judged, found, strict=True):
        verdict = f"{one.verdict.text}: {one.verdict.detail}"
        table.add_row(*(Text(text) for text in (cell["id"], verdict, f"{cell['number']}: {cell['statement']}")))
    wide_console().print(table)
    for group, counts in count(judged).items():
        typer.echo(f"{group}: " + ", ".join(f"{number} {words}" for words, number in counts.items()))


@ledger_app.command("check")
def check_ledger(path: Annotated[Path, typer.Argument(help="File of results.")] = LEDGER) -> None:
    """List everything that is wrong with a ledger. The exit status is 1 if anything is."""
    with _plain_errors():
        problems = validate(path)
    for problem in problems:
        typer.echo(problem)
    raise typer.Exit(1 if problems else 0)


@ledger_app.command("compare")
def compare_ledgers(
    path: Annotated[Path, typer.Argument(help="Ledger with results that were computed again.")],
    with_: Annotated[Path, typer.Option("--with", help="Ledger to compare it with.")] = LEDGER,
) -> None:
    """Compare results that were computed again. On another processor they may differ as much as two seeds do."""
    with _plain_errors():
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
    """Gather several ledgers into one, for example those of the nodes of a cluster."""
    with _plain_errors():
        typer.echo(f"{merge(paths, into)} new results in {into}")


app.add_typer(recipes_app, name="recipes")
app.add_typer(ledger_app, name="ledger")
app.add_typer(studies_app, name="study")
