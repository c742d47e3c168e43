"""Verdicts on the papers' claims: on their own numbers, and on samples of ours."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from experiments.tables.claims import Claim, better, better_on_average, judge_ours, judge_published, no_worse
from experiments.tables.claims_list import all_claims
from experiments.tables.metrics_map import CORRUPTIONS
from experiments.tables.published import load_published

PRINTED = load_published()


def test_claims_of_the_papers():
    claims = all_claims()
    assert len(claims) >= 25
    assert len({claim.id for claim in claims}) == len(claims)
    verdicts = {claim.id: judge_published(claim, PRINTED).word for claim in claims}
    unsupported = {"puzzlemix-cifar10-2", "puzzlemix-cifar100-2", "puzzlemix-cifar100-3", "imagenet-p-6"}
    assert {name for name, verdict in verdicts.items() if verdict == "not supported"} == unsupported
    assert {name for name, verdict in verdicts.items() if verdict == "no numbers printed"} == {"nfm-star"}


def test_counts_by_hand():
    for table, expected in (("noisymix-table6", 9), ("noisymix-table12", 7)):
        rows = PRINTED.rows(table)
        best = max if table.endswith("6") else min
        own = [c for c in rows["noisymix"] if c != "mfr"]
        won = [c for c in own if rows["noisymix"][c].value == best(row[c].value for row in rows.values())]
        claim = next(c for c in all_claims() if c.count and c.table == table)
        assert len(judge_published(claim, PRINTED).items) == len(won) == expected


def cells(**rows):
    """Look-up of samples, given as lists by row and column `row__column`."""
    return lambda row, column: dict(enumerate(rows.get(f"{row}__{column}", [])))


def claim_that(comparisons, count=None):
    return Claim("id", "words", "source", "nfm-table1", comparisons, count)


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        ([90, 91, 92], [80, 81, 82.5], ("reproduced", "", 3)),
        ([90, 91, 99], [89, 92, 95], ("reproduced", "within noise", 3)),
        ([80, 81, 82.5], [90, 91, 92], ("not reproduced", "", 3)),
        ([89, 92, 95], [90, 91, 99], ("not reproduced", "within noise", 3)),
        ([90], [80], ("reproduced", "one seed", 1)),
        ([80], [90], ("not reproduced", "one seed", 1)),
        ([], [90], ("not run", "", 0)),
        ([90, 91], [90, 91], ("not reproduced", "within noise", 2)),
        # 2.0 ± 0.58 (3 seeds): more than two standard errors, and the interval still reaches to -0.5
        ([91, 92, 93], [90, 90, 90], ("reproduced", "within noise", 3)),
    ],
)
def test_verdicts_on_ours(first, second, verdict):
    claim = claim_that(better("nfm", ["baseline"], ["clean"]))
    outcome = judge_ours(claim, cells(nfm__clean=first, baseline__clean=second), "digits")
    assert (outcome.word, outcome.weakness, outcome.seeds) == verdict
    assert (outcome.size, outcome.total) == ("digits", 1)


def test_differences_are_paired_by_seed():
    """Seeds vary by 20 points, the two schemes by 1 on each: clear in pairs, lost without them."""
    base = np.array([50.0, 60.0, 70.0])
    gain = np.array([1.0, 1.2, 0.8])
    claim = claim_that(better("nfm", ["baseline"], ["clean"]))
    assert judge_ours(claim, cells(nfm__clean=base + gain, baseline__clean=base)).text == "reproduced"
    assert gain.mean() > 2 * gain.std(ddof=1) / math.sqrt(3)
    assert gain.mean() < 2 * math.sqrt(2 * base.var(ddof=1) / 3)


def test_tolerance_ties_and_direction():
    kept = claim_that(no_worse("nfm", ["baseline"], ["clean"], margin=0.1))
    for value, verdict in ((94.9, "reproduced"), (95.0, "reproduced"), (94.89, "not reproduced")):
        lookup = cells(nfm__clean=[value], baseline__clean=[95.0])
        assert judge_ours(kept, lookup).text == f"{verdict} (one seed)"
    flips = replace(claim_that(better("noisymix", ["baseline"], ["mfr"])), table="noisymix-table12")
    assert judge_ours(flips, cells(noisymix__mfr=[30.0], baseline__mfr=[58.0])).text == "reproduced (one seed)"


def test_counting_claims_and_means():
    three = claim_that(better("nfm", ["baseline"], CORRUPTIONS[:3]), count=2)
    three = replace(three, table="noisymix-table7")
    rows = {f"nfm__{name}": [50.0 + i] for i, name in enumerate(CORRUPTIONS[:3])}
    rows |= {f"baseline__{name}": [50.5] for name in CORRUPTIONS[:3]}
    outcome = judge_ours(three, cells(**rows))
    assert (outcome.text, outcome.items) == ("reproduced (one seed)", CORRUPTIONS[1:3])
    assert judge_ours(replace(three, count=3), cells(**rows)).text == "not reproduced (one seed)"
    mean = replace(claim_that(better_on_average("nfm", ["baseline"], CORRUPTIONS[:3])), table="noisymix-table7")
    assert judge_ours(mean, cells(**rows)).failed == ()
    del rows["nfm__shot_noise"]
    assert judge_ours(mean, cells(**rows)).word == "not run"


def test_a_count_waits_for_the_items_that_could_decide_it():
    first, second, third = CORRUPTIONS[:3]
    two = replace(claim_that(better("nfm", ["baseline"], CORRUPTIONS[:3]), count=2), table="noisymix-table7")
    wins = {f"nfm__{first}": [60], f"baseline__{first}": [50]}
    loses = {f"nfm__{second}": [40], f"baseline__{second}": [50]}
    assert judge_ours(two, cells(**wins, **loses)).word == "not run"
    assert judge_ours(two, cells(**loses, **{f"nfm__{third}": [1], f"baseline__{third}": [2]})).word == "not reproduced"
    outcome = judge_ours(two, cells(**wins, **{f"nfm__{third}": [3], f"baseline__{third}": [2]}))
    assert outcome.text == "reproduced (one seed, 2 of 3 comparisons)"


def test_missing_rows_are_left_out_and_counted():
    claim = claim_that(better("nfm", ["baseline", "mixup", "cutmix"], ["clean"]))
    run = {"nfm__clean": [90, 91, 92], "baseline__clean": [80, 81, 82.5]}
    assert judge_ours(claim, cells(**run)).text == "reproduced (1 of 3 comparisons)"
    lost = judge_ours(claim, cells(**run, mixup__clean=[95, 96.5, 97]))
    assert (lost.word, lost.judged, lost.total) == ("not reproduced", 2, 3)
    assert judge_ours(claim, cells(nfm__clean=[90, 91])).word == "not run"


def test_more_than_99_percent_is_a_ceiling_and_so_are_no_flips():
    claim = claim_that(better("nfm", ["baseline"], ["clean"]))
    seeds = cells(nfm__clean=[99.6, 99.7, 99.8], baseline__clean=[99.2, 99.3, 99.4])
    assert judge_ours(claim, seeds).text == "reproduced (ceiling)"
    assert judge_ours(claim, cells(nfm__clean=[99.6, 99.7], baseline__clean=[98.2, 98.31])).text == "reproduced"
    flips = replace(claim_that(better("noisymix", ["baseline"], ["mfr"])), table="noisymix-table13")
    assert judge_ours(flips, cells(noisymix__mfr=[0.2, 0.2], baseline__mfr=[0.5, 0.5])).text == "reproduced (ceiling)"
    assert judge_ours(flips, cells(noisymix__mfr=[0.2, 0.2], baseline__mfr=[2.5, 2.6])).text == "reproduced"


def test_a_lost_comparison_off_the_ceiling_decides():
    claim = claim_that(better("nfm", ["baseline", "mixup"], ["clean"]))
    both = {"nfm__clean": [99.5, 99.6], "baseline__clean": [99.7, 99.8], "mixup__clean": [98, 98.1]}
    assert judge_ours(claim, cells(**both)).text == "not reproduced (ceiling)"
    lost = cells(**both | {"nfm__clean": [90.5, 90.61]})
    assert judge_ours(claim, lost).text == "not reproduced"


def test_the_numbers_behind_a_verdict_are_data():
    claim = claim_that(better("nfm", ["baseline", "mixup"], ["clean"]))
    outcome = judge_ours(
        claim, cells(nfm__clean=[90, 91, 92], baseline__clean=[80, 81, 83], mixup__clean=[95, 95, 95]), "digits",
        study="digits",
    )  # fmt: skip
    assert (outcome.judged, outcome.study, outcome.least.comparison.other) == (2, "digits", "mixup")
    first, second = (one.to_dict() for one in outcome.found)
    half = stats.t.ppf(0.975, 2) * np.std([10, 10, 9], ddof=1) / math.sqrt(3)
    assert (first["row"], first["other"], first["measured"], first["seeds"]) == ("nfm", "baseline", ["clean"], 3)
    assert (first["gap"], first["low"], first["high"]) == pytest.approx((29 / 3, 29 / 3 - half, 29 / 3 + half))
    assert (first["holds"], second["holds"], second["ceiling"]) == (True, False, False)


def test_a_tie_that_is_allowed_needs_no_clear_difference():
    kept = claim_that(no_worse("nfm", ["baseline"], ["clean"], margin=0.1))
    outcome = judge_ours(kept, cells(nfm__clean=[90, 91.3], baseline__clean=[90.1, 91]))
    assert outcome.text == "reproduced"
