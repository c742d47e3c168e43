"""Training schemes: Mixup and its noisy relatives, patches, adversarial training, and the theory itself as a loss."""

from __future__ import annotations

import torch
from torch import nn

from ..recipes.recipe import Scheme
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
) -> Step:
    """The step of a scheme on a model.

    Args:
        scheme: settings.
        model: network, not compiled yet.
        layers: its eligible layers.
        classes: K.
        mean: of each channel, pixels in [0, 1]; empty for samples that are no images.
        std: of each channel.
        generator: source of everything random.
    """
    mixes = scheme.alpha > 0 or scheme.add_noise > 0 or scheme.mult_noise > 0
    kinds = [bool(scheme.patch), bool(scheme.radius), bool(scheme.terms)]
    if sum(kinds) > 1:
        raise ValueError(f"scheme {scheme.name!r}: expected one of patch, radius and terms, got several.")
    options = {"layers": layers, "classes": classes, "generator": generator}
    if scheme.patch:
        return PatchStep(scheme, model, mean=mean, std=std, **options)
    if scheme.radius:
        return FreeAdversarialStep(scheme, model, std=std, **options)
    if scheme.terms:
        return (TaylorNoisyMixStep if scheme.jsd else TaylorStep)(scheme, model, **options)
    if mixes or scheme.jsd:
        return MixingStep(scheme, model, **options)
    return Step(scheme, model, **options)
