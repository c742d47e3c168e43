"""Small networks for the neighbors of this theory: vectors, time series, patches.

None has batch normalization, so that each sample has a gradient of its own. All but the network of patches are smooth,
so that the expansions of this project apply to the trained networks.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from .options import check_sizes


def smooth_mlp(num_classes: int = 2, *, in_features: int = 2, width: int = 64) -> nn.Module:
    """Two hidden layers with SiLU, `hidden1` and `hidden2`. Images become vectors.

    Args:
        num_classes: number of outputs.
        in_features: dimension of the data.
        width: width of the hidden layers.
    """
    check_sizes(num_classes=num_classes, in_features=in_features, width=width)
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            hidden1=nn.Sequential(nn.Linear(in_features, width), nn.SiLU()),
            hidden2=nn.Sequential(nn.Linear(width, width), nn.SiLU()),
            logits=nn.Linear(width, num_classes),
        )
    )


class SeriesBlock(nn.Module):
    """A convolution in time with SiLU. Its output is weighted by the last channel, which goes through unchanged.

    Args:
        channels: channels of the input without the last one.
        out: channels of the output without the last one.
        kernel: odd number of times that the convolution sees.
    """

    def __init__(self, channels: int, out: int, kernel: int):
        super().__init__()
        self.convolution = nn.Conv1d(channels, out, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Features `(n, channels + 1, T)` to `(n, out + 1, T)`."""
        inside = x[:, -1:]
        return torch.cat([nn.functional.silu(self.convolution(x[:, :-1])) * inside, inside], 1)


class SeriesPool(nn.Module):
    """The mean over the times inside of the sequence, weighted by the last channel: `(n, C + 1, T)` to `(n, C)`."""

    def forward(self, x: Tensor) -> Tensor:
        """The features are weighted already, see `SeriesBlock`."""
        return x[:, :-1].sum(2) / x[:, -1:].sum(2)


def series_cnn(num_classes: int = 2, *, in_channels: int = 1, width: int = 32, kernel: int = 9) -> nn.Module:
    """Three convolutions in time, `block1` to `block3`, and a mean over time, for sequences of different lengths.

    The last channel of the input is 1 inside of a sequence and 0 behind its end. Every layer passes it on, so that
    mixing at any layer mixes it as well.

    Args:
        num_classes: number of outputs.
        in_channels: channels of the sequences, without the last one.
        width: channels of the convolutions.
        kernel: odd number of times that a convolution sees.
    """
    check_sizes(num_classes=num_classes, in_channels=in_channels, width=width, kernel=kernel)
    return nn.Sequential(
        OrderedDict(
            block1=SeriesBlock(in_channels, width, kernel),
            block2=SeriesBlock(width, width, kernel),
            block3=SeriesBlock(width, width, kernel),
            pool=SeriesPool(),
            logits=nn.Linear(width, num_classes),
        )
    )


class PatchNetwork(nn.Module):
    r"""The two-layer convolutional network of the paper on Midpoint Mixup, for samples of patches.

    $$ f_y(x) = \sum_r \sum_p \sigma(\langle w_{y,r}, x_p\rangle), \qquad
       \sigma(z) = z^4/(4\rho^3) \text{ on } [0, \rho],\; z - \tfrac34\rho \text{ above},\; 0 \text{ below} $$

    Args:
        num_classes: number of outputs.
        dimension: dimension of a patch.
        width: filters of each class.
        knee: ρ, where the smoothed ReLU becomes linear.
        scale: standard deviation of the initial weights.
    """

    def __init__(
        self, num_classes: int = 10, *, dimension: int = 40, width: int = 4, knee: float = 0.5, scale: float = 0.1
    ):
        super().__init__()
        check_sizes(num_classes=num_classes, dimension=dimension, width=width)
        self.knee, self.width = knee, width
        self.filters = nn.Linear(dimension, num_classes * width, bias=False)
        nn.init.normal_(self.filters.weight, std=scale)

    def forward(self, x: Tensor) -> Tensor:
        """Samples `(n, patches, dimension)` to outputs `(n, num_classes)`."""
        z = self.filters(x)
        found = z.clamp(0, self.knee).square().square() / (4 * self.knee**3) + torch.relu(z - self.knee)
        return found.unflatten(-1, (-1, self.width)).sum((1, 3))
