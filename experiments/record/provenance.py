"""Where a result comes from: the code, the packages, the device and the time."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

from .files import versions

#: The folder with `pyproject.toml`.
ROOT = Path(__file__).resolve().parents[2]
#: The paths that a result depends on; results themselves are left out.
_CODE = ("nfm_theory", "experiments", "pyproject.toml", ":(exclude)experiments/results")
#: Packages that read, resize or distort images; they may be missing.
_OPTIONAL = ("pillow", "opencv-python-headless")
#: Environment variables of git hooks, which may name another repository.
_ELSEWHERE = ("GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR", "GIT_INDEX_FILE", "GIT_PREFIX")


def _git(root: Path, *arguments: str) -> str | None:
    """The output of a git command, or `None` if it fails."""
    environment = {name: value for name, value in os.environ.items() if name not in _ELSEWHERE}
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@cache
def checkout(root: Path = ROOT) -> tuple[str | None, bool]:
    """The commit of a git checkout, and whether the code differs from it.

    It is asked once per process, since a process runs the code that it loaded, whatever happens to the files later.

    Returns:
        The full commit, or `None` if `root` is not the top folder of a checkout with a commit; and True if files of the
        code are changed, added or removed.
    """
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root.resolve():  # an installed copy inside another repository
        return None, False
    commit = _git(root, "rev-parse", "--verify", "HEAD")
    if commit is None:
        return None, False
    # If git cannot say what has changed, the code may differ from the commit
    return commit, _git(root, "status", "--porcelain", "--", *_CODE) != ""


def device_name(device: str | torch.device = "cpu") -> str:
    """The name of the hardware: "cpu (x86_64)", or the name that CUDA gives."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.processor() or platform.machine()})"


def provenance(device: str | torch.device = "cpu") -> dict:
    """The fields of an `Entry` that say where it comes from: commit, dirty, versions, device and time.

    Args:
        device: device of the measurement.
    """
    found = versions() | {"numpy": np.__version__}
    for package in _OPTIONAL:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    commit, dirty = checkout()
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"commit": commit, "dirty": dirty, "versions": found, "device": device_name(device), "time": now}
