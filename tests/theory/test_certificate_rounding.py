"""Rounding makes no false certificate: rational arithmetic, sums at the edge, hidden values that cancel."""

import math
from fractions import Fraction

import pytest
import torch
from problems import mlp, randn, small_cnn
from torch import nn
from torch.testing import assert_close

from benchmarks.certificate_rounding import Found, Line, check, random_network
from nfm_theory import Problem
from nfm_theory.adversarial import affine_step, certificates, certify, linear_bounds, relaxations
from nfm_theory.adversarial.linear_bounds import check_ball, output_range
from nfm_theory.adversarial.relaxations import Scalar, network_steps
from nfm_theory.adversarial.rounding import FUNCTION_ERROR, UNIT, rounded_down, rounded_up, sum_error


def test_no_false_certificate_where_rounding_decides():
    """`python -m benchmarks.certificate_rounding` checks 10,000 networks."""
    found = Found()
    while found.networks < 20:
        check(found, ("crown", "interval"))
    while found.networks < 32:
        check(found)
    assert found.robust > 40
    assert found.single > 10
    assert (found.false, found.computed) == (0, 0)
    assert found.share > 0.3


def test_the_check_finds_certificates_without_rounding(monkeypatch):
    for module in (affine_step, relaxations):
        monkeypatch.setattr(module, "network_error", lambda magnitude, *args, **options: 0 * magnitude)
    monkeypatch.setattr(linear_bounds, "sum_error", lambda *args: 0.0)
    monkeypatch.setattr(certificates, "rounded_down", lambda values, like: values.to(like))
    monkeypatch.setattr(certificates, "checked_steps", lambda problem: network_steps(problem.model))
    found = Found()
    while found.networks < 15:
        check(found, ("crown", "interval"))
    assert found.false > 0
    assert found.computed > 0


def test_the_rational_network_is_the_network():
    for seed in range(8):
        network, x, direction = random_network(seed)
        line = Line.of(network, direction)
        at = sum(d * Fraction(v) for d, v in zip(direction, x[0].tolist(), strict=True))
        exact = [float(v) for v in line.hidden(at, len(line.weights) - 1)]
        assert_close(network.double()(x.double())[0].tolist(), exact, rtol=1e-9, atol=1e-9)
    network[0].weight.data[0, 0] += 1
    with pytest.raises(ValueError, match="expected a first layer along"):
        Line.of(network, (1, 2, -2))


def test_the_smallest_margins_are_those_of_a_fine_grid():
    """The balls of one call, and the flip distance beyond which a margin is negative."""
    for seed in range(6):
        network, x, direction = random_network(seed)
        line, at = Line.of(network, direction), Fraction(float(x[0, 0]))
        outputs = line.hidden(at, len(line.weights) - 1)
        label = int(outputs[0] > 0) if len(outputs) == 1 else outputs.index(max(outputs))
        radii = [Fraction(1, 10), Fraction(1, 2), Fraction(3)]
        for radius, smallest in zip(radii, line.minima(at, label, radii), strict=True):
            grid = [line.margins(at + radius * k / 50, label) for k in range(-50, 51)]
            lowest = [min(column) for column in zip(*grid, strict=True)]
            assert all(low <= seen for low, seen in zip(smallest, lowest, strict=True))
            assert line.minima(at, label, [radius]) == [smallest]
        distance = line.flip_distance(at, label, 8)
        if distance is not None:
            assert min(line.minima(at, label, [distance])[0]) == 0


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_edge_of_a_linear_network_in_float32(norm):
    """The margin is a sum of 300 products; the radius is the exact distance and the floats next to it."""
    for seed in range(20):
        weight, x = randn(seed, 1, 300).float(), randn(seed + 100, 1, 300).float()
        model = nn.Sequential(nn.Linear(300, 1, bias=False)).requires_grad_(False)
        model[0].weight.copy_(weight)
        rational = [Fraction(v) for v in weight[0].tolist()]
        margin = sum(w * Fraction(v) for w, v in zip(rational, x[0].tolist(), strict=True))
        label = int(margin > 0)
        dual = sum(w * w for w in rational) if norm == "l2" else sum(map(abs, rational))
        distance = math.sqrt(margin**2 / dual) if norm == "l2" else float(abs(margin) / dual)
        radii = [torch.tensor(distance)]
        for _ in range(6):
            radii.append(torch.nextafter(radii[-1], torch.tensor(0.0)))
        for _ in range(6):
            radii.append(torch.nextafter(radii[-1 if len(radii) > 7 else 0], torch.tensor(math.inf)))
        radii = torch.stack([*radii, radii[0] * 0.999])
        problem = Problem(model, x.expand(len(radii), -1).clone(), torch.full((len(radii),), label), loss="logistic")
        for method in ("region", "crown", "interval"):
            robust = certify(problem, radii, norm=norm, method=method).robust
            for claimed, radius in zip(robust.tolist(), radii.tolist(), strict=True):
                lost = Fraction(radius) ** 2 * dual if norm == "l2" else (Fraction(radius) * dual) ** 2
                assert not claimed or lost < margin**2


