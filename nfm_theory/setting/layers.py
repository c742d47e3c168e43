r"""Where in the network the features live: $f = f_k \circ g_k$ for any layer of any model.

| symbol | here |
|---|---|
| $g_k$, input to features | `Split.encode` |
| $f_k$, features to outputs | `Split.head` |
| k | `Split.layer`, dotted name of a submodule, whose *output* are the features; `""` is the input |

The network is not taken apart. For one call a forward hook reads the layer's output, or puts other features
in its place; what comes before it is known from a single example, and its result is thrown away. That the outputs
are a function of these features alone, sample by sample and without chance, is not assumed but probed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ..calculus.replacements import exact_derivatives
from .network import Network, Output, kind, replayed

#: Samples on which `split` tries the network; the others are only looked at.
PROBE_ROWS = 64


class Split:
    """A network cut in two: `model(x) == head(encode(x))`; made by `split`.

    Attributes:
        layer: dotted name of the module whose output the features are; `""` for the input.
    """

    def __init__(
        self,
        network: Network,
        layer: str,
        dummy: Tensor,
        *,
        repeat: bool = False,
        front: Mapping[nn.Module, Tensor] | None = None,
    ):
        self.network, self.layer = network, layer
        self._dummy, self._repeat, self._front = dummy, repeat, front or {}

    def encode(self, x: Tensor) -> Tensor:
        """Inputs `(batch, *input)` to features `(batch, *feature)`."""
        return self.network.encode(x, self.layer) if self.layer else x

    def head(self, h: Tensor) -> Tensor:
        """Features `(batch, *feature)`, of any batch size, to outputs `(batch, K)` or `(batch,)`.

        The layers before the cut run on one example, to no effect; modules with a known output do not run at all.
        """
        if not self.layer:
            return self.network(h.clone())
        dummy = self._dummy.expand(len(h), *self._dummy.shape[1:]) if self._repeat else self._dummy
        # Copies: an in-place layer behind (or at) the cut must not overwrite the caller's tensors
        with self.network.hook(self.layer, lambda module, args, output: h.clone()), replayed(self._front):
            return self.network(dummy.clone())


def split(
    model: nn.Module | Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    layer: str = "",
    params: Mapping[str, Tensor] | None = None,
    output: Output = None,
) -> Split:
    r"""Cut a network at the output of one layer, after checking that the theory applies to the cut.

    $$ f = f_k \circ g_k, \qquad g_k = \texttt{encode}, \quad f_k = \texttt{head} $$

    Both halves may be differentiated in features and parameters by `torch.func` and `torch.autograd`, to any
    order within `exact_derivatives()`. Neither changes its argument, in-place layers included. A compiled
    model runs uncompiled, because hooks set after compilation are not seen by it.

    Args:
        model: network in evaluation mode, or any callable from `(batch, *input)` to outputs.
        x: inputs, `(n, *input)`, floating point unless `layer` names a later layer; all are checked to be
            finite, the first `PROBE_ROWS` are run through the network.
        layer: dotted name of a submodule, see `layer_names`; `""` is the input.
        params: parameters and buffers to use instead of the model's own, by name; the others stay.
        output: which part of what the model returns are the outputs: a key, an attribute, a position, or a function;
            `None` if it returns them alone.

    Returns:
        Split; what `encode` and `head` return follows device and dtype of their arguments.

    Raises:
        TypeError: if `model` is not callable; if inputs, features or outputs are not floating-point tensors
            or the model's dtype is another one.
        ValueError: for an unknown layer or parameter, a layer called never or more than once, a model that
            is random, uninitialised, on another device or uses batch statistics, values that are not finite,
            outputs not of shape `(n, K)` or `(n,)`, samples that interact, a tensor read again after it was
            overwritten in place, and outputs that depend on the inputs other than through the layer.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
        >>> x = torch.ones(5, 3)
        >>> cut = split(model, x, layer="1")
        >>> cut.encode(x).shape, torch.equal(cut.head(cut.encode(x)), model(x))
        (torch.Size([5, 4]), True)
    """
    network = Network(model, params, output)
    network.check(x, layer)
    try:
        cut, outputs = _cut(network, x, layer)
    except _Bypass:
        raise ValueError(
            f"layer {layer!r}: the outputs depend on the inputs other than through this layer (a skip "
            f"connection or a mask around it), so there is no head; {_enclosing(network, x, layer)}."
        ) from None
    _check_samples(network, x[:PROBE_ROWS], outputs)
    _check_rewriting(cut, x[:PROBE_ROWS])
    return cut


def layer_names(model: nn.Module | Callable[[Tensor], Tensor], x: Tensor | None = None) -> list[str]:
    """Names that `split` may be given as `layer`, in the order of definition, the input `""` first.

    Args:
        model: network or callable; a callable has no layers but its input.
        x: inputs, `(n, *input)`; with them only the names at which `split` succeeds (found by trying each on
            four samples), without them every module that can be called.

    Raises:
        TypeError: for a model, or outputs, that `split` refuses at every layer.
        ValueError: for a model, or outputs, that `split` refuses at every layer.

    Example:
        >>> layer_names(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh()))
        ['', '0', '1']
    """
    network = Network(model)
    containers = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
    names = ["", *(name for name, module in network.modules.items() if not isinstance(module, containers))]
    if x is None:
        return names
    network.check_model()
    network.check(x, names[-1])
    x = x[:4]
    _check_samples(network, x, network.outputs(x))
    return [name for name in names if _works(network, x, name)]


class _Bypass(ValueError):
    """The outputs depend on the inputs other than through the layer."""


def _cut(network: Network, x: Tensor, layer: str) -> tuple[Split, Tensor]:
    """The split at `layer` and the outputs of the probed samples."""
    probe, dummy = x[:PROBE_ROWS], x[:1].detach()
    if not layer:
        outputs = network.outputs(probe)
        return Split(network, layer, dummy), outputs

    found = []
    outputs = network.outputs(probe, lambda module, args, output: found.append(_copy(output)), layer)
    _check_features(found, layer)
    features = found[0]
    # Another input than the one the features come from, so that a path around the layer shows
    other = (probe * 0.5 if probe.is_floating_point() else probe.roll(1, -1)).flip(0)[:1]
    features, expected = (z if len(z) > 1 else torch.cat([z, z]) for z in (features, outputs))
    for repeat in (False, True):
        try:
            with torch.no_grad():
                same = _close(Split(network, layer, other, repeat=repeat).head(features), expected)
        except (RuntimeError, ValueError, IndexError, TypeError):
            same = False  # the model uses the batch size it saw before the layer
        if same:
            break
    else:
        raise _Bypass
    # With the batch repeated everything may depend on the batch size, otherwise what comes before need not run again
    front = {} if repeat else network.front(layer, dummy)
    return Split(network, layer, dummy, repeat=repeat, front=front), outputs


def _check_features(found: list, layer: str) -> None:
    if len(found) != 1:
        times = f"{len(found)} times" if found else "never"
        raise ValueError(
            f"layer {layer!r}: expected a module that is called once in a forward pass, this one is called "
            f"{times}; layer_names(model, x) lists those that can be used."
        )
    (features,) = found
    if not isinstance(features, Tensor) or not features.is_floating_point():
        raise TypeError(
            f"layer {layer!r}: expected a floating-point tensor as its output, got {kind(features)}; "
            "use a layer next to it, layer_names(model, x) lists those that can be used."
        )
    if not features.isfinite().all():
        raise ValueError(f"layer {layer!r}: expected finite features, got nan or inf.")


def _check_samples(network: Network, x: Tensor, outputs: Tensor) -> None:
    """Whether the outputs are certain and belong to one sample each."""
    if not _close(network.outputs(x), outputs):
        raise ValueError("model: the outputs differ from call to call, the head is random; call model.eval().")
    if len(x) > 1:
        part, known = x[: len(x) // 2], outputs[: len(x) // 2]
    else:  # in company of another input
        part, known = torch.cat([x, x * 0.5 if x.is_floating_point() else x.roll(1, -1)]), outputs
    alone = network.outputs(part)[: len(known)]
    if not (_close(alone, known) and _close(network.outputs(x.flip(0)).flip(0), outputs)):
        raise ValueError(
            "model: expected samples that do not interact, but the outputs of a sample change with "
            "the other samples or with their order; remove operations across the batch."
        )


def _check_rewriting(cut: Split, x: Tensor) -> None:
    """Whether values survive what `exact_derivatives` does inside transforms."""
    with torch.no_grad(), torch._C.DisableTorchFunction():
        features = cut.encode(x)
        plain = cut.head(features)
    with exact_derivatives():
        exact, _ = torch.func.vjp(cut.head, features.detach())
    if not _close(exact.detach(), plain):
        raise ValueError(
            "model: the outputs change when activations work out of place: a tensor is read again after "
            "an in-place operation has overwritten it; set inplace=False there, or use its return value."
        )


def _works(network: Network, x: Tensor, layer: str) -> bool:
    """Whether the network can be cut at `layer`, given that it can be cut somewhere."""
    try:
        network.check(x, layer)
        _cut(network, x, layer)
    except (TypeError, ValueError):
        return False
    return True


def _enclosing(network: Network, x: Tensor, layer: str) -> str:
    """Advice: the innermost block around `layer` whose output can be used."""
    parts = layer.split(".")
    blocks = [".".join(parts[:depth]) for depth in range(len(parts) - 1, 0, -1)]
    usable = next((block for block in blocks if _works(network, x[:4], block)), None)
    if usable:
        return f"use the output of the enclosing block, layer={usable!r}"
    return "use a layer behind the junction, layer_names(model, x) lists those that can be used"


def _close(a: Tensor, b: Tensor) -> bool:
    """Equal to rounding, for networks deep enough to amplify it."""
    if a.shape != b.shape:
        return False
    tolerance = min(3 * torch.finfo(b.dtype).eps ** 0.5, 0.1)
    return bool((a - b).abs().max() <= tolerance * b.abs().max())


def _copy(output):
    return output.clone() if isinstance(output, Tensor) else output
