"""What every linearization of a head offers, however it is computed."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from tqdm import tqdm

#: Bytes of the largest tensors that are carried at once: what stays in a cache, or what keeps a GPU busy.
BLOCK_BYTES = {"cpu": 2**19, "gpu": 2**28}


def block_bytes(device: torch.device) -> int:
    """Bytes of a block on this device."""
    return BLOCK_BYTES["cpu" if device.type == "cpu" else "gpu"]


def gradients(wanted: bool):
    """Context in which gradients are recorded, or not."""
    return torch.enable_grad() if wanted else torch.no_grad()


class Linearization(ABC):
    """Derivatives of a head `(b, *feature) -> (b, K)` at features `h`; made by `linearize`.

    Directions are `(m, b, *feature)`, or `(m, 1, *feature)` for directions that all samples share.

    Attributes:
        h: the features.
        outputs: f(h), `(b, K)`.
        path: what runs: `"tangent-adjoint"`, or `"nested"` with the reason.
        differentiable: whether results carry gradients.
        piecewise_linear: whether every operation is linear or piecewise linear, so that ∇²f is 0 almost everywhere.
    """

    h: Tensor
    outputs: Tensor
    path: str
    differentiable: bool
    piecewise_linear = False

    @property
    @abstractmethod
    def width(self) -> int:
        """w, the number of coordinates behind `propagate`."""

    @property
    def tail_share(self) -> float:
        """Share of the head that lies behind its last curved operation: what J v costs beyond a·∇²f[v, v]."""
        return 0.0

    @abstractmethod
    def rows(self) -> Tensor:
        """The Jacobian, in the coordinates of `propagate`: `(b, K, w)`."""

    @abstractmethod
    def pullback(self, slope: Tensor) -> Tensor:
        """`Jᵀ a` in the coordinates of `propagate`, `(b, w)`.

        Args:
            slope: a, `(b, K)`.
        """

    @abstractmethod
    def propagate(self, directions: Tensor) -> Tensor:
        """Directions in the coordinates behind the first linear operations, `(m, b, w)` or `(m, 1, w)`."""

    def sweep(
        self,
        directions: Tensor,
        slope: Tensor | None = None,
        *,
        tangents: bool = True,
        propagated: bool = False,
        block_rows: int | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """`(J v, a·∇²f[v, v])` for each direction and sample, `(m, b, K)` and `(m, b)`.

        Directions are streamed in blocks, so that memory does not grow with their number (unless gradients of the
        results are wanted).

        Args:
            directions: v, `(m, b, *feature)` or `(m, 1, *feature)`; results of `propagate`, if `propagated`.
            slope: a, `(b, K)`, constant in the derivative; `None` leaves the second derivatives out (`None`).
            tangents: whether J v is wanted (`None` otherwise).
            propagated: whether the directions are already behind the first linear operations.
            block_rows: rows (directions times samples) carried at once.
        """
        block = max(1, (block_rows or self._block_rows()) // len(self.h))
        if not block_rows and not self.differentiable:  # a few directions need not take a whole block
            block = max(1, block // 4, min(block, -(-len(directions) // 4)))
        parts = directions.split(block)
        if len(parts) > 1:
            parts = tqdm(parts, desc="directions", disable=None, delay=2, leave=False)
        results = [self._block(part, slope, tangents, propagated) for part in parts]
        with gradients(self.differentiable):
            return tuple(None if found[0] is None else torch.cat(found) for found in zip(*results, strict=True))

    @abstractmethod
    def _block(self, directions: Tensor, slope: Tensor | None, tangents: bool, propagated: bool) -> tuple:
        """`sweep` of few directions."""

    @abstractmethod
    def _block_rows(self) -> int:
        """Rows that are fast to carry at once."""
