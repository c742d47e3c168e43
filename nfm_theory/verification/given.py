"""Terms that the user gives to `verify`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..setting.problem import Problem
from ..setting.results import SECOND_ORDER, TaylorTerms


def given_terms(
    given: TaylorTerms | Callable[[Sequence[Problem]], TaylorTerms], problems: Sequence[Problem]
) -> TaylorTerms:
    """The terms that were given, or that the given function computes, with numbers as 0-dim tensors.

    Raises:
        TypeError: if they are not `TaylorTerms`, or one is not a number.
        ValueError: if one is not a single finite number.
    """
    terms = given(problems) if not isinstance(given, TaylorTerms) and callable(given) else given
    if not isinstance(terms, TaylorTerms):
        raise TypeError(
            f"terms: expected TaylorTerms, or a function that takes a list of problems and returns them, got "
            f"{type(terms).__name__}. nfm_theory.terms(problem) computes them; dataclasses.replace changes one."
        )
    return replace(terms, **{name: _number(name, terms[name]) for name in _named(terms)})


def _named(terms: TaylorTerms) -> list[str]:
    return ["standard", "R1", *SECOND_ORDER, *(["C3"] if terms.C3 is not None else [])]


def _number(name: str, value: object) -> Tensor:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = torch.tensor(value, dtype=torch.float64)
    if not isinstance(value, Tensor):
        raise TypeError(f"terms.{name}: expected a number or a tensor, got {type(value).__name__}.")
    if value.numel() != 1:
        raise ValueError(
            f"terms.{name}: expected one number, the mean over the samples, got a tensor of shape {tuple(value.shape)}."
        )
    if not math.isfinite(float(value.detach())):
        raise ValueError(f"terms.{name}: expected a finite number, got {float(value.detach())}.")
    return (value if value.is_floating_point() else value.double()).reshape(())
