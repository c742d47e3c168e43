"""Small networks for the digits: smooth ones for the expansion, piecewise-linear ones for the adversarial bound.

The expansion needs three derivatives, so the networks of `MODELS` have smooth activations. The bound and its
certificates are about the piecewise-linear networks of `PIECEWISE`. Every block is a named submodule, and its name is
the name of the layer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

from torch import nn

_LEAKY = partial(nn.LeakyReLU, 0.1)


def _outputs(classes: int) -> int:
    """One logit for two classes (the binary case of the papers), otherwise one per class."""
    return 1 if classes == 2 else classes


def _mlp(classes: int = 10, *, activation: Callable[[], nn.Module], bias: bool = True) -> nn.Module:
    """64-32-32-K with layers `hidden1`, `hidden2`, for images or vectors."""
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            hidden1=nn.Sequential(nn.Linear(64, 32, bias=bias), activation()),
            hidden2=nn.Sequential(nn.Linear(32, 32, bias=bias), activation()),
            logits=nn.Linear(32, _outputs(classes), bias=bias),
        )
    )


def small_cnn(classes: int = 10) -> nn.Module:
    """Two convolutions with GELU for images `(1, 8, 8)`; layers `stage1` (4 x 4 x 4 features), `stage2`."""
    return nn.Sequential(
        OrderedDict(
            stage1=nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.GELU()),
            stage2=nn.Sequential(nn.Conv2d(4, 8, 3, stride=2, padding=1), nn.GELU()),
            flatten=nn.Flatten(),
            logits=nn.Linear(8 * 2 * 2, _outputs(classes)),
        )
    )


def cifar_cnn(classes: int = 2) -> nn.Module:
    """Bias-free leaky-ReLU CNN for images `(3, 32, 32)`, which it first halves; layers `hidden1`, `hidden2`."""
    return nn.Sequential(
        OrderedDict(
            halve=nn.AvgPool2d(2),
            hidden1=nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False), _LEAKY()),
            hidden2=nn.Sequential(nn.Conv2d(4, 8, 3, stride=2, padding=1, bias=False), _LEAKY()),
            flatten=nn.Flatten(),
            logits=nn.Linear(8 * 4 * 4, _outputs(classes), bias=False),
        )
    )


#: Smooth networks by name, each a function of the number of classes.
MODELS: dict[str, Callable[[int], nn.Module]] = {"mlp": partial(_mlp, activation=nn.Tanh), "small_cnn": small_cnn}
#: The hidden layer that is verified, by model.
HIDDEN = {"mlp": "hidden1", "small_cnn": "stage1"}
#: Piecewise-linear networks by name. Without biases, `leaky_mlp` and `cifar_cnn` are positively homogeneous, as the
#: adversarial bound assumes; `relu_mlp` is not.
PIECEWISE: dict[str, Callable[[int], nn.Module]] = {
    "leaky_mlp": partial(_mlp, activation=_LEAKY, bias=False),
    "relu_mlp": partial(_mlp, activation=nn.ReLU),
    "cifar_cnn": cifar_cnn,
}
#: All networks that can be trained.
NETWORKS = {**MODELS, **PIECEWISE}
