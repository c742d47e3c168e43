"""Real images that are part of a dependency: the 8 x 8 digits of scikit-learn, with a fixed split.

Pixels are standardized by one mean and one standard deviation, those of all training pixels, as the channels of color
images are. So noise levels have the same meaning as in the papers, which also perturb standardized images. (Each pixel
cannot have its own standard deviation, since some pixels are blank in every image.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

#: The digits with labels 0 and 1 of the binary task: a pair that is easily confused.
BINARY = (3, 8)
CLASSES = (2, 10)
#: Share of every class that is held out for testing.
TEST_SHARE = 0.25


@dataclass(frozen=True)
class Digits:
    """The training and the test part: float64 images and integer labels.

    Attributes:
        x: training images, `(n, 1, 8, 8)`, or vectors `(n, 64)`.
        y: training labels, `(n,)`.
        x_test: test images.
        y_test: test labels.
        classes: K, the number of classes.
    """

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: int

    @property
    def loss(self) -> str:
        """The loss of the theory: logistic (one logit) for two classes, otherwise cross entropy (K logits)."""
        return "logistic" if self.classes == 2 else "cross_entropy"


def _split(labels: np.ndarray) -> np.ndarray:
    """True for the test samples: the same share of every class, drawn with a fixed seed."""
    rng = np.random.default_rng(0)
    test = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        test[members[: round(TEST_SHARE * len(members))]] = True
    return test


def load_arrays(classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels 0..16 `(n, 64)`, int64 labels, and True for the samples held out for testing, both `(n,)`."""
    if classes not in CLASSES:
        raise ValueError(f"classes: expected one of {CLASSES}, got {classes!r}.")
    from sklearn import datasets

    pixels, labels = datasets.load_digits(return_X_y=True)
    if classes == 2:
        keep = np.isin(labels, BINARY)
        pixels, labels = pixels[keep], labels[keep] == BINARY[1]
    return pixels, labels.astype(np.int64), _split(labels)


def load_digits(classes: int = 10, *, images: bool = True) -> Digits:
    """The digits, standardized and split.

    Args:
        classes: 10 for all digits, 2 for 3 against 8.
        images: True for images `(1, 8, 8)`, False for vectors of length 64.
    """
    pixels, labels, test = load_arrays(classes)
    pixels = (pixels - pixels[~test].mean()) / pixels[~test].std()
    x = torch.from_numpy(pixels).reshape(-1, 1, 8, 8) if images else torch.from_numpy(pixels)
    y = torch.from_numpy(labels)
    held_out = torch.from_numpy(test)
    return Digits(x[~held_out], y[~held_out], x[held_out], y[held_out], classes)


def verification_subset(data: Digits, n: int) -> tuple[Tensor, Tensor]:
    """`n` training samples `(x, y)`, the first ones of every class in turn, so classes differ by at most one sample."""
    members = [torch.nonzero(data.y == label).flatten() for label in range(data.classes)]
    largest = data.classes * min(map(len, members))
    if not 1 <= n <= largest:
        raise ValueError(f"n: expected 1 to {largest} samples in equal shares, got {n}.")
    rounds = torch.stack([m[: -(-n // data.classes)] for m in members], dim=1)
    chosen = rounds.flatten()[:n]
    return data.x[chosen], data.y[chosen]
