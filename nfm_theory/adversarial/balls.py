"""Balls around features in which attacks search and certificates hold (theory §5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ..setting.checks import one_of
from .rounding import UNIT, in_double

Norm = Literal["l2", "linf"]
NORMS = get_args(Norm)


@dataclass(frozen=True)
class Ball:
    """One ball for each example, or its intersection with a box.

    Attributes:
        center: centers h, `(b, *feature)`.
        radius: radii ρ ≥ 0, `(b,)`.
        norm: norm that defines the balls, `"l2"` or `"linf"`.
        box: smallest and largest value of a feature; `None` for no box.
        inner: radii before they were widened for rounding, `(b,)`; `None` if they were not.
    """

    center: Tensor
    radius: Tensor
    norm: Norm = "l2"
    box: tuple[float, float] | None = None
    inner: Tensor | None = None

    @property
    def limits(self) -> tuple[Tensor, Tensor]:
        """Smallest and largest value of each feature in the set, a pair of `(b, *feature)`."""
        radius = self.radius.reshape(-1, *[1] * (self.center.ndim - 1))
        lo, hi = self.center - radius, self.center + radius
        return (lo, hi) if self.box is None else (lo.clamp(min=self.box[0]), hi.clamp(max=self.box[1]))

    def covering(self) -> Ball:
        """The ball in float64, widened so that it holds its points also after they are rounded to its dtype."""
        unit = torch.finfo(self.center.dtype).eps / 2
        center, radius = in_double(self.center), in_double(self.radius)
        size = center.flatten(1).norm(p=2 if self.norm == "l2" else torch.inf, dim=1)
        steps = 8 * unit + 4 * (center[0].numel() + 8) * UNIT
        wide = torch.where(radius > 0, radius * (1 + steps) + 2 * unit * size, radius)
        if self.box is None:
            return Ball(center, wide, self.norm, None, radius)
        ends = torch.tensor(self.box, dtype=self.center.dtype).tolist()  # the box as `clamp` rounds it
        return Ball(center, wide, self.norm, (min(self.box[0], ends[0]), max(self.box[1], ends[1])), radius)

    def rows(self, index: Tensor) -> Ball:
        """The balls of some examples."""
        inner = None if self.inner is None else self.inner[index]
        return Ball(self.center[index], self.radius[index], self.norm, self.box, inner)

    @property
    def size(self) -> Tensor:
        """Largest absolute value of each feature in the ball, `(b, *feature)`."""
        return self.center.abs() + self.radius.reshape(-1, *[1] * (self.center.ndim - 1))

    def minimum(self, c: Tensor) -> Tensor:
        """Minima of linear functions `(J, b, *feature)` over the set, `(J, b)`; lower bounds for l2 with a box."""
        lo, hi = self.limits
        boxed = (c.clamp(min=0) * lo + c.clamp(max=0) * hi).flatten(2).sum(2)
        if self.norm == "linf":
            return boxed
        flat = c.flatten(2)
        round_ = (c * self.center).flatten(2).sum(2) - self.radius * flat.norm(dim=2)
        return round_ if self.box is None else torch.maximum(round_, boxed)

    def dual_norm(self, c: Tensor) -> Tensor:
        """Largest values of linear functions on the unit ball, `(J, b)`."""
        return c.flatten(2).norm(p=2 if self.norm == "l2" else 1, dim=2)


def check_ball(h: Tensor, radius: float | Tensor, norm: Norm, box: tuple[float, float] | None) -> Ball:
    """Turn the options `radius`, `norm` and `box` of a function into a `Ball`.

    Args:
        h: centers, `(b, *feature)`.
        radius: ρ ≥ 0, one number for all examples or one for each, `(b,)`.
        norm: norm that defines the balls, `"l2"` or `"linf"`.
        box: smallest and largest value of a feature; `None` for no box.

    Raises:
        TypeError: if the radius is no number and no tensor.
        ValueError: for unknown norms, for radii that are negative, not finite or of another shape, and for features
            that lie outside the box.
    """
    one_of("norm", norm, NORMS)
    try:
        radius = torch.as_tensor(radius, dtype=h.dtype, device=h.device)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"radius: expected a number, or a tensor of one for each example, got {radius!r}.") from None
    if radius.shape not in ((), (len(h),)) or not (radius.isfinite() & (radius >= 0)).all():
        raise ValueError(
            f"radius: expected a finite number >= 0, or one for each of the {len(h)} examples, got {radius.tolist()!r}."
        )
    if box is not None:
        if len(box) != 2 or not box[0] <= box[1]:
            raise ValueError(f"box: expected (smallest, largest), got {box!r}.")
        if (h < box[0]).any() or (h > box[1]).any():
            raise ValueError(
                f"box: the features leave the box {tuple(box)}; they lie in {float(h.min())}..{float(h.max())}."
            )
    return Ball(h, radius.expand(len(h)).clone(), norm, None if box is None else (float(box[0]), float(box[1])))
