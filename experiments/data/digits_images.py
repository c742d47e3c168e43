"""The 8 x 8 digits of scikit-learn as bytes, for everything that works on images in memory."""

from __future__ import annotations

import numpy as np
import torch

from .digits import _split
from .images import ImageData, ImageSet

_LARGEST = 16  # value of the brightest pixel in the source


def digits_images(*, test_share: float = 0.25, seed: int = 0) -> ImageData:
    """The digits as one-channel images `(n, 1, 8, 8)`, split as `digits.load_digits` splits them.

    Args:
        test_share: share of every class that is held out.
        seed: of the split.

    Returns:
        Pixels 0..16 scaled to 0..255 and rounded (half to even); mean and standard deviation are those of all
        training pixels.
    """
    if not 0 < test_share < 1:
        raise ValueError(f"test_share: expected a share between 0 and 1, got {test_share!r}.")
    from sklearn import datasets

    pixels, labels = datasets.load_digits(return_X_y=True)
    images = np.rint(pixels * 255 / _LARGEST).astype(np.uint8).reshape(-1, 1, 8, 8)
    test = _split(labels, test_share, seed)
    train, held_out = (
        ImageSet(torch.from_numpy(images[part]), torch.from_numpy(labels[part].astype(np.int64)))
        for part in (~test, test)
    )
    units = images[~test] / 255
    return ImageData("digits", train, held_out, 10, (float(units.mean()),), (float(units.std()),))
