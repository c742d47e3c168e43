"""Affine steps of a network: their bounds, their adjoints and their rounding errors (theory §5)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .module_chain import AVERAGES, CONVOLUTIONS, NORMS, UNMIXED, WEIGHTED
from .rounding import network_error

_Convolve = Callable[..., Tensor]
_CONVOLVE: dict[type[nn.Module], _Convolve] = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}


class Affine:
    """An affine step `z -> A z + a` on each sample, given by its module in float64 and the dtype of the network."""

    def __init__(self, module: nn.Module, dtype: torch.dtype = torch.float64):
        self.module, self.dtype = module, dtype

    def __call__(self, z: Tensor) -> Tensor:
        """The output A z + a."""
        return self.module(z)

    def _weighted(self, r: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        """The output for weights `change(A)`, without the bias."""
        m = self.module
        if isinstance(m, nn.Linear):
            return F.linear(r, change(m.weight))
        if isinstance(m, NORMS):
            return r * self._per_channel(change(self._norm_scale), r)
        assert isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
        return _CONVOLVE[type(m)](r, change(m.weight), None, m.stride, m.padding, m.dilation, m.groups)

    @property
    def _norm_scale(self) -> Tensor:
        m = cast(nn.BatchNorm2d, self.module)
        return (cast(Tensor, m.running_var) + m.eps).rsqrt() * (1 if m.weight is None else m.weight)

    @staticmethod
    def _per_channel(values: Tensor, r: Tensor) -> Tensor:
        return values.reshape(1, -1, *[1] * (r.ndim - 2))

    def linear(self, z: Tensor) -> Tensor:
        """The linear part A z of the output."""
        return self._weighted(z, lambda weight: weight) if isinstance(self.module, WEIGHTED) else self.module(z)

    def spread(self, r: Tensor) -> Tensor:
        """The half widths `|A| r` of the output, for half widths r ≥ 0 of the input."""
        if isinstance(self.module, (*UNMIXED, *AVERAGES)):
            return self.module(r).abs()
        return self._weighted(r, torch.abs)

    def row_squares(self, r: Tensor) -> Tensor | None:
        """Squared row norms `(A∘A) r`, if r holds squares of independent parts; `None` for averages."""
        if isinstance(self.module, UNMIXED):
            return self.module(r)
        return None if isinstance(self.module, AVERAGES) else self._weighted(r, torch.square)

    @property
    def mixes(self) -> bool:
        """True if an output may depend on several inputs."""
        return not isinstance(self.module, (*UNMIXED, *NORMS))

    def magnitude(self, size: Tensor) -> Tensor:
        """The sizes `|A| |z| + |a|` of the output before anything cancels, for sizes |z| of the input."""
        found, m = self.spread(size), self.module
        if isinstance(m, NORMS):
            shift = (cast(Tensor, m.running_mean) * self._norm_scale).abs()
            return found + self._per_channel(shift if m.bias is None else shift + m.bias.abs(), found)
        if isinstance(m, nn.Linear) and m.bias is not None:
            return found + m.bias.abs()
        if isinstance(m, CONVOLUTIONS) and m.bias is not None:
            return found + self._per_channel(m.bias.abs(), found)
        return found

    def network_error(self, magnitude: Tensor, before: Tensor) -> Tensor:
        """How far the step, as the network computes it, may be from A z + a.

        Args:
            magnitude: the sizes `magnitude(|z|)`.
            before: a tensor of the shape of the step's input, `(b, *in)`.
        """
        m = self.module
        if isinstance(m, UNMIXED):
            return torch.zeros_like(magnitude)
        count = 16
        if isinstance(m, (nn.Linear, *CONVOLUTIONS)):
            count += m.weight[0].numel()
        elif isinstance(m, AVERAGES):
            size = getattr(m, "kernel_size", before.shape[2:])
            count += math.prod(size) if isinstance(size, tuple) else size**3
        return network_error(magnitude, count, self.dtype, convolution=isinstance(m, CONVOLUTIONS))

    def pull(self, c: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """Write a linear function of the step's output as one of its input, with coefficients `cᵀA` and constant `c·a`.

        Args:
            c: coefficients of the function of the output, `(J, b, *out)`.
            before: a tensor of the shape of the step's input, `(b, *in)`.
        """
        constant = (c * self.module(torch.zeros_like(before[:1]))).flatten(2).sum(2)
        if isinstance(self.module, nn.Linear):
            return c @ self.module.weight, constant
        blank = before.new_zeros(len(c) * before.shape[0], *before.shape[1:])
        pulled = torch.func.vjp(self.module, blank)[1](c.flatten(0, 1))[0]
        return pulled.unflatten(0, c.shape[:2]), constant
