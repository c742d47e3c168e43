"""A compact vision transformer for CIFAR.

NFM's abstract mentions vision transformers but states nothing more about them (protocol, section 3). So everything
here is our choice: the sizes of ViT-Lite-7/4 (Hassani et al. 2021, 7 blocks of width 256 with 4 heads on patches of
4 x 4 pixels), learned positions, a norm before each branch, and the mean over the tokens instead of a class token.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .options import check_dropout, check_sizes


class Attention(nn.Module):
    """Self-attention with several heads. One linear map gives queries, keys and values."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens `(n, tokens, dim)` to the same shape."""
        n, tokens, dim = x.shape
        parts = self.qkv(x).reshape(n, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(parts[0], parts[1], parts[2])
        return self.out(mixed.transpose(1, 2).reshape(n, tokens, dim))


class Block(nn.Module):
    """Attention, then two linear maps with GELU between them. Each branch has a norm in front and a shortcut.

    Args:
        dim: width of a token.
        heads: number of heads.
        ratio: width between the two linear maps, as a multiple of `dim`.
        dropout: dropout rate at the end of both branches.
    """

    def __init__(self, dim: int, heads: int, ratio: int, dropout: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, ratio * dim), nn.GELU(), nn.Linear(ratio * dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens `(n, tokens, dim)` to the same shape."""
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.mlp(self.norm2(x)))


class ViT(nn.Module):
    """Compact vision transformer: patches, positions, `blocks.0`, `blocks.1`, ..., norm, mean over tokens, linear map.

    Linear maps and positions are initialised by a normal law of standard deviation 0.02, cut at ±2, and biases by 0.

    Args:
        num_classes: K, the number of outputs.
        dim: width of a token.
        depth: number of blocks, at least 6 for the layers that `eligible_layers` names.
        heads: number of heads, a divisor of `dim`.
        ratio: width inside the blocks' linear maps, as a multiple of `dim`.
        dropout: dropout rate; in training mode it draws from PyTorch's global generator.
        patch: side of a patch in pixels, a divisor of `image_size`.
        image_size: side of the images in pixels.
        in_channels: number of channels of the images.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        dim: int = 256,
        depth: int = 7,
        heads: int = 4,
        ratio: int = 2,
        dropout: float = 0.0,
        patch: int = 4,
        image_size: int = 32,
        in_channels: int = 3,
    ):
        super().__init__()
        sizes = {"dim": dim, "depth": depth, "heads": heads, "ratio": ratio, "patch": patch, "image_size": image_size}
        check_sizes(num_classes=num_classes, in_channels=in_channels, **sizes)
        check_dropout(dropout)
        for part, whole in (("heads", "dim"), ("patch", "image_size")):
            if sizes[whole] % sizes[part]:
                raise ValueError(f"{part}: expected a divisor of {whole}={sizes[whole]}, got {sizes[part]}.")
        self.image_shape = (in_channels, image_size, image_size)
        self.patches = nn.Conv2d(in_channels, dim, patch, stride=patch)
        self.positions = nn.Parameter(torch.empty((image_size // patch) ** 2, dim))
        self.blocks = nn.ModuleList(Block(dim, heads, ratio, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.linear = nn.Linear(dim, num_classes)
        nn.init.trunc_normal_(self.positions, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Images `(n, in_channels, image_size, image_size)` to logits `(n, K)`; other sizes are refused."""
        if tuple(x.shape[1:]) != self.image_shape:
            raise ValueError(
                f"x: expected images (n, {', '.join(map(str, self.image_shape))}), got {tuple(x.shape)}; "
                "build the network with the image_size and in_channels of the data."
            )
        h = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            h = block(h)
        return self.linear(self.norm(h).mean(1))
