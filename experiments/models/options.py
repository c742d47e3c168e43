"""Checks of the options that several networks have."""

from __future__ import annotations


def check_sizes(**sizes: int) -> None:
    """Refuse every size, given by the name of its option, that is not a whole number of at least 1."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{name}: expected a whole number >= 1, got {size!r}.")


def check_dropout(rate: float) -> None:
    """Refuse a dropout rate outside [0, 1)."""
    if not 0 <= rate < 1:
        raise ValueError(f"dropout: expected a rate in [0, 1), got {rate!r}.")
