"""Random numbers in sufficient precision, on every device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

#: Devices that can draw float64 numbers. Others, such as Apple's, may have no float64 at all.
DOUBLE = ("cpu", "cuda")


def checked_generator(generator: object) -> torch.Generator | None:
    """The generator itself.

    Raises:
        TypeError: if it is neither a generator nor `None`.
    """
    if generator is None or isinstance(generator, torch.Generator):
        return generator
    seed = generator if isinstance(generator, int) else 0
    raise TypeError(
        f"generator: expected a torch.Generator or None, got {generator!r}; pass torch.Generator().manual_seed({seed})."
    )


def home_of(generator: torch.Generator | None, otherwise: Any) -> Any:
    """The device of a generator, where all random numbers are drawn, or another one without a generator."""
    generator = checked_generator(generator)
    return otherwise if generator is None else generator.device


def seed_of(generator: torch.Generator | None) -> int:
    """A seed for what is drawn again and again, 0 without a generator."""
    generator = checked_generator(generator)
    if generator is None:
        return 0
    return int(torch.randint(2**62, (), generator=generator, device=generator.device))


def uniform(shape: tuple[int, ...], generator: torch.Generator | None, device) -> Tensor:
    """Uniform(0, 1) in float64, drawn on the generator's device: a CPU seed gives the same numbers everywhere.

    In place of a device that may lack float64, the CPU draws. A generator on such a device seeds one on the CPU.

    Args:
        shape: shape of the result.
        generator: random generator; the global one of the device if `None`.
        device: device without a generator; `None` means the default device.
    """
    source = home_of(generator, torch.get_default_device() if device is None else torch.device(device))
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
