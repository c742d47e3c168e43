r"""Margins: with one class as label, cross entropy and the logistic loss are functions of them (theory §5).

$$ \ell = \log\big(1 + \sum_j e^{-m_j}\big), \qquad m_j = f_y - f_j \ (j \ne y), \quad m = \pm f \ (K = 1) $$
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..setting.pointwise import CROSS_ENTROPY, LOGISTIC, PointwiseLoss

_NAMES = (CROSS_ENTROPY.name, LOGISTIC.name)


def margin_objectives(outputs: Tensor, labels: Tensor, loss: PointwiseLoss) -> Tensor:
    """Coefficients of the outputs in the margins, `(b, J, K)`.

    Args:
        outputs: outputs f of the network, `(b, K)`.
        labels: labels in the form that the loss expects, see `PointwiseLoss.prepare`.
        loss: cross entropy or logistic loss.

    Raises:
        ValueError: for other losses, and for labels that are no single class.
    """
    if loss not in (CROSS_ENTROPY, LOGISTIC):  # a function of the same name may be another loss
        found = loss.name if loss.name not in _NAMES else f"{loss.name} (a function of this name)"
        raise ValueError(
            "loss: certificates and bounds are for the losses named 'cross_entropy' and 'logistic', which decrease in "
            f"every margin; got {found!r}."
        )
    if not ((labels == 0) | (labels == 1)).all():
        raise ValueError("labels: expected one class for each example (no mixtures), since margins refer to a class.")
    if loss.name == "logistic":
        return (2 * labels - 1).unsqueeze(1)
    b, classes = outputs.shape
    own = labels.argmax(1)
    others = torch.arange(classes - 1, device=outputs.device).expand(b, -1)
    others = others + (others >= own.unsqueeze(1))
    rival = torch.nn.functional.one_hot(others, classes).to(outputs)
    return labels.unsqueeze(1) - rival


def loss_of_margins(margins: Tensor) -> Tensor:
    """The loss `log(1 + Σ_j exp(-m_j))` at margins `(..., J)`; it is accurate also where it is tiny."""
    rest = (-margins).logsumexp(-1)
    return rest.clamp(min=0) + torch.log1p(torch.exp(-rest.abs()))


def hard_labels(labels: Tensor, loss: PointwiseLoss) -> Tensor:
    """True for each example whose loss is cross entropy or the logistic loss with one class as label, `(b,)`."""
    if loss not in (CROSS_ENTROPY, LOGISTIC):
        return torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
    return ((labels == 0) | (labels == 1)).flatten(1).all(1)


def _rivals(outputs: Tensor, own: Tensor) -> Tensor:
    """The outputs of the other classes, -inf for the own class, `(b, K)`."""
    return outputs.masked_fill(torch.nn.functional.one_hot(own, outputs.shape[1]).bool(), -torch.inf)


def margin_deficit(outputs: Tensor, own: Tensor) -> Tensor:
    r"""The logsumexp of the other outputs minus the own one, `(b,)`; with one output, -f for class 1 and f for class 0.

    The loss with one class as label is `log(1 + exp(deficit))`, so that both grow in the same directions. But the
    gradient of the loss rounds to 0 if the margin is large, and the gradient of the deficit does not.

    Args:
        outputs: outputs f of the network, `(b, K)`.
        own: class of the label, `(b,)`.
    """
    if outputs.shape[1] == 1:
        return (1 - 2 * own.to(outputs)) * outputs[:, 0]
    return _rivals(outputs, own).logsumexp(1) - outputs.gather(1, own.unsqueeze(1))[:, 0]


def deficit_gradient(outputs: Tensor, own: Tensor) -> Tensor:
    """The gradient of `margin_deficit` in the outputs, `(b, K)`; its largest entry has the size 1."""
    if outputs.shape[1] == 1:
        return (1 - 2 * own.to(outputs)).unsqueeze(1)
    return _rivals(outputs, own).softmax(1) - torch.nn.functional.one_hot(own, outputs.shape[1]).to(outputs)
