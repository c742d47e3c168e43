"""The console that commands print to."""

from rich.console import Console


def wide_console(width: int = 160) -> Console:
    """The terminal. Output to a file or a pipe is `width` columns wide, so that tables are not cut.

    Args:
        width: number of columns without a terminal.
    """
    found = Console()
    return found if found.is_terminal else Console(width=width)
