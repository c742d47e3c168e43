"""Exit statuses of the command, and the error that becomes a sentence for its user."""

#: The verdict is the exit status. 70 is the usual number for an error inside a program.
HOLDS, REFUTED, BAD_INPUT, UNDECIDED, CRASHED = 0, 1, 2, 3, 70


class UsageError(Exception):
    """A mistake that the user can correct. The message says what was expected and what came."""
