"""What a user of the command may name: built-in networks, factories by Python path, weights, data.

Everything a user can get wrong becomes a `UsageError` that says what was expected, what came and the way out.
"""

from __future__ import annotations

import importlib
import importlib.util
import pickle
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .data.digits import CLASSES, load_digits, verification_subset
from .models.small import MODELS
from .studies.networks import trained_network

#: Samples that are verified unless the user says otherwise: the cost grows with their square.
DEFAULT_SAMPLES, MOST_SAMPLES = 10, 100


class UsageError(Exception):
    """Something that the user can put right."""


@dataclass(frozen=True)
class Subject:
    """What is verified: a model in eval mode, its data, and their names."""

    model: nn.Module
    x: Tensor
    y: Tensor
    model_name: str
    data_name: str
    loss: str | None = None


def _import_module(place: str):
    if place.endswith(".py"):
        path = Path(place)
        if not path.is_file():
            raise UsageError(f"--model: no such file: {place}. Expected path/to/file.py:factory.")
        spec = importlib.util.spec_from_file_location(f"nfm_user_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses and pickle look their module up here
        spec.loader.exec_module(module)
        return module
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as `python -m` does; a console script does not
    return importlib.import_module(place)


def load_factory(path: str):
    """What `path/to/file.py:name` or `package.module:name` names."""
    place, _, name = path.rpartition(":")
    if not place or not name:
        raise UsageError(
            f"--model: expected one of {sorted(MODELS)}, path/to/file.py:factory or package.module:factory, "
            f"got {path!r}."
        )
    try:
        module = _import_module(place)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"--model: importing {place} raised {type(error).__name__}: {error}") from error
    if not hasattr(module, name):
        found = sorted(k for k, v in vars(module).items() if callable(v) and not k.startswith("_"))
        raise UsageError(f"--model: {place} has no {name!r}; it has {found}.")
    return getattr(module, name)


def _call_factory(path: str) -> tuple[nn.Module, tuple[Tensor, Tensor] | None]:
    factory = load_factory(path)
    try:
        made = factory if isinstance(factory, nn.Module) else factory()
    except Exception as error:
        raise UsageError(f"--model: {path} raised {type(error).__name__}: {error}") from error
    data = None
    if isinstance(made, tuple) and len(made) == 3:
        made, *data = made
    if not isinstance(made, nn.Module):
        raise UsageError(
            f"--model: expected {path} to return an nn.Module or (model, x, y), got {type(made).__name__}."
        )
    return made, None if data is None else tuple(data)


def _load_tensors(option: str, path: Path):
    """`torch.load` that runs no code from the file."""
    if not path.is_file():
        raise UsageError(f"{option}: no such file: {path}.")
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise UsageError(
            f"{option}: {path} holds more than tensors (or is no file of torch.save), and loading objects would run "
            "their code. Expected what torch.save(model.state_dict(), path) writes, or a dict of tensors."
        ) from error
    except Exception as error:
        raise UsageError(f"{option}: {path} cannot be read ({type(error).__name__}: {error}).") from error


def load_state(model: nn.Module, path: Path) -> None:
    """Put the weights of a file into a model."""
    content = _load_tensors("--state-dict", path)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise UsageError(f"--state-dict: expected a dict of tensors in {path}, got {type(content).__name__}.")
    try:
        model.load_state_dict(content)
    except Exception as error:
        raise UsageError(f"--state-dict: {path} does not fit the model: {error}") from error


def load_data(path: Path) -> tuple[Tensor, Tensor]:
    """`x` and `y` of an .npz file (arrays `x`, `y`) or of a .pt file (dict or pair of tensors)."""
    if path.suffix == ".npz":
        if not path.is_file():
            raise UsageError(f"--data: no such file: {path}.")
        try:
            with np.load(path, allow_pickle=False) as arrays:
                content = {name: torch.from_numpy(arrays[name]) for name in ("x", "y") if name in arrays}
        except Exception as error:
            raise UsageError(f"--data: {path} cannot be read ({type(error).__name__}: {error}).") from error
    elif path.suffix in (".pt", ".pth"):
        content = _load_tensors("--data", path)
        if isinstance(content, (tuple, list)) and len(content) == 2:
            content = dict(zip("xy", content, strict=True))
    else:
        raise UsageError(f"--data: expected 'digits', 'digits-vectors' or a file .npz, .pt or .pth, got {path}.")
    if not isinstance(content, dict) or not all(isinstance(content.get(k), Tensor) for k in "xy"):
        raise UsageError(f"--data: expected tensors named x and y in {path}.")
    return content["x"], content["y"]


def _as(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Labels keep being indices if they were."""
    return values.to(dtype) if values.is_floating_point() else values.long()


def load_subject(
    model: str,
    *,
    state_dict: Path | None,
    data: str | None,
    classes: int,
    num_samples: int | None,
    seed: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Subject:
    """Everything that the options name, on one device and in one precision."""
    if classes not in CLASSES:
        raise UsageError(f"--classes: expected one of {CLASSES} (the digits' tasks), got {classes}.")
    if num_samples is not None and num_samples < 1:
        raise UsageError(f"--num-samples: expected at least 1, got {num_samples}.")
    own = None
    if model in MODELS:
        network = trained_network(model, classes, seed).model
        data = data or "digits"
    else:
        network, own = _call_factory(model)
    if state_dict is not None:
        load_state(network, state_dict)

    loss = None
    if data in ("digits", "digits-vectors") or (data is None and own is None):
        digits = load_digits(classes, images=data != "digits-vectors")
        try:
            x, y = verification_subset(digits, num_samples or DEFAULT_SAMPLES)
        except ValueError as error:
            raise UsageError(f"--num-samples: {error}") from error
        data, loss = data or "digits", digits.loss
    else:
        x, y = own if data is None else load_data(Path(data))
        if not isinstance(x, Tensor) or not isinstance(y, Tensor) or not x.ndim or not y.ndim:
            raise UsageError("data: expected tensors x (n, *input) and y (n, ...), got something else.")
        x, y = (part[: num_samples or MOST_SAMPLES] for part in (x, y))
        data = data or f"{model} (its own)"
    try:
        network = network.to(device, dtype).eval()
        return Subject(network, x.to(device, dtype), _as(y, dtype).to(device), model, data, loss)
    except (RuntimeError, TypeError) as error:
        raise UsageError(f"model or data do not go to {device}, {dtype}: {error}") from error
