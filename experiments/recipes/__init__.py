"""Recipes: a named, frozen set of settings for each row of every published table, and for smaller sizes."""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cache

from nfm_theory.setting.checks import near

from . import compact, neighbors, ours, text, variations, where
from . import nfm_tables as nfm
from . import noisymix_tables as noisymix
from . import taylor_terms as second_order
from .recipe import SIZES, Evaluation, Recipe, Scheme, Training

__all__ = [
    "SIZES", "Evaluation", "Recipe", "Scheme", "Training", "all_recipes", "get_recipe", "in_bfloat16", "select_recipes",
]  # fmt: skip


@cache
def all_recipes() -> dict[str, Recipe]:
    """Every recipe by name, in the order of the tables."""
    found = [*nfm.recipes(), *noisymix.recipes(), *ours.recipes()]
    found += [*compact.recipes(found), *text.recipes(found), *second_order.recipes(found)]
    found += [*variations.recipes(found), *neighbors.recipes(), *where.recipes(found)]
    names = [recipe.name for recipe in found]
    if len(set(names)) != len(names):
        raise ValueError(f"recipes: expected different names, got {sorted({n for n in names if names.count(n) > 1})}.")
    return dict(zip(names, found, strict=True))


def get_recipe(name: str) -> Recipe:
    """A recipe by name. The error for an unknown name proposes the nearest one."""
    known = all_recipes()
    if name not in known:
        raise ValueError(
            f"recipe: there is no {name!r}{near(name, known)}; `python -m experiments recipes list` shows them all."
        )
    return known[name]


def in_bfloat16(recipe: Recipe) -> Recipe:
    """The recipe with a training in bfloat16 (autocast), which is another training with another hash.

    Initial weights come from the other training in bfloat16 as well.

    Args:
        recipe: a recipe.
    """
    if recipe.training.precision == "bfloat16":
        return recipe
    training = replace(recipe.training, precision="bfloat16")
    if training.pretrained:
        start = next((one for one in all_recipes().values() if one.hash == training.pretrained), None)
        training = replace(training, pretrained=in_bfloat16(start).hash if start else training.pretrained)
    choices = (*recipe.choices, ("precision", "bfloat16, asked for by the user: the papers have float32"))
    return replace(recipe, training=training, choices=choices)


def select_recipes(*patterns: str, size: str | None = None) -> list[Recipe]:
    """Recipes whose names match one of the patterns, in the order of the tables.

    Args:
        *patterns: names or patterns with `*` and `?` as in a shell; all recipes if there are none. A pattern that
            matches nothing is an error.
        size: only recipes of this size.
    """
    if size is not None and size not in SIZES:
        raise ValueError(f"size: expected one of {SIZES}, got {size!r}.")
    chosen = [r for r in all_recipes().values() if size in (None, r.size)]
    for pattern in patterns:
        if not any(fnmatchcase(r.name, pattern) for r in chosen):
            where = f" of size {size}" if size else ""
            raise ValueError(f"recipe: nothing matches {pattern!r}{where}{near(pattern, all_recipes())}.")
    return [r for r in chosen if not patterns or any(fnmatchcase(r.name, p) for p in patterns)]
