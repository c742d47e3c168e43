"""The command `nfm`, which checks the theory on a network of yours.

`nfm verify --help` lists the options. Exit status: 0 if the expansion holds or the bound is certified, 1 if it is
refuted, 2 for bad input, 3 if undecided, 70 if the command itself failed. With several layers or scales, the worst one
counts.
"""

from __future__ import annotations

import sys
import traceback

from .errors import BAD_INPUT, CRASHED


def main() -> None:
    """Run the command. A crash has a status of its own, because Python's own status 1 would read as "refuted"."""
    try:
        import typer  # noqa: F401
    except ImportError as error:
        print(f"nfm: typer cannot be imported ({error}). Install it with: pip install typer", file=sys.stderr)
        sys.exit(BAD_INPUT)
    try:
        from .app import app

        app()
    except Exception:
        traceback.print_exc()
        sys.exit(CRASHED)
