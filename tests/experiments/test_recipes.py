"""Recipes against the printed tables: which exist, how they are named and found, and those of the compact size."""

from collections import Counter
from dataclasses import FrozenInstanceError, fields, replace

import pytest

from experiments.recipes import (
    SIZES,
    Evaluation,
    Recipe,
    Scheme,
    Training,
    all_recipes,
    get_recipe,
    select_recipes,
    variations,
)
from experiments.recipes.schemes import SCHEMES
from experiments.tables.published import ABLATION, load_published
from experiments.tables.registry import TABLES

PAPER = select_recipes(size="paper")
#: Names of table rows where the recipe has another: the ablation by its switches, rows with an α or epochs.
RENAMED = {
    "noise": "baseline_noise", "noise_injection": "baseline_noise",
    "nfm/alpha=0.2": "nfm-alpha0.2", "nfm/alpha=1.0": "nfm-alpha1.0",
    "puzzlemix/epochs=200": "puzzlemix-epochs200", "puzzlemix/epochs=1200": "puzzlemix-epochs1200",
}  # fmt: skip


def rows(table):
    return {name.partition("/")[2] for name in all_recipes() if name.startswith(f"{table}/")}


# The whole ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", TABLES)
def test_every_printed_row_has_a_recipe_and_every_recipe_a_row(table):
    printed = [row for row in load_published().rows(table) if row != "augmax"]
    if table == "noisymix-table4":
        names = {scheme: "".join(map(str, switches)) for switches, scheme in ABLATION.items()}
        expected = {names[row] for row in printed}
    elif table.endswith("toy") or table.endswith("figure4"):
        expected = set(printed)
    else:
        expected = {RENAMED.get(row, row) for row in printed}
    found = rows(table)
    if table in ("noisymix-table2", "noisymix-table3", "noisymix-table5"):
        expected = {f"{data}-{row}" for data in ("cifar10", "cifar100") for row in expected}
    assert found == expected


def test_names_are_unique_and_say_the_table():
    known = all_recipes()
    assert Counter(r.name for r in known.values()).most_common(1)[0][1] == 1
    assert all(name == recipe.name and name.count("/") == 1 for name, recipe in known.items())
    assert {r.size for r in known.values()} == set(SIZES)


def test_recipes_are_frozen_and_hashable():
    for recipe in all_recipes().values():
        for record, name in ((recipe, "name"), (recipe.training, "epochs"), (recipe.training.scheme, "alpha")):
            with pytest.raises(FrozenInstanceError):
                setattr(record, name, 0)
        hash(recipe)


def test_each_hash_stands_for_one_training():
    settings = {}
    for recipe in all_recipes().values():
        plain = replace(recipe.training, scheme=replace(recipe.training.scheme, name="any"))
        assert settings.setdefault(recipe.hash, plain) == plain, recipe.name
    assert len(set(settings.values())) == len(settings)


# The compact size -----------------------------------------------------------------------------------------------


#: The studies of the compact size, and the rows of the papers' tables that each has.
COMPACT = {
    "fashion-compact": ("nfm-table1", "noisymix-table2"), "cifar10-compact": ("nfm-table1", "noisymix-table2"),
    "cifar100-compact": ("nfm-table2", "noisymix-table2"), "cifar100-ablation": ("noisymix-table4",),
}  # fmt: skip


@pytest.mark.parametrize("study", COMPACT)
def test_the_compact_size_has_every_row_with_its_scheme(study):
    own = {r.name.partition("/")[2]: r.training for r in select_recipes(f"{study}/*", size="compact")}
    for table in COMPACT[study]:
        for recipe in select_recipes(f"{table}/*"):
            row = recipe.name.partition("/")[2].removeprefix("cifar100-").removeprefix("cifar10-")
            row = {"puzzlemix-epochs200": "puzzlemix", "puzzlemix-epochs1200": "puzzlemix-long"}.get(row, row)
            assert own[row].scheme == recipe.training.scheme, recipe.name
            assert own[row].views == recipe.training.views, recipe.name


