"""The cross-check of the printed numbers: it finds the known misprints and injected ones, and not what is mended."""

import math
from dataclasses import replace

import pytest

from experiments.tables.audit import audit, report_markdown
from experiments.tables.audit_links import benchmarks, detail_means, printed_means, text_claims
from experiments.tables.audit_rules import (
    bold_is_best,
    falling,
    lost_digits,
    noise_order,
    ranges,
    repetitions,
)
from experiments.tables.findings import SEVERITIES, Finding
from experiments.tables.published import Published, load_published

PRINTED = load_published()
REPORT = audit(PRINTED)
FOUND = {finding.id: finding for finding in REPORT.findings}

#: The fifteen remarks made by hand on these tables: id of the finding, and numbers that it must show.
KNOWN = [
    ("repetition:nfm-table1:noisy_mixup:nfm-table2:noisy_mixup", {"clean": 78.9, "cells": 7}),
    (
        "repetition:nfm-table1:mixup:baseline",
        {"salt_pepper_gamma/0.04": 76.1, "salt_pepper_gamma/0.1": 55.2, "cells": 2},
    ),
    ("lost-digit:nfm-table2:cutmix:salt_pepper_gamma/0.04", {"value": 58, "decimals": 0, "usual": 1}),
    ("repetition:noisymix-table6:puzzlemix:adversarial", {"cells": 15, "fog": 6.2}),
    (
        "detail-mean:noisymix-table6:puzzlemix",
        {"mean": 32.09, "summary": 44.6, "mean_without_noise": 35.40, "summary_without_noise": 46.4},
    ),
    ("detail-mean:noisymix-table9:cutmix", {"mean": 72.93, "summary": 71.6}),
    ("noise-order:noisymix-table9:cutmix", {"white": 44.2, "shot": 36.3, "others": 31}),
    ("ablation:noisymix-table4:augmix:cifar100_c", {"ablation": 66.9, "summary": 66.7, "detail_mean": 66.74}),
    ("gain:noisymix-table4:noisymix", {"gain": 24.5, "printed": 24.4}),
    (
        "decomposition:noisymix-table5:augmix:cifar100_c",
        {"first": 58.8, "second": 24.2, "third": 66.8, "expected": 56.15, "third_if": 70.33, "second_if": 34.8}
        | {"weight": 0.25, "fitting": 11, "cells": 12},
    ),
    (
        "detail-mean:noisymix-table12:stylized_imagenet",
        {"mean": 41.61, "summary": 54.4, "mean_without_noise": 44.53, "summary_without_noise": 55.2},
    ),
    ("printed-mean:noisymix-table12:stylized_imagenet", {"mean": 41.61, "printed": 54.4}),
    ("printed-mean:noisymix-table12:autoaugment", {"mean": 56.49, "printed": 56.6, "summary": 56.5}),
    ("noise-order:noisymix-table12:adversarial", {"white": 25.6, "shot": 40.1, "others": 9}),
    ("claim:noisymix-table12:noisymix:imagenet-p-6", {"claimed": 6, "counted": 7}),
    ("claim:noisymix-table2:puzzlemix:puzzlemix-cifar10-2", {"cifar10: puzzlemix": 96.5, "cifar10: cutmix": 96.5}),
    ("claim:noisymix-table2:puzzlemix:puzzlemix-cifar100-2", {"cifar100: manifold_mixup": 80.3}),
    ("claim:noisymix-table3:puzzlemix:puzzlemix-cifar100-3", {"cifar100: manifold_mixup": 81.8}),
    ("whole-count:noisymix-figure4:manifold_mixup", {"value": 87.4, "points": 250, "step": 0.4, "fits": 500}),
    ("submission:noisymix-table1:noisymix:imagenet", {"printed": 77.6, "submitted": 77.14}),
    ("submission:noisymix-table3:noisymix:cifar10", {"submitted": 96.73}),
    ("submission:noisymix-table3:noisymix:cifar10_c", {"submitted": 92.78}),
]
#: Found beside them: the width in the network's name.
BESIDE = {"network:noisymix-table3:noisymix"}


@pytest.mark.parametrize(("name", "numbers"), KNOWN, ids=[name for name, _ in KNOWN])
def test_the_known_remarks_are_found_with_their_numbers(name, numbers):
    for key, value in numbers.items():
        assert FOUND[name].numbers[key] == pytest.approx(value, abs=0.0051)


