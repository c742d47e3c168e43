"""How much of NFM is its second-order theory: each term alone, and NFM at smaller scales, on digits.

| recipes | what is trained |
|---|---|
| `digits-terms/...` | the plain loss and one regularizer, all of one source, or all; the exact schemes beside them |
| `digits-eps/...` | the exact loss L(ε) (labels unmixed) and its expansion, at several ε |
| `digits-terms-smooth/...`, `digits-eps-smooth/...` | the same with SiLU in place of ReLU |

With ReLU the terms with second derivatives of the network, R3, are zero almost everywhere, and training with one of
them alone is training the baseline: they have recipes for the smooth network only. R1 and R3 of the data alone have
none: they are linear in slope and curvature, the plain loss with one of them has no lower bound, and its training
diverges. A row that is one of `digits/...` is the same training.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from .recipe import Recipe, Scheme, Training
from .schemes import CHOICES, SCHEMES, TAYLOR_TERMS

#: Scales ε at which NFM and its expansion are trained; at 1 as NFM trains.
SCALES = (0.1, 0.25, 0.5, 0.75, 1.0)
SOURCES = {"data": TAYLOR_TERMS[:3], "noise": TAYLOR_TERMS[3:]}
#: Terms whose training alone diverges, and those that are trained alone.
UNBOUNDED = ("R1", "R3")
ALONE = tuple(term for term in TAYLOR_TERMS if term not in UNBOUNDED)
#: What a study has of `digits/...`, and noise at a random layer without mixing, which stands against the noise terms.
_KNOWN = ("baseline", "manifold_mixup", "nfm", "taylor_nfm")
_EXACT_NOISE = replace(SCHEMES["nfm"], name="feature_noise", alpha=0.0)
_SMOOTH = ("activation", "silu")
#: Accuracy only: the frames of the flip probability take as long as a training.
SUITES = ("clean", "white_noise", "attacks", "corrupted")
_SMOOTH_CHOICE = (("model_options.activation", "SiLU: ReLU has no second derivative to penalise"),)


def terms_scheme(row: str) -> Scheme:
    """Taylor-NFM with the terms of a row.

    Args:
        row: a name of `TAYLOR_TERMS` or of `SOURCES`.
    """
    return replace(SCHEMES["taylor_nfm"], name=f"taylor_{row.lower()}", terms=SOURCES.get(row, (row,)))


def _trainings(base: Training, schemes: Iterable[Scheme], *, smooth: bool) -> Iterator[tuple[Scheme, Training]]:
    options = (*base.model_options, _SMOOTH) if smooth else base.model_options
    for scheme in schemes:
        yield scheme, replace(base, scheme=scheme, model_options=options)


def _recipe(name: str, training: Training, *choices: tuple[str, str]) -> Recipe:
    smooth = _SMOOTH_CHOICE if _SMOOTH in training.model_options else ()
    return Recipe(name, "digits", training, SUITES, choices=(*choices, *smooth))


def _terms(base: Training, *, smooth: bool) -> Iterator[Recipe]:
    study = "digits-terms-smooth" if smooth else "digits-terms"
    exact = [SCHEMES[name] for name in _KNOWN] + [_EXACT_NOISE]
    for scheme, training in _trainings(base, exact, smooth=smooth):
        yield _recipe(f"{study}/{scheme.name}", training, *CHOICES.get(scheme.name, ()))
    rows = [row for row in (*ALONE, *SOURCES) if smooth or not row.startswith("R3")]
    for row, (scheme, training) in zip(rows, _trainings(base, map(terms_scheme, rows), smooth=smooth), strict=True):
        why = ("terms", f"{', '.join(scheme.terms)} only: no paper has this scheme")
        yield _recipe(f"{study}/{row}", training, why, ("eps", "1, at which NFM trains"))


def _scales(base: Training, *, smooth: bool) -> Iterator[Recipe]:
    study = "digits-eps-smooth" if smooth else "digits-eps"
    for scheme, training in _trainings(base, (SCHEMES["baseline"], SCHEMES["nfm"]), smooth=smooth):
        yield _recipe(f"{study}/{scheme.name}", training)
    for eps in SCALES:
        # Ids of the ledger have no point, and no row of a printed table may have the same
        suffix = f"_eps_{eps:g}".replace(".", "_")
        exact = replace(SCHEMES["nfm"], name=f"nfm{suffix}", eps=eps, form="unmixed")
        taylor = replace(SCHEMES["taylor_nfm"], name=f"taylor_nfm{suffix}", eps=eps)
        for row, (_, training) in zip(
            ("nfm", "taylor_nfm"), _trainings(base, (exact, taylor), smooth=smooth), strict=True
        ):
            why = ("eps", f"{eps:g}: no paper has a scale")
            form = (("form", "unmixed, as the loss at scales below 1 has to be"),) if row == "nfm" else ()
            yield _recipe(f"{study}/{row}-{eps:g}", training, why, *form)


def recipes(known: Iterable[Recipe]) -> list[Recipe]:
    """All of them.

    Args:
        known: recipes, with `digits/baseline`, whose budget all have.
    """
    base = next(recipe.training for recipe in known if recipe.name == "digits/baseline")
    return [recipe for study in (_terms, _scales) for smooth in (False, True) for recipe in study(base, smooth=smooth)]
