"""The commands of `python -m experiments`: train the papers' networks, and set the results beside the printed ones."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from .console import MOST_PROCESSES, plain_errors, wide_console
from .recipes import Recipe, get_recipe, select_recipes
from .record.files import replace_file, writable_file, write_json
from .record.ledger import LEDGER, differences, merge, read, read_together, validate, within_seeds
from .runner import own_ledger
from .studies.commands import app as studies_app
from .tables import TABLES, audit, build_table, judge_claims
from .tables.audit import report_markdown
from .tables.build import SIZES
from .tables.render import CLAIM_FORMATS, TABLE_FORMATS
from .training_commands import add_commands

HELP = """Train the networks of the papers on Noisy Feature Mixup again, and set the results beside the printed ones.

Each row of a published table is a recipe, such as nfm-table1/nfm. The same
row exists at several sizes: on digits (seconds), on Fashion-MNIST or CIFAR
(minutes), and as published. Digits and Fashion-MNIST come with this
repository; the book's page on reproducing says where other data go.

    python -m experiments recipes list "digits/*"
    python -m experiments train digits/nfm
    python -m experiments tables --table nfm-table1
    python -m experiments claims "nfm-table1*"

Results are appended to a ledger of your own in the cache folder. The tracked
ledger, with the results of the book, stays as it is."""
RECIPES_HELP = """List the recipes and show their settings. A recipe says how one row of a published table is trained.

Its name is the table, a slash and the row."""
LEDGER_HELP = """Check, compare and merge ledgers, the files with all results of training.

A ledger has one line of JSON for each recipe, seed and measured quantity."""

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=HELP)
recipes_app = typer.Typer(no_args_is_help=True, help=RECIPES_HELP)
ledger_app = typer.Typer(no_args_is_help=True, help=LEDGER_HELP)

SUFFIXES = {"md": ".md", "latex": ".tex", "html": ".html"}
Out = Annotated[Path | None, typer.Option(help="Folder to write to; by default the text is printed.")]


@recipes_app.command("list")
def list_recipes(
    patterns: Annotated[list[str] | None, typer.Argument(help="Names of recipes; * and ? work as in a shell.")] = None,
    size: Annotated[str | None, typer.Option(help="Only recipes of this size: toy, digits, compact or paper.")] = None,
) -> None:
    """List recipes with their data, network, seeds and what is measured. Without a pattern all of them are listed."""
    with plain_errors():
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
def show_recipe(name: Annotated[str, typer.Argument(help="Name of a recipe, such as nfm-table1/nfm.")]) -> None:
    """Show one recipe: all settings, and which of them are our own choice and why."""
    with plain_errors():
        recipe = get_recipe(name)
    for line in describe(recipe):
        typer.echo(line)


def describe(recipe: Recipe) -> list[str]:
    """A recipe as lines of text: first its settings, then our choices."""
    settings = asdict(recipe.training)
    scheme = settings.pop("scheme")
    lines = [f"{recipe.name}  ({recipe.size}, {recipe.hash})", "", "training"]
    lines += [f"  {key} = {value!r}" for key, value in settings.items()]
    lines += ["scheme"] + [f"  {key} = {value!r}" for key, value in scheme.items()]
    lines += [f"seeds     {', '.join(map(str, recipe.seeds))}", f"measured  {', '.join(recipe.suites)}"]
    lines += ["our choices"] + [f"  {setting}: {why}" for setting, why in recipe.choices] if recipe.choices else []
    return lines + ([f"not run: {recipe.note}"] if recipe.note else [])


@app.command("sets")
def sets_command(
    data: Annotated[str, typer.Argument(help="digits, cifar10 or cifar100.")],
    workers: Annotated[int, typer.Option(min=1, max=MOST_PROCESSES, help="Number of processes.")] = 1,
    flips: Annotated[bool, typer.Option(help="Also make the sequences of slowly changing images.")] = False,
) -> None:
    """Make the corrupted version of a test set, on which the recipes of our own sizes are measured.

    A sweep makes it by itself when it needs one; this command does so before, in
    several processes. The set is kept in the cache folder, whose name is printed.
    """
    from .data import load_data
    from .evaluation.sets import generated_corrupted, generated_perturbed

    with plain_errors():
        _check_names("data", [data], ("digits", "cifar10", "cifar100"))
        images = load_data(data)
        typer.echo(generated_corrupted(images, workers=workers).folder)
        if flips:
            typer.echo(generated_perturbed(images, workers=workers).folder)


def _ledgers() -> list[Path]:
    """The tracked ledger, and the reader's own one."""
    return [path for path in (LEDGER, own_ledger()) if path.exists()]


