"""Training schemes: Mixup and its noisy variants, patches, adversarial training, and the Taylor expansion as a loss."""

from __future__ import annotations

import torch
from torch import nn

from ..recipes.recipe import LOSSES, Scheme
from .private import PrivateStep
from .step import FreeAdversarialStep, MixingStep, PatchStep, Step
from .taylor import TaylorNoisyMixStep, TaylorStep

__all__ = ["Step", "build_step"]


def build_step(
    scheme: Scheme,
    model: nn.Module,
    *,
    layers: tuple[str, ...],
    classes: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    generator: torch.Generator,
    batch_size: int = 0,
) -> Step:
    """The training step of a scheme.

    Args:
        scheme: settings of the scheme.
        model: network, not compiled yet.
        layers: names of its eligible layers.
        classes: K, the number of classes.
        mean: mean of each channel, for pixels in [0, 1]; empty for samples that are no images.
        std: standard deviation of each channel.
        generator: source of all randomness.
        batch_size: mean size of a batch, which private training must know.
    """
    if sum(map(bool, (scheme.patch, scheme.radius, scheme.terms, scheme.clip_norm))) > 1:
        raise ValueError(f"scheme {scheme.name!r}: expected one of patch, radius, terms and clip_norm, got several.")
    if scheme.levels and (scheme.patch or scheme.radius or scheme.clip_norm):
        raise ValueError(f"scheme {scheme.name!r}: levels of single layers need a step that mixes at layers; got none.")
    if scheme.loss not in LOSSES or (scheme.loss == "binary" and not scheme.patch):
        raise ValueError(
            f"scheme {scheme.name!r}: expected a loss out of {LOSSES}, and 'binary' only with a patch, "
            f"got {scheme.loss!r}."
        )
    options = {"layers": layers, "classes": classes, "generator": generator}
    if scheme.clip_norm:
        return PrivateStep(scheme, model, batch_size=batch_size, **options)
    if scheme.patch:
        return PatchStep(scheme, model, mean=mean, std=std, **options)
    if scheme.radius:
        return FreeAdversarialStep(scheme, model, mean=mean, std=std, **options)
    if scheme.terms:
        return (TaylorNoisyMixStep if scheme.jsd else TaylorStep)(scheme, model, **options)
    if scheme.jsd or any(law.perturbs for law in scheme.laws(layers).values()):
        return MixingStep(scheme, model, **options)
    return Step(scheme, model, **options)
