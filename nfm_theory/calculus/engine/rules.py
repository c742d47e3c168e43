r"""Rules of single operations: their effect on tangents, and their contribution to a second directional derivative.

| operation | tangent of the result | local second derivative, contracted with the cotangent `adj` |
|---|---|---|
| linear in its argument (layers, pooling, shapes, sums) | the same without bias | none |
| elementwise σ | σ'(z) ż | Σ adj σ''(z) ż² |
| product `x ∘ y` (elementwise, matrix) | ẋ ∘ y + x ∘ ẏ | Σ 2 adj (ẋ ∘ ẏ) |
| softmax s | s (ż - ⟨s, ż⟩) | Σ (adj - ⟨adj, s⟩) s (ż - ⟨s, ż⟩)² |
| standardization (layer, group, instance norm) | from the moments of c ċ | from the moments of c ċ, ċ² and adj ċ |
| attention, as one operation | see `attention.py` | see `attention.py` |
| anything else that `torch.func` differentiates | `jvp` of that operation | `jvp(jvp)` of that operation |

A tangent has one more dimension than its value: dimension 0 counts the directions. A tangent that all samples share
has size 1 along the samples, until the first operation whose derivative depends on the sample.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .activations import all_names
from .tape import Layout, Recorder, Value

#: Maps a function of PyTorch to its handler `(recorder, function, *args, **kwargs) -> result`.
RULES: dict[Callable, Callable] = {}


def rule(*names: str, also: tuple[Callable, ...] = ()):
    """Register a handler under all names that PyTorch gives an operation, and for the functions in `also`."""

    def register(handler):
        RULES.update(dict.fromkeys([*all_names(*names), *also], handler))
        return handler

    return register


def per_sample(out: Value, samples: int, product: Tensor) -> Tensor:
    """Sum `product` `(m, *shape)` over the entries of each sample, to `(m, b)`; leave it alone if it has that shape."""
    if product.ndim == 2 and product.shape[1] == samples:
        return product
    dim, per = out.layout
    product = product.expand(len(product), *product.shape[1 : dim + 1], samples * per, *product.shape[dim + 2 :])
    if dim:
        product = product.movedim(dim + 1, 1)
    return product.flatten(2).sum(-1).unflatten(1, (samples, per)).sum(-1) if per > 1 else product.flatten(2).sum(-1)


def aligned(layout: Layout, before: Value, after: Tensor) -> Layout | None:
    """The layout of the samples after an operation that broadcasts; `None` if they are spread over new entries."""
    dim = layout[0] + after.ndim - before.ndim
    return (dim, layout[1]) if after.shape[dim] == before.shape[layout[0]] else None


def common(layouts: list[Layout | None]) -> Layout | None:
    """The layout if all layouts are equal, otherwise `None`."""
    return layouts[0] if all(layout == layouts[0] for layout in layouts) else None


def spread(tangent: Tensor, value: Value) -> Tensor:
    """Expand a tangent that all samples share, so that it has one entry for each sample."""
    return tangent if tangent.shape[1:] == value.shape else tangent.expand(len(tangent), *value.shape)


def mapped(function: Callable[[Tensor], Tensor], value: Value) -> Callable[[Tensor], Tensor]:
    """A function that applies a linear function of the value to a stack of its tangents."""
    over = torch.vmap(function)
    return lambda t: over(spread(t, value))


def tracked_elsewhere(rec: Recorder, args, kwargs) -> bool:
    """True if any of these arguments depends on the features."""
    return any(rec.find(item) is not None for item in [*args, *kwargs.values()])
