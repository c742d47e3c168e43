"""What the commands share: the console that they print to, and errors in plain words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from nfm_theory.cli.errors import BAD_INPUT, NO_READER, sentence

#: More processes or threads than any machine has; a larger number is a slip.
MOST_PROCESSES = 4096


def wide_console(width: int = 160) -> Console:
    """The terminal. Output to a file or a pipe is `width` columns wide, so that tables are not cut."""
    found = Console()
    return found if found.is_terminal else Console(width=width)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Print errors that a user can put right as a sentence instead of a traceback, and exit with status 2."""
    try:
        yield
    except BrokenPipeError:
        raise typer.Exit(NO_READER) from None
    except (ValueError, OSError) as error:
        typer.echo(f"error: {sentence(error)}", err=True)
        raise typer.Exit(BAD_INPUT) from None
