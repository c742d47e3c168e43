"""The values of options: scales, precision and budget."""

from __future__ import annotations

import math

import torch

from ..verification.effort import Budget
from .errors import UsageError
from .subject import MOST_SAMPLES
from .user_code import told_plainly

_DTYPES = {"float64": torch.float64, "float32": torch.float32}


def parse_scales(text: str | None) -> list[float] | None:
    """Positive numbers, separated by commas; `None` for none."""
    if text is None:
        return None
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(math.isfinite(v) and v > 0 for v in values):
        raise UsageError(f"--eps: expected positive numbers separated by commas, such as 0.1,0.05,0.025, got {text!r}.")
    if len(set(values)) < len(values):
        raise UsageError(f"--eps: expected each scale once, got {text!r}.")
    return values


def parse_dtype(name: str) -> torch.dtype:
    """A precision by its name."""
    if name not in _DTYPES:
        raise UsageError(f"--dtype: expected one of {list(_DTYPES)}, got {name!r}.")
    return _DTYPES[name]


def parse_budget(text: str | None) -> int | str | None:
    """A number of evaluations, or words that the library reads."""
    limit = int(text) if text is not None and text.strip().isdecimal() else text
    with told_plainly():
        Budget.of(limit, MOST_SAMPLES)
    return limit
