r"""How tangents pass single operations, and what each contributes to a second directional derivative.

| operation | tangent behind | local second derivative against the cotangent `adj` |
|---|---|---|
| linear in its argument (layers, pooling, shapes, sums) | the same without bias | none |
| elementwise σ | σ'(z) ż | Σ adj σ''(z) ż² |
| product `x ∘ y` (elementwise, matrix) | ẋ ∘ y + x ∘ ẏ | Σ 2 adj (ẋ ∘ ẏ) |
| softmax s | s (ż - ⟨s, ż⟩) | Σ (adj - ⟨adj, s⟩) s (ż - ⟨s, ż⟩)² |
| standardisation (layer, group, instance norm) | from the moments of c ċ | from the moments of c ċ, ċ² and adj ċ |
| anything else that `torch.func` differentiates | `jvp` of that operation | `jvp(jvp)` of that operation |

A tangent has one dimension more than its value, in front: the directions. Tangents that are the same for all samples
have size 1 along the samples until the first operation whose derivative depends on them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .activations import all_names
from .tape import Layout, Recorder, Value

#: torch function -> handler `(recorder, function, *args, **kwargs) -> result`.
RULES: dict[Callable, Callable] = {}


def rule(*names: str, also: tuple[Callable, ...] = ()):
    """Register a handler under all the names that PyTorch gives an operation."""

    def register(handler):
        RULES.update(dict.fromkeys([*all_names(*names), *also], handler))
        return handler

    return register


def per_sample(out: Value, samples: int, product: Tensor) -> Tensor:
    """Sum `product` `(m, *shape)` over the entries of each sample, `(m, b)`, unless that is done already."""
    if product.ndim == 2 and product.shape[1] == samples:
        return product
    dim, per = out.layout
    product = product.expand(len(product), *product.shape[1 : dim + 1], samples * per, *product.shape[dim + 2 :])
    if dim:
        product = product.movedim(dim + 1, 1)
    return product.flatten(2).sum(-1).unflatten(1, (samples, per)).sum(-1) if per > 1 else product.flatten(2).sum(-1)


def aligned(layout: Layout, before: Value, after: Tensor) -> Layout | None:
    """Samples behind an operation that broadcasts."""
    dim = layout[0] + after.ndim - before.ndim
    return (dim, layout[1]) if after.shape[dim] == before.shape[layout[0]] else None


def common(layouts: list[Layout | None]) -> Layout | None:
    """The layout that all of them have."""
    return layouts[0] if all(layout == layouts[0] for layout in layouts) else None


def spread(tangent: Tensor, value: Value) -> Tensor:
    """A tangent that is the same for all samples, written out for each."""
    if tangent.shape[1:] == value.shape:
        return tangent
    return tangent.expand(len(tangent), *value.shape)


def mapped(function: Callable[[Tensor], Tensor], value: Value) -> Callable[[Tensor], Tensor]:
    """Apply a linear function of a value to a stack of tangents."""
    over = torch.vmap(function)
    return lambda t: over(spread(t, value))


def tracked_elsewhere(rec: Recorder, args, kwargs) -> bool:
    """Whether any of these arguments depends on the features."""
    return any(rec.find(item) is not None for item in [*args, *kwargs.values()])
