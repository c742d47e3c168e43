"""The wheel: what is in it, and what a user finds after installing it into an environment with nothing else."""

import doctest
import zipfile
from pathlib import Path

from installed import run

import nfm_theory as nt

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).resolve().with_name("user_script.py")


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


def test_the_command_verifies_a_users_model_there(bare, work):
    assert run(bare / "nfm", "--version", folder=work).stdout.strip() == f"nfm_theory {nt.__version__}"
    done = run(bare / "nfm", "verify", "--model", "mine.py:build", "--layer", "1", "--json", "r.json", folder=work)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "HOLDS" in done.stdout
    assert (work / "r.json").is_file()


def test_the_command_says_what_is_missing_there(bare, work):
    nothing = run(bare / "nfm", "verify", folder=work)
    assert (nothing.returncode, nothing.stderr[:12]) == (2, "nfm: --model")
    plot = run(bare / "nfm", "verify", "--model", "mine.py:build", "--plot", "p.png", folder=work)
    assert plot.returncode == 2
    assert "pip install matplotlib" in plot.stderr
