"""Every figure draws from records like those of the main job, and says what it must."""

import pytest
from matplotlib.figure import Figure

from experiments.records import write_lines
from figures import fig_remainder, fig_validity
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


def test_an_unknown_scheme_is_named():
    with pytest.raises(ValueError, match="scheme: expected"):
        fig_validity.draw([{**RECORDS[0], "scheme": "cutout"}])


def test_the_command_draws_them_all_and_names_what_is_missing(tmp_path, capsys):
    assert main(["--results", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "python -m experiments.verify_digits" in capsys.readouterr().err
    for name in ("expansion", "validity"):
        write_lines(tmp_path / f"{name}.jsonl", RECORDS)
    assert main(["--results", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"remainder.svg", "remainder.png", "validity.svg", "validity.png"}
    again = (tmp_path / "out" / "remainder.svg").read_bytes()
    main(["--results", str(tmp_path), "--out", str(tmp_path / "out")])
    assert (tmp_path / "out" / "remainder.svg").read_bytes() == again