def test_nothing_else_is_found():
    assert set(FOUND) == {name for name, _ in KNOWN} | BESIDE


def test_the_explanations_that_the_numbers_suggest():
    assert "gaussian_noise 24.2 instead of 44.2" in FOUND["detail-mean:noisymix-table9:cutmix"].suggestion
    assert "71.59" in FOUND["detail-mean:noisymix-table9:cutmix"].suggestion
    assert "summary of adversarial" in FOUND["detail-mean:noisymix-table6:puzzlemix"].what
    assert "nfm-table2" in FOUND["repetition:nfm-table1:noisy_mixup:nfm-table2:noisy_mixup"].suggestion
    assert "augmix_noise" in FOUND["ablation:noisymix-table4:augmix:cifar100_c"].suggestion
    assert "baseline" in FOUND["decomposition:noisymix-table5:augmix:cifar100_c"].what
    assert "33.35, printed 33.4" in FOUND["noise-order:noisymix-table12:adversarial"].what


MENDED = [
    ("lost-digit", "nfm-table2", "cutmix", "salt_pepper_gamma/0.04", "58.4"),
    ("detail-mean:noisymix-table9", "noisymix-table9", "cutmix", "gaussian_noise", "24.2"),
    ("noise-order:noisymix-table9", "noisymix-table9", "cutmix", "gaussian_noise", "24.2"),
    ("ablation", "noisymix-table4", "augmix", "cifar100_c", "66.7"),
    ("gain:noisymix-table4:noisymix", "noisymix-table4", "noisymix", "robustness_gain", "24.5"),
    ("decomposition", "noisymix-table5", "augmix", "cifar100_c_third", "70.3"),
    ("decomposition", "noisymix-table5", "augmix", "cifar100_c_second", "34.8"),
    ("printed-mean:noisymix-table12:autoaugment", "noisymix-table12", "autoaugment", "mfr", "56.5"),
    ("noise-order:noisymix-table12", "noisymix-table12", "adversarial", "shot_noise", "24.1"),
    ("claim:noisymix-table12", "noisymix-table12", "noisymix", "tilt", "31.0"),
    ("claim:noisymix-table2:puzzlemix:puzzlemix-cifar10-2", "noisymix-table2", "puzzlemix", "cifar10", "96.6"),
    ("whole-count", "noisymix-figure4", "manifold_mixup", "accuracy", "87.6"),
    ("submission:noisymix-table1", "noisymix-table1", "noisymix", "imagenet", "77.1"),
    ("repetition:nfm-table1:mixup", "nfm-table1", "mixup", "salt_pepper_gamma/0.1", "47.3"),
    ("repetition:nfm-table1:mixup", "nfm-table1", "baseline", "salt_pepper_gamma/0.04", "74.3"),
]


@pytest.mark.parametrize(("name", "table", "row", "column", "text"), MENDED)
def test_a_mended_number_is_no_finding(name, table, row, column, text):
    after = audit(PRINTED.amend(table, row, column, text))
    assert any(finding.startswith(name) for finding in FOUND)
    assert not any(finding.id.startswith(name) for finding in after.findings)


INJECTED = [
    (lost_digits, "noisymix-table7", "nfm", "fog", "87", {}),
    (ranges, "noisymix-table2", "nfm", "cifar10", "97.4", {}),
    (ranges, "noisymix-table6", "mixup", "fog", "157.5", {}),
    (falling, "nfm-table1", "nfm", "white_noise_sigma/0.2", "95.6", {}),
    (falling, "nfm-table3", "baseline", "salt_pepper_gamma/0.06", "49.9", {}),
    (bold_is_best, "nfm-table2", "mixup", "clean", "81.3", {}),
    (bold_is_best, "nfm-table1", "cutmix", "clean", "96.3", {"bold": False}),
    (noise_order, "noisymix-table8", "augmix", "gaussian_noise", "64.8", {}),
    (detail_means, "noisymix-table10", "nfm", "snow", "56.5", {}),
    (detail_means, "noisymix-table1", "augmix", "imagenet_c/excl_noise", "50.9", {}),
    (printed_means, "noisymix-table13", "nfm", "mfr", "5.3", {}),
    (text_claims, "noisymix-table6", "noisymix", "fog", "58.0", {}),
]


