"""Figures of the experiments show what the ledger has, mean and range, and nothing that was not run."""

import numpy as np
import pytest
import torch
from ledger_entries import entry
from torch import nn

from experiments.data.toy_sets import nfm_rings
from experiments.record.files import write_lines
from experiments.record.ledger import append
from experiments.studies.study import TITLES, study
from experiments.studies.where import TERMS
from experiments.tables import audit, load_published
from figures import fig_audit, fig_corruptions, fig_robustness, fig_second_order, fig_toy, fig_where, style


def some_entries():
    found = []
    for scheme, gain in (("baseline", 0.0), ("nfm", 0.1), ("noisymix", 0.2)):
        for seed, more in ((1, 0.0), (2, 0.02)):
            noise = {"white_noise/0.5": 0.3 + gain + more, "white_noise/0.1": 0.5 + gain + more}
            flips = {"flip_probability/mean": 0.3 - gain - more}
            found += [
                entry(f"digits/{scheme}", seed, "clean", clean=0.7 + gain + more),
                entry(f"digits/{scheme}", seed, "white_noise", **noise),
                entry(f"digits/{scheme}", seed, "flips", **flips),
            ]
    return found


DIGITS = study(some_entries(), "digits")


def test_curves_begin_at_the_clean_images_and_follow_the_level():
    points = fig_robustness.curve(DIGITS, "nfm", "white_noise")
    expected = [(0, 81, 80, 82), (0.1, 61, 60, 62), (0.5, 41, 40, 42)]
    assert np.array(points) == pytest.approx(np.array(expected))
    assert fig_robustness.curve(DIGITS, "nfm", "pgd_linf") == []
    assert fig_robustness.curve(DIGITS, "mixup", "white_noise") == []


def test_a_row_for_each_family_that_was_run_with_the_baseline_in_it():
    figure = fig_robustness.draw(DIGITS)
    first = [ax.get_legend_handles_labels()[1] for ax in figure.axes[::3]]
    assert first == [["Baseline", "NFM"], ["Baseline", "NoisyMix"]]
    line = figure.axes[0].get_lines()[1]
    assert list(line.get_ydata()) == pytest.approx([81, 61, 41])


def test_every_scheme_has_a_place_and_a_color_in_the_curves():
    families = [s for family in fig_robustness.FAMILIES.values() for s in family]
    assert sorted([*families, "baseline"]) == sorted(study([], "digits").recipes)
    assert max(map(len, fig_robustness.FAMILIES.values())) <= len(set(fig_robustness.COLORS))


def luminance(color):
    parts = [int(color[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_fifth_color_can_be_read_on_light_and_dark():
    for background in (1.0, luminance("#121212")):
        high, low = sorted([luminance(fig_robustness.OLIVE), background], reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 3


def test_bars_reach_from_the_baseline_to_the_mean():
    figure = fig_corruptions.draw(DIGITS, fig_corruptions.STABLE | {"clean": "clean"})
    assert [ax.get_title() for ax in figure.axes] == ["flip probability, %", "clean"]
    flips, clean = figure.axes
    assert [text.get_text() for text in flips.get_yticklabels()] == ["Baseline", "NFM", "NoisyMix"]
    bar = clean.patches[1]
    assert (bar.get_x(), bar.get_width()) == pytest.approx((71, 10))
    fewer = flips.patches[1]
    assert fewer.get_width() == pytest.approx(-10)
    assert fewer.get_facecolor()[:3] == bar.get_facecolor()[:3]  # fewer flips are better


@pytest.fixture(scope="module")
def rings_study():
    return study([entry("nfm-figure-toy/nfm", seed, clean=v) for seed, v in ((1, 0.9), (2, 0.92))], "nfm-figure-toy")


def test_toy_panels_show_ours_beside_the_paper(rings_study):
    printed = load_published().get("nfm-figure-toy", "nfm", "accuracy").text
    assert fig_toy.caption(rings_study, "nfm") == f"ours 91.0 % (90.0 to 92.0)\npaper {printed} %"
    assert fig_toy.caption(rings_study, "mixup").startswith("ours not run")
    model = nn.Linear(2, 2)
    figure = fig_toy.draw(rings_study, {"nfm": (model, nfm_rings())})
    assert [ax.get_title() for ax in figure.axes] == [TITLES[s] for s in rings_study.recipes]
    with_map = [ax.get_title() for ax in figure.axes if ax.images]
    assert with_map == ["NFM"]


def test_probabilities_lie_where_the_axes_say():
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0, 0.0], [3.0, 0.0]]))
        model.bias.zero_()
    x, y = np.array([-1.0, 0.0, 2.0]), np.array([0.0, 1.0])
    found = fig_toy.probability(model, x, y)
    assert found == pytest.approx(np.tile(1 / (1 + np.exp(-3 * x)), (2, 1)), abs=1e-6)


