r"""Jacobian rows, tangents `J v` and second derivatives `a·∇²f[v, v]` of a head, for many directions at once.

| path | computation | cost of m directions, in forward passes |
|---|---|---|
| `"tangent-adjoint"` | one recorded forward pass, one reverse pass, m tangents through the recording | about m + 2 |
| `"nested"` | `jvp(jvp)` of the whole head, one row for each direction and sample | about 6 m |

Both paths give the same results. `Linearization.path` says which one is used, and why.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch._C._functorch import peek_interpreter_stack

from ...setting.ambient import undisturbed
from ...setting.inputs import Inputs
from ...setting.layers import split
from ...setting.network import Network, Output
from ..derivatives import curve_coefficients, jacobian_rows
from ..replacements import exact_derivatives
from . import attention, linear, nonlinear, products, standardization  # noqa: F401  (to register their rules)
from .base import Linearization, gradients
from .local import local_rule
from .rules import RULES
from .tape import Recorder, UnsupportedOperationError, graph_nodes
from .taped import Taped

ENGINES = ("auto", "tangent-adjoint", "nested")


class _Nested(Linearization):
    """Derivatives by nested `torch.func` of the whole head."""

    def __init__(self, head: Callable[[Tensor], Tensor], h: Tensor, differentiable: bool, reason: str):
        self.head, self.h, self.differentiable = head, h, differentiable
        self.path = f"nested torch.func ({reason})"
        with gradients(differentiable):
            self.outputs = head(h)

    @property
    def width(self):
        return self.h[0].numel()

    @undisturbed()
    def rows(self):
        with gradients(self.differentiable):
            rows = jacobian_rows(self.head, self.h)
            return rows.reshape(*rows.shape[:2], -1)

    @undisturbed()
    def pullback(self, slope):
        with gradients(self.differentiable):
            return torch.func.vjp(self.head, self.h)[1](slope)[0].reshape(len(self.h), -1)

    def propagate(self, directions):
        return directions.reshape(*directions.shape[:2], -1)

    def _block_rows(self):
        return 4 * len(self.h)

    def _coefficients(self, coefficients: list[Tensor], order: int, propagated: bool) -> list[Tensor]:
        """The Taylor coefficients 0, .., order along the paths `h + Σ ε^k c_k`, each `(m, b, K)`."""
        m, b = len(coefficients[0]), len(self.h)
        shape = (m, b, *self.h.shape[1:])
        given = [(c.reshape(*c.shape[:2], *shape[2:]) if propagated else c).expand(shape) for c in coefficients]
        points = self.h.repeat(m, *[1] * (self.h.ndim - 1))
        curve = [points, *(c.flatten(0, 1) for c in given)]
        return [d.unflatten(0, (m, b)) for d in curve_coefficients(self.head, curve, order=order)]

    def _block(self, directions, slope, tangents, propagated):
        results = self._coefficients([directions], 1 if slope is None else 2, propagated)
        return results[1] if tangents else None, None if slope is None else (2 * results[2] * slope).sum(-1)

    def _series_block(self, coefficients, slope, order, propagated):
        with gradients(self.differentiable):
            _, *lower, highest = self._coefficients(coefficients, order, propagated)
            return lower, (highest * slope).sum(-1)


@undisturbed()
def linearize(
    head: Callable[[Tensor], Tensor],
    h: Tensor,
    *,
    engine: str = "auto",
    differentiable: bool | None = None,
    order: int = 2,
) -> Linearization:
    """Linearize a head at features `h`: derivatives along any number of directions.

    Args:
        head: the head in evaluation mode. It maps `(b, *feature)` to `(b, K)`, each sample on its own.
        h: the features, `(b, *feature)`, floating point.
        engine: `"tangent-adjoint"` records the head operation by operation, `"nested"` differentiates it as a whole.
            `"auto"` records if every operation of the head allows it, and differentiates as a whole otherwise. The
            results are the same.
        differentiable: True if results shall carry gradients to parameters and features; `None` means True while
            gradients are enabled.
        order: 2; from 3 on, what `Linearization.series` and `third_order` need is kept, which takes more memory.

    Raises:
        ValueError: for an unknown engine, or if `"tangent-adjoint"` is requested and an operation cannot be recorded.

    Example:
        >>> h = torch.tensor([[0.5, -1.0]], dtype=torch.float64)
        >>> at = linearize(lambda u: (u**3).sum(-1, keepdim=True), h)
        >>> at.sweep(torch.eye(2, dtype=h.dtype).unsqueeze(1), torch.ones(1, 1, dtype=h.dtype))[1].tolist()  # 6 h
        [[3.0], [-6.0]]
    """
    if engine not in ENGINES:
        raise ValueError(f"engine: expected one of {list(ENGINES)}, got {engine!r}.")
    differentiable = torch.is_grad_enabled() if differentiable is None else differentiable
    h = h.clone() if h.is_inference() else h
    if engine == "nested":
        return _Nested(head, h, differentiable, "as asked")
    if peek_interpreter_stack() is not None:  # the tape needs gradients of its own
        return _Nested(head, h, differentiable, "inside a transform of torch.func")
    leaf = h if differentiable and h.requires_grad else h.detach().requires_grad_()

    def record() -> tuple[Recorder, Tensor]:
        recorder = Recorder(RULES, local_rule, light=not differentiable and order < 3)
        with torch.enable_grad(), recorder:
            return recorder, head(recorder.start(leaf))

    try:
        recorder, outputs = record()
        if recorder.light:
            return Taped(recorder, outputs, False, record)
        if not differentiable:
            return Taped(recorder, outputs, False)
        # Results carry gradients if the features or any parameters require them.
        others = (getattr(node, "variable", leaf) is not leaf for node in graph_nodes(outputs.grad_fn))
        return Taped(recorder, outputs, leaf is h or any(others))
    except UnsupportedOperationError as error:
        if engine == "tangent-adjoint":
            raise ValueError(
                f"engine='tangent-adjoint' cannot follow {error}; use engine='auto', which differentiates such a "
                "head as a whole and gives the same result."
            ) from error
        return _Nested(head, h, differentiable, str(error))


def linearize_layer(model: nn.Module, x: Inputs, layer: str = "", *, output: Output = None) -> Linearization:
    """Linearize the head after a layer at the features of `x`, by a single forward pass of the model.

    This function is for training: it checks nothing (`split` does), and the results carry gradients to all parameters,
    those before the layer included.

    Args:
        model: network in evaluation mode.
        x: inputs, `(b, *input)`, or a tuple or dict of such.
        layer: dotted name of the layer; `""` is the input.
        output: which part of what the model returns are the outputs, `(b, K)` or `(b,)`.
    """
    network, recorder = Network(model, None, output), Recorder(RULES, local_rule)

    def begin(module, args, output):
        return recorder.start(output if output.requires_grad else output.detach().requires_grad_())

    try:
        with torch.enable_grad(), recorder:
            if layer:
                with network.hook(layer, begin):
                    outputs = network(x)
            else:
                outputs = network(begin(None, None, x))
            outputs = outputs.unsqueeze(-1) if outputs.ndim == 1 else outputs
        return Taped(recorder, outputs, True)
    except UnsupportedOperationError as error:
        cut = split(model, x, layer=layer, output=output)
        with torch.enable_grad(), exact_derivatives():
            return _Nested(_columns(cut.head), cut.encode(x), True, str(error))


def _columns(head: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The same head with exact derivatives, and with outputs `(b, K)` even if K = 1."""

    def columns(h: Tensor) -> Tensor:
        with exact_derivatives():
            outputs = head(h)
        return outputs.unsqueeze(-1) if outputs.ndim == 1 else outputs

    return columns
