"""What the user of the command names: a factory by its Python path, weights, data.

Everything a user can get wrong becomes a `UsageError` that says what was expected, what came and the way out.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .errors import UsageError
from .user_code import user_code
from .weights import load_state, load_tensors

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
        notes: what was done to the weights of the file, one sentence each.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    model_name: str
    data_name: str
    notes: tuple[str, ...] = ()


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
    with user_code(f"--model: importing {place}"):
        module = _import_module(place)
        known = hasattr(module, name)
    if not known:
        found = sorted(k for k, v in vars(module).items() if callable(v) and not k.startswith("_"))
        raise UsageError(f"--model: {place} has no {name!r}; it has {found}.")
    return getattr(module, name)


def _call_factory(path: str) -> tuple[nn.Module, tuple[Any, Any] | None]:
    factory = load_factory(path)
    with user_code(f"--model: {path}"):
        made = factory if isinstance(factory, nn.Module) else factory()
    data = None
    if isinstance(made, tuple) and len(made) == 3:
        made, *data = made
    if not isinstance(made, nn.Module):
        raise UsageError(
            f"--model: expected {path} to return an nn.Module or (model, x, y), got {type(made).__name__}."
        )
    return made, None if data is None else tuple(data)


def load_data(path: Path) -> tuple[Tensor, Tensor]:
    """Load `x` and `y` from an .npz file (arrays `x`, `y`) or from a .pt file (dictionary or pair of tensors).

    Args:
        path: the file.

    Raises:
        UsageError: if the file cannot be read or has no `x` and `y`.
    """
    if path.suffix == ".npz":
        if not path.is_file():
            kind = "expected a file, got something else" if path.exists() else "no such file"
            raise UsageError(f"--data: {kind}: {path}.")
        try:
            with np.load(path, allow_pickle=False) as arrays:
                content = {name: torch.from_numpy(arrays[name]) if name in ("x", "y") else "" for name in arrays}
        except Exception as error:
            raise UsageError(
                f"--data: {path} cannot be read; expected what np.savez(path, x=..., y=...) writes "
                f"({type(error).__name__}: {error})."
            ) from error
    elif path.suffix in (".pt", ".pth"):
        content = load_tensors("--data", path)
        if isinstance(content, (tuple, list)) and len(content) == 2:
            content = dict(zip("xy", content, strict=True))
    else:
        raise UsageError(f"--data: expected a file .npz, .pt or .pth, got {path}.")
    names = content if isinstance(content, dict) else {}
    x, y = names.get("x"), names.get("y")
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        return x, y
    other = [f"{k} of type {type(names[k]).__name__}" for k in "xy" if k in names and not isinstance(names[k], Tensor)]
    came = ", ".join(other or map(str, names)) or f"a {type(content).__name__}"
    raise UsageError(f"--data: expected a file with tensors named x and y, got {path} with {came}.")


def _real_tensor(name: str, values: object) -> Tensor:
    """Samples or targets, unless they are no dense real tensor, which a conversion would change or fail on."""
    if not isinstance(values, Tensor):
        raise UsageError(
            f"data: expected tensors x (n, *input) and y (n, ...), got {type(values).__name__} for {name}; "
            f"torch.as_tensor({name}) makes one."
        )
    kinds = {
        "nested": values.is_nested, "sparse": values.layout != torch.strided, "quantized": values.is_quantized,
        "complex": values.is_complex(), "meta": values.is_meta,
    }  # fmt: skip
    for kind, came in kinds.items():
        if came:
            raise UsageError(f"data: expected dense tensors of real numbers, got a {kind} tensor for {name}.")
    if values.ndim == 0 or len(values) == 0:
        shape = tuple(values.shape)
        raise UsageError(f"data: expected tensors x (n, *input) and y (n, ...), got shape {shape} for {name}.")
    return values.detach()


def _as(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert inputs or targets to a precision; labels stay integers."""
    return values.to(dtype) if values.is_floating_point() else values.long()


def _samples_note(given: int, wanted: int | None) -> list[str]:
    """What the user should know about the number of samples."""
    if wanted is not None and wanted > given:
        return [f"--num-samples {wanted}: the data have {given} samples; all of them are used"]
    if wanted is None and given > MOST_SAMPLES:
        return [f"the first {MOST_SAMPLES} of {given} samples are used; --num-samples takes another number"]
    return []


def default_loss(subject: Subject) -> str:
    """Choose the loss that the shapes of outputs and targets suggest.

    Args:
        subject: the network and its data.
    """
    try:
        with torch.no_grad(), user_code("the network"):
            outputs = subject.model(subject.x[:1])
    except UsageError:  # what is wrong with the network is said by the check itself, which knows the layer
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
    notes = [] if state_dict is None else [f"{state_dict}: {note}" for note in load_state(network, state_dict)]
    if data is not None:
        x, y = load_data(data)
    elif own is not None:
        x, y = own
    else:
        raise UsageError(
            f"--data: {model} returns no data. Give a file .npz, .pt or .pth with x and y, or let the factory return "
            "(model, x, y)."
        )
    x, y = _real_tensor("x", x), _real_tensor("y", y)
    if len(x) != len(y):
        raise UsageError(f"data: expected a target for each input, got {len(x)} inputs and {len(y)} targets.")
    notes += _samples_note(len(x), num_samples)
    x, y = (part[: num_samples or MOST_SAMPLES] for part in (x, y))
    with user_code(f"moving the model and the data to {device}, {dtype}"):
        network = network.to(device, dtype).eval()
        x, y = x.to(device, dtype), _as(y, dtype).to(device)
    return Subject(network, x, y, model, str(data) if data is not None else f"{model} (its own)", tuple(notes))
