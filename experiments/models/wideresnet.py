"""Wide residual networks of depth 28, as in NoisyMix's code and in the standard form.

| | `released=True`, NoisyMix's code | `released=False`, Zagoruyko and Komodakis 2016 |
|---|---|---|
| stride of a stage | second convolution of its first block | first convolution |
| biases of convolutions | all | none |
| 1x1 shortcut, where the shape changes | applied to x | applied to ReLU(BN(x)) |
| dropout | directly after the first convolution | before the second convolution |
| momentum of the final BN | 0.9 (running statistics are nearly those of the last batch) | 0.1 |

Identity shortcuts carry x in both. The paper says 28x2, but its code and its published models are 28x4
(source: protocol, section 3, "Architectures", and section 7, item 16).
"""

from __future__ import annotations

from torch import Tensor, nn

from .options import check_dropout, check_sizes

BLOCKS = 4  # (28 - 4) / 6 in each of three stages


class WideBlock(nn.Module):
    """BN, ReLU, conv 3x3, BN, ReLU, conv 3x3 with dropout between the convolutions, and a shortcut.

    Args:
        channels: number of input channels.
        planes: number of output channels.
        stride: stride of the block.
        dropout: dropout rate.
        released: see the table at the top of this module.
    """

    def __init__(self, channels: int, planes: int, stride: int = 1, *, dropout: float = 0.1, released: bool = True):
        super().__init__()
        first, second = (1, stride) if released else (stride, 1)
        self.released = released
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, planes, 3, first, padding=1, bias=released)
        self.dropout = nn.Dropout(dropout)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, second, padding=1, bias=released)
        self.relu = nn.ReLU()
        keeps = stride == 1 and channels == planes
        self.project = None if keeps else nn.Conv2d(channels, planes, 1, stride, bias=released)

    def forward(self, x: Tensor) -> Tensor:
        """Features `(n, channels, H, W)` to `(n, planes, H / stride, W / stride)`."""
        active = self.relu(self.bn1(x))
        h = self.conv1(active)
        h = self.relu(self.bn2(self.dropout(h))) if self.released else self.dropout(self.relu(self.bn2(h)))
        carried = x if self.project is None else self.project(x if self.released else active)
        return self.conv2(h) + carried


class WideResNet28(nn.Module):
    """WRN-28 for CIFAR: stages `layer1`, `layer2`, `layer3`, then BN, ReLU, mean over the image, linear map.

    For 32 x 32 images the mean over the last 8 x 8 positions is the paper's pooling. Weights have PyTorch's default
    initialisation, since NoisyMix's code never calls the one that it defines.

    Args:
        num_classes: K, the number of outputs.
        widen: k; the stages have 16k, 32k and 64k channels.
        dropout: dropout rate; in training mode it draws from PyTorch's global generator.
        released: see the table at the top of this module.
        in_channels: number of channels of the images.
    """

    def __init__(
        self, num_classes: int, *, widen: int = 4, dropout: float = 0.1, released: bool = True, in_channels: int = 3
    ):
        super().__init__()
        check_sizes(num_classes=num_classes, widen=widen, in_channels=in_channels)
        check_dropout(dropout)
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=released)

        def stage(before: int, width: int, stride: int) -> nn.Sequential:
            sizes = [(before, width, stride)] + (BLOCKS - 1) * [(width, width, 1)]
            return nn.Sequential(*(WideBlock(*size, dropout=dropout, released=released) for size in sizes))

        self.layer1 = stage(16, 16 * widen, 1)
        self.layer2 = stage(16 * widen, 32 * widen, 2)
        self.layer3 = stage(32 * widen, 64 * widen, 2)
        self.bn = nn.BatchNorm2d(64 * widen, momentum=0.9 if released else 0.1)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64 * widen, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images `(n, in_channels, H, W)` to logits `(n, K)`."""
        h = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.linear(self.pool(self.relu(self.bn(h))).flatten(1))
