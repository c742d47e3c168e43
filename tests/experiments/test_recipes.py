"""Recipes against facts typed from the protocol, and against the printed tables."""

import dataclasses
from collections import Counter
from dataclasses import FrozenInstanceError, dataclass, fields, replace

import pytest

from experiments.data.cifar import NORMALISATION
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
from experiments.recipes.recipe import _changed
from experiments.recipes.schemes import SCHEMES
from experiments.tables.published import ABLATION, load_published
from experiments.tables.registry import TABLES
from experiments.training.optimization import learning_rate

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


# The hash -------------------------------------------------------------------------------------------------------


def test_a_new_setting_at_its_default_leaves_hashes_alone():
    extra = [("novelty", float, dataclasses.field(default=0.5)), ("more", tuple, dataclasses.field(default=()))]
    wider_scheme = dataclasses.make_dataclass("WiderScheme", extra, bases=(Scheme,), frozen=True)
    wider = dataclasses.make_dataclass("WiderTraining", extra, bases=(Training,), frozen=True)

    def plain(record):
        return {f.name: getattr(record, f.name) for f in fields(record)}

    for recipe in all_recipes().values():
        scheme = wider_scheme(**plain(recipe.training.scheme))
        training = wider(**plain(recipe.training) | {"scheme": scheme})
        assert training.hash == recipe.hash
    assert replace(training, novelty=1.0).hash != recipe.hash
    assert replace(training, scheme=replace(scheme, more=(1,))).hash != recipe.hash


def test_only_changes_count():
    @dataclass(frozen=True)
    class Inner:
        name: str
        a: int = 1

    @dataclass(frozen=True)
    class Outer:
        inner: Inner
        need: int
        b: float = 2.0

    assert _changed(Outer(Inner("x"), 3)) == {"inner": {}, "need": 3}
    assert _changed(Outer(Inner("y", a=5), 3, 0.0)) == {"inner": {"a": 5}, "need": 3, "b": 0.0}


def test_hashes_are_those_of_finished_results():
    """Typed from an earlier state: another hash for the same settings orphans the results in every ledger."""
    noisy = {"add_noise": 0.5, "mult_noise": 0.5, "sparsity": 0.65, "view_noise": (1.0, 2.0, 3.0), "jsd": 12.0}
    digits = Training(
        data="digits", model="digits_resnet", scheme=Scheme("any", alpha=1.0, layers="eligible", **noisy), epochs=20,
        batch_size=64, learning_rate=0.1, model_options=(("width", 8),), nesterov=True, weight_decay=5e-4,
        schedule="cosine", views="augmix",
    )  # fmt: skip
    assert digits.hash == "f4254a235e7f5357"
    rings = Training("toy_rings", "nfm_toy", Scheme("any"), 100, 300, 0.1, optimiser="adam", schedule="constant")
    assert rings.hash == "02963bc1f20328d8"


def test_every_setting_but_the_name_of_the_scheme_changes_the_hash():
    base = get_recipe("cifar10-preact/noisymix").training
    assert replace(base, scheme=replace(base.scheme, name="other")).hash == base.hash
    seen = {base.hash}
    for record, build in (
        (base, lambda **change: replace(base, **change)),
        (base.scheme, lambda **change: replace(base, scheme=replace(base.scheme, **change))),
    ):
        for field in fields(record):
            if field.name not in ("name", "scheme"):
                seen.add(build(**{field.name: "something else"}).hash)
    assert len(seen) == 1 + len(fields(Training)) - 1 + len(fields(Scheme)) - 1


@pytest.mark.parametrize(
    "names",
    [
        ("noisymix-table2/cifar10-noisymix", "noisymix-table7/noisymix", "noisymix-table13/noisymix"),
        ("noisymix-table2/cifar100-augmix", "noisymix-table8/augmix"),
        ("noisymix-table3/cifar10-nfm", "noisymix-table9/nfm", "noisymix-table14/nfm"),
        ("noisymix-table3/cifar100-noisymix", "noisymix-table10/noisymix", "noisymix-table4/1111"),
        ("noisymix-table3/cifar100-baseline", "noisymix-table4/0000"),
        ("noisymix-table3/cifar100-manifold_mixup", "noisymix-table4/0100"),
        ("noisymix-table3/cifar100-augmix", "noisymix-table4/1001"),
        ("noisymix-table1/cutmix", "noisymix-table6/cutmix", "noisymix-table11/cutmix", "noisymix-table12/cutmix"),
        ("nfm-table1/nfm", "nfm-figure5/cifar10-nfm", "nfm-figure6/cifar10-nfm"),
    ],
)
def test_rows_that_show_one_network_are_one_training(names):
    assert len({get_recipe(name).hash for name in names}) == 1


