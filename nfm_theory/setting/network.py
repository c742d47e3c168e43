"""A model that can be called with other parameters, and whose layers can be read and overwritten."""

from __future__ import annotations

import contextlib
import copy
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

from ..calculus.failures import explained
from .ambient import taking_turns, without_checkpointing
from .checks import near
from .inputs import Inputs, arguments, batch_size, each, leaves

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


@contextlib.contextmanager
def taking(x: Inputs):
    """Errors of a pass through the network in words about its inputs."""
    try:
        yield
    except RuntimeError as error:
        shapes = " and ".join(f"{tuple(leaf.shape)}, {leaf.dtype}" for leaf in leaves(x))
        raise ValueError(f"model: it does not take x of shape {shapes}; check the inputs. ({error})") from error


class Network:
    """A model that can be called, and whose layers can be read and overwritten by name.

    Threads take turns, because the hooks of one of them would act in the passes of the others.

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
        #: The modules by name, with the model itself as `""`, for messages.
        self.named = {**self.modules, **({"": model} if isinstance(model, nn.Module) else {})}
        # Pruning and the old weight_norm keep a tensor that each pass replaces, also by one inside of a transform
        self._kept = [(vars(module), name) for module in self.named.values() for name, value in vars(module).items()
                      if isinstance(value, Tensor)]  # fmt: skip
        self.params = self._own_names(params)
        if isinstance(model, nn.Module) and not torch.is_inference_mode_enabled():
            own = dict((*model.named_parameters(), *model.named_buffers()))
            copies = {name: value.clone() for name, value in own.items() if not is_lazy(value) and value.is_inference()}
            if copies:  # tensors made inside `torch.inference_mode()` cannot be differentiated, their copies can
                self.params = copies | (self.params or {})

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

    def __call__(self, x: Inputs) -> Tensor:
        """The outputs. Compiled models run eagerly: compiled code ignores hooks and fails under nested transforms."""
        eager = torch.compiler.set_stance("force_eager") if self.compiled else contextlib.nullcontext()
        with taking_turns(), without_checkpointing(), eager:
            kept = [(attributes, name, attributes.get(name)) for attributes, name in self._kept]
            token = MEASURING.set(True)
            try:
                args, kwargs = arguments(x)
                if isinstance(self.model, nn.Module) and self.params is not None:
                    found = functional_call(self.model, self.params, args, kwargs)
                else:
                    found = self.model(*args, **kwargs)
            finally:
                MEASURING.reset(token)
                for attributes, name, value in kept:
                    attributes[name] = value
        return picked(self.output, found)

    @contextlib.contextmanager
    def hook(self, layer: str, action: Callable):
        """Within this context, call `action(module, args, output)` after the layer."""
        with taking_turns():
            handle = self.modules[layer].register_forward_hook(action)
            try:
                yield
            finally:
                handle.remove()

    def outputs(self, x: Inputs, record: Callable | None = None, layer: str = "") -> Tensor:
        """The outputs `(n, *out)` without a graph, after checks of their type, shape and values."""
        recorded = self.hook(layer, record) if record else contextlib.nullcontext()
        with torch.no_grad(), recorded, taking(x), explained(self.named):
            outputs = self(each(x, Tensor.clone))
        if not isinstance(outputs, Tensor) or not outputs.is_floating_point():
            raise TypeError(
                f"model: expected a floating-point tensor of outputs, got {kind(outputs)}; name the part that holds "
                "the logits, output='logits' for example."
            )
        n = batch_size(x)
        if outputs.ndim == 0 or len(outputs) != n or outputs.numel() == 0:
            raise ValueError(
                f"model: expected outputs of shape ({n}, K), ({n},) or ({n}, ...), got {tuple(outputs.shape)}; "
                "use a model that returns one row of outputs for each sample."
            )
        if not outputs.isfinite().all():
            raise ValueError("model: expected finite outputs, got nan or inf; check the weights and the inputs' scale.")
        return outputs

    def encode(self, x: Inputs, layer: str) -> Tensor:
        """The output of the layer. The layers after it do not run."""
        found = []

        def stop(module, args, output):
            found.append(output)
            raise Stop

        with contextlib.suppress(Stop), self.hook(layer, stop):
            self(each(x, Tensor.clone))
        return found[0]

    def modules_before(self, layer: str, dummy: Inputs) -> dict[nn.Module, Tensor]:
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

        with taking_turns(), contextlib.ExitStack() as hooks, torch.no_grad():
            for module in set(self.modules.values()):
                hooks.callback(module.register_forward_pre_hook(begin, prepend=True).remove)
                hooks.callback(module.register_forward_hook(end).remove)
            self(each(dummy, Tensor.clone))
        return {
            module: output
            for module, output in before
            if calls[module] == 1 and isinstance(output, Tensor) and not isinstance(module, torch.jit.ScriptModule)
        }

    def in_float64(self) -> Network:
        """The same network with its parameters in float64, which are copies without a graph."""
        other = copy.copy(self)
        if isinstance(self.model, nn.Module):
            with taking_turns():
                own = dict((*self.model.named_parameters(), *self.model.named_buffers())) | (self.params or {})
            other.params = {
                name: value.detach().double() if value.is_floating_point() else value for name, value in own.items()
            }
        return other

    def check(self, x: Inputs, layer: str) -> None:
        """Refuse inputs and layers that do not fit the model, as far as this is known without running it."""
        for leaf in leaves(x):
            if leaf.ndim == 0 or leaf.numel() == 0:
                raise ValueError(f"x: expected at least one sample, (n, *input), got shape {tuple(leaf.shape)}.")
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
        if not layer and not isinstance(x, Tensor):
            raise TypeError(
                "layer: expected the name of a hidden layer, since several inputs cannot be mixed as one; or use a "
                "function of one of them, lambda x: model(x, ...), as the model."
            )
        if isinstance(x, Tensor) and not layer and not x.is_floating_point():
            embeddings = [name for name, module in self.modules.items() if isinstance(module, nn.Embedding)]
            raise TypeError(
                f"x: expected floating-point features, got {x.dtype}; indices cannot be mixed: use the output of the "
                f"embedding, layer={(embeddings or ['...'])[0]!r}, or convert the inputs, x.float()."
            )
        if not all(leaf.isfinite().all() for leaf in leaves(x)):
            raise ValueError("x: expected finite values, got nan or inf.")
        self.check_model()
        for leaf in leaves(x):
            self._check_placement(leaf)

    def check_model(self) -> None:
        """Refuse a model that is not initialized, draws random numbers or uses the statistics of a batch."""
        for name, module in self.named.items():
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


def picked(output: Output, found: Any) -> Any:
    """The outputs in the return value of a model.

    Raises:
        ValueError: if the value has no such part.
    """
    if output is None:
        return found
    if callable(output):
        return output(found)
    # A dict has methods of its own
    if isinstance(output, str) and not isinstance(found, dict) and hasattr(found, output):
        return getattr(found, output)
    try:
        return found[output]
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(
            f"output: the model returns {kind(found)}, which has no {output!r}; name a key, an attribute or a "
            "position, or give a function that selects the tensor of outputs."
        ) from error


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
