"""Max pooling as a step of a network, and the lines that enclose it (theory §5)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MaxPool:
    """A step of two-dimensional max pooling."""

    kink_slope = None

    def __init__(self, module: nn.MaxPool2d):
        self.module = module
        pair = lambda value: (value, value) if isinstance(value, int) else tuple(value)  # noqa: E731
        self._kernel, self._stride = pair(module.kernel_size), pair(module.stride)
        self._padding = pair(module.padding)

    def __call__(self, z: Tensor) -> Tensor:
        """The maxima of the windows."""
        return self.module(z)

    def interval(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """An interval that contains the maxima."""
        return self(lo), self(hi)

    def _windows(self, z: Tensor) -> Tensor:
        """Entries of every window, `(b, C, k, L)`; padding is a very small number in place of -inf."""
        (top, left), floor = self._padding, -torch.finfo(z.dtype).max / 4
        padded = F.pad(z, (left, left, top, top), value=floor)
        return F.unfold(padded, self._kernel, stride=self._stride).unflatten(1, (z.shape[1], -1))

    def lines(self, lo: Tensor, hi: Tensor, slack: Tensor | None = None) -> WindowLines:
        """Lines that enclose the maxima: an entry of the window below; above it, too, if it always wins.

        Args:
            lo: smallest values of the entries.
            hi: largest values of the entries.
            slack: not used; it is an argument of `Scalar.lines`.
        """
        below, above = self._windows(lo), self._windows(hi)
        best = below.argmax(2, keepdim=True)
        others = above.scatter(2, best, -torch.finfo(lo.dtype).max).amax(2, keepdim=True)
        wins = below.gather(2, best) >= others
        ceiling = torch.where(wins, torch.zeros_like(others), above.amax(2, keepdim=True))
        return WindowLines(self, lo.shape[1:], best.squeeze(2), wins.squeeze(2), ceiling.squeeze(2))

    def fold(self, entries: Tensor, shape: torch.Size) -> Tensor:
        """Adjoint of `_windows`: `(rows, C, k, L)` to `(rows, *shape)`."""
        (top, left), (_, height, width) = self._padding, shape
        size = (height + 2 * top, width + 2 * left)
        full = F.fold(entries.flatten(1, 2), size, self._kernel, stride=self._stride)
        return full[..., top : top + height, left : left + width]


@dataclass(frozen=True)
class WindowLines:
    """Lines that enclose the maxima of `MaxPool`.

    Attributes:
        pool: the step.
        shape: shape of one input.
        best: position of the chosen entry in each window.
        wins: True if the chosen entry is always the largest one.
        ceiling: upper bound of the maximum where the chosen entry may not be the largest one, else 0.
    """

    pool: MaxPool
    shape: torch.Size
    best: Tensor
    wins: Tensor
    ceiling: Tensor

    @property
    def loose(self) -> Tensor:
        """True for windows in which several entries may be the largest one."""
        return ~self.wins

    def magnitude(self, like: Tensor) -> Tensor:
        """Sizes of the ceilings, in the shape of the step's output."""
        return self.ceiling.abs().reshape(like.shape)

    def pull(self, c: Tensor, slope: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Bound a linear function of the maxima from below by one of the entries.

        Args:
            c: coefficients of the function of the maxima, `(J, b, *shape)`.
            slope: not used; it is an argument of `Lines.pull`.

        Returns:
            Coefficients of the function of the entries and constants `(J, b)`.
        """
        flat = c.flatten(3)
        positive, negative = flat.clamp(min=0), flat.clamp(max=0)
        chosen = positive + torch.where(self.wins, negative, torch.zeros_like(negative))
        entries = chosen.new_zeros(*chosen.shape[:3], math.prod(self.pool._kernel), chosen.shape[3])
        best = self.best.unsqueeze(2).expand(len(c), *self.best.unsqueeze(2).shape)
        entries = entries.scatter(3, best, chosen.unsqueeze(3))
        return (
            self.pool.fold(entries.flatten(0, 1), self.shape).unflatten(0, c.shape[:2]),
            (negative * self.ceiling).flatten(2).sum(2),
        )
