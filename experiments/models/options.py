"""Checks that the constructors of this folder share."""

from __future__ import annotations


def check_sizes(**sizes: int) -> None:
    """Refuse what is no size of anything.

    Args:
        **sizes: by the name of the option.
    """
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{name}: expected a whole number >= 1, got {size!r}.")


def check_dropout(rate: float) -> None:
    """Refuse what is no rate of dropout.

    Args:
        rate: share of elements that are dropped.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"dropout: expected a rate in [0, 1), got {rate!r}.")
