"""How much of NFM's effect its second-order theory explains: each term alone, and NFM at smaller scales, on digits.

| recipes | what is trained |
|---|---|
| `digits-terms/...` | the plain loss with one, some or all regularizers; for comparison the exact schemes |
| `digits-eps/...` | the exact loss L(ε) (with unmixed labels) and its expansion, at several ε |
| `digits-terms-smooth/...`, `digits-eps-smooth/...` | the same with SiLU instead of ReLU |

With ReLU the R3 terms, which contain second derivatives of the network, are zero almost everywhere. Training with one
of them alone is the same as training the baseline, so only the smooth network has recipes for them. R1 and R3 have no
recipes of their own: they are linear in slope and curvature, the plain loss with one of them has no lower bound, and
training diverges. A row that also occurs in `digits/...` is the same training.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from .ours import DIGITS_EVALUATION
from .recipe import Recipe, Scheme, Training
from .schemes import CHOICES, SCHEMES, TAYLOR_TERMS

#: Scales ε at which NFM and its expansion are trained. NFM itself has scale 1.
SCALES = (0.1, 0.25, 0.5, 0.75, 1.0)
SOURCES = {"data": TAYLOR_TERMS[:3], "noise": TAYLOR_TERMS[3:]}
#: Terms with which training diverges if there are no others, and terms that are trained alone.
UNBOUNDED = ("R1", "R3")
ALONE = tuple(term for term in TAYLOR_TERMS if term not in UNBOUNDED)
#: Exact schemes for comparison: some of `digits/...`, and noise at a random layer without mixing, for the noise terms.
_KNOWN = ("baseline", "manifold_mixup", "nfm", "taylor_nfm")
_EXACT_NOISE = replace(SCHEMES["nfm"], name="feature_noise", alpha=0.0)
_SMOOTH = ("activation", "silu")
#: Accuracy only, since the flip probability takes as long as a training.
SUITES = ("clean", "white_noise", "attacks", "corrupted")
_SMOOTH_CHOICE = (
    ("model_options.activation", "SiLU: the second derivative of ReLU is zero, so there is nothing to penalise"),
)


def terms_scheme(row: str) -> Scheme:
    """Taylor-NFM with the terms of a row, a name of `TAYLOR_TERMS` or of `SOURCES`."""
    return replace(SCHEMES["taylor_nfm"], name=f"taylor_{row.lower()}", terms=SOURCES.get(row, (row,)))


def _trainings(base: Training, schemes: Iterable[Scheme], *, smooth: bool) -> Iterator[tuple[Scheme, Training]]:
    options = (*base.model_options, _SMOOTH) if smooth else base.model_options
    for scheme in schemes:
        yield scheme, replace(base, scheme=scheme, model_options=options)


def _recipe(name: str, training: Training, *choices: tuple[str, str]) -> Recipe:
    smooth = _SMOOTH_CHOICE if _SMOOTH in training.model_options else ()
    return Recipe(name, "digits", training, SUITES, choices=(*choices, *smooth), evaluation=DIGITS_EVALUATION)


def _terms(base: Training, *, smooth: bool) -> Iterator[Recipe]:
    study = "digits-terms-smooth" if smooth else "digits-terms"
    exact = [SCHEMES[name] for name in _KNOWN] + [_EXACT_NOISE]
    for scheme, training in _trainings(base, exact, smooth=smooth):
        yield _recipe(f"{study}/{scheme.name}", training, *CHOICES.get(scheme.name, ()))
    rows = [row for row in (*ALONE, *SOURCES) if smooth or not row.startswith("R3")]
    for row, (scheme, training) in zip(rows, _trainings(base, map(terms_scheme, rows), smooth=smooth), strict=True):
        why = ("terms", f"{', '.join(scheme.terms)} only: no paper has this scheme")
        yield _recipe(f"{study}/{row}", training, why, ("eps", "1, the scale of NFM itself"))


def _scales(base: Training, *, smooth: bool) -> Iterator[Recipe]:
    study = "digits-eps-smooth" if smooth else "digits-eps"
    for scheme, training in _trainings(base, (SCHEMES["baseline"], SCHEMES["nfm"]), smooth=smooth):
        yield _recipe(f"{study}/{scheme.name}", training)
    for eps in SCALES:
        # Names in the ledger have no point, and must differ from those of the printed rows
        suffix = f"_eps_{eps:g}".replace(".", "_")
        exact = replace(SCHEMES["nfm"], name=f"nfm{suffix}", eps=eps, form="unmixed")
        taylor = replace(SCHEMES["taylor_nfm"], name=f"taylor_nfm{suffix}", eps=eps)
        for row, (_, training) in zip(
            ("nfm", "taylor_nfm"), _trainings(base, (exact, taylor), smooth=smooth), strict=True
        ):
            why = ("eps", f"{eps:g}: the papers have no scale")
            form = (("form", "unmixed labels, which the loss at scales below 1 needs"),) if row == "nfm" else ()
            yield _recipe(f"{study}/{row}-{eps:g}", training, why, *form)


def recipes(known: Iterable[Recipe]) -> list[Recipe]:
    """All recipes of the studies. Their trainings are variants of `digits/baseline`, one of the `known` recipes."""
    base = next(recipe.training for recipe in known if recipe.name == "digits/baseline")
    return [recipe for study in (_terms, _scales) for smooth in (False, True) for recipe in study(base, smooth=smooth)]
