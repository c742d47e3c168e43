r"""Rounding errors of certificates, bounded instead of hoped for (theory §5).

A certificate is computed in float64. Every sum of products in it has a proved error bound: for n products, in any order
of summation and with or without fused operations,

$$ \Big|\mathrm{fl}\Big(\sum_j a_j b_j\Big) - \sum_j a_j b_j\Big| \le \gamma_n \sum_j |a_j|\,|b_j|, \qquad
   \gamma_n = \frac{n u}{1 - n u} $$

(Higham 2002, Accuracy and Stability of Numerical Algorithms, section 3.1), with the unit roundoff u, 2⁻⁵³ in float64.
The same bound says how far the network strays from exact arithmetic when it computes in its own precision.

The elementary functions (exp, tanh, erf, ...) have no such proof. `FUNCTION_ERROR` is assumed of them, and tested.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: Unit roundoff of float64, in which certificates are computed.
UNIT = 2.0**-53
#: Error of an activation that is computed, in unit roundoffs of `1 + |z| + |σ(z)|`.
FUNCTION_ERROR = 16
_ROUNDOFF = {torch.float64: UNIT, torch.float32: 2.0**-24}
#: Rounding of the factors of float32 products under `torch.set_float32_matmul_precision`; "high" is TF32.
_REDUCED = {"highest": 0.0, "high": 2.0**-11, "medium": 2.0**-8}


def in_double(z: Tensor) -> Tensor:
    """The tensor in float64, on the CPU if its device has no float64."""
    return z.cpu().double() if z.device.type == "mps" else z.double()


def sum_error(count: int, unit: float = UNIT) -> float:
    """γ, the relative error of a sum of `count` products; infinite if there are too many for the precision."""
    part = count * unit
    return part / (1 - part) if part < 0.5 else math.inf


def check_precision(dtype: torch.dtype) -> torch.dtype:
    """The dtype of a network, if its rounding errors are known.

    Raises:
        ValueError: for all dtypes but float32 and float64.
    """
    if dtype not in _ROUNDOFF:
        raise ValueError(
            f"model: certificates are for float32 and float64, got {dtype}; model.float() and x.float() have the same "
            "weights and features without any rounding."
        )
    return dtype


def network_error(magnitude: Tensor, count: int, dtype: torch.dtype, *, convolution: bool = False) -> Tensor:
    """Bound of the rounding error of a network that sums `count` products, which have the total size `magnitude`.

    Args:
        magnitude: total sizes of the products.
        count: number of products in one sum.
        dtype: dtype of the network, float32 or float64.
        convolution: True for a convolution, whose factors CUDA devices may round to TF32.

    Returns:
        The bounds; infinite where the network may overflow.
    """
    low = 0.0
    if dtype == torch.float32:
        low = _REDUCED[torch.get_float32_matmul_precision()]
        if convolution and torch.cuda.is_available() and torch.backends.cudnn.allow_tf32:
            low = max(low, _REDUCED["high"])
    relative = 1.001 * (sum_error(count, _ROUNDOFF[dtype]) + 3 * low)
    error = relative * magnitude + count * torch.finfo(dtype).tiny * (magnitude > 0)
    return torch.where(magnitude < torch.finfo(dtype).max / 8, error, torch.inf)


def _towards(values: Tensor, dtype: torch.dtype, end: float) -> Tensor:
    rounded = values.to(dtype)
    wrong = rounded.double() < values if end > 0 else rounded.double() > values
    return torch.where(wrong, torch.nextafter(rounded, torch.full_like(rounded, end)), rounded)


def rounded_down(values: Tensor, like: Tensor) -> Tensor:
    """Numbers in float64 as the nearest ones of the dtype of `like` that are not larger, on its device."""
    return _towards(values, like.dtype, -math.inf).to(like.device)


def rounded_up(values: Tensor, like: Tensor) -> Tensor:
    """Numbers in float64 as the nearest ones of the dtype of `like` that are not smaller, on its device."""
    return _towards(values, like.dtype, math.inf).to(like.device)