def test_hidden_values_that_cancel_give_no_certificate():
    """In float32 the difference of two values near 1e6 has an error of 0.06, which decides here."""
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1)).requires_grad_(False)
    model[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
    model[0].bias.fill_(1e6)
    model[2].weight.copy_(torch.tensor([[0.5, -0.5]]))
    model[2].bias.zero_()
    x = torch.linspace(0.0, 0.2, 41)[:, None]
    problem = Problem(model.eval(), x, torch.ones(41), loss="logistic")
    for method in ("region", "crown", "crown-ibp", "interval", "enumeration"):
        found = certify(problem, 0.0, method=method)
        assert (found.margins[:, 0] <= model(x)[:, 0]).all()
        assert (found.margins[:, 0] <= x[:, 0]).all()
        assert not found.robust.any()
        double = certify(Problem(model.double(), x.double(), torch.ones(41), loss="logistic"), 0.0, method=method)
        assert double.robust[1:].all()
        model.float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_the_network_computes_lies_in_the_range_of_its_outputs(dtype):
    """Sums in another order and in other blocks are other numbers; all are in the range at radius 0."""
    for seed, activation in enumerate(("relu", "tanh", "softplus", "gelu", "silu")):
        model = small_cnn(seed, activation=activation).to(dtype)
        x = randn(seed, 6, 1, 6, 6).to(dtype)
        ball = check_ball(x.double(), 0.0, "l2", None)
        lo, hi = output_range(network_steps(model), ball)
        double = model.double()(x.double())
        model.to(dtype)
        for outputs in (model(x), torch.cat([model(z) for z in x.split(1)]), model(x.flip(0)).flip(0), double):
            assert (lo <= outputs.double()).all()
            assert (outputs.double() <= hi).all()
        assert (hi - lo).amax() < (1e-3 if dtype == torch.float32 else 1e-11)


def test_certificates_are_hardly_looser_than_without_rounding():
    """In float64 the bounds of one region are `m - ρ‖∇m‖`, up to less than a part in 10¹¹."""
    model, x = mlp(2, [20, 60, 60, 1], "relu"), randn(3, 12, 20)
    y = (model(x)[:, 0] > 0).long()
    sign = 2.0 * y - 1
    rows = torch.autograd.functional.jacobian(lambda z: model(z)[:, 0].sum(), x)
    margins = sign * model(x)[:, 0].detach()
    radius = 1e-4 * margins.abs()
    found = certify(Problem(model, x, y, loss="logistic"), radius, method="crown")
    expected = margins - radius * rows.norm(dim=1)
    assert found.inside.all()
    assert (found.margins[:, 0] < expected).all()
    assert_close(found.margins[:, 0], expected, rtol=1e-11, atol=1e-11)
    single = certify(Problem(model.float(), x.float(), y, loss="logistic"), radius.float(), method="crown")
    assert_close(single.margins[:, 0].double(), expected, rtol=1e-3, atol=1e-3)


MODULES = [nn.Tanh(), nn.Sigmoid(), nn.Softplus(), nn.Softplus(3.0), nn.ELU(), nn.ELU(0.4), nn.GELU(), nn.SiLU()]


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_activations_are_as_accurate_as_assumed(module):
    """float64 against mpmath, float32 against float64, at sizes from 1e-12 to 40."""
    import mpmath as mp

    exact = {
        nn.Tanh: mp.tanh, nn.Sigmoid: lambda z: 1 / (1 + mp.exp(-z)), nn.SiLU: lambda z: z / (1 + mp.exp(-z)),
        nn.GELU: lambda z: z * mp.ncdf(z),
        nn.ELU: lambda z: z if z > 0 else mp.mpf(module.alpha) * mp.expm1(z),
        nn.Softplus: lambda z: mp.log1p(mp.exp(module.beta * z)) / module.beta,
    }[type(module)]  # fmt: skip
    z = torch.cat([randn(1, 60) * 10.0**k for k in (-12, -3, 0, 1)])
    if isinstance(module, nn.Softplus):
        z = z.clamp(max=19 / module.beta)
    with mp.workdps(40):
        true = torch.tensor([float(exact(mp.mpf(v))) for v in z.tolist()], dtype=torch.float64)
    size = 1 + z.abs() + true.abs()
    assert ((module(z) - true).abs() <= FUNCTION_ERROR / 2 * UNIT * size).all()
    single = z.float()
    assert ((module(single).double() - module(single.double())).abs() <= FUNCTION_ERROR * 2.0**-24 * size).all()


def test_the_jump_of_softplus_at_its_threshold_is_inside_the_lines():
    step = Scalar(nn.Softplus())
    z = torch.linspace(19.9, 20.1, 2001, dtype=torch.float64)
    lo, hi = z[:1].expand(1), z[-1:].expand(1)
    lines, (bottom, top) = step.lines(lo, hi), step.interval(lo, hi)
    for value in (step(z), torch.logaddexp(z, torch.zeros_like(z))):
        assert (lines.lower_slope * z + lines.lower_offset <= value).all()
        assert (lines.upper_slope * z + lines.upper_offset >= value).all()
        assert bottom <= value.min()
        assert top >= value.max()


def test_numbers_are_rounded_to_the_safe_side():
    values = torch.cat([randn(1, 1000), torch.tensor([0.0, 1e-60, -1e-60, math.inf, -math.inf], dtype=torch.float64)])
    for like in (torch.zeros(1), torch.zeros(1, dtype=torch.float64)):
        below, above = rounded_down(values, like), rounded_up(values, like)
        assert (below.double() <= values).all()
        assert (above.double() >= values).all()
        assert ((above - below) <= 2e-7 * values.abs().to(like) + 3e-45)[:-2].all()
    assert sum_error(10) > 10 * UNIT
    assert sum_error(10**9, 2.0**-24) == math.inf


def test_the_covering_ball_holds_the_rounded_points():
    x = 1000 * randn(1, 50, 4).float()
    for norm in ("l2", "linf"):
        ball = check_ball(x, 1e-3, norm, None)
        wide = ball.covering()
        delta = randn(2, 50, 4)
        delta = delta * 1e-3 / (delta.norm(dim=1, keepdim=True) if norm == "l2" else delta.abs().amax(1, keepdim=True))
        away = ((x.double() + delta).float().double() - x.double()).norm(dim=1, p=2 if norm == "l2" else math.inf)
        assert (away <= wide.radius).all()
        assert torch.equal(wide.inner, ball.radius.double())
    assert torch.equal(check_ball(x, 0.0, "l2", None).covering().radius, torch.zeros(50, dtype=torch.float64))
