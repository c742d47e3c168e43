"""The command of the repository, for the recipes, results and tables: `python -m experiments --help`."""

import os
import sys

from nfm_theory.cli import run_command
from nfm_theory.cli.errors import BAD_INPUT


def main() -> None:
    """Run the command. Exit status 70 if it fails itself, and 128 + n if the signal n ends it."""
    try:
        from .commands import app
        from .processes import end_with, signals_end_the_block
        from .torchrun import OWNER
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("experiments", "nfm_theory"):
            raise
        print(
            f"python -m experiments: {error.name} is not installed. Install what the experiments need, in the folder "
            "of the repository: pip install -e '.[experiments]'",
            file=sys.stderr,
        )
        sys.exit(BAD_INPUT)
    if OWNER in os.environ:  # one of the processes of a worker
        end_with(int(os.environ[OWNER]))
    with signals_end_the_block():
        app(prog_name="python -m experiments")


if __name__ == "__main__":
    run_command(main)
