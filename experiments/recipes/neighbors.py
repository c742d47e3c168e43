"""The neighbors of this theory: `neighbours/DATA-SCHEME`, each network in seconds on one core.

What we expected before any of these networks was trained:

| recipes | prediction |
|---|---|
| `spirals-k*`, `digits-k*`, `fashion-k*` | the larger k, the closer mixed samples are to the data, and the more often both parts have one class; on spirals and digits accuracy and likelihood get better up to k = 16, on Fashion-MNIST less clearly; on spirals plain training is as good as the best k |
| the same, regularizers | R2 of a trained network falls with the mean squared length of the directions |
| `features-*` | Midpoint Mixup learns both features of every class, plain training those of some classes only; plain Mixup is as good as Midpoint Mixup |
| `moons-*` | the mean margin under Mixup is at least that of plain training |
| `dp-*` | Mixup between samples is worse than plain DP-SGD at every ε; DP-Mix self is no better than its augmented copies alone |
| `series-*` | no scheme is better than plain training on every set: a null result |

Sources: the abstracts of K. Greenewald et al., *k-Mixup regularization for deep learning via optimal transport*; M.
Chidambaram et al., *Provably learning diverse features in multi-view data with Midpoint Mixup* and *Towards
understanding the data dependency of Mixup-style training*; W. Bao et al., *DP-Mix*; P. Guo et al., *Empirical study of
mix-based data augmentation methods in physiological time series data*. All sizes and settings are our choice.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from .recipe import Recipe, Scheme, Training

TEN, TWENTY = tuple(range(1, 11)), tuple(range(1, 21))
_ADAM = {"optimiser": "adam", "schedule": "constant"}
_ERM, _MIXUP = Scheme("baseline"), Scheme("mixup", alpha=1.0)
_CHOICES = (
    ("data, model, epochs", "small ones of our own, so that each network takes seconds"),
    ("learning_rate, model_options.width", "for two features chosen on two seeds, so that the networks fit their data"),
)

#: k of k-mixup for each set of data. A batch has several such sets: with one, each sample is its own partner.
MATCHED = {"spirals": (1, 4, 16, 64), "digits": (1, 4, 16), "fashion": (1, 4, 16)}
#: The k at which the claims are judged.
K = 16
_SPIRALS = Training("toy_spirals", "smooth_mlp", _ERM, epochs=150, batch_size=128, learning_rate=0.01, **_ADAM)
_DIGITS = Training(
    "digits", "smooth_mlp", _ERM, epochs=40, batch_size=64, learning_rate=0.003, samples=300,
    model_options=(("in_features", 64),), **_ADAM,
)  # fmt: skip
_FASHION = Training(
    "fashion_mnist", "smooth_mlp", _ERM, epochs=8, batch_size=64, learning_rate=0.001, samples=1000,
    model_options=(("in_features", 784),), **_ADAM,
)  # fmt: skip
_FEATURES = Training(
    "toy_features", "patch_network", _ERM, epochs=200, batch_size=200, learning_rate=0.3, model_options=(("width", 8),)
)
_MOONS = Training("toy_moons", "smooth_mlp", _ERM, epochs=100, batch_size=50, learning_rate=0.01, **_ADAM)

#: ε of differential privacy and the noise that gives it: δ = 10⁻⁴, mean batches of 256 of 1,347 digits, 120 steps.
DELTA, PRIVATE_BATCH, PRIVATE_EPOCHS = 1e-4, 256, 20
NOISE = {1: 7.4641, 2: 4.1202, 8: 1.4501}
_COPIES = 4
_PRIVATE = {
    "plain": {}, "mixup": {"alpha": 1.0}, "self_augmented": {"copies": 2 * _COPIES},
    "self_mixed": {"alpha": 1.0, "copies": _COPIES, "mixtures": _COPIES},
}  # fmt: skip
_DP_DIGITS = Training(
    "digits", "smooth_mlp", _ERM, epochs=PRIVATE_EPOCHS, batch_size=PRIVATE_BATCH, learning_rate=0.01,
    model_options=(("in_features", 64), ("width", 32)), **_ADAM,
)  # fmt: skip

#: Channels, batch size and epochs of each set of time series.
SERIES = {
    "basic_motions": (6, 20, 40), "gun_point": (1, 25, 50), "japanese_vowels": (12, 30, 10), "wiimote": (1, 25, 50),
}  # fmt: skip
SERIES_SCHEMES = {
    "erm": _ERM, "mixup": _MIXUP, "cutmix": Scheme("cutmix", alpha=1.0, patch="cutmix", probability=0.5),
    "manifold": Scheme("manifold_mixup", alpha=1.0, layers="eligible"),
}  # fmt: skip


def _recipe(row: str, training: Training, suites: tuple[str, ...], seeds: tuple[int, ...] = TEN) -> Recipe:
    return Recipe(f"neighbours/{row}", "toy", training, suites, seeds, _CHOICES)


def _matched() -> Iterator[Recipe]:
    for name, training in (("spirals", _SPIRALS), ("digits", _DIGITS), ("fashion", _FASHION)):
        yield _recipe(f"{name}-erm", training, ("clean", "likelihood"))
        for k in MATCHED[name]:
            scheme = replace(_MIXUP, name="mixup" if k == 1 else "k_mixup", matching=k)
            # The expansion is verified with 32 samples, which must be several sets of k
            verified = name != "fashion" and k <= K
            suites = ("clean", "likelihood", "mixed_distance", *(("expansion",) if verified else ()))
            yield _recipe(f"{name}-k{k}", replace(training, scheme=scheme), suites)


def _features() -> Iterator[Recipe]:
    midpoint = Scheme("midpoint_mixup", lam=0.5, noise="normal")
    for name, scheme in (("erm", _ERM), ("mixup", _MIXUP), ("midpoint", midpoint)):
        yield _recipe(f"features-{name}", replace(_FEATURES, scheme=scheme), ("clean", "learned_features"))


def _other() -> Iterator[Recipe]:
    for name, scheme in (("erm", _ERM), ("mixup", _MIXUP)):
        yield _recipe(f"moons-{name}", replace(_MOONS, scheme=scheme), ("clean", "margins"))
    for epsilon, noise in NOISE.items():
        for name, options in _PRIVATE.items():
            scheme = Scheme(f"private_{name}", clip_norm=1.0, noise_multiplier=noise, **options)
            yield _recipe(f"dp-{epsilon}-{name}", replace(_DP_DIGITS, scheme=scheme), ("clean",))


def _series() -> Iterator[Recipe]:
    for name, (channels, batch, epochs) in SERIES.items():
        for row, scheme in SERIES_SCHEMES.items():
            training = Training(
                f"series_{name}", "series_cnn", scheme, epochs=epochs, batch_size=batch, learning_rate=0.003,
                model_options=(("in_channels", channels), ("width", 16)), **_ADAM,
            )  # fmt: skip
            yield _recipe(f"series_{name}-{row}", training, ("clean", "likelihood"), TWENTY)


def recipes() -> list[Recipe]:
    """The recipes of the neighbors."""
    return [*_matched(), *_features(), *_other(), *_series()]
