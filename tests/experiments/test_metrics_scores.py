"""Calibration, flips and corruptions: by hand, against naive loops and torchmetrics, and what must not matter."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassCalibrationError

import experiments
from experiments.metrics.calibration import (
    aurra,
    calibration_summary,
    confidences_of,
    ece,
    rms_calibration_error,
)
from experiments.metrics.corruption import (
    CATEGORIES,
    CORRUPTIONS,
    category_of,
    corruption_summary,
)
from experiments.metrics.flips import ALEXNET_FLIP, NOISES, PERTURBATIONS, flip_probability, flip_summary

PUBLISHED = Path(experiments.__file__).parent / "published"


def predicted(n: int = 1234, classes: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Overconfident logits, and labels."""
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(scale=2, size=(n, classes)))
    labels = torch.distributions.Categorical(logits=logits / 3).probs.numpy().cumsum(1)
    return logits, torch.from_numpy((rng.random((n, 1)) > labels).sum(1).clip(max=classes - 1))


# --- calibration


def test_confidences_by_hand():
    logits = torch.tensor([[math.log(3), 0.0], [0.0, math.log(9)], [25.0, 0.0]], dtype=torch.float32)
    confidence, correct = confidences_of(logits, torch.tensor([0, 0, 0]))
    np.testing.assert_allclose(confidence, [0.75, 0.9, 1], atol=1e-7)
    assert confidence[2] < 1  # not rounded to 1, as float32 would
    assert correct.tolist() == [True, False, True]


CONFIDENCE, CORRECT = [0.9, 0.5, 0.8, 0.6, 0.95], [1, 0, 1, 1, 0]


def test_rms_by_hand():
    # bins of 2, ascending: (0.5, 0.6) with (0, 1): gap 0.05; (0.8, 0.9, 0.95) with (1, 1, 0): gap 2.65/3 - 2/3
    expected = math.sqrt(2 / 5 * 0.05**2 + 3 / 5 * (0.65 / 3) ** 2)
    assert rms_calibration_error(CONFIDENCE, CORRECT, bin_size=2) == pytest.approx(expected, abs=1e-12)
    without = math.sqrt(2 / 5 * 0.05**2)
    assert rms_calibration_error(CONFIDENCE, CORRECT, bin_size=2, omit_last=True) == pytest.approx(without, abs=1e-12)
    assert rms_calibration_error(CONFIDENCE, CORRECT) == pytest.approx(abs(3.75 - 3) / 5, abs=1e-12)  # one bin


def naive_rms(confidence, correct, size, omit_last):
    pairs, total, count = sorted(zip(confidence, correct, strict=True)), 0.0, len(confidence) // size
    for b in range(count - omit_last):
        part = pairs[b * size :] if b == count - 1 else pairs[b * size : (b + 1) * size]
        gap = sum(p for p, _ in part) / len(part) - sum(c for _, c in part) / len(part)
        total += len(part) * gap**2
    return math.sqrt(total / len(pairs))


@pytest.mark.parametrize("n", [200, 299, 300, 1234])
@pytest.mark.parametrize("omit_last", [False, True])
def test_rms_is_the_naive_loop(n, omit_last):
    confidence, correct = confidences_of(*predicted(n))
    found = rms_calibration_error(confidence, correct, omit_last=omit_last)
    assert found == pytest.approx(naive_rms(confidence, correct, 100, omit_last), rel=1e-10)
    assert found > 0.05


def test_ece_by_hand():
    # bins (0.4667, 0.5333], (0.5333, 0.6], (0.7333, 0.8], (0.8667, 0.9333], (0.9333, 1]: all alone
    assert ece(CONFIDENCE, CORRECT) == pytest.approx((0.5 + 0.4 + 0.2 + 0.1 + 0.95) / 5, abs=1e-12)
    assert ece(CONFIDENCE, CORRECT, bins=1) == pytest.approx(0.75 / 5, abs=1e-12)
    # bounds belong to the bin below: 0.5 and 0.2 share one, 0.6 has the other
    assert ece([0.5, 0.2, 0.6], [0, 1, 1], bins=2) == pytest.approx((0.3 + 0.4) / 3, abs=1e-12)
    assert ece([1.0, 0.0], [1, 0]) == 0


