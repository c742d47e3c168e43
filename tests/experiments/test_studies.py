"""What the ledger says of a study: which results count, how they are summed up, and how schemes differ."""

from dataclasses import replace

import pytest
from ledger_entries import entry

from experiments.record.comparison import paired_difference, summarize
from experiments.record.ledger import append
from experiments.studies.gains import gains
from experiments.studies.study import (
    STUDIES,
    TITLES,
    format_gain,
    format_summary,
    label,
    load_entries,
    ranking,
    study,
    table_metrics,
)


def entries(name, values, metric="clean"):
    return [entry(name, seed, **{metric: value}) for seed, value in enumerate(values, 1)]


def test_a_study_has_every_recipe_in_the_order_of_the_titles():
    one = study([], "digits")
    assert one.run == []
    assert list(one.recipes) == [s for s in TITLES if s in one.recipes]
    assert {"baseline", "nfm", "taylor_nfm", "noisymix"} <= set(one.recipes)
    for name in STUDIES:
        assert study([], name).recipes.keys() <= TITLES.keys()
    with pytest.raises(ValueError, match="matches"):
        study([], "digit")


def test_results_count_only_for_settings_as_they_are_now():
    new = entry("digits/nfm", 1, clean=0.9)
    old = replace(new, hash="0" * 16, metrics={"clean": 0.1})
    other = entry("cifar10-compact/nfm", 1, clean=0.5)
    one = study([old, other, new], "digits")
    assert one.run == ["nfm"]
    assert one.values("nfm", "clean") == {1: 0.9}
    assert one.values("mixup", "clean") == one.values("nfm", "ece") == {}


def test_summaries_are_percent_and_what_was_not_run_is_not_there():
    one = study(entries("digits/nfm", [0.9, 0.92]), "digits")
    found = one.summary("nfm", "clean")
    assert (found.mean, found.min, found.max, found.stderr) == pytest.approx((91, 90, 92, 1.0))
    assert format_summary(found) == "91.0 ± 1.0"
    assert one.summary("mixup", "clean") is None
    assert format_summary(None) == format_gain(None) == "not run"
    assert format_summary(summarize([91.23])) == "91.2"


def test_levels_rise_as_numbers_and_the_strongest_but_one_stands_for_them():
    metrics = {f"white_noise/{level}": 0.5 for level in ("1", "0.2", "0.15", "0.5")}
    one = study([entry("digits/nfm", 1, "white_noise", **metrics, **{"white_noise_else/3": 1.0})], "digits")
    assert one.levels("white_noise") == ["0.15", "0.2", "0.5", "1"]
    assert one.strong("white_noise") == "white_noise/0.5"
    assert one.strong("pgd_linf") is None
    assert table_metrics(one) == ["white_noise/0.5"]


def test_the_matched_level_is_the_lowest_at_which_the_baseline_has_lost_enough():
    levels = {"white_noise/0.1": 0.85, "white_noise/0.3": 0.7, "white_noise/0.5": 0.4}
    one = study([entry("digits/baseline", 1, "white_noise", clean=0.9, **levels)], "digits")
    assert one.matched("white_noise") == "white_noise/0.3"
    assert one.matched("white_noise", drop=30) == "white_noise/0.5"
    for kind in ("white_noise", "pgd_linf"):
        with pytest.raises(ValueError, match=f"a level of {kind}"):
            one.matched(kind, drop=60)


def test_gains_are_paired_over_the_common_seeds():
    some = entries("digits/nfm", [0.90, 0.95, 0.99]) + entries("digits/baseline", [0.80, 0.84])
    one = study(some, "digits")
    found = one.gain("nfm", "baseline", "clean")
    assert found.n == 2
    assert found.difference == pytest.approx(10.5)
    assert one.gain("nfm", "mixup", "clean") is None
    assert format_gain(paired_difference({1: 90.0}, {1: 91.0})) == "−1.0 (one seed)"
    assert format_gain(paired_difference({1: 90.0, 2: 91.0}, {1: 90.0, 2: 91.0})) == "0.0 (the same for all seeds)"


def test_the_best_has_the_highest_accuracy_and_the_lowest_error():
    some = [entry(f"digits/{s}", 1, clean=v, ece=v) for s, v in (("nfm", 0.3), ("mixup", 0.9), ("baseline", 0.5))]
    one = study(some, "digits")
    assert [s for s, _ in ranking(one, "clean")] == ["mixup", "baseline", "nfm"]
    assert [s for s, _ in ranking(one, "ece")] == ["nfm", "baseline", "mixup"]


def test_the_share_of_a_gain_by_hand():
    base, exact, taylor = [0.80, 0.81, 0.82], [0.90, 0.911, 0.92], [0.85, 0.86, 0.87]
    some = entries("digits/baseline", base) + entries("digits/nfm", exact) + entries("digits/taylor_nfm", taylor)
    found = gains(study(some, "digits"), "nfm", "clean")
    assert found.share == pytest.approx(5 / (10.1 + 10 + 10) * 3)
    assert found.rest.difference == pytest.approx(found.exact.difference - found.taylor.difference)
    noisy = entries("digits/nfm", [0.70, 0.9, 0.85])
    unclear = gains(study([*entries("digits/baseline", base), *noisy], "digits"), "nfm", "clean")
    assert unclear.share is None
    assert unclear.taylor is None


def test_metrics_in_words():
    assert label("pgd_linf/0.1") == "PGD radius 0.1"
    assert label("corrupted/category/blur") == "corrupted: blur"
    assert label("nothing/known") == "nothing/known"


def test_without_a_ledger_nothing_was_run(tmp_path):
    assert load_entries(tmp_path / "none.jsonl") == []
    append(tmp_path / "some.jsonl", entry("digits/nfm", 1, clean=0.5))
    assert len(load_entries(tmp_path / "some.jsonl")) == 1
