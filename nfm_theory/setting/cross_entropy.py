"""Cross entropy at every position, with all weights in the labels, see `position_loss`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from .pointwise import CROSS_ENTROPY, columns
from .position_loss import Fitted, Labels, TargetLoss, parted, position_weights


def _cross_entropy(u: Tensor, q: Tensor) -> Tensor:
    u = u.unflatten(-1, q.shape[1:])
    return (q.sum(-1) * u.logsumexp(-1) - (q * u).sum(-1)).reshape(len(u), -1).sum(1)


def _cross_entropy_gradient(u: Tensor, q: Tensor) -> Tensor:
    return (q.sum(-1, keepdim=True) * u.unflatten(-1, q.shape[1:]).softmax(-1) - q).flatten(1)


def _cross_entropy_hessian(u: Tensor, q: Tensor) -> Tensor:
    p = u.unflatten(-1, q.shape[1:]).softmax(-1)
    fisher = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
    return q.sum(-1)[..., None, None] * fisher


def _one_hot(index: Tensor, classes: int, like: Tensor) -> Tensor:
    empty = torch.zeros(*index.shape, classes, dtype=like.dtype, device=like.device)
    return empty.scatter_(-1, index.unsqueeze(-1), 1.0)


def _class_last(outputs: Tensor, dim: int) -> Tensor:
    return outputs.movedim(dim, -1).flatten(1)


@dataclass(frozen=True, eq=False, kw_only=True)
class CrossEntropy(TargetLoss):
    """Cross entropy of one class, or of a distribution over the classes, at every position.

    The outputs are `(n, K)`, `(n, K, *positions)` or `(n, *positions, K)`; the labels are class indices
    `(n, *positions)`, or distributions in the shape of the outputs. The options are those of `nn.CrossEntropyLoss`, and
    such a module is accepted in place of this object.

    Args:
        reduction: `"mean"`, `"sample_mean"` or `"sum"`, see `TargetLoss`.
        weight: weights of the classes, `(K,)`. With distributions they do not enter c, as in PyTorch.
        ignore_index: class index of the positions that do not count.
        label_smoothing: s in [0, 1); the labels become `(1 - s) y + s / K`.
        class_dim: dimension of the classes in outputs with positions, 1 or -1; `None` takes the one that the shape of
            the labels fits.

    Raises:
        ValueError: for options out of range.

    Example:
        >>> loss = CrossEntropy(ignore_index=255)
        >>> loss.targets(torch.tensor([[0, 1, 255, 1]]), 2)  # 4 positions, of which 3 count
        tensor([[[1.3333, 0.0000, 0.0000, 0.0000],
                 [0.0000, 1.3333, 0.0000, 1.3333]]])
    """

    weight: Tensor | None = None
    ignore_index: int = -100
    label_smoothing: float = 0.0
    class_dim: Literal[1, -1] | None = None

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing: expected a number in [0, 1), got {self.label_smoothing!r}.")
        if self.class_dim not in (None, 1, -1):
            raise ValueError(f"class_dim: expected 1, -1 or None, got {self.class_dim!r}.")

    def fitted(self, outputs: Tensor, y: Labels) -> Fitted:
        """The loss for outputs of this shape and the labels, `(n, K)` or `(n, P, K)`, with all weights in them."""
        labels, weights = parted(y)
        labels = labels if labels.is_floating_point() else labels.long()  # -100 is no number of 8 bits
        if outputs.ndim <= 2 and self._usual(labels, weights):
            return Fitted(CROSS_ENTROPY, CROSS_ENTROPY.prepare(columns(outputs), labels), len(labels))
        dim = -1 if outputs.ndim <= 2 else self._dimension(outputs, labels)
        last = columns(outputs, flat=False).movedim(dim, -1)
        if labels.is_floating_point():
            labels = self._distributions(labels.movedim(dim, -1), last)
        elif labels.shape != last.shape[:-1]:
            shape = tuple(last.shape[:-1])
            raise ValueError(f"Labels: expected class indices of shape {shape}, got {tuple(labels.shape)}.")
        else:
            self._check_indices(labels, last.shape[-1])
        q, mass = self._folded(labels, last.shape[-1], weights, last)
        kernel = (_cross_entropy, _cross_entropy_gradient, _cross_entropy_hessian)
        return self._result(kernel, q.flatten(1, -2) if q.ndim > 2 else q, mass, partial(_class_last, dim=dim))

    def targets(self, y: Labels, num_classes: int, *, dtype: torch.dtype | None = None) -> Tensor:
        r"""Labels that can be mixed: `F.cross_entropy(outputs, targets)` is this loss of the batch.

        Mixtures of such targets have the mixture of the losses of both samples, each with its own positions that count.

        Args:
            y: class indices `(n, *positions)`, or a pair of indices and weights.
            num_classes: number K of classes.
            dtype: dtype of the targets; `None` means PyTorch's default.

        Returns:
            `(n, K, *positions)`, or `(n, *positions, K)` with `class_dim=-1`.

        Raises:
            ValueError: for labels outside of 0..K-1, and for weights that do not fit.
        """
        labels, weights = parted(y)
        labels = labels if labels.is_floating_point() else labels.long()  # -100 is no number of 8 bits
        if labels.is_floating_point() or labels.ndim < 1:
            raise ValueError(f"y: expected class indices (n, *positions), got {tuple(labels.shape)}, {labels.dtype}.")
        like = torch.empty(0, dtype=dtype or torch.get_default_dtype(), device=labels.device)
        # On a GPU the check would force a synchronization; scatter refuses wrong indices there
        all_count = labels.device.type == "cpu" and not self._check_indices(labels, num_classes)
        if all_count and weights is None and self.weight is None and self.reduction != "sum":
            q = self._smoothed(_one_hot(labels, num_classes, like))
        else:
            q, _ = self._folded(labels, num_classes, weights, like, unit=labels.numel() / max(len(labels), 1))
        return q if self.class_dim == -1 or q.ndim == 2 else q.movedim(-1, 1)

    def _usual(self, labels: Tensor, weights: Tensor | None) -> bool:
        """True if all samples count alike."""
        plain = weights is None and self.weight is None and not self.label_smoothing
        return plain and (labels.is_floating_point() or not (labels == self.ignore_index).any())

    def _dimension(self, outputs: Tensor, labels: Tensor) -> int:
        """The dimension of the classes."""
        if self.class_dim is not None:
            return self.class_dim
        shape = outputs.shape
        if labels.is_floating_point():
            same = labels.shape == shape
            fits = [d for d in (1, -1) if same and torch.allclose(labels.sum(d), labels.new_ones(()), atol=1e-4)]
            wanted = f"distributions of shape {tuple(shape)} over the classes in dimension 1 or -1"
        else:
            without = {1: (shape[0], *shape[2:]), -1: tuple(shape[:-1])}
            fits = [d for d, rest in without.items() if tuple(labels.shape) == rest]
            wanted = f"class indices of shape {without[1]} (classes in dimension 1) or {without[-1]} (in the last)"
        if len(fits) == 1:
            return fits[0]
        if fits:
            raise ValueError(
                f"Labels: the classes may be in dimension 1 or in the last one of the outputs {tuple(shape)}; say "
                "which, loss=nfm_theory.CrossEntropy(class_dim=1) or class_dim=-1."
            )
        raise ValueError(f"Labels: expected {wanted}, got {tuple(labels.shape)}, {labels.dtype}.")

    def _check_indices(self, labels: Tensor, classes: int) -> bool:
        """True if a position does not count; indices outside of 0..K-1 are refused."""
        if labels.numel():
            low, high = int(labels.min()), int(labels.max())
            if low >= 0 and high < classes and not low <= self.ignore_index <= high:
                return False
        counted = labels[labels != self.ignore_index]
        low, high = (int(counted.min()), int(counted.max())) if len(counted) else (0, 0)
        if low < 0 or high >= classes:
            raise ValueError(
                f"Labels: expected class indices in 0..{classes - 1} (K = {classes}), or {self.ignore_index} where "
                f"nothing counts, got {low}..{high}; check the number of classes and ignore_index."
            )
        return len(counted) < labels.numel()

    def _smoothed(self, q: Tensor) -> Tensor:
        s = self.label_smoothing
        return (1 - s) * q + s / q.shape[-1] if s else q

    @staticmethod
    def _distributions(labels: Tensor, last: Tensor) -> Tensor:
        if labels.shape != last.shape:
            raise ValueError(f"Labels: expected the shape of the outputs or class indices, got {tuple(labels.shape)}.")
        if (labels < 0).any() or not torch.allclose(labels.sum(-1), labels.new_ones(()), atol=1e-4):
            raise ValueError("Labels: expected numbers >= 0 that sum to 1 over the classes at every position.")
        return labels

    def _folded(
        self, labels: Tensor, classes: int, weights: Tensor | None, like: Tensor, unit: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Labels times all weights, c and a unit, `(n, *positions, K)`, and w of the positions, `(n, *positions)`."""
        indices = not labels.is_floating_point()
        if self.weight is not None and self.weight.shape != (classes,):
            raise ValueError(f"weight: expected one for each class, ({classes},), got {tuple(self.weight.shape)}.")
        weight = None if self.weight is None else self.weight.to(like)
        counted = position_weights(weights, tuple(labels.shape if indices else labels.shape[:-1]), like)
        mass = counted
        if indices:
            known = labels != self.ignore_index
            index = labels.where(known, 0)
            counted = counted * known
            q = _one_hot(index, classes, like)
            mass = counted if weight is None else counted * weight[index]
        else:
            q = labels.to(like)
        counted = counted * (unit * self._scales(mass)).reshape(-1, *[1] * (counted.ndim - 1))
        q = self._smoothed(q) * counted.unsqueeze(-1)
        return (q if weight is None else q * weight), mass
