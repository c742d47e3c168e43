"""The interactive figures: the data say what the library says, and the scripts compute with them as it does."""

import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close
from typer.testing import CliRunner

import nfm_theory as nt
from experiments.commands import app
from experiments.data.digits import load_digits, verification_subset
from experiments.models.small import HIDDEN
from experiments.record.files import RESULTS, read_lines
from experiments.record.ledger import LEDGER
from experiments.runner import DONE, run_recipe
from experiments.studies import explore
from experiments.studies.networks import trained_network
from experiments.studies.study import load_entries, study
from experiments.training import Execution, run_folder
from experiments.training.along import EPOCHS
from figures import anim_toy, embed, fig_explore, fig_toy

STATIC = Path(__file__).resolve().parents[2] / "book" / "_static"
LAWS = [
    {"alpha": 0.37, "add_noise": 0.31, "mult_noise": 0.0},
    {"alpha": 2.6, "add_noise": 0.0, "mult_noise": 0.7},
    {"alpha": 1.4, "add_noise": 0.8, "mult_noise": 0.3},
    {"alpha": 0.0, "add_noise": 0.5, "mult_noise": 0.2},
]
QUICK = explore.Grid(eps=(0.05, 0.3), alpha=(0.0, 1.0), add_noise=(0.0, 0.4), mult_noise=(0.0,), n=4, samples=2000)
ORDERS = range(4)


@pytest.fixture(scope="module")
def problem():
    data = load_digits(10)
    return trained_network("mlp", 10).model, *verification_subset(data, 6)


@pytest.fixture(scope="module")
def tracked():
    return read_lines(RESULTS / explore.NAME)


# The expansion ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["", HIDDEN["mlp"]])
def test_coefficients_give_the_terms_at_every_law(problem, layer):
    found = explore.coefficients(*problem, layer=layer, loss="cross_entropy")
    for laws in LAWS:
        terms = explore.terms_at(found, explore.moments(laws["alpha"]), laws["add_noise"], laws["mult_noise"])
        expected = nt.terms(nt.Problem(*problem, layer=layer, law=nt.Law(**laws)))
        for name, value in expected.to_dict().items():
            assert_close(terms.to_dict()[name], value, rtol=1e-10, atol=1e-12, msg=f"{name} at {laws}")
        assert_close(terms.polynomial(0.7, 3), expected.polynomial(0.7, 3), rtol=1e-10, atol=1e-12)


def test_moments_are_those_of_a_beta_law():
    for alpha in (0.2, 1.0, 3.5):
        first = alpha / (2 * alpha + 1)  # 1 - λ ~ Beta(α, α + 1)
        assert explore.moments(alpha) == pytest.approx([first, first / 2, first / 2 * (alpha + 2) / (2 * alpha + 3)])
    assert explore.moments(0.0) == [0, 0, 0]


def test_the_excess_is_the_exact_loss_less_order_two(problem):
    for law in (nt.Law(), nt.Law(add_noise=0.4)):
        one = nt.Problem(*problem, law=law)
        value, stderr = explore.excess(one, QUICK)
        eps = torch.tensor(QUICK.eps, dtype=torch.float64)
        other = nt.loss(one, eps, "monte_carlo", samples=8000, generator=torch.Generator().manual_seed(5))
        gap = torch.tensor(value) + nt.terms(one).polynomial(eps) - other.value
        assert (gap.abs() <= 5 * (torch.tensor(stderr) ** 2 + other.stderr**2).sqrt()).all()
        assert all(s > 0 for s in stderr) == bool(law.add_noise)
    still = nt.Problem(*problem, law=nt.Law(**dict.fromkeys(fig_explore.START, 0.0)))
    assert explore.excess(still, QUICK) == ([0, 0], [0, 0])