@pytest.mark.parametrize(
    "names",
    [
        ("noisymix-table1/stylized_imagenet", "noisymix-table1/baseline"),
        ("nfm-table1/baseline", "noisymix-table2/cifar10-baseline"),
        ("nfm-table2/puzzlemix-epochs200", "nfm-table2/puzzlemix-epochs1200"),
        ("nfm-table3/nfm-alpha0.2", "nfm-table3/nfm-alpha1.0"),
        ("noisymix-table5/cifar10-augmix", "noisymix-table5/cifar10-noisymix"),
    ],
)
def test_rows_that_show_other_networks_are_other_trainings(names):
    assert len({get_recipe(name).hash for name in names}) == len(names)


def test_a_transferred_network_starts_from_its_own_row_of_table_1():
    for recipe in select_recipes("noisymix-table5/*"):
        name = recipe.name.partition("-table5/")[2].partition("-")[2]
        assert recipe.training.pretrained == get_recipe(f"noisymix-table1/{name}").hash


# Facts of the protocol ------------------------------------------------------------------------------------------

_ALL = {"optimiser": "sgd", "momentum": 0.9, "learning_rate": 0.1, "precision": "float32", "samples": None}
_NFM = {**_ALL, "epochs": 200, "nesterov": False, "schedule": "steps", "milestones": (100, 150, 180)}
_MIX = {**_ALL, "epochs": 200, "nesterov": True, "schedule": "cosine", "final_rate": 1e-6}
_CIFAR = {"batch_size": 128, "weight_decay": 5e-4}
_IMAGENET = {"batch_size": 256, "weight_decay": 1e-4, "augmentation": "resized_crop", "data_options": (),
             "data": "imagenet", "model": "resnet50", "model_options": ()}  # fmt: skip
_NFM_CIFAR = {**_NFM, **_CIFAR, "augmentation": "crop_flip", "model_options": (("shortcut", "released"),),
              "data_options": (("normalisation", "nfm_preprint"),)}  # fmt: skip
_MIX_CIFAR = {**_MIX, **_CIFAR, "augmentation": "flip_crop", "data_options": (("normalisation", "half"),)}
_PREACT = {"model": "preactresnet18", "model_options": (("shortcut", "released"),)}
_WRN = {"model": "wideresnet28", "model_options": (("widen", 4),)}
_WRN2 = {"model": "wideresnet28", "model_options": (("widen", 2), ("released", False))}
_STANDARD = {"model_options": (("shortcut", "standard"),)}
FACTS = {
    "nfm-table1/*": _NFM_CIFAR | {"data": "cifar10", "model": "preactresnet18"},
    "nfm-table2/*": _NFM_CIFAR | {"data": "cifar100", "model": "wideresnet18"},
    "nfm-table3/*": _NFM | _IMAGENET,
    "nfm-figure5/cifar10-*": _NFM_CIFAR | {"data": "cifar10", "model": "preactresnet18"},
    "nfm-figure5/cifar100-*": _NFM_CIFAR | {"data": "cifar100", "model": "wideresnet18"},
    "nfm-figure6/*": _NFM_CIFAR | {"data": "cifar10", "model": "preactresnet18"},
    "noisymix-table2/cifar10-*": _MIX_CIFAR | _PREACT | {"data": "cifar10"},
    "noisymix-table2/cifar100-*": _MIX_CIFAR | _PREACT | {"data": "cifar100"},
    "noisymix-table3/cifar10-*": _MIX_CIFAR | _WRN | {"data": "cifar10"},
    "noisymix-table3/cifar100-*": _MIX_CIFAR | _WRN | {"data": "cifar100"},
    "noisymix-table4/*": _MIX_CIFAR | _WRN | {"data": "cifar100"},
    "noisymix-table5/*": {
        **_ALL, "model": "resnet50", "epochs": 150, "batch_size": 64, "weight_decay": 5e-4, "learning_rate": 0.001,
        "schedule": "steps", "milestones": (49, 99), "augmentation": "resized_crop", "image_size": 224,
        "nesterov": False,
    },
    **{f"noisymix-table{n}/*": _MIX | _IMAGENET for n in (1, 6, 11, 12)},
    **{f"noisymix-table{n}/*": _MIX_CIFAR | _PREACT for n in (7, 8, 13)},
    **{f"noisymix-table{n}/*": _MIX_CIFAR | _WRN for n in (9, 10, 14)},
    "nfm-vit/*": {"data": "cifar10", "model": "vit", "optimiser": "adam", "schedule": "cosine", "epochs": 200},
    "nfm-table1-text/*": _NFM_CIFAR | _STANDARD | {"data": "cifar10", "model": "preactresnet18"},
    "nfm-table2-text/*": _NFM_CIFAR | _STANDARD | {"data": "cifar100", "model": "wideresnet18"},
    "nfm-table3-text/*": _NFM | _IMAGENET,
    "noisymix-table1-text/*": _MIX | _IMAGENET,
    "noisymix-table2-text/*": _MIX_CIFAR | _PREACT | _STANDARD,
    **{f"noisymix-table{n}-text/*": _MIX_CIFAR | _WRN2 for n in (3, 4)},
}  # fmt: skip


