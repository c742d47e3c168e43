"""Which settings make another training: the hash of a recipe."""

import dataclasses
from dataclasses import dataclass, fields, replace

import pytest

from experiments.recipes import (
    Scheme,
    Training,
    all_recipes,
    get_recipe,
    select_recipes,
)
from experiments.recipes.recipe import _changed


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
