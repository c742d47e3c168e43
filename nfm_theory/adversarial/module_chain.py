"""The modules that a network runs behind a layer, one after the other, after checks that it runs nothing else.

A certificate must be about what a network computes, not about what its modules are called. So a network is refused by
name if anything could change what a module computes: a subclass, a hook, a replaced `forward`, a weight that is no
plain tensor, a mode. A weight that PyTorch computes in a known way (parametrizations, pruning) is computed here, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from ..setting.network import Network, plain_name
from ..setting.problem import Model
from .rounding import in_double

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
UNMIXED = (nn.Identity, nn.Flatten, nn.Unflatten, *DROPOUTS)
ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.Softplus, nn.ELU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU)
WEIGHTED = (nn.Linear, *CONVOLUTIONS, *NORMS)
SUPPORTED_TYPES = (nn.Linear, *CONVOLUTIONS, *NORMS, *AVERAGES, *UNMIXED, *ACTIVATIONS, nn.MaxPool2d)
SUPPORTED = (
    "Linear, Conv1d/2d/3d, BatchNorm (evaluation mode), AvgPool and AdaptiveAvgPool, Flatten, Unflatten, Identity, "
    "Dropout (evaluation mode), MaxPool2d, ReLU, LeakyReLU, Softplus, ELU, Tanh, Sigmoid, GELU, SiLU"
)
_TENSORS = ("weight", "bias", "running_mean", "running_var")
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
#: Attributes that a subclass of nn.Sequential may define without changing what it computes.
_HARMLESS = {"__init__", "__doc__", "__module__", "__qualname__", "__annotations__", "__repr__", "extra_repr"}
_HARMLESS |= {"__dict__", "__weakref__", "__static_attributes__", "__firstlineno__", "__parameters__", "__orig_bases__"}
_HARMLESS |= {"__annotate__", "__annotate_func__", "__annotations_cache__", "__constants__"}


def module_chain(
    model: Model, layer: str = "", params: Mapping[str, Tensor] | None = None
) -> tuple[list[nn.Module], torch.dtype]:
    """The modules behind a layer, copied to float64 with their weights and nothing else, and the dtype that they had.

    Args:
        model: an `nn.Sequential`, possibly nested, of the supported modules; or one such module.
        layer: dotted name of the layer whose output is the input of the chain; `""` for the whole network.
        params: parameters to use instead of the model's own, by name.

    Raises:
        ValueError: if the network may compute something else than its modules one after the other.
    """
    network = Network(model, params)
    root: Any = network.model
    if not isinstance(root, nn.Module):
        raise ValueError(
            f"certificate: expected an nn.Sequential, possibly nested, of {SUPPORTED}; got {type(root).__name__}."
        )
    parts, met = _parts(root, "", plain_name(layer))
    if layer and not met:
        raise ValueError(
            f"layer: {layer!r} is no member of the nn.Sequential; a certificate needs a layer that is one."
        )
    _check_surroundings()
    leaves = []
    for name, module in parts:
        _check_hooks(name, module, root)
        if not isinstance(module, nn.Sequential):
            leaves.append((name, module, _checked_type(name, module)))
        else:
            _check_container(name, module)

    def read() -> list[dict[str, Tensor]]:
        return [_tensors(name, module, kind) for name, module, kind in leaves]

    with torch.no_grad():
        if network.params is None:
            values = read()
        else:
            named = {f"model.{name}": value for name, value in network.params.items()}
            values = functional_call(_Reader(root, read), named, ())
    dtypes = {tensor.dtype for found in values for tensor in found.values()}
    if len(dtypes) > 1:
        raise ValueError(f"certificate: expected weights of one dtype, got {sorted(map(str, dtypes))}; model.float().")
    chain = [_plain(module, kind, found) for (_, module, kind), found in zip(leaves, values, strict=True)]
    return chain, dtypes.pop() if dtypes else torch.get_default_dtype()


class _Reader(nn.Module):
    """Calls a function while the parameters of a model are replaced."""

    def __init__(self, model: nn.Module, read):
        super().__init__()
        self.model, self.read = model, read

    def forward(self):
        """What the function returns."""
        return self.read()


def _label(name: str, module: nn.Module) -> str:
    return f"{type(module).__name__} {name!r}" if name else type(module).__name__


def _parts(module: nn.Module, name: str, layer: str) -> tuple[list[tuple[str, nn.Module]], bool]:
    """The containers and modules that run behind the layer, in their order, and True if the layer was met."""
    while type(module).__name__ == "OptimizedModule" and "_orig_mod" in module._modules:
        module = module._modules["_orig_mod"]  # pyright: ignore[reportAssignmentType]  # a compiled part runs eagerly
    if name and name == layer:
        return [], True
    if not isinstance(module, nn.Sequential):
        return [(name, module)], False
    kept: list[tuple[str, nn.Module]] = []
    met = False
    for child, part in module._modules.items():  # `named_children` leaves out a module that is called again
        if part is None:
            raise ValueError(f"certificate: {_label(name, module)} has no module {child!r}; remove the empty entry.")
        inner, found = _parts(part, f"{name}.{child}" if name else child, layer)
        kept, met = (inner, True) if found else (kept + inner, met)
    return [(name, module), *kept], met


def _check_surroundings() -> None:
    """Refuse what changes the operations of every network: autocast, hooks on all modules, modes, a patched call."""
    for device in ("cpu", "cuda", "mps", "xpu"):
        if torch.is_autocast_enabled(device):
            raise ValueError(
                f"certificate: autocast is on for {device} and rounds inside the network; leave its context."
            )
    if any(getattr(torch_module, f"_global{name}", None) for name in _HOOKS):
        raise ValueError("certificate: a hook on all modules may change what they compute; remove it.")
    modes = [*_get_current_function_mode_stack(), *_get_current_dispatch_mode_stack()]
    for mode in modes:
        if not _of_this_library(mode) and not isinstance(mode, DeviceContext):
            raise ValueError(
                f"certificate: the mode {type(mode).__name__} may change what a network computes; leave its context."
            )
    if not _defined_in(nn.Module.__call__, "torch.nn.modules.module"):
        raise ValueError("certificate: nn.Module.__call__ was replaced and may compute something else; restore it.")


def _of_this_library(thing: object) -> bool:
    return type(thing).__module__.partition(".")[0] == __name__.partition(".")[0]


def _defined_in(function: Any, module: str) -> bool:
    """True if the function is written in that module; a wrapper around it is not."""
    return getattr(function, "__globals__", {}).get("__name__") == module


def _check_hooks(name: str, module: nn.Module, root: nn.Module) -> None:
    for kind in _HOOKS:
        for hook in vars(module).get(kind, {}).values():
            known = kind == "_forward_pre_hooks" and _sets_weight(hook)
            known |= _of_this_library(hook) and not root.training  # NoisyFeatureMixup rests in evaluation mode
            if not known:
                called = getattr(hook, "__qualname__", type(hook).__name__)
                raise ValueError(
                    f"certificate: the hook {called} on {_label(name, module)} may change what it computes; remove it."
                )
    for attribute in vars(module):
        if callable(getattr(type(module), attribute, None)):
            raise ValueError(
                f"certificate: {_label(name, module)} has its own {attribute!r} in place of that of its class; delete "
                "it, or write the model as an nn.Sequential of the modules that are really run."
            )


def _sets_weight(hook: Any) -> bool:
    """True for the hooks of PyTorch that compute a weight before a module is called, and do nothing else."""
    if isinstance(hook, BasePruningMethod):
        kind = type(hook)
        return kind.__call__ is BasePruningMethod.__call__ and kind.apply_mask is BasePruningMethod.apply_mask
    return type(hook) in (WeightNorm, SpectralNorm)


def _check_container(name: str, module: nn.Module) -> None:
    for kind in type(module).__mro__:
        if kind is nn.Sequential:
            break
        changed = [key for key in vars(kind) if hasattr(nn.Sequential, key) and key not in _HARMLESS]
        if changed:
            raise ValueError(
                f"certificate: {_label(name, module)} defines its own {changed[0]!r}, and may not run its modules one "
                "after the other; write it as an nn.Sequential."
            )
    if not _defined_in(nn.Sequential.forward, "torch.nn.modules.container"):
        raise ValueError("certificate: nn.Sequential.forward was replaced; restore it.")


def _checked_type(name: str, module: nn.Module) -> type[nn.Module]:
    """The supported type that a module has, exactly; a parametrized module has the type that it had before."""
    kind: Any = type(module)
    label = _label(name, module)
    if parametrize.is_parametrized(module):
        names = set(module.parametrizations)  # pyright: ignore[reportArgumentType]
        own = set(vars(kind)) - names - _HARMLESS - {"__getstate__", "__deepcopy__"}
        kind = kind if own else parametrize.type_before_parametrizations(module)
        if any(part.training for part in module.parametrizations.modules()):  # pyright: ignore[reportAttributeAccessIssue]
            raise ValueError(f"model: the parametrization of {label} is in training mode; call model.eval().")
    if kind not in SUPPORTED_TYPES:
        bases = [base.__name__ for base in SUPPORTED_TYPES if issubclass(kind, base)]
        if bases:
            raise ValueError(
                f"certificate: {label} is a subclass of nn.{bases[-1]} and may compute something else; use "
                f"nn.{bases[-1]} itself, with the change inside its weights or as a module of its own."
            )
        shown = label if any(module.children()) else f"{module!r} {name!r}".replace(" ''", "")
        raise ValueError(
            f"certificate: {shown} has no relaxation here; use an nn.Sequential, possibly nested, of {SUPPORTED}."
        )
    if not _defined_in(kind.forward, kind.__module__):
        raise ValueError(f"certificate: the forward of nn.{kind.__name__} was replaced; restore it.")
    if module.training and isinstance(module, (*NORMS, *DROPOUTS)):
        raise ValueError(f"model: {kind.__name__} {name!r} is in training mode; call model.eval().")
    return kind


def _tensors(name: str, module: nn.Module, kind: type[nn.Module]) -> dict[str, Tensor]:
    """The tensors that the forward pass of a module reads, after the hooks that compute them."""
    if kind not in WEIGHTED:
        return {}
    label = _label(name, module)
    kept = {key: vars(module)[key] for key in _TENSORS if key in vars(module)}
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, SpectralNorm) and module.training:
            raise ValueError(f"model: the spectral norm of {label} is in training mode; call model.eval().")
        if _sets_weight(hook):
            hook(module, ())
    found = {key: getattr(module, key, None) for key in _TENSORS}
    for key, value in kept.items():
        vars(module)[key] = value
    if kind in NORMS and (found["running_mean"] is None or found["running_var"] is None):
        raise ValueError(f"model: {label} uses the statistics of the batch; set track_running_stats=True.")
    if parametrize.is_parametrized(module):
        for key, value in found.items():
            again = getattr(module, key, None)
            if isinstance(value, Tensor) and not (isinstance(again, Tensor) and torch.equal(value, again)):
                raise ValueError(f"model: {key} of {label} differs from call to call; call model.eval().")
    return {key: _checked_tensor(f"{key} of {label}", value) for key, value in found.items() if value is not None}


def _checked_tensor(label: str, value: Any) -> Tensor:
    if type(value) not in (Tensor, nn.Parameter):
        raise ValueError(
            f"certificate: expected {label} to be a plain tensor, got {type(value).__name__}, which may multiply in "
            "its own way; use a plain nn.Parameter with the same values."
        )
    if not value.is_floating_point() or value.layout != torch.strided or value.is_meta:
        raise ValueError(
            f"certificate: expected {label} to be a dense floating-point tensor, got {value.dtype}, {value.layout} on "
            f"{value.device}; use .to_dense(), .dequantize() or .float()."
        )
    if not value.isfinite().all():
        raise ValueError(f"certificate: {label} is not finite; check the weights.")
    return value.detach()


def _plain(module: nn.Module, kind: type[nn.Module], tensors: Mapping[str, Tensor]) -> nn.Module:
    """A new module of this type with the settings of `module` and these tensors, in float64, and nothing else."""
    made = kind.__new__(kind)
    nn.Module.__init__(made)
    internal = vars(made).keys()
    for key, value in vars(module).items():
        if key not in internal and key not in _TENSORS and not isinstance(value, (Tensor, nn.Module)):
            vars(made)[key] = value
    if kind in WEIGHTED:
        vars(made)["_buffers"] = dict.fromkeys(_TENSORS) | {
            key: in_double(value).clone() for key, value in tensors.items()
        }
    if hasattr(made, "inplace"):
        vars(made)["inplace"] = False
    return made.eval()
