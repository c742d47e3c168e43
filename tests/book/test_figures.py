"""Every figure draws from records like those of the main job, and says what it must."""

import json

import pytest
from ledger_entries import entry
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from trained_records import TRAINED, trained_record

from experiments.record.files import write_lines
from experiments.record.ledger import LEDGER, append
from figures import __main__ as command
from figures import fig_bounds, fig_cost, fig_remainder, fig_validity, fig_validity_trained, style
from figures.__main__ import main
from figures.style import SCHEME_TITLES

EPS = [0.1, 0.05, 0.025]


def record(scheme, layer, q):
    report = {
        "eps": EPS,
        "leading_order": q,
        "predicted_coefficient": -0.5,
        "remainders": [-0.5 * e**q * (1 + e) for e in EPS],
    }
    errors = {str(p): [1e-4 / p, 1e-2 / p, 0.2 / p] for p in (1, 2, 3)}
    curve = {"eps": EPS[::-1], "relative_error": errors, "tolerance": 0.1}
    return {"model": "mlp", "classes": 10, "layer": layer, "scheme": scheme, "report": report, "curve": curve}


def bound_record(model, classes, scheme, seed=0):
    sides = [
        {"eps": e, "verdict": v, "standard_loss": 0.1, "nfm_loss": 0.1 + 0.3 * e, "right_lower": 0.1 + 0.1 * e,
         "right_upper": None if v == "undecided" else 0.1 + 0.2 * e}
        for e, v in ((0.1, "refuted"), (0.5, "certified"), (1.0, "undecided"))
    ]  # fmt: skip
    points = {
        "sharp": [0.1, 0.2, 0.3],
        "paper": [0.1, 0.1, 0.2],
        "certified": [0.4, 0.5, 0.6],
        "flip": [0.7, 1.0, None],
    }
    return {"model": model, "classes": classes, "scheme": scheme, "seed": seed, "bound": sides, "points": points}


BOUNDS = [bound_record(m, k, s) for m in ("leaky_mlp", "relu_mlp") for k in (2, 10) for s in fig_bounds.SCHEME_TITLES]
COSTS = {
    "cells": [{"case": "cnn", "quantity": "training, 1 probe", "method": "nfm_theory", "time": 2.0, "memory": 1.5}],
    "scaling": {name: [{"count": 1, "time": 1.0, "memory": 1.0}] for name in ("directions", "samples")},
}
DECOMPOSED = {
    "activation": "relu", "scheme": "nfm", "seed": 1, "epoch": 0, "loss": 2.0, "stderr": 0.1, "remainder": 0.5,
    "terms": {"standard": 1.5, **dict.fromkeys(("R1", "R2", "R3", "R2_add", "R3_add", "R2_mult", "R3_mult"), 0.0)},
}  # fmt: skip
RECORDS = [record(s, layer, 4 if s == "noise" else 3) for s in SCHEME_TITLES for layer in ("", "hidden1")]


@pytest.mark.parametrize("module", [fig_remainder, fig_validity])
def test_a_panel_for_each_scheme_and_kind_of_layer(module):
    figure = module.draw(RECORDS)
    assert isinstance(figure, Figure)
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert titles == list(SCHEME_TITLES.values())
    assert len(figure.axes) == 2 * len(SCHEME_TITLES)
    assert figure.legends


def test_points_are_measured_and_lines_predicted():
    figure = fig_remainder.draw(RECORDS[:1])
    line, points = figure.axes[0].get_lines()
    assert list(points.get_ydata()) == pytest.approx([0.5 * e**3 * (1 + e) for e in EPS])
    assert list(line.get_ydata()) == pytest.approx([0.5 * e**3 for e in line.get_xdata()])


def test_both_sides_of_the_bound_for_every_network_and_scheme():
    figure = fig_bounds.draw_sides(BOUNDS)
    assert len(figure.axes) == 4 * len(fig_bounds.SCHEME_TITLES)
    assert [ax.get_title() for ax in figure.axes if ax.get_title()] == list(fig_bounds.SCHEME_TITLES.values())
    low, high, left, *verdicts = figure.axes[0].get_lines()
    assert list(low.get_ydata()) == pytest.approx([0.1] * 3)
    assert list(high.get_ydata())[:2] == pytest.approx([0.2] * 2)
    assert list(left.get_ydata()) == pytest.approx([0.3] * 3)
    assert [m.get_marker() for m in verdicts] == ["X", "o", "D"]


