r"""Per-sample losses `ℓ(u, y) = h(u) - y·u` of logits u, as in the theory (book: eq-nfm-loss).

| name | h(u) | label y |
|---|---|---|
| `"cross_entropy"` | logsumexp(u), K ≥ 2 | index `(n,)` or distribution `(n, K)` |
| `"logistic"` | softplus(u), K = 1 | 0/1 or probability, `(n,)` or `(n, 1)` |
| `"square"` | ‖u‖²/2 | target `(n,)` or `(n, K)`; an index means its one-hot vector |

The losses of outputs with positions are in `position_loss`. Any smooth callable
`(outputs (b, *out), labels (b, ...)) -> (b,)` can be used as well. Its loss with a mixed label is the mixture of two
losses with weights λ and 1 - λ. For `h(u) - y·u` this equals the loss at the mixed label.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..calculus.failures import explained
from ..calculus.forward_mode import jvp
from ..calculus.replacements import exact_derivatives
from .checks import one_of

LossName = Literal["cross_entropy", "logistic", "square", "bce", "mse"]


def columns(outputs: Tensor, *, flat: bool = True) -> Tensor:
    """Outputs as `(n, D)`, also if the model returns `(n,)` or `(n, *out)`; without `flat`, `(n, *out)` stays."""
    if outputs.ndim == 1:
        return outputs.unsqueeze(-1)
    return outputs.flatten(1) if flat and outputs.ndim > 2 else outputs


@dataclass(frozen=True)
class PointwiseLoss:
    """A loss of one sample, with the form of its labels.

    Args:
        name: name of the loss, for messages.
        function: maps outputs `(b, K)` and prepared labels `(b, ...)` to losses `(b,)`.
        prepare: maps outputs `(n, K)` and the user's labels to prepared labels.
        closed_gradient: closed form of `gradient`; `None` means automatic differentiation.
        closed_hessian: closed form of `hessian`; `None` means automatic differentiation.
        layout: maps what the model returns, `(b, *out)`, to the outputs `(b, K)`.
    """

    name: str
    function: Callable[[Tensor, Tensor], Tensor]
    prepare: Callable[[Tensor, Tensor], Tensor]
    closed_gradient: Callable[[Tensor, Tensor], Tensor] | None = None
    closed_hessian: Callable[[Tensor, Tensor], Tensor] | None = None
    layout: Callable[[Tensor], Tensor] = columns

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The losses, `(b,)`."""
        with self._explained(), exact_derivatives():
            return self.function(outputs, labels)

    def gradient(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """∂ℓ/∂u, `(b, K)`: `p - y` for the losses of the theory."""
        if self.closed_gradient is not None:
            return self.closed_gradient(outputs, labels)
        with self._explained():
            return torch.func.grad(lambda u: self(u, labels).sum())(outputs)

    def hessian(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """∂²ℓ/∂u², `(b, K, K)`: `F = ∇²h(u)` for the losses of the theory; its P diagonal blocks `(b, P, k, k)`."""
        if self.closed_hessian is not None:
            return self.closed_hessian(outputs, labels)
        basis = torch.eye(outputs.shape[-1], dtype=outputs.dtype, device=outputs.device)
        with self._explained():
            directions = [e.expand_as(outputs).clone() for e in basis]
            found = [jvp(lambda u: self.gradient(u, labels), (outputs,), (e,))[1] for e in directions]
        return torch.stack(found, dim=-1)

    def _explained(self):
        return explained(subject=f"loss {self.name!r}")

    def shaped(self, outputs: Tensor) -> PointwiseLoss:
        """The loss for a model that returns `(n, *out)`, a shape that the function expects.

        Raises:
            ValueError: for a loss with closed derivatives, which is one of outputs `(n, K)`.
        """
        if outputs.ndim <= 2:
            return self
        if self.closed_gradient is not None or self.closed_hessian is not None:
            raise ValueError(
                f"loss={self.name!r} is for outputs (n, K), the model returns {tuple(outputs.shape)}; use "
                "'cross_entropy', 'bce' or 'mse', or a callable (outputs, labels) -> (batch,)."
            )
        out = outputs.shape[1:]
        return replace(self, function=lambda u, y: self.function(u.unflatten(-1, out), y))


def _one_hot(labels: Tensor, outputs: Tensor) -> Tensor:
    classes = outputs.shape[-1]
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise ValueError(f"Labels: expected class indices in 0..{classes - 1} (K = {classes}), got {low}..{high}.")
    return F.one_hot(labels.long(), classes).to(outputs)


def _expect_shape(labels: Tensor, outputs: Tensor, loss: str) -> Tensor:
    if labels.shape != outputs.shape:
        raise ValueError(
            f"Labels for loss={loss!r}: expected shape {tuple(outputs.shape)} (or class indices "
            f"({len(outputs)},)), got {tuple(labels.shape)}."
        )
    if not labels.isfinite().all():
        raise ValueError("Labels: expected finite numbers, got NaN or infinity.")
    return labels.to(outputs)


def _classes(outputs: Tensor, labels: Tensor) -> Tensor:
    if outputs.shape[-1] < 2:
        raise ValueError("loss='cross_entropy' needs K >= 2 outputs, the model has one: use loss='logistic'.")
    if not labels.is_floating_point() and labels.ndim == 1:
        return _one_hot(labels, outputs)
    labels = _expect_shape(labels, outputs, "cross_entropy")
    if (labels < 0).any() or not torch.allclose(labels.sum(-1), labels.new_ones(len(labels)), atol=1e-4):
        raise ValueError("Labels: expected non-negative rows that sum to 1 (distributions over the classes).")
    return labels


def _binary(outputs: Tensor, labels: Tensor) -> Tensor:
    if outputs.shape[-1] != 1:
        raise ValueError(
            f"loss='logistic' needs one output, the model has {outputs.shape[-1]}: use 'cross_entropy', "
            "or 'bce' for several labels of one sample."
        )
    labels = _expect_shape(labels.to(outputs).reshape(len(labels), -1), outputs, "logistic")
    if (labels < 0).any() or (labels > 1).any():
        raise ValueError("Labels for loss='logistic': expected 0, 1 or probabilities (not ±1).")
    return labels


def _target(outputs: Tensor, labels: Tensor) -> Tensor:
    if not labels.is_floating_point() and labels.ndim == 1 and outputs.shape[-1] > 1:
        return _one_hot(labels, outputs)
    return _expect_shape(labels.to(outputs).reshape(len(labels), -1), outputs, "square")


def _fisher(outputs: Tensor, labels: Tensor) -> Tensor:
    p = outputs.softmax(-1)
    return torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)


def _bernoulli_variance(outputs: Tensor, labels: Tensor) -> Tensor:
    p = outputs.sigmoid()
    return (p * (1 - p)).unsqueeze(-1)


CROSS_ENTROPY = PointwiseLoss(
    "cross_entropy",
    lambda u, y: u.logsumexp(-1) - (y * u).sum(-1),
    _classes,
    closed_gradient=lambda u, y: u.softmax(-1) - y,
    closed_hessian=_fisher,
)
LOGISTIC = PointwiseLoss(
    "logistic",
    lambda u, y: (F.softplus(u) - y * u).sum(-1),
    _binary,
    closed_gradient=lambda u, y: u.sigmoid() - y,
    closed_hessian=_bernoulli_variance,
)
SQUARE = PointwiseLoss(
    "square",
    lambda u, y: ((u / 2 - y) * u).sum(-1),
    _target,
    closed_gradient=lambda u, y: u - y,
    closed_hessian=lambda u, y: torch.diag_embed(torch.ones_like(u)),
)
_BY_NAME = {loss.name: loss for loss in (CROSS_ENTROPY, LOGISTIC, SQUARE)}


def pointwise_loss(loss: str | PointwiseLoss | Callable[[Tensor, Tensor], Tensor]) -> PointwiseLoss:
    """The `PointwiseLoss` for a name or for a smooth callable `(outputs (b, *out), labels (b, ...)) -> (b,)`.

    Raises:
        ValueError: for an unknown name.
        TypeError: if the loss is neither a name nor a callable.
    """
    if isinstance(loss, PointwiseLoss):
        return loss
    if isinstance(loss, str):
        return _BY_NAME[one_of("loss", loss, sorted(_BY_NAME))]
    if not callable(loss):
        raise TypeError(
            f"loss: expected a name or a callable (outputs, labels) -> (batch,), got {type(loss).__name__}."
        )
    return PointwiseLoss(getattr(loss, "__name__", "custom"), loss, lambda outputs, labels: labels)