def test_a_toy_network_is_trained_once_and_then_loaded(tmp_path, rings_study):
    recipe = rings_study.recipes["nfm"]
    model, data = fig_toy.trained(recipe, runs=tmp_path)
    assert len(data.x_test) == 200
    assert (model(data.x_test.float()).argmax(1) == data.y_test).double().mean() > 0.8
    (weights,) = tmp_path.rglob("final.pt")
    before = weights.stat().st_mtime_ns
    again, _ = fig_toy.trained(recipe, runs=tmp_path)
    assert weights.stat().st_mtime_ns == before
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_means_that_do_not_fit_are_those_of_the_audit():
    found = fig_audit.means()
    odd = {(mean.table, mean.row) for mean in found if not mean.fits}
    report = audit()
    named = {(f.table, f.row) for f in report.of("detail-mean")}
    assert odd == named
    assert sum(mean.fits for mean in found) > 70
    figure = fig_audit.draw(found)
    drawn = sum(len(line.get_xdata()) for line in figure.axes[0].get_lines())
    assert drawn == len(found)
    assert {text.get_text() for text in figure.axes[0].texts} == {"Puzzle Mix", "CutMix", "Stylized ImageNet"}


def test_files_are_written_for_what_the_ledger_has(tmp_path):
    for line in some_entries():
        append(tmp_path / "some.jsonl", line)
    written = fig_robustness.make(tmp_path / "some.jsonl", tmp_path)
    written += fig_corruptions.make(tmp_path / "some.jsonl", tmp_path)
    written += fig_toy.make(tmp_path / "some.jsonl", tmp_path)
    assert {path.name for path in written} == {
        f"{n}_digits.{s}" for n in ("robustness", "stability") for s in ("svg", "png")
    }
    assert style.OUT not in {path.parent for path in written}


# Second order ---------------------------------------------------------------------------------------------------


def gain_entries(rows, smooth=""):
    """The baseline, and rows with gains of so many points and half a point of spread; two metrics."""
    found = []
    for row, gain in {"baseline": 0.0, **rows}.items():
        kind = "eps" if row.startswith(("nfm-", "taylor_nfm-")) else "terms"
        for seed, more in ((1, 0.0), (2, 0.005), (3, -0.005)):
            values = {"clean": 0.7 + gain / 100 + more * (row != "baseline"), "corrupted/mean": 0.5}
            found.append(entry(f"digits-{kind}{smooth}/{row}", seed, **values))
    return found


def test_gains_against_the_scale_are_means_with_their_interval():
    scales = fig_second_order.studies_of(gain_entries({"nfm-0.1": 1.0, "nfm-1": 4.0, "taylor_nfm-1": 2.0}), "eps")
    figure = fig_second_order.draw_scales(scales)
    assert [ax.get_title() for ax in figure.axes] == ["clean", "corrupted: mean", "", ""]
    assert ["ReLU" in figure.axes[0].get_ylabel(), "SiLU" in figure.axes[2].get_ylabel()] == [True, True]
    first, *rest = figure.axes[0].get_lines()
    assert list(first.get_ydata()) == pytest.approx([1, 4])
    assert list(first.get_xdata()) == pytest.approx([0.1, 1], abs=0.01)
    half = 4.302653 * 0.5 / 3**0.5  # the 97.5 % point of Student's t with 2 degrees of freedom
    assert list(rest[0].get_ydata()) == pytest.approx([1 - half, 1 + half], rel=1e-5)
    points = [line.get_ydata()[0] for line in figure.axes[0].get_lines() if line.get_marker() == "s"]
    assert points == pytest.approx([2])
    assert len(figure.axes[2].get_lines()) == 3  # two empty curves and the line at zero


def test_each_term_has_its_gain_and_nothing_that_was_not_run():
    studies = fig_second_order.studies_of(gain_entries({"R2": 1.0, "taylor_nfm": 3.0, "nfm": 5.0}), "terms")
    figure = fig_second_order.draw_terms(studies)
    ax = figure.axes[0]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["R2", "all terms", "NFM"]
    points = [line for line in ax.get_lines() if line.get_marker() in ("s", "o")]
    assert [line.get_marker() for line in points] == ["s", "s", "o"]
    assert [line.get_xdata()[0] for line in points] == pytest.approx([1, 3, 5])
    assert [line.get_ydata()[0] for line in points] == [0, 1, 2]
    assert list(figure.axes[2].get_yticks()) == []


