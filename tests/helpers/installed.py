"""Running commands as a user does: installed and without a clone, or inside this process."""

import os
import subprocess

from typer.testing import CliRunner, Result

from nfm_theory.cli.app import app


def clean_environment() -> dict[str, str]:
    """The environment without the way to the clone."""
    return {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}


def run(*command, folder) -> subprocess.CompletedProcess:
    """Run a command in a folder, and keep what it prints.

    Args:
        *command: program and arguments.
        folder: where to run it.
    """
    return subprocess.run(
        [str(part) for part in command], cwd=folder, env=clean_environment(), capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip


def run_nfm(*arguments) -> Result:
    """Run `nfm verify` in this process.

    Args:
        *arguments: its options.
    """
    return CliRunner().invoke(app, ["verify", *map(str, arguments)])
