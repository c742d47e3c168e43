"""Random numbers in sufficient precision, on every device."""

from __future__ import annotations

import torch
from torch import Tensor

#: Devices that can draw float64 numbers. Others, such as Apple's, may have no float64 at all.
DOUBLE = ("cpu", "cuda")


def uniform(shape: tuple[int, ...], generator: torch.Generator | None, device) -> Tensor:
    """Uniform(0, 1) in float64, drawn on the generator's device: a CPU seed gives the same numbers everywhere.

    In place of a device that may lack float64, the CPU draws. A generator on such a device seeds one on the CPU.

    Args:
        shape: shape of the result.
        generator: random generator; the global one of the device if `None`.
        device: device without a generator; `None` means the default device.
    """
    if generator is not None:
        source = generator.device
    else:
        source = torch.get_default_device() if device is None else torch.device(device)
    if source.type not in DOUBLE:
        if generator is not None:
            high, low = torch.randint(2**31, (2,), generator=generator, device=source).tolist()
            generator = torch.Generator().manual_seed(high * 2**31 + low)
        source = torch.device("cpu")
    return torch.rand(shape, generator=generator, dtype=torch.float64, device=source)


def at_least_single(dtype: torch.dtype | None = None) -> torch.dtype:
    """The dtype itself, or float32 in place of half precision, which has too few different random numbers.

    Args:
        dtype: floating dtype; `None` means the default dtype.
    """
    dtype = dtype or torch.get_default_dtype()
    return torch.float32 if dtype.itemsize < 4 else dtype
