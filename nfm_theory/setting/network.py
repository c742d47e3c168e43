"""A model as something that can be called, read and overwritten at a layer, with its parameters by name."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy

from .checks import near

#: Which part of what the model returns are its outputs: a name or a position in it, or a function of it.
Output = str | int | Callable[[Any], Tensor] | None


class Stop(Exception):
    """Raised behind the layer whose output is wanted, to end the forward pass there."""


@contextlib.contextmanager
def replayed(outputs: Mapping[nn.Module, Tensor]):
    """While the block lasts, these modules return known outputs, whatever they are given."""
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
    """A model with its parameters and its modules by name, which can be called, read and overwritten.

    Args:
        model: network or callable.
        params: parameters and buffers to use instead of the model's own, by name.
        output: which part of what the model returns are the outputs; `None` if it returns them alone.
    """

    def __init__(self, model, params=None, output: Output = None):
        while hasattr(model, "_orig_mod"):
            model = model._orig_mod
        if not callable(model):
            raise TypeError(f"model: expected an nn.Module or a callable, got {type(model).__name__}.")
        self.model, self.output = model, output
        self.is_module = isinstance(model, nn.Module)
        self.modules = {}
        self.compiled = False
        if self.is_module:
            for name, module in model.named_modules(remove_duplicate=False):
                # `block._orig_mod.0` of a compiled block is known as `block.0`, `block` is what was compiled
                self.modules[plain_name(name)] = module
                self.compiled |= name != plain_name(name) or module._compiled_call_impl is not None
            del self.modules[""]
        self.params = self._own_names(params)

    def _own_names(self, params):
        if params is None:
            return None
        if not self.is_module:
            raise TypeError(
                "params: expected None with a plain callable, got names; pass the nn.Module, or close over "
                "the parameters in the callable."
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
        """Outputs, run eagerly: a compiled call would ignore the hooks, and crashes under nested transforms."""
        with torch.compiler.set_stance("force_eager") if self.compiled else contextlib.nullcontext():
            found = self.model(x) if self.params is None else functional_call(self.model, self.params, (x,))
        return found if self.output is None else self._picked(found)

    def _picked(self, found):
        """The outputs among everything that the model returns."""
        if callable(self.output):
            return self.output(found)
        named = isinstance(self.output, str) and not isinstance(found, dict)  # a dict has methods of its own
        if named and hasattr(found, self.output):
            return getattr(found, self.output)
        try:
            return found[self.output]
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ValueError(
                f"output: the model returns {kind(found)}, which has no {self.output!r}; name a key, an attribute or a "
                "position of it, or give a function from it to a tensor of outputs."
            ) from error

    @contextlib.contextmanager
    def hook(self, layer: str, action: Callable):
        """Run `action(module, args, output)` behind the layer while the block lasts."""
        handle = self.modules[layer].register_forward_hook(action)
        try:
            yield
        finally:
            handle.remove()

    def outputs(self, x: Tensor, record: Callable | None = None, layer: str = "") -> Tensor:
        """Outputs `(n, K)` or `(n,)` without a graph, checked."""
        with torch.no_grad(), self.hook(layer, record) if layer else contextlib.nullcontext():
            try:
                outputs = self(x.clone())
            except RuntimeError as error:
                message = f"model: it does not take x of shape {tuple(x.shape)}, {x.dtype}; check the inputs. ({error})"
                raise ValueError(message) from error
        if not isinstance(outputs, Tensor) or not outputs.is_floating_point():
            raise TypeError(
                f"model: expected a floating-point tensor of outputs, got {kind(outputs)}; say which part of it are "
                "the logits, output='logits' for example."
            )
        if outputs.ndim not in (1, 2) or len(outputs) != len(x) or outputs.numel() == 0:
            raise ValueError(
                f"model: expected outputs of shape ({len(x)}, K) or ({len(x)},), got {tuple(outputs.shape)}; "
                "wrap the model so that it returns one row of outputs for each sample."
            )
        if not outputs.isfinite().all():
            raise ValueError("model: expected finite outputs, got nan or inf; check the weights and the inputs' scale.")
        return outputs

    def encode(self, x: Tensor, layer: str) -> Tensor:
        """Output of the layer; what lies behind it does not run."""
        found = []

        def stop(module, args, output):
            found.append(output)
            raise Stop

        with contextlib.suppress(Stop), self.hook(layer, stop):
            self(x.clone())
        return found[0]

    def front(self, layer: str, dummy: Tensor) -> dict[nn.Module, Tensor]:
        """Modules that need not run for the head of the layer, with their outputs for `dummy`.

        The outermost ones that are called once and return no later than the layer, which is the last of them.
        """
        calls: Counter[nn.Module] = Counter()
        begun: list[int] = []
        returned: list[tuple[nn.Module, object]] = []
        before: list[tuple[nn.Module, object]] = []

        def enter(module, args):
            calls[module] += 1
            begun.append(len(returned))

        def leave(module, args, output):
            del returned[begun.pop() :]  # what it called itself
            returned.append((module, output.detach() if isinstance(output, Tensor) else output))
            if module is self.modules[layer]:
                before.extend(returned)

        with contextlib.ExitStack() as hooks, torch.no_grad():
            for module in set(self.modules.values()):
                hooks.callback(module.register_forward_pre_hook(enter, prepend=True).remove)
                hooks.callback(module.register_forward_hook(leave).remove)
            self(dummy.clone())
        return {
            module: output
            for module, output in before
            if calls[module] == 1 and isinstance(output, Tensor) and not isinstance(module, torch.jit.ScriptModule)
        }

    def check(self, x: Tensor, layer: str) -> None:
        """Refuse an `x` or a `layer` that does not suit the model, as far as that is known before it runs."""
        if not isinstance(x, Tensor):
            raise TypeError(f"x: expected a tensor (n, *input), got {type(x).__name__}.")
        if x.ndim == 0 or x.numel() == 0:
            raise ValueError(f"x: expected at least one sample, (n, *input), got shape {tuple(x.shape)}.")
        if layer and not self.is_module:
            raise ValueError(
                f"layer: expected '' (the input) with a plain callable, got {layer!r}; pass the part behind "
                "the layer as the callable and the features as x."
            )
        if layer and layer not in self.modules:
            raise ValueError(
                f"layer: the model has no module {layer!r}{near(layer, self.modules)}; "
                "layer_names(model) lists them all."
            )
        if not layer and not x.is_floating_point():
            embeddings = [name for name, module in self.modules.items() if isinstance(module, nn.Embedding)]
            raise TypeError(
                f"x: expected floating-point features, got {x.dtype}; indices cannot be mixed, cut "
                f"at the embedding's output by its name, layer={(embeddings or ['...'])[0]!r}, "
                "or convert the inputs, x.float()."
            )
        if not x.isfinite().all():
            raise ValueError("x: expected finite values, got nan or inf.")
        self.check_model()
        self._check_placement(x)

    def check_model(self) -> None:
        """Refuse a model that is not initialised, draws random numbers or uses the statistics of a batch."""
        modules = self.modules | ({"": self.model} if self.is_module else {})
        for name, module in modules.items():
            label = f"{type(module).__name__} {name!r}"
            if any(is_lazy(value) for value in (*module._parameters.values(), *module._buffers.values())):
                raise ValueError(f"model: {label} is not initialised yet; call model(x) once first.")
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
        if not self.is_module:
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
    """Dotted name without the wrappers that `torch.compile` inserts."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def kind(value: object) -> str:
    """The type or dtype of a value, for a message."""
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__


def listed(values: Iterable) -> str:
    """Values joined by "or", for a message."""
    return " or ".join(sorted(map(str, values)))
