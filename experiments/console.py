"""Where commands print."""

from rich.console import Console


def wide_console(width: int = 160) -> Console:
    """The terminal; in a file or a pipe, `width` columns, so that lines are not cut to a terminal that is not there.

    Args:
        width: columns without a terminal.
    """
    found = Console()
    return found if found.is_terminal else Console(width=width)
