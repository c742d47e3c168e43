"""Small networks for the digits: smooth ones for the expansion, piecewise-linear ones for the adversarial bound.

The expansion asks for three derivatives, so that the networks of `MODELS` have no ReLU; those of `PIECEWISE` are what
the bound and its certificates are about. Every block is a submodule with a name, which is the name of the layer whose
output it computes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from torch import nn


def num_outputs(classes: int) -> int:
    """One logit for two classes (the binary case of the papers), otherwise one per class."""
    return 1 if classes == 2 else classes


def mlp(classes: int = 10) -> nn.Module:
    """64-32-32-K with tanh; layers `hidden1`, `hidden2`. Takes images or vectors."""
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            hidden1=nn.Sequential(nn.Linear(64, 32), nn.Tanh()),
            hidden2=nn.Sequential(nn.Linear(32, 32), nn.Tanh()),
            logits=nn.Linear(32, num_outputs(classes)),
        )
    )


def small_cnn(classes: int = 10) -> nn.Module:
    """Two convolutions with GELU; layers `stage1` (4 x 4 x 4 features), `stage2`. Takes images `(1, 8, 8)`."""
    return nn.Sequential(
        OrderedDict(
            stage1=nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.GELU()),
            stage2=nn.Sequential(nn.Conv2d(4, 8, 3, stride=2, padding=1), nn.GELU()),
            flatten=nn.Flatten(),
            logits=nn.Linear(8 * 2 * 2, num_outputs(classes)),
        )
    )


def leaky_mlp(classes: int = 10) -> nn.Module:
    """64-32-32-K with leaky ReLU and no biases: positively homogeneous; layers `hidden1`, `hidden2`."""
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            hidden1=nn.Sequential(nn.Linear(64, 32, bias=False), nn.LeakyReLU(0.1)),
            hidden2=nn.Sequential(nn.Linear(32, 32, bias=False), nn.LeakyReLU(0.1)),
            logits=nn.Linear(32, num_outputs(classes), bias=False),
        )
    )


def relu_mlp(classes: int = 10) -> nn.Module:
    """64-32-32-K with ReLU and biases; layers `hidden1`, `hidden2`."""
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            hidden1=nn.Sequential(nn.Linear(64, 32), nn.ReLU()),
            hidden2=nn.Sequential(nn.Linear(32, 32), nn.ReLU()),
            logits=nn.Linear(32, num_outputs(classes)),
        )
    )


def cifar_cnn(classes: int = 2) -> nn.Module:
    """Bias-free leaky-ReLU CNN for `(3, 32, 32)` images, halved first; layers `hidden1`, `hidden2`."""
    return nn.Sequential(
        OrderedDict(
            halve=nn.AvgPool2d(2),
            hidden1=nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False), nn.LeakyReLU(0.1)),
            hidden2=nn.Sequential(nn.Conv2d(4, 8, 3, stride=2, padding=1, bias=False), nn.LeakyReLU(0.1)),
            flatten=nn.Flatten(),
            logits=nn.Linear(8 * 4 * 4, num_outputs(classes), bias=False),
        )
    )


#: Smooth networks by name, each from the number of classes to an untrained network.
MODELS: dict[str, Callable[[int], nn.Module]] = {"mlp": mlp, "small_cnn": small_cnn}
#: The hidden layer that is verified, by model.
HIDDEN = {"mlp": "hidden1", "small_cnn": "stage1"}
#: Piecewise-linear networks by name: with and without what the adversarial bound assumes, and one for colour images.
PIECEWISE: dict[str, Callable[[int], nn.Module]] = {
    "leaky_mlp": leaky_mlp,
    "relu_mlp": relu_mlp,
    "cifar_cnn": cifar_cnn,
}
#: Everything that can be trained.
NETWORKS = {**MODELS, **PIECEWISE}
