r"""Margins: with a hard label, what cross entropy and the logistic loss are made of (theory §5).

$$ \ell = \log\big(1 + \sum_j e^{-m_j}\big), \qquad m_j = f_y - f_j \ (j \ne y), \quad m = \pm f \ (K = 1) $$
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..setting.pointwise import PointwiseLoss


def margin_objectives(outputs: Tensor, labels: Tensor, loss: PointwiseLoss) -> Tensor:
    """Coefficients of the outputs in the margins, `(b, J, K)`.

    Args:
        outputs: f, `(b, K)`.
        labels: as `loss.prepare` returns them.
        loss: cross entropy or logistic.

    Raises:
        ValueError: for other losses and soft labels.
    """
    if loss.name not in ("cross_entropy", "logistic"):
        raise ValueError(
            f"loss: the maximum is bounded for 'cross_entropy' and 'logistic', which fall in every margin; got "
            f"{loss.name!r}."
        )
    if not ((labels == 0) | (labels == 1)).all():
        raise ValueError("Labels: expected one class for each example (no mixtures), to which margins refer.")
    if loss.name == "logistic":
        return (2 * labels - 1).unsqueeze(1)
    b, classes = outputs.shape
    own = labels.argmax(1)
    others = torch.arange(classes - 1, device=outputs.device).expand(b, -1)
    others = others + (others >= own.unsqueeze(1))
    rival = torch.nn.functional.one_hot(others, classes).to(outputs)
    return labels.unsqueeze(1) - rival


def loss_of_margins(margins: Tensor) -> Tensor:
    """`log(1 + Σ_j exp(-m_j))` from margins `(..., J)`."""
    return torch.cat([torch.zeros_like(margins[..., :1]), -margins], -1).logsumexp(-1)
