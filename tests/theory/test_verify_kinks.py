"""Kinks: those of a network and of a user's loss are found and left out, and what is only steep is not called one."""

from dataclasses import replace

import pytest
import torch
from building import build_problem
from problems import mlp, randn
from tiers import slow
from torch import nn

import nfm_theory as nt
from nfm_theory.verification.draw_evidence import compare_draws
from nfm_theory.verification.fit import chebyshev_points
from nfm_theory.verification.fits import LINEAR_DEGREE, between_kinks
from nfm_theory.verification.verify import prepared

NOISY = {"add_noise": 0.3, "mult_noise": 0.2}
X, Y = randn(1, 4, 3), torch.tensor([0, 1, 2, 0])


class Function(nn.Module):
    """A function as a layer."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Through(nn.Module):
    """A network with a function in the middle."""

    def __init__(self, function):
        super().__init__()
        self.first, self.last, self.function = mlp(1, [4, 8]), mlp(2, [8, 3]), function

    def forward(self, x):
        return self.last(self.function(self.first(x)))


def problem_of(model):
    return build_problem(model.eval(), randn(3, 6, 4), torch.arange(6) % 3, **NOISY)


def one_hot(z):
    return z + nn.functional.one_hot(z.argmax(1), z.shape[1]).to(z)


@pytest.mark.parametrize("function", [nn.Softshrink(0.3), lambda z: z.sort(1).values, one_hot])
def test_kinks_and_jumps_of_other_functions_are_undecided(function):
    report = nt.verify(problem_of(Through(function)), eps=[0.1, 0.05, 0.02])
    assert report.verdict == "undecided", report


@pytest.mark.parametrize(("dtype", "zeros"), [(torch.float64, 1), (torch.float32, 4), *slow([(torch.float64, 4)])])
@pytest.mark.parametrize("function", [lambda z: z.abs() * z, nn.Softsign(), nn.ELU(), lambda z: z.abs() ** 3])
def test_a_kink_of_a_higher_derivative_at_the_samples_is_undecided(function, dtype, zeros):
    """A black pixel lies on the kink of an ELU: no interval around it is smooth, and nothing is wrong there."""
    x = randn(3, 6, 4).to(dtype)
    x[:, :zeros] = 0
    model = nn.Sequential(Function(function), mlp(0, [4, 6, 3]).to(dtype)).eval()
    problem = build_problem(model, x, torch.arange(6) % 3, **NOISY)
    report = nt.verify(problem, eps=[0.1, 0.05, 0.02], budget=40_000)
    assert report.verdict == "undecided", report


def test_a_relu_network_holds_inside_its_regions():
    report = nt.verify(problem_of(Through(nn.ReLU())))
    assert report.verdict == "holds"
    assert "inside the regions" in report.reason
    wrong = replace(report.terms, R2_add=1.01 * report.terms.R2_add)
    assert nt.verify(problem_of(Through(nn.ReLU())), terms=wrong).verdict == "refuted"


@torch.no_grad()
def test_a_term_that_is_zero_in_every_region_needs_no_values():
    """Where regions are small, values say little about R3."""
    run, scales = prepared(problem_of(Through(nn.ReLU())), 2, None, None, None, "auto", "auto", given=False)
    run.check_coefficients(None)
    report = run.check_remainders(scales, halve=False)
    known = run.evidence.values[0].terms
    known["R3_add"] = replace(known["R3_add"], error=1.0)
    assert run.report(scales)[0].verdict == report.verdict == "holds"
    assert run.judged(replace(report.terms, R3_add=1e-6 + report.terms.R3_add), scales).verdict == "refuted"


def test_outputs_at_rest_up_to_a_kink_do_not_jump():
    """All units are off at the samples."""
    first, last = nn.Linear(2, 4).double(), nn.Linear(4, 3).double()
    with torch.no_grad():
        first.weight.fill_(0.5)
        first.bias.fill_(-0.2)
    x = 0.01 * randn(4, 6, 2)
    one = build_problem(nn.Sequential(first, nn.ReLU(), last), x, torch.arange(6) % 3, add_noise=1.0)
    assert not compare_draws(one, LINEAR_DEGREE, 64, 0).jumpy
    steps = nn.Sequential(first, nn.Threshold(0.1, 0.0), last)
    assert compare_draws(build_problem(steps, x, torch.arange(6) % 3, add_noise=1.0), LINEAR_DEGREE, 64, 0).jumpy


@pytest.mark.parametrize("scale", [10.0, 300.0])
def test_a_confident_network_is_steep_and_not_kinked(scale):
    """Its loss rises as an exponential function."""
    for seed in (0, 3):
        model, x = mlp(seed, [4, 8, 8, 3]), 2 * randn(seed, 6, 4)
        with torch.no_grad():
            model[-1].weight *= scale
        found = compare_draws(build_problem(model, x, model(x).argmax(1), add_noise=0.1), 12, 64, 0)
        assert found.kinked == 0.0
        assert found.rough <= 0.05


def hinge(outputs, labels):
    return (1 - outputs.gather(1, labels.unsqueeze(1))[:, 0]).clamp_min(0)


def absolute(outputs, labels):
    return (outputs - nn.functional.one_hot(labels, 3)).abs().sum(1)


def huber(outputs, labels):
    targets = nn.functional.one_hot(labels, 3).to(outputs)
    return nn.functional.huber_loss(outputs, targets, reduction="none", delta=0.3).sum(1)


@pytest.mark.parametrize("steep", [1.0, 10.0])
def test_kinks_of_a_network_are_found(steep):
    model = nn.Sequential(mlp(2, [4, 8]), nn.ReLU(), mlp(3, [8, 3]), nn.Tanh(), mlp(4, [3, 3]))
    with torch.no_grad():
        model[-1][0].weight *= steep
    assert compare_draws(problem_of(model), 12, 64, 0).kinked > 0.1


def test_kinks_of_a_loss_are_found():
    own = build_problem(mlp(1, [4, 8, 3]), randn(2, 6, 4), torch.arange(6) % 3, loss=hinge, **NOISY)
    assert compare_draws(own, 12, 64, 0).kinked > 0.05


@pytest.mark.parametrize(
    ("loss", "widths", "seed"),
    [(hinge, [4, 8, 3], 1), (huber, "relu", 3), *slow([(absolute, [4, 3], 0), (huber, [4, 3], 1), (huber, [4, 3], 2)])],
)
def test_kinks_of_a_loss_are_left_out(loss, widths, seed):
    """Fits across them would contradict right terms; with some seeds a sample lies next to a kink."""
    if widths == "relu":
        model = nn.Sequential(mlp(seed, [4, 8]), nn.ReLU(), mlp(seed + 1, [8, 3]))
    else:
        model = mlp(seed, widths)
    problem = build_problem(model, randn(seed + 1, 6, 4), torch.arange(6) % 3, loss=loss, **NOISY)
    report = nt.verify(problem)
    assert report.verdict == "holds", report
    wrong = replace(report.terms, R1=1.01 * report.terms.R1)
    assert nt.verify(problem, terms=wrong).verdict == "refuted"


@pytest.mark.parametrize("seed", [3, *slow([6])])
def test_rounding_does_not_hide_the_kinks_of_a_loss(seed):
    """With seed 3 an interval with a kink has fits that are as good as float32 can be."""
    problem = build_problem(
        mlp(seed, [4, 8, 3]).float(), randn(seed + 1, 6, 4).float(), torch.arange(6) % 3, loss=huber, **NOISY
    )
    assert nt.verify(problem).verdict == "undecided"


@pytest.mark.parametrize("seed", [0, *slow([1, 2])])
def test_smooth_losses_of_the_user_hold_in_float32(seed):
    """They have no closed derivatives, so that their values are searched for kinks."""

    def own(outputs, labels):
        return nn.functional.cross_entropy(outputs, labels, reduction="none")

    model, x = mlp(seed, [3, 5, 3], "gelu").float(), randn(seed + 20, 4, 3).float()
    assert nt.verify(build_problem(model, x, Y, loss=own, **NOISY)).verdict == "holds"


def test_values_that_are_not_finite_are_no_coefficient_of_zero():
    rows = torch.ones(2, dtype=torch.float64)
    points = chebyshev_points(12)

    def values(some, width):
        found = (points.unsqueeze(1) * width).square()
        return torch.where(some == 1, found, found + float("nan"))

    best, width, across = between_kinks(values, rows, rows)
    assert best[:, 0].isnan().all()
    assert torch.equal(best[:, 1], points.square())
    assert (width[1], across[1]) == (1.0, False)


def test_a_loss_without_the_derivatives_is_named():
    def margins(outputs, labels):
        return nn.functional.multi_margin_loss(outputs, labels, reduction="none")

    with pytest.raises(ValueError, match=r"loss 'margins': no derivative: PyTorch has no forward-mode derivative"):
        nt.verify(build_problem(mlp(1, [3, 3]), X, Y, loss=margins, **NOISY))
