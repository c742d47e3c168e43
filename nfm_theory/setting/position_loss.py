r"""Losses with one term for each position: a pixel of a segmentation, a token of a text, an output of several.

$$ \ell_i = c_i \sum_p w_{ip}\, \ell(u_{ip}, y_{ip}) \qquad \text{(book: eq-positions)} $$

| `reduction` | $c_i$ | the mean over the n samples is |
|---|---|---|
| `"mean"` | $n / \sum_{jp} w_{jp}$ | the weighted mean over all positions, as in PyTorch for all samples in one batch |
| `"sample_mean"` | $1 / \sum_p w_{ip}$ | a mean of means, in which all samples weigh the same |
| `"sum"` | 1 | the mean of the sums over the positions |

The weight w of a position is 0 if its label is ignored. Otherwise it is the weight of its class times the weight that
the user gives to the position or its sample. Where all weights are zero, c is 0.

All weights become part of the labels. Cross entropy then is $(\sum_k q_k)\,\mathrm{logsumexp}(u) - q \cdot u$ with
labels q that need not sum to 1; they are 0 for a position that is ignored. It is linear in q, so that a mixture of
labels has the mixture of the losses, each with its own ignored positions and its own c.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from .checks import one_of
from .pointwise import PointwiseLoss

Reduction = Literal["mean", "sample_mean", "sum"]
Labels = Tensor | tuple[Tensor, Tensor]


class Fitted(NamedTuple):
    """A loss that knows the shape of the outputs.

    Attributes:
        loss: the loss of outputs `(b, D)`.
        labels: labels in its form, `(n, ...)`.
        mass: Σ w over all positions with `reduction="mean"`, otherwise n. Means over parts of the data add up with
            these weights.
    """

    loss: PointwiseLoss
    labels: Tensor
    mass: Tensor | int


@dataclass(frozen=True, eq=False, kw_only=True)
class TargetLoss(ABC):
    """A loss with one term for each position.

    Labels can be a pair `(labels, weights)`: the weights are numbers ≥ 0, one for each sample, `(n,)`, or one for each
    position, in the shape of the positions.

    Args:
        reduction: how positions and samples are averaged, see the table of this module.
    """

    reduction: Reduction = "mean"

    def __post_init__(self):
        one_of("reduction", self.reduction, get_args(Reduction))

    def __str__(self) -> str:
        """The options that are not the usual ones."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        words = (
            f"{f.name}={'...' if isinstance(given[f.name], Tensor) else repr(given[f.name])}"
            for f in fields(self)
            if isinstance(given[f.name], Tensor) or given[f.name] != f.default
        )
        return f"{type(self).__name__}({', '.join(words)})"

    @abstractmethod
    def fitted(self, outputs: Tensor, y: Labels) -> Fitted:
        """The loss for outputs of this shape, `(n, *out)`, and the labels in its form.

        Raises:
            ValueError: for labels or weights that do not fit the outputs.
        """

    def _scales(self, mass: Tensor) -> Tensor:
        """The factor c of every sample, `(n,)`, from the weights of its positions, `(n, *positions)`."""
        own = mass.flatten(1).sum(1) if mass.ndim > 1 else mass
        if self.reduction == "sum":
            return torch.ones_like(own)
        total = own if self.reduction == "sample_mean" else (own.sum() / len(own)).expand(len(own))
        return torch.where(total > 0, 1 / total, 0.0)

    def _result(self, kernel: tuple[Callable, Callable, Callable], labels: Tensor, mass: Tensor, layout) -> Fitted:
        value, gradient, hessian = kernel
        loss = PointwiseLoss(
            str(self), value, lambda outputs, y: self.fitted(outputs, y).labels, closed_gradient=gradient,
            closed_hessian=hessian, layout=layout,
        )  # fmt: skip
        return Fitted(loss, labels, mass.sum() if self.reduction == "mean" else len(labels))


def parted(y: Labels) -> tuple[Tensor, Tensor | None]:
    """Labels and weights."""
    if isinstance(y, (tuple, list)):
        if len(y) != 2 or not all(isinstance(part, Tensor) for part in y):
            raise TypeError("y: expected a tensor of labels, or a pair (labels, weights) of tensors.")
        return y[0], y[1]
    return y, None


def position_weights(weights: Tensor | None, positions: tuple[int, ...], like: Tensor) -> Tensor:
    """One weight for each position, `(n, *positions)`."""
    if weights is None:
        return like.new_ones(positions)
    if tuple(weights.shape) not in (positions[:1], positions):
        raise ValueError(
            f"weights: expected one for each sample, ({positions[0]},), or for each position, {positions}, got "
            f"{tuple(weights.shape)}."
        )
    if not (weights.isfinite() & (weights >= 0)).all():
        raise ValueError("weights: expected finite numbers >= 0.")
    return weights.to(like).reshape(-1, *[1] * (len(positions) - weights.ndim), *weights.shape[1:]).expand(positions)
