"""Recipes that take seconds on any computer: both papers' toy problems, and all schemes on digits."""

from __future__ import annotations

from dataclasses import replace

from .recipe import Evaluation, Recipe, Scheme, Training
from .schemes import CHOICES, SCHEMES, VIEWS

# Digits ------------------------------------------------------------------------------------------------------

_DIGITS = Training(
    data="digits", model="digits_resnet", scheme=Scheme("baseline"), epochs=20, batch_size=64, learning_rate=0.1,
    model_options=(("width", 8),), nesterov=True, weight_decay=5e-4, schedule="cosine",
)  # fmt: skip
#: The papers' levels and larger ones. Digits have more contrast than CIFAR, so their radii are larger, too.
DIGITS_EVALUATION = Evaluation(
    white_noise=(0.1, 0.2, 0.3, 0.5, 1.0), salt_pepper=(0.02, 0.04, 0.1, 0.2), radii=(0.05, 0.1, 0.2)
)
_DIGITS_SUITES = ("clean", "white_noise", "salt_pepper", "attacks", "corrupted", "flips", "calibration")


def shorter(scheme: Scheme) -> Scheme:
    """At most four steps on each batch, since a training with few epochs cannot afford eight."""
    return replace(scheme, replays=min(scheme.replays, 4))


def row_choices(name: str) -> tuple[tuple[str, str], ...]:
    """The choices at the papers' size, except for the number of steps on each batch."""
    fewer = {"replays": "4, half of what the authors of the method use: neither paper has this row on CIFAR"}
    return tuple((setting, fewer.get(setting, why)) for setting, why in CHOICES.get(name, ()))


#: Settings on digits that are not those of the authors' code, since the results were recorded with them.
_AS_RECORDED = {"puzzlemix": {"loss": "cross_entropy"}, "adversarial": {"clamp": False}}
_RECORDED_CHOICES = {
    "puzzlemix": (("loss", "cross_entropy; PuzzleMix's own code for CIFAR has the binary one of the softmax"),),
    "adversarial": (("clamp", "none; the code of the method's authors cuts the perturbed pixels to [0, 1]"),),
}


def _digits():
    for name, scheme in SCHEMES.items():
        scheme = replace(shorter(scheme), **_AS_RECORDED.get(name, {}))
        training = replace(_DIGITS, scheme=scheme, views=VIEWS.get(name, ""))
        kept = tuple(choice for choice in row_choices(name) if choice[0] not in _AS_RECORDED.get(name, ()))
        choices = (*kept, *_RECORDED_CHOICES.get(name, ()))
        yield Recipe(
            f"digits/{name}", "digits", training, _DIGITS_SUITES, choices=choices, evaluation=DIGITS_EVALUATION
        )


# Toy problems --------------------------------------------------------------------------------------------------

_ADAM = {"optimiser": "adam", "schedule": "constant"}
_RINGS = Training(
    data="toy_rings", model="nfm_toy", scheme=Scheme("baseline"), epochs=100, batch_size=300, learning_rate=0.1, **_ADAM
)
_BAND = Training(
    data="toy_band", model="noisymix_toy", scheme=Scheme("baseline"), epochs=100, batch_size=50, learning_rate=0.01,
    **_ADAM,
)  # fmt: skip
_RING_LEVELS = {"add_noise": 0.4, "mult_noise": 0.2}
#: With the noise levels of CIFAR, the noise would be larger than the distance between points of the band.
_BAND_LEVELS = {"add_noise": 0.1, "mult_noise": 0.1}
_MIXED = {"alpha": 1.0, "layers": "eligible"}
_RINGS_CHOICES = (
    ("learning_rate, dropout, weight_decay", "0.1, 0.2, 9e-3: recalled, not verified"),
    (
        "epochs, batch_size, width, add_noise, mult_noise",
        "100, all samples, our choice, and the levels of CIFAR: nowhere stated",
    ),
)
_BAND_CHOICES = (
    ("learning_rate, batch_size, width", "0.01, 50, our choice: unreadable in the copy of the paper that we have"),
    (
        "add_noise, mult_noise, jsd",
        "0.1, 0.1, 12: nowhere stated; noise with the levels of CIFAR is wider than the band",
    ),
    ("views", "three copies, each with its own noise: nowhere stated for data without augmentation"),
)


def _toys():
    rings = {
        "baseline": _RINGS,
        "dropout": replace(_RINGS, scheme=Scheme("dropout"), model_options=(("dropout", 0.2),)),
        "weight_decay": replace(_RINGS, scheme=Scheme("weight_decay"), weight_decay=9e-3),
        "noise_injection": replace(_RINGS, scheme=Scheme("noise_injection", **_RING_LEVELS)),
        "mixup": replace(_RINGS, scheme=Scheme("mixup", alpha=1.0)),
        "manifold_mixup": replace(_RINGS, scheme=Scheme("manifold_mixup", **_MIXED)),
        "noisy_mixup": replace(_RINGS, scheme=Scheme("noisy_mixup", alpha=1.0, **_RING_LEVELS)),
        "nfm": replace(_RINGS, scheme=Scheme("nfm", **_MIXED, **_RING_LEVELS)),
    }
    band = {
        "baseline": Scheme("baseline"),
        "noise_injection": Scheme("noise_injection", **_BAND_LEVELS),
        "manifold_mixup": Scheme("manifold_mixup", **_MIXED),
        "nfm": Scheme("nfm", **_MIXED, **_BAND_LEVELS),
        "manifold_mixup_jsd": Scheme("manifold_mixup_jsd", **_MIXED, jsd=12.0),
        "noisymix": Scheme("noisymix", **_MIXED, **_BAND_LEVELS, jsd=12.0),
    }
    for row, training in rings.items():
        yield Recipe(f"nfm-figure-toy/{row}", "toy", training, ("clean",), choices=_RINGS_CHOICES)
    for row, scheme in band.items():
        training = replace(_BAND, scheme=scheme)
        yield Recipe(f"noisymix-figure4/{row}", "toy", training, ("clean",), choices=_BAND_CHOICES)


def recipes() -> list[Recipe]:
    """The recipes of both sizes."""
    return [*_toys(), *_digits()]
