"""No false certificate: upper bounds against enumeration, long attacks and dense sampling; tightness is reported."""

import copy
import itertools
import json

import pytest
import torch
from problems import mlp, randn, small_cnn
from tiers import slow, some_slow
from torch import nn
from torch.testing import assert_close

from benchmarks.certificates import METHODS, Tightness, extend
from nfm_theory import Problem
from nfm_theory.adversarial import certify, worst_case
from nfm_theory.adversarial.linear_bounds import check_ball, region_distance, relaxed_minimum
from nfm_theory.adversarial.regions import RegionLimitError
from nfm_theory.adversarial.relaxations import Scalar, network_steps


@pytest.mark.parametrize("count", [8, *slow([100])])
def test_no_false_certificate_on_random_networks(count):
    """`python -m benchmarks.certificates` runs 10,000 of them."""
    found = extend(Tightness(), count)
    assert found.violation <= 1e-10
    assert found.gap <= 1e-5
    assert all(len(values) == 2 * count for values in found.ratios.values())
    medians = [found.quantile(name, 0.5) for name in ("enumeration", *METHODS)]
    assert medians == sorted(medians)
    assert medians[0] <= 1 + 1e-6
    assert medians[1] <= 1.1
    assert medians[3] <= 2.5


@pytest.mark.parametrize("seeds", [range(4), *slow([range(4, 6)])])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_enumeration_is_the_maximum_on_a_grid(norm, seeds):
    """In one and two dimensions the ball can be covered."""
    for seed in seeds:
        d = 1 + seed % 2
        model, x, y = mlp(seed, [d, 6, 4, 1], "relu"), randn(seed, 1, d), torch.tensor([seed % 2])
        found = certify(Problem(model, x, y, loss="logistic"), 1.5, norm=norm, method="enumeration")
        line = torch.linspace(-1.5, 1.5, 1001, dtype=torch.float64)
        grid = torch.cartesian_prod(*[line] * d).reshape(-1, d)
        grid = grid[grid.norm(dim=1) <= 1.5] if norm == "l2" else grid
        margins = (2 * y - 1) * model(x + grid).detach()[:, 0]
        assert found.margins.item() <= margins.min() + 1e-12
        assert_close(found.margins.item(), float(margins.min()), rtol=0, atol=0.02)
        assert_close(found.attained, found.margins, rtol=0, atol=1e-6)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("classes", [1, 2])
def test_closed_form_in_the_linear_region(norm, classes):
    model, x = mlp(2, [5, 10, 8, classes], "relu"), randn(3, 12, 5)
    y, loss = torch.arange(12) % 2, "logistic" if classes == 1 else "cross_entropy"
    problem, distance = Problem(model, x, y, loss=loss), region_distance(network_steps(model), x, norm=norm)
    for part, inside in ((0.999, True), (1.001, False)):
        options = {"radius": part * distance, "norm": norm}
        closed = certify(problem, method="region", **options)
        crown = certify(problem, method="crown", **options)
        exact = certify(problem, method="enumeration", **options)
        assert torch.equal(closed.inside, torch.full((12,), inside))
        assert torch.equal(crown.inside, closed.inside)
        assert torch.equal(exact.regions == 1, closed.inside)
        if inside:
            found = worst_case(problem, method="region", steps=60, **options)
            assert_close(closed.margins, crown.margins, rtol=1e-10, atol=1e-12)
            assert_close(closed.margins, exact.margins, rtol=1e-9, atol=1e-10)
            assert_close(found.lower, found.upper, rtol=1e-6, atol=1e-8)
            assert (found.gap >= -1e-10).all()
        else:
            assert closed.loss_upper.isinf().all()
            assert not closed.robust.any()


def ground(seed, activation, norm=nn.BatchNorm2d, pool=nn.MaxPool2d):
    return small_cnn(seed, activation=activation, norm=norm, pool=pool), randn(seed, 6, 1, 6, 6), torch.arange(6) % 3


CONVOLUTIONAL = list(
    itertools.product(["relu", "tanh", "softplus", "gelu", "silu"], [nn.MaxPool2d, nn.AvgPool2d], ["l2", "linf"])
)