def test_all_rows_of_a_compact_study_are_trained_alike():
    """So that no scheme has a network, a rate or a number of epochs that suits it, but for a row that is about that."""
    studies, longer = {}, get_recipe("cifar100-compact/puzzlemix-long")
    for recipe in select_recipes(size="compact"):
        study = recipe.name.partition("/")[0]
        if study.endswith("-variations") or recipe is longer:
            continue
        plain = replace(recipe.training, scheme=Scheme("any"), views="")
        studies.setdefault(study, set()).add(plain)
        assert {"precision", "evaluation"} <= set(dict(recipe.choices)) or plain.precision == "float32"
    assert {len(trainings) for trainings in studies.values()} == {1}
    short = get_recipe("cifar100-compact/puzzlemix").training
    assert longer.training == replace(short, epochs=2 * short.epochs)
    assert dict(longer.choices)["epochs"].startswith("2 times")
    assert set(COMPACT) < set(studies)
    everything = {r.name.partition("/")[2] for r in select_recipes("fashion-compact/*")}
    assert everything == set(SCHEMES)


def test_the_compact_size_is_measured_at_the_levels_of_the_papers_and_beyond():
    usual = Evaluation()
    for recipe in select_recipes(size="compact"):
        own = recipe.evaluation
        if recipe.name.startswith("cifar10-preact/"):
            assert own == Evaluation(radii=(2 / 255, 4 / 255)), recipe.name
            continue
        if recipe.name.startswith("fashion-where/"):  # one question, at two levels that were chosen before
            assert (own.white_noise, own.images, own.precision) == ((0.3, 0.5), 500, "float32")
            continue
        assert set(usual.white_noise) < set(own.white_noise)
        assert set(usual.salt_pepper) < set(own.salt_pepper)
        one_arithmetic = "-where" in recipe.name  # their rows are compared across machines
        assert (own.images, own.precision) == (2000, "float32" if one_arithmetic else "bfloat16")
        assert recipe.training.precision == own.precision
        assert len(set(usual.radii) & set(own.radii)) >= 3


@pytest.mark.parametrize("one", variations.VARIATIONS, ids=lambda one: one.name)
def test_a_variation_changes_what_it_says_and_nothing_else(one):
    outside = {"epochs10": {"epochs"}, "epochs24": {"epochs"}, "wide": {"model_options"}, "rate0.01": {"learning_rate"}}
    allowed = outside.get(one.name, set())
    inside = {"cross_entropy": {"loss"}, "input": {"layers"}, "half": {"add_noise", "mult_noise"},
              "normal": {"noise", "sparsity", "view_noise"}}.get(one.name, set())  # fmt: skip
    for row in one.rows:
        recipe = get_recipe(f"{one.study}/{row}-{one.name}")
        base, varied = get_recipe(f"{one.base}/{row}").training, recipe.training
        differing = {f.name for f in fields(Training) if getattr(base, f.name) != getattr(varied, f.name)}
        schemes = {f.name for f in fields(Scheme) if getattr(base.scheme, f.name) != getattr(varied.scheme, f.name)}
        assert differing - {"scheme"} == allowed
        assert schemes - {"name"} <= inside
        assert (allowed and not schemes) or "name" in schemes
        assert ("variation", one.words) in recipe.choices


def test_the_variation_without_a_setting_of_its_own_halves_the_noise():
    base, varied = (get_recipe(n).training.scheme for n in ("fashion-compact/nfm", "fashion-variations/nfm-half"))
    assert (varied.add_noise, varied.mult_noise) == (base.add_noise / 2, base.mult_noise / 2) == (0.2, 0.1)


# Selection ------------------------------------------------------------------------------------------------------


def test_selection_by_name_pattern_and_size():
    assert [r.name for r in select_recipes("digits/nfm")] == ["digits/nfm"]
    assert [r.name for r in select_recipes("nfm-table?/nfm")] == ["nfm-table1/nfm", "nfm-table2/nfm"]
    assert select_recipes() == list(all_recipes().values())
    assert {r.size for r in select_recipes("*nfm*", size="compact")} == {"compact"}
    both = select_recipes("digits/nfm", "digits/baseline", "digits/n*")
    assert [r.name for r in both] == ["digits/baseline", "digits/noisy_mixup", "digits/nfm", "digits/noisymix"]


def test_wrong_names_are_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"there is no 'digits/nmf'.*digits/nfm"):
        get_recipe("digits/nmf")
    with pytest.raises(ValueError, match="nothing matches 'digits/x"):
        select_recipes("digits/nfm", "digits/x*")
    with pytest.raises(ValueError, match="nothing matches 'digits/nfm' of size paper"):
        select_recipes("digits/nfm", size="paper")
    with pytest.raises(ValueError, match=r"size: expected one of .*, got 'tiny'"):
        select_recipes(size="tiny")
    with pytest.raises(ValueError, match=r"size: expected one of .*, got 'huge'"):
        Recipe("a/b", "huge", PAPER[0].training, ("clean",))
