"""ResNet-50 with torchvision's layout and parameter names, so that its state dicts can be loaded directly.

It is the network of He et al. 2016 with the stride in the 3x3 convolution of a bottleneck. This is torchvision's
version ("v1.5"), and that of the models published with both papers.
"""

from __future__ import annotations

from torch import Tensor, nn

from .options import check_sizes

EXPANSION = 4
DEPTHS = (3, 4, 6, 3)


class Bottleneck(nn.Module):
    """conv 1x1, 3x3, 1x1, each followed by BN and ReLU; the last ReLU comes after the sum with the shortcut.

    Args:
        channels: number of input channels.
        planes: channels of the 3x3 convolution; the output has 4 times as many.
        stride: stride of the 3x3 convolution.
    """

    def __init__(self, channels: int, planes: int, stride: int = 1):
        super().__init__()
        wide = EXPANSION * planes
        self.conv1 = nn.Conv2d(channels, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, wide, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(wide)
        self.relu = nn.ReLU()
        self.downsample = None
        if stride != 1 or channels != wide:
            self.downsample = nn.Sequential(nn.Conv2d(channels, wide, 1, stride, bias=False), nn.BatchNorm2d(wide))

    def forward(self, x: Tensor) -> Tensor:
        """Features `(n, channels, H, W)` to `(n, 4 planes, H / stride, W / stride)`."""
        h = self.relu(self.bn1(self.conv1(x)))
        h = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(h)))))
        return self.relu(h + (x if self.downsample is None else self.downsample(x)))


class ResNet50(nn.Module):
    """ResNet-50 for images of 224 x 224 or other sizes: stages `layer1` to `layer4`, classifier `fc`.

    Convolutions are initialised by He et al. 2015 with fan-out, BN by ones and zeros, `fc` by PyTorch's default.

    Args:
        num_classes: K, the number of outputs.
        width: channels of the first convolution; 64 is ResNet-50.
        in_channels: number of channels of the images.
    """

    def __init__(self, num_classes: int = 1000, *, width: int = 64, in_channels: int = 3):
        super().__init__()
        check_sizes(num_classes=num_classes, width=width, in_channels=in_channels)
        self.conv1 = nn.Conv2d(in_channels, width, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)

        def stage(before: int, planes: int, depth: int, stride: int) -> nn.Sequential:
            rest = (Bottleneck(EXPANSION * planes, planes) for _ in range(depth - 1))
            return nn.Sequential(Bottleneck(before, planes, stride), *rest)

        self.layer1 = stage(width, width, DEPTHS[0], 1)
        self.layer2 = stage(4 * width, 2 * width, DEPTHS[1], 2)
        self.layer3 = stage(8 * width, 4 * width, DEPTHS[2], 2)
        self.layer4 = stage(16 * width, 8 * width, DEPTHS[3], 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8 * EXPANSION * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Images `(n, in_channels, H, W)` to logits `(n, K)`."""
        h = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        h = self.layer4(self.layer3(self.layer2(self.layer1(h))))
        return self.fc(self.avgpool(h).flatten(1))
