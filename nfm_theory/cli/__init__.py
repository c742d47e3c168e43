"""The command `nfm`, which checks the theory on a network of yours.

`nfm report` writes a page about it; `nfm report --help` says what its statuses mean.

`nfm verify --help` lists the options. Exit status of `nfm verify`: 0 if the expansion holds or the bound is certified,
1 if it is refuted, 2 for bad input, 3 if undecided, 70 if the command itself failed. With several layers or scales, the
worst one counts. A status of 0, 1 or 3 comes with a report (0 also with help, version and the list of layers).
"""

from __future__ import annotations

import io
import sys
import traceback
from collections.abc import Callable

from .errors import BAD_INPUT, CRASHED, INTERRUPTED, NO_READER


def main() -> None:
    """Run the command `nfm`."""
    try:
        import typer  # noqa: F401
    except ImportError as error:
        print(f"nfm: typer cannot be imported ({error}). Install it with: pip install typer", file=sys.stderr)
        sys.exit(BAD_INPUT)
    run_command(_nfm)


def _nfm() -> None:
    from .app import app

    app()


def run_command(command: Callable[[], None]) -> None:
    """Run a command. A crash has a status of its own, because Python's own status 1 would read as a verdict.

    Args:
        command: the command, which ends with `sys.exit`.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without Greek letters is no reason to crash
    try:
        command()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        sys.exit(NO_READER)
    except Exception:
        traceback.print_exc()
        sys.exit(CRASHED)