@pytest.mark.parametrize(
    ("activation", "pool", "norm"),
    some_slow(CONVOLUTIONAL, lambda case: case in CONVOLUTIONAL[:4] + CONVOLUTIONAL[4::5]),
)
def test_convolutional_networks(activation, pool, norm):
    model, x, y = ground(4, activation, pool=pool)
    radius = torch.linspace(0, 0.3 if norm == "l2" else 0.05, 6, dtype=torch.float64)
    problem = Problem(model, x, y)
    uppers = []
    for method in METHODS:
        found = worst_case(problem, radius, norm=norm, method=method, steps=15, restarts=2)
        assert (found.gap >= -1e-10).all()
        assert_close(found.gap[0], torch.zeros_like(found.gap[0]), rtol=0, atol=1e-10)
        uppers.append(found.upper)
    assert (uppers[0] <= uppers[2] + 1e-10).all()
    assert (uppers[0] - found.lower).max() < 0.5 * (uppers[2] - found.lower).max()
    if activation == "relu":
        raised = certify(problem, radius, norm=norm, method="crown", slope_steps=10)
        assert (raised.loss_upper <= uppers[0] + 1e-12).all()
        assert (raised.loss_upper >= found.lower - 1e-10).all()
        assert raised.method == "crown, 10 slope steps"


ACTIVATIONS = [
    nn.ReLU(), nn.LeakyReLU(0.3), nn.Tanh(), nn.Sigmoid(), nn.Softplus(), nn.Softplus(beta=3), nn.ELU(), nn.ELU(0.4),
    nn.GELU(), nn.SiLU(),
]  # fmt: skip


@pytest.mark.parametrize("module", ACTIVATIONS, ids=str)
def test_lines_enclose_the_activation(module):
    ends = 4 * randn(1, 2, 400)
    ends[:, :40] *= 1e-3
    ends[:, 40:50] = ends[:1, 40:50]
    lo, hi = ends.amin(0), ends.amax(0)
    step = Scalar(module)
    lines, (bottom, top) = step.lines(lo, hi), step.interval(lo, hi)
    for part in torch.linspace(0, 1, 101, dtype=torch.float64):
        z = lo + part * (hi - lo)
        value = module(z)
        assert (lines.lower_slope * z + lines.lower_offset <= value + 1e-12).all()
        assert (lines.upper_slope * z + lines.upper_offset >= value - 1e-12).all()
        assert (bottom <= value + 1e-12).all()
        assert (top >= value - 1e-12).all()


def test_features_behind_a_layer_and_the_box():
    model = nn.Sequential(mlp(1, [4, 6, 5], "relu"), nn.ReLU(), mlp(2, [5, 6, 3], "relu")).double().eval()
    x, y = randn(3, 8, 4), torch.arange(8) % 3
    hidden = Problem(model, x, y, layer="1")
    h = model[:2](x).detach()
    assert torch.equal(hidden.features, h)
    inner = certify(hidden, 0.4, method="crown")
    assert_close(inner.margins, certify(Problem(model[2], h, y), 0.4, method="crown").margins)
    deep = certify(Problem(model, x, y, layer="0.0"), 0.4, method="crown")
    assert_close(deep.clean_losses, inner.clean_losses)
    top = float(h.max())
    boxed = worst_case(hidden, 0.4, box=(0.0, top), method="enumeration", steps=60)
    assert (boxed.gap >= -1e-10).all()
    assert (boxed.upper <= inner.loss_upper + 1e-10).all()
    assert (boxed.upper <= certify(hidden, 0.4, box=(0.0, top)).loss_upper + 1e-10).all()
    params = {name: 0.5 * value for name, value in model.named_parameters()}
    half = certify(Problem(model, x, y, layer="1", params=params), 0.0)
    assert_close(half.clean_losses, half.loss_upper)
    assert not torch.equal(half.clean_losses, inner.clean_losses)
    halved = copy.deepcopy(model)
    halved.load_state_dict(params)
    own = certify(Problem(halved, x, y, layer="1"), 0.3)
    assert_close(certify(Problem(model, x, y, layer="1", params=params), 0.3).loss_upper, own.loss_upper)


@pytest.mark.parametrize("n", [10, *slow([20])])
def test_verdicts_and_their_report(n):
    model, x = mlp(6, [3, 8, 1], "relu"), randn(4, n, 3)
    y = (model(x).detach()[:, 0] > 0).long()
    problem, radius = Problem(model, x, y, loss="logistic"), torch.linspace(0, 4, n, dtype=torch.float64)
    found = worst_case(problem, radius, method="interval", restarts=2)
    counts = found.counts()
    assert sum(counts.values()) == n
    assert min(counts.values()) > 0
    assert found.counts(threshold=1e9) == {"certified": n, "refuted": 0, "undecided": 0}
    assert found.counts(threshold=-1.0)["refuted"] == n
    assert f"certified {counts['certified']}, refuted {counts['refuted']}" in str(found)
    assert json.loads(json.dumps(found.to_dict()))["label_kept"] == found.verdicts()
    exact = worst_case(problem, radius, method="enumeration")
    assert exact.counts()["undecided"] == 0
    for rough, sharp in zip(found.verdicts(), exact.verdicts(), strict=True):
        assert rough in (sharp, "undecided")


