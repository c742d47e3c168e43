r"""Split a network at any layer into features and head: $f = f_k \circ g_k$.

| symbol | here |
|---|---|
| $g_k$, input to features | `Split.encode` |
| $f_k$, features to outputs | `Split.head` |
| k | `Split.layer`, dotted name of a submodule, whose *output* is the features; `""` is the input |

The network itself is not changed. During one call a forward hook reads the output of the layer, or replaces it by other
features; the layers before it then run on a single example, and their result is not used. It is tested, not assumed,
that the outputs are a deterministic function of these features, sample by sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..calculus.failures import explained
from ..calculus.replacements import exact_derivatives, plain_operations
from .ambient import recordable, taking_turns
from .dataflow import UnknownFlowError, bottlenecks
from .inputs import Inputs, as_inputs, batch_size, each, leaves, other_inputs, varying
from .network import Network, Output, kind, replayed

#: The number of samples on which `split` tests the network. Of the others only the inputs are checked.
PROBE_ROWS = 64


class Split:
    """A network in two parts, `model(x) == head(encode(x))`; `split` makes one.

    Attributes:
        layer: dotted name of the module whose output is the features; `""` is the input.
    """

    def __init__(
        self,
        network: Network,
        layer: str,
        dummy: Inputs,
        *,
        repeat: bool = False,
        before: Mapping[nn.Module, Tensor] | None = None,
    ):
        self.network, self.layer = network, layer
        self._dummy, self._repeat, self._before = dummy, repeat, before or {}

    def encode(self, x: Inputs) -> Tensor:
        """Map inputs `(batch, *input)` to features `(batch, *feature)`."""
        found = self.network.encode(x, self.layer) if self.layer else x
        assert isinstance(found, Tensor)  # several inputs have been refused without a layer
        return recordable(found)

    def head(self, h: Tensor) -> Tensor:
        """Map features `(batch, *feature)`, of any batch size, to what the model returns, `(batch, *out)`.

        The layers before the split run on one example, without any effect. Modules with a known output do not run.
        """
        with explained(self.network.named):
            if not self.layer:
                return self.network(h.clone())
            expanded = lambda z: z.expand(len(h), *z.shape[1:])  # noqa: E731
            dummy = each(self._dummy, expanded) if self._repeat else self._dummy
            # Copies, because an in-place layer must not overwrite the caller's tensors
            with self.network.hook(self.layer, lambda module, args, output: h.clone()), replayed(self._before):
                return self.network(each(dummy, Tensor.clone))

    def in_float64(self) -> Split:
        """The same split with parameters in float64, which are copies without a graph."""
        wide = lambda z: z.double() if z.is_floating_point() else z  # noqa: E731
        before = {module: wide(output) for module, output in self._before.items()}
        return Split(self.network.in_float64(), self.layer, each(self._dummy, wide), repeat=self._repeat, before=before)


def split(
    model: nn.Module | Callable[..., Any],
    x: Inputs,
    *,
    layer: str = "",
    params: Mapping[str, Tensor] | None = None,
    output: Output = None,
) -> Split:
    r"""Split a network at the output of one layer, after checks that the theory applies there.

    $$ f = f_k \circ g_k, \qquad g_k = \texttt{encode}, \quad f_k = \texttt{head} $$

    Both parts can be differentiated in features and parameters by `torch.func` and `torch.autograd`, to any order
    within `exact_derivatives()`. Neither changes its argument, even if the model has in-place layers. A compiled model
    runs uncompiled, because it would ignore hooks that are set after compilation. Threads take turns;
    a thread that calls the model itself meanwhile meets the hooks and parameters of this library.

    Args:
        model: network in evaluation mode, or any callable from `(batch, *input)` to outputs.
        x: inputs, `(n, *input)`, floating point unless `layer` names a later layer. A tuple or a dict of tensors are
            several inputs by position or by name. All must be finite; the first `PROBE_ROWS` are run through the
            network. Inputs that all samples share, such as a mask without padding, may reach the head beside the layer.
        layer: dotted name of a submodule, see `layer_names`; `""` is the input.
        params: parameters and buffers by name, used instead of the model's own.
        output: the part of the model's return value that holds the outputs: a key, an attribute, a position or a
            function. `None` if the model returns nothing else.

    Returns:
        A `Split`; its results have the device and dtype of the arguments.

    Raises:
        TypeError: if `model` is not callable, if inputs, features or outputs are no floating-point tensors, or if the
            model has another dtype than the inputs.
        ValueError: for an unknown layer or parameter, and for a layer that is not called exactly once; for a model that
            is random, not initialized, on another device or uses batch statistics; for values that are not finite,
            outputs not of shape `(n, *out)`, and samples that interact; if a tensor is read again after it was
            overwritten, and if the outputs depend on the inputs other than through the layer.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
        >>> x = torch.ones(5, 3)
        >>> cut = split(model, x, layer="1")
        >>> cut.encode(x).shape, torch.equal(cut.head(cut.encode(x)), model(x))
        (torch.Size([5, 4]), True)
    """
    with taking_turns(), explained():
        x, network = each(as_inputs(x), recordable), Network(model, params, output)
        network.check(x, layer)
        try:
            cut, outputs = _cut(network, x, layer)
        except _Bypass:
            raise ValueError(
                f"layer {layer!r}: the outputs depend on the inputs other than through this layer (a skip "
                f"connection or a mask around it), so there is no head; {_enclosing(network, x, layer)}."
            ) from None
        probe = each(x, lambda z: z[:PROBE_ROWS])
        _check_samples(network, probe, outputs)
        _check_rewriting(cut, probe)
    return cut


def layer_names(
    model: nn.Module | Callable[..., Any],
    x: Inputs | None = None,
    *,
    depth: int | None = None,
    output: Output = None,
) -> list[str]:
    """The names of the layers of a network, in the order of definition, after the input `""`.

    Args:
        model: network or callable. A callable has only its input.
        x: inputs, `(n, *input)`, or a tuple or dict of such. If they are given, only layers at which the theory applies
            are returned: the rest of the network is a function of the layer's output alone. Four samples are run
            through the network five times, however many layers it has. Otherwise the names of all modules that can be
            called are returned.
        depth: the largest number of names joined by dots; 1 is for the children of the network, `None` for all.
        output: the part of the model's return value that holds the outputs, see `split`.

    Raises:
        TypeError: if the model or the inputs are of a type that `split` refuses at every layer.
        ValueError: if `split` refuses the model or the inputs at every layer, or if `depth` is no positive number.

    Example:
        >>> layer_names(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh()))
        ['', '0', '1']
    """
    if depth is not None and depth < 1:
        raise ValueError(f"depth: expected a positive number of levels, got {depth!r}; None is for all of them.")
    network = Network(model, None, output)
    containers = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
    modules = {name: module for name, module in network.modules.items() if not isinstance(module, containers)}
    if depth is not None:
        modules = {name: module for name, module in modules.items() if name.count(".") < depth}
    if x is None:
        return ["", *modules]
    network.check_model()
    given = as_inputs(x)
    network.check(given, next(reversed(modules), ""))
    few: Inputs = each(given, lambda z: z[:4])
    _check_samples(network, few, network.outputs(few))
    usable = _usable(network, few, modules)
    return ["", *usable] if isinstance(few, Tensor) and few.is_floating_point() else usable


class _Bypass(ValueError):
    """The outputs depend on the inputs other than through the layer."""


def _cut(network: Network, x: Inputs, layer: str) -> tuple[Split, Tensor]:
    """The split at `layer`, and the outputs of the samples on which it was tested."""
    probe, dummy = each(x, lambda z: z[:PROBE_ROWS]), each(x, lambda z: z[:1].detach())
    if not layer:
        outputs = network.outputs(probe)
        return Split(network, layer, dummy), outputs

    found = []
    outputs = network.outputs(probe, lambda module, args, output: found.append(_copy(output)), layer)
    _check_features(found, layer)
    features = found[0]
    # The layers before the split run on another input, so that the outputs change if they bypass the layer
    other = each(other_inputs(probe), lambda z: z.flip(0)[:1])
    features, expected = (z if len(z) > 1 else torch.cat([z, z]) for z in (features, outputs))
    for repeat in (False, True):
        try:
            with torch.no_grad():
                same = _close(Split(network, layer, other, repeat=repeat).head(features), expected)
        except (RuntimeError, ValueError, IndexError, TypeError):
            same = False  # the model uses the batch size of its input
        if same:
            break
    else:
        raise _Bypass
    # If no batch size is needed, the modules before the layer do not have to run again
    before = {} if repeat else network.modules_before(layer, dummy)
    return Split(network, layer, dummy, repeat=repeat, before=before), outputs


def _check_features(found: list, layer: str) -> None:
    if len(found) != 1:
        times = f"{len(found)} times" if found else "never"
        raise ValueError(
            f"layer {layer!r}: expected a module that is called once in a forward pass, this one is called {times}; "
            "layer_names(model, x) lists the layers that can be used."
        )
    (features,) = found
    if not isinstance(features, Tensor) or not features.is_floating_point():
        raise TypeError(
            f"layer {layer!r}: expected a floating-point tensor as its output, got {kind(features)}; "
            "layer_names(model, x) lists the layers that can be used."
        )
    if not features.isfinite().all():
        raise ValueError(f"layer {layer!r}: expected finite features, got nan or inf.")


def _check_samples(network: Network, x: Inputs, outputs: Tensor) -> None:
    """Refuse outputs that are random, or that depend on more than one sample."""
    if not _close(network.outputs(x), outputs):
        raise ValueError("model: the outputs differ from call to call, the head is random; call model.eval().")
    n = batch_size(x)
    if n > 1:
        part, known = each(x, lambda z: z[: n // 2]), outputs[: n // 2]
    else:  # together with another input
        pairs = zip(leaves(x), leaves(other_inputs(x)), strict=True)
        both = {id(leaf): torch.cat([leaf, other]) for leaf, other in pairs}
        part, known = each(x, lambda z: both[id(z)]), outputs
    alone = network.outputs(part)[: len(known)]
    if not (_close(alone, known) and _close(network.outputs(each(x, lambda z: z.flip(0))).flip(0), outputs)):
        raise ValueError(
            "model: expected samples that do not interact, but the outputs of a sample change with "
            "the other samples or with their order; remove operations across the batch."
        )


def _check_rewriting(cut: Split, x: Inputs) -> None:
    """Refuse a network whose outputs change within `exact_derivatives` and a transform."""
    with torch.no_grad(), plain_operations():
        features = cut.encode(x)
        plain = cut.head(features)
    with exact_derivatives():
        exact = torch.func.vjp(cut.head, features.detach())[0]
    if not _close(exact.detach(), plain):
        raise ValueError(
            "model: the outputs change without in-place operations: a tensor is read again after an in-place "
            "operation has overwritten it; set inplace=False there, or use its return value."
        )


def _usable(network: Network, x: Inputs, modules: Mapping[str, nn.Module]) -> list[str]:
    """The modules at which the network can be split, provided that it can be split somewhere."""
    try:
        return bottlenecks(network, modules, x, varying(x))
    except UnknownFlowError:  # test them one by one
        return [name for name in modules if _works(network, x, name)]


def _works(network: Network, x: Inputs, layer: str) -> bool:
    """True if the network can be split at `layer`, provided that it can be split somewhere."""
    try:
        network.check(x, layer)
        _cut(network, x, layer)
    except (TypeError, ValueError):
        return False
    return True


def _enclosing(network: Network, x: Inputs, layer: str) -> str:
    """Advice for an error message: the innermost block around `layer` whose output can be used."""
    parts = layer.split(".")
    blocks = [".".join(parts[:depth]) for depth in range(len(parts) - 1, 0, -1)]
    usable = next((block for block in blocks if _works(network, each(x, lambda z: z[:4]), block)), None)
    if usable:
        return f"use the output of the enclosing block, layer={usable!r}"
    return "use a layer after the connection; layer_names(model, x) lists the layers that can be used"


def _close(a: Tensor, b: Tensor) -> bool:
    """True if both are equal up to rounding errors, which a deep network amplifies."""
    if a.shape != b.shape:
        return False
    tolerance = min(3 * torch.finfo(b.dtype).eps ** 0.5, 0.1)
    return bool((a - b).abs().max() <= tolerance * b.abs().max())


def _copy(output):
    return output.clone() if isinstance(output, Tensor) else output
