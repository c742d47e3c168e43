"""Data of the neighbors of this theory: two spirals, two moons, and classes with two features each."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .toy_sets import ToyData

#: Training and test points of the spirals and of the moons.
SPIRALS, MOONS, TESTS = 256, 100, 1000
#: Classes, patches, dimension, and training samples of the data with two features.
CLASSES, PATCHES, DIMENSION, FEATURE_SAMPLES = 10, 4, 40, 400


def spirals(seed: int = 0, *, noise: float = 0.02, turns: float = 1.5) -> ToyData:
    """Two spirals that wind around each other: 256 training and 1,000 test points.

    Args:
        seed: random seed of the points.
        noise: standard deviation of the normal noise; the outermost radius is 1.
        turns: number of turns.
    """
    rng = np.random.default_rng(seed)
    n = SPIRALS + TESTS
    labels = np.arange(n) % 2
    radius = np.sqrt(rng.uniform(0.02, 1, n))
    angle = 2 * np.pi * turns * radius + np.pi * labels
    points = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1) + noise * rng.standard_normal((n, 2))
    return _parts(points, labels, SPIRALS, 2)


def moons(seed: int = 0, *, noise: float = 0.1) -> ToyData:
    """Two moons: 100 training and 1,000 test points."""
    from sklearn import datasets

    points, labels = datasets.make_moons(MOONS + TESTS, noise=noise, random_state=seed)
    return _parts(points, labels, MOONS, 2)


def _parts(x: np.ndarray, y: np.ndarray, train: int, classes: int) -> ToyData:
    inputs, labels = torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y.astype(np.int64))
    return ToyData(inputs[:train], labels[:train], inputs[train:], labels[train:], classes)


def features() -> Tensor:
    """The two orthonormal features of each class, `(CLASSES, 2, DIMENSION)`."""
    return torch.eye(DIMENSION)[: 2 * CLASSES].reshape(CLASSES, 2, DIMENSION)


def two_features(seed: int = 0, *, low: float = 0.5, high: float = 1.5, other: float = 0.3) -> ToyData:
    """Classes with two features each: 400 training and 1,000 test samples of four patches in 40 dimensions.

    One patch has the first feature of the class, one the second, each times a factor, and two have a weak feature of
    another class. The order of the patches is random. The distribution is that of the paper on Midpoint Mixup in kind;
    the numbers are our choice.

    Args:
        seed: random seed of the samples.
        low: smallest factor of a feature of the class.
        high: largest factor.
        other: largest factor of a feature of another class.
    """
    rng = np.random.default_rng(seed)
    n, known = FEATURE_SAMPLES + TESTS, features().numpy()
    labels = np.arange(n) % CLASSES
    wrong = (labels[:, None] + rng.integers(1, CLASSES, (n, 2))) % CLASSES
    patches = np.concatenate([known[labels], known[wrong, rng.integers(2, size=(n, 2))]], 1)
    factors = np.concatenate([rng.uniform(low, high, (n, 2)), rng.uniform(0, other, (n, 2))], 1)
    order = rng.random((n, PATCHES)).argsort(1)
    samples = np.take_along_axis(factors[..., None] * patches, order[..., None], 1)
    return _parts(samples, labels, FEATURE_SAMPLES, CLASSES)
