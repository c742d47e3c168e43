"""The wheel: what is in it, and what a user finds after installing it into an environment with nothing else."""

import doctest
import os
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import nfm_theory as nt

ROOT = Path(__file__).resolve().parents[2]
MODEL = """
import torch
from experiments.config import LR

def build():
    assert LR == 0.125
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2))
    return model, torch.linspace(-1, 1, 18).reshape(6, 3), torch.arange(6) % 2
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel that `NFM_WHEEL` names, or one built from a copy, because a build packs what an earlier one left."""
    if os.environ.get("NFM_WHEEL"):
        return Path(os.environ["NFM_WHEEL"])
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("nfm_theory", "experiments", "figures", "benchmarks", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.jsonl", "again"))
    code = f"from setuptools import build_meta; build_meta.build_wheel({str(out)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = out.glob("*.whl")
    return path


def runtime_dependencies() -> set[str]:
    """Distributions that a plain install brings, by their metadata."""
    seen, waiting = set(), ["nfm_theory"]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for text in metadata.distribution(name).requires or ():
            wanted = Requirement(text)
            if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
                waiting.append(wanted.name.lower())
    return seen - {"nfm_theory"}


@pytest.fixture(scope="module")
def bare(wheel, tmp_path_factory):
    """A fresh environment with the wheel and its runtime dependencies, which are links to those installed here."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    install = [str(folder / "bin" / "pip"), "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, env=clean_environment())
    (site,) = folder.glob("lib/python*/site-packages")
    for name in runtime_dependencies():
        for top in {file.parts[0] for file in metadata.distribution(name).files or () if file.parts[0] != ".."}:
            target = Path(metadata.distribution(name).locate_file(top))
            if top != "__pycache__" and not (site / top).exists():
                (site / top).symlink_to(target)
    return folder / "bin"


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A user's folder, with a folder `experiments` of their own."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "experiments").mkdir()
    (folder / "experiments" / "config.py").write_text("LR = 0.125\n")
    (folder / "mine.py").write_text(MODEL)
    return folder


def clean_environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}


def run(*command, folder):
    return subprocess.run(
        [str(part) for part in command], cwd=folder, env=clean_environment(), capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip


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


def test_the_quick_start_runs_there(bare, work):
    readme = ROOT / "README.md"
    assert len(doctest.DocTestParser().get_examples(readme.read_text(encoding="utf-8"))) > 5
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    code = f"import doctest; print(doctest.testfile({str(readme)!r}, module_relative=False, optionflags={flags}))"
    done = run(bare / "python", "-c", code, folder=work)
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