def test_float32_and_blocks():
    model, x = mlp(3, [3, 8, 2], "relu"), randn(4, 150, 3)
    y = torch.arange(150) % 2
    double = certify(Problem(model, x, y), 0.2)
    single = certify(Problem(model.float(), x.float(), y), 0.2)
    assert single.loss_upper.dtype == torch.float32
    assert_close(single.loss_upper.double(), double.loss_upper, rtol=1e-4, atol=1e-5)


class Own(nn.Module):
    def forward(self, x):
        return x


class Nested(nn.Module):
    """Has a layer, but is no sequence."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Identity()

    def forward(self, x):
        return self.inner(x)


ERRORS = [
    (Own(), {}, "no relaxation here"),
    (nn.Mish(), {}, "Mish"),
    (nn.Sequential(nn.Linear(2, 2), nn.Dropout()), {"train": True}, "training mode"),
    (nn.Identity(), {"method": "magic"}, "method: expected"),
    (nn.Identity(), {"loss": "square"}, "'cross_entropy' and 'logistic'"),
    (Nested(), {"layer": "inner"}, "'inner' is no member of the nn.Sequential"),
    (nn.Tanh(), {"method": "enumeration"}, "ReLU and LeakyReLU"),
    (nn.Tanh(), {"method": "region"}, "ReLU and LeakyReLU"),
]


@pytest.mark.parametrize(("model", "options", "match"), ERRORS)
def test_unfit_arguments_are_refused(model, options, match):
    options = dict(options)
    parts = {name: options.pop(name) for name in ("loss", "layer") if name in options}
    y = torch.eye(2) if parts.get("loss") == "square" else torch.tensor([0, 1])
    problem = Problem(model.eval(), torch.ones(2, 2), y, **parts)
    model.train(options.pop("train", False))
    with pytest.raises(ValueError, match=match):
        certify(problem, 1.0, **options)


def test_other_refusals():
    soft = Problem(nn.Identity(), torch.ones(1, 2), torch.tensor([[0.5, 0.5]]))
    with pytest.raises(ValueError, match="no mixtures"):
        certify(soft, 1.0)
    callable_only = Problem(lambda x: x, torch.ones(1, 2), torch.tensor([0]))
    with pytest.raises(ValueError, match=r"expected an nn\.Sequential"):
        certify(callable_only, 1.0)
    wide = Problem(mlp(1, [3, 9, 2], "relu"), randn(1, 1, 3), torch.tensor([0]))
    with pytest.raises(RegionLimitError, match="max_cells = 3"):
        certify(wide, 9.0, method="enumeration", max_cells=3)
    ball = check_ball(torch.ones(1, 2), 1.0, "l2", None)
    with pytest.raises(ValueError, match="method: expected one of"):
        relaxed_minimum([], ball, torch.ones(1, 1, 2), method="region")


KINKS = torch.tensor([-0.6, -0.1, 0.35, 0.8])
#: The lowest point of the function: one in each of the five cells, and at both ends of the ball.
VALLEYS = [-0.9, -0.4, 0.1, 0.5, 0.95, -1.5, 1.5]


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("valley", VALLEYS)
def test_enumeration_finds_the_lowest_point_in_whichever_cell_it_lies(valley, norm):
    """A function of one direction, with kinks at known places, so that its minimum is the least of a few values."""
    kinks = torch.cat([KINKS, torch.tensor([valley])]).double()
    hidden, out = nn.Linear(2, 6).double(), nn.Linear(6, 1).double()
    along = torch.tensor([0.6, -0.8], dtype=torch.float64)
    with torch.no_grad():
        hidden.weight[:5], hidden.bias[:5] = along, -kinks
        hidden.weight[5], hidden.bias[5] = -along, kinks[-1]
        out.weight[0], out.bias[0] = torch.tensor([0.3, -0.5, 0.4, -0.3, 1.2, 1.2]), 0.2  # the valley is the deepest
    model = nn.Sequential(hidden, nn.ReLU(), out).requires_grad_(False).eval()
    x = torch.tensor([[0.12, -0.16]], dtype=torch.float64)  # at 0.2 along the direction
    reach = 1.0 if norm == "l2" else 1.4  # the largest step along the direction
    places = torch.cat([kinks, torch.tensor([0.2 - reach, 0.2 + reach]).double()]).clamp(0.2 - reach, 0.2 + reach)
    lowest = model(places[:, None] * along).min()
    found = certify(Problem(model, x, torch.tensor([1.0]), loss="logistic"), 1.0, norm=norm, method="enumeration")
    assert lowest - 1e-5 <= found.margins[0, 0] <= lowest + 1e-12  # never above; below by what a bisection leaves
    assert lowest - 1e-12 <= found.attained[0, 0] <= lowest + 1e-5
    assert int(found.regions) >= 1 + int(((kinks > 0.2 - reach) & (kinks < 0.2 + reach)).sum())
