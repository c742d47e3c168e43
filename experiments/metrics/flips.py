"""Flips of the prediction along sequences of gradually perturbed images: ImageNet-P and CIFAR-10-P.

NoisyMix prints flip **rates** for ImageNet-P (Table 12), where AlexNet has 100. Its Tables 13 and 14 for CIFAR-10-P
are also headed mFR, but their numbers can only be flip probabilities in percent. (Hendrycks and Dietterich 2019,
section 4.3.)
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

from torch import Tensor

#: Noises, whose frames are compared with the first frame. The mean in parentheses leaves them out.
NOISES = ("gaussian_noise", "shot_noise")
#: The ten perturbations of ImageNet-P. For CIFAR-10-P the paper prints `snow`, but the benchmark has `spatter`.
PERTURBATIONS = (
    *NOISES, "motion_blur", "zoom_blur", "snow", "brightness", "translate", "rotate", "tilt", "scale",
)  # fmt: skip
#: Flip probabilities of AlexNet on ImageNet-P. **Recalled, not verified** against any source: for an exact
#: comparison pass your own. They fit the paper's baseline: a rate of 59.4 % of 0.2365 is a flip probability of 14.0 %.
ALEXNET_FLIP = dict(
    zip(PERTURBATIONS, (0.2365, 0.3006, 0.0930, 0.0594, 0.1193, 0.0489, 0.1101, 0.1310, 0.0705, 0.2353), strict=True)
)


def is_noise(name: str) -> bool:
    """True for a noise, also for the further sequences of CIFAR-10-P such as `gaussian_noise_2` and `speckle_noise`.

    As in the reference evaluation, all frames of a noise are compared with the first one.
    """
    return "noise" in name


def flip_probability(predictions: Tensor, *, noise: bool) -> float:
    """Share of frames whose prediction differs from that of the previous frame, or of the first frame for noises.

    The frames of a noise sequence are independent draws around the first frame, so their order has no meaning.

    Args:
        predictions: predicted classes, `(n, frames)`, one sequence per row, with at least two frames.
        noise: True to compare with the first frame.

    Returns:
        The mean over sequences of the mean over frames 2..m, in [0, 1].

    Example:
        >>> import torch
        >>> sequence = torch.tensor([[3, 5, 5, 3]])
        >>> flip_probability(sequence, noise=True) * 3, flip_probability(sequence, noise=False) * 3
        (2.0, 2.0)
    """
    if predictions.ndim != 2 or len(predictions) == 0 or predictions.shape[1] < 2:
        raise ValueError(
            f"predictions: expected (n, frames), n >= 1 and at least two frames, got {tuple(predictions.shape)}."
        )
    if predictions.is_floating_point():
        raise ValueError(f"predictions: expected classes, got {predictions.dtype}; take the argmax of logits first.")
    before = predictions[:, :1] if noise else predictions[:, :-1]
    return float((predictions[:, 1:] != before).double().mean())


def _means(values: Mapping[str, float], prefix: str) -> dict[str, float]:
    """All values, their mean, and, if there are others than noises, their mean without the noises."""
    found = {f"{prefix}/{name}": float(value) for name, value in values.items()}
    found[f"{prefix}/mean"] = fmean(values.values())
    if quiet := [value for name, value in values.items() if not is_noise(name)]:
        found[f"{prefix}/mean_without_noise"] = fmean(quiet)
    return found


def flip_summary(
    probabilities: Mapping[str, float], *, reference: Mapping[str, float] | None = None
) -> dict[str, float]:
    r"""Flip probabilities and, given a reference, flip rates $\mathrm{FP} / \mathrm{FP}^{\mathrm{ref}}$ and their mean.

    Args:
        probabilities: flip probability of each perturbation, in [0, 1].
        reference: flip probabilities of a reference network, such as `ALEXNET_FLIP`; `None` for CIFAR-10-P.

    Returns:
        `"flip_probability/<name>"`, `"flip_probability/mean"`, `"flip_probability/mean_without_noise"`, and the same
        with `"flip_rate"`, where the reference has 1. `"flip_rate/mean"` is the mFR.
    """
    if not probabilities:
        raise ValueError("probabilities: expected at least one perturbation, got none.")
    found = _means(probabilities, "flip_probability")
    if reference is None:
        return found
    if missing := [name for name in probabilities if not reference.get(name, 0) > 0]:
        raise ValueError(f"reference: expected a flip probability > 0 for each perturbation, got none for {missing}.")
    return found | _means({name: value / reference[name] for name, value in probabilities.items()}, "flip_rate")
