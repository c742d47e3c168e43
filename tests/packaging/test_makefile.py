"""The Makefile does again what a change touched, and nothing else; only `make record` writes tracked records."""

import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
from imports import imported_files

ROOT = Path(__file__).resolve().parents[2]
AGAIN = "experiments/results/again"
#: What the tests pretend to have been made, long after every source and in this order.
MADE = (
    ".venv/.installed", f"{AGAIN}/.begun", *(f"{AGAIN}/.sample-{s}" for s in ("expansion", "bounds")),
    f"{AGAIN}/.sample-training", "figures/out/.drawn",
)  # fmt: skip
#: The module that makes each file.
MODULES = {
    **{
        f"{AGAIN}/.study-{s}": f"experiments.studies.{s}"
        for s in ("expansion", "bounds", "validity", "decomposition", "where")
    },
    **{f"{AGAIN}/.sample-{s}": f"experiments.studies.{s}" for s in ("expansion", "bounds")},
    f"{AGAIN}/.sample-training": "experiments.runner", "figures/out/.drawn": "figures.__main__",
}  # fmt: skip


def make(*arguments, folder):
    """What `make -n` would do."""
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    done = subprocess.run(
        ["make", "-n", *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def done_again(commands: str) -> set[str]:
    """The parts of `make book figures` that stand in the commands, the book itself left out."""
    found = set(re.findall(r"-m experiments study (\w+)", commands))
    found |= {"training"} if "-m experiments sweep" in commands else set()
    found |= {"figures"} if "-m figures" in commands else set()
    return found | ({"env"} if "scripts/environment.sh" in commands else set())


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """The names of all files of the repository, empty, with everything made already."""
    folder = tmp_path_factory.mktemp("tree")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    for name in filter(None, listed):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
        os.utime(target, (1e9, 1e9))
    shutil.copy(ROOT / "Makefile", folder)
    os.utime(folder / "Makefile", (1e9, 1e9))
    return folder


@pytest.fixture
def made(tree):
    for k, name in enumerate(MADE):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).touch()
        os.utime(tree / name, (1.1e9 + k, 1.1e9 + k))
    return tree


def touched(tree, name):
    """What a change of one file makes `make book figures` do again."""
    path = tree / name
    assert path.is_file(), name
    os.utime(path, (1.2e9, 1.2e9))
    try:
        return done_again(make("book", "figures", folder=tree))
    finally:
        os.utime(path, (1e9, 1e9))


def test_without_a_change_only_the_book_is_looked_at(made):
    commands = make("book", "figures", folder=made)
    assert done_again(commands) == set()
    assert "book/build.py" in commands


ALL = {"expansion", "bounds", "training", "figures"}


@pytest.mark.parametrize(
    ("name", "again"),
    [
        ("constraints.txt", {"env", *ALL}),
        ("nfm_theory/setting/law.py", ALL),
        ("nfm_theory/cli/app.py", set()),
        ("nfm_theory/reporting/words.py", set()),
        ("nfm_theory/symbolic/moments.py", {"figures"}),
        ("experiments/models/small.py", ALL),
        ("experiments/augment/augmix.py", {"training", "figures"}),
        ("experiments/recipes/schemes.py", {"training", "figures"}),
        ("experiments/results/bounds.jsonl", {"bounds", "figures"}),
        ("experiments/studies/bounds.py", {"bounds", "figures"}),
        ("experiments/studies/gains.py", {"figures"}),
        ("experiments/studies/recorded.py", {"expansion", "bounds", "figures"}),
        ("experiments/tables/claims.py", {"figures"}),
        ("experiments/claims/theory.py", {"figures"}),
        ("experiments/sweep.py", set()),
        ("figures/style.py", {"figures"}),
        ("tests/theory/test_laws.py", set()),
        ("README.md", set()),
    ],
)
def test_a_change_does_again_what_it_touches(made, name, again):
    assert touched(made, name) == again


@cache
def prerequisites(tree: Path) -> dict[str, set[str]]:
    """What make knows each target to depend on."""
    text = subprocess.run(
        ["make", "-npq", "book", "figures"], cwd=tree, capture_output=True, text=True, check=False
    ).stdout
    rules = re.findall(r"^([\w./-]+):(?!=) ?([^\n|]*)", text, re.MULTILINE)
    return {target: set(needs.split()) for target, needs in rules}


@pytest.mark.parametrize("target", MODULES)
def test_every_file_that_is_imported_is_known_to_make(made, target):
    known = prerequisites(made)[target]
    if target.endswith("-training"):
        known = known | prerequisites(made)[f"{AGAIN}/.begun"]
    needed = {path.relative_to(ROOT).as_posix() for path in imported_files(MODULES[target])}
    # The command loads itself when it is called, so that whoever imports its helpers does not run it.
    assert {name for name in needed - known if not name.startswith("nfm_theory/cli/")} == set()


def test_nothing_but_record_writes_a_tracked_record(made):
    for target in ("book", "verify", "sample", "figures", "training"):
        os.utime(made / "constraints.txt", (1.2e9, 1.2e9))
        commands = make(target, folder=made)
        assert "--record" not in commands, target
        for line in commands.splitlines():
            assert "-m experiments sweep" not in line or f"--ledger {AGAIN}/experiments.jsonl" in line, target
    os.utime(made / "constraints.txt", (1e9, 1e9))
    record = make("record", folder=made)
    assert "for study in expansion bounds validity decomposition where explore;" in record
    assert "study $study --record" in record


def test_at_most_two_networks_of_the_compact_size_are_trained_again():
    from experiments.recipes import get_recipe

    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    names = re.search(r"^COMPACT \?= (.*)$", text, re.MULTILINE)[1].split()
    assert 1 <= len(names) <= 2
    assert {get_recipe(name).size for name in names} == {"compact"}


def test_verify_does_every_study_and_every_recipe(made):
    commands = make("verify", folder=made)
    assert set(re.findall(r"-m experiments study (\w+) --workers", commands)) == {
        "expansion", "bounds", "validity", "decomposition", "where"
    }  # fmt: skip
    assert "--sample" not in commands
    assert "'digits*/*'" in commands


def test_what_make_writes_is_ignored_by_git():
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    paths = [*MADE, f"{AGAIN}/expansion.jsonl", f"{AGAIN}/runs/x.pt", "book/_build/html/index.html"]
    for path in paths:
        done = subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT, check=False)
        assert done.returncode == 0, path


def test_help_lists_every_target_in_one_line(tree):
    command = ["make", "--no-print-directory", "help"]
    text = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=True).stdout
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert {line.split()[1] for line in text.splitlines()} == set(phony[1].split())


def test_what_would_slow_every_process_or_empty_the_figures_is_not_passed_on(tree):
    outside = {"PYTHONDONTWRITEBYTECODE": "1", "MPLBACKEND": "Agg", "NFM_TEST": "1"}
    command = ["make", "--eval", "shown: ; @env", "shown"]
    text = subprocess.run(
        command, cwd=tree, env=os.environ | outside, capture_output=True, text=True, check=True
    ).stdout
    assert outside.keys() & {line.partition("=")[0] for line in text.splitlines()} == {"NFM_TEST"}
