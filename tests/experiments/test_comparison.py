"""Statistics over seeds, by hand, against scipy, and by simulation."""

import itertools
import math

import numpy as np
import pytest
from ledger_processes import entry
from scipy import stats

from experiments.record.comparison import by_seed, holm, is_clear, paired_difference, sign_flip, summarize


def test_summary_by_hand():
    # 1, 2, 6: mean 3, squares 4 + 1 + 9 = 14, s² = 7, stderr √(7/3); t(0.975, 2) = 4.302653.
    found = summarize([1, 2, 6])
    assert (found.mean, found.min, found.max, found.n) == (3, 1, 6, 3)
    assert found.stderr == pytest.approx(math.sqrt(7 / 3), rel=1e-14)
    assert found.interval == pytest.approx((3 - 4.302653 * math.sqrt(7 / 3), 3 + 4.302653 * math.sqrt(7 / 3)), rel=1e-6)


@pytest.mark.parametrize("n", [2, 3, 5, 30])
def test_interval_is_that_of_scipy(n):
    x = np.random.default_rng(n).normal(size=n)
    found = summarize(x)
    assert found.interval == pytest.approx(stats.t.interval(0.95, n - 1, loc=x.mean(), scale=stats.sem(x)), rel=1e-12)


def test_one_value_and_equal_values():
    one = summarize([0.7])
    assert (one.mean, one.min, one.max, one.n, one.stderr, one.interval) == (0.7, 0.7, 0.7, 1, None, None)
    equal = summarize([0.1] * 3)
    assert equal.min == equal.mean == equal.max == 0.1
    assert equal.stderr == pytest.approx(0, abs=1e-16)


@pytest.mark.parametrize("n", [3, 5])
def test_interval_covers_the_mean_as_often_as_it_says(n):
    """The normal interval would cover 81 % (n = 3) or 88 % (n = 5)."""
    repeats, level = 3000, 0.95
    x = np.random.default_rng(n).normal(2, 3, size=(repeats, n))
    covered = np.mean([low <= 2 <= high for low, high in (summarize(row).interval for row in x)])
    assert abs(covered - level) <= 5 * math.sqrt(level * (1 - level) / repeats)


def test_paired_difference_by_hand():
    # Differences 1, 2, 3 on the seeds 0, 1, 2: mean 2, s = 1, t = 2√3; for two degrees P(|T| > t) = 1 - t/√(2 + t²).
    found = paired_difference({0: 11, 1: 22, 2: 33, 7: 0}, {2: 30, 1: 20, 0: 10, 8: 5})
    t = 2 * math.sqrt(3)
    assert (found.difference, found.n) == (2, 3)
    assert found.stderr == pytest.approx(1 / math.sqrt(3))
    assert found.p_value == pytest.approx(1 - t / math.sqrt(2 + t * t), rel=1e-12)
    assert found.interval == pytest.approx((2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)), rel=1e-6)
    assert found.sign_flip_p_value == 2 / 8


@pytest.mark.parametrize("n", [2, 5, 25])
def test_paired_difference_is_that_of_scipy_and_antisymmetric(n):
    generator = np.random.default_rng(n)
    a, b = generator.normal(0.5, 1, n), generator.normal(0, 1, n)
    first, second = dict(enumerate(a)), dict(enumerate(b))
    found, back = paired_difference(first, second), paired_difference(second, first)
    witness = stats.ttest_rel(a, b)
    assert found.p_value == pytest.approx(witness.pvalue, rel=1e-10)
    assert found.interval == pytest.approx(tuple(witness.confidence_interval(0.95)), rel=1e-10)
    assert back.difference == -found.difference
    assert back.p_value == pytest.approx(found.p_value)
    assert (found.sign_flip_p_value is None) == (n > 20)


def test_pairs_without_a_t_statistic():
    one = paired_difference({3: 0.9}, {3: 0.8})
    assert (one.n, one.stderr, one.p_value, one.interval, one.sign_flip_p_value) == (1, None, None, None, 1.0)
    constant = paired_difference({s: 0.1 * s + 0.3 for s in range(5)}, {s: 0.1 * s for s in range(5)})
    assert constant.difference == pytest.approx(0.3)
    assert (constant.p_value, constant.interval, constant.sign_flip_p_value) == (None, None, 2 / 32)
    same = paired_difference({0: 0.5, 1: 0.6}, {0: 0.5, 1: 0.6})
    assert (same.difference, same.p_value, same.sign_flip_p_value) == (0, None, 1.0)


