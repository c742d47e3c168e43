"""Calibration: RMS calibration error and AURRA (NoisyMix Table 11), and the expected calibration error.

The confidence of a prediction is its softmax probability. Images with equal confidence share their mean correctness,
so that no result depends on their order; in the released tools it depends on the sort. Softmax is computed in
float64, since in float32 all confidences above 1 - 3e-8 are equal.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

#: Number of images in a bin of the RMS error, and number of bins of the expected calibration error.
BIN_SIZE, ECE_BINS = 100, 15


def confidences_of(logits: Tensor, labels: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Largest softmax probability of each image (float64), and whether that class is the label (bool), both `(n,)`."""
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(f"logits: expected (n, K) and n labels, got {tuple(logits.shape)} and {tuple(labels.shape)}.")
    confidence, predicted = torch.softmax(logits.double(), 1).max(1)
    return confidence.cpu().numpy(), (predicted == labels.to(predicted.device)).cpu().numpy()


def _ranked(confidence: ArrayLike, correct: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Both arrays sorted by confidence, ascending. Correctness is averaged over images with equal confidence."""
    confidence, correct = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if confidence.ndim != 1 or confidence.shape != correct.shape or len(confidence) == 0:
        raise ValueError(
            f"confidence and correct: expected two arrays (n,) with n >= 1, got {confidence.shape}, {correct.shape}."
        )
    if not ((confidence >= 0) & (confidence <= 1)).all():  # NaN is refused, too
        raise ValueError(f"confidence: expected probabilities in [0, 1], got {confidence.min()} to {confidence.max()}.")
    if not np.isin(correct, (0, 1)).all():
        raise ValueError(f"correct: expected 0 and 1, or booleans, got {np.unique(correct)}.")
    order = np.argsort(confidence, kind="stable")
    confidence, correct = confidence[order], correct[order]
    _, group, sizes = np.unique(confidence, return_inverse=True, return_counts=True)
    return confidence, (np.bincount(group, weights=correct) / sizes)[group]


def rms_calibration_error(
    confidence: ArrayLike, correct: ArrayLike, *, bin_size: int = BIN_SIZE, omit_last: bool = False
) -> float:
    r"""Root mean square gap between confidence and accuracy over adaptive bins, in [0, 1].

    $$ \sqrt{\sum_b \frac{n_b}{N} \big(\overline{\mathrm{conf}}_b - \overline{\mathrm{correct}}_b\big)^2} $$

    A bin holds `bin_size` images of neighboring confidence. The last bin also takes the remainder, so there are
    ⌊N / bin_size⌋ bins, and at least one. (Hendrycks, Mazeika and Dietterich 2019.)

    Args:
        confidence: probabilities of the predicted classes, `(n,)`.
        correct: True where the prediction is right, `(n,)`.
        bin_size: number of images in a bin, ≥ 1.
        omit_last: True to leave out the last, most confident bin, as the loop of the released tool does. N is still
            the number of all images.
    """
    confidence, correct = _ranked(confidence, correct)
    if bin_size < 1:
        raise ValueError(f"bin_size: expected >= 1, got {bin_size}.")
    bins = max(1, len(confidence) // bin_size)
    if omit_last and bins == 1:
        raise ValueError(
            f"omit_last: expected at least two bins of {bin_size} images, got {len(confidence)} images; choose a "
            "smaller bin_size."
        )
    starts = bin_size * np.arange(bins)
    sizes = np.diff([*starts, len(confidence)])
    squares = (np.add.reduceat(confidence - correct, starts) / sizes) ** 2 * sizes / len(confidence)
    return float(np.sqrt((squares[:-1] if omit_last else squares).sum()))


def ece(confidence: ArrayLike, correct: ArrayLike, *, bins: int = ECE_BINS) -> float:
    r"""Mean gap between confidence and accuracy over bins of equal width, $\sum_b \frac{n_b}{N} |\ldots|$, in [0, 1].

    A bin is open below and closed above, as in Guo et al. 2017. The released NoisyMix code computes this error, but the
    paper's table shows the RMS error.

    Args:
        confidence: probabilities of the predicted classes, `(n,)`.
        correct: True where the prediction is right, `(n,)`.
        bins: number of bins of [0, 1], ≥ 1.

    Example:
        >>> round(ece([0.9, 0.9, 0.6], [True, False, True]), 6)  # (2 * 0.4 + 0.4) / 3
        0.4
    """
    if bins < 1:
        raise ValueError(f"bins: expected >= 1, got {bins}.")
    confidence, correct = _ranked(confidence, correct)
    member = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence, side="left")
    return float(np.abs(np.bincount(member, weights=confidence - correct)).sum() / len(confidence))


def aurra(confidence: ArrayLike, correct: ArrayLike) -> float:
    """Area under the response rate accuracy curve: mean over r = 1..n of the accuracy of the r most confident images.

    (Hendrycks et al. 2021, natural adversarial examples.) Only the ranking of the confidences matters. Higher is
    better.

    Example:
        >>> round(aurra([0.9, 0.8, 0.7], [True, False, True]), 6)  # (1 + 1/2 + 2/3) / 3
        0.722222
    """
    correct = _ranked(confidence, correct)[1][::-1]
    return float((np.cumsum(correct) / np.arange(1, len(correct) + 1)).mean())


def calibration_summary(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """All calibration measures, as metrics of the ledger.

    Args:
        logits: logits `(n, K)`; for ImageNet-R those of its 200 classes.
        labels: class indices, `(n,)`.

    Returns:
        `"rms_calibration_error"`, `"rms_calibration_error_released"` (only for at least two bins, 200 images), `"ece"`
        and `"aurra"`.
    """
    confidence, correct = confidences_of(logits, labels)
    found = {"rms_calibration_error": rms_calibration_error(confidence, correct)}
    if len(confidence) >= 2 * BIN_SIZE:
        found["rms_calibration_error_released"] = rms_calibration_error(confidence, correct, omit_last=True)
    return found | {"ece": ece(confidence, correct), "aurra": aurra(confidence, correct)}
