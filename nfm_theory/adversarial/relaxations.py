r"""Networks as chains of steps, with straight lines that enclose the steps that are not affine (theory §5).

| step | enclosure on `[l, u]` |
|---|---|
| affine: Linear, Conv, BatchNorm in evaluation mode, average pooling, Flatten, ... | the step itself |
| ReLU, LeakyReLU | the step itself on one side of the kink; else chord above, a line through 0 below |
| convex: Softplus, ELU | chord above, tangent in the middle below |
| S-shaped: Tanh, Sigmoid | chord and tangent on one side of 0; else lines with the smallest slope of the interval |
| bounded second derivative: GELU, SiLU | chord, shifted by `sup\|σ''\| (u - l)²/8` |
| MaxPool2d | one entry of the window below; above, the same if it is always the largest, else the largest bound |

Lines and intervals are moved outwards by a bound of their rounding errors, see `rounding`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from ..setting.problem import Model
from .affine_step import Affine
from .max_pooling import MaxPool
from .module_chain import AVERAGES, CONVOLUTIONS, NORMS, UNMIXED, WEIGHTED, module_chain
from .rounding import FUNCTION_ERROR, UNIT, check_precision, network_error

#: The supremum of |σ''|, which is the value at 0: 2 φ(0) for GELU, 1/2 for SiLU.
_MAX_CURVATURE = {nn.GELU: 2 / math.sqrt(2 * math.pi), nn.SiLU: 0.5}
_CONVEX = (nn.Softplus, nn.ELU)
#: Largest jump at the threshold of Softplus that is taken for rounding; the usual threshold 20 gives 2e-9.
_JUMP = 1e-8


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

    def magnitude(self, size: Tensor) -> Tensor:
        """Sizes of what a line adds up, for sizes of z; the slopes of lines through 0 are at most 1."""
        slope = torch.maximum(self.lower_slope.abs(), self.upper_slope.abs()).clamp(min=1)
        return slope * size + torch.maximum(self.lower_offset.abs(), self.upper_offset.abs())

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


class Scalar:
    """A step that applies an activation σ to each entry, given by its module and the dtype of the network."""

    def __init__(self, module: nn.Module, dtype: torch.dtype = torch.float64):
        self.module, self.dtype = module, dtype

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

    def network_error(self, magnitude: Tensor, hi: Tensor) -> Tensor:
        """How far σ, as the network computes it, may be from σ, for sizes `1 + |z| + |σ(z)|` and z up to `hi`."""
        if self.kink_slope is None:
            return network_error(magnitude, FUNCTION_ERROR, self.dtype) + self._jumps(hi)
        if self.kink_slope == 0:
            return torch.zeros_like(magnitude)
        return network_error(magnitude - 1, 4, self.dtype)

    def _jumps(self, hi: Tensor) -> Tensor:
        """The jump of Softplus at its threshold, where the interval reaches it."""
        if not isinstance(self.module, nn.Softplus):
            return torch.zeros_like(hi)
        return (hi * self.module.beta > 0.999 * self.module.threshold).to(hi) * _jump(self.module)

    def _error(self, lo: Tensor, hi: Tensor, *values: Tensor) -> Tensor:
        """Error of σ, and of its slope, computed in float64 at any point of the interval."""
        size = 1 + torch.maximum(lo.abs(), hi.abs())
        for value in values:
            size = torch.maximum(size, value.abs() + 1)
        return 2 * FUNCTION_ERROR * UNIT * size + self._jumps(hi)

    def interval(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """An interval that contains the values of σ on `[lo, hi]`."""
        if self.kink_slope == 0:
            return self(lo), self(hi)
        if type(self.module) in _MAX_CURVATURE:
            lines = self.lines(lo, hi)
            ends = [lines.lower_slope * z + lines.lower_offset for z in (lo, hi)]
            tops = [lines.upper_slope * z + lines.upper_offset for z in (lo, hi)]
            bottom, top = torch.minimum(*ends), torch.maximum(*tops)
        else:
            bottom, top = self(lo), self(hi)  # all other activations increase
        error = self._error(lo, hi, bottom, top)
        return bottom - error, top + error

    def lines(self, lo: Tensor, hi: Tensor, slack: Tensor | None = None) -> Lines:
        """Lines that enclose σ on `[lo, hi]`.

        Args:
            lo: smallest values of z.
            hi: largest values of z.
            slack: how far z may pass the kink of an activation that still counts as on one side of it; `None` for 0.
        """
        if self.kink_slope is not None:
            return self._kinked(lo, hi, self.kink_slope, torch.zeros_like(lo) if slack is None else slack)
        middle = lo + (hi - lo) / 2
        width = hi - lo
        flat = width <= 1e-9 * (1 + middle.abs())
        tangent = self._derivative(middle)
        at_lo, at_hi, at_middle = self(lo), self(hi), self(middle)
        chord = torch.where(flat, tangent, (at_hi - at_lo) / torch.where(flat, torch.ones_like(width), width))
        ends = torch.stack([at_lo - chord * lo, at_hi - chord * hi])
        on_chord_below, on_chord_above = ends.amin(0), ends.amax(0)
        error = 2 * self._error(lo, hi, at_lo, at_hi)  # a half for σ, a half for the arithmetic with slopes up to 2
        touch = error * (1 + width)  # the slope of a tangent has an error, too
        on_tangent = at_middle - tangent * middle
        loose = torch.ones_like(flat)
        if type(self.module) in _MAX_CURVATURE:
            shift = 1.0001 * _MAX_CURVATURE[type(self.module)] * width**2 / 8 + error
            return Lines(chord, on_chord_below - shift, chord, on_chord_above + shift, loose)
        if isinstance(self.module, _CONVEX):
            return Lines(tangent, on_tangent - touch, chord, on_chord_above + error, loose)
        convex, concave = hi <= 0, lo >= 0
        least = torch.minimum(self._derivative(lo), self._derivative(hi))  # σ' falls away from 0 on both sides
        below = torch.where(convex, tangent, torch.where(concave, chord, least))
        above = torch.where(convex, chord, torch.where(concave, tangent, least))
        from_below = torch.where(convex, on_tangent, torch.where(concave, on_chord_below, at_lo - least * lo))
        from_above = torch.where(convex, on_chord_above, torch.where(concave, on_tangent, at_hi - least * hi))
        return Lines(below, from_below - touch, above, from_above + touch, loose)

    @staticmethod
    def _kinked(lo: Tensor, hi: Tensor, s: float, slack: Tensor) -> Lines:
        loose = (lo < -slack) & (hi > slack)
        one, zero = torch.ones_like(lo), torch.zeros_like(lo)
        on = torch.where(loose, hi >= -lo, (lo >= 0) | ((lo >= -slack) & (hi > 0)))
        one_side = torch.where(on, one, s * one)
        chord = (hi - s * lo) / torch.where(loose, hi - lo, one)
        size = torch.maximum(lo.abs(), hi.abs())
        top = torch.maximum(hi - chord * hi, s * lo - chord * lo) + 8 * UNIT * size
        past = (
            (1 + 8 * UNIT) * (1 - s) * torch.where(on, -lo, hi).clamp(min=0)
        )  # beyond the kink by no more than the slack
        return Lines(one_side, zero, torch.where(loose, chord, one_side), torch.where(loose, top, past), loose)


Step = Affine | Scalar | MaxPool


def _step(module: nn.Module, dtype: torch.dtype) -> Step:
    reason = ""
    number = lambda value: isinstance(value, (int, float)) and math.isfinite(value)  # noqa: E731
    if isinstance(module, CONVOLUTIONS) and module.padding_mode != "zeros":
        reason = f"padding_mode={module.padding_mode!r}, expected 'zeros'"
    elif isinstance(module, (nn.Flatten, nn.Unflatten)):
        dim = module.start_dim if isinstance(module, nn.Flatten) else module.dim
        reason = "" if isinstance(dim, int) and dim >= 1 else "a dimension that is not >= 1, the samples may mix"
    elif isinstance(module, nn.LeakyReLU) and not (number(module.negative_slope) and 0 <= module.negative_slope <= 1):
        reason = "a negative_slope outside [0, 1]"
    elif isinstance(module, nn.ELU) and not (number(module.alpha) and 0 < module.alpha <= 1):
        reason = "an alpha outside (0, 1]"
    elif isinstance(module, nn.GELU) and module.approximate != "none":
        reason = "approximate='tanh', expected 'none'"
    elif isinstance(module, nn.Softplus) and not (number(module.beta) and module.beta > 0 and number(module.threshold)):
        reason = "a beta that is not positive, or a threshold that is no number"
    elif isinstance(module, nn.Softplus) and _jump(module) > _JUMP:
        reason = f"a threshold at which it jumps down by {_jump(module):.2g}; use threshold=20 or more"
    elif isinstance(module, nn.MaxPool2d):
        plain = module.dilation in (1, (1, 1)) and not module.ceil_mode and not module.return_indices
        reason = "" if plain else "dilation, ceil_mode or return_indices"
    elif isinstance(module, NORMS) and (cast(Tensor, module.running_var) + module.eps <= 0).any():
        reason = "a variance that is not positive"
    if reason:
        raise ValueError(f"certificate: {module!r} has no relaxation here: {reason}.")
    if isinstance(module, (*WEIGHTED, *AVERAGES, *UNMIXED)):
        return Affine(module, dtype)
    return MaxPool(module) if isinstance(module, nn.MaxPool2d) else Scalar(module, dtype)


def _jump(module: nn.Module) -> float:
    """How much Softplus, or its slope, jumps where it turns into z; 0 for other activations."""
    if not isinstance(module, nn.Softplus):
        return 0.0
    return math.log1p(math.exp(min(-module.threshold, 700.0))) / min(module.beta, 1.0)


def network_steps(model: Model, layer: str = "", params: Mapping[str, Tensor] | None = None) -> list[Step]:
    """The part of a network behind a layer as a chain of steps in float64.

    Args:
        model: an `nn.Sequential`, possibly nested, of the supported modules, in evaluation mode; or one such module.
        layer: dotted name of the layer whose output is the input of the chain; `""` for the whole network.
        params: parameters to use instead of the model's own, by name.

    Raises:
        ValueError: for modules without a relaxation, modules in training mode, unknown layers, and everything that may
            change what a module computes, see `module_chain`.
    """
    modules, dtype = module_chain(model, layer, params)
    return [_step(module, check_precision(dtype)) for module in modules]
