"""Small smooth networks for the digits; the theory asks for three derivatives, so there is no ReLU here.

Every block is a submodule with a name, which is the name of the layer whose output it computes.
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


#: Factories by name, each from the number of classes to an untrained network.
MODELS: dict[str, Callable[[int], nn.Module]] = {"mlp": mlp, "small_cnn": small_cnn}
#: The hidden layer that is verified, by model.
HIDDEN = {"mlp": "hidden1", "small_cnn": "stage1"}
