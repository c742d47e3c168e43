"""Results that were run again, and the range of the recorded seeds as their yardstick."""

import math

import numpy as np
import pytest
from ledger_processes import entry

from experiments.record.ledger import differences, within_seeds


def test_the_largest_difference_of_a_cell_counts_and_other_metrics_are_infinitely_far():
    recorded = [entry(0, metrics={"clean": 0.5, "loss": 1.0}), entry(1, metrics={"clean": 0.5})]
    again = [entry(0, metrics={"clean": 0.75, "loss": 0.9}), entry(1, metrics={"loss": 0.5}), entry(2)]
    assert differences(again, recorded) == {again[0].cell: 0.25, again[1].cell: math.inf}
    assert differences(recorded, recorded) == {e.cell: 0 for e in recorded}


def test_results_again_are_measured_by_the_range_of_the_recorded_seeds():
    recorded = [entry(seed, metrics={"clean": value}) for seed, value in enumerate((0.5, 0.6, 0.9))]
    again = [entry(seed, metrics={"clean": value}) for seed, value in enumerate((0.55, 0.9, 0.95))]
    assert within_seeds(again, recorded) == (2, 3, 1.5)
    assert within_seeds(again, recorded[:2]) == (0, 0, 0)  # two seeds tell no range
    other = [entry(0, metrics={"loss": 1.0}), entry(0, suite="corrupted", metrics={"clean": 0.5})]
    assert within_seeds(other, recorded) == (0, 0, 0)


def test_a_new_seed_lies_in_the_range_as_often_as_is_expected():
    values = np.random.default_rng(0).random((2_000, 6))
    inside = total = expected = 0
    for new, *seeds in values:
        found = within_seeds(
            [entry(9, metrics={"clean": new})], [entry(seed, metrics={"clean": v}) for seed, v in enumerate(seeds)]
        )
        inside, total, expected = inside + found[0], total + found[1], expected + found[2]
    assert total == 2_000
    assert expected == pytest.approx(2_000 * 4 / 6)
    assert abs(inside - expected) < 5 * np.sqrt(2_000 * (4 / 6) * (2 / 6))
