r"""Networks as chains of steps, with straight lines that enclose the steps that are not affine (theory §5).

| step | enclosure on `[l, u]` |
|---|---|
| affine: Linear, Conv, BatchNorm in evaluation mode, average pooling, Flatten, ... | the step itself |
| ReLU, LeakyReLU | the step itself on one side of the kink; else chord above, a line through 0 below |
| convex: Softplus, ELU | chord above, tangent in the middle below |
| S-shaped: Tanh, Sigmoid | chord and tangent on one side of 0; else lines with the smallest slope of the interval |
| bounded second derivative: GELU, SiLU | chord, shifted by `sup\|σ''\| (u - l)²/8` |
| MaxPool2d | one entry of the window below; above, the same if it is always the largest, else the largest bound |

The bounds hold in exact arithmetic; in floating point they hold up to rounding.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..setting.problem import Model

_NO_SPATIAL_MIX = (nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_Convolve = Callable[..., Tensor]
_CONVOLUTIONS: dict[type[nn.Module], _Convolve] = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
#: The supremum of |σ''|, which is the value at 0: 2 φ(0) for GELU, 1/2 for SiLU.
_MAX_CURVATURE = {nn.GELU: 2 / math.sqrt(2 * math.pi), nn.SiLU: 0.5}
_KINKED, _CONVEX, _S_SHAPED = (nn.ReLU, nn.LeakyReLU), (nn.Softplus, nn.ELU), (nn.Tanh, nn.Sigmoid)
SUPPORTED = (
    "Linear, Conv1d/2d/3d, BatchNorm (evaluation mode), AvgPool and AdaptiveAvgPool, Flatten, Unflatten, Identity, "
    "Dropout (evaluation mode), MaxPool2d, ReLU, LeakyReLU, Softplus, ELU, Tanh, Sigmoid, GELU, SiLU"
)


@dataclass(frozen=True)
class Lines:
    """Two straight lines for each entry, `lower_slope z + lower_offset <= σ(z) <= upper_slope z + upper_offset`.

    All fields are `(b, *shape)`. `loose` is True where the lines differ from σ on the interval.
    """

    lower_slope: Tensor
    lower_offset: Tensor
    upper_slope: Tensor
    upper_offset: Tensor
    loose: Tensor

    def pull(self, c: Tensor, slope: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Bound a linear function of the step's output from below by one of its input.

        Args:
            c: coefficients of the function of the output, `(J, b, *shape)`.
            slope: slopes of lines through 0 that replace `lower_slope` where the step is loose, `(J, b, *shape)`.

        Returns:
            Coefficients of the function of the input, `(J, b, *shape)`, and constants `(J, b)`.
        """
        positive, negative = c.clamp(min=0), c.clamp(max=0)
        below = self.lower_slope if slope is None else torch.where(self.loose, slope, self.lower_slope)
        constant = positive * self.lower_offset + negative * self.upper_offset
        return positive * below + negative * self.upper_slope, constant.flatten(2).sum(2)


