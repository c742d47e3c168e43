"""Networks: small ones for verification, and those of the papers.

`build_model` gives the latter by name, untrained and seeded, `eligible_layers` the layers at which the papers mix.
Defaults are the networks of the papers' released code; where nothing is stated, the module of a network says what we
chose. All are plain modules without in-place operations, so that `NoisyFeatureMixup` and `TaylorRegularizer` work at
every eligible layer, and fixed functions of one sample in evaluation mode.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from nfm_theory.setting.checks import near

from .preactresnet import DigitsResNet, PreActResNet18
from .resnet50 import ResNet50
from .toy_networks import nfm_toy, noisymix_toy
from .vit import ViT
from .wideresnet import WideResNet28


class Architecture(NamedTuple):
    """A network that can be built by name.

    Attributes:
        constructor: from the number of classes, and options by keyword, to an untrained network.
        eligible_layers: dotted names of the layers among which the layer to be mixed is drawn; `""` is the input.
    """

    constructor: Callable[..., nn.Module]
    eligible_layers: tuple[str, ...]


_STAGES = ("", "layer1", "layer2", "layer3")

#: Networks by name. Layers are those of the released code (protocol, section 1); for `vit` the output of every second
#: block, as in PreActResNet-18, and for `digits_resnet` all stages but the last, likewise, are our choice, and so are
#: all layers of the toy networks. NFM's own code stops at `layer2` for WRN-28, which is in none of its tables.
MODELS: dict[str, Architecture] = {
    "preactresnet18": Architecture(PreActResNet18, _STAGES),
    "wideresnet18": Architecture(partial(PreActResNet18, width=128), _STAGES),
    "wideresnet28": Architecture(WideResNet28, _STAGES),
    "resnet50": Architecture(ResNet50, _STAGES),
    "vit": Architecture(ViT, ("", "blocks.1", "blocks.3", "blocks.5")),
    "digits_resnet": Architecture(DigitsResNet, ("", "layer1", "layer2")),
    "nfm_toy": Architecture(nfm_toy, ("", "hidden1", "hidden2", "hidden3")),
    "noisymix_toy": Architecture(noisymix_toy, ("", "hidden1")),
}


def _architecture(name: str) -> Architecture:
    if name not in MODELS:
        raise ValueError(f"model: expected one of {sorted(MODELS)}, got {name!r}{near(str(name), MODELS)}.")
    return MODELS[name]


def eligible_layers(name: str) -> tuple[str, ...]:
    """Layers among which the papers draw the one to be mixed, `""` for the input.

    Args:
        name: of a network, see `MODELS`.

    Example:
        >>> eligible_layers("preactresnet18")
        ('', 'layer1', 'layer2', 'layer3')
    """
    return _architecture(name).eligible_layers


def build_model(name: str, num_classes: int, *, seed: int = 0, **options) -> nn.Module:
    """An untrained network on the CPU, in training mode; the same bits for the same seed.

    The global generators are as before, whatever the network draws.

    Args:
        name: of the network, see `MODELS`.
        num_classes: K, the number of outputs.
        seed: of the weights.
        **options: of the network, see its constructor.

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
    # The device is named, since a default one would draw from a generator that is neither seeded nor put back
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        return constructor(num_classes, **options)
