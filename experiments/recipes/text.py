"""The papers' text where it differs from their released code: recipes `TABLE-text/ROW` and `digits-text/ROW`.

The recipes of the tables follow the released code, which produced the printed numbers. These follow the text:

| | released code | text |
|---|---|---|
| noise | level times a Beta(2, 5) draw in each call; uniform multiplicative noise | fixed level; here normal noise |
| NoisyMix | two thirds of the noise set to zero, level × 1, 2, 3 by view | neither |
| PreActResNet-18 | identity shortcuts carry ReLU(BN(x)) | the network of its authors: they carry x |
| WRN-28 | k = 4, changed in other points | k = 2, the network of its authors |

(Protocol, sections 1, 3 and 7.) Names of schemes end in `_text`, so that no result is mistaken for one of the printed
rows. A row where text and code agree has no recipe here. `digits-text` also has recipes with one change at a time.
`ROW-moments` has normal noise with the second moments of the released noise; in the second-order theory it is the same
training.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from .recipe import Recipe, Scheme, Training

#: Tables whose trainings have a counterpart here. The other tables show the same networks.
SOURCES = (
    *("nfm-table1", "nfm-table2", "nfm-table3"),
    *("noisymix-table1", "noisymix-table2", "noisymix-table3", "noisymix-table4"),
)
_DIGITS = ("baseline", "baseline_noise", "noisy_mixup", "nfm", "noisymix")
_STANDARD = {"shortcut": "standard"}
_NETWORKS = {
    **dict.fromkeys(("preactresnet18", "wideresnet18", "digits_resnet"), _STANDARD),
    "wideresnet28": {"widen": 2, "released": False},
}
_NOISE = (
    ("noise", "normal: the text requires zero mean and finite variance but names no law"),
    (
        "add_noise, mult_noise",
        "the numbers of the released commands, used as standard deviations: the text has no numbers",
    ),
)
_OPTIONS = {
    "shortcut": "standard, as in the network that the text names; the released code carries the activated features",
    "widen": "2, as in the text; every version of the code has 4",
    "released": "no: strides, biases, shortcuts and the last BatchNorm as in the paper on wide residual networks",
}
_MOMENTS = (("noise", "normal, with the second moments of the released law to four decimals: no paper has this law"),)


def _noisy(scheme: Scheme) -> bool:
    return bool(scheme.add_noise or scheme.mult_noise)


def text_scheme(scheme: Scheme) -> Scheme:
    """The scheme as described in the text: normal noise, with one level for all views and no sparsity."""
    if not _noisy(scheme):
        return scheme
    return replace(scheme, noise="normal", sparsity=0.0, view_noise=())


def as_text(training: Training) -> Training:
    """A training as described in the text; unchanged where text and released code agree."""
    options = dict(training.model_options) | _NETWORKS.get(training.model, {})
    return replace(training, scheme=text_scheme(training.scheme), model_options=tuple(options.items()))


def _choices(recipe: Recipe) -> tuple[tuple[str, str], ...]:
    """The choices of the recipe that still hold, and those of the text's version."""
    changed = _NETWORKS.get(recipe.training.model, {})
    new = tuple((f"model_options.{name}", _OPTIONS[name]) for name in changed)
    new = (*new, *(_NOISE if _noisy(recipe.training.scheme) else ()))
    gone = {"noise", "view_noise", "sparsity", *(name for name, _ in new)}
    return (*(choice for choice in recipe.choices if choice[0] not in gone), *new)


def _named(recipe: Recipe, name: str, training: Training, choices: tuple[tuple[str, str], ...]) -> Recipe:
    scheme = replace(training.scheme, name=f"{recipe.training.scheme.name}_text")
    return replace(recipe, name=name, training=replace(training, scheme=scheme), choices=choices)


def _one_at_a_time(known: dict[str, Recipe]) -> Iterable[Recipe]:
    """The effect of each single difference, on digits."""
    nfm, noisymix = known["digits/nfm"], known["digits/noisymix"]
    law = {"noise": "normal", "sparsity": 0.0}
    rows = {
        "nfm-noise": (nfm, law, _NOISE),
        "nfm-moments": (nfm, law | {"add_noise": 0.1309, "mult_noise": 0.0378}, _MOMENTS),
        "noisymix-noise": (noisymix, law, _NOISE),
        "noisymix-levels": (noisymix, {"view_noise": ()}, ()),
        "noisymix-moments": (noisymix, law | {"add_noise": 0.0968, "mult_noise": 0.0559}, _MOMENTS),
    }
    for row, (recipe, changes, choices) in rows.items():
        scheme = replace(recipe.training.scheme, **changes)
        yield _named(recipe, f"digits-text/{row}", replace(recipe.training, scheme=scheme), choices)
    training = replace(nfm.training, model_options=as_text(nfm.training).model_options)
    yield _named(nfm, "digits-text/nfm-shortcut", training, (("model_options.shortcut", _OPTIONS["shortcut"]),))


def recipes(released: Iterable[Recipe]) -> list[Recipe]:
    """The text's version of every row of `SOURCES` that differs from its `released` recipe, and those on digits."""
    known = {recipe.name: recipe for recipe in released}
    found = []
    for recipe in known.values():
        table, _, row = recipe.name.partition("/")
        if table in SOURCES or (table == "digits" and row in _DIGITS):
            training = as_text(recipe.training)
            if training.hash != recipe.hash:
                found.append(_named(recipe, f"{table}-text/{row}", training, _choices(recipe)))
    return [*found, *_one_at_a_time(known)]