class Affine:
    """An affine step `z -> A z + a` on each sample, given by its module."""

    def __init__(self, module: nn.Module):
        self.module = module

    def __call__(self, z: Tensor) -> Tensor:
        """The output A z + a."""
        return self.module(z)

    def _weighted(self, r: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        m = self.module
        if isinstance(m, nn.Linear):
            return F.linear(r, change(m.weight))
        if isinstance(m, _NORMS):
            variance = cast(Tensor, m.running_var)  # a problem refuses a network with batch statistics
            scale = (variance + m.eps).rsqrt() * (1 if m.weight is None else m.weight)
            return r * change(scale).reshape(1, -1, *[1] * (r.ndim - 2))
        assert isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
        convolve = next(f for kind, f in _CONVOLUTIONS.items() if isinstance(m, kind))
        return convolve(r, change(m.weight), None, m.stride, m.padding, m.dilation, m.groups)

    def spread(self, r: Tensor) -> Tensor:
        """The half widths `|A| r` of the output, for half widths r ≥ 0 of the input."""
        if isinstance(self.module, (*_NO_SPATIAL_MIX, *_AVERAGES)):
            return self.module(r)
        return self._weighted(r, torch.abs)

    def row_squares(self, r: Tensor) -> Tensor | None:
        """Squared row norms `(A∘A) r`, if r holds squares of independent parts; `None` for averages."""
        if isinstance(self.module, _NO_SPATIAL_MIX):
            return self.module(r)
        return None if isinstance(self.module, _AVERAGES) else self._weighted(r, torch.square)

    @property
    def mixes(self) -> bool:
        """True if an output may depend on several inputs."""
        return not isinstance(self.module, (*_NO_SPATIAL_MIX, *_NORMS))

    def pull(self, c: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """Write a linear function of the step's output as one of its input, with coefficients `cᵀA` and constant `c·a`.

        Args:
            c: coefficients of the function of the output, `(J, b, *out)`.
            before: a tensor of the shape of the step's input, `(b, *in)`.
        """
        constant = (c * self.module(torch.zeros_like(before[:1]))).flatten(2).sum(2)
        if isinstance(self.module, nn.Linear):
            return c @ self.module.weight, constant
        blank = before.new_zeros(len(c) * before.shape[0], *before.shape[1:])
        pulled = torch.func.vjp(self.module, blank)[1](c.flatten(0, 1))[0]
        return pulled.unflatten(0, c.shape[:2]), constant


class Scalar:
    """A step that applies an activation σ to each entry."""

    def __init__(self, module: nn.Module):
        self.module = module

    def __call__(self, z: Tensor) -> Tensor:
        """The output σ(z)."""
        return self.module(z)

    @property
    def kink_slope(self) -> float | None:
        """The slope s of an activation `max(z, s z)`; `None` for a smooth activation."""
        if isinstance(self.module, nn.ReLU):
            return 0.0
        return float(self.module.negative_slope) if isinstance(self.module, nn.LeakyReLU) else None

    def _derivative(self, z: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            return torch.autograd.grad(self(leaf).sum(), leaf)[0]

    def interval(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """An interval that contains the values of σ on `[lo, hi]`."""
        if type(self.module) in _MAX_CURVATURE:
            lines = self.lines(lo, hi)
            ends = [lines.lower_slope * z + lines.lower_offset for z in (lo, hi)]
            tops = [lines.upper_slope * z + lines.upper_offset for z in (lo, hi)]
            return torch.minimum(*ends), torch.maximum(*tops)
        return self(lo), self(hi)  # all other activations increase

    def lines(self, lo: Tensor, hi: Tensor) -> Lines:
        """Lines that enclose σ on `[lo, hi]`."""
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
        if type(self.module) in _MAX_CURVATURE:
            shift = _MAX_CURVATURE[type(self.module)] * width**2 / 8
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
    """A step of two-dimensional max pooling."""

    kink_slope = None

    def __init__(self, module: nn.MaxPool2d):
        self.module = module
        pair = lambda value: (value, value) if isinstance(value, int) else tuple(value)  # noqa: E731
        self._kernel, self._stride = pair(module.kernel_size), pair(module.stride)
        self._padding = pair(module.padding)

    def __call__(self, z: Tensor) -> Tensor:
        """The maxima of the windows."""
        return self.module(z)

    def interval(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """An interval that contains the maxima."""
        return self(lo), self(hi)

    def _windows(self, z: Tensor) -> Tensor:
        """Entries of every window, `(b, C, k, L)`; padding is a very small number in place of -inf."""
        (top, left), floor = self._padding, -torch.finfo(z.dtype).max / 4
        padded = F.pad(z, (left, left, top, top), value=floor)
        return F.unfold(padded, self._kernel, stride=self._stride).unflatten(1, (z.shape[1], -1))

    def lines(self, lo: Tensor, hi: Tensor) -> WindowLines:
        """Lines that enclose the maxima: an entry of the window below; above it, too, if it always wins."""
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
    """Lines that enclose the maxima of `MaxPool`.

    Attributes:
        pool: the step.
        shape: shape of one input.
        best: position of the chosen entry in each window.
        wins: True if the chosen entry is always the largest one.
        ceiling: upper bound of the maximum where the chosen entry may not be the largest one, else 0.
    """

    pool: MaxPool
    shape: torch.Size
    best: Tensor
    wins: Tensor
    ceiling: Tensor

    @property
    def loose(self) -> Tensor:
        """True for windows in which several entries may be the largest one."""
        return ~self.wins

    def pull(self, c: Tensor, slope: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Bound a linear function of the maxima from below by one of the entries.

        Args:
            c: coefficients of the function of the maxima, `(J, b, *shape)`.
            slope: not used; it is an argument of `Lines.pull`.

        Returns:
            Coefficients of the function of the entries and constants `(J, b)`.
        """
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
    """The modules behind the layer in the order in which they are called, and True if the layer was met."""
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
        f"certificate: {name} has no relaxation here; use an nn.Sequential, possibly nested, of {SUPPORTED}."
    )


def network_steps(model: Model, layer: str = "", params: Mapping[str, Tensor] | None = None) -> list[Step]:
    """The part of a network behind a layer as a chain of steps.

    Args:
        model: an `nn.Sequential`, possibly nested, of the supported modules, in evaluation mode; or one such module.
        layer: dotted name of the layer whose output is the input of the chain; `""` for the whole network.
        params: parameters to use instead of the model's own, by name.

    Raises:
        ValueError: for modules without a relaxation, modules in training mode, and unknown layers.
    """
    plain: Any = model
    while hasattr(plain, "_orig_mod"):
        plain = plain._orig_mod
    if not isinstance(plain, nn.Module):
        raise ValueError(
            f"certificate: expected an nn.Sequential, possibly nested, of {SUPPORTED}; got {type(plain).__name__}."
        )
    network = copy.deepcopy(plain).requires_grad_(False)
    if params:
        network.load_state_dict({name: value.detach() for name, value in params.items()}, strict=False)
    leaves, met = _leaves(network, "", layer)
    if layer and not met:
        raise ValueError(
            f"layer: {layer!r} is no member of the nn.Sequential; a certificate needs a layer that is one."
        )
    for module in leaves:
        if module.training and isinstance(module, (*_NORMS, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)):
            raise ValueError(f"model: {type(module).__name__} is in training mode; call model.eval().")
        if hasattr(module, "inplace"):
            module.inplace = False  # pyright: ignore[reportArgumentType]  # PyTorch allows only tensors and modules
    return [_step(module) for module in leaves]
