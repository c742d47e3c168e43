"""The published constants of CIFAR-10-C and CIFAR-10-P, and the names of the corruptions.

Source of all numbers: Hendrycks & Dietterich, *Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations* (ICLR 2019), and the generators that its authors released for CIFAR (repository `hendrycks/robustness`,
`make_cifar_c.py` and `make_cifar_p.py`). The constants are made for images of 32 x 32 pixels and are smaller than those
of ImageNet-C.
"""

from __future__ import annotations

import numpy as np

from experiments.metrics import corruption

#: The 15 corruptions of the benchmark, and four more for choosing hyperparameters.
STANDARD, EXTRA = corruption.CORRUPTIONS, tuple(corruption.EXTRA.values())
NAMES, SEVERITIES = STANDARD + EXTRA, corruption.SEVERITIES

#: Side in pixels of the images for which the constants are made. Smaller images are enlarged first.
SIDE = 32

#: Constants by name, one entry for each severity 1 to 5. Unless noted, lengths are in pixels and levels in [0, 1].
CONSTANTS: dict[str, tuple] = {
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),  # standard deviation
    "shot_noise": (500, 250, 100, 75, 50),  # photons of a white pixel
    "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),  # share of altered values
    "speckle_noise": (0.06, 0.1, 0.12, 0.16, 0.2),  # standard deviation relative to the pixel
    "gaussian_blur": (0.4, 0.6, 0.7, 0.8, 1),  # standard deviation
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),  # radius, alias blur
    "glass_blur": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),  # sigma, reach, repeats
    "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),  # radius, sigma
    "zoom_blur": tuple(tuple(np.arange(1, stop, 0.01).tolist()) for stop in (1.06, 1.11, 1.16, 1.21, 1.26)),  # factors
    # mean, standard deviation, zoom and threshold of the flakes; radius and sigma of their blur; weight of the image
    "snow": (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    "frost": ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),  # weight of image and of texture
    "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),  # amount, decay of the plasma
    # mean, standard deviation, blur and threshold of the liquid; strength (water) or blur (mud); 0 for water, 1 for mud
    "spatter": (
        (0.62, 0.1, 0.7, 0.7, 0.5, 0),
        (0.65, 0.1, 0.8, 0.7, 0.5, 0),
        (0.65, 0.3, 1, 0.69, 0.5, 0),
        (0.65, 0.1, 0.7, 0.69, 0.6, 1),
        (0.65, 0.1, 0.5, 0.68, 0.6, 1),
    ),
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),  # added to the value of HSV
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),  # factor of the distance from the mean
    "saturate": ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),  # factor and shift of the saturation
    "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),  # share of the side that is kept
    "jpeg_compression": (80, 65, 58, 50, 40),  # quality
    # strength, smoothness, affine shift, all as shares of the side
    "elastic_transform": ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
}

#: Factor by which the frost textures are scaled before a piece is cut out.
FROST_SCALE = 0.2
#: The released generator draws one of the first five of its six textures.
FROST_TEXTURES = 5
