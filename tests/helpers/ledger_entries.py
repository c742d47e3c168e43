"""Lines of a ledger, made up, for tests."""

from experiments.recipes import get_recipe
from experiments.record.ledger import Entry


def entry(name, seed, suite="clean", **metrics):
    """A line of the ledger for a recipe as it is now."""
    recipe = get_recipe(name)
    return Entry(
        recipe=name, hash=recipe.hash, settings=recipe.training.to_dict(), size=recipe.size,
        scheme=recipe.training.scheme.name, seed=seed, suite=suite, suite_settings={}, metrics=metrics,
        training={"epochs": 1, "steps": 1, "samples": 1, "seconds": 1.0, "final_loss": 1.0}, seconds=1.0, commit=None,
        dirty=False, versions={}, device="cpu", time="2026-01-31T12:00:00+00:00",
    )  # fmt: skip
