"""`make env` says in its first seconds, in a sentence, why it cannot work."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "environment.sh"


@pytest.fixture
def pretend(tmp_path):
    """An interpreter that runs some lines before anything that it is given by `-c`."""

    def interpreter(lines):
        path = tmp_path / "python3"
        path.write_text(f'#!/bin/sh\nshift\nexec "{sys.executable}" -c "import sys; {lines}\n$1"\n')
        path.chmod(0o755)
        return str(path)

    return interpreter


def set_up(tmp_path, **variables):
    """Status, last line and seconds of the script, in an empty folder."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "UV")) and k != "TORCH_INDEX"}
    start = time.perf_counter()
    done = subprocess.run(
        ["sh", str(SCRIPT)], env=kept | {"VENV": str(tmp_path / "venv"), **variables}, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr.strip().splitlines()[-1], time.perf_counter() - start


def test_no_such_interpreter(tmp_path):
    status, said, seconds = set_up(tmp_path, PYTHON="python-of-nobody")
    assert (status, seconds < 5) == (2, True)
    assert said.startswith("make env: there is no command python-of-nobody. Install Python 3.10 or newer")


def test_an_old_interpreter(tmp_path, pretend):
    status, said, seconds = set_up(tmp_path, PYTHON=pretend("sys.version_info = (3, 9, 18)"))
    assert (status, seconds < 5) == (2, True)
    assert "Python 3.10 or newer is needed" in said
    assert "is 3.9.18" in said
    assert not (tmp_path / "venv").exists()


def test_an_interpreter_without_venv(tmp_path, pretend):
    status, said, seconds = set_up(tmp_path, PYTHON=pretend("sys.modules['venv'] = None"))
    assert (status, seconds < 5) == (2, True)
    assert "has no module venv" in said
    assert "apt install python3-venv" in said


def test_an_environment_whose_interpreter_is_gone(tmp_path):
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "python").symlink_to(tmp_path / "gone")
    status, said, _ = set_up(tmp_path, PYTHON=sys.executable)
    assert status == 2
    assert "Remove the folder" in said


def test_no_uv(tmp_path):
    status, said, _ = set_up(tmp_path, PYTHON=sys.executable, UV="uv-of-nobody")
    assert status == 2
    assert "there is no command uv-of-nobody" in said


def test_no_index_is_noticed_before_anything_is_installed(tmp_path):
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    python = tmp_path / "venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    status, said, seconds = set_up(tmp_path, PYTHON=sys.executable, PIP_NO_INDEX="1", PIP_CONFIG_FILE=os.devnull)
    assert (status, seconds < 60) == (2, True)
    assert said.startswith("make env: pip cannot download packages")
