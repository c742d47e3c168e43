"""Fully connected ReLU networks for the papers' toy data in the plane.

The papers say "shallow" (NoisyMix, appendix A) and four layers (NFM, recalled, not verified). The widths are not
stated and are our choice. Two classes have two logits, so that every scheme, including the JSD, runs unchanged;
`num_classes=1` gives the single logit of the logistic loss.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from .options import check_dropout, check_sizes


def _fully_connected(num_classes: int, hidden: int, width: int, dropout: float, in_features: int) -> nn.Module:
    """Layers `hidden1`, `hidden2`, ..., each a linear map, ReLU and perhaps dropout, then `logits`."""
    check_sizes(num_classes=num_classes, width=width, in_features=in_features)
    check_dropout(dropout)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for k in range(1, hidden + 1):
        tail = [nn.Dropout(dropout)] if dropout else []
        layers[f"hidden{k}"] = nn.Sequential(nn.Linear(in_features, width), nn.ReLU(), *tail)
        in_features = width
    layers["logits"] = nn.Linear(width, num_classes)
    return nn.Sequential(layers)


def noisymix_toy(num_classes: int = 2, *, width: int = 128, in_features: int = 2) -> nn.Module:
    """The shallow ReLU network of NoisyMix's appendix A, with one hidden layer `hidden1`.

    Args:
        num_classes: number of outputs.
        width: width of the hidden layer (our choice).
        in_features: dimension of the data.
    """
    return _fully_connected(num_classes, 1, width, 0.0, in_features)


def nfm_toy(num_classes: int = 2, *, width: int = 64, dropout: float = 0.0, in_features: int = 2) -> nn.Module:
    """The four-layer ReLU network of NFM's toy figures: `hidden1`, `hidden2`, `hidden3` and the linear output.

    Args:
        num_classes: number of outputs.
        width: width of the hidden layers (our choice).
        dropout: dropout rate after each ReLU, for the baseline with dropout (0.2 there, recalled). In training mode it
            draws from PyTorch's global generator.
        in_features: dimension of the data.
    """
    return _fully_connected(num_classes, 3, width, dropout, in_features)
