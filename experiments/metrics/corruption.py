"""Accuracy under common corruptions: ImageNet-C, CIFAR-10-C and CIFAR-100-C.

The papers' robust accuracy is the plain mean over 15 corruptions and 5 severities, not divided by the errors of
AlexNet. In parentheses they give the mean without the three noises (NoisyMix Tables 1-3). The mean corruption error
is provided for comparison with other papers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

#: Corruptions of the benchmark by category (Hendrycks and Dietterich 2019, section 4.1).
CATEGORIES = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}
#: Four more corruptions, meant for choosing hyperparameters. Early NoisyMix code also averaged over speckle noise.
EXTRA = {"noise": "speckle_noise", "blur": "gaussian_blur", "weather": "spatter", "digital": "saturate"}
CORRUPTIONS = tuple(name for names in CATEGORIES.values() for name in names)
SEVERITIES = (1, 2, 3, 4, 5)
#: The six corruptions of NFM Figure 6.
NFM_FIGURE6 = ("gaussian_noise", "jpeg_compression", "impulse_noise", "shot_noise", "snow", "speckle_noise")


def category_of(corruption: str) -> str:
    """Category of a corruption: `"noise"`, `"blur"`, `"weather"` or `"digital"`."""
    for category, names in CATEGORIES.items():
        if corruption in names or corruption == EXTRA[category]:
            return category
    raise ValueError(f"corruption: expected one of {[*CORRUPTIONS, *EXTRA.values()]}, got {corruption!r}.")


def mean_errors(accuracies: Mapping[tuple[str, int], float]) -> dict[str, float]:
    """Error of each corruption, averaged over the severities, from accuracies by (name, severity)."""
    names = dict.fromkeys(name for name, _ in accuracies)
    return {name: 1 - fmean(share for (other, _), share in accuracies.items() if other == name) for name in names}


def mean_corruption_error(errors: Mapping[str, float], reference: Mapping[str, float]) -> float:
    r"""Mean corruption error (mCE): the mean over corruptions c of the error relative to a reference network.

    $$ \mathrm{CE}_c = \frac{\sum_s E_{s,c}}{\sum_s E^{\mathrm{ref}}_{s,c}}, \qquad
       \mathrm{mCE} = \frac1C \sum_c \mathrm{CE}_c $$

    (Hendrycks and Dietterich 2019, section 4.2, where the reference is AlexNet.) The reference itself has mCE 1, and
    lower is better. The benchmark prints 100 times this value.

    Args:
        errors: error of each corruption, averaged over the severities, in [0, 1].
        reference: the same for the reference network.
    """
    if not errors:
        raise ValueError("errors: expected at least one corruption, got none.")
    if missing := [name for name in errors if not reference.get(name, 0) > 0]:
        raise ValueError(f"reference: expected an error > 0 for each corruption, got none for {missing}.")
    return fmean(error / reference[name] for name, error in errors.items())


def corruption_summary(
    accuracies: Mapping[tuple[str, int], float],
    *,
    corruptions: Sequence[str] = CORRUPTIONS,
    reference_errors: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Accuracies under corruptions and their unweighted means, as metrics of the ledger.

    Args:
        accuracies: accuracy by (name, severity), in [0, 1].
        corruptions: corruptions that enter the means, each needed at all five severities. Others are only passed on.
        reference_errors: mean error of a reference network by corruption, for the mCE.

    Returns:
        `"corrupted/<name>/<severity>"`, and for `corruptions`: `"corrupted/<name>"` (mean of 5), `"corrupted/mean"`,
        `"corrupted/mean_without_noise"`, `"corrupted/severity/<severity>"`, `"corrupted/category/<category>"`, and
        `"mce"` if there is a reference.
    """
    for (name, severity), share in accuracies.items():
        category_of(name)
        if severity not in SEVERITIES or not 0 <= share <= 1:
            raise ValueError(
                f"accuracies: expected a share at a severity of 1 to 5, got {share!r} for {name} at {severity!r}."
            )
    cells = {(name, severity) for name in corruptions for severity in SEVERITIES}
    if not cells or (missing := sorted(cells - set(accuracies))):
        lacks = f"{len(missing)} are missing, such as {missing[0]}" if cells else "no corruptions are given"
        raise ValueError(f"accuracies: expected all severities of all corruptions, but {lacks}.")

    def mean(kept) -> float:
        # sorted, so that the sum does not depend on the order of a set
        return fmean(accuracies[cell] for cell in sorted(cells) if kept(*cell))

    found = {f"corrupted/{name}/{severity}": float(share) for (name, severity), share in accuracies.items()}
    found |= {f"corrupted/{c}": mean(lambda name, _, c=c: name == c) for c in corruptions}
    found["corrupted/mean"] = mean(lambda *_: True)
    if any(category_of(name) != "noise" for name in corruptions):
        found["corrupted/mean_without_noise"] = mean(lambda name, _: category_of(name) != "noise")
    found |= {f"corrupted/severity/{s}": mean(lambda _, severity, s=s: severity == s) for s in SEVERITIES}
    present = dict.fromkeys(map(category_of, corruptions))
    found |= {f"corrupted/category/{c}": mean(lambda name, _, c=c: category_of(name) == c) for c in present}
    if reference_errors is not None:
        errors = mean_errors({cell: accuracies[cell] for cell in cells})
        found["mce"] = mean_corruption_error(errors, reference_errors)
    return found
