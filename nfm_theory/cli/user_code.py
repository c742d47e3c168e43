"""Running what the user wrote: a factory, the import of its module, the forward pass of the network.

Such code may raise anything and may try to end the program. Both become a `UsageError`, because an exit status belongs
to a report. The lines of the user's own code are shown with it.
"""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import numpy
import torch

import nfm_theory as nt

from .errors import UsageError, sentence

_OURS = Path(nt.__path__[0]).resolve()
#: Code that is neither ours nor the user's.
_BETWEEN = [Path(module.__path__[0]).resolve() for module in (torch, numpy)]
_STANDARD = Path(sysconfig.get_path("stdlib")).resolve()
#: What the library advises, and the option of the command for it.
_IN_PYTHON, _IN_THE_SHELL = "layer_names(model) lists", "nfm verify --list-layers lists"
#: What the library raises about its arguments.
_ABOUT_ARGUMENTS = (ValueError, TypeError, RuntimeError, NotImplementedError, MemoryError)


@contextmanager
def user_code(what: str) -> Iterator[None]:
    """Turn everything that the user's code raises into a sentence. Only Ctrl-C passes.

    Args:
        what: what is being run, as the beginning of a sentence.

    Raises:
        UsageError: if the code raises an error or ends the program.
    """
    try:
        yield
    except (UsageError, KeyboardInterrupt):
        raise
    except SystemExit as stop:
        raise _ended(what, stop) from stop
    except BaseException as error:
        raise UsageError(f"{what} raised {_words(error)}", _place(error)) from error


@contextmanager
def told_plainly() -> Iterator[None]:
    """Turn what the library says about its arguments, and what the network raises, into a sentence for the user.

    Raises:
        UsageError: about an argument, or about the network.
    """
    try:
        yield
    except (UsageError, KeyboardInterrupt):
        raise
    except SystemExit as stop:
        raise _ended("the network", stop) from stop
    except BaseException as error:
        if place := _place(error):
            raise UsageError(f"the network raised {_words(error)}", place) from error
        if not isinstance(error, _ABOUT_ARGUMENTS):
            raise
        cause = error.__cause__
        if cause is not None and (place := _place(cause)):
            raise UsageError(f"the network raised {_words(cause)}. {sentence(error)}", place) from error
        raise UsageError(sentence(error).replace(_IN_PYTHON, _IN_THE_SHELL)) from error


def _ended(what: str, stop: SystemExit) -> UsageError:
    return UsageError(
        f"{what} tried to end the program with the exit status {stop.code!r}, so nothing was verified; remove the call "
        "of exit, or put it under `if __name__ == '__main__':`.",
        _place(stop),
    )


def _words(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _owner(filename: str) -> str:
    """Whose code a file is: "ours", "user", or "" for Python, PyTorch and NumPy."""
    if filename.startswith("<frozen"):
        return ""
    path = Path(filename).resolve()
    if path.is_relative_to(_OURS):
        return "ours"
    standard = path.is_relative_to(_STANDARD) and not {"site-packages", "dist-packages"} & set(path.parts)
    return "" if standard or any(path.is_relative_to(folder) for folder in _BETWEEN) else "user"


def _is_users(trace: TracebackType | None) -> bool:
    """True if the innermost line that is ours or the user's is the user's."""
    owners = [owner for frame in traceback.extract_tb(trace) if (owner := _owner(frame.filename))]
    return bool(owners) and owners[-1] == "user"


def _place(error: BaseException) -> str:
    """The lines of the user's code from which an error came, or nothing if it came from elsewhere."""
    if not _is_users(error.__traceback__):
        return ""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _owner(frame.filename) == "user"]
    return "".join(traceback.format_list(frames)).rstrip()
