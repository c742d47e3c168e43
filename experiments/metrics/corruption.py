"""Accuracy under common corruptions: ImageNet-C, CIFAR-10-C and CIFAR-100-C.

The papers' robust accuracy is the plain mean over 15 corruptions and 5 severities, not divided by the errors of
AlexNet. In parentheses they give the mean without the three noises (NoisyMix Tables 1-3).
"""

from __future__ import annotations

from collections.abc import Mapping
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


def corruption_summary(accuracies: Mapping[tuple[str, int], float]) -> dict[str, float]:
    """Accuracies under corruptions and their unweighted means, as metrics of the ledger.

    Args:
        accuracies: accuracy by (name, severity), in [0, 1]. The means need `CORRUPTIONS` at all severities; others are
            only passed on.

    Returns:
        `"corrupted/<name>/<severity>"`, and for `CORRUPTIONS`: `"corrupted/<name>"` (mean of 5), `"corrupted/mean"`,
        `"corrupted/mean_without_noise"`, `"corrupted/severity/<severity>"` and `"corrupted/category/<category>"`.
    """
    for (name, severity), share in accuracies.items():
        category_of(name)
        if severity not in SEVERITIES or not 0 <= share <= 1:
            raise ValueError(
                f"accuracies: expected a share at a severity of 1 to 5, got {share!r} for {name} at {severity!r}."
            )
    cells = sorted((name, severity) for name in CORRUPTIONS for severity in SEVERITIES)
    if missing := [cell for cell in cells if cell not in accuracies]:
        raise ValueError(
            f"accuracies: expected all severities of all corruptions, but {len(missing)} are missing, such as "
            f"{missing[0]}."
        )

    def mean(kept) -> float:
        return fmean(accuracies[cell] for cell in cells if kept(*cell))

    found = {f"corrupted/{name}/{severity}": float(share) for (name, severity), share in accuracies.items()}
    found |= {f"corrupted/{c}": mean(lambda name, _, c=c: name == c) for c in CORRUPTIONS}
    found["corrupted/mean"] = mean(lambda *_: True)
    found["corrupted/mean_without_noise"] = mean(lambda name, _: name not in CATEGORIES["noise"])
    found |= {f"corrupted/severity/{s}": mean(lambda _, severity, s=s: severity == s) for s in SEVERITIES}
    return found | {f"corrupted/category/{c}": mean(lambda name, _, c=c: name in CATEGORIES[c]) for c in CATEGORIES}
