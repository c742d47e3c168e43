"""The loss along every row of a draw, as a function of the scale ε of the perturbation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from .perturbation import displaced

if TYPE_CHECKING:
    from .problem import Problem


@dataclass(frozen=True)
class Path:
    """The loss along every row of a draw, φ: a function of ε; made by `Problem.path`.

    Attributes:
        problem: the setting.
        anchor: index i of the first sample of each row, `(rows,)`.
        first: g_i, `(rows, *feature)`.
        linear: e¹.
        quadratic: e², `None` where it vanishes.
    """

    problem: Problem
    anchor: Tensor
    first: Tensor
    linear: Tensor
    quadratic: Tensor | None

    def __call__(self, eps: float | Tensor) -> Tensor:
        """φ(ε), `(rows,)`; ε a number, 0-dim, or one per row."""
        outputs = self.problem.head(displaced((self.first, self.linear, self.quadratic), eps))
        return self.problem.loss(outputs, self.problem.labels[self.anchor])

    @property
    def parts(self) -> list[Tensor]:
        """The Taylor coefficients of the features in ε: `[g_i, e¹]`, or `[g_i, e¹, e²]`."""
        return [self.first, self.linear] + ([] if self.quadratic is None else [self.quadratic])

    def jets(self, eps: Tensor) -> list[Tensor]:
        """The features at ε, one for each row `(rows,)`, and their derivatives in ε."""
        at = displaced((self.first, self.linear, self.quadratic), eps)
        if self.quadratic is None:
            return [at, self.linear]
        scale = eps.reshape(-1, *[1] * (self.first.ndim - 1))
        return [at, self.linear + 2 * scale * self.quadratic, 2 * self.quadratic]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.anchor)

    def __getitem__(self, rows) -> Path:
        """The rows selected by a slice or an index tensor."""
        quadratic = None if self.quadratic is None else self.quadratic[rows]
        return Path(self.problem, self.anchor[rows], self.first[rows], self.linear[rows], quadratic)
