"""A model that can be called with other parameters, and whose layers can be read and overwritten."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy

from .checks import near

#: The part of the model's return value that holds the outputs: a name, a position or a function.
Output = str | int | Callable[[Any], Tensor] | None


#: True in the library's own passes, for example of a measurement between two training steps: they are never mixed.
MEASURING: ContextVar[bool] = ContextVar("measuring", default=False)


class Stop(Exception):
    """Raised after a layer, to end the forward pass there."""


@contextlib.contextmanager
def replayed(outputs: Mapping[nn.Module, Tensor]):
    """Within this context, the modules return the given outputs for every input."""
    own = {module: vars(module)["forward"] for module in outputs if "forward" in vars(module)}
    try:
        for module, output in outputs.items():
            module.forward = lambda *args, output=output, **kwargs: output.clone()
        yield
    finally:
        for module in outputs:
            if module in own:
                module.forward = own[module]
            else:
                vars(module).pop("forward", None)


class Network:
    """A model that can be called, and whose layers can be read and overwritten by name.

    Args:
        model: network or callable.
        params: parameters and buffers by name, used instead of the model's own.
        output: the part of the model's return value that holds the outputs; `None` if it returns nothing else.
    """

    def __init__(self, model, params=None, output: Output = None):
        while hasattr(model, "_orig_mod"):
            model = model._orig_mod
        if not callable(model):
            raise TypeError(f"model: expected an nn.Module or a callable, got {type(model).__name__}.")
        self.model: Callable[..., Any] = model
        self.output, self.is_module = output, isinstance(model, nn.Module)
        self.modules: dict[str, nn.Module] = {}
        self.compiled = False
        if isinstance(model, nn.Module):
            for name, module in model.named_modules(remove_duplicate=False):
                # In a compiled block, `block._orig_mod.0` has the name `block.0`
                self.modules[plain_name(name)] = module
                self.compiled |= name != plain_name(name) or module._compiled_call_impl is not None
            del self.modules[""]
        self.params = self._own_names(params)

    def _own_names(self, params):
        if params is None:
            return None
        if not isinstance(self.model, nn.Module):
            raise TypeError(
                "params: expected None for a callable that is no nn.Module, got names; pass the nn.Module, or use the "
                "parameters inside the callable."
            )
        own = dict((*self.model.named_parameters(), *self.model.named_buffers()))
        names = {plain_name(name): name for name in own}
        renamed = {}
        for name, value in params.items():
            if plain_name(name) not in names:
                raise ValueError(f"params: the model has no parameter or buffer {name!r}{near(name, names)}.")
            full = names[plain_name(name)]
            if value.shape != own[full].shape:
                raise ValueError(
                    f"params[{name!r}]: expected shape {tuple(own[full].shape)}, got {tuple(value.shape)}."
                )
            renamed[full] = value
        return renamed

    def __call__(self, x: Tensor) -> Tensor:
        """The outputs. Compiled models run eagerly: compiled code ignores hooks and fails under nested transforms."""
        token = MEASURING.set(True)
        try:
            with torch.compiler.set_stance("force_eager") if self.compiled else contextlib.nullcontext():
                if isinstance(self.model, nn.Module) and self.params is not None:
                    found = functional_call(self.model, self.params, (x,))
                else:
                    found = self.model(x)
        finally:
            MEASURING.reset(token)
        return found if self.output is None else self._picked(found)

    def _picked(self, found):
        """Select the outputs from the return value of the model."""
        if callable(self.output):
            return self.output(found)
        # A dict has methods of its own
        if isinstance(self.output, str) and not isinstance(found, dict) and hasattr(found, self.output):
            return getattr(found, self.output)
        try:
            return found[self.output]
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ValueError(
                f"output: the model returns {kind(found)}, which has no {self.output!r}; name a key, an attribute or a "
                "position, or give a function that selects the tensor of outputs."
            ) from error

    @contextlib.contextmanager
    def hook(self, layer: str, action: Callable):
        """Within this context, call `action(module, args, output)` after the layer."""
        handle = self.modules[layer].register_forward_hook(action)
        try:
            yield
        finally:
            handle.remove()

    def outputs(self, x: Tensor, record: Callable | None = None, layer: str = "") -> Tensor:
        """The outputs `(n, K)` or `(n,)` without a graph, after checks of their type, shape and values."""
        with torch.no_grad(), self.hook(layer, record) if record else contextlib.nullcontext():
            try:
                outputs = self(x.clone())
            except RuntimeError as error:
                message = f"model: it does not take x of shape {tuple(x.shape)}, {x.dtype}; check the inputs. ({error})"
                raise ValueError(message) from error
        if not isinstance(outputs, Tensor) or not outputs.is_floating_point():
            raise TypeError(
                f"model: expected a floating-point tensor of outputs, got {kind(outputs)}; name the part that holds "
                "the logits, output='logits' for example."
            )
        if outputs.ndim not in (1, 2) or len(outputs) != len(x) or outputs.numel() == 0:
            raise ValueError(
                f"model: expected outputs of shape ({len(x)}, K) or ({len(x)},), got {tuple(outputs.shape)}; "
                "use a model that returns one row of outputs for each sample."
            )
        if not outputs.isfinite().all():
            raise ValueError("model: expected finite outputs, got nan or inf; check the weights and the inputs' scale.")
        return outputs

    def encode(self, x: Tensor, layer: str) -> Tensor:
        """The output of the layer. The layers after it do not run."""
        found = []

        def stop(module, args, output):
            found.append(output)
            raise Stop

        with contextlib.suppress(Stop), self.hook(layer, stop):
            self(x.clone())
        return found[0]

    def modules_before(self, layer: str, dummy: Tensor) -> dict[nn.Module, Tensor]:
        """Modules that do not have to run for the head after the layer, with their outputs for `dummy`.

        These are the outermost modules that are called once and return before the layer, and the layer itself.
        """
        calls: Counter[nn.Module] = Counter()
        begun: list[int] = []
        returned: list[tuple[nn.Module, object]] = []
        before: list[tuple[nn.Module, object]] = []

        def begin(module, args):
            calls[module] += 1
            begun.append(len(returned))

        def end(module, args, output):
            del returned[begun.pop() :]  # the modules inside it
            returned.append((module, output.detach() if isinstance(output, Tensor) else output))
            if module is self.modules[layer]:
                before.extend(returned)

        with contextlib.ExitStack() as hooks, torch.no_grad():
            for module in set(self.modules.values()):
                hooks.callback(module.register_forward_pre_hook(begin, prepend=True).remove)
                hooks.callback(module.register_forward_hook(end).remove)
            self(dummy.clone())
        return {
            module: output
            for module, output in before
            if calls[module] == 1 and isinstance(output, Tensor) and not isinstance(module, torch.jit.ScriptModule)
        }

    def check(self, x: Tensor, layer: str) -> None:
        """Refuse inputs and layers that do not fit the model, as far as this is known without running it."""
        if not isinstance(x, Tensor):
            raise TypeError(f"x: expected a tensor (n, *input), got {type(x).__name__}.")
        if x.ndim == 0 or x.numel() == 0:
            raise ValueError(f"x: expected at least one sample, (n, *input), got shape {tuple(x.shape)}.")
        if layer and not self.is_module:
            raise ValueError(
                f"layer: expected '' (the input) for a callable that is no nn.Module, got {layer!r}; pass the part "
                "after the layer as the callable and the features as x."
            )
        if layer and layer not in self.modules:
            raise ValueError(
                f"layer: the model has no module {layer!r}{near(layer, self.modules)}; "
                "layer_names(model) lists them all."
            )
        if not layer and not x.is_floating_point():
            embeddings = [name for name, module in self.modules.items() if isinstance(module, nn.Embedding)]
            raise TypeError(
                f"x: expected floating-point features, got {x.dtype}; indices cannot be mixed: use the output of the "
                f"embedding, layer={(embeddings or ['...'])[0]!r}, or convert the inputs, x.float()."
            )
        if not x.isfinite().all():
            raise ValueError("x: expected finite values, got nan or inf.")
        self.check_model()
        self._check_placement(x)

    def check_model(self) -> None:
        """Refuse a model that is not initialized, draws random numbers or uses the statistics of a batch."""
        modules = self.modules | ({"": self.model} if isinstance(self.model, nn.Module) else {})
        for name, module in modules.items():
            label = f"{type(module).__name__} {name!r}"
            tensors = (*module._parameters.values(), *module._buffers.values())
            if any(value is not None and is_lazy(value) for value in tensors):
                raise ValueError(f"model: {label} is not initialized yet; call model(x) once first.")
            if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
                raise ValueError(
                    f"model: expected samples that do not interact, but {label} uses batch statistics; call "
                    "model.eval(), with track_running_stats=True."
                )
            if isinstance(module, _InstanceNorm) and module.training and module.track_running_stats:
                raise ValueError(f"model: {label} would update its running statistics; call model.eval().")
            if module.training and is_random(module):
                raise ValueError(f"model: {label} makes the outputs random; call model.eval().")

    def _check_placement(self, x: Tensor) -> None:
        if not isinstance(self.model, nn.Module):
            return
        tensors = dict((*self.model.named_parameters(), *self.model.named_buffers())) | (self.params or {})
        devices = {value.device for value in tensors.values()}
        dtypes = {value.dtype for value in tensors.values() if value.is_floating_point()}
        if devices and x.device not in devices:
            raise ValueError(
                f"x: expected the model's device {listed(devices)}, got {x.device}; "
                "move one of them, model.to(x.device)."
            )
        if dtypes and x.is_floating_point() and x.dtype not in dtypes:
            raise TypeError(f"x: expected the model's dtype {listed(dtypes)}, got {x.dtype}; use model.to(x.dtype).")


def is_random(module: nn.Module) -> bool:
    """True if the module draws random numbers in training mode."""
    if isinstance(module, (nn.MultiheadAttention, nn.RNNBase)):
        return module.dropout > 0
    rate = getattr(module, "p", getattr(module, "drop_prob", 0))
    return isinstance(module, nn.RReLU) or ("drop" in type(module).__name__.lower() and rate > 0)


def plain_name(name: str) -> str:
    """The dotted name without the parts that `torch.compile` inserts."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def kind(value: object) -> str:
    """The type or dtype of a value, for an error message."""
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__


def listed(values: Iterable) -> str:
    """The values joined by "or", for an error message."""
    return " or ".join(sorted(map(str, values)))