@pytest.mark.parametrize(("rule", "table", "row", "column", "text", "changes"), INJECTED)
def test_an_injected_error_is_found(rule, table, row, column, text, changes):
    before = {finding.id for finding in rule(PRINTED).findings}
    after = rule(PRINTED.amend(table, row, column, text, **changes)).findings
    assert [finding for finding in after if finding.id not in before]


def test_a_copied_row_is_found_wherever_it_is():
    copied = PRINTED
    for column, cell in PRINTED.rows("noisymix-table8")["nfm"].items():
        copied = copied.amend("noisymix-table10", "mixup", column, cell.text)
    new = {finding.id for finding in repetitions(copied).findings} - set(FOUND)
    assert new == {"repetition:noisymix-table10:mixup:noisymix-table8:nfm"}


def test_rounding_up_to_a_tenth_is_none_of_its_business():
    cells = PRINTED.rows("noisymix-table13")["nfm"]
    mean = math.fsum(cell.value for name, cell in cells.items() if name != "mfr") / 10
    assert mean == pytest.approx(3.46)
    for text, found in (("3.4", 0), ("3.5", 0), ("3.6", 1), ("3.3", 1)):
        assert len(printed_means(PRINTED.amend("noisymix-table13", "nfm", "mfr", text)).findings) == found + 2


def test_counts_of_checks():
    checks = {what: (passed, checked) for what, passed, checked in REPORT.checks_passed}
    assert all(0 < passed <= checked for passed, checked in checks.values())
    assert checks["bold is the best of its column"] == (154, 154)
    # 9 + 9 + 4 rows with six steps down each: three of σ, three of γ.
    assert checks["accuracy falls with the level of the noise"] == (132, 132)
    assert checks["three numbers of a corrupted column agree"] == (11, 12)


def test_no_tables_no_findings():
    empty = Published(())
    assert repetitions(empty).findings == lost_digits(empty).findings == detail_means(empty).findings == ()


def test_report_and_severity():
    text = report_markdown(REPORT)
    assert text.count("\n1. **") == 1
    assert len([line for line in text.splitlines() if line[:1].isdigit()]) == len(REPORT.findings)
    order = [SEVERITIES.index(finding.severity) for finding in REPORT.findings]
    assert order == sorted(order)
    with pytest.raises(ValueError, match="severity"):
        Finding("a", "b", "c", "d", {}, "scandal")


# The second source


def test_robustbench_agrees_with_the_printed_numbers_on_the_images_as_published():
    """All 60 cells within the error of 5000 images, and four means as RobustBench gave them."""
    result = benchmarks(PRINTED)
    assert (result.checked, result.findings) == (60, ())
    means = {"baseline": 39.2304, "stylized_imagenet": 45.5203, "augmix": 48.3069, "noisymix": 52.2549}
    for row, mean in means.items():
        some = [one.mean for one in PRINTED.benchmarks if (one.row, one.view) == (row, "published")]
        assert len(some) == 15
        assert sum(some) / 15 == pytest.approx(mean, abs=5e-5)


def test_resized_images_give_other_numbers():
    """Resizing smooths: noise hurts less, everything else more; the printed numbers are not of this view."""
    resized = {one.corruption: one.mean for one in PRINTED.benchmarks if (one.row, one.view) == ("baseline", "resized")}
    gaps = {name: value - PRINTED.number("noisymix-table6", "baseline", name) for name, value in resized.items()}
    assert all(gaps[f"{noise}_noise"] > 1.5 for noise in ("gaussian", "shot", "impulse"))
    assert sum(gaps.values()) / 15 < -1
    assert len(benchmarks(replace(PRINTED, benchmarks=tuple(
        replace(one, view="published") for one in PRINTED.benchmarks if one.view == "resized"
    ))).findings) > 15  # fmt: skip


def test_a_number_that_robustbench_does_not_confirm_is_found():
    (found,) = benchmarks(PRINTED.amend("noisymix-table6", "augmix", "fog", "50.8")).findings
    assert found.id == "benchmark:noisymix-table6:augmix:fog"
    assert found.numbers["measured"] == pytest.approx(46.92)
