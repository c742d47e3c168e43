"""Operations whose derivatives PyTorch reports wrongly, and for which there is no composition: they are refused."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from .failures import DerivativeError

_RANDOM = "it draws numbers that depend on its arguments; write mean + std * torch.randn_like(mean)"
_STATISTICS = "its derivatives are wrong beside batch statistics; use torch.nn.functional.batch_norm in evaluation mode"
_EIGEN = "its third derivative is wrong; use torch.linalg.eigh if the matrix is symmetric"
_BESSEL = "its third derivative is wrong at 0"
_PRODUCT = "its first derivative is wrong for reduce='prod'; use torch.prod"

#: Maps a function of PyTorch to what is wrong with it, and the way out.
_REASONS: dict[Callable, str] = {
    torch.normal: _RANDOM,
    torch.native_batch_norm: _STATISTICS,
    torch._native_batch_norm_legit: _STATISTICS,  # pyright: ignore[reportPrivateImportUsage]
    torch.ops.aten._batch_norm_with_update: _STATISTICS,
    torch.linalg.eig: _EIGEN,
    torch.linalg.eigvals: _EIGEN,
    torch.special.i1: _BESSEL,
    torch.special.i1e: _BESSEL,
    torch.as_strided_scatter: "its gradient is wrong where its strides overlap; use torch.scatter",
    Tensor.as_strided_scatter: "its gradient is wrong where its strides overlap; use torch.scatter",
    torch.scatter_reduce: _PRODUCT,
    Tensor.scatter_reduce: _PRODUCT,
    Tensor.scatter_reduce_: _PRODUCT,
}


def _is_differentiated(item) -> bool:
    if isinstance(item, (list, tuple)):
        return any(map(_is_differentiated, item))
    return isinstance(item, Tensor) and (item.requires_grad or is_functorch_wrapped_tensor(item))


def _refusing(function: Callable, reason: str) -> Callable:
    """The function, which raises a `DerivativeError` with its name and the way out if it is differentiated."""

    def refusing(*args, **kwargs):
        given = [*args, *kwargs.values()]
        harmless = reason is _PRODUCT and not any(isinstance(z, str) and z == "prod" for z in given)
        if not harmless and _is_differentiated(given):
            name = getattr(function, "__name__", str(function))
            raise DerivativeError(f"model: {name} cannot be differentiated here: {reason}.")
        return function(*args, **kwargs)

    return refusing


def refuse_wrapped(name: str, input: Tensor, reason: str) -> None:
    """Refuse a layer inside of a transform of `torch.func`.

    Args:
        name: name of the layer.
        input: its input.
        reason: what is wrong, and the way out.

    Raises:
        DerivativeError: if the input is inside of a transform.
    """
    if is_functorch_wrapped_tensor(input):
        raise DerivativeError(f"model: {name} cannot be differentiated here: {reason}.")


#: Maps a function of PyTorch to one that refuses to be differentiated.
REFUSED: dict[Callable, Callable] = {function: _refusing(function, reason) for function, reason in _REASONS.items()}
