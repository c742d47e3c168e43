"""Operations of which PyTorch has no forward-mode derivative, or none for many directions, composed from others."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .linear_algebra import product

# Recurrent layers -------------------------------------------------------------------------------------------


def _in_float64(item):
    """The same arguments with every tensor of lower precision in float64."""
    if isinstance(item, Tensor):
        return item.double() if item.is_floating_point() else item
    return type(item)(map(_in_float64, item)) if isinstance(item, (list, tuple)) else item


def _recurrent(function: Callable) -> Callable:
    """A recurrent layer by PyTorch's own composition: fused kernels for float32 and for GPUs have no second derivative.

    Kernels for the CPU take float32 alone, hence float64 here, whose rounding is only finer.
    """

    def composed(input: Tensor, *args):
        if input.is_cuda:
            with torch.backends.cudnn.flags(enabled=False):
                return function(input, *args)
        results = function(*_in_float64((input, *args)))
        return tuple(z.to(input.dtype) for z in results)

    return composed


# Distances --------------------------------------------------------------------------------------------------


def _root(square: Tensor) -> Tensor:
    """The square root, with derivative 0 at 0."""
    positive = square > 0
    return torch.where(positive, square, 1).sqrt() * positive


def power_norm(z: Tensor, p: float, dim, keepdim: bool = False) -> Tensor:
    """`(Σ |z|^p)^(1/p)`, with derivative 0 at entries that are 0 and at a vector of zeros."""
    nonzero = z != 0
    total = (torch.where(nonzero, z, 1).abs().pow(p) * nonzero).sum(dim, keepdim=keepdim)
    positive = total > 0
    return torch.where(positive, total, 1).pow(1 / p) * positive


def _length(z: Tensor, p: float) -> Tensor:
    """The p-norm over the last dimension; the derivative at 0 is 0, as in PyTorch."""
    if p == 2:
        return _root((z * z).sum(-1))
    if p == 0:
        return (z != 0).sum(-1).to(z.dtype)
    if p == math.inf:
        return z.abs().amax(-1)
    if p == 1:
        return z.abs().sum(-1)
    return power_norm(z, p, -1)


def _cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: str = "") -> Tensor:
    return _length(x1.unsqueeze(-2) - x2.unsqueeze(-3), p)


def _pdist(input: Tensor, p: float = 2.0) -> Tensor:
    first, second = torch.triu_indices(len(input), len(input), 1, device=input.device)
    return _length(input[first] - input[second], p)


# Elementwise ------------------------------------------------------------------------------------------------


def _logit(input: Tensor, eps: float | None = None, *, out=None) -> Tensor:
    z = input if eps is None or eps < 0 else input.clamp(eps, 1 - eps)
    return torch.log(z) - torch.log1p(-z)


def _rrelu(input: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, inplace: bool = False):
    if training:
        return F.rrelu(input, lower, upper, True)
    return F.leaky_relu(input, (lower + upper) / 2)


# Sampling of images -----------------------------------------------------------------------------------------


def _reflected(z: Tensor, low: float, high: float) -> Tensor:
    """Coordinates reflected at both ends until they lie between them."""
    if low == high:
        return torch.zeros_like(z)
    z = (z - low).abs()
    turns = torch.floor(z.detach() / (high - low))
    rest = z - turns * (high - low)
    return torch.where(turns % 2 == 0, rest + low, high - rest)


def _pixel(coordinate: Tensor, size: int, padding: str, align_corners: bool) -> Tensor:
    """Coordinates in [-1, 1] as positions in pixels, inside of the image unless it is padded with zeros."""
    z = (coordinate + 1) / 2 * (size - 1) if align_corners else ((coordinate + 1) * size - 1) / 2
    if padding == "reflection":
        z = _reflected(z, 0, size - 1) if align_corners else _reflected(z, -0.5, size - 0.5)
    return z if padding == "zeros" else z.clamp(0, size - 1)


def _grid_sample(
    input: Tensor,
    grid: Tensor,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool | None = None,
) -> Tensor:
    if mode == "bicubic":
        return F.grid_sample(input, grid, mode, padding_mode, align_corners)
    sizes, (n, channels) = input.shape[2:], input.shape[:2]
    grid = grid.flip(-1)  # the last coordinate belongs to the first dimension
    z = [_pixel(grid[..., k].flatten(1), size, padding_mode, bool(align_corners)) for k, size in enumerate(sizes)]
    nearest = mode == "nearest"
    low = [(torch.round(c.detach()) if nearest else torch.floor(c.detach())) for c in z]
    flat = input.reshape(n, channels, -1)
    total = flat.new_zeros(n, channels, z[0].shape[1])
    for corner in itertools.product((0,) if nearest else (0, 1), repeat=len(sizes)):
        index, weight = torch.zeros_like(low[0]), torch.ones_like(z[0])
        for c, below, step, size in zip(z, low, corner, sizes, strict=True):
            place = below + step
            index = index * size + place.clamp(0, size - 1)
            weight = weight * ((place >= 0) & (place < size))
            if not nearest:
                weight = weight * (c - below if step else 1 - (c - below))
        picked = flat.gather(2, index.long().unsqueeze(1).expand(n, channels, -1))
        total = total + picked * weight.unsqueeze(1)
    return total.reshape(n, channels, *grid.shape[1:-1])


# Products and other reductions ------------------------------------------------------------------------------


def _prod(input: Tensor, dim: int | None = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Tensor:
    z = input if dtype is None else input.to(dtype)
    if not z.is_floating_point():
        return torch.prod(z) if dim is None else torch.prod(z, dim, keepdim)
    if dim is None:
        return product(z.reshape(-1), 0)
    found = product(z, dim) if z.ndim else z
    return found.unsqueeze(dim) if keepdim and z.ndim else found


def _cumprod(input: Tensor, dim: int, *, dtype: torch.dtype | None = None, out=None) -> Tensor:
    """All products of the first entries, by doubling their number; right also if entries are 0."""
    z = input if dtype is None else input.to(dtype)
    if not z.is_floating_point() or not z.ndim:
        return torch.cumprod(z, dim)
    count, reach = z.shape[dim], 1
    while reach < count:
        z = torch.cat(
            [z.narrow(dim, 0, reach), z.narrow(dim, reach, count - reach) * z.narrow(dim, 0, count - reach)], dim
        )
        reach *= 2
    return z


def _logaddexp(input: Tensor, other: Tensor, *, out=None) -> Tensor:
    """The logarithm of a sum; where one of the logarithms is -inf it is the other one."""
    first, second = (z == -math.inf for z in (input, other))
    found = torch.logaddexp(input.masked_fill(first, 0), other.masked_fill(second, 0))
    return torch.where(first, other, torch.where(second, input, found))


def _safe_softmax(input: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """Softmax that is 0 where every entry is -inf."""
    allowed = input != -math.inf
    some = allowed.any(dim, keepdim=True)
    return torch.softmax(input.masked_fill(~some, 0), dim, dtype=dtype) * some


# Unpooling --------------------------------------------------------------------------------------------------


def _unpool(function: Callable, dims: int) -> Callable:
    """Unpooling that knows which of several equal indices is kept: PyTorch's gradient counts all of them."""

    def composed(input: Tensor, indices: Tensor, kernel_size, stride=None, padding=0, output_size=None) -> Tensor:
        shape = input.shape[-dims:]
        number = torch.arange(1, shape.numel() + 1, dtype=torch.float64, device=input.device).reshape(shape)
        number = number.expand(input.shape).contiguous()
        kept = function(number, indices, kernel_size, stride, padding, output_size).long()
        places = (kept.flatten(-dims) - 1).clamp(min=0)
        return (input.flatten(-dims).gather(-1, places) * (kept.flatten(-dims) > 0)).reshape(kept.shape)

    return composed


