"""Variations of the compact size: what could be the reason if a claim fails there.

`fashion-variations/ROW-VARIATION` is the training of `fashion-compact/ROW` with one setting changed, and
`cifar100-variations/ROW-VARIATION` that of `cifar100-compact/ROW`:

| variation | changed | question |
|---|---|---|
| `epochs10` | 10 epochs instead of 5 | do mixing and noise only need more time? |
| `epochs24` | 24 epochs instead of 8, on CIFAR-100 | the same |
| `wide` | twice the channels | is the network too small for them? |
| `rate0.01` | a tenth of the learning rate | does PuzzleMix owe its robustness to small steps? |
| `cross_entropy` | the loss of all other rows in PuzzleMix | the same: its own loss has smaller gradients |
| `input` | NFM at the input alone | does it depend on the layers? |
| `normal` | normal noise of fixed level, as in the papers' text | does it depend on the law of the noise? |
| `half` | half the levels of the noise | is the noise too strong for this size? |

They stand beside no table. `claims.varied` says what becomes of a claim in them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from .recipe import Recipe, Scheme
from .text import text_scheme


@dataclass(frozen=True)
class Variation:
    """A change of the training, and the rows that are trained with it.

    Attributes:
        name: the last part of the names of its recipes.
        words: the change in words.
        rows: the rows.
        training: changed fields of the training.
        scheme: changes the scheme.
        base: study whose rows are changed.
    """

    name: str
    words: str
    rows: tuple[str, ...]
    training: dict = field(default_factory=dict)
    scheme: Callable[[Scheme], Scheme] = lambda scheme: scheme
    base: str = "fashion-compact"

    @property
    def study(self) -> str:
        """The first part of the names of its recipes."""
        return self.base.replace("compact", "variations")

    def recipe_of(self, base: Recipe) -> Recipe:
        """The recipe with the change."""
        scheme = base.training.scheme
        changed = self.scheme(scheme)
        if changed != scheme:
            changed = replace(changed, name=f"{scheme.name}_{self.name}")
        return replace(
            base, name=f"{self.study}/{base.name.partition('/')[2]}-{self.name}", seeds=(1, 2, 3),
            training=replace(base.training, scheme=changed, **self.training),
            choices=(*base.choices, ("variation", self.words)),
        )  # fmt: skip


def _with(**changes) -> Callable[[Scheme], Scheme]:
    return lambda scheme: replace(scheme, **changes)


def _half_noise(scheme: Scheme) -> Scheme:
    return replace(scheme, add_noise=scheme.add_noise / 2, mult_noise=scheme.mult_noise / 2)


_MIXED = ("baseline", "mixup", "manifold_mixup", "nfm")
_WIDE = (("in_channels", 1), ("widths", (96, 192, 256)), ("stem", 48))
VARIATIONS = (
    Variation(
        "epochs10", "10 epochs instead of 5", (*_MIXED, "puzzlemix", "augmix", "noisymix"), training={"epochs": 10}
    ),
    Variation("wide", "twice the channels", (*_MIXED, "puzzlemix"), training={"model_options": _WIDE}),
    Variation(
        "rate0.01", "a tenth of the learning rate", ("baseline", "puzzlemix", "nfm"), training={"learning_rate": 0.01}
    ),
    Variation("cross_entropy", "PuzzleMix with cross entropy", ("puzzlemix",), scheme=_with(loss="cross_entropy")),
    Variation("input", "NFM at the input alone", ("nfm",), scheme=_with(layers="input")),
    Variation("normal", "normal noise of fixed level", ("nfm", "noisymix"), scheme=text_scheme),
    Variation("half", "half the levels of the noise", ("nfm", "noisymix"), scheme=_half_noise),
    Variation(
        "epochs24", "24 epochs instead of 8", ("baseline", "manifold_mixup", "nfm", "augmix", "noisymix"),
        training={"epochs": 24}, base="cifar100-compact",
    ),
    Variation(
        "cross_entropy", "PuzzleMix with cross entropy", ("puzzlemix",), scheme=_with(loss="cross_entropy"),
        base="cifar100-compact",
    ),
)  # fmt: skip


def recipes(known: Iterable[Recipe]) -> list[Recipe]:
    """The recipes of all variations."""
    base = {recipe.name: recipe for recipe in known}
    return [one.recipe_of(base[f"{one.base}/{row}"]) for one in VARIATIONS for row in one.rows]