def test_radii_are_medians_and_what_no_attack_reached_is_infinite():
    figure = fig_bounds.draw_radii(BOUNDS)
    assert len(figure.axes) == 4
    medians = [line.get_xdata()[0] for line in figure.axes[0].get_lines() if line.get_marker() != "None"]
    assert medians[:4] == pytest.approx([0.1, 0.2, 0.5, 1.0])


def test_an_unknown_scheme_is_named():
    with pytest.raises(ValueError, match="scheme: expected"):
        fig_bounds.draw_radii([{**BOUNDS[0], "scheme": "cutout"}])
    with pytest.raises(ValueError, match="scheme: expected"):
        fig_validity.draw([{**RECORDS[0], "scheme": "cutout"}])


def luminance(color):
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in to_rgb(color)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def pale_texts(figure):
    """The texts of a figure whose contrast to its white panel is below 4.5:1, the limit of WCAG 2.1 at level AA."""
    assert to_rgb(figure.get_facecolor()) == (1, 1, 1)
    assert all(to_rgb(ax.get_facecolor()) == (1, 1, 1) for ax in figure.axes)
    texts = [text for text in figure.findobj(Text) if text.get_text().strip() and text.get_visible()]
    return [text.get_text() for text in texts if 1.05 / (luminance(text.get_color()) + 0.05) < 4.5]


def test_pale_text_is_found():
    figure = Figure(facecolor="white")
    figure.text(0, 0, "dark", color=style.INK)
    figure.text(0, 0, "pale", color=style.PINK)
    assert pale_texts(figure) == ["pale"]


def test_the_command_draws_them_all_and_names_what_is_missing(tmp_path, capsys, monkeypatch):
    # Computed figures have tests of their own, and take networks
    monkeypatch.setattr(command, "COMPUTED", (lambda out: style.save(Figure(), "computed", out),))
    drawn, save = {}, style.save
    monkeypatch.setattr(style, "save", lambda figure, name, out: [])
    arguments = ["--results", str(tmp_path), "--benchmarks", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert "python -m experiments study expansion" in capsys.readouterr().err
    for name in ("expansion", "validity"):
        write_lines(tmp_path / f"{name}.jsonl", RECORDS[:2])
    assert main(arguments) == 2
    assert "python -m experiments study validity" in capsys.readouterr().err
    write_lines(tmp_path / "validity_trained.jsonl", TRAINED)
    assert main(arguments) == 2
    assert "python -m experiments study bounds" in capsys.readouterr().err
    write_lines(tmp_path / "bounds.jsonl", BOUNDS[:2])
    append(tmp_path / LEDGER.name, entry("digits/baseline", 1, clean=0.9, ece=0.1, **{"pgd_linf/0.1": 0.5}))
    (tmp_path / "estimators.json").write_text(json.dumps(COSTS))
    assert main(arguments) == 2
    assert "python -m experiments study decomposition" in capsys.readouterr().err
    write_lines(tmp_path / "decomposition.jsonl", [DECOMPOSED])

    def save_one(figure, name, out):
        drawn[name] = figure
        return save(figure, name, out) if name == "remainder" else figure.draw_without_rendering() or []

    monkeypatch.setattr(style, "save", save_one)
    assert main(arguments) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"remainder.svg", "remainder.png"}
    figures = ["remainder", "validity", "validity_trained", "bounds", "radii", "cost", "scaling", "audit"]
    figures += ["robustness_digits", "stability_digits", "decomposition", "computed"]
    assert set(figures) == drawn.keys()
    assert [pale for figure in drawn.values() for pale in pale_texts(figure)] == []
    again = (tmp_path / "out" / "remainder.svg").read_bytes()
    fig_remainder.make(tmp_path / "expansion.jsonl", tmp_path / "out")
    assert (tmp_path / "out" / "remainder.svg").read_bytes() == again


def cell(case, quantity, method, time, memory=2.0):
    return {"case": case, "quantity": quantity, "method": method, "kind": "value", "time": time, "memory": memory}


COSTS = {
    "cells": [
        cell("mlp64", "R2+R3, data, exact", "nfm_theory", 40.0),
        cell("mlp64", "R2+R3, data, exact", "jvp(grad), vmap", 200.0),
        cell("mlp64", "R2+R3, data, exact", "jvp(grad), chunks", 130.0),
        cell("mlp64", "training, 1 probe", "TaylorRegularizer beside the loss", 4.5),
        {"case": "cnn", "quantity": "R2+R3, data, exact", "method": "nfm_theory", "kind": "value", "skipped": "why"},
    ],
    "scaling": {
        name: [{"count": n, "time": 2.0 * n, "memory": 7.0} for n in (16, 32)] for name in ("directions", "samples")
    },
}