def test_the_facts_are_of_all_recipes_of_the_papers():
    assert {r.name for pattern in FACTS for r in select_recipes(pattern)} == {r.name for r in PAPER}


@pytest.mark.parametrize("pattern", FACTS)
def test_settings_are_those_of_the_protocol(pattern):
    for recipe in select_recipes(pattern):
        facts = dict(FACTS[pattern])
        if recipe.name.startswith("nfm-") and recipe.training.scheme.patch == "puzzlemix":
            facts |= {"batch_size": 100, "weight_decay": 1e-4, "nesterov": True, "epochs": recipe.training.epochs}
            facts["milestones"] = {200: (65, 132), 1200: (399, 799)}[recipe.training.epochs]
        if recipe.note:
            facts["data_options"] = recipe.training.data_options
        found = {name: getattr(recipe.training, name) for name in facts}
        assert found == facts, recipe.name


def scheme(name, **settings):
    return name, {"noise": "released", **settings}


_MIXED = {"alpha": 1.0, "layers": "eligible"}
_NOISYMIX = {**_MIXED, "sparsity": 0.65, "view_noise": (1.0, 2.0, 3.0), "jsd": 12.0}
LEVELS = [
    scheme("nfm-table1/baseline"),
    scheme("nfm-table1/baseline_noise", add_noise=0.2),
    scheme("nfm-table1/label_smoothing", label_smoothing=0.1),
    scheme("nfm-table1/mixup", alpha=1.0),
    scheme("nfm-table1/cutmix", alpha=1.0, patch="cutmix", probability=0.5),
    scheme("nfm-table1/puzzlemix", alpha=1.0, patch="puzzlemix", loss="binary"),
    scheme("noisymix-table2/cifar100-puzzlemix", alpha=1.0, patch="puzzlemix", loss="binary"),
    scheme("noisymix-table1/puzzlemix", alpha=1.0, patch="puzzlemix"),
    scheme("nfm-table1/manifold_mixup", **_MIXED),
    scheme("nfm-table2/noisy_mixup", alpha=1.0, add_noise=0.2, mult_noise=0.1),
    scheme("nfm-table2/nfm", **_MIXED, add_noise=0.4, mult_noise=0.2),
    scheme("nfm-figure5/cifar10-nfm_star", **_MIXED, add_noise=1.0, mult_noise=0.5),
    scheme("nfm-table3/manifold_mixup", alpha=0.2, layers="eligible"),
    scheme("nfm-table3/nfm-alpha0.2", alpha=0.2, layers="eligible", add_noise=0.1, mult_noise=0.1),
    scheme("nfm-table3/nfm-alpha1.0", **_MIXED, add_noise=0.1, mult_noise=0.1),
    scheme("noisymix-table2/cifar10-noisymix", **_NOISYMIX, add_noise=0.5, mult_noise=0.5),
    scheme("noisymix-table3/cifar100-noisymix", **_NOISYMIX, add_noise=0.5, mult_noise=0.5),
    scheme("noisymix-table3/cifar100-nfm", **_MIXED, add_noise=0.4, mult_noise=0.2),
    scheme("noisymix-table3/cifar100-augmix", jsd=12.0),
    scheme("noisymix-table1/noisymix", **_NOISYMIX, add_noise=0.4, mult_noise=0.4),
    scheme("noisymix-table1/manifold_mixup", alpha=0.2, layers="eligible"),
    scheme("noisymix-table1/cutmix", alpha=1.0, patch="cutmix", probability=1.0),
    scheme("noisymix-table1/adversarial", radius=4 / 255, replays=4, clamp=True),
    scheme("noisymix-table4/0000"),
    scheme("noisymix-table4/0010", layers="eligible", add_noise=0.5, mult_noise=0.5, sparsity=0.65),
    scheme("noisymix-table4/1110", **_MIXED, add_noise=0.5, mult_noise=0.5, sparsity=0.65),
    scheme("noisymix-table4/1101", **_MIXED, jsd=12.0),
    scheme("noisymix-table4/1011", **{**_NOISYMIX, "alpha": 0.0}, add_noise=0.5, mult_noise=0.5),
]


