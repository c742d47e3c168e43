"""Maps of the regularizers add up to the regularizers, and agree with loops over dense Hessians."""

import numpy as np
import pytest
import torch
from torch.func import hessian, jacfwd

import nfm_theory as nt
from experiments.studies.maps import RegularizerMaps, regularizer_maps
from figures import fig_maps, style

LAWS = {
    "normal": nt.Law(alpha=0.7, add_noise=0.3, mult_noise=0.2),
    "released": nt.Law.released(alpha=0.7, add_noise=0.3, mult_noise=0.2),
}


def network(seed=0):
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((4, 5), (5, 3)))
    return lambda x: torch.tanh(x.flatten(1) @ first) @ second


def data(n=5, channels=1):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, channels, 2, 2 // channels, generator=generator, dtype=torch.float64)
    return x, torch.arange(n) % 3


def found(noise="normal", seed=0):
    x, y = data()
    return regularizer_maps(nt.Problem(network(seed), x, y, law=LAWS[noise]), y)


@pytest.mark.parametrize("noise", ["normal", "released"])
def test_the_sums_are_the_terms(noise):
    maps = found(noise)
    problem = nt.Problem(network(), *data(), law=LAWS[noise])
    expected, exact = nt.terms(problem, remainder=False), nt.regularizers(problem, "exact")
    for name, value in maps.terms().items():
        assert value == pytest.approx(float(getattr(expected, name)), rel=1e-10, abs=1e-13)
        assert value == pytest.approx(float(exact[name].value), rel=1e-10, abs=1e-13)
    for name, by_pixel in maps.pixels.items():
        torch.testing.assert_close(by_pixel.flatten(1).sum(1), maps.by_image[name])
    for order in ("R2", "R3"):
        torch.testing.assert_close(maps.along[order].sum() + maps.mean_way[order], maps.by_image[order].mean())


def test_pixels_and_images_by_loops_over_dense_hessians():
    maps, model, (x, y) = found(), network(), data()
    n, m1, m2 = len(x), nt.MixingLaw(0.7).moment(1), nt.MixingLaw(0.7).moment(2)
    for i in range(n):

        def outputs(v):
            return model(v.reshape(1, 1, 2, 2))[0]

        v = x[i].flatten()
        p, jacobian = outputs(v).softmax(0), jacfwd(outputs)(v)
        fisher = torch.diag(p) - torch.outer(p, p)
        slope = p - torch.eye(3, dtype=p.dtype)[y[i]]
        parts = {
            "R2": jacobian.T @ fisher @ jacobian,
            "R3": torch.einsum("k,kab->ab", slope, hessian(outputs)(v)),
        }
        for order, matrix in parts.items():
            add = 0.3**2 / 2 * matrix.diagonal()
            mult = 0.2**2 / 2 * matrix.diagonal() * v**2
            torch.testing.assert_close(maps.pixels[f"{order}_add"][i].flatten(), add)
            torch.testing.assert_close(maps.pixels[f"{order}_mult"][i].flatten(), mult)
            ways = [x[r].flatten() - v for r in range(n)]
            mean = sum(w @ matrix @ w for w in ways) / n
            assert float(maps.by_image[order][i]) == pytest.approx(float(m2 / 2 * mean))
        way = x.mean(0).flatten() - v
        assert float(maps.by_image["R1"][i]) == pytest.approx(float(m1 * slope @ (jacobian @ way)))


def test_directions_by_the_covariance():
    maps, (x, _) = found(), data()
    flat = maps.directions.flatten(1)
    torch.testing.assert_close(flat.T @ flat, torch.cov(x.flatten(1).T, correction=0))
    sizes = flat.norm(dim=1)
    assert (sizes[:-1] >= sizes[1:]).all()


def test_maps_of_a_hidden_layer_are_of_its_features():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 3))
    x, y = data()
    maps = regularizer_maps(nt.Problem(model.double().eval(), x, y, layer="2", law=LAWS["normal"]), y)
    assert maps.pixels["R2_add"].shape == (5, 3)
    assert float(maps.by_image["R3"].abs().max()) == 0.0  # the head is linear


SOME = {scheme: found(seed=k) for k, scheme in enumerate(fig_maps.TITLES)}


def test_every_panel_shows_the_sum_that_its_map_has():
    figure = fig_maps.draw_pixels(SOME)
    labels = [ax.get_xlabel() for ax in figure.axes if ax.get_xlabel().startswith("sum")]
    sums = [sum(one.terms()[f"{o}_{kind}"] for o in ("R2", "R3")) for kind in ("add", "mult") for one in SOME.values()]
    assert labels == [f"sum {value:+.3f}" for value in sums]
    shown = figure.axes[0].get_images()[0].get_array()
    assert np.array(shown) == pytest.approx(fig_maps.total_map(SOME["erm"], "add").mean(0)[0].numpy())


def test_scales_are_shared_within_a_row():
    figure = fig_maps.draw_images(SOME, [0, 3])
    panels = np.array(figure.axes).reshape(2, 4)
    for row in panels:
        limits = {ax.get_images()[0].get_clim() for ax in row[1:]}
        assert len(limits) == 1
        assert [ax.get_images()[0].get_array().shape for ax in row] == [(2, 2)] * 4


def test_shares_by_hand():
    fraction, carried = fig_maps.shares(torch.tensor([1.0, 6.0, -3.0]))
    assert list(fraction) == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert list(carried) == pytest.approx([0, 0.6, 0.9, 1])
    assert list(fig_maps.shares(torch.zeros(2))[1]) == [0, 0, 0]


def test_the_other_figures_draw_what_they_are_given():
    lines = fig_maps.draw_directions(SOME, count=3, shown=4).axes[3].get_lines()
    assert list(lines[0].get_ydata()) == pytest.approx(SOME["erm"].along["R2"].tolist()[:4])
    assert len(fig_maps.draw_shares(SOME).axes) == 3
    carriers = fig_maps.draw_carriers(SOME, count=2).axes
    first = SOME["erm"].by_image["R1"]
    largest = int(first.abs().argmax())
    assert carriers[0].get_xlabel() == f"{int(data()[1][largest])}: {float(first[largest]):+.2f}"


def test_examples_are_the_largest_and_a_typical_image():
    chosen = fig_maps.examples(SOME)
    assert len(set(chosen)) == len(chosen)
    for one in SOME.values():
        assert int(fig_maps.total_map(one, "add").flatten(1).sum(1).argmax()) in chosen


def test_color_images_are_summed_over_their_channels(tmp_path, monkeypatch):
    x, y = data(channels=2)
    color = regularizer_maps(nt.Problem(network(), x, y, law=LAWS["normal"]), y)
    assert isinstance(color, RegularizerMaps)
    shown = fig_maps.draw_pixels({"erm": color}).axes[0].get_images()[0].get_array()
    assert np.array(shown) == pytest.approx(fig_maps.total_map(color, "add").mean(0).sum(0).numpy())
    monkeypatch.setattr(fig_maps, "digits_maps", lambda: SOME)
    drawn = {}
    monkeypatch.setattr(style, "save", lambda figure, name, out: drawn.setdefault(name, figure) and [out / name])
    kinds = ("pixels", "images", "directions", "shares", "carriers")
    assert {path.name for path in fig_maps.make(tmp_path)} == {f"maps_{kind}" for kind in kinds}
    for figure in drawn.values():
        figure.draw_without_rendering()
