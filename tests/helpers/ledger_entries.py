"""Made-up lines of a ledger, and recipes that are short enough for tests."""

from dataclasses import asdict, replace

from experiments.recipes import all_recipes, get_recipe
from experiments.record.ledger import Entry
from experiments.tables.published import load_published


def shortened(recipe, **changes):
    """The recipe with other training settings; its hash says that it is another one."""
    return replace(recipe, training=replace(recipe.training, **changes))


def comparable(entry):
    """What two runs of the same code share on one device, however often they were interrupted."""
    kept = asdict(entry)
    for name in ("time", "seconds", "commit", "dirty", "versions"):
        del kept[name]
    del kept["training"]["seconds"]
    return kept


def entry(name, seed, suite="clean", **metrics):
    """A line of the ledger for a recipe as it is now."""
    recipe = get_recipe(name)
    return Entry(
        recipe=name, hash=recipe.hash, settings=recipe.training.to_dict(), size=recipe.size,
        scheme=recipe.training.scheme.name, seed=seed, suite=suite, suite_settings={}, metrics=metrics,
        training={"epochs": 1, "steps": 1, "samples": 1, "seconds": 1.0, "final_loss": 1.0}, seconds=1.0, commit=None,
        dirty=False, versions={}, device="cpu", time="2026-01-31T12:00:00+00:00",
    )  # fmt: skip


def full_ledger(*, seeds=(1, 2), without=(), sizes=("paper",)):
    """Results of every recipe of these sizes that can be run; each has its own accuracy, which grows with the seed."""
    printed = load_published()
    keys = {column.metric for table in printed.tables() for column in printed.columns(table)}
    known = all_recipes().values()
    runnable = {r.hash: r for r in known if r.size in sizes and not r.note and r.name not in without}
    ranks = {name: rank for rank, name in enumerate(sorted(runnable))}
    return [
        entry(recipe.name, seed, "all", **dict.fromkeys(keys, 0.2 + 0.001 * ranks[hash_] + 0.01 * seed))
        for hash_, recipe in runnable.items()
        for seed in seeds
    ]
