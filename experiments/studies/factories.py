"""Networks trained on the digits, with data, for the command `nfm`.

    nfm verify --model experiments.studies.factories:mlp --num-samples 10 --layer hidden1

Each factory returns `(model, x, y)` with `SAMPLES` training images, the classes in turn. The networks are trained in
seconds when they are first asked for, and kept in the cache.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..data.digits import load_digits, verification_subset
from .networks import trained_network

#: The command uses at most so many samples of its own accord.
SAMPLES = 100


def _with_data(model: str, classes: int) -> tuple[nn.Module, Tensor, Tensor]:
    return trained_network(model, classes).model, *verification_subset(load_digits(classes), SAMPLES)


def mlp() -> tuple[nn.Module, Tensor, Tensor]:
    """The multilayer perceptron on all ten digits; hidden layers `hidden1` and `hidden2`."""
    return _with_data("mlp", 10)


def mlp_binary() -> tuple[nn.Module, Tensor, Tensor]:
    """The multilayer perceptron that tells 3 from 8, with one logit."""
    return _with_data("mlp", 2)


def small_cnn() -> tuple[nn.Module, Tensor, Tensor]:
    """The convolutional network on all ten digits; hidden layers `stage1` and `stage2`."""
    return _with_data("small_cnn", 10)


def small_cnn_binary() -> tuple[nn.Module, Tensor, Tensor]:
    """The convolutional network that tells 3 from 8, with one logit."""
    return _with_data("small_cnn", 2)
