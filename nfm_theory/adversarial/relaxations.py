r"""Networks as chains of affine and scalar steps, and straight lines that enclose the scalar ones (theory §5).

| step | enclosure on `[l, u]` |
|---|---|
| affine: Linear, Conv, BatchNorm in evaluation mode, average pooling, Flatten, ... | itself |
| ReLU, LeakyReLU | itself on one side of the kink; else chord above, a line through 0 below |
| convex: Softplus, ELU | chord above, tangent in the middle below |
| S-shaped: Tanh, Sigmoid | chord and tangent on one side of 0; else lines with the smallest slope of the interval |
| bounded bend: GELU, SiLU | chord, shifted by `sup\|σ''\| (u - l)²/8` |
| MaxPool2d | the window's best entry below; above, the same if it is always the largest, else its largest bound |

Bounds hold in exact arithmetic; in floating point they hold up to its rounding.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_NO_SPATIAL_MIX = (nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_CONVOLUTIONS = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
#: sup |σ''|: 2 φ(0) for GELU, 1/2 for SiLU, both attained at 0.
_BENDS = {nn.GELU: 2 / math.sqrt(2 * math.pi), nn.SiLU: 0.5}
_KINKED, _CONVEX, _S_SHAPED = (nn.ReLU, nn.LeakyReLU), (nn.Softplus, nn.ELU), (nn.Tanh, nn.Sigmoid)
SUPPORTED = (
    "Linear, Conv1d/2d/3d, BatchNorm (evaluation mode), AvgPool and AdaptiveAvgPool, Flatten, Unflatten, Identity, "
    "Dropout (evaluation mode), MaxPool2d, ReLU, LeakyReLU, Softplus, ELU, Tanh, Sigmoid, GELU, SiLU"
)


@dataclass(frozen=True)
class Lines:
    """Two straight lines per entry: `lower_slope z + lower_offset <= σ(z) <= upper_slope z + upper_offset`.

    All fields are `(b, *shape)`. `loose` says where the lines differ from σ on the interval.
    """

    lower_slope: Tensor
    lower_offset: Tensor
    upper_slope: Tensor
    upper_offset: Tensor
    loose: Tensor

    def pull(self, c: Tensor, slope: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Coefficients `(J, b, *shape)` behind the step to those before it and constants `(J, b)`, from below.

        Args:
            c: coefficients of a linear function of the step's output.
            slope: replaces `lower_slope` where the step is loose (lines through 0), `(J, b, *shape)`.
        """
        positive, negative = c.clamp(min=0), c.clamp(max=0)
        below = self.lower_slope if slope is None else torch.where(self.loose, slope, self.lower_slope)
        constant = positive * self.lower_offset + negative * self.upper_offset
        return positive * below + negative * self.upper_slope, constant.flatten(2).sum(2)