@pytest.mark.parametrize(("name", "levels"), LEVELS, ids=[name for name, _ in LEVELS])
def test_levels_are_those_of_the_protocol(name, levels):
    found = get_recipe(name).training.scheme
    assert found == Scheme(found.name, **levels)


def test_views_are_made_by_augmix_where_the_papers_do():
    made = {r.name: r.training.views for r in PAPER}
    for name, views in made.items():
        row = name.partition("/")[2].rpartition("-")[2]
        if name.startswith("noisymix-table4"):
            expected = "augmix" if row[0] == "1" else ""
        elif "table5" in name:
            expected = ""
        else:
            expected = {"augmix": "augmix", "noisymix": "augmix", "autoaugment": "autoaugment"}.get(row, "")
        assert views == expected, name


def runs_of_rates(training, steps=3):
    """Number of epochs at each rate, in order."""
    rates = [learning_rate(training, epoch * steps, steps) for epoch in range(training.epochs)]
    return [(round(rate, 12), sum(r == rate for r in rates)) for rate in dict.fromkeys(rates)]


def test_rates_fall_as_the_protocol_says():
    """0.1 for 101 epochs, then 50, 30, 19; PuzzleMix at 400 and 800; transfer every 50."""
    assert runs_of_rates(get_recipe("nfm-table1/nfm").training) == [(0.1, 101), (0.01, 50), (0.001, 30), (0.0001, 19)]
    puzzle = get_recipe("nfm-table2/puzzlemix-epochs1200").training
    assert runs_of_rates(puzzle) == [(0.1, 400), (0.01, 400), (0.001, 400)]
    transfer = get_recipe("noisymix-table5/cifar10-augmix").training
    assert runs_of_rates(transfer) == [(0.001, 50), (0.0001, 50), (0.00001, 50)]


def test_seeds_and_normalisation_are_those_of_the_protocol():
    for recipe in PAPER:
        one = recipe.training.data == "imagenet" or "table5" in recipe.name
        assert recipe.seeds == ((1,) if one else (1, 2, 3, 4, 5)), recipe.name
    assert NORMALISATION["half"] == ((0.5,) * 3, (0.5,) * 3)
    assert NORMALISATION["nfm_preprint"] == ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))


# The papers' text -----------------------------------------------------------------------------------------------

