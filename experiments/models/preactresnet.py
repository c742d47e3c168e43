r"""Pre-activation residual networks: PreActResNet-18, "Wide-ResNet-18" and a small network for the digits.

A block is BN, ReLU, conv 3x3, BN, ReLU, conv 3x3, and a shortcut. With $a = \mathrm{ReLU}(\mathrm{BN}_1(x))$ and
$r = \mathrm{conv}_2(\mathrm{ReLU}(\mathrm{BN}_2(\mathrm{conv}_1(a))))$ its output is

| shape of the output | `"released"`, the code of both papers | `"standard"`, He et al. 2016 and Manifold Mixup's code |
|---|---|---|
| as the input | $r + a$ | $r + x$ |
| changed | $r + \mathrm{conv}_{1\times1}(a)$ | $r + \mathrm{conv}_{1\times1}(a)$ |

Only identity shortcuts differ. Neither version has a BN or ReLU after the last stage. (The papers' text does not
mention these two points; source: protocol, section 3, "Architectures".) The papers use ReLU, whose second derivative
is zero almost everywhere. The network for digits can have a smooth activation instead, so that every term of the
expansion has an effect in training.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .options import check_sizes

SHORTCUTS = ("released", "standard")
#: Activations by name.
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU}


class PreActBlock(nn.Module):
    """One pre-activation block, described at the top of this module.

    Args:
        channels: number of input channels.
        planes: number of output channels.
        stride: stride of the first convolution.
        shortcut: version of the identity shortcut, one of `SHORTCUTS`.
        activation: a name of `ACTIVATIONS`.
    """

    def __init__(
        self, channels: int, planes: int, stride: int = 1, *, shortcut: str = "released", activation: str = "relu"
    ):
        super().__init__()
        if shortcut not in SHORTCUTS:
            raise ValueError(f"shortcut: expected one of {list(SHORTCUTS)}, got {shortcut!r}.")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation: expected one of {list(ACTIVATIONS)}, got {activation!r}.")
        self.carries = shortcut
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, planes, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.activation = ACTIVATIONS[activation]()
        keeps = stride == 1 and channels == planes
        self.project = None if keeps else nn.Conv2d(channels, planes, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Features `(n, channels, H, W)` to `(n, planes, H / stride, W / stride)`."""
        active = self.activation(self.bn1(x))
        residual = self.conv2(self.activation(self.bn2(self.conv1(active))))
        if self.project is not None:
            return residual + self.project(active)
        return residual + (active if self.carries == "released" else x)


class PreActResNet(nn.Module):
    """Stages `layer1`, `layer2`, ... of pre-activation blocks. Each stage after the first halves the image.

    Args:
        num_classes: K, the number of outputs.
        widths: number of channels of each stage; the first convolution has as many as the first stage.
        blocks: number of blocks in each stage.
        shortcut: version of the identity shortcut, one of `SHORTCUTS`.
        in_channels: number of channels of the images.
        activation: a name of `ACTIVATIONS`.
    """

    def __init__(
        self,
        num_classes: int,
        widths: Sequence[int],
        *,
        blocks: int,
        shortcut: str,
        in_channels: int,
        activation: str = "relu",
    ):
        super().__init__()
        check_sizes(num_classes=num_classes, blocks=blocks, in_channels=in_channels)
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.stages = tuple(f"layer{k}" for k in range(1, len(widths) + 1))
        before = widths[0]
        for k, (name, width) in enumerate(zip(self.stages, widths, strict=True)):
            sizes = [(before, width, 1 if k == 0 else 2)] + (blocks - 1) * [(width, width, 1)]
            options = {"shortcut": shortcut, "activation": activation}
            self.add_module(name, nn.Sequential(*(PreActBlock(*size, **options) for size in sizes)))
            before = width
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(before, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images `(n, in_channels, H, W)` to logits `(n, K)`."""
        h = self.conv1(x)
        for name in self.stages:
            h = getattr(self, name)(h)
        return self.linear(self.pool(h).flatten(1))


class PreActResNet18(PreActResNet):
    """PreActResNet-18 for CIFAR: four stages of two blocks. With `width=128` it is the papers' "Wide-ResNet-18".

    For 32 x 32 images the mean over the last 4 x 4 positions is the papers' pooling. Weights have PyTorch's default
    initialisation.

    Args:
        num_classes: K, the number of outputs.
        width: channels of the first stage; the others have 2, 4 and 8 times as many.
        shortcut: version of the identity shortcut, one of `SHORTCUTS`.
        in_channels: number of channels of the images.
    """

    def __init__(self, num_classes: int, *, width: int = 64, shortcut: str = "released", in_channels: int = 3):
        check_sizes(width=width)
        widths = [width * factor for factor in (1, 2, 4, 8)]
        super().__init__(num_classes, widths, blocks=2, shortcut=shortcut, in_channels=in_channels)


class DigitsResNet(PreActResNet):
    """The same blocks for grey images of 8 x 8 pixels, our own choice: three stages of one block.

    The stages have 8, 4 and 2 positions on a side.

    Args:
        num_classes: K, the number of outputs.
        width: channels of the first stage; the others have 2 and 4 times as many.
        shortcut: version of the identity shortcut, one of `SHORTCUTS`.
        activation: `"relu"`, or a smooth activation: `"silu"` or `"gelu"`.
    """

    def __init__(self, num_classes: int, *, width: int = 8, shortcut: str = "released", activation: str = "relu"):
        check_sizes(width=width)
        widths = [width * factor for factor in (1, 2, 4)]
        super().__init__(num_classes, widths, blocks=1, shortcut=shortcut, in_channels=1, activation=activation)
