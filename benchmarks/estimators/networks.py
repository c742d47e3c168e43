"""Networks of the cases: smooth, in evaluation mode, of the sizes that are in use."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def mlp(*sizes: int) -> nn.Sequential:
    """Linear layers with tanh between them."""
    layers = [layer for width, after in pairwise(sizes) for layer in (nn.Linear(width, after), nn.Tanh())]
    return nn.Sequential(*layers[:-1])


def cnn(channels: int = 1, width: int = 16, classes: int = 10) -> nn.Sequential:
    """Three convolutions with batch norm and SiLU, global average pooling, linear."""
    layers, before = [], channels
    for planes, stride in ((width, 1), (2 * width, 2), (4 * width, 2)):
        conv = nn.Conv2d(before, planes, 3, stride, 1, bias=False)
        layers, before = [*layers, conv, nn.BatchNorm2d(planes), nn.SiLU()], planes
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))


class PreActBlock(nn.Module):
    """Norm, activation, convolution, twice, with a shortcut (He et al. 2016)."""

    def __init__(self, before: int, planes: int, stride: int):
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(before), nn.BatchNorm2d(planes)
        self.conv1 = nn.Conv2d(before, planes, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        same = stride == 1 and before == planes
        self.shortcut = None if same else nn.Conv2d(before, planes, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = F.silu(self.norm1(x))
        skip = x if self.shortcut is None else self.shortcut(out)
        return skip + self.conv2(F.silu(self.norm2(self.conv1(out))))


class PreActResNet18(nn.Module):
    """Four stages of two pre-activation blocks, SiLU as a smooth activation."""

    def __init__(self, width: int = 64, classes: int = 10):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        before = width
        for stage, (planes, stride) in enumerate(((width, 1), (2 * width, 2), (4 * width, 2), (8 * width, 2)), 1):
            blocks = nn.Sequential(PreActBlock(before, planes, stride), PreActBlock(planes, planes, 1))
            setattr(self, f"layer{stage}", blocks)
            before = planes
        self.norm, self.linear = nn.BatchNorm2d(before), nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.layer2(self.layer1(self.stem(x))))

    def tail(self, h: Tensor) -> Tensor:
        """From the output of the second stage to the logits."""
        out = F.silu(self.norm(self.layer4(self.layer3(h))))
        return self.linear(F.adaptive_avg_pool2d(out, 1).flatten(1))


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads, self.mix, self.out = heads, nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, z: Tensor) -> Tensor:
        parts = self.mix(z).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*parts.unbind(0))
        return self.out(mixed.transpose(1, 2).flatten(2))


class EncoderBlock(nn.Module):
    """Attention and a two-layer perceptron, each behind a layer norm and with a residual connection."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.norm1, self.norm2, self.attention = nn.LayerNorm(dim), nn.LayerNorm(dim), Attention(dim, heads)
        self.perceptron = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, z: Tensor) -> Tensor:
        z = z + self.attention(self.norm1(z))
        return z + self.perceptron(self.norm2(z))


class VisionTransformer(nn.Module):
    """Patches, positions, encoder blocks, mean over the tokens, linear."""

    def __init__(
        self, size: int = 32, patch: int = 4, dim: int = 64, depth: int = 4, heads: int = 4, classes: int = 10
    ):
        super().__init__()
        self.patches = nn.Conv2d(3, dim, patch, patch)
        self.position = nn.Parameter(0.02 * torch.randn((size // patch) ** 2, dim))
        self.blocks = nn.Sequential(*(EncoderBlock(dim, heads) for _ in range(depth)))
        self.norm, self.linear = nn.LayerNorm(dim), nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.position
        return self.linear(self.norm(self.blocks(tokens)).mean(1))