class Affine:
    """An affine step `z -> A z + a`, sample by sample, known through its module."""

    def __init__(self, module: nn.Module):
        self.module = module

    def __call__(self, z: Tensor) -> Tensor:
        """A z + a."""
        return self.module(z)

    def _weighted(self, r: Tensor, change) -> Tensor:
        m = self.module
        if isinstance(m, nn.Linear):
            return F.linear(r, change(m.weight))
        if isinstance(m, _NORMS):
            scale = (m.running_var + m.eps).rsqrt() * (1 if m.weight is None else m.weight)
            return r * change(scale).reshape(1, -1, *[1] * (r.ndim - 2))
        convolve = next(f for kind, f in _CONVOLUTIONS.items() if isinstance(m, kind))
        return convolve(r, change(m.weight), None, m.stride, m.padding, m.dilation, m.groups)

    def spread(self, r: Tensor) -> Tensor:
        """`|A| r` for half widths r ≥ 0."""
        if isinstance(self.module, (*_NO_SPATIAL_MIX, *_AVERAGES)):
            return self.module(r)
        return self._weighted(r, torch.abs)

    def row_squares(self, r: Tensor) -> Tensor | None:
        """`(A∘A) r`: squared row norms if r holds squares of independent parts; `None` for averages, unknown."""
        if isinstance(self.module, _NO_SPATIAL_MIX):
            return self.module(r)
        return None if isinstance(self.module, _AVERAGES) else self._weighted(r, torch.square)

    @property
    def mixes(self) -> bool:
        """Whether an output may depend on several inputs."""
        return not isinstance(self.module, (*_NO_SPATIAL_MIX, *_NORMS))

    def pull(self, c: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """`cᵀA` and `c·a` for coefficients `(J, b, *out)`, by the module's own vjp.

        Args:
            c: coefficients of a linear function of the step's output.
            before: a tensor of the shape of the step's input, `(b, *in)`.
        """
        constant = (c * self.module(torch.zeros_like(before[:1]))).flatten(2).sum(2)
        if isinstance(self.module, nn.Linear):
            return c @ self.module.weight, constant
        blank = before.new_zeros(len(c) * before.shape[0], *before.shape[1:])
        pulled = torch.func.vjp(self.module, blank)[1](c.flatten(0, 1))[0]
        return pulled.unflatten(0, c.shape[:2]), constant


class Scalar:
    """An elementwise activation."""

    def __init__(self, module: nn.Module):
        self.module = module

    def __call__(self, z: Tensor) -> Tensor:
        """σ(z)."""
        return self.module(z)

    @property
    def kink_slope(self) -> float | None:
        """Slope s of `max(z, s z)`; `None` if smooth."""
        if isinstance(self.module, nn.ReLU):
            return 0.0
        return float(self.module.negative_slope) if isinstance(self.module, nn.LeakyReLU) else None

    def _derivative(self, z: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            return torch.autograd.grad(self(leaf).sum(), leaf)[0]

    def interval(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """Enclosure of σ on `[lo, hi]`."""
        if type(self.module) in _BENDS:
            lines = self.lines(lo, hi)
            ends = [lines.lower_slope * z + lines.lower_offset for z in (lo, hi)]
            tops = [lines.upper_slope * z + lines.upper_offset for z in (lo, hi)]
            return torch.minimum(*ends), torch.maximum(*tops)
        return self(lo), self(hi)  # all others increase

    def lines(self, lo: Tensor, hi: Tensor) -> Lines:
        """Enclosing lines on `[lo, hi]`."""
        if self.kink_slope is not None:
            return self._kinked(lo, hi, self.kink_slope)
        middle = (lo + hi) / 2
        width = hi - lo
        flat = width <= 1e-9 * (1 + middle.abs())
        tangent = self._derivative(middle)
        at_lo, at_hi, at_middle = self(lo), self(hi), self(middle)
        chord = torch.where(flat, tangent, (at_hi - at_lo) / torch.where(flat, torch.ones_like(width), width))
        on_chord, on_tangent = at_lo - chord * lo, at_middle - tangent * middle
        loose = torch.ones_like(flat)
        if type(self.module) in _BENDS:
            shift = _BENDS[type(self.module)] * width**2 / 8
            return Lines(chord, on_chord - shift, chord, on_chord + shift, loose)
        if isinstance(self.module, _CONVEX):
            return Lines(tangent, on_tangent, chord, on_chord, loose)
        convex, concave = hi <= 0, lo >= 0
        least = torch.minimum(self._derivative(lo), self._derivative(hi))  # σ' falls away from 0 on both sides
        below = torch.where(convex, tangent, torch.where(concave, chord, least))
        above = torch.where(convex, chord, torch.where(concave, tangent, least))
        from_below = torch.where(convex, on_tangent, torch.where(concave, on_chord, at_lo - least * lo))
        from_above = torch.where(convex, on_chord, torch.where(concave, on_tangent, at_hi - least * hi))
        return Lines(below, from_below, above, from_above, loose)

    @staticmethod
    def _kinked(lo: Tensor, hi: Tensor, s: float) -> Lines:
        loose = (lo < 0) & (hi > 0)
        one, zero = torch.ones_like(lo), torch.zeros_like(lo)
        stable = torch.where(lo >= 0, one, s * one)
        chord = (hi - s * lo) / torch.where(loose, hi - lo, one)
        below = torch.where(hi >= -lo, one, s * one)
        return Lines(
            torch.where(loose, below, stable),
            zero,
            torch.where(loose, chord, stable),
            torch.where(loose, hi - chord * hi, zero),
            loose,
        )


class MaxPool:
    """Two-dimensional max pooling."""

    kink_slope = None

    def __init__(self, module: nn.MaxPool2d):
        self.module = module
        pair = lambda value: (value, value) if isinstance(value, int) else tuple(value)  # noqa: E731
        self._kernel, self._stride = pair(module.kernel_size), pair(module.stride)
        self._padding = pair(module.padding)

    def __call__(self, z: Tensor) -> Tensor:
        """Maxima."""
        return self.module(z)

    def interval(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """Enclosure of the maxima."""
        return self(lo), self(hi)

    def _windows(self, z: Tensor) -> Tensor:
        """Entries of every window, `(b, C, k, L)`; padding is -inf."""
        (top, left), floor = self._padding, -torch.finfo(z.dtype).max / 4
        padded = F.pad(z, (left, left, top, top), value=floor)
        return F.unfold(padded, self._kernel, stride=self._stride).unflatten(1, (z.shape[1], -1))

    def lines(self, lo: Tensor, hi: Tensor) -> WindowLines:
        """Enclosing lines: a selected entry below, and above where it wins for certain; else a constant."""
        below, above = self._windows(lo), self._windows(hi)
        best = below.argmax(2, keepdim=True)
        others = above.scatter(2, best, -torch.finfo(lo.dtype).max).amax(2, keepdim=True)
        wins = below.gather(2, best) >= others
        ceiling = torch.where(wins, torch.zeros_like(others), above.amax(2, keepdim=True))
        return WindowLines(self, lo.shape[1:], best.squeeze(2), wins.squeeze(2), ceiling.squeeze(2))

    def fold(self, entries: Tensor, shape: torch.Size) -> Tensor:
        """Adjoint of `_windows`: `(rows, C, k, L)` to `(rows, *shape)`."""
        (top, left), (_, height, width) = self._padding, shape
        size = (height + 2 * top, width + 2 * left)
        full = F.fold(entries.flatten(1, 2), size, self._kernel, stride=self._stride)
        return full[..., top : top + height, left : left + width]


@dataclass(frozen=True)
class WindowLines:
    """Lines of `MaxPool`: chosen entry per window, whether it wins for certain, and the constant above if not."""

    pool: MaxPool
    shape: torch.Size
    best: Tensor
    wins: Tensor
    ceiling: Tensor

    @property
    def loose(self) -> Tensor:
        """Windows without a certain winner."""
        return ~self.wins

    def pull(self, c: Tensor, slope: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `Lines.pull`."""
        flat = c.flatten(3)
        positive, negative = flat.clamp(min=0), flat.clamp(max=0)
        chosen = positive + torch.where(self.wins, negative, torch.zeros_like(negative))
        entries = chosen.new_zeros(*chosen.shape[:3], math.prod(self.pool._kernel), chosen.shape[3])
        best = self.best.unsqueeze(2).expand(len(c), *self.best.unsqueeze(2).shape)
        entries = entries.scatter(3, best, chosen.unsqueeze(3))
        return (
            self.pool.fold(entries.flatten(0, 1), self.shape).unflatten(0, c.shape[:2]),
            (negative * self.ceiling).flatten(2).sum(2),
        )


Step = Affine | Scalar | MaxPool


def _leaves(module: nn.Module, name: str, layer: str) -> tuple[list[nn.Module], bool]:
    """The modules behind the layer in order of calling, and whether the layer was met."""
    if isinstance(module, nn.Sequential):
        kept, met = [], False
        for child, part in module.named_children():
            inner, found = _leaves(part, f"{name}.{child}" if name else child, layer)
            kept, met = (inner, True) if found else (kept + inner, met)
    else:
        kept, met = [module], False
    return ([], True) if name and name == layer else (kept, met)


def _plain_pool(module: nn.MaxPool2d) -> bool:
    return module.dilation in (1, (1, 1)) and not module.ceil_mode and not module.return_indices


def _step(module: nn.Module) -> Step:
    if isinstance(module, (nn.Linear, *_CONVOLUTIONS, *_NORMS, *_AVERAGES, *_NO_SPATIAL_MIX)):
        if getattr(module, "padding_mode", "zeros") == "zeros":
            return Affine(module)
    elif isinstance(module, nn.LeakyReLU):
        if 0 <= module.negative_slope <= 1:
            return Scalar(module)
    elif isinstance(module, nn.ELU):
        if 0 < module.alpha <= 1:
            return Scalar(module)
    elif isinstance(module, nn.GELU):
        if module.approximate == "none":
            return Scalar(module)
    elif isinstance(module, (nn.ReLU, nn.Softplus, nn.Tanh, nn.Sigmoid, nn.SiLU)):
        return Scalar(module)
    elif isinstance(module, nn.MaxPool2d) and _plain_pool(module):
        return MaxPool(module)
    name = type(module).__name__ if any(module.children()) else repr(module)
    raise ValueError(
        f"certificate: {name} has no relaxation here; supported is an nn.Sequential, possibly nested, of {SUPPORTED}."
    )


def network_steps(model: nn.Module, layer: str = "", params: Mapping[str, Tensor] | None = None) -> list[Step]:
    """The head behind a layer as a chain of steps.

    Args:
        model: `nn.Sequential`, possibly nested, of the supported modules, in evaluation mode; or one such module.
        layer: dotted name of the layer whose output is the input of the chain; `""` for all.
        params: parameters to use instead of the model's own, by name.

    Raises:
        ValueError: for modules without a relaxation, training mode, and layers that are not met.
    """
    while hasattr(model, "_orig_mod"):
        model = model._orig_mod
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"certificate: expected an nn.Sequential (nested, if you like) of {SUPPORTED}; got {type(model).__name__}."
        )
    model = copy.deepcopy(model).requires_grad_(False)
    if params:
        model.load_state_dict({name: value.detach() for name, value in params.items()}, strict=False)
    leaves, met = _leaves(model, "", layer)
    if layer and not met:
        raise ValueError(f"layer: {layer!r} is no member of the nn.Sequential; certificates need one.")
    for module in leaves:
        if module.training and isinstance(module, (*_NORMS, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)):
            raise ValueError(f"model: {type(module).__name__} is in training mode; call model.eval().")
        if hasattr(module, "inplace"):
            module.inplace = False
    return [_step(module) for module in leaves]