def test_the_tracked_record_is_of_these_networks(tracked):
    assert [(r["network"], r["layer"]) for r in tracked] == [
        (n, k) for n in explore.NETWORKS for k in ("", HIDDEN["mlp"])
    ]
    record = tracked[1]
    data = load_digits(10)
    x, y = verification_subset(data, record["grid"]["n"])
    model = trained_network(explore.MODEL, explore.CLASSES, **explore.NETWORKS[record["network"]]).model
    now = explore.coefficients(model, x, y, layer=record["layer"], loss=data.loss)
    assert now == pytest.approx(record["coefficients"], rel=1e-4)  # another machine rounds the training otherwise
    assert record["moments"] == [explore.moments(alpha) for alpha in record["grid"]["alpha"]]
    for record in tracked:
        grid = record["grid"]
        shape = tuple(len(grid[name]) for name in ("alpha", "add_noise", "mult_noise", "eps"))
        assert np.shape(record["excess"]) == np.shape(record["stderr"]) == shape
        assert (np.array(record["stderr"])[:, 1:] > 0).all()
        small = np.array(record["excess"])[1:, :, :, grid["eps"].index(0.06)]
        noise = np.array(record["stderr"])[1:, :, :, grid["eps"].index(0.06)]
        for a, s, t in np.ndindex(small.shape):  # order 2 leaves ε³ C3 where ε is small
            terms = explore.terms_at(
                record["coefficients"], record["moments"][a + 1], grid["add_noise"][s], grid["mult_noise"][t]
            )
            cubic = 0.06**3 * float(terms.C3)
            assert abs(small[a, s, t] - cubic) < 0.5 * cubic + 5 * noise[a, s, t]


def test_the_command_writes_a_record_for_each_network_and_layer(tmp_path, monkeypatch):
    monkeypatch.setattr(explore, "QUICK", QUICK)
    arguments = ["study", "explore", "--quick", "--workers", "1", "--out", str(tmp_path)]
    run = CliRunner().invoke(app, arguments)
    assert run.exit_code == 0
    records = read_lines(tmp_path / explore.NAME)
    assert len(records) == 4
    assert records[0]["excess"][0][0][0] == [0, 0]
    assert str(tmp_path) in run.output
    with pytest.raises(FileNotFoundError, match="experiments study explore --record`"):
        read_lines(tmp_path / "none" / explore.NAME)


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_script_computes_what_the_library_does(tracked):
    laws = [{"alpha": 1.0, "add_noise": 0.4, "mult_noise": 0.2}, {"alpha": 0.5, "add_noise": 0.6, "mult_noise": 0.0}]
    cases, expected = [], []
    for record in tracked:
        for law in laws:
            found = fig_explore.curves(record, **law)
            moment = record["moments"][record["grid"]["alpha"].index(law["alpha"])]
            cases.append([record["coefficients"], moment, law["add_noise"], law["mult_noise"],
                          found["eps"].tolist(), found["loss"].tolist()])  # fmt: skip
            expected.append([found["polynomials"].tolist(), [fig_explore.radius(found, order) for order in ORDERS]])
    program = f"""
        const {{ terms, polynomial, radius, between }} = require({json.dumps(str(STATIC / "explore.js"))});
        const answers = {json.dumps(cases)}.map(([c, m, add, mult, eps, loss]) => {{
          const values = [0, 1, 2, 3].map((order) => eps.map((e) => polynomial(terms(c, m, add, mult), e, order)));
          const excess = loss.map((v, k) => v - values[2][k]);
          return [values, values.map((v) => radius(eps, loss, v)), excess, eps.map((e) => between(eps, excess, e, 3))];
        }});
        console.log(JSON.stringify(answers));
    """
    done = subprocess.run(["node", "-e", program], capture_output=True, text=True, check=True)
    for (values, radii, excess, met), (polynomials, reaches) in zip(json.loads(done.stdout), expected, strict=True):
        np.testing.assert_allclose(values, polynomials, rtol=1e-12)
        np.testing.assert_allclose(radii, reaches, rtol=1e-9)
        np.testing.assert_allclose(met[1:], excess[1:], rtol=1e-9)  # the interpolation meets the grid


def content(html):
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', html)[1])


def test_the_figure_holds_its_data_and_a_still_image(tracked):
    html = fig_explore.figure(tracked)
    assert len(html) < 300_000
    data = content(html)
    assert [r["title"] for r in data["records"]] == [fig_explore.title(r) for r in tracked]
    assert data["records"][3]["excess"] == tracked[3]["excess"]
    assert all(data["start"][name] in data["grid"][name] for name in fig_explore.START)
    assert re.search(r'<img class="still" src="data:image/png;base64,[^"]+" alt="[^"]+">', html)
    left, right = fig_explore.draw(tracked[0], **fig_explore.START).axes
    assert [len(left.get_lines()), len(right.get_lines())] == [4, 3]


def test_nothing_in_the_data_ends_the_script():
    assert content(embed.widget("w", b"", "text", {"a": "</script><b>"})) == {"a": "</script><b>"}


# The toy problems -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rings(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    one = study(load_entries(), "nfm-figure-toy")
    schemes = ("baseline", "nfm")
    assert all(swept(one.recipes[scheme], runs) for scheme in schemes)
    found = {scheme: anim_toy.film(one.recipes[scheme], runs=runs) for scheme in schemes}
    return one, runs, {scheme: found[scheme][0] for scheme in schemes}, found["nfm"][1]


