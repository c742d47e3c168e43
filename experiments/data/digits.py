"""Real images that ship inside a dependency: the 8 x 8 digits of scikit-learn, split once and for all by a seed.

Pixels are standardised by the one mean and the one standard deviation of the training images, as colour images are by
channel. Noise levels then mean what they mean in the papers, which also perturb standardised images. (Pixel by pixel
is not possible: some pixels are blank in every image.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

#: The two digits of the binary task, label 0 and 1: a pair that is easily confused.
BINARY = (3, 8)
CLASSES = (2, 10)


@dataclass(frozen=True)
class Digits:
    """The training and the test part, float64 images and integer labels.

    Attributes:
        x: training images, `(n, 1, 8, 8)`, or vectors `(n, 64)`.
        y: training labels, `(n,)`.
        x_test: test images.
        y_test: test labels.
        classes: K.
    """

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: int

    @property
    def loss(self) -> str:
        """The loss of the theory for this K: one logit for two classes, K logits otherwise."""
        return "logistic" if self.classes == 2 else "cross_entropy"


def _split(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Which samples are test data: the same share of every class, drawn by a generator of our own."""
    rng = np.random.default_rng(seed)
    test = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        test[members[: round(share * len(members))]] = True
    return test


def load_digits(classes: int = 10, *, images: bool = True, test_share: float = 0.25, seed: int = 0) -> Digits:
    """The digits, standardised and split.

    Args:
        classes: 10 for all digits, 2 for 3 against 8.
        images: samples as `(1, 8, 8)` images, otherwise as vectors of 64.
        test_share: share of every class that is held out.
        seed: of the split.
    """
    if classes not in CLASSES:
        raise ValueError(f"classes: expected one of {CLASSES}, got {classes!r}.")
    if not 0 < test_share < 1:
        raise ValueError(f"test_share: expected a share between 0 and 1, got {test_share!r}.")
    from sklearn import datasets

    pixels, labels = datasets.load_digits(return_X_y=True)
    if classes == 2:
        keep = np.isin(labels, BINARY)
        pixels, labels = pixels[keep], (labels[keep] == BINARY[1]).astype(np.int64)
    test = _split(labels, test_share, seed)
    pixels = (pixels - pixels[~test].mean()) / pixels[~test].std()
    x = torch.from_numpy(pixels).reshape(-1, 1, 8, 8) if images else torch.from_numpy(pixels)
    y = torch.from_numpy(labels.astype(np.int64))
    held_out = torch.from_numpy(test)
    return Digits(x[~held_out], y[~held_out], x[held_out], y[held_out], classes)


def verification_subset(data: Digits, n: int) -> tuple[Tensor, Tensor]:
    """The first training samples of every class in turn: fixed, and balanced up to one sample per class.

    Args:
        data: the digits.
        n: number of samples.

    Returns:
        `(x, y)` with `n` samples.
    """
    members = [torch.nonzero(data.y == label).flatten() for label in range(data.classes)]
    largest = data.classes * min(map(len, members))
    if not 1 <= n <= largest:
        raise ValueError(f"n: expected 1 to {largest} samples in equal shares, got {n}.")
    rounds = torch.stack([m[: -(-n // data.classes)] for m in members], dim=1)
    chosen = rounds.flatten()[:n]
    return data.x[chosen], data.y[chosen]
