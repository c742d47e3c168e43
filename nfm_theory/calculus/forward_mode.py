"""`torch.func.jvp`, whose first use is silent.

At its first use PyTorch loads the decompositions of forward mode by a deprecated call, which takes a fifth of a second
and fails under `-W error`. They are loaded here when a derivative is first asked for, and not when the package is
imported.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache

import torch

from ..setting.ambient import taking_turns


@cache
def _load_decompositions() -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")  # the category changed in PyTorch 2.14
        torch.func.jvp(torch.sin, (torch.zeros(()),), (torch.ones(()),))


def jvp(function: Callable, primals: tuple, tangents: tuple) -> tuple:
    """Value and derivative of a function along tangents: the same numbers that `torch.func.jvp` gives."""
    with taking_turns():  # the levels of forward mode are those of the whole process
        _load_decompositions()
        return torch.func.jvp(function, primals, tangents)[:2]
