"""What becomes of a failed comparison in the variations, against differences typed from the values."""

from dataclasses import replace

import pytest
from ledger_entries import entry

from experiments.claims.evidence import Records
from experiments.claims.index import all_statements
from experiments.claims.varied import gaps, in_words
from experiments.tables import judge_claims

CLEAN = {
    "fashion-compact/baseline": 0.92, "fashion-compact/nfm": 0.91,
    "fashion-variations/baseline-epochs10": 0.93, "fashion-variations/nfm-epochs10": 0.94,
    "fashion-variations/nfm-half": 0.915, "fashion-long/nfm": 0.95,
}  # fmt: skip
FLIPS = {
    "fashion-compact/noisymix": 0.03, "fashion-compact/augmix": 0.02,
    "fashion-variations/noisymix-epochs10": 0.01, "fashion-variations/augmix-epochs10": 0.03,
}  # fmt: skip


def ledger(values, metric="clean"):
    return [entry(name, seed, **{metric: value + 0.001 * seed}) for name, value in values.items() for seed in (1, 2, 3)]


def outcome(entries, claim):
    return next(one.ours["compact"] for one in judge_claims(entries) if one.claim.id == claim)


def differences(entries, claim):
    return {words: gap.difference for words, gap in gaps(entries, outcome(entries, claim)).items()}


def test_the_gap_is_taken_where_one_of_the_rows_is_varied():
    """A row without the variation stays as it is, and a study with one of the rows says nothing."""
    entries = ledger(CLEAN)
    expected = {"10 epochs instead of 5": 1.0, "half the levels of the noise": -0.5}
    assert differences(entries, "nfm-clean-1") == pytest.approx(expected)


def test_cifar100_has_variations_of_its_own():
    """Nothing of Fashion-MNIST stands for it, although a variation there may have the same name."""
    cifar = {
        "cifar100-compact/baseline": 0.45, "cifar100-compact/nfm": 0.41, "cifar100-variations/baseline-epochs24": 0.55,
        "cifar100-variations/nfm-epochs24": 0.57,
    }  # fmt: skip
    fashion = {"fashion-variations/nfm-half": 0.9, "fashion-long/nfm": 0.95, "fashion-long/baseline": 0.9}
    assert differences(ledger(cifar | fashion), "nfm-clean-2") == pytest.approx({"24 epochs instead of 8": 2.0})


def test_where_low_values_are_good_the_sign_turns():
    assert differences(ledger(FLIPS, "flip_probability/mean"), "flips-13") == pytest.approx(
        {"10 epochs instead of 5": 2.0}
    )


def test_a_claim_that_holds_or_rests_on_other_data_has_no_variations():
    better = ledger(CLEAN | {"fashion-compact/nfm": 0.93})
    assert gaps(better, outcome(better, "nfm-clean-1")) == {}
    digits = replace(outcome(ledger(CLEAN), "nfm-clean-1"), study="digits")
    assert gaps(ledger(CLEAN), digits) == {}
    assert in_words([], digits) == ""


def test_the_verdict_says_it():
    (statement,) = (one for one in all_statements() if one.id == "claim-nfm-clean-1")
    detail = statement.verdict(Records(entries=tuple(ledger(CLEAN)))).detail
    assert "that gap if the training is varied: 10 epochs instead of 5: +1.0 (the same for all seeds)" in detail