def _check_names(option: str, names: list[str], known) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{option}: expected one of {', '.join(known)}; got {name!r}.")


def _check_folder(out: Path | None) -> None:
    """Refuse a folder that cannot be written to before anything is computed."""
    if out is not None:
        writable_file(out / "new")


def _write(text: str, name: str, out: Path | None) -> None:
    """Print a text, or write it to a file in a folder."""
    if out is None:
        typer.echo(text)
        return
    with replace_file(out / name) as temporary:
        temporary.write_text(text, encoding="utf-8")


@app.command("tables")
def tables_command(
    form: Annotated[str, typer.Option("--format", help="md, latex or html.")] = "md",
    table: Annotated[
        list[str] | None, typer.Option(help="Id of a table, such as nfm-table1; may be repeated; by default all.")
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(help="toy, digits, compact, paper or elsewhere; may be repeated; by default all."),
    ] = None,
    ledger: Annotated[
        list[Path] | None,
        typer.Option(help="File of results; may be repeated; by default the tracked ledger and your own one."),
    ] = None,
    out: Out = None,
) -> None:
    """Write the papers' tables with our results beside them, and the verdicts on the claims about them.

    Nothing is trained; where we have no result, the table says so.
    """
    with plain_errors():
        _check_names("--format", [form], TABLE_FORMATS)
        _check_names("--table", table or [], TABLES)
        _check_names("--size", size or [], SIZES)
        _check_folder(out)
        entries = read_together(ledger or _ledgers())
        for name in table or TABLES:
            _write(TABLE_FORMATS[form](build_table(name, entries, size)), name + SUFFIXES[form], out)
        judged = [j for j in judge_claims(entries, size) if j.claim.table in (table or TABLES)]
        _write(CLAIM_FORMATS[form](judged), "claims" + SUFFIXES[form], out)


@app.command("audit")
def audit_command(out: Out = None) -> None:
    """Cross-check the printed numbers of both papers, and list those that do not fit each other.

    The rules look at the printed tables only, such as a mean beside its parts.
    """
    with plain_errors():
        _check_folder(out)
        _write(report_markdown(audit()), "audit.md", out)


@app.command("claims")
def claims_command(
    ids: Annotated[
        list[str] | None, typer.Argument(help="Ids of statements; * and ? work as in a shell; by default all.")
    ] = None,
    paper: Annotated[str | None, typer.Option(help="Only this paper: nfm, noisymix, mixup, neighbors or here.")] = None,
    ledger: Annotated[
        list[Path] | None,
        typer.Option(help="File of results; may be repeated; by default the tracked ledger and your own one."),
    ] = None,
    json_path: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write everything to this file; - for the terminal.")
    ] = None,
) -> None:
    """Judge the statements of the papers, from the records and by quick computations. All of them take a minute.

    A statement is a theorem, a table, a figure or a sentence of a paper. The
    JSON file also has the page of the book, the evidence, and the command that
    computes a verdict again.

    Exit status: 0 judged, 2 wrong input.
    """
    from .claims import count, index, load_records

    with plain_errors():
        if json_path not in (None, Path("-")):
            writable_file(json_path)
        judged = index(load_records(ledgers=ledger or _ledgers()), paper, ids or ())
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
    with plain_errors():
        problems = validate(path)
    for problem in problems:
        typer.echo(problem)
    raise typer.Exit(1 if problems else 0)


@ledger_app.command("compare")
def compare_ledgers(
    path: Annotated[Path, typer.Argument(help="Ledger with results that were computed again.")],
    with_: Annotated[Path, typer.Option("--with", help="Ledger to compare it with.")] = LEDGER,
) -> None:
    """Compare results that were computed again with the tracked ones, or with those of another ledger.

    On the same processor they are identical; on another one they may differ as
    much as two seeds do.
    """
    with plain_errors():
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
    into: Annotated[Path | None, typer.Option(help="Ledger to add to; by default your own one.")] = None,
) -> None:
    """Gather several ledgers into one, for example those of the nodes of a cluster."""
    with plain_errors():
        into = into or own_ledger()
        typer.echo(f"{merge(paths, into)} new results in {into}")


add_commands(app)
app.add_typer(recipes_app, name="recipes")
app.add_typer(ledger_app, name="ledger")
app.add_typer(studies_app, name="study")
