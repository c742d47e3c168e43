"""Which noise does it? NFM with noise or mixing at some layers only, or of some kinds only: `STUDY/ROW`.

| studies | network, data, training |
|---|---|
| `fashion-where/...` | the fast network at a third of its width, on 10,000 images of Fashion-MNIST for 3 epochs |
| `fashion-where-full/...` | the fast network on all images for 5 epochs, as in `fashion-compact/...` but in float32 |
| `fashion-where-preact/...` | the papers' PreActResNet-18 at an eighth of its width, as in `fashion-preact/...`, but for 5 epochs |
| `cifar10-where/...` | the fast network on CIFAR-10, with the settings of `cifar100-compact/...` |

The rows of a study are its `interventions`; a knock-out removes one source from NFM, a knock-in adds one to Manifold
Mixup.

What we expected before any of these networks but plain ones was trained (`python -m experiments study where` prints the
share of each row):

| question | prediction of the expansion |
|---|---|
| which layer? | a row with mixing everywhere has the same share of NFM's gain over Manifold Mixup as its noise has of NFM's R2_add + R2_mult: more than half with noise at the input only (three quarters at the full width), a quarter or less at layer1, less further on; so noise at the input alone does more than at all hidden layers together |
| which kind? | likewise: the additive noise does nearly all, the multiplicative one little |
| mixing or noise? | R2_add and R2_mult do not depend on mixing, so noise without mixing helps more than mixing without noise |
| where to mix? | three quarters of R2 lie at the input; so mixing there only has three quarters of NFM's gain over noise without mixing, mixing at the hidden layers only a quarter |
| better levels? | levels with the same R2_add at each layer have more of it, so more robustness to white noise than NFM |

The gain is the accuracy under white noise. The networks of the prediction are trained plainly; its terms are means over
their epochs. Known before were two networks of each kind at the full width, on all images for 5 epochs: there noise at
the input alone was nearly as good as NFM, noise at the hidden layers alone hardly better than Manifold Mixup, and equal
R2_add no better than NFM.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from .recipe import Evaluation, Recipe, Scheme
from .schemes import SCHEMES

#: The eligible layers of all networks of these studies, and the levels of NFM at each: α, σ_add, σ_mult.
LAYERS = ("", "layer1", "layer2", "layer3")
NFM = SCHEMES["nfm"]
FULL = (NFM.alpha, NFM.add_noise, NFM.mult_noise)
_MIXING_ONLY = (NFM.alpha, 0.0, 0.0)
#: The studies that were run, their metric of the gain, and the seeds that are declared for the small one.
SMALL, LARGE, METRIC, SEEDS = "fashion-where", "fashion-where-full", "white_noise/0.5", tuple(range(1, 11))


@dataclass(frozen=True)
class Intervention:
    """NFM with other levels at some layers, or everywhere.

    Attributes:
        name: last part of the names of its recipes.
        words: what is different from NFM, in words.
        scheme: the scheme.
    """

    name: str
    words: str
    scheme: Scheme

    def levels(self, layer: str) -> tuple[float, float, float]:
        """α, σ_add and σ_mult at a layer."""
        law = self.scheme.laws(LAYERS)[layer]
        return law.alpha, law.add_noise, law.mult_noise


def _everywhere(name: str, words: str, **changes: float) -> Intervention:
    return Intervention(name, words, replace(NFM, name=f"nfm_{name.replace('-', '_')}", **changes))


def _at(name: str, words: str, levels: Mapping[str, tuple[float, float, float]]) -> Intervention:
    own = tuple((layer, *values) for layer, values in levels.items() if values != FULL)
    return Intervention(name, words, replace(NFM, name=f"nfm_{name.replace('-', '_')}", levels=own))


def _noise_at(name: str, words: str, *layers: str) -> Intervention:
    return _at(name, words, {layer: _MIXING_ONLY for layer in LAYERS if layer not in layers})


def _mixing_at(name: str, words: str, *layers: str) -> Intervention:
    return _at(name, words, {layer: (0.0, *FULL[1:]) for layer in LAYERS if layer not in layers})


#: By study, σ_add at each layer with the R2_add that NFM has at the input, and σ_add at the input alone with the whole
#: R2_add of NFM, from the record of `studies.where`. The other studies have no such rows.
EQUAL = {
    SMALL: {"": 0.4, "layer1": 0.58, "layer2": 0.87, "layer3": 1.64},
    LARGE: {"": 0.4, "layer1": 0.79, "layer2": 1.35, "layer3": 2.47},
}
TOTAL = {SMALL: 0.53, LARGE: 0.47}

_ROWS = (
    Intervention("baseline", "no mixing, no noise", SCHEMES["baseline"]),
    Intervention("manifold_mixup", "mixing everywhere, no noise", SCHEMES["manifold_mixup"]),
    Intervention("nfm", "mixing and noise everywhere", NFM),
    _noise_at("noise-input", "noise at the input only", ""),
    _noise_at("noise-hidden", "noise at the hidden layers only", *LAYERS[1:]),
    _everywhere("additive", "additive noise only", mult_noise=0.0),
    _everywhere("multiplicative", "multiplicative noise only", add_noise=0.0),
    _everywhere("no-mixing", "noise everywhere, no mixing", alpha=0.0),
    *(_noise_at(f"noise-{layer}", f"noise at {layer} only", layer) for layer in LAYERS[1:]),
    *(
        _noise_at(f"quiet-{layer}", f"no noise at {layer}", *(other for other in LAYERS if other != layer))
        for layer in LAYERS[1:]
    ),
    _mixing_at("mixing-input", "noise everywhere, mixing at the input only", ""),
    _mixing_at("mixing-hidden", "noise everywhere, mixing at the hidden layers only", *LAYERS[1:]),
    _everywhere("half", "half of the additive level everywhere", add_noise=NFM.add_noise / 2),
    _everywhere("double", "twice the additive level everywhere", add_noise=2 * NFM.add_noise),
)  # fmt: skip


def interventions(study: str) -> tuple[Intervention, ...]:
    """The rows of a study.

    Args:
        study: its name, the first part of the names of its recipes.
    """
    if study not in EQUAL:
        return _ROWS
    equal = {layer: (FULL[0], EQUAL[study][layer], FULL[2]) for layer in LAYERS}
    total = {layer: (FULL[0], 0.0 if layer else TOTAL[study], 0.0) for layer in LAYERS}
    return (
        *_ROWS,
        _at("equal", "the same R2_add at each layer", equal),
        _at("input-total", "additive noise at the input only, with the whole R2_add", total),
    )


#: Studies at the sizes of others, the one with the baseline of each, and what is different here.
_SIZES: dict[str, tuple[str, dict]] = {
    LARGE: ("fashion-compact", {}),
    "fashion-where-preact": ("fashion-preact", {"epochs": 5}),
    "cifar10-where": ("cifar100-compact", {"data": "cifar10"}),
}
_SIZE_CHOICES = {
    "fashion-where-preact": (("epochs", "5 of the 15 of fashion-preact: for speed"),),
    "cifar10-where": (("data", "CIFAR-10 with the network and the epochs that were chosen for CIFAR-100: for speed"),),
}
SUITES = ("clean", "white_noise", "attacks", "salt_pepper")
_SHORT = {
    "samples": 10_000, "epochs": 3, "batch_size": 64, "precision": "float32",
    "model_options": (("in_channels", 1), ("widths", (16, 32, 48)), ("stem", 8)),
}  # fmt: skip
_EVALUATION = Evaluation(white_noise=(0.3, 0.5), salt_pepper=(0.1,), radii=(8 / 255,), images=500, batch_size=256)
_SHORT_CHOICES = (
    ("data", "Fashion-MNIST instead of CIFAR-10, since it may be part of this repository"),
    (
        "samples, epochs, batch_size, model_options",
        "10,000 of 60,000 images, 3 epochs, 64, a third of the width of the fast network: chosen before the runs, by "
        "the time of a training alone",
    ),
    ("evaluation", "500 test images under attack"),
)


def _recipe(base: Recipe, study: str, one: Intervention, **changes) -> Recipe:
    own = (("scheme", f"{one.words}: no paper has this row"),) if one.scheme.name not in SCHEMES else ()
    base = replace(base, **changes)
    training = replace(base.training, scheme=one.scheme)
    choices = (*base.choices, *own)
    return replace(base, name=f"{study}/{one.name}", training=training, suites=SUITES, choices=choices)


def _in_float32(base: Recipe, changes: dict) -> dict:
    """What is different in float32, in which all processors compute: rows of two machines must not differ by that."""
    return {
        "training": replace(base.training, precision="float32", **changes),
        "evaluation": replace(base.evaluation, precision="float32"),
        "choices": tuple(choice for choice in base.choices if choice[0] != "precision"),
    }


def recipes(known: Iterable[Recipe]) -> list[Recipe]:
    """The recipes of all four studies, in float32.

    Args:
        known: recipes, among them the baselines of the compact size.
    """
    base = {recipe.name: recipe for recipe in known}
    fast = base["fashion-compact/baseline"]
    short = {
        "training": replace(fast.training, **_SHORT), "choices": _SHORT_CHOICES, "evaluation": _EVALUATION,
        "seeds": SEEDS,
    }  # fmt: skip
    found = [_recipe(fast, SMALL, one, **short) for one in interventions(SMALL)]
    for study, (size, changes) in _SIZES.items():
        plain = base[f"{size}/baseline"]
        own = _in_float32(plain, changes)
        own["choices"] += _SIZE_CHOICES.get(study, ())
        found += [_recipe(plain, study, one, seeds=SEEDS[:5], **own) for one in interventions(study)]
    return found
