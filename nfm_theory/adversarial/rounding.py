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
#: Roundoff of the factors of float32 products under `torch.set_float32_matmul_precision`, and in TF32.
_REDUCED = {"highest": 2.0**-24, "high": 2.0**-11, "medium": 2.0**-8}


def in_double(z: Tensor) -> Tensor:
    """The tensor in float64; unchanged on a device that has no float64."""
    return z if z.device.type == "mps" else z.double()


def sum_error(count: int, unit: float = UNIT) -> float:
    """γ, the relative error of a sum of `count` products; infinite if there are too many for the precision."""
    part = count * unit
    return part / (1 - part) if part < 0.5 else math.inf


def unit_roundoff(dtype: torch.dtype, device: torch.device, *, convolution: bool = False) -> float:
    """Unit roundoff with which a network of this dtype multiplies on this device.

    Args:
        dtype: float32 or float64.
        device: device of the network.
        convolution: True for a convolution, which CUDA devices may compute in TF32.

    Raises:
        ValueError: for other dtypes.
    """
    if dtype not in _ROUNDOFF:
        raise ValueError(
            f"model: certificates are for float32 and float64, got {dtype}; model.float() and x.float() have the same "
            "weights and features without any rounding."
        )
    if dtype == torch.float64:
        return UNIT
    unit = _REDUCED[torch.get_float32_matmul_precision()]
    if convolution and device.type == "cuda" and torch.backends.cudnn.allow_tf32:
        unit = max(unit, _REDUCED["high"])
    return unit


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
