"""The random numbers of a training step, and the batches and features that they fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ..setting.draws import Draw
from ..setting.law import Law
from ..setting.network import kind


@dataclass(frozen=True)
class LayerDraw:
    """The random numbers of one training step.

    Attributes:
        layer: dotted name of the layer that is mixed, `""` for the input.
        draw: one row for each sample of the batch. λ has the dtype of the inputs, the noises that of the features.
    """

    layer: str
    draw: Draw

    @property
    def samples(self) -> int:
        """Number of samples of the batch."""
        return len(self.draw)


def checked_replay(step: LayerDraw, laws: Mapping[str, Law], n: int) -> LayerDraw:
    """A step to repeat, refused if it does not fit.

    Args:
        step: step to repeat.
        laws: law of each eligible layer.
        n: number of rows of the batch.

    Raises:
        ValueError: for a layer that is not eligible, another number of rows, and noise that is missing.
    """
    if step.layer not in laws:
        raise ValueError(f"replay: expected one of the layers {list(laws)}, got {step.layer!r}.")
    if step.samples != n:
        raise ValueError(f"replay: expected a draw of {n} rows like the batch, got {step.samples}.")
    missing = [name for name in ("add", "mult") if getattr(step.draw, name) is None]
    missing = [name for name in missing if getattr(laws[step.layer], f"{name}_noise")]
    if missing:
        raise ValueError(
            f"replay: the draw has no noise {' and '.join(missing)}, though the level is positive; take nfm.last "
            "after the forward pass, in which the noise is drawn."
        )
    return step


def check_features(step: LayerDraw, h) -> None:
    """Refuse an output of a layer that the step cannot mix.

    Args:
        step: present step.
        h: output of the layer.

    Raises:
        TypeError: unless it is a floating-point tensor.
        ValueError: unless it has a row for each sample, and the shape of the noise if that is known.
    """
    n, layer = step.samples, step.layer
    if not isinstance(h, Tensor) or not h.is_floating_point():
        raise TypeError(
            f"layer {layer!r}: expected a floating-point tensor as its output, got {kind(h)}; name a layer next "
            "to it that returns a single tensor, or an nn.Identity that this tensor passes through."
        )
    if h.ndim == 0 or len(h) != n:
        raise ValueError(
            f"layer {layer!r}: expected features of the {n} samples given to NoisyFeatureMixup, batch first, got "
            f"shape {tuple(h.shape)}; run the model on the inputs that the call returned, all at once (use "
            "DistributedDataParallel instead of DataParallel), and name layers whose output has the batch first. "
            "Run passes on other batches in `with mixup.clean():`."
        )
    for noise in (step.draw.add, step.draw.mult):
        if noise is not None and noise.shape[1:] != h.shape[1:]:
            raise ValueError(
                f"layer {layer!r}: expected features of shape {(n, *noise.shape[1:])} like the noise of the step, got "
                f"{tuple(h.shape)}; repeat a step with inputs of the same shape."
            )
