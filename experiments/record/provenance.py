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
#: What a result depends on; writing results does not make the code another one.
_CODE = ("nfm_theory", "experiments", "pyproject.toml", ":(exclude)experiments/results")
#: Packages that read, resize or distort images; they may be absent.
_OPTIONAL = ("pillow", "opencv-python-headless")
#: Set inside a git hook, where they may name another repository.
_ELSEWHERE = ("GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR", "GIT_INDEX_FILE", "GIT_PREFIX")


def _git(root: Path, *arguments: str) -> str | None:
    """What git prints, `None` if it cannot answer."""
    environment = {name: value for name, value in os.environ.items() if name not in _ELSEWHERE}
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@cache
def checkout(root: Path = ROOT) -> tuple[str | None, bool]:
    """The commit of a git checkout and whether its code differs from it, as they were at the first call.

    Once per process: a process runs the code that it loaded, whatever happens to the files later.

    Args:
        root: top folder of the checkout.

    Returns:
        The full commit, `None` if `root` is not the top of a checkout that has a commit; and whether files of the
        code are changed, added or removed (False without a commit).
    """
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root.resolve():  # an installed copy inside some other repository
        return None, False
    commit = _git(root, "rev-parse", "--verify", "HEAD")
    if commit is None:
        return None, False
    # Where git cannot say what has changed, nobody can vouch for the commit.
    return commit, _git(root, "status", "--porcelain", "--", *_CODE) != ""


def device_name(device: str | torch.device = "cpu") -> str:
    """The name of the hardware, "cpu (x86_64)" or as CUDA gives it.

    Args:
        device: of the evaluation.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.processor() or platform.machine()})"


def provenance(device: str | torch.device = "cpu") -> dict:
    """The fields of an `Entry` that say where it comes from: commit, dirty, versions, device, time.

    Args:
        device: of the evaluation.
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
