"""The wheel, and a fresh environment with it. `user_script.py` is run and read by tests, and is none."""

import os
import shutil
import subprocess
import sys
from email import message_from_bytes
from importlib import metadata
from pathlib import Path
from zipfile import ZipFile

import pytest
from installed import clean_environment
from packaging.requirements import Requirement

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


def _required(lines: list[str]) -> list[str]:
    """Names of the distributions that these requirements ask for without an extra."""
    wanted = [Requirement(line) for line in lines]
    return [w.name.lower() for w in wanted if w.marker is None or w.marker.evaluate({"extra": ""})]


def runtime_dependencies(wheel: Path) -> set[str]:
    """Distributions that a plain install of the wheel brings, by its own metadata and by theirs."""
    with ZipFile(wheel) as packed:
        (name,) = (n for n in packed.namelist() if n.endswith(".dist-info/METADATA"))
        own = message_from_bytes(packed.read(name)).get_all("Requires-Dist", [])
    seen, waiting = set(), _required(own)
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += _required(metadata.distribution(name).requires or [])
    return seen


@pytest.fixture(scope="module")
def bare(wheel, tmp_path_factory):
    """A fresh environment with the wheel and its runtime dependencies, which are links to those installed here."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    into = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python")]
    install = [*into, "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, env=clean_environment())
    (site,) = folder.glob("lib/python*/site-packages")
    for name in runtime_dependencies(wheel):
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


collect_ignore = ["user_script.py"]
