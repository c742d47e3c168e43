"""The interface of a linearization: the derivatives of a head at given features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor
from tqdm import tqdm

from ...setting.ambient import undisturbed

#: Size of the largest tensor in a block, in bytes: small enough for the cache of a CPU, large enough for a GPU.
BLOCK_BYTES = {"cpu": 2**19, "gpu": 2**28}


def block_bytes(device: torch.device) -> int:
    """Size of the largest tensor in a block on this device, in bytes."""
    return BLOCK_BYTES["cpu" if device.type == "cpu" else "gpu"]


def gradients(wanted: bool):
    """Context manager that turns the recording of gradients on or off."""
    return torch.enable_grad() if wanted else torch.no_grad()


class Linearization(ABC):
    """Derivatives of a head f: `(b, *feature) -> (b, K)` at features `h`; `linearize` makes one.

    Directions have the shape `(m, b, *feature)`, or `(m, 1, *feature)` if all samples share them. If the head begins
    with linear operations, `propagate` maps directions through them once, to w coordinates. `rows` and `pullback`
    return their results in these coordinates.

    Attributes:
        h: the features.
        outputs: f(h), `(b, K)`.
        path: how derivatives are computed: `"tangent-adjoint"`, or `"nested"` with the reason.
        differentiable: True if results carry gradients.
        piecewise_linear: True if every operation is linear or piecewise linear: then ∇²f is 0 almost everywhere.
    """

    h: Tensor
    outputs: Tensor
    path: str
    differentiable: bool
    piecewise_linear = False

    @property
    @abstractmethod
    def width(self) -> int:
        """w, the number of coordinates that `propagate` returns."""

    @property
    def tail_share(self) -> float:
        """The part of the head after its last curved operation: the extra cost of J v if a·∇²f[v, v] is computed."""
        return 0.0

    @abstractmethod
    def rows(self) -> Tensor:
        """The Jacobian in the coordinates of `propagate`, `(b, K, w)`."""

    @abstractmethod
    def pullback(self, slope: Tensor) -> Tensor:
        """`Jᵀ a` in the coordinates of `propagate`, `(b, w)`, where a is the slope `(b, K)`."""

    @abstractmethod
    def propagate(self, directions: Tensor) -> Tensor:
        """Map directions through the first linear operations of the head, to `(m, b, w)` or `(m, 1, w)`."""

    @overload
    def sweep(
        self, directions: Tensor, slope: None = None, *, propagated: bool = False, block_rows: int | None = None
    ) -> tuple[Tensor, None]: ...
    @overload
    def sweep(
        self, directions: Tensor, slope: Tensor, *, propagated: bool = False, block_rows: int | None = None
    ) -> tuple[Tensor, Tensor]: ...
    @overload
    def sweep(
        self, directions: Tensor, slope: Tensor | None = None, *, tangents: bool, propagated: bool = False,
        block_rows: int | None = None,
    ) -> tuple[Tensor | None, Tensor | None]: ...  # fmt: skip
    @undisturbed()
    def sweep(
        self,
        directions: Tensor,
        slope: Tensor | None = None,
        *,
        tangents: bool = True,
        propagated: bool = False,
        block_rows: int | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """`J v`, `(m, b, K)`, and `a·∇²f[v, v]`, `(m, b)`, for every direction v and every sample.

        Directions are processed in blocks. Unless results carry gradients, memory does not grow with the number of
        directions.

        Args:
            directions: the directions v, `(m, b, *feature)` or `(m, 1, *feature)`, or the result of `propagate`.
            slope: a, `(b, K)`, constant in the derivative. With `None` the second result is `None`.
            tangents: True computes J v. With False the first result is `None`.
            propagated: True if the directions are the result of `propagate`.
            block_rows: number of rows (directions times samples) in one block.
        """
        block = max(1, (block_rows or self._block_rows()) // len(self.h))
        if not block_rows and self.differentiable:  # everything is kept, so that larger blocks take no more memory
            block = max(1, 8 * self._block_rows() // len(self.h))
        elif not block_rows:  # smaller blocks if there are few directions
            few = max(block // 4, min(block, -(-len(directions) // 4)))
            block = max(1, few, self._free_rows() // len(self.h))
        parts = directions.split(block)
        if len(parts) > 1:
            parts = tqdm(parts, desc="directions", disable=None, delay=2, leave=False)
        results = [self._block(part, slope, tangents, propagated) for part in parts]
        with gradients(self.differentiable):
            moved, forms = (None if found[0] is None else torch.cat(found) for found in zip(*results, strict=True))
            return moved, forms

    def third_order(
        self, directions: Tensor, slope: Tensor, *, propagated: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`J v` and `D²f[v, v]`, both `(m, b, K)`, and `a·D³f[v, v, v]`, `(m, b)`, for every direction and sample.

        Only for linearizations to order 3, see `linearize`.

        Args:
            directions: the directions v, `(m, b, *feature)` or `(m, 1, *feature)`, or the result of `propagate`.
            slope: a, `(b, K)`, constant in the derivative.
            propagated: True if the directions are the result of `propagate`.
        """
        (tangents, halves), cubic = self.series([directions], slope, 3, propagated=propagated)
        with gradients(self.differentiable):
            return tangents, 2 * halves, 6 * cubic

    @undisturbed()
    def series(
        self, coefficients: Sequence[Tensor], slope: Tensor, order: int, *, propagated: bool = False
    ) -> tuple[list[Tensor], Tensor]:
        r"""Taylor coefficients of the head along the paths `h + Σ_k ε^k c_k`, for every path and sample.

        The coefficient of the highest order is not propagated: it is summed over the operations, weighted by cotangents
        (collapsed Taylor mode). Only for linearizations to order 3, see `linearize`.

        Args:
            coefficients: c_1, .., c_q with q < order, each `(m, b, *feature)` or `(m, 1, *feature)`, or the results of
                `propagate`.
            slope: a, `(b, K)`, constant in the derivative.
            order: the highest order p ≥ 2.
            propagated: True if the coefficients are the results of `propagate`.

        Returns:
            The coefficients of orders 1, .., p - 1 of f, each `(m, b, K)`, and that of order p of a·f, `(m, b)`.

        Raises:
            ValueError: if there are not fewer coefficients than the order.
        """
        if not 0 < len(coefficients) < order:
            raise ValueError(
                f"coefficients: expected from 1 to order - 1 = {order - 1} of them, got {len(coefficients)}; "
                "raise the order, or leave the highest ones out."
            )
        block = max(1, 4 * self._block_rows() // len(self.h))  # more is kept than for a sweep, so that less is saved
        blocks = zip(*(c.split(block) for c in coefficients), strict=True)
        parts = [self._series_block(list(block), slope, order, propagated) for block in blocks]
        with gradients(self.differentiable):
            lower = [torch.cat(found) for found in zip(*(part[0] for part in parts), strict=True)]
            return lower, torch.cat([part[1] for part in parts])

    @abstractmethod
    def _series_block(
        self, coefficients: list[Tensor], slope: Tensor, order: int, propagated: bool
    ) -> tuple[list[Tensor], Tensor]:
        """`series` for one block of paths."""

    @abstractmethod
    def _block(self, directions: Tensor, slope: Tensor | None, tangents: bool, propagated: bool) -> tuple:
        """`sweep` for one block of directions."""

    @abstractmethod
    def _block_rows(self) -> int:
        """The number of rows in a block that is fast."""

    def _free_rows(self) -> int:
        """The number of rows whose memory is small beside what is kept anyway."""
        return 0