@pytest.mark.parametrize("bins", [2, 10, 15])
def test_ece_at_the_edges_of_the_bins_is_the_naive_loop(bins):
    rng = np.random.default_rng(0)
    for confidence in (rng.integers(0, 11, 300) / 10, np.array([0.0, 1.0, 1.0, 0.95]), rng.random(50)):
        correct, naive = rng.integers(0, 2, len(confidence)), 0.0
        for b in range(bins):
            inside = (b / bins < confidence) & (confidence <= (b + 1) / bins) | ((b == 0) & (confidence == 0))
            naive += abs((confidence - correct)[inside].sum()) / len(confidence)
        assert ece(confidence, correct, bins=bins) == pytest.approx(naive, abs=1e-12)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ece_is_that_of_torchmetrics(seed):
    logits, labels = predicted(seed=seed)
    theirs = MulticlassCalibrationError(6, n_bins=15, norm="l1")(torch.softmax(logits, 1), labels)
    assert ece(*confidences_of(logits, labels)) == pytest.approx(float(theirs), abs=1e-6)
    # with the l2 norm and one bin both are the same root
    theirs = MulticlassCalibrationError(6, n_bins=1, norm="l2")(torch.softmax(logits, 1), labels)
    found = rms_calibration_error(*confidences_of(logits, labels), bin_size=10**6)
    assert found == pytest.approx(float(theirs), abs=1e-6)


def test_aurra_by_hand_and_by_a_naive_loop():
    # descending: 0.95 wrong, 0.9 right, 0.8 right, 0.6 right, 0.5 wrong
    assert aurra(CONFIDENCE, CORRECT) == pytest.approx((0 + 1 / 2 + 2 / 3 + 3 / 4 + 3 / 5) / 5, abs=1e-12)
    confidence, correct = confidences_of(*predicted(300))
    ranked = [c for _, c in sorted(zip(confidence, correct, strict=True), reverse=True)]
    naive = sum(sum(ranked[:r]) / r for r in range(1, 301)) / 300
    assert aurra(confidence, correct) == pytest.approx(naive, rel=1e-12)


def test_aurra_of_perfect_useless_and_inverted_rankings():
    n, right = 1000, 600
    confidence, best = np.linspace(1, 0, n), np.arange(n) < right
    perfect = (right + sum(right / r for r in range(right + 1, n + 1))) / n
    assert aurra(confidence, best) == pytest.approx(perfect, rel=1e-12)
    assert aurra(1 - confidence, best) < 0.6 < aurra(confidence, best)
    assert aurra(np.full(n, 0.7), best) == pytest.approx(0.6, rel=1e-12)  # no ranking: the accuracy
    assert aurra(confidence**3, best) == aurra(confidence, best)  # only the ranking matters
    assert aurra(confidence, np.ones(n)) == 1


SCORES = [
    rms_calibration_error,
    lambda p, c: rms_calibration_error(p, c, omit_last=True),
    ece,
    aurra,
]


@pytest.mark.parametrize("score", SCORES, ids=["rms", "rms_released", "ece", "aurra"])
@pytest.mark.parametrize("ties", [False, True])
def test_the_order_of_the_images_does_not_matter(score, ties):
    confidence, correct = confidences_of(*predicted(450))
    confidence = confidence.round(1) if ties else confidence
    order = np.random.default_rng(1).permutation(450)
    assert score(confidence, correct) == pytest.approx(score(confidence[order], correct[order]), rel=1e-12)


def test_a_calibrated_network_has_small_errors():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.2, 1, 40_000)
    correct = rng.random(40_000) < confidence
    # a bin of 100 has a squared gap of E p (1 - p) / 100
    spread = float((confidence * (1 - confidence)).mean()) / 100
    assert rms_calibration_error(confidence, correct) ** 2 == pytest.approx(spread, abs=5 * spread * math.sqrt(2 / 400))
    assert ece(confidence, correct) < 0.01
    assert ece(np.sqrt(confidence), correct) > 0.1


def test_summary_has_the_metrics_of_the_ledger():
    logits, labels = predicted(250)
    found, pair = calibration_summary(logits, labels), confidences_of(logits, labels)
    expected = {
        "rms_calibration_error": rms_calibration_error(*pair),
        "rms_calibration_error_released": rms_calibration_error(*pair, omit_last=True),
        "ece": ece(*pair),
        "aurra": aurra(*pair),
    }
    assert found == expected
    assert found["rms_calibration_error_released"] < found["rms_calibration_error"]
    assert "rms_calibration_error_released" not in calibration_summary(logits[:199], labels[:199])


