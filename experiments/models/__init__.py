"""Networks: those of the papers, and small ones for verification (module `small`).

`build_model` builds a network of the papers by name, untrained and with seeded weights. `eligible_layers` names the
layers at which the papers mix. Defaults are those of the papers' released code. Where nothing is stated, the module of
the network says what we chose. No network has in-place operations, so `NoisyFeatureMixup` and `TaylorRegularizer`
work at every eligible layer. In evaluation mode the output for a sample does not depend on other samples.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from nfm_theory.setting.checks import near

from .fast import FastConvNet
from .preactresnet import DigitsResNet, PreActResNet18
from .resnet50 import ResNet50
from .small_networks import PatchNetwork, series_cnn, smooth_mlp
from .toy_networks import nfm_toy, noisymix_toy
from .vit import ViT
from .wideresnet import WideResNet28


class Architecture(NamedTuple):
    """A network that can be built by name.

    Attributes:
        constructor: builds the untrained network from the number of classes and options by keyword.
        eligible_layers: names of the layers from which the mixed layer is drawn; `""` is the input.
    """

    constructor: Callable[..., nn.Module]
    eligible_layers: tuple[str, ...]


_STAGES = ("", "layer1", "layer2", "layer3")

#: Networks by name. Layers are those of the released code (protocol, section 1). Our choices are: for `vit` the
#: output of every second block, for `fast_cnn` all stages, for `digits_resnet` all stages but the last, and for the
#: toy networks all layers.
#: NFM's own code stops at `layer2` for WRN-28, but none of its tables has this network.
MODELS: dict[str, Architecture] = {
    "preactresnet18": Architecture(PreActResNet18, _STAGES),
    "wideresnet18": Architecture(partial(PreActResNet18, width=128), _STAGES),
    "wideresnet28": Architecture(WideResNet28, _STAGES),
    "resnet50": Architecture(ResNet50, _STAGES),
    "fast_cnn": Architecture(FastConvNet, _STAGES),
    "vit": Architecture(ViT, ("", "blocks.1", "blocks.3", "blocks.5")),
    "digits_resnet": Architecture(DigitsResNet, ("", "layer1", "layer2")),
    "nfm_toy": Architecture(nfm_toy, ("", "hidden1", "hidden2", "hidden3")),
    "noisymix_toy": Architecture(noisymix_toy, ("", "hidden1")),
    "smooth_mlp": Architecture(smooth_mlp, ("", "hidden1", "hidden2")),
    "series_cnn": Architecture(series_cnn, ("", "block1", "block2")),
    "patch_network": Architecture(PatchNetwork, ("",)),
}


def _architecture(name: str) -> Architecture:
    if name not in MODELS:
        raise ValueError(f"model: expected one of {sorted(MODELS)}, got {name!r}{near(str(name), MODELS)}.")
    return MODELS[name]


def eligible_layers(name: str) -> tuple[str, ...]:
    """Names of the layers from which the papers draw the mixed layer; `""` is the input.

    Example:
        >>> eligible_layers("preactresnet18")
        ('', 'layer1', 'layer2', 'layer3')
    """
    return _architecture(name).eligible_layers


def build_model(name: str, num_classes: int, *, seed: int = 0, **options) -> nn.Module:
    """An untrained network on the CPU, in training mode. The same seed gives the same weights, bit for bit.

    The state of the global generators is restored afterwards.

    Args:
        name: a name of `MODELS`.
        num_classes: K, the number of outputs.
        seed: random seed of the weights.
        **options: options of the network's constructor.

    Example:
        >>> model = build_model("nfm_toy", 2, seed=1, width=8)
        >>> model(torch.zeros(5, 2)).shape
        torch.Size([5, 2])
    """
    constructor = _architecture(name).constructor
    known = [p.name for p in inspect.signature(constructor).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            raise ValueError(f"{name}: expected options among {known}, got {option!r}{near(option, known)}.")
    # On the CPU explicitly: another default device would have a generator that is neither seeded nor restored here
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        return constructor(num_classes, **options)
