"""The wheel: what is in it, and what a user finds after installing it into an environment with nothing else."""

import doctest
import json
import zipfile
from pathlib import Path

import pytest
from installed import run

import nfm_theory as nt

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).resolve().with_name("user_script.py")
#: What the command answers there when it computes nothing: for each list of arguments the status and both streams.
ANSWERS = """
import contextlib, io, json, sys
from nfm_theory.cli import main

def answer(*arguments):
    sys.argv = ["nfm", *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            main()
        except SystemExit as end:
            return end.code, out.getvalue(), err.getvalue()

verify = ("verify", "--model", "mine.py:build")
print(json.dumps([answer("--version"), answer("verify"), answer(*verify, "--plot", "p.png")]))
"""


@pytest.fixture(scope="module")
def answers(bare, work):
    done = run(bare / "python", "-c", ANSWERS, folder=work)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_the_wheel_holds_the_library_alone(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"nfm_theory", f"nfm_theory-{nt.__version__}.dist-info"}
    modules = {p.relative_to(ROOT).as_posix() for p in (ROOT / "nfm_theory").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules


def test_the_wheel_says_that_it_is_typed(wheel):
    assert "nfm_theory/py.typed" in zipfile.ZipFile(wheel).namelist()


def test_the_bare_environment_is_bare(bare, work):
    code = (
        "import importlib.util as u; print([n for n in ('matplotlib', 'sklearn', 'pytest', 'PIL') if u.find_spec(n)])"
    )
    done = run(bare / "python", "-c", code, folder=work)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_users_script_and_the_quick_start_run_there(bare, work):
    readme = ROOT / "README.md"
    assert len(doctest.DocTestParser().get_examples(readme.read_text(encoding="utf-8"))) > 5
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    code = f"import doctest, runpy; runpy.run_path({str(SCRIPT)!r}, run_name='__main__'); "
    code += f"print(doctest.testfile({str(readme)!r}, module_relative=False, optionflags={flags}))"
    done = run(bare / "python", "-c", code, folder=work)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed=0" in done.stdout, done.stdout + done.stderr


def test_a_users_own_experiments_win(bare, work):
    code = "import nfm_theory; from experiments.config import LR; print(LR)"
    done = run(bare / "python", "-c", code, folder=work)
    assert done.stdout.strip() == "0.125", done.stderr


def test_the_command_verifies_a_users_model_there(bare, work, answers):
    assert answers[0] == [0, f"nfm_theory {nt.__version__}\n", ""]
    done = run(bare / "nfm", "verify", "--model", "mine.py:build", "--layer", "1", "--json", "r.json", folder=work)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "HOLDS" in done.stdout
    assert (work / "r.json").is_file()


def test_the_command_says_what_is_missing_there(answers):
    _, (status, _, error), (plot_status, _, plot_error) = answers
    assert (status, error[:12]) == (2, "nfm: --model")
    assert plot_status == 2
    assert "pip install matplotlib" in plot_error