_ONE_LEVEL = {"noise": "normal", "alpha": 1.0, "layers": "eligible"}


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        ("nfm-table1-text/baseline", {}),
        ("nfm-table1-text/baseline_noise", {"noise": "normal", "add_noise": 0.2}),
        ("nfm-table2-text/nfm", {**_ONE_LEVEL, "add_noise": 0.4, "mult_noise": 0.2}),
        ("nfm-table3-text/nfm-alpha0.2", {**_ONE_LEVEL, "alpha": 0.2, "add_noise": 0.1, "mult_noise": 0.1}),
        ("noisymix-table1-text/noisymix", {**_ONE_LEVEL, "add_noise": 0.4, "mult_noise": 0.4, "jsd": 12.0}),
        ("noisymix-table3-text/cifar10-noisymix", {**_ONE_LEVEL, "add_noise": 0.5, "mult_noise": 0.5, "jsd": 12.0}),
        ("digits-text/noisymix", {**_ONE_LEVEL, "add_noise": 0.5, "mult_noise": 0.5, "jsd": 12.0}),
        ("digits-text/noisymix-levels", {**_NOISYMIX, "view_noise": (), "add_noise": 0.5, "mult_noise": 0.5}),
    ],
)
def test_the_text_has_fixed_normal_noise_of_one_level(name, levels):
    found = get_recipe(name).training.scheme
    assert found == Scheme(found.name, **levels)


def test_the_text_keeps_everything_else():
    for recipe in select_recipes("*-text/*"):
        if recipe.name.count("-moments") + recipe.name.count("-noise") + recipe.name.count("-levels"):
            continue
        source = get_recipe(recipe.name.replace("-text/", "/").removesuffix("-shortcut"))
        same = {"scheme": source.training.scheme, "model_options": source.training.model_options}
        assert replace(recipe.training, **same) == source.training
        assert (recipe.size, recipe.suites, recipe.seeds) == (source.size, source.suites, source.seeds)
        assert recipe.training.scheme.name.endswith("_text")  # or a table would take it for a printed row
        assert recipe.hash != source.hash


def test_every_row_that_the_text_changes_has_a_recipe_of_the_text():
    expected = {"nfm-table1": 9, "nfm-table2": 9, "nfm-table3": 2, "noisymix-table1": 1, "noisymix-table4": 10}
    expected |= {"noisymix-table2": 16, "noisymix-table3": 16}
    assert Counter(r.name.partition("-text/")[0] for r in select_recipes("*-text/*", size="paper")) == expected


@pytest.mark.parametrize(("scheme", "sparsity"), [("nfm", 0.0), ("noisymix", 0.65)])
def test_one_change_at_a_time_and_equal_second_moments(scheme, sparsity):
    released = get_recipe(f"digits/{scheme}").training
    matched = get_recipe(f"digits-text/{scheme}-moments").training
    assert matched.model_options == released.model_options
    second = 3 / 28 * (1 - sparsity)  # of Beta(2, 5) times a normal variable that is left out with probability s
    assert matched.scheme.add_noise == pytest.approx(released.scheme.add_noise * second**0.5, abs=5e-5)
    assert matched.scheme.mult_noise == pytest.approx(released.scheme.mult_noise * (second / 3) ** 0.5, abs=5e-5)
    law = get_recipe(f"digits-text/{scheme}-noise").training
    assert replace(law.scheme, noise="released", sparsity=sparsity, name=scheme) == released.scheme
    only = get_recipe("digits-text/nfm-shortcut").training
    assert replace(only.scheme, name="nfm") == get_recipe("digits/nfm").training.scheme


