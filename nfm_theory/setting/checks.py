"""Checks of options that several functions share; each message says what was expected, what came, and the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from .inputs import batch_size, leaves

Name = TypeVar("Name", bound=str)


def near(name: str, names: Iterable[str]) -> str:
    """The names that may have been meant, to be put behind what was given; empty if none is close."""
    matches = difflib.get_close_matches(name, list(names), n=3, cutoff=0.4)
    alike = [difflib.SequenceMatcher(None, match, name).ratio() for match in matches]
    matches = [match for match, ratio in zip(matches, alike, strict=True) if ratio >= 0.75 * alike[0]]
    return f" (did you mean {' or '.join(map(repr, matches))}?)" if matches else ""


def one_of(option: str, value: Name, names: Iterable[str]) -> Name:
    """The value of an option that takes one of a few names.

    Args:
        option: name of the option, for the message.
        value: what was given.
        names: the names that exist.

    Raises:
        ValueError: if the value is none of the names; a similar name is suggested.

    Example:
        >>> one_of("method", "exakt", ("auto", "exact"))
        Traceback (most recent call last):
        ValueError: method: expected one of ['auto', 'exact'], got 'exakt' (did you mean 'exact'?).
    """
    names = list(names)
    if value not in names:
        hint = near(value, names) if isinstance(value, str) else ""
        raise ValueError(f"{option}: expected one of {names}, got {value!r}{hint}.")
    return value


def level(name: str, value: float) -> float:
    """A level of noise or a scale: a finite number that is not negative.

    Raises:
        ValueError: for anything else.
    """
    if not (isinstance(value, (int, float)) and 0 <= value < float("inf")):
        raise ValueError(f"{name}: expected a finite number >= 0, got {value!r}.")
    return float(value)


def checked_partners(partners: Tensor, features: Tensor) -> Tensor:
    """`P(r|i)` in float64 on the device of the features, refused if it is no law."""
    n = len(features)
    if not isinstance(partners, Tensor) or partners.shape != (n, n):
        came = getattr(partners, "shape", partners)
        raise ValueError(f"partners: expected P(r|i) of shape ({n}, {n}), got {came!r}.")
    partners = partners.to(features.device, torch.float64)
    if (partners < 0).any() or not torch.allclose(partners.sum(1), partners.new_ones(n), atol=1e-6):
        raise ValueError("partners: expected non-negative rows that sum to 1.")
    return partners


def checked_lengths(x: Any, y: Any) -> None:
    """Refuse labels that are no tensors, and inputs and labels of different length."""
    if not isinstance(y, Tensor) and not (isinstance(y, (tuple, list)) and all(isinstance(z, Tensor) for z in y)):
        raise TypeError(f"y: expected a tensor of labels, or a pair (labels, weights), got {type(y).__name__}.")
    if any(leaf.is_complex() for leaf in leaves(y)):
        raise TypeError("y: expected real labels, got complex numbers; pass y.real if the imaginary part is 0.")
    counts = [batch_size(x), *(len(z) if z.ndim else 0 for z in leaves(y))]
    if len(set(counts)) > 1:
        raise ValueError(f"x and y: expected the same number of samples, got {' and '.join(map(str, counts))}.")


def check_losses(values: Tensor, n: int) -> None:
    """Refuse losses that are not one finite value for each of n samples."""
    if values.shape != (n,):
        raise ValueError(
            f"loss: expected one value per sample, shape ({n},), got {tuple(values.shape)}; take a mean over positions "
            "but not over samples, or give the loss by its name."
        )
    if not values.isfinite().all():
        raise ValueError(f"loss: {int((~values.isfinite()).sum())} of {n} per-sample losses are not finite.")


def checked_layers(layers: Sequence[str]) -> list[str]:
    """The names of several layers.

    Raises:
        ValueError: if there is none, or a single name that is no sequence.
    """
    if isinstance(layers, str) or not list(layers):
        raise ValueError(f"layers: expected a non-empty sequence of names, got {layers!r}; layer= takes a single one.")
    return list(layers)
