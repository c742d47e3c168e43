"""How many standard errors a difference must exceed, also if the standard error itself comes from a few draws."""

from __future__ import annotations

from functools import lru_cache

#: Standard errors that sampling may explain, if they are known well.
STDERRS = 5.0


@lru_cache
def certain(degrees: int) -> float:
    """The quantile of Student's law with the tail of `STDERRS` standard errors of the normal law.

    Args:
        degrees: degrees of freedom of the standard error, ≥ 1.

    Example:
        >>> round(certain(4)), round(certain(10_000), 2)
        (57, 5.0)
    """
    from scipy.special import ndtr, stdtrit  # `scipy.stats` has them too, but takes a second to import

    return -float(stdtrit(max(degrees, 1), ndtr(-STDERRS)))
