"""Losses of every output on its own: binary cross entropy and the square, see `position_loss`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .pointwise import LOGISTIC, columns
from .position_loss import Fitted, Labels, TargetLoss, parted, position_weights


def _blocks(values: Tensor) -> Tensor:
    """One-by-one blocks of the Hessian, `(b, D, 1, 1)`."""
    return values[..., None, None]


def _binary(u: Tensor, q: Tensor) -> Tensor:
    return (q[..., 0] * F.softplus(-u) + q[..., 1] * F.softplus(u)).sum(-1)


def _binary_gradient(u: Tensor, q: Tensor) -> Tensor:
    return q.sum(-1) * u.sigmoid() - q[..., 0]


def _binary_hessian(u: Tensor, q: Tensor) -> Tensor:
    return _blocks(q.sum(-1) * u.sigmoid() * (-u).sigmoid())


def _squared(u: Tensor, q: Tensor) -> Tensor:
    return (q[..., 0] * (u - q[..., 1]) ** 2).sum(-1)


def _squared_gradient(u: Tensor, q: Tensor) -> Tensor:
    return 2 * q[..., 0] * (u - q[..., 1])


def _squared_hessian(u: Tensor, q: Tensor) -> Tensor:
    return _blocks(2 * q[..., 0])


def _like_outputs(labels: Tensor, outputs: Tensor) -> Tensor:
    """Labels in the shape `(n, *out)` of the outputs; one output may have labels `(n,)`."""
    if labels.ndim == 1 and outputs.shape[1:] == (1,):
        labels = labels.unsqueeze(1)
    if labels.shape != outputs.shape:
        raise ValueError(
            f"Labels: expected the shape of the outputs, {tuple(outputs.shape)}, got {tuple(labels.shape)}; class "
            "indices are for 'cross_entropy'."
        )
    if not labels.isfinite().all():
        raise ValueError("Labels: expected finite numbers, also where the weight is 0, got NaN or infinity.")
    return labels.to(outputs)


@dataclass(frozen=True, eq=False, kw_only=True)
class BinaryCrossEntropy(TargetLoss):
    """Binary cross entropy of every output on its own, for several labels of one sample. It is linear in the labels.

    The labels are 0, 1 or probabilities in the shape of the outputs, `(n, *out)`. Every output is a position. The
    options are those of `nn.BCEWithLogitsLoss`, and such a module is accepted in place of this object.

    Args:
        reduction: `"mean"`, `"sample_mean"` or `"sum"`, see `TargetLoss`.
        weight: factors of the losses of the outputs, which do not enter c; broadcast to `(n, *out)`.
        pos_weight: factors of the label 1, which do not enter c; broadcast to `(n, *out)`.
    """

    weight: Tensor | None = None
    pos_weight: Tensor | None = None

    def fitted(self, outputs: Tensor, y: Labels) -> Fitted:
        """The loss for outputs of this shape and the labels, `(n, D, 2)`, with all weights in them."""
        (labels, weights), outputs = parted(y), columns(outputs, flat=False)
        if outputs.shape[1:] == (1,) and weights is None and self.weight is None and self.pos_weight is None:
            return Fitted(LOGISTIC, LOGISTIC.prepare(outputs, labels), len(labels))
        labels = _like_outputs(labels, outputs)
        if (labels < 0).any() or (labels > 1).any():
            raise ValueError("Labels: expected 0, 1 or probabilities for binary cross entropy (not ±1).")
        mass = position_weights(weights, tuple(outputs.shape), outputs)
        factor = mass * self._scales(mass).reshape(-1, *[1] * (mass.ndim - 1)) * self._factors("weight", outputs)
        q = torch.stack([factor * self._factors("pos_weight", outputs) * labels, factor * (1 - labels)], dim=-1)
        return self._result((_binary, _binary_gradient, _binary_hessian), q.flatten(1, -2), mass, columns)

    def _factors(self, name: str, outputs: Tensor) -> Tensor:
        factors: Tensor | None = getattr(self, name)
        if factors is None:
            return outputs.new_ones(())
        try:
            return factors.to(outputs).expand(outputs.shape)
        except RuntimeError:
            raise ValueError(
                f"{name}: expected a shape that broadcasts to {tuple(outputs.shape)}, got {tuple(factors.shape)}."
            ) from None


@dataclass(frozen=True, eq=False, kw_only=True)
class MeanSquaredError(TargetLoss):
    """The square `(u - y)²` of every output, as in `nn.MSELoss`, which is accepted in place of this object.

    The labels are numbers in the shape of the outputs, `(n, *out)`. Every output is a position. The mixture of the
    losses of two labels has the same derivatives as the loss of the mixed label; its value is larger by
    λ (1 - λ) (y - y')². The verbs take the mixture, for which the theory is exact.

    Args:
        reduction: `"mean"`, `"sample_mean"` or `"sum"`, see `TargetLoss`.
    """

    def fitted(self, outputs: Tensor, y: Labels) -> Fitted:
        """The loss for outputs of this shape, and weights and labels, `(n, D, 2)`."""
        (labels, weights), outputs = parted(y), columns(outputs, flat=False)
        labels = _like_outputs(labels, outputs)
        mass = position_weights(weights, tuple(outputs.shape), outputs)
        factor = mass * self._scales(mass).reshape(-1, *[1] * (mass.ndim - 1))
        q = torch.stack([factor, labels], dim=-1).flatten(1, -2)
        return self._result((_squared, _squared_gradient, _squared_hessian), q, mass, columns)