# What is our choice ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("nfm-table1/label_smoothing", ["label_smoothing"]),
        ("nfm-table1/cutmix", ["probability"]),
        ("nfm-table1/puzzlemix", ["epochs", "milestones", "loss", "transport", "augmentation", "normalisation"]),
        ("nfm-figure6/cifar10-puzzlemix", ["epochs", "loss", "augmentation"]),
        ("noisymix-table2/cifar10-puzzlemix", ["alpha", "loss", "batch_size, schedule, augmentation"]),
        ("noisymix-table1/puzzlemix", ["alpha", "loss", "augmentation", "processes"]),
        ("noisymix-table1/autoaugment", ["views", "processes"]),
        ("digits/puzzlemix", ["loss"]),
        ("digits/adversarial", ["clamp", "replays"]),
        ("nfm-table1/nfm", ["noise", "model_options.shortcut", "data_options.normalisation", "salt_pepper"]),
        ("nfm-table3/nfm-alpha0.2", ["add_noise, mult_noise", "salt_pepper"]),
        ("nfm-figure5/cifar10-nfm_star", ["attack", "add_noise, mult_noise"]),
        ("noisymix-table2/cifar10-mixup", ["alpha"]),
        ("noisymix-table2/cifar10-noisymix", ["view_noise", "sparsity", "jsd"]),
        ("noisymix-table3/cifar100-baseline", ["model_options.widen"]),
        ("noisymix-table4/0010", ["layers"]),
        ("noisymix-table5/cifar10-augmix", ["epochs", "freezing"]),
        ("noisymix-table1/noisymix", ["sparsity", "epochs"]),
        ("noisymix-table1/cutmix", ["probability", "training"]),
        ("nfm-figure-toy/nfm", ["epochs, batch_size, width, add_noise, mult_noise"]),
        ("noisymix-figure4/noisymix", ["views", "add_noise, mult_noise, jsd"]),
        ("digits/taylor_nfm", ["terms", "eps"]),
        ("nfm-table1-text/nfm", ["noise", "model_options.shortcut", "data_options.normalisation", "salt_pepper"]),
        ("noisymix-table3-text/cifar10-noisymix", ["noise", "model_options.widen", "model_options.released", "jsd"]),
        ("digits-text/nfm-moments", ["noise"]),
    ],
)
def test_what_no_source_states_is_named(name, settings):
    named = dict(get_recipe(name).choices)
    assert set(settings) <= set(named)
    assert all(text.strip() for text in named.values())


def test_choices_that_name_a_number_name_the_one_that_is_taken():
    for recipe in all_recipes().values():
        for setting, text in recipe.choices:
            found = getattr(recipe.training.scheme, setting, None)
            if setting != "views" and isinstance(found, int | float) and not isinstance(found, bool):
                number = text.split(":")[0].split(",")[0].split()[0]
                value = float(number.split("/")[0]) / float(([*number.split("/"), "1"])[1])
                short = setting == "replays" and recipe.size != "paper"  # fewer where epochs are few
                assert short or value == pytest.approx(found), (recipe.name, setting)


def test_where_we_differ_from_the_authors_code_both_are_named():
    """Cross entropy on digits, where the code has the binary one, and no cut of the perturbed pixels."""
    assert get_recipe("digits/puzzlemix").training.scheme.loss == "cross_entropy"
    assert "binary" in dict(get_recipe("digits/puzzlemix").choices)["loss"]
    assert not get_recipe("digits/adversarial").training.scheme.clamp
    assert dict(get_recipe("noisymix-table5/cifar100-noisymix").training.data_options) == {
        "normalisation": "transfer_cifar100"
    }
    assert NORMALISATION["transfer_cifar100"] == ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))


def test_figure_6_has_the_patches_as_well():
    found = {r.name.partition("-figure6/cifar10-")[2] for r in select_recipes("nfm-figure6/*")}
    names = "baseline", "mixup", "cutmix", "puzzlemix", "manifold_mixup", "noisy_mixup", "nfm", "nfm_star"
    assert found == set(names)


def test_what_cannot_be_run_says_so():
    assert {r.name.rpartition("/")[2] for r in all_recipes().values() if r.note} == {"stylized_imagenet"}


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
        if study == variations.STUDY or recipe is longer:
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
        assert (own.images, own.precision) == (2000, "bfloat16")
        assert len(set(usual.radii) & set(own.radii)) >= 3


@pytest.mark.parametrize("one", variations.VARIATIONS, ids=lambda one: one.name)
def test_a_variation_changes_what_it_says_and_nothing_else(one):
    allowed = {"epochs10": {"epochs"}, "wide": {"model_options"}, "rate0.01": {"learning_rate"}}.get(one.name, set())
    inside = {"cross_entropy": {"loss"}, "input": {"layers"}, "half": {"add_noise", "mult_noise"},
              "normal": {"noise", "sparsity", "view_noise"}}.get(one.name, set())  # fmt: skip
    for row in one.rows:
        recipe = get_recipe(f"fashion-variations/{row}-{one.name}")
        base, varied = get_recipe(f"fashion-compact/{row}").training, recipe.training
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