@pytest.mark.parametrize("n", [1, 2, 4, 6])
def test_sign_flip_is_that_of_loops_and_of_scipy(n):
    d = np.random.default_rng(n).normal(0.4, 1, n)
    naive = [abs(sum(s * x for s, x in zip(signs, d, strict=True))) for signs in itertools.product((1, -1), repeat=n)]
    assert sign_flip(d) == np.mean(np.array(naive) >= abs(d.sum()) - 1e-12)
    if n > 1:
        witness = stats.permutation_test((d, -d), lambda x, y: np.mean(x - y), permutation_type="samples")
        assert sign_flip(d) == pytest.approx(witness.pvalue, rel=1e-12)


def test_sign_flip_counts_ties_that_differ_by_rounding():
    # 0.1 + 0.2 + 0.3 and permutations; |sum| = 0 for half of the flips of (0.1, 0.2, -0.3), all of which count.
    assert sign_flip([0.1, 0.2, -0.3]) == 1.0
    assert sign_flip([0.3, 0.1, 0.2]) == 0.25
    assert sign_flip([0.0, 0.0]) == 1.0


def test_sign_flip_rejects_as_rarely_as_it_says():
    """Under symmetric differences of any law P(p <= 0.125) <= 0.125, with equality for distinct sizes."""
    repeats = 2000
    d = np.random.default_rng(0).standard_t(2, size=(repeats, 5))
    rejected = np.mean([sign_flip(row) <= 0.125 for row in d])
    assert abs(rejected - 0.125) <= 5 * math.sqrt(0.125 * 0.875 / repeats)


def test_holm_by_hand():
    # Sorted 0.01 0.03 0.04 times 3 2 1: 0.03 0.06 0.04, running maximum 0.03 0.06 0.06.
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.5, 0.9, 0.8]) == [1, 1, 1]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


@pytest.mark.parametrize("q", [0.01, 0.05, 0.2])
def test_holm_rejects_what_the_step_down_procedure_rejects(q):
    generator = np.random.default_rng(1)
    for _ in range(200):
        p = generator.uniform(size=generator.integers(1, 8)) ** 3
        rejected = set()
        for left, index in zip(range(len(p), 0, -1), np.argsort(p), strict=True):
            if p[index] > q / left:
                break
            rejected.add(int(index))
        assert {i for i, value in enumerate(holm(list(p))) if value <= q} == rejected


def test_a_metric_by_seed_is_of_one_training():
    nfm = [entry(seed, metrics={"clean": 0.1 * seed}) for seed in (6, 1, 2)]
    noise = [entry(1, "noise", metrics={"white_noise/0.1": 0.2, "clean": 0.1})]  # the same value again counts once
    assert by_seed([*nfm, *noise], "clean") == {1: 0.1, 2: 0.2, 6: 0.6000000000000001}
    assert list(by_seed(nfm, "clean")) == [1, 2, 6]
    assert by_seed(nfm, "ece") == by_seed([], "clean") == {}


@pytest.mark.parametrize(
    ("first", "clear"),
    [([1.0, 1.1, 0.9], True), ([-1.0, -1.1, -0.9], True), ([1.0, -1.0, 0.5], False), ([5.0], False), ([1, 1], False)],
)
def test_a_difference_is_clear_if_its_interval_leaves_out_zero(first, clear):
    found = paired_difference(dict(enumerate(first)), dict.fromkeys(range(3), 0.0))
    assert found.clear is is_clear(found) is clear
    assert not is_clear(None)


def test_two_standard_errors_are_not_enough_for_three_seeds():
    """The interval of three seeds is 4.3 standard errors wide on each side."""
    found = paired_difference({1: 1.0, 2: 2.0, 3: 3.0}, dict.fromkeys((1, 2, 3), 0.2))
    assert found.difference > 2 * found.stderr
    assert not found.clear


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: summarize([]), "values: expected at least one number"),
        (lambda: summarize([1, float("nan")]), "values: expected at least one number, all finite"),
        (lambda: paired_difference({0: 1.0}, {1: 1.0}), r"seeds: expected some in common, got \[0\] and \[1\]"),
        (lambda: paired_difference({0: 1.0}, {0: math.inf}), "b: expected at least one number, all finite"),
        (lambda: sign_flip(range(21)), "differences: expected at most 20, got 21"),
        (lambda: holm([0.5, 1.5]), r"p_values: expected numbers in \[0, 1\]"),
        (lambda: holm([float("nan")]), r"p_values: expected numbers in \[0, 1\]"),
        (lambda: by_seed([entry(0), entry(1, settings={})], "clean"), "expected one set of training settings"),
        (
            lambda: by_seed([entry(0), entry(0, "noise", metrics={"clean": 0.4})], "clean"),
            "expected one value for seed 0 of cifar10_nfm, got 0.5 and 0.4 .suite noise",
        ),
    ],
)
def test_bad_requests_say_what_was_expected(call, match):
    with pytest.raises(ValueError, match=match):
        call()
