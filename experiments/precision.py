"""bfloat16 where the processor has instructions for it.

A processor without them imitates bfloat16, which takes about ten times as long as float32 (training the network of
`fashion-compact`: 77 images a second in bfloat16, 693 in float32, on one core with AVX2 only). There a recipe in
bfloat16 is computed in float32, and each line of the ledger says so.
"""

from __future__ import annotations

import torch

from .record.entry import COMPUTED_IN_FLOAT32

#: What the commands say before they start.
NOTICE = "This processor has no instructions for bfloat16: recipes in bfloat16 are computed in float32."


def has_bfloat16(device: torch.device | str) -> bool:
    """True if a device has instructions for bfloat16. GPUs are taken to have them."""
    return torch.device(device).type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def uses_autocast(precision: str, device: torch.device | str) -> bool:
    """True if a recipe of this precision runs under autocast to bfloat16 on this device."""
    return precision == "bfloat16" and has_bfloat16(device)


def computed_in(precision: str, device: torch.device | str) -> dict[str, str]:
    """What a record says about the arithmetic: `COMPUTED_IN_FLOAT32`, or nothing if it is that of the recipe."""
    return COMPUTED_IN_FLOAT32 if precision == "bfloat16" and not has_bfloat16(device) else {}
