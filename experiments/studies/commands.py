"""The commands `python -m experiments study NAME`: measure a recorded study again, and compare it with the record."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ..console import MOST_PROCESSES, plain_errors
from ..data.cifar import find_cifar, release
from ..recipes import select_recipes
from ..record.files import RESULTS, writable_file
from ..runner import runs_folder
from . import bounds as bounds_study
from . import choice as choice_study
from . import decomposition as decomposition_study
from . import expansion as expansion_study
from . import explore as explore_study
from . import validity as validity_study
from . import where as where_study
from .recorded import AGAIN, RecordedStudy, run_study
from .validity_networks import BOUND_SAMPLES, PATHS, SAMPLES, is_finished
from .validity_networks import cases as layer_cases

HELP = """Measure a study again and compare it with the tracked record.

A study asks one question about trained networks, such as how far the
expansion reaches. --sample measures a few of its cases only.

The records go to experiments/results/again, and the tracked ones stay as they
are unless --record is given. The exit status is 1 if a new record contradicts
a tracked one."""
app = typer.Typer(no_args_is_help=True, help=HELP, add_completion=False)
CIFAR_VARIABLE = release(10).variable

Sample = Annotated[bool, typer.Option("--sample", help="Measure only a small sample of the cases.")]
Quick = Annotated[
    bool, typer.Option("--quick", help="Measure small cases for a test; writes nothing unless --out is given.")
]
Record = Annotated[bool, typer.Option("--record", help="Replace the tracked record.")]
Out = Annotated[Path | None, typer.Option(help="Folder for the records; by default experiments/results/again.")]
Workers = Annotated[int, typer.Option(min=1, max=MOST_PROCESSES, help="Number of processes.", show_default="all cores")]
ALL_CORES = os.cpu_count() or 1


def _run(
    study: RecordedStudy, cases: Sequence, *, sample: bool, quick: bool, record: bool, out: Path | None, workers: int
) -> None:
    """Run a study as the common options say, and exit with its status."""
    if record and (sample or quick or out):
        raise typer.BadParameter("--record replaces the whole tracked record; leave out --sample, --quick and --out.")
    if sample:
        if study.sample is None:
            raise typer.BadParameter(
                f"--sample: the study {study.name} has no sample; leave the option out to measure all cases."
            )
        chosen = [case for case in cases if study.sample(case)]
        typer.echo(
            f"sample: {study.sample_words}, {len(chosen)} of {len(cases)} cases; "
            f"all cases: python -m experiments study {study.name}"
        )
        cases = chosen
    if out is None and not quick:
        out = RESULTS / AGAIN
    with plain_errors():
        for file in study.files if out is not None else ():
            writable_file(out / file.name)
        tracked = None if quick else RESULTS
        status = run_study(study, cases, workers=workers, out=out, record=record, tracked=tracked)
    raise typer.Exit(status)


@app.command()
def expansion(
    sample: Sample = False, quick: Quick = False, record: Record = False, out: Out = None, workers: Workers = ALL_CORES
) -> None:
    """Is the expansion of the NFM loss right on networks trained on digits?

    Exit status: 1 refuted or another verdict than recorded, 2 wrong input, 3 undecided.
    """
    cases = expansion_study.cases(quick=quick)
    _run(expansion_study.STUDY, cases, sample=sample, quick=quick, record=record, out=out, workers=workers)


@app.command()
def bounds(
    sample: Sample = False, quick: Quick = False, record: Record = False, out: Out = None, workers: Workers = ALL_CORES,
    cifar: Annotated[bool, typer.Option("--cifar", help="CIFAR-10 instead of digits.")] = False,
    cifar_folder: Annotated[
        str, typer.Option(metavar="DIR", help=f"Folder cifar-10-batches-py; by default ${CIFAR_VARIABLE}.")
    ] = "",
) -> None:  # fmt: skip
    """Does the adversarial bound hold on trained networks? A refuted inequality is a finding and no error."""
    folder = None
    if cifar or cifar_folder:
        try:
            folder = find_cifar(10, cifar_folder)
        except ValueError as error:
            raise typer.BadParameter(f"--cifar-folder: {error}") from None
        if folder is None:
            typer.echo(f"skipped: CIFAR-10 was not found; name its folder by --cifar-folder or ${CIFAR_VARIABLE}")
            raise typer.Exit(0)
    cases = bounds_study.cases(quick=quick, cifar="" if folder is None else str(folder))
    study = bounds_study.study(cifar=folder is not None)
    _run(study, cases, sample=sample, quick=quick, record=record, out=out, workers=workers)


@app.command()
def validity(
    sample: Sample = False, quick: Quick = False, record: Record = False, out: Out = None, workers: Workers = ALL_CORES,
    recipes: Annotated[
        list[str] | None, typer.Option(help="Measure trained recipes with these names instead; may be repeated.")
    ] = None,
    runs: Annotated[Path | None, typer.Option(help="Folder of trained recipes; by default $NFM_RUNS.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Random seed of the training runs.")] = 1,
    samples: Annotated[int, typer.Option(min=2, help="Number of training images.")] = SAMPLES,
    paths: Annotated[int, typer.Option(min=2, help="Number of random paths from each image.")] = PATHS,
    bound_samples: Annotated[int, typer.Option(min=1, help="Number of images for the bound.")] = BOUND_SAMPLES,
) -> None:  # fmt: skip
    """Up to which ε are the expansions of order 1 to 4 and the adversarial bound valid on trained networks?

    Networks on digits are trained if they are missing; other recipes must have been trained.
    """
    folder = runs or runs_folder()
    options = {"paths": paths, "runs": str(folder), "seed": seed}
    if not quick:
        options |= {"samples": samples, "bound_samples": bound_samples}
    with plain_errors():
        writable_file(folder / "new")
        chosen = _trained_recipes(recipes, seed, folder) if recipes else None
    cases = layer_cases(chosen, quick=quick, **options)
    study = validity_study.study(chosen[0].training.data if chosen else "")
    _run(study, cases, sample=sample, quick=quick, record=record, out=out, workers=workers)


def _trained_recipes(patterns: Sequence[str], seed: int, runs: Path) -> list:
    """Recipes on digits, and others that have been trained; those that have not are named."""
    named = select_recipes(*patterns)
    found = [recipe for recipe in named if recipe.size == "digits" or is_finished(recipe, seed, runs)]
    missing = ", ".join(recipe.name for recipe in named if recipe not in found)
    if missing:
        typer.echo(f"not trained in {runs}, left out: {missing}")
    if not found:
        raise ValueError(f"--recipes: none of them is trained in {runs}; `python -m experiments sweep` trains them.")
    return found


@app.command()
def decomposition(
    sample: Sample = False, quick: Quick = False, record: Record = False, out: Out = None, workers: Workers = ALL_CORES,
    seeds: Annotated[
        list[int] | None, typer.Option(help="Seed of the training runs; may be repeated.", min=0, max=2**63 - 1)
    ] = None,
) -> None:  # fmt: skip
    """What is the NFM loss made of while networks train?"""
    cases = decomposition_study.cases(seeds=seeds or decomposition_study.SEEDS, quick=quick)
    _run(decomposition_study.STUDY, cases, sample=sample, quick=quick, record=record, out=out, workers=workers)


@app.command()
def choice(
    quick: Quick = False, record: Record = False, out: Out = None, workers: Workers = ALL_CORES,
    recipes: Annotated[
        list[str] | None, typer.Option(help="Only the candidates for the recipes with these names; may be repeated.")
    ] = None,
) -> None:  # fmt: skip
    """Which settings does the baseline of the compact size train best with? It takes hours and no test image."""
    known = choice_study.CANDIDATES
    if unknown := set(recipes or ()) - set(known):
        raise typer.BadParameter(f"--recipes: expected {' or '.join(known)}, got {', '.join(sorted(unknown))}.")
    cases = choice_study.cases(recipes=recipes or tuple(known), quick=quick)
    _run(choice_study.STUDY, cases, sample=False, quick=quick, record=record, out=out, workers=workers)


@app.command()
def explore(quick: Quick = False, record: Record = False, out: Out = None, workers: Workers = ALL_CORES) -> None:
    """Compute the loss and its expansion on a grid, for the interactive figure. It takes more than half an hour."""
    cases = explore_study.cases(quick=quick)
    _run(explore_study.STUDY, cases, sample=False, quick=quick, record=record, out=out, workers=workers)


@app.command()
def where(
    sample: Sample = False, quick: Quick = False, record: Record = False, out: Out = None, workers: Workers = ALL_CORES
) -> None:
    """At which layers do NFM's second-order terms lie? It trains four plain networks, some minutes each."""
    cases = where_study.cases(quick=quick)
    _run(where_study.STUDY, cases, sample=sample, quick=quick, record=record, out=out, workers=workers)
