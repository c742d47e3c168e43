"""The budget of a verification is a promise: what is evaluated never exceeds it."""

import pytest
import torch
from torch import nn

import nfm_theory as nt
from nfm_theory.verification import planning, run
from nfm_theory.verification.effort import Budget, BudgetSpent, Meter

LAW = nt.Law(add_noise=0.4, mult_noise=0.2)


class Counted(nn.Module):
    """A small convolution network that counts the rows that it evaluates outside of derivatives."""

    def __init__(self, activation: type[nn.Module]):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), activation(), nn.Conv2d(4, 4, 3, stride=2), activation(), nn.Flatten(),
            nn.Linear(16, 3),
        )  # fmt: skip
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
        self.rows = 0

    def forward(self, x):
        self.rows += len(x)
        return self.layers(x)


def problem(activation: type[nn.Module], n: int = 16) -> tuple[Counted, nt.Problem]:
    """The network and a problem of it in float64."""
    model = Counted(activation).double().eval()
    x = torch.randn(n, 2, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return model, nt.Problem(model, x, torch.arange(n) % 3, law=LAW)


@pytest.fixture
def as_large(monkeypatch):
    """Small networks take the path of large ones, and their terms are not computed by the formulas."""
    monkeypatch.setattr(planning, "LARGE_BYTES", 1)
    monkeypatch.setattr(planning, "DEFAULT_BYTES", 1)


@pytest.mark.parametrize("activation", [nn.SiLU, nn.ReLU])
def test_a_large_network_has_a_verdict_with_power_within_its_budget(as_large, activation):
    model, one = problem(activation)
    model.rows = 0
    report = nt.verify(one, budget="300 passes")
    assert report.verdict == "holds", report.reason
    assert report.samples <= 300 * 16
    assert model.rows <= 300 * 16 + 5 * 16  # the plan takes a few passes
    second = [entry for name, entry in report.power.items() if name != "R1"]
    total = sum(abs(float(report.terms[name])) for name in report.power if name != "R1")
    assert all(entry["error"] <= 0.05 * max(entry["share"], 0.05) * total for entry in second)


@pytest.mark.parametrize("budget", [1_000, 4_000, 30_000])
@pytest.mark.parametrize("activation", [nn.SiLU, nn.ReLU])
def test_no_budget_is_exceeded(activation, budget):
    model, one = problem(activation, n=4)
    model.rows = 0
    report = nt.verify(one, eps=[0.1, 0.05, 0.02], budget=budget)
    assert report.samples <= budget
    assert model.rows <= budget + 5 * 4
    assert report.verdict != "refuted"


def test_a_budget_for_less_than_the_terms_is_refused(as_large):
    with pytest.raises(ValueError, match=r"budget: expected about .* Raise the budget"):
        nt.verify(problem(nn.SiLU)[1], budget="12 passes")


def test_a_budget_that_ends_early_is_no_verdict():
    report = nt.verify(problem(nn.SiLU, n=4)[1], eps=[0.1, 0.05, 0.02], budget=1_100)
    assert report.verdict == "undecided"
    assert report.samples <= 1_100


def test_a_meter_stops_before_its_limit():
    meter = Meter(limit=Budget(evaluations=10))
    meter.spend(10)
    with pytest.raises(BudgetSpent):
        meter.spend(1)
    assert meter.spent == 10
    with pytest.raises(BudgetSpent):
        Meter(limit=Budget(seconds=0.0)).spend(1)


def test_smaller_scales_cost_no_more_than_a_rule_may(monkeypatch):
    """In the integral form a row costs 32 evaluations at every scale: ten seconds became half an hour."""
    model = nn.Sequential(nn.GELU(), nn.Flatten(), nn.Linear(8, 2)).double().eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    x = torch.rand(4, 8, generator=generator, dtype=torch.float64)
    one = nt.Problem(model, x, torch.arange(4) % 2, law=LAW)
    allowed, reports = planning.DEFAULT_ROWS, []
    for limit in (allowed, 20_000):
        monkeypatch.setattr(run, "DEFAULT_ROWS", limit)
        reports.append(nt.verify(one))
    free, held = reports
    assert len(held.eps) < len(free.eps)
    assert held.samples - held.plan.evaluations < 20_000


def test_without_a_budget_draws_that_leave_the_verdict_open_are_followed_by_more(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    x = torch.randn(32, 6, generator=generator)
    one = nt.Problem(model, x, torch.arange(32) % 3, law=LAW)
    monkeypatch.setattr(planning, "DEFAULT_SAMPLES", 20_000)
    monkeypatch.setattr(planning, "DEFAULT_ROWS", 10_000)
    first = nt.verify(one, budget=20_000)
    assert (first.verdict, first.reason[-16:]) == ("undecided", "raise the budget")
    report = nt.verify(one)
    assert report.verdict == "holds"
    assert 20_000 < report.samples <= planning.MORE_SAMPLES
