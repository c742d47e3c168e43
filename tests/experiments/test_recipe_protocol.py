"""Recipes against facts typed from the protocol, the text of the papers, and what is our own choice."""

from collections import Counter
from dataclasses import replace

import pytest

from experiments.data.cifar import NORMALISATION
from experiments.recipes import (
    Scheme,
    all_recipes,
    get_recipe,
    select_recipes,
)
from experiments.training.optimization import learning_rate

PAPER = select_recipes(size="paper")


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
