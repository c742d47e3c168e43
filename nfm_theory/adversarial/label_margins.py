r"""Margins: with one class as label, cross entropy and the logistic loss are functions of them (theory §5).

$$ \ell = \log\big(1 + \sum_j e^{-m_j}\big), \qquad m_j = f_y - f_j \ (j \ne y), \quad m = \pm f \ (K = 1) $$
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..setting.pointwise import PointwiseLoss


def margin_objectives(outputs: Tensor, labels: Tensor, loss: PointwiseLoss) -> Tensor:
    """Coefficients of the outputs in the margins, `(b, J, K)`.

    Args:
        outputs: outputs f of the network, `(b, K)`.
        labels: labels in the form that the loss expects, see `PointwiseLoss.prepare`.
        loss: cross entropy or logistic loss.

    Raises:
        ValueError: for other losses, and for labels that are no single class.
    """
    if loss.name not in ("cross_entropy", "logistic"):
        raise ValueError(
            "loss: certificates and bounds are for 'cross_entropy' and 'logistic', which decrease in every margin; got "
            f"{loss.name!r}."
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
    """The loss `log(1 + Σ_j exp(-m_j))` at margins `(..., J)`."""
    return torch.cat([torch.zeros_like(margins[..., :1]), -margins], -1).logsumexp(-1)
