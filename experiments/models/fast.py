"""A small convolutional network that trains in minutes on one core, our own choice.

A 2 x 2 convolution with stride 2 halves the image. Three stages follow: convolution 3 x 3, max pooling, BN, ReLU,
convolution 3 x 3, BN, ReLU. The largest value of each channel goes to the classifier. The design is that of networks
for fast training, such as those of Page (How to train your ResNet, 2018) and Jordan (94% on CIFAR-10 in 3.29 seconds
on a single GPU, 2024), with fewer channels.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .options import check_sizes

#: Factor of the logits, so that training begins with small ones.
SCALE = 0.25


class Stage(nn.Module):
    """Two convolutions; the first one is followed by max pooling, which halves the image."""

    def __init__(self, channels: int, planes: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, planes, 3, padding=1, bias=False)
        self.pool = nn.MaxPool2d(2)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Features `(n, channels, H, W)` to `(n, planes, H // 2, W // 2)`."""
        h = self.activation(self.bn1(self.pool(self.conv1(x))))
        return self.activation(self.bn2(self.conv2(h)))


class FastConvNet(nn.Module):
    """Stages `layer1`, `layer2`, `layer3`, described at the top of this module.

    Weights have PyTorch's default initialisation.

    Args:
        num_classes: K, the number of outputs.
        widths: number of channels of each stage.
        stem: number of channels of the first convolution.
        in_channels: number of channels of the images.
    """

    def __init__(
        self, num_classes: int = 10, *, widths: Sequence[int] = (48, 96, 128), stem: int = 24, in_channels: int = 3
    ):
        super().__init__()
        check_sizes(num_classes=num_classes, stem=stem, in_channels=in_channels, **{
            f"widths[{k}]": width for k, width in enumerate(widths)
        })  # fmt: skip
        self.stem = nn.Conv2d(in_channels, stem, 2, stride=2)
        self.activation = nn.ReLU()
        self.stages = tuple(f"layer{k}" for k in range(1, len(widths) + 1))
        for name, channels, planes in zip(self.stages, (stem, *widths), widths, strict=False):
            self.add_module(name, Stage(channels, planes))
        self.linear = nn.Linear(widths[-1], num_classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Images `(n, in_channels, H, W)` to logits `(n, K)`. Each side has at least 16 pixels."""
        h = self.activation(self.stem(x))
        for name in self.stages:
            h = getattr(self, name)(h)
        return SCALE * self.linear(h.amax((2, 3)))
