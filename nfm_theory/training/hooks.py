"""Hooks that last as long as a training: on the right modules, seen by the compiler, and not copied."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

import torch
from torch import nn

from ..setting.checks import near
from ..setting.network import Network, plain_name


def uncompiled(function: Callable) -> Callable:
    """Keep a function out of compiled graphs, without loading the compiler where nothing is compiled.

    A compiled model leaves its graph at the function and comes back behind it.

    Args:
        function: what runs eagerly.
    """

    @functools.wraps(function)
    def eager(*args, **kwargs):
        if "torch._dynamo" not in sys.modules:
            return function(*args, **kwargs)
        return torch.compiler.disable(function)(*args, **kwargs)

    eager._torchdynamo_disable = True
    return eager


class Hook:
    """A forward hook or pre-hook that calls `action(*output)`.

    It does not survive copying: a copy of the model (an average of its weights, say) must not act as the model.

    Args:
        action: called with the output of the module, or without arguments as a pre-hook; `None` for no action.
    """

    def __init__(self, action: Callable | None = None):
        self.action = action

    @uncompiled  # draws and state are not for the compiler
    def __call__(self, module, args, *output):
        """What PyTorch calls; see `nn.Module.register_forward_hook`."""
        return None if self.action is None else self.action(*output)

    def __reduce__(self):
        return Hook, ()


def unwrap(model: nn.Module) -> nn.Module:
    """The network inside its wrapper for parallel training.

    Raises:
        ValueError: for `DataParallel`, whose replicas see parts of a batch.
    """
    if isinstance(model, nn.DataParallel):
        raise ValueError(
            "model: DataParallel splits the batch after it was drawn; use DistributedDataParallel, or one device."
        )
    while isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    return model


def hooked_modules(model: nn.Module, layers: tuple[str, ...]) -> dict[str, nn.Module]:
    """The modules of the layers by name, without the input `""`.

    Raises:
        ValueError: for no, repeated or unknown layers, and for those whose hooks a compiled model would ignore.
    """
    if not layers or len(set(layers)) != len(layers):
        raise ValueError(f"layers: expected one or more different names, got {list(layers)}.")
    modules = Network(model).modules
    compiled = [plain_name(name) for name, part in model.named_modules(remove_duplicate=False) if _is_compiled(part)]
    found = {layer: modules.get(layer) for layer in layers if layer}
    for layer, module in found.items():
        if module is None:
            raise ValueError(
                f"layers: the model has no module {layer!r}{near(layer, modules)}; layer_names(model) lists them all."
            )
        if any(not part or f"{layer}.".startswith(f"{part}.") for part in compiled):
            raise ValueError(
                f"model: it is compiled, so that a hook at layer {layer!r} set now would be ignored; build "
                "NoisyFeatureMixup on the plain model first, then compile it."
            )
    return found


def _is_compiled(module: nn.Module) -> bool:
    return hasattr(module, "_orig_mod") or module._compiled_call_impl is not None
