"""The 8 x 8 digits of scikit-learn as bytes, for all code that works on images in memory."""

from __future__ import annotations

import numpy as np
import torch

from .digits import load_arrays
from .images import ImageData, ImageSet

_LARGEST = 16  # the brightest pixel in scikit-learn's data


def digits_images() -> ImageData:
    """The digits as one-channel images `(n, 1, 8, 8)`, with the same split as in `digits.load_digits`.

    Pixels 0..16 are scaled to 0..255 and rounded (half to even). Mean and standard deviation are those of all training
    pixels.
    """
    pixels, labels, test = load_arrays(10)
    images = np.rint(pixels * 255 / _LARGEST).astype(np.uint8).reshape(-1, 1, 8, 8)
    train, held_out = (
        ImageSet(torch.from_numpy(images[part]), torch.from_numpy(labels[part])) for part in (~test, test)
    )
    units = images[~test] / 255
    return ImageData("digits", train, held_out, 10, (float(units.mean()),), (float(units.std()),))
