"""Hooks for training: they sit on the right modules, the compiler respects them, and copies of a model lose them."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

import torch
from torch import nn

from ..setting.checks import near
from ..setting.network import Network, plain_name


def uncompiled(function: Callable) -> Callable:
    """Keep a function out of compiled graphs, without loading the compiler if nothing is compiled.

    A compiled model leaves its graph to call the function, and continues compiled after it.

    Args:
        function: function that shall run eagerly.
    """

    @functools.wraps(function)
    def eager(*args, **kwargs):
        if "torch._dynamo" not in sys.modules:
            return function(*args, **kwargs)
        return torch.compiler.disable(function)(*args, **kwargs)

    vars(eager)["_torchdynamo_disable"] = True
    return eager


#: What to do with a model that leaves training while it has hooks; PyTorch shows it when it cannot compile a hook.
LEAVING = (
    "the model has the hooks of a NoisyFeatureMixup; export, script or trace it after mixup.remove(), or after the end "
    "of `with NoisyFeatureMixup(...) as mixup:`."
)


class Hook:
    """A forward hook or forward pre-hook that calls a function while the model is in training mode.

    A copy of the hook does nothing: a copy of the model, such as an average of its weights, must not be mixed. In
    evaluation mode there is nothing to call, so that compiled and exported models have no break at the hook.

    Args:
        model: network whose mode counts.
        action: function of the output of the module; a pre-hook calls it without arguments. `None` does nothing.
    """

    def __init__(self, model: nn.Module | None = None, action: Callable | None = None):
        self.model, self.action = model, action

    def __call__(self, module, args, *output):
        """Call the function; PyTorch passes the arguments, see `nn.Module.register_forward_hook`."""
        if self.action is None or self.model is None or not self.model.training:
            return None
        return _call(self.action, *output)

    @property
    def __name__(self) -> str:
        """Refused: only `torch.jit.script` asks a hook for its name, in order to compile its source."""
        raise AttributeError(LEAVING)

    def __reduce__(self):
        return Hook, ()


@uncompiled  # random draws and state do not belong into a graph
def _call(action: Callable, *output):
    return action(*output)


# Where a break in the graph is an error, as in torch.export, PyTorch prints this reason
vars(_call)["_torchdynamo_disable_msg"] = LEAVING


def unwrap(model: nn.Module) -> nn.Module:
    """The network inside its wrapper for parallel training.

    Args:
        model: network, wrapped or not.

    Raises:
        TypeError: for what is no module.
        ValueError: for `DataParallel`, whose replicas see parts of a batch.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}.")
    if isinstance(model, nn.DataParallel):
        raise ValueError(
            "model: DataParallel splits a batch whose partners are drawn; use DistributedDataParallel or one device."
        )
    while isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    return model


def hooked_modules(model: nn.Module, layers: tuple[str, ...]) -> dict[str, nn.Module]:
    """The modules of the layers by name; the input `""` has none.

    Args:
        model: network, not wrapped for parallel training.
        layers: dotted names of the layers.

    Raises:
        ValueError: if there is no layer, for repeated and unknown names, for layers of a model that has the hooks of
            another object, and for layers inside a compiled model, which would ignore their hooks.
    """
    if not layers or len(set(layers)) != len(layers):
        raise ValueError(f"layers: expected one or more different names, got {list(layers)}.")
    modules = Network(model).modules
    compiled = [plain_name(name) for name, part in model.named_modules(remove_duplicate=False) if _is_compiled(part)]
    found: dict[str, nn.Module] = {}
    for layer in filter(None, layers):
        module = modules.get(layer)
        if module is None:
            raise ValueError(
                f"layers: the model has no module {layer!r}{near(layer, modules)}; layer_names(model) lists them all."
            )
        if any(not part or f"{layer}.".startswith(f"{part}.") for part in compiled):
            raise ValueError(
                f"model: it is compiled, and would ignore a new hook at layer {layer!r}; build NoisyFeatureMixup "
                "on the plain model first, then compile it."
            )
        found[layer] = module
    hooks = (hook for part in model.modules() for hook in part._forward_hooks.values())
    if found and any(isinstance(hook, Hook) and hook.action is not None for hook in hooks):
        raise ValueError(
            "model: it already has the hooks of another NoisyFeatureMixup, and both would mix the same pass; call "
            ".remove() on that one first, or give one object all layers, {'layer1': law, 'layer2': other_law}."
        )
    return found


def _is_compiled(module: nn.Module) -> bool:
    """True if the module is the result of `torch.compile`, or was compiled in place."""
    return hasattr(module, "_orig_mod") or module._compiled_call_impl is not None