# --- flips


def test_flips_by_hand():
    sequences = torch.tensor([[1, 1, 2, 2, 1], [0, 3, 0, 3, 0]])
    assert flip_probability(sequences, noise=False) == (2 + 4) / 8
    assert flip_probability(sequences, noise=True) == (2 + 2) / 8


@pytest.mark.parametrize("noise", [False, True])
def test_flips_are_the_naive_loop_and_know_no_names_or_order(noise):
    rng = np.random.default_rng(0)
    sequences = torch.from_numpy(rng.integers(0, 3, (40, 31)))
    shares = []
    for row in sequences.tolist():
        before, flips = row[0], 0
        for now in row[1:]:
            flips += now != before
            before = before if noise else now
        shares.append(flips / 30)
    found = flip_probability(sequences, noise=noise)
    assert found == pytest.approx(sum(shares) / 40, rel=1e-12)
    renamed, order = torch.tensor([7, 2, 5])[sequences], torch.from_numpy(rng.permutation(40))
    assert flip_probability(renamed[order], noise=noise) == found
    assert flip_probability(sequences[:, :1].expand(40, 31), noise=noise) == 0


def test_flip_rates_by_hand():
    found = flip_summary(
        {"gaussian_noise": 0.2, "snow": 0.1, "tilt": 0.3}, reference={"gaussian_noise": 0.4, "snow": 0.4, "tilt": 0.3}
    )
    assert found == pytest.approx(
        {
            "flip_probability/gaussian_noise": 0.2, "flip_probability/snow": 0.1, "flip_probability/tilt": 0.3,
            "flip_probability/mean": 0.2, "flip_probability/mean_without_noise": 0.2,
            "flip_rate/gaussian_noise": 0.5, "flip_rate/snow": 0.25, "flip_rate/tilt": 1.0,
            "flip_rate/mean": 1.75 / 3, "flip_rate/mean_without_noise": 0.625,
        }
    )  # fmt: skip
    assert "flip_rate/mean" not in flip_summary({"snow": 0.1})
    assert "flip_probability/mean_without_noise" not in flip_summary({"shot_noise": 0.1})
    rates = flip_summary(ALEXNET_FLIP, reference=ALEXNET_FLIP)
    assert rates["flip_rate/mean"] == rates["flip_rate/mean_without_noise"] == 1


def rows(table: str) -> list[dict[str, str]]:
    with (PUBLISHED / table).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_means_are_the_ones_the_paper_prints():
    """Table 12's rates, turned into probabilities and back, give its mFR, and Table 1's value without the noises."""
    (row,) = (r for r in rows("noisymix_table12.csv") if r["scheme"] == "baseline")
    probabilities = {name: float(row[name]) / 100 * ALEXNET_FLIP[name] for name in PERTURBATIONS}
    assert probabilities["gaussian_noise"] == pytest.approx(0.140, abs=5e-4)
    found = flip_summary(probabilities, reference=ALEXNET_FLIP)
    assert found["flip_rate/mean"] * 100 == pytest.approx(float(row["mfr"]), abs=0.1)
    kept = [float(row[name]) for name in PERTURBATIONS if name not in NOISES]
    assert found["flip_rate/mean_without_noise"] * 100 == pytest.approx(sum(kept) / 8, rel=1e-9)
    (row,) = (r for r in rows("noisymix_table13.csv") if r["scheme"] == "baseline")
    raw = flip_summary({name: float(row[name]) / 100 for name in PERTURBATIONS})
    assert raw["flip_probability/mean"] * 100 == pytest.approx(float(row["mfr"]), abs=0.1)


# --- corruptions


def all_cells(value, corruptions=CORRUPTIONS) -> dict[tuple[str, int], float]:
    return {(name, s): value(name, s) for name in corruptions for s in range(1, 6)}


def test_corruption_means_by_hand():
    # noises 0.2, the rest 0.8, minus 0.02 for each severity
    cells = all_cells(lambda name, s: (0.2 if "noise" in name else 0.8) - 0.02 * s)
    found = corruption_summary(cells)
    expected = {
        "corrupted/gaussian_noise/3": 0.14, "corrupted/fog/5": 0.7,
        "corrupted/gaussian_noise": 0.14, "corrupted/fog": 0.74,
        "corrupted/mean": (3 * 0.2 + 12 * 0.8) / 15 - 0.06, "corrupted/mean_without_noise": 0.74,
        "corrupted/severity/1": (3 * 0.2 + 12 * 0.8) / 15 - 0.02,
        "corrupted/category/noise": 0.14, "corrupted/category/blur": 0.74,
        "corrupted/category/weather": 0.74, "corrupted/category/digital": 0.74,
    }  # fmt: skip
    assert {key: found[key] for key in expected} == pytest.approx(expected)
    assert len(found) == 75 + 15 + 2 + 5 + 4


