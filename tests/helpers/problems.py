"""Small networks for the tests: float64, evaluation mode, seeded without touching the global generator."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

ACTIVATIONS = {"tanh": nn.Tanh, "silu": nn.SiLU, "gelu": nn.GELU, "softplus": nn.Softplus, "relu": nn.ReLU}


def generator(seed):
    return torch.Generator().manual_seed(seed)


def randn(seed, *shape):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def finish(build, seed):
    """Build under the seed, then float64, evaluation mode and norms that are not the identity."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build().double().eval()
        for name, value in model.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif name.endswith("running_mean") or (value.ndim == 1 and name.endswith(("weight", "bias"))):
                value.add_(0.2 * torch.randn_like(value))
    return model


def mlp(seed, sizes, activation="tanh", bias=True):
    """Linear layers with an activation between them; `sizes` from inputs to outputs."""

    def build():
        layers = []
        for width, next_width in pairwise(sizes):
            layers += [nn.Linear(width, next_width, bias=bias), ACTIVATIONS[activation]()]
        return nn.Sequential(*layers[:-1])

    return finish(build, seed)


def small_cnn(seed, channels=1, num_classes=3, activation="tanh", norm=nn.BatchNorm2d, pool=nn.MaxPool2d):
    """Convolution, norm, activation, pooling, convolution, average pooling, linear; for images 6x6 and up."""
    act = ACTIVATIONS[activation]

    def build():
        return nn.Sequential(
            *(nn.Conv2d(channels, 4, 3, padding=1), norm(4), act(), pool(2)),
            *(nn.Conv2d(4, 4, 3), act(), nn.AdaptiveAvgPool2d(1)),
            *(nn.Flatten(), nn.Linear(4, num_classes)),
        )

    return finish(build, seed)


class PreActBlock(nn.Module):
    """Norm, activation, convolution, twice; the shortcut is projected where the shape changes."""

    def __init__(self, channels, planes, stride, activation):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(planes)
        self.conv1 = nn.Conv2d(channels, planes, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.act = ACTIVATIONS[activation]()
        change = stride != 1 or channels != planes
        self.shortcut = nn.Conv2d(channels, planes, 1, stride, bias=False) if change else None

    def forward(self, x):
        out = self.act(self.bn1(x))
        skip = x if self.shortcut is None else self.shortcut(out)
        out = self.conv2(self.act(self.bn2(self.conv1(out))))
        out += skip
        return out


class PreActResNet18(nn.Module):
    """Four stages of two pre-activation blocks."""

    def __init__(self, width, num_classes, activation):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        planes = [width, width, 2 * width, 4 * width, 8 * width]
        for i in range(4):
            first = PreActBlock(planes[i], planes[i + 1], 1 if i == 0 else 2, activation)
            second = PreActBlock(planes[i + 1], planes[i + 1], 1, activation)
            setattr(self, f"layer{i + 1}", nn.Sequential(first, second))
        self.bn, self.act = nn.BatchNorm2d(8 * width), ACTIVATIONS[activation]()
        self.linear = nn.Linear(8 * width, num_classes)

    def forward(self, x):
        out = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        return self.linear(F.adaptive_avg_pool2d(self.act(self.bn(out)), 1).flatten(1))


def preact_resnet18(seed, width=2, num_classes=3, activation="silu"):
    return finish(lambda: PreActResNet18(width, num_classes, activation), seed)


class TinyTransformer(nn.Module):
    """Vision-transformer-like: tokens `(batch, length, dim)`, encoder layers, mean over tokens, linear."""

    def __init__(self, length, dim, num_classes, norm_first, depth):
        super().__init__()
        self.position = nn.Parameter(0.1 * torch.randn(length, dim))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(dim, 2, 2 * dim, 0.1, "gelu", batch_first=True, norm_first=norm_first)
            for _ in range(depth)
        )
        self.norm, self.linear = nn.LayerNorm(dim), nn.Linear(dim, num_classes)

    def forward(self, x):
        x = x + self.position
        for block in self.blocks:
            x = block(x)
        return self.linear(self.norm(x).mean(1))


def tiny_transformer(seed, length=3, dim=4, num_classes=3, norm_first=True, depth=1):
    return finish(lambda: TinyTransformer(length, dim, num_classes, norm_first, depth), seed)