def swept(recipe, runs, *, stop_after=None):
    quiet = Execution(device="cpu", progress=False)
    outcome = run_recipe(recipe, 1, ledger=runs / "own.jsonl", runs=runs, execution=quiet, stop_after=stop_after)
    return outcome.status == DONE


def kept_file(runs, recipe):
    return run_folder(runs, recipe.training, 1) / "along.pt"


def test_the_last_frame_is_the_still_figure_and_the_ledger(rings):
    one, runs, found, data = rings
    grid = fig_toy.axis(data, anim_toy.SIDE)
    for scheme, film in found.items():
        model, _ = fig_toy.trained(one.recipes[scheme], runs=runs)
        still = np.rint(255 * fig_toy.probability(model, grid, grid)).astype(np.uint8)
        assert np.array_equal(film.maps[-1], still)
        assert film.accuracy[-1] == pytest.approx(one.values(scheme, "clean")[fig_toy.SEED], abs=0.005)
        assert film.epochs[0] == 0
        assert film.epochs[-1] == one.recipes[scheme].training.epochs
        assert film.accuracy[0] < film.accuracy[-1]
    assert np.array_equal(found["nfm"].maps[0], found["baseline"].maps[0])  # the same network before training


def test_networks_that_a_sweep_kept_are_those_of_a_training(rings, tmp_path):
    one, runs, found, _ = rings
    recipe = one.recipes["nfm"]
    kept = kept_file(runs, recipe)
    before = kept.stat().st_mtime_ns
    again, _ = anim_toy.film(recipe, runs=runs)
    assert kept.stat().st_mtime_ns == before
    trained, _ = anim_toy.film(recipe, runs=tmp_path)
    assert np.array_equal(again.maps, found["nfm"].maps)
    assert np.array_equal(trained.maps, found["nfm"].maps)


def test_a_training_in_two_parts_keeps_no_networks(rings, tmp_path):
    recipe = rings[0].recipes["nfm"]
    assert swept(recipe, tmp_path, stop_after=3)
    assert swept(recipe, tmp_path)
    assert not kept_file(tmp_path, recipe).exists()


def test_the_player_holds_every_frame(rings):
    _, _, found, data = rings
    html = anim_toy.player("two <rings>", found, data)
    assert len(html) < 300_000
    inside = content(html)
    assert inside["name"] == "two <rings>"
    assert inside["epochs"] == list(found["nfm"].epochs)
    assert len(inside["points"]) == len(data.x_test)
    tiles = np.asarray(Image.open(io.BytesIO(anim_toy.sprite(found))))
    side = anim_toy.SIDE
    assert tiles.shape == (len(inside["epochs"]) * side, 2 * side)
    assert np.array_equal(tiles[4 * side : 5 * side, side:][::-1], found["nfm"].maps[4])


def test_the_animated_image_moves_and_is_small(rings, tmp_path):
    one, _, found, data = rings
    short = {
        scheme: anim_toy.Film(film.epochs[:3], film.maps[[0, 9, -1]], film.accuracy[:3])
        for scheme, film in found.items()
    }
    path = anim_toy.save(short, data, tmp_path / "x" / "a.png")
    with Image.open(path) as image:
        assert image.n_frames == 4  # the last one first, for readers that show one only
        frames = [np.asarray(image.convert("RGB")) for k in range(4) if image.seek(k) is None]
    assert np.array_equal(frames[0], frames[3])
    assert not np.array_equal(frames[1], frames[2])
    assert path.stat().st_size / (4 * len(short)) * len(EPOCHS) * len(one.recipes) < 600_000
    figure = anim_toy.frame(found, data, 2)
    assert figure.get_suptitle() == "epoch 2"
    assert sum(bool(ax.images) for ax in figure.axes) == 2


def test_no_ledger_no_film(tmp_path):
    assert LEDGER.exists()
    with pytest.raises(ValueError, match="experiments sweep 'nfm-figure-toy"):
        anim_toy.films(study([], "nfm-figure-toy"), runs=tmp_path)


@pytest.mark.parametrize("name", ["explore.js", "toy-player.js"])
def test_scripts_are_short_strict_and_keep_to_themselves(name):
    text = (STATIC / name).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 250
    assert re.search(r'\(\(\) => \{\n  "use strict";', text)
    assert not re.search(r"^(const|let|var|function|async|class)\b", text, re.MULTILINE)
    assert not re.search(r"\b(fetch|XMLHttpRequest|import)\b|https?://(?!www\.w3\.org/2000/svg)", text)