def test_corruption_means_are_the_naive_ones_in_any_order():
    rng = np.random.default_rng(0)
    cells = all_cells(lambda *_: rng.random())
    found = corruption_summary(cells)
    table = np.array([[cells[name, s] for s in range(1, 6)] for name in CORRUPTIONS])
    assert found["corrupted/mean"] == pytest.approx(table.mean(), rel=1e-12)
    assert found["corrupted/mean_without_noise"] == pytest.approx(table[3:].mean(), rel=1e-12)
    for i, (start, stop) in enumerate(((0, 3), (3, 7), (7, 11), (11, 15))):
        key = f"corrupted/category/{list(CATEGORIES)[i]}"
        assert found[key] == pytest.approx(table[start:stop].mean(), rel=1e-12)
    assert corruption_summary(dict(reversed(cells.items()))) == found


def test_means_of_the_printed_rows_of_table_6_are_those_of_table_1():
    overall = {r["scheme"]: r for r in rows("noisymix_table1.csv") if r["metric"] == "imagenet_c"}
    checked = 0
    for row in rows("noisymix_table6.csv"):
        if row["scheme"] == "puzzlemix" or row["scheme"] not in overall:
            continue  # PuzzleMix's row is a misprint
        found = corruption_summary(all_cells(lambda name, _, row=row: float(row[name]) / 100))
        printed = overall[row["scheme"]]
        assert found["corrupted/mean"] * 100 == pytest.approx(float(printed["value"]), abs=0.11)
        assert found["corrupted/mean_without_noise"] * 100 == pytest.approx(
            float(printed["value_excl_noise"]), abs=0.11
        )
        checked += 1
    assert checked >= 7


def test_other_corruptions_do_not_enter_the_means():
    cells = all_cells(lambda name, s: 0.5 + 0.1 * (name == "speckle_noise"), [*CORRUPTIONS, "speckle_noise"])
    assert corruption_summary(cells)["corrupted/mean"] == pytest.approx(0.5)
    assert corruption_summary(cells)["corrupted/category/noise"] == pytest.approx(0.5)
    assert corruption_summary(cells)["corrupted/speckle_noise/2"] == 0.6
    assert category_of("spatter") == "weather"


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: confidences_of(torch.zeros(3, 2), torch.zeros(2).long()), "n labels"),
        (lambda: ece([0.5], [1, 0]), "two arrays"),
        (lambda: aurra([], []), "n >= 1"),
        (lambda: aurra([1.5], [1]), "probabilities"),
        (lambda: aurra([math.nan], [1]), "probabilities"),
        (lambda: aurra([0.5], [0.5]), "0 and 1"),
        (lambda: ece([0.5], [1], bins=0), "bins: expected"),
        (lambda: rms_calibration_error([0.5], [1], bin_size=0), "bin_size: expected"),
        (
            lambda: rms_calibration_error([0.5] * 199, [1] * 199, omit_last=True),
            "omit_last: expected at least two bins",
        ),
        (lambda: flip_probability(torch.zeros(3, 1).long(), noise=True), "at least two frames"),
        (lambda: flip_probability(torch.zeros(3, 4), noise=True), "argmax"),
        (lambda: flip_summary({}), "at least one"),
        (lambda: flip_summary({"snow": 0.1}, reference={"fog": 0.1}), r"none for \['snow'\]"),
        (lambda: flip_summary({"snow": 0.1}, reference={"snow": 0.0}), r"none for \['snow'\]"),
        (lambda: category_of("rain"), "corruption: expected one of"),
        (lambda: corruption_summary({("snow", 1): 0.5}), "74 are missing"),
        (lambda: corruption_summary({("snow", 1): 50.0}), "expected a share"),
        (lambda: corruption_summary({("snow", 0): 0.5}), "severity of 1 to 5"),
    ],
)
def test_bad_requests_say_what_was_expected(call, match):
    with pytest.raises(ValueError, match=match):
        call()
