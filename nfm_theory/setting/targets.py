"""The loss that a user names, and labels in the form that it expects or in which they can be mixed."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import get_args

import torch
from torch import Tensor, nn

from .checks import one_of
from .cross_entropy import CrossEntropy
from .output_losses import BinaryCrossEntropy, MeanSquaredError
from .pointwise import LossName, PointwiseLoss, columns, pointwise_loss
from .position_loss import Fitted, Labels, TargetLoss

_NAMED = {"cross_entropy": CrossEntropy(), "bce": BinaryCrossEntropy(), "mse": MeanSquaredError()}
Loss = LossName | PointwiseLoss | TargetLoss | nn.Module | Callable[[Tensor, Tensor], Tensor]


def chosen_loss(loss: Loss) -> PointwiseLoss | TargetLoss:
    """The loss for a name, a loss of PyTorch with its options, or a smooth callable `(outputs, labels) -> (batch,)`.

    Raises:
        ValueError: for an unknown name.
        TypeError: if the loss is neither a name nor a callable.
    """
    if isinstance(loss, TargetLoss):
        return loss
    if isinstance(loss, str):
        one_of("loss", loss, sorted(get_args(LossName)))
        return _NAMED[loss] if loss in _NAMED else pointwise_loss(loss)
    if isinstance(loss, nn.Module) and getattr(loss, "reduction", "") == "mean":
        if type(loss) is nn.CrossEntropyLoss:
            return CrossEntropy(
                weight=loss.weight, ignore_index=loss.ignore_index, label_smoothing=loss.label_smoothing
            )
        if type(loss) is nn.BCEWithLogitsLoss:
            return BinaryCrossEntropy(weight=loss.weight, pos_weight=loss.pos_weight)
        if type(loss) is nn.MSELoss:
            return MeanSquaredError()
    return pointwise_loss(loss)


def fitted_loss(loss: PointwiseLoss | TargetLoss, outputs: Tensor, y: Labels) -> Fitted:
    """The loss for outputs of this shape, `(n, *out)`, and the labels in its form.

    Raises:
        ValueError: for labels that do not fit the outputs.
        TypeError: for weights of labels that the loss does not know.
    """
    if isinstance(loss, TargetLoss):
        return loss.fitted(outputs, y)
    if not isinstance(y, Tensor):
        raise TypeError(
            f"y: expected a tensor for loss={loss.name!r}; weights of labels are for 'cross_entropy', 'bce' and 'mse'."
        )
    return Fitted(loss.shaped(outputs), loss.prepare(columns(outputs, flat=False), y), len(y))


def mixable_labels(y: Tensor, dtype: torch.dtype, classes: int | None, smoothing: float = 0.0) -> Tensor:
    """Convert labels to a form that can be mixed: distributions `(n, K, *positions)`, or targets as they are.

    Args:
        y: class indices `(n, *positions)`, distributions over the classes `(n, K, *positions)`, or floating-point
            targets `(n, *out)`. Class indices of -100 do not count, see `CrossEntropy.targets`.
        dtype: dtype of the distributions that class indices become.
        classes: the number K of classes for class indices; `None` for other targets.
        smoothing: label smoothing s in [0, 1), for distributions.

    Raises:
        ValueError: for labels of another form, indices outside 0..K-1, and smoothing of targets without classes.
    """
    if not y.is_floating_point():
        if classes is None or y.ndim == 0 or tuple(y.shape[1:]) == (classes,):
            raise ValueError(f"y: expected {_wanted(classes)}. Got shape {tuple(y.shape)}, {y.dtype}.")
        return _smoothing(smoothing).targets(y, classes, dtype=dtype)
    if y.ndim == 0 or (classes is not None and classes not in (*y.shape[1:2], *y.shape[2:][-1:])):
        raise ValueError(f"y: expected {_wanted(classes)}. Got shape {tuple(y.shape)}, {y.dtype}.")
    if not smoothing:
        return y
    if y.ndim == 1 or (y.ndim > 2 and y.shape[1] != classes):
        raise ValueError(
            "label_smoothing: expected 0, there are no classes in dimension 1 of these targets to smooth over; "
            "CrossEntropy(label_smoothing=...).targets(y, num_classes) smooths class indices."
        )
    return (1 - smoothing) * y + smoothing / y.shape[1] * y.sum(1, keepdim=True)


@cache
def _smoothing(s: float) -> CrossEntropy:
    return CrossEntropy(label_smoothing=s)


def _wanted(classes: int | None) -> str:
    if classes is None:
        return "floating-point targets (n, ...); give `num_classes` for class indices"
    return (
        f"class indices (n, ...) or distributions (n, {classes}) and (n, {classes}, ...), as floating-point numbers; "
        f"leave `num_classes` out for other targets. For {classes} positions, CrossEntropy().targets(y, {classes})"
    )
