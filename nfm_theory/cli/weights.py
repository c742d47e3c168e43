"""Weights from a file, as trainers save them: plain, inside a checkpoint, or under the names of a wrapped network.

A file is used only if it can be told which tensor belongs to which parameter, and if its values can be weights.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .errors import UsageError
from .user_code import user_code

#: What wrappers put into the names of the parameters below them: torch.compile, checkpointing and FSDP.
_WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.")
#: Where trainers put the weights in a checkpoint, the usual place first.
_PLACES = ("state_dict", "model_state_dict", "model")
#: Beside the weights in `torch.optim.swa_utils.AveragedModel`.
_COUNTERS = {"n_averaged"}
#: No trained weight is as large; a flipped bit in an exponent makes such values.
_HUGE = 1e15


def load_tensors(option: str, path: Path) -> Any:
    """Load a file of tensors without running any code from it.

    Args:
        option: the option that names the file.
        path: a file of `torch.save`.

    Raises:
        UsageError: if there is no such file, if it is damaged, or if it holds more than tensors.
    """
    if not path.is_file():
        kind = "expected a file, got something else" if path.exists() else "no such file"
        raise UsageError(f"{option}: {kind}: {path}.")
    _check_bytes(option, path)
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise UsageError(
            f"{option}: {path} holds more than tensors (or is no file of torch.save), and loading objects would run "
            "their code. Expected what torch.save(model.state_dict(), path) writes, or a dict of tensors."
        ) from error
    except Exception as error:
        raise UsageError(
            f"{option}: {path} cannot be read; expected a file that torch.save has written "
            f"({type(error).__name__}: {error})."
        ) from error


def _check_bytes(option: str, path: Path) -> None:
    """Compare the checksums in the file with its bytes, which `torch.load` does not do."""
    try:
        if not zipfile.is_zipfile(path):
            return  # the format of old versions has no checksums
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # damaged bytes may raise anything
        damaged = f"{type(error).__name__}: {error}"
    if damaged is not None:
        raise UsageError(f"{option}: {path} is damaged: its checksums do not fit ({damaged}). Copy or save it again.")


@dataclass(frozen=True)
class _Found:
    """Weights in a file that have all names of the model.

    Attributes:
        place: keys that lead to them; empty at the top of the file.
        prefix: what stands in front of each name.
        weights: the tensors under the names of the model.
        others: names of the other tensors there.
    """

    place: str
    prefix: str
    weights: dict[str, Any]
    others: list[str]


def load_state(model: nn.Module, path: Path) -> list[str]:
    """Load weights from a file into a model.

    The file may hold the weights under a key, as a checkpoint of a trainer does, and the names may have a prefix, as
    those of a wrapped network do (`module.`, `_orig_mod.`, `model.`).

    Args:
        model: the network.
        path: a file of `torch.save`.

    Returns:
        One sentence for everything that was done to the file's content.

    Raises:
        UsageError: if the file cannot be read, does not fit the model, or has values that cannot be weights.
    """
    content = load_tensors("--state-dict", path)
    if not isinstance(content, dict):
        raise UsageError(f"--state-dict: expected a dict of tensors in {path}, got {type(content).__name__}.")
    with user_code("--state-dict: the network's own state_dict"):
        own = dict(model.state_dict())
    found = list(_fitting(content, list(own)))
    if not found:
        raise _unfitting(path, content, own)
    chosen = _choose(found, path)
    is_lightning = "pytorch-lightning_version" in content
    left = [name for name in chosen.others if name not in _COUNTERS]
    if left and not is_lightning:
        raise UsageError(
            f"--state-dict: {path} does not fit the model: it has {len(left)} tensors that the model has not, such as "
            f"{left[0]!r}. If they belong to something else, strip them and save the weights of the model alone."
        )
    _check_values(path, chosen.weights, own, {name for name, _ in model.named_parameters()})
    _load(model, path, chosen.weights)
    return _notes(chosen, found, left)


def _load(model: nn.Module, path: Path, weights: dict) -> None:
    try:
        with user_code("--state-dict: loading the weights"):
            model.load_state_dict(weights)
    except UsageError as error:
        if not isinstance(error.__cause__, RuntimeError):
            raise
        raise UsageError(f"--state-dict: {path} does not fit the model: {error.__cause__}") from error


def _dicts(content: dict, place: str = "", depth: int = 2) -> Iterator[tuple[str, dict]]:
    """All dictionaries with names as keys, from the top to two levels below, with the keys that lead there."""
    if content and all(isinstance(key, str) for key in content):
        yield place, content
        for key, value in content.items():
            if isinstance(value, dict) and depth:
                yield from _dicts(value, f"{place}/{key}" if place else key, depth - 1)


def _unwrapped(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def _fitting(content: dict, names: list[str]) -> Iterator[_Found]:
    """Everything in the file that has all names of the model, with the same prefix."""
    plain = {_unwrapped(name): name for name in names}
    for place, held in _dicts(content):
        if not names:
            yield _Found(place, "", {}, [key for key, value in held.items() if isinstance(value, Tensor)])
            continue
        known = {_unwrapped(key): key for key in held}
        first = min(plain, key=len)
        ends = [key for key in known if key == first or key.endswith("." + first)]
        for prefix in sorted((key[: len(key) - len(first)] for key in ends), key=len):
            if all(prefix + name in known for name in plain):
                used = {known[prefix + name]: original for name, original in plain.items()}
                weights = {original: held[key] for key, original in used.items()}
                others = [key for key, value in held.items() if key not in used and isinstance(value, Tensor)]
                yield _Found(place, prefix, weights, others)


def _choose(found: list[_Found], path: Path) -> _Found:
    """The only weights that fit, or those in the usual place."""
    for place in ("", *_PLACES):
        there = [one for one in found if one.place == place]
        exact = [one for one in there if not one.prefix]
        if len(exact or there) == 1:
            return (exact or there)[0]
        if there:
            break
    if len(found) == 1:
        return found[0]
    listed = ", ".join(f"{one.place}: {one.prefix}*".removeprefix(": ") for one in found)
    raise UsageError(
        f"--state-dict: {path} has several sets of weights with the names of the model, under the keys and prefixes "
        f"{listed}. Save the one that you mean alone, by its plain names."
    )


def _notes(chosen: _Found, found: list[_Found], left: list[str]) -> list[str]:
    notes = []
    if chosen.place:
        notes.append(f"the weights are those under the key {chosen.place!r}")
    if chosen.prefix:
        notes.append(f"the names had the prefix {chosen.prefix!r}, which was taken off")
    if left:
        notes.append(f"left out {len(left)} tensors that the model has not, such as {left[0]!r}")
    others = sorted({one.place for one in found if one.place != chosen.place})
    if others:
        notes.append(f"the file has other weights that would fit, under {', '.join(map(repr, others))}")
    return notes


def _check_values(path: Path, weights: dict[str, Any], own: dict[str, Any], parameters: set[str]) -> None:
    for name, value in weights.items():
        expected = own[name]
        if not isinstance(expected, Tensor):
            continue  # the extra state of a module
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_nested or value.is_quantized:
            kind = f"a {value.layout} tensor" if isinstance(value, Tensor) else type(value).__name__
            raise UsageError(f"--state-dict: expected plain tensors in {path}, got {kind} for {name!r}.")
        if (value.is_floating_point(), value.is_complex()) != (expected.is_floating_point(), expected.is_complex()):
            raise UsageError(
                f"--state-dict: expected {expected.dtype} for {name!r}, got {value.dtype} in {path}; converting it "
                "would change the numbers."
            )
        if not is_lazy(expected) and value.shape != expected.shape:
            raise UsageError(
                f"--state-dict: {path} does not fit the model: size mismatch for {name!r}, expected "
                f"{tuple(expected.shape)}, got {tuple(value.shape)}."
            )
        if name in parameters and (value.is_floating_point() or value.is_complex()) and not value.is_meta:
            size = value.detach().abs().to(torch.float64)
            wrong = int((~(size < _HUGE)).sum())
            if wrong:
                raise UsageError(
                    f"--state-dict: expected weights that are finite and below {_HUGE:g}, but {wrong} values of "
                    f"{name!r} in {path} are not; the training diverged, or the file is damaged."
                )


def _unfitting(path: Path, content: dict, own: dict) -> UsageError:
    """Which names the file lacks, and which it has instead."""
    place, held = max(_dicts(content), key=lambda found: len(found[1].keys() & own.keys()), default=("", content))
    if not any(isinstance(value, Tensor) for value in held.values()):
        keys = ", ".join(repr(key) for key in list(content)[:8])
        return UsageError(
            f"--state-dict: {path} does not fit the model: no weights were found inside; its keys are {keys}. "
            "Expected what torch.save(model.state_dict(), path) writes."
        )
    missing = [name for name in own if name not in held]
    unknown = [name for name in held if name not in own]
    where = f"under the key {place!r} it" if place else "it"
    return UsageError(
        f"--state-dict: {path} does not fit the model: {where} lacks {len(missing)} of the model's {len(own)} names "
        f"({_some(missing)}) and has {len(unknown)} others ({_some(unknown)}). Rename them, or save "
        "model.state_dict() of this very network."
    )


def _some(names: list[str]) -> str:
    return "none" if not names else ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")