def _linear_cross_entropy(input: Tensor, linear_weight: Tensor, target: Tensor, *, options=None, **kwargs) -> Tensor:
    return F.linear_cross_entropy(input, linear_weight, target, **kwargs)  # in one piece


#: Maps a function of PyTorch to a composition with the same signature and the same value.
SUBSTITUTES: dict[Callable, Callable] = {
    **{function: _recurrent(function) for function in (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)},
    torch.cdist: _cdist,
    F.pdist: _pdist,
    torch.pdist: _pdist,
    torch.logit: _logit,
    Tensor.logit: _logit,
    torch.special.logit: _logit,
    F.rrelu: _rrelu,
    torch.rrelu: _rrelu,
    F.grid_sample: _grid_sample,
    torch.prod: _prod,
    Tensor.prod: _prod,
    torch.cumprod: _cumprod,
    Tensor.cumprod: _cumprod,
    torch.logaddexp: _logaddexp,
    Tensor.logaddexp: _logaddexp,
    torch.ops.aten._safe_softmax.default: _safe_softmax,
    **{
        function: _unpool(function, k + 1)
        for k, function in enumerate((F.max_unpool1d, F.max_unpool2d, F.max_unpool3d))
    },
    **({F.linear_cross_entropy: _linear_cross_entropy} if hasattr(F, "linear_cross_entropy") else {}),
}
