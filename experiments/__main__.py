"""The command of the repository, for the recipes, results and tables: `python -m experiments --help`."""

from .commands import app

if __name__ == "__main__":
    app(prog_name="python -m experiments")
