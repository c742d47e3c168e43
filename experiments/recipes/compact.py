"""The compact size: every row of the papers' tables on real images, each network in minutes on one core.

| recipes | what is trained |
|---|---|
| `fashion-compact/...` | all schemes on Fashion-MNIST, which is in this repository |
| `cifar10-compact/...`, `cifar100-compact/...` | the schemes of Tables 1 and 2 of each paper, on all images of CIFAR |
| `cifar100-ablation/...` | the rows of NoisyMix Table 4 |
| `fashion-long/...` | the fast network for more epochs, with crop and flip |
| `fashion-preact/...` | the papers' PreActResNet-18 at an eighth of its width |
| `fashion-variations/...`, `cifar100-variations/...` | some schemes with one setting changed, see `variations` |
| `cifar10-preact/...` | PreActResNet-18 at an eighth of its width, on a fifth of CIFAR-10; stands beside no table |

Schemes, noise laws, levels, eligible layers and α are those of the papers. Network, epochs, learning rate, batch size
and augmentation depend on the size. They were chosen by the accuracy of the baseline alone, on the last training
images, which were held out for that (`python -m experiments study choice`). White noise and salt and pepper noise are
also measured at levels above the papers', where the baseline loses as much as in the papers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from .ours import row_choices, shorter
from .recipe import Evaluation, Recipe, Scheme, Training
from .schemes import SCHEMES, VIEWS

#: The rows of NFM Tables 1 and 2, and those of NoisyMix Tables 2 and 3 that are not among them.
NFM_ROWS = (
    "baseline", "baseline_noise", "label_smoothing", "mixup", "cutmix", "puzzlemix", "manifold_mixup", "noisy_mixup",
    "nfm",
)  # fmt: skip
NOISYMIX_ROWS = ("augmix", "noisymix")
#: The rows of the two variations, which show how much depends on the number of epochs and on the network.
VARIED_ROWS = ("baseline", "baseline_noise", "mixup", "manifold_mixup", "noisy_mixup", "nfm")
_MORE_LEVELS = {"white_noise": (0.1, 0.2, 0.3, 0.5, 0.7), "salt_pepper": (0.02, 0.04, 0.1, 0.2)}
EVALUATION = Evaluation(
    **_MORE_LEVELS, images=2000, sequences=200, corruptions=("speckle_noise",), batch_size=256, precision="bfloat16"
)
#: Networks on CIFAR are attacked with smaller radii, since few epochs leave nothing at the larger ones.
CIFAR_EVALUATION = replace(EVALUATION, radii=tuple(radius / 255 for radius in (0.5, 1, 2, 4)))
SUITES = ("clean", "white_noise", "salt_pepper", "attacks", "corrupted", "flips", "calibration")

_FASHION = Training(
    data="fashion_mnist", model="fast_cnn", scheme=Scheme("baseline"), epochs=5, batch_size=256, learning_rate=0.1,
    model_options=(("in_channels", 1),), nesterov=True, weight_decay=5e-4, schedule="cosine", precision="bfloat16",
)  # fmt: skip
_LONG = replace(_FASHION, epochs=24, augmentation="crop_flip")
_PREACT = replace(
    _FASHION, model="preactresnet18", epochs=15, augmentation="crop_flip",
    model_options=(("shortcut", "released"), ("width", 8), ("in_channels", 1)),
)  # fmt: skip
_CIFAR = replace(
    _FASHION, data="cifar10", epochs=20, model_options=(("widths", (64, 128, 256)), ("stem", 32)),
    data_options=(("normalisation", "nfm_preprint"),), augmentation="crop_flip",
)  # fmt: skip
#: Narrower and shorter than on CIFAR-10: most rows of NoisyMix, and its ablation, have three views of each image.
_CIFAR100 = replace(
    _CIFAR, data="cifar100", epochs=8, batch_size=128, model_options=(("widths", (32, 64, 128)), ("stem", 16)),
)  # fmt: skip
#: So few images that the schemes cannot rank as in the papers; its networks are studied on the book's pages of theory.
_FIFTH = Training(
    data="cifar10", model="preactresnet18", scheme=Scheme("baseline"), epochs=15, batch_size=32, learning_rate=0.05,
    model_options=(("shortcut", "released"), ("width", 8)), data_options=(("normalisation", "nfm_preprint"),),
    samples=10_000, augmentation="crop_flip", nesterov=True, weight_decay=5e-4, schedule="cosine", final_rate=1e-6,
)  # fmt: skip
_FIFTH_ROWS = (
    *("baseline", "baseline_noise", "mixup", "cutmix", "manifold_mixup", "noisy_mixup", "nfm", "augmix", "noisymix"),
    "taylor_nfm",
)
#: How many times as long `puzzlemix-long` trains as `puzzlemix`.
LONGER = 2

_CHOSEN = "chosen by the accuracy of the baseline alone, on training images held out for that"
_SCHEDULE = ("batch_size, schedule", "256 with a cosine to 0: the papers have 128, and one of them has steps")
_COMMON = (
    ("precision", "bfloat16 in training and evaluation, for speed: the papers have float32"),
    ("evaluation", "2,000 test images under attacks and corruptions, 200 sequences for flips"),
)
_DATA = ("data", "Fashion-MNIST instead of CIFAR-10, since it may be part of this repository")
_CHOICES = {
    "fashion-compact": (
        _DATA,
        _SCHEDULE,
        ("model, epochs, learning_rate", f"a fast network, 5, 0.1: {_CHOSEN}"),
        ("augmentation", "none: with crop and flip the baseline needs more epochs"),
    ),
    "fashion-long": (
        _DATA,
        _SCHEDULE,
        ("model, epochs", "a fast network, 24: to see how much the picture depends on the number of epochs"),
    ),
    "fashion-preact": (
        _DATA,
        _SCHEDULE,
        ("model_options.width, epochs", "8 instead of 64, 15 instead of 200"),
    ),
    "cifar10-compact": (
        _SCHEDULE,
        ("model, epochs, learning_rate", f"a fast network, 20, 0.1: {_CHOSEN}"),
    ),
}
_CHOICES["cifar100-compact"] = _CHOICES["cifar100-ablation"] = (
    ("model, epochs, batch_size", f"a fast network of half the width of that for CIFAR-10, 8, 128: {_CHOSEN}"),
    ("schedule", "a cosine to 0: one of the papers has steps"),
)
_FIFTH_CHOICES = (
    ("samples, model_options.width, epochs", "10,000 instead of 50,000, 8 instead of 64, 15 instead of 200: for speed"),
    ("batch_size, learning_rate", "32 and 0.05: the network needs more steps to be trained in so few epochs"),
)
_LONGER_CHOICE = (("epochs", f"{LONGER} times those of the other rows; the paper has 1,200 instead of 200"),)


def _study(name: str, base: Training, rows: Iterable[str], seeds: tuple[int, ...]) -> Iterator[Recipe]:
    for row in rows:
        training = replace(base, scheme=shorter(SCHEMES[row]), views=VIEWS.get(row, ""))
        choices = (*_CHOICES[name], *_COMMON, *row_choices(row))
        evaluation = CIFAR_EVALUATION if base.data.startswith("cifar") else EVALUATION
        yield Recipe(f"{name}/{row}", "compact", training, SUITES, seeds, choices, evaluation=evaluation)


def _fifth() -> Iterator[Recipe]:
    """The networks on a fifth of CIFAR-10, measured as in the papers but for the attacks."""
    for row in _FIFTH_ROWS:
        training = replace(_FIFTH, scheme=shorter(SCHEMES[row]), views=VIEWS.get(row, ""))
        suites = tuple(suite for suite in SUITES if suite != "flips")
        yield Recipe(
            f"cifar10-preact/{row}", "compact", training, suites, (1, 2, 3), (*_FIFTH_CHOICES, *row_choices(row)),
            evaluation=Evaluation(radii=(2 / 255, 4 / 255)),
        )  # fmt: skip


def _longer(recipe: Recipe) -> Recipe:
    """PuzzleMix trained for longer, a row of NFM Table 2."""
    training = replace(recipe.training, epochs=LONGER * recipe.training.epochs)
    return replace(recipe, name=f"{recipe.name}-long", training=training, choices=(*recipe.choices, *_LONGER_CHOICE))


def _ablation(known: Iterable[Recipe]) -> Iterator[Recipe]:
    """The rows of NoisyMix Table 4 with their schemes, on the network of this size."""
    for recipe in known:
        table, _, row = recipe.name.partition("/")
        if table == "noisymix-table4":
            training = replace(_CIFAR100, scheme=recipe.training.scheme, views=recipe.training.views)
            own = (choice for choice in recipe.choices if not choice[0].startswith("model_options"))
            choices = (*_CHOICES["cifar100-ablation"], *_COMMON, *own)
            yield Recipe(
                f"cifar100-ablation/{row}", "compact", training, SUITES, (1, 2, 3), choices, evaluation=CIFAR_EVALUATION
            )


def recipes(known: Iterable[Recipe]) -> list[Recipe]:
    """The recipes of this size. The rows of the ablation have the schemes of the `known` recipes."""
    five, three, tables = (1, 2, 3, 4, 5), (1, 2, 3), (*NFM_ROWS, *NOISYMIX_ROWS)
    cifar100 = list(_study("cifar100-compact", _CIFAR100, tables, three))
    return [
        *_study("fashion-compact", _FASHION, (*tables, *(name for name in SCHEMES if name not in tables)), five),
        *_study("cifar10-compact", _CIFAR, tables, three),
        *cifar100,
        *(_longer(recipe) for recipe in cifar100 if recipe.name.endswith("/puzzlemix")),
        *_ablation(known),
        *_study("fashion-long", _LONG, VARIED_ROWS, three),
        *_study("fashion-preact", _PREACT, VARIED_ROWS, three),
        *_fifth(),
    ]
