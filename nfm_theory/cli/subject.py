"""What the user of the command names: a factory by its Python path, weights, data.

Everything a user can get wrong becomes a `UsageError` that says what was expected, what came and the way out.
"""

from __future__ import annotations

import importlib
import importlib.util
import pickle
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .errors import UsageError

#: Samples that are used unless the user says otherwise. The cost grows with the square of their number.
MOST_SAMPLES = 100
#: What `--model` takes.
FACTORY = "path/to/file.py:factory or package.module:factory"


@dataclass(frozen=True)
class Subject:
    """What is verified.

    Attributes:
        model: the network, in eval mode.
        x: inputs.
        y: targets.
        model_name: what the user called the network.
        data_name: what the user called the data.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    model_name: str
    data_name: str


def _find_first(folder: Path) -> None:
    """Let imports look into a folder first, as Python does for a script in it; an installed command does not."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _import_module(place: str) -> ModuleType:
    if place.endswith(".py"):
        path = Path(place)
        if not path.is_file():
            raise UsageError(f"--model: no such file: {place}. Expected path/to/file.py:factory.")
        spec = importlib.util.spec_from_file_location(f"nfm_user_{path.stem}", path)
        if spec is None or spec.loader is None:
            raise UsageError(f"--model: {place} cannot be read as a Python file.")
        module = importlib.util.module_from_spec(spec)
        _find_first(path.resolve().parent)
        sys.modules[spec.name] = module  # dataclasses and pickle look their module up here
        spec.loader.exec_module(module)
        return module
    _find_first(Path.cwd())
    return importlib.import_module(place)


def load_factory(path: str) -> Any:
    """Import what `path/to/file.py:name` or `package.module:name` names.

    Args:
        path: file or module, a colon, and the name of the factory in it.

    Raises:
        UsageError: if there is no such thing, or importing it fails.
    """
    place, _, name = path.rpartition(":")
    if not place or not name:
        raise UsageError(f"--model: expected {FACTORY}, got {path!r}.")
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


def _load_tensors(option: str, path: Path) -> Any:
    """Load a file of tensors without running any code from it."""
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
    """Load weights from a file into a model.

    Args:
        model: the network.
        path: a file of `torch.save(model.state_dict(), path)`, or of a dictionary with the key `state_dict`.

    Raises:
        UsageError: if the file cannot be read or does not fit the model.
    """
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
    """Load `x` and `y` from an .npz file (arrays `x`, `y`) or from a .pt file (dictionary or pair of tensors).

    Args:
        path: the file.

    Raises:
        UsageError: if the file cannot be read or has no `x` and `y`.
    """
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
        raise UsageError(f"--data: expected a file .npz, .pt or .pth, got {path}.")
    if not isinstance(content, dict) or not all(isinstance(content.get(k), Tensor) for k in "xy"):
        raise UsageError(f"--data: expected tensors named x and y in {path}.")
    return content["x"], content["y"]


def _as(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert inputs or targets to a precision; labels stay integers."""
    return values.to(dtype) if values.is_floating_point() else values.long()


def default_loss(subject: Subject) -> str:
    """Choose the loss that the shapes of outputs and targets suggest.

    Args:
        subject: the network and its data.
    """
    try:
        with torch.no_grad():
            outputs = subject.model(subject.x[:1])
    except Exception:  # what is wrong with the network is said by the check itself, which knows the layer
        return "cross_entropy"
    one_logit = isinstance(outputs, Tensor) and outputs.ndim == 2 and outputs.shape[1] == 1
    return "logistic" if one_logit and not subject.y.is_floating_point() else "cross_entropy"


def load_subject(
    model: str | None,
    *,
    state_dict: Path | None,
    data: Path | None,
    num_samples: int | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Subject:
    """Load everything that the options name, in one precision and on one device.

    Args:
        model: path of the factory.
        state_dict: file of weights, if any.
        data: file of data; `None` for those of the factory.
        num_samples: number of samples; `None` for at most `MOST_SAMPLES`.
        dtype: precision of model and inputs.
        device: where both go.

    Raises:
        UsageError: if anything cannot be loaded or does not fit.
    """
    if model is None:
        raise UsageError(f"--model: name the network to verify: {FACTORY}. It returns an nn.Module or (model, x, y).")
    if num_samples is not None and num_samples < 1:
        raise UsageError(f"--num-samples: expected at least 1, got {num_samples}.")
    network, own = _call_factory(model)
    if state_dict is not None:
        load_state(network, state_dict)
    if data is not None:
        x, y = load_data(data)
    elif own is not None:
        x, y = own
    else:
        raise UsageError(
            f"--data: {model} returns no data. Give a file .npz, .pt or .pth with x and y, or let the factory return "
            "(model, x, y)."
        )
    if not isinstance(x, Tensor) or not isinstance(y, Tensor) or not x.ndim or not y.ndim:
        raise UsageError("data: expected tensors x (n, *input) and y (n, ...), got something else.")
    x, y = (part[: num_samples or MOST_SAMPLES] for part in (x, y))
    try:
        network = network.to(device, dtype).eval()
        x, y = x.to(device, dtype), _as(y, dtype).to(device)
    except (RuntimeError, TypeError) as error:
        raise UsageError(f"model or data do not go to {device}, {dtype}: {error}") from error
    return Subject(network, x, y, model, str(data) if data is not None else f"{model} (its own)")
