"""Weights that were trained elsewhere, for the network of a recipe.

The file is read without running code from it. Keys may have the styles of torchvision, DataParallel, Lightning, timm,
RobustBench and `torch.compile`:

| in the file | here |
|---|---|
| `{"state_dict": ...}`, `{"model": ...}`, `{"net": ...}`, `{"ema": ...}` and the like | the weights inside |
| `module.`, `model.`, `net.`, `_orig_mod.` in front of every key | removed |
| `normalize.mean`, `normalize.std` and other names inside the network | the normalization of the images |
| `shortcut.0.` of a block, `bn1.` of a whole WRN-28, as in the authors' code for CIFAR | `project.`, `bn.` |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..data.integrity import file_hash

#: Keys under which programs store weights, in the order in which they are looked for.
CONTAINERS = (
    "state_dict", "model_state_dict", "model", "net", "network", "params", "weights", "ema", "ema_state_dict",
    "state_dict_ema", "model_ema",
)  # fmt: skip
#: What wrappers put in front of the keys.
PREFIXES = ("module.", "model.", "net.", "network.", "_orig_mod.")
#: Names under which a network holds its own normalization.
MEANS = ("normalize.mean", "normalization.mean", "normalizer.mean", "mean", "mu")
DEVIATIONS = ("normalize.std", "normalization.std", "normalizer.std", "std", "sigma")
#: A counter of BatchNorm, which older files lack. No prediction depends on it.
_COUNTER = "num_batches_tracked"
_SHOWN = 3
#: Names in the authors' code for CIFAR, and ours.
_OTHER_NAMES = ((".shortcut.0.", ".project."), ("bn1.", "bn."))


@dataclass(frozen=True)
class Weights:
    """The weights of a file, under the names that a network gives them.

    Attributes:
        file: name of the file, without its folder.
        sha256: SHA-256 of the file, 64 hexadecimal digits.
        state: tensors by name, without prefixes and without the normalization.
        container: where in the file they were, such as `"state_dict"`; empty for the top.
        mean: mean of each channel for pixels in [0, 1], if the network normalizes its images itself; else empty.
        std: standard deviation of each channel, likewise.
    """

    file: str
    sha256: str
    state: dict[str, Tensor]
    container: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


def read_weights(path: str | Path) -> Weights:
    """Read a file of weights.

    Args:
        path: file that `torch.save` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read without running code from it, or holds no weights.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a file of weights, but there is none.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes may raise anything
        raise ValueError(
            f"{path}: expected a file with nothing but weights, got one that cannot be read as such "
            f"({type(error).__name__}). If it is a whole network, load it with the code that wrote it, and save "
            "`network.state_dict()` with torch.save."
        ) from error
    state, container = _unpacked(content, str(path))
    named = {_plain_name(name): value for name, value in state.items()}
    if len(named) < len(state):
        raise ValueError(f"{path}: expected one set of weights, got several, which differ in the prefix of their keys.")
    mean, std = (_taken(named, names, str(path)) for names in (MEANS, DEVIATIONS))
    if len(mean) != len(std):
        raise ValueError(
            f"{path}: expected mean and standard deviation of a normalization, got {len(mean)} and {len(std)} numbers."
        )
    return Weights(path.name, file_hash(path, "sha256"), named, container, mean, std)


def _is_state(content: object) -> bool:
    return isinstance(content, Mapping) and bool(content) and all(isinstance(v, Tensor) for v in content.values())


def _unpacked(content: object, where: str) -> tuple[dict[str, Tensor], str]:
    """The tensors by name, and the keys of the containers around them."""
    path: list[str] = []
    while isinstance(content, Mapping) and not _is_state(content):
        inner = next((name for name in CONTAINERS if isinstance(content.get(name), Mapping)), None)
        if inner is None:
            keys = ", ".join(repr(key) for key in list(content)[:_SHOWN]) or "nothing"
            raise ValueError(
                f"{where}: expected tensors by name, or them under one of {', '.join(CONTAINERS)}; got {keys}."
            )
        content, path = content[inner], [*path, inner]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{where}: expected tensors by name, got {type(content).__name__}.")
    return dict(content), "/".join(path)


def _plain_name(name: str) -> str:
    """A key without what wrappers put in front of it. `torch.compile` may also have wrapped a part of the network."""
    name = str(name).replace("_orig_mod.", "")
    while prefix := next((one for one in PREFIXES if name.startswith(one)), ""):
        name = name.removeprefix(prefix)
    return name


def _taken(state: dict[str, Tensor], names: tuple[str, ...], where: str) -> tuple[float, ...]:
    """Take a mean or a deviation out of the state, as one number for each channel."""
    found = [state.pop(name) for name in names if name in state]
    if not found:
        return ()
    if len(found) > 1:
        raise ValueError(f"{where}: expected one normalization, got {len(found)} under {', '.join(names)}.")
    return tuple(round(float(value), 6) for value in found[0].flatten())


def load_into(network: nn.Module, weights: Weights) -> nn.Module:
    """Load weights into a network, and put it into evaluation mode without gradients.

    Args:
        network: the network of the recipe.
        weights: the weights.

    Raises:
        ValueError: if names or shapes differ; the message says which are the first.
    """
    whole = network.state_dict()
    state = {_own_name(name, whole): value for name, value in weights.state.items()}
    own = {name: tuple(value.shape) for name, value in whole.items() if not name.endswith(_COUNTER)}
    given = {name: tuple(value.shape) for name, value in state.items() if not name.endswith(_COUNTER)}
    faults = [
        *_listed("missing", [name for name in own if name not in given]),
        *_listed("unknown", [name for name in given if name not in own]),
        *_listed(
            "of another shape",
            [f"{name} {given[name]} instead of {own[name]}" for name in own if given.get(name, own[name]) != own[name]],
        ),
    ]
    if faults:
        raise ValueError(
            f"{weights.file}: expected the weights of {type(network).__name__} with {len(own)} tensors, got "
            f"{len(given)} that do not fit: {'; '.join(faults)}. Take the recipe whose network it is."
        )
    network.load_state_dict(state, strict=False)
    return network.eval().requires_grad_(False)


def _own_name(name: str, own: Mapping[str, Tensor]) -> str:
    """The name that our network has for a tensor; the name itself if that is ours, or nothing like it is."""
    others = (name.replace(theirs, ours, 1) for theirs, ours in _OTHER_NAMES if theirs in name)
    return name if name in own else next((other for other in others if other in own), name)


def _listed(what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return [f"{what}: {', '.join(names[:_SHOWN])}{more}"]