def decomposed(epoch, activation="relu", scheme="nfm"):
    names = ("standard", "R1", "R2", "R3", "R2_add", "R3_add", "R2_mult", "R3_mult")
    terms = {name: (k + 1) / (epoch + 1) for k, name in enumerate(names)}
    loss = sum(terms.values()) + 0.5
    return {"activation": activation, "scheme": scheme, "seed": 1, "epoch": epoch, "loss": loss, "stderr": 0.1,
            "terms": terms, "remainder": 0.5}  # fmt: skip


def test_the_loss_is_drawn_in_its_parts():
    records = [decomposed(e, a, s) for e in (0, 1) for a in ("relu", "silu") for s in ("baseline", "nfm")]
    figure = fig_second_order.draw_decomposition(records)
    assert [ax.get_title() for ax in figure.axes if ax.get_title()] == ["trained: Baseline", "trained: NFM"]
    assert len(figure.axes) == 4
    drawn = np.array([line.get_ydata() for line in figure.axes[0].get_lines()])
    parts = [[1, 0.5], [35.5, 18], [2, 1], [3, 1.5], [4, 2], [11, 5.5], [15, 7.5], [0.5, 0.5]]
    assert drawn == pytest.approx(np.array(parts))


def test_second_order_files_are_written_for_what_there_is(tmp_path):
    for line in gain_entries({"R2": 1.0, "nfm-0.1": 1.0}):
        append(tmp_path / "some.jsonl", line)
    append(tmp_path / "other.jsonl", entry("digits/nfm", 1, clean=0.5))
    write_lines(tmp_path / "decomposition.jsonl", [decomposed(0)])
    written = fig_second_order.make(tmp_path / "some.jsonl", tmp_path / "out")
    written += fig_second_order.make_decomposition(tmp_path / "decomposition.jsonl", tmp_path / "out")
    names = ("second_order_scales", "second_order_terms", "decomposition")
    assert {path.name for path in written} == {f"{name}.{s}" for name in names for s in ("svg", "png")}
    assert fig_second_order.make(tmp_path / "other.jsonl", tmp_path / "other") == []


# Which noise does it --------------------------------------------------------------------------------------------------


def layer_record(epoch):
    at = dict(zip(("", "layer1", "layer2", "layer3"), (6.0, 2.0, 1.0, 1.0), strict=True))
    terms = {layer: dict.fromkeys(TERMS, 0.0) | {"R2_add": (epoch + 1) * v, "R2_mult": v} for layer, v in at.items()}
    return {"study": "fashion-where-full", "epoch": epoch, "epochs": 1, "per_layer": terms}


def intervention_entries():
    gains = {"manifold_mixup": 0.0, "nfm": 0.2, "noise-input": 0.1, "noise-hidden": 0.06, "no-mixing": 0.3}
    more = {"manifold_mixup": 0.0, "nfm": 0.01, "noise-input": 0.02, "noise-hidden": 0.0, "no-mixing": 0.0}
    found = {(row, seed): 0.5 + gain + (seed - 1) * more[row] for row, gain in gains.items() for seed in (1, 2)}
    return [
        entry(f"fashion-where-full/{row}", seed, "white_noise", **{"white_noise/0.5": value})
        for (row, seed), value in found.items()
    ]


def test_predicted_and_measured_shares_are_drawn_from_the_smallest():
    figure = fig_where.draw(intervention_entries(), [layer_record(0), layer_record(1)])
    left, right = figure.axes
    assert list(left.get_lines()[2].get_ydata()) == [12, 4, 2, 2]  # additive noise, during training
    words = [text.get_text() for text in right.get_yticklabels()]
    assert words == ["noise at the hidden layers only", "noise at the input only"]
    assert [line.get_xdata()[0] for line in right.get_lines() if line.get_marker() == "D"] == pytest.approx([0.4, 0.6])
    measured = [line.get_xdata()[0] for line in right.get_lines() if line.get_marker() == "o"]
    assert measured == pytest.approx([0.06 / 0.205, 0.11 / 0.205])


def test_the_figure_of_interventions_needs_one(tmp_path):
    append(tmp_path / "other.jsonl", entry("digits/nfm", 1, clean=0.5))
    assert fig_where.make(tmp_path / "other.jsonl", tmp_path / "out") == []
    for line in intervention_entries():
        append(tmp_path / "some.jsonl", line)
    write_lines(tmp_path / "where.jsonl", [layer_record(0), layer_record(1)])
    written = fig_where.make(tmp_path / "some.jsonl", tmp_path / "out")
    assert {path.name for path in written} == {"where.svg", "where.png"}
