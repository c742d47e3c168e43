"""What an attack needs of a network: it stays as it was, it is not random, and its gradient reaches the features."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from ..setting.branches import as_problem
from ..setting.network import Network
from ..setting.problem import Problem

#: Parts of the way from the centers to other points at which `raise_if_cut` looks for a gradient.
_PROBES = (1.0, -1.0, 0.5, -0.5, 0.1, 0.01)


def network_of(problem: Problem) -> Network:
    """The network of a problem, with its parameters and its choice of the outputs."""
    return problem._split.network


@contextlib.contextmanager
def attackable(problem: Problem) -> Iterator[Problem]:
    """A problem whose network is in evaluation mode; in the end the buffers of the network are as they were.

    Args:
        problem: network, layer, data and loss.

    Raises:
        ValueError: for outputs with positions, and for a network that draws random numbers, uses the statistics of a
            batch or changes its buffers.
        TypeError: for anything but one `Problem`.
    """
    network = network_of(as_problem(problem))
    if len(problem.output_shape) > 1:
        raise ValueError(
            "model: attacks, certificates and bounds are for outputs (n, K) with one label for each sample, the model "
            f"returns {problem.output_shape} for a sample; use a function of it that returns one position."
        )
    try:
        network.check_model()  # the mode may have changed since the problem was built
    except ValueError as error:
        raise ValueError(f"model: it is in training mode; {str(error).removeprefix('model: ')}") from None
    modules = dict(network.model.named_modules()) if isinstance(network.model, nn.Module) else {}
    kept = [
        (module, name, f"{path}.{name}".lstrip("."), buffer, buffer.clone())
        for path, module in modules.items()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield problem
    finally:
        changed = []
        for module, name, path, buffer, values in kept:
            if module._buffers.get(name) is not buffer or not torch.equal(buffer, values):
                changed.append(path)
                with torch.no_grad():
                    module._buffers[name] = buffer.copy_(values)
    if changed:
        raise ValueError(
            f"model: a forward pass changes the buffer {changed[0]!r}, so that an attack changes the network; call "
            "model.eval(). The buffers have their old values again."
        )


def columns(outputs: Tensor) -> Tensor:
    """Outputs as `(b, K)`, also if the network returns `(b,)`."""
    return outputs.unsqueeze(-1) if outputs.ndim == 1 else outputs


def input_gradient(
    head: Callable[[Tensor], Tensor], at: Tensor, slopes: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor | None]:
    """The outputs at points, `(b, K)`, and the gradient there, `(b, *feature)`; `None` if no gradient comes back.

    Args:
        head: function from features to outputs.
        at: points, `(b, *feature)`.
        slopes: gradient of the aim in the outputs, a function of the outputs `(b, K)`.
    """
    with torch.enable_grad():
        leaf = at.detach().requires_grad_()
        outputs = columns(head(leaf))
    found = outputs.detach()
    if not outputs.requires_grad:
        return found, None
    return found, torch.autograd.grad(outputs, leaf, slopes(found), allow_unused=True)[0]


def raise_if_cut(
    head: Callable[[Tensor], Tensor],
    center: Tensor,
    far: Tensor,
    slopes: Callable[[Tensor], Tensor] = torch.ones_like,
) -> None:
    """Raise an error if the outputs vary with the features, but no gradient says so.

    Call it only if the gradient at `center` is zero for all samples. That alone is no error: all ReLUs of a network may
    be off there. So the function looks for a gradient, and for changes of the outputs, between `center` and `far`.

    Args:
        head: function from features `(b, *feature)` to outputs.
        center: features, `(b, *feature)`.
        far: other features, `(b, *feature)`.
        slopes: gradient of the aim in the outputs, a function of the outputs `(b, K)`.

    Raises:
        ValueError: if the derivative of the network is cut.
    """
    with torch.no_grad():
        outputs = columns(head(center))
    varies = False
    for part in _PROBES:
        other, gradient = input_gradient(head, center + part * (far - center), slopes)
        if gradient is not None and gradient.any():
            return
        rounding = 64 * torch.finfo(other.dtype).eps * outputs.abs().max()
        varies |= bool((other - outputs).abs().max() > rounding)
    if varies:
        raise ValueError(
            "model: its outputs change with the features, but their gradient is zero for all samples, so that there is "
            "no direction to follow. Something between the layer and the outputs cuts the gradient: detach(), "
            "torch.no_grad(), rounding, a comparison, or a custom backward that returns zeros. Remove it, or take a "
            "layer behind it."
        )