def test_costs_are_shown_by_family_and_nothing_that_was_not_measured_is():
    header, body = fig_cost.rows(COSTS)
    assert header[:3] == ["case", "quantity", "nfm_theory"]
    assert [row[:2] for row in body] == [["MLP, d = 64", "R2+R3, data, exact"], ["MLP, d = 64", "training, 1 probe"]]
    assert body[0][header.index("jvp(grad)")] == "130 (2)"  # the fastest of the family
    assert body[1][header.index("nfm_theory")] == "4.5 (2)"
    assert body[0][header.index("Taylor mode")] == "–"
    figure = fig_cost.draw(COSTS)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [": ".join(row[:2]) for row in body]


def test_arithmetic_is_compared_with_ours_where_it_was_counted():
    header, body = fig_cost.arithmetic_rows(COSTS)
    assert body == []
    counted = [c | {"flops": f} for c, f in zip(COSTS["cells"][:3], (30.0, 90.0, 120.0), strict=True)]
    _, ((case, quantity, ours, *peers),) = fig_cost.arithmetic_rows({"cells": counted})
    assert (case, quantity, ours) == ("MLP, d = 64", "R2+R3, data, exact", "30 (40)")
    assert dict(zip(header[3:], peers, strict=True))["jvp(grad)"] == "× 3 (× 3.25)"
    assert set(peers) == {"–", "× 3 (× 3.25)"}


def test_peers_measured_in_several_ways_are_multiples_of_ours():
    header, ((*what, whole, chunks, every),) = fig_cost.variant_rows(COSTS)
    assert what == ["MLP, d = 64", "R2+R3, data, exact", "jvp(grad)"]
    assert dict(zip(header[3:], (whole, chunks, every), strict=True)) == {
        "all at once": "× 5 (× 1)",
        "in chunks": "× 3.25 (× 1)",
        "every output": "–",
    }
    alone = [entry for entry in COSTS["cells"] if entry["method"] != "jvp(grad), vmap"]
    assert fig_cost.variant_rows({"cells": alone})[1] == []
    of_outputs = [
        dict(c, method=c["method"].replace("jvp(grad), vmap", "jvp(grad), every output")) for c in COSTS["cells"]
    ]
    (row,) = fig_cost.variant_rows({"cells": of_outputs})[1]
    assert row[3:] == ["–", "× 3.25 (× 1)", "× 5 (× 1)"]


def test_costs_and_their_growth_are_written(tmp_path):
    source = tmp_path / "estimators.json"
    source.write_text(json.dumps(COSTS))
    names = {path.name for path in fig_cost.make(source, tmp_path)}
    assert names == {"cost.svg", "cost.png", "scaling.svg", "scaling.png"}


def test_trained_networks_have_curves_by_training_and_radii_by_layer():
    figure = fig_validity_trained.draw(TRAINED)
    assert len(figure.axes) == 2 * (len(fig_validity_trained.TRAININGS) + 1)
    assert [ax.get_title() for ax in figure.axes[:2]] == ["Baseline", "Mixup"]
    curves = [line for line in figure.axes[0].get_lines() if len(line.get_xdata()) == 3]
    assert [list(c.get_ydata()) for c in curves] == [
        pytest.approx([0.001 / p, 0.04 / p, 0.6 / p]) for p in (1, 2, 3, 4)
    ]
    assert not figure.axes[1].get_lines()  # no network was trained with Mixup
    assert figure.axes[1].texts[0].get_text() == "not run"
    marks = [line for line in figure.axes[3].get_lines() if line.get_marker() in style.MARKERS]
    assert [m.get_xdata()[0] for m in marks] == pytest.approx([0.3] * 6)
    assert [t.get_text() for t in figure.axes[3].get_yticklabels()] == ["Baseline", "NFM", "NoisyMix"]


def test_a_radius_beyond_one_is_an_arrow_and_unknown_networks_are_named():
    far = [trained_record("mlp", "nfm", "", "released", radius=None)]
    assert [line.get_marker() for line in fig_validity_trained.draw(far).axes[3].get_lines()][-1] == ">"
    with pytest.raises(ValueError, match="models \\["):
        fig_validity_trained.draw([trained_record("vgg", "nfm", "", "released")])
    with pytest.raises(ValueError, match="law 'released'"):
        fig_validity_trained.draw([trained_record("mlp", "nfm", "", "mixing")])
