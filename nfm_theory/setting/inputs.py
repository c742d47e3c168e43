"""What a model is given: one tensor, or several by position or by name; the first dimension of each is the batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

#: One tensor `(n, *input)`, a sequence of tensors for `model(*x)`, or tensors by name for `model(**x)`.
Inputs = Tensor | Sequence[Tensor] | Mapping[str, Tensor]


def as_inputs(x: Any) -> Tensor | tuple[Tensor, ...] | dict[str, Tensor]:
    """The inputs as a tensor, a tuple or a dict.

    Raises:
        TypeError: for anything but tensors.
        ValueError: if the tensors have different batch sizes, or there is none.
    """
    if isinstance(x, Tensor):
        return x
    found = dict(x) if isinstance(x, Mapping) else tuple(x) if isinstance(x, (tuple, list)) else None
    if found is None or not all(isinstance(leaf, Tensor) for leaf in leaves(found)):
        parts = "" if found is None else " of " + ", ".join(sorted({type(leaf).__name__ for leaf in leaves(found)}))
        raise TypeError(
            "x: expected a tensor (n, *input), or a tuple or dict of tensors with the batch first, got "
            f"{type(x).__name__}{parts}; give other arguments to the model in a function of your own."
        )
    sizes = {len(leaf) if leaf.ndim else 0 for leaf in leaves(found)}
    if len(sizes) != 1:
        raise ValueError(f"x: expected tensors of one batch size, got {sorted(sizes) or 'no tensor'}.")
    return found


def leaves(x: Any) -> list[Tensor]:
    """The tensors of the inputs."""
    return [x] if isinstance(x, Tensor) else list(x.values()) if isinstance(x, Mapping) else list(x)


def each(x: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The inputs with a function applied to each tensor."""
    if isinstance(x, Tensor):
        return function(x)
    if isinstance(x, Mapping):
        return {name: function(leaf) for name, leaf in x.items()}
    return tuple(function(leaf) for leaf in x)


def batch_size(x: Any) -> int:
    """The number n of samples."""
    return len(leaves(x)[0])


def floating_dtype(x: Any) -> torch.dtype:
    """The dtype of the first floating-point tensor, or PyTorch's default."""
    return next((leaf.dtype for leaf in leaves(x) if leaf.is_floating_point()), torch.get_default_dtype())


def is_shared(leaf: Tensor) -> bool:
    """True if all samples, of which there are several, have the same values, such as a mask without padding."""
    return len(leaf) > 1 and bool((leaf == leaf[:1]).all())


def varying(x: Any) -> list[Tensor]:
    """The tensors that differ from sample to sample; one tensor alone counts as such."""
    found = [leaf for leaf in leaves(x) if not is_shared(leaf)]
    return found if found and not isinstance(x, Tensor) else leaves(x)


def other_inputs(x: Any) -> Any:
    """Inputs of the same shapes that differ from these, except for what all samples share."""
    kept = {id(leaf) for leaf in leaves(x)} - {id(leaf) for leaf in varying(x)}
    return each(x, lambda z: z if id(z) in kept else z * 0.5 if z.is_floating_point() else z.roll(1, -1))


def arguments(x: Any) -> tuple[Any, Any]:
    """The positional and the named arguments of a model that takes these inputs."""
    return ((x,), {}) if isinstance(x, Tensor) else ((), x) if isinstance(x, Mapping) else (x, {})
