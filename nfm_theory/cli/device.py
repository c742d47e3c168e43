"""The device that a user names."""

from __future__ import annotations

import torch


def parse_device(name: str) -> torch.device:
    """The device of an option.

    Args:
        name: `cpu`, `cuda` or `cuda:N`.

    Raises:
        ValueError: for another name, and for a GPU that there is not.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda") or (device.type == "cpu" and device.index is not None):
        raise ValueError(f"--device: expected cpu or cuda (cuda:1 for the second GPU), got {name!r}.")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"--device: expected a CUDA device for {name!r}, found none; use --device cpu.")
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise ValueError(f"--device: expected one of cuda:0 to cuda:{count - 1}, got {name!r}.")
    return device
