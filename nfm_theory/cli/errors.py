"""Exit statuses of the commands, and the error that becomes a sentence for their user."""

from __future__ import annotations

#: The verdict is the exit status. 70 is the usual number for an error inside a program, 128 + n for the signal n.
HOLDS, REFUTED, BAD_INPUT, UNDECIDED, CRASHED, INTERRUPTED, NO_READER = 0, 1, 2, 3, 70, 130, 141


class UsageError(Exception):
    """A mistake that the user can correct. The message says what was expected and what came.

    Args:
        message: the sentence.
        place: the lines of the user's own code in which it happened, if any.
    """

    def __init__(self, message: str, place: str = ""):
        super().__init__(message)
        self.place = place


def sentence(error: BaseException) -> str:
    """What an error says, in words for a user.

    Args:
        error: an error about files or input.
    """
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}."
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}."
    return str(error).strip() or type(error).__name__
