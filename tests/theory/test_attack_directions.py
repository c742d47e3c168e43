"""Attacks find a direction where the loss has none left, and leave the network as it was."""

import itertools
import math

import pytest
import torch
from problems import generator, mlp, randn
from tiers import some_slow
from torch import nn
from torch.testing import assert_close

from nfm_theory import Law, Problem, options
from nfm_theory.adversarial import bound, certify, flip_radius, pgd_attack, worst_case
from nfm_theory.adversarial.label_margins import deficit_gradient, loss_of_margins, margin_deficit
from nfm_theory.setting.pointwise import CROSS_ENTROPY, LOGISTIC


def linear(weight, bias=0.0):
    model = nn.Linear(weight.shape[1], weight.shape[0]).to(weight).requires_grad_(False)
    model.weight.copy_(weight)
    model.bias.fill_(bias)
    return nn.Sequential(model).eval()


@pytest.mark.parametrize("classes", [1, 2, 4])
def test_the_deficit_is_the_loss_before_it_saturates(classes):
    outputs, own = 3 * randn(1, 20, classes), torch.arange(20) % max(2, classes)
    loss, labels = (LOGISTIC, own.double()[:, None]) if classes == 1 else (CROSS_ENTROPY, None)
    labels = nn.functional.one_hot(own, classes).double() if labels is None else labels
    deficit = margin_deficit(outputs, own)
    assert_close(nn.functional.softplus(deficit), loss(outputs, labels), rtol=1e-10, atol=1e-12)
    slopes = torch.func.grad(lambda u: margin_deficit(u, own).sum())(outputs)
    assert_close(deficit_gradient(outputs, own), slopes)
    scale = deficit.sigmoid().unsqueeze(1)
    assert_close(loss.gradient(outputs, labels), scale * slopes, rtol=1e-8, atol=1e-12)
    far = deficit_gradient(1e4 * outputs.float(), own)
    assert_close(far.abs().amax(1), torch.ones(20))


def test_the_loss_of_margins_does_not_underflow():
    margins = torch.tensor([[39.5], [0.0], [-40.0], [700.0], [math.inf], [-math.inf]], dtype=torch.float64)
    expected = [math.log1p(math.exp(-39.5)), math.log(2), 40 + math.log1p(math.exp(-40)), math.exp(-700), 0.0, math.inf]
    assert_close(loss_of_margins(margins), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)
    several = torch.tensor([[50.0, 51.0, 49.0]], dtype=torch.float64)
    assert_close(
        float(loss_of_margins(several)), math.log1p(sum(math.exp(-m) for m in (50, 51, 49))), rtol=1e-12, atol=0
    )
    found = certify(
        Problem(linear(torch.ones(1, 2), 40.0), torch.zeros(1, 2), torch.tensor([1.0]), loss="logistic"), 0.5
    )
    assert float(found.loss_upper) >= math.log1p(math.exp(-float(found.margins))) > 0


CONFIDENT = [
    (dtype, margin, norm, classes)
    for dtype, margin in [(torch.float32, 20.0), (torch.float64, 45.0), (torch.float64, 1e4)]
    for norm, classes in itertools.product(["l2", "linf"], [1, 3])
]


@pytest.mark.parametrize(
    ("dtype", "margin", "norm", "classes"), some_slow(CONFIDENT, lambda case: (case[2] == "linf") == (case[3] == 1))
)
def test_confident_networks_are_attacked_exactly(dtype, margin, norm, classes):
    """The largest loss of a linear network is known: at a radius of twice the distance it is the margin."""
    weight = randn(1, classes, 30).to(dtype)
    if classes == 3:
        weight[2] = weight[0]  # one rival, twice, and the own class
    bias = torch.zeros(classes, dtype=dtype)
    bias[min(1, classes - 1)] = margin
    model = linear(weight)
    model[0].bias.copy_(bias)
    direction = weight[0] if classes == 1 else weight[1] - weight[0]
    reach = 2 * margin / float(direction.norm() if norm == "l2" else direction.abs().sum())
    problem = Problem(
        model, torch.zeros(1, 30, dtype=dtype), torch.tensor([1]), loss="logistic" if classes == 1 else "cross_entropy"
    )
    found = pgd_attack(problem, reach, norm=norm, generator=generator(0))
    rivals = 1 if classes == 1 else 2
    assert bool(found.flipped)
    assert_close(float(found.losses), margin + math.log(rivals), rtol=1e-3, atol=0)
    distance = flip_radius(problem, reach, norm=norm, bisections=6, restarts=1).radius
    assert_close(float(distance), reach / 2, rtol=1e-2, atol=0)
    assert worst_case(problem, 0.6 * reach, norm=norm, generator=generator(0)).verdicts() == ["refuted"]


def test_points_improve_also_where_every_loss_rounds_to_zero():
    problem = Problem(linear(torch.ones(1, 4)), torch.full((1, 4), 12.0), torch.tensor([1.0]), loss="logistic")
    found = pgd_attack(problem, 1.0)
    assert float(found.losses) == 0
    assert_close(float(found.features.sum()), 46.0, rtol=1e-4, atol=0)
    both = worst_case(problem, 1.0)
    assert 0 < float(both.lower) <= float(both.upper) < 1.001 * math.exp(-46)


def saturated_square(outputs, labels):
    return (outputs.sigmoid()[:, 0] - labels) ** 2


@pytest.mark.parametrize("loss", ["square", saturated_square])
def test_other_losses_get_off_their_flat_spots(loss):
    """The square loss has its minimum where the outputs are the targets, and a sigmoid saturates."""
    model = linear(torch.ones(1, 3).double(), 100.0)
    x = torch.zeros(2, 3, dtype=torch.float64)
    problem = Problem(model, x, model(x)[:, 0] if loss == "square" else torch.ones(2, dtype=torch.float64), loss=loss)
    found = pgd_attack(problem, 60.0, restarts=1)
    reach = 60 * 3**0.5
    best = reach**2 / 2 - 100**2 / 2 if loss == "square" else (torch.tensor(100 - reach).sigmoid() - 1) ** 2
    best = (100 - reach) ** 2 / 2 - 100 * (100 - reach) if loss == "square" else float(best)
    assert_close(found.losses, torch.full((2,), best, dtype=torch.float64), rtol=1e-3, atol=1e-3)


def test_a_start_where_all_units_are_off_is_left():
    model = mlp(1, [2, 3, 1], "relu").requires_grad_(False)
    model[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    model[0].bias.fill_(-0.5)
    model[2].weight.fill_(-1.0)
    model[2].bias.fill_(1.0)
    x = torch.zeros(2, 2, dtype=torch.float64)
    found = pgd_attack(Problem(model, x, torch.ones(2), loss="logistic"), 4.0, restarts=1)
    assert found.flipped.all()


# The network ------------------------------------------------------------------------------------------------


class Moving(nn.Module):
    """Counts its calls in a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls = self.calls + 1
        return x


VERBS = [
    lambda p: pgd_attack(p, 0.3, steps=2), lambda p: flip_radius(p, 1.0, steps=2), lambda p: certify(p, 0.3),
    lambda p: worst_case(p, 0.3, steps=2), lambda p: bound(p, 0.1),
]  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_training_mode_is_refused_and_nothing_moves(verb):
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3)).eval()
    problem = Problem(model, randn(1, 8, 4).float(), torch.arange(8) % 3, law=Law())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    verb(problem)
    model.train()
    with pytest.raises(ValueError, match="training mode"):
        verb(problem)
    model[1].eval()
    with pytest.raises(ValueError, match="training mode"):
        verb(problem)
    model.eval()
    verb(problem)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(module.training for module in model.modules())


def test_buffers_that_a_forward_pass_changes_are_set_back():
    model = nn.Sequential(nn.Linear(4, 3), Moving()).eval()
    problem = Problem(model, torch.ones(2, 4), torch.tensor([0, 1]))
    calls = float(model[1].calls)
    for verb in (VERBS[0], VERBS[1]):
        with pytest.raises(ValueError, match=r"changes the buffer '1\.calls'.*old values again"):
            verb(problem)
        assert float(model[1].calls) == calls > 0


def test_a_network_that_became_random_is_refused():
    class Own(nn.Module):
        def forward(self, x):
            return nn.functional.dropout(x, 0.5, self.training)

    model = nn.Sequential(Own(), nn.Linear(4, 3)).eval()
    problem = Problem(model, torch.ones(6, 4), torch.arange(6) % 3)
    pgd_attack(problem, 0.3, steps=2)
    model.train()
    for verb in VERBS[:2]:
        with pytest.raises(ValueError, match="differ from call to call"):
            verb(problem)


class Zero(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return torch.zeros_like(gradient)


class Cut(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.inner, self.outer, self.how = nn.Linear(3, 4).double(), nn.Linear(4, 2).double(), how

    def forward(self, x):
        return self.outer(self.how(self.inner(x)))


@torch.no_grad()
def without_gradient(h):
    return h.tanh()


CUTS = [lambda h: h.detach(), without_gradient, lambda h: (8 * h).round() / 8, lambda h: (h > 0).to(h)]


@pytest.mark.parametrize("how", CUTS)
@pytest.mark.parametrize("trained", [True, False])
def test_a_cut_derivative_is_an_error_and_no_robust_network(how, trained):
    torch.manual_seed(0)
    model = Cut(how).eval().requires_grad_(trained)
    problem = Problem(model, randn(1, 5, 3), torch.arange(5) % 2)
    for verb in (lambda p: pgd_attack(p, 4.0), lambda p: flip_radius(p, 4.0)):
        with pytest.raises(ValueError, match=r"is cut in (module|the forward)|cuts the gradient"):
            verb(problem)
        with options(check_derivatives=False), pytest.raises(ValueError, match=r"gradient is zero.*cuts the gradient"):
            verb(problem)


def test_a_network_without_derivative_has_no_bound():
    torch.manual_seed(0)
    problem = Problem(Cut(lambda h: h.detach()).eval(), randn(1, 5, 3), torch.arange(5) % 2, law=Law())
    with pytest.raises(ValueError, match="derivative that PyTorch reports is not"):
        bound(problem, 0.1)
    with options(check_derivatives=False), pytest.raises(ValueError, match="cuts the gradient"):
        bound(problem, 0.1)


def test_a_constant_network_is_attacked_in_vain():
    model = linear(torch.zeros(2, 3).double(), 1.0)
    found = pgd_attack(Problem(model, randn(1, 4, 3), torch.zeros(4, dtype=torch.long)), 1.0, steps=3)
    assert torch.equal(found.losses, found.clean_losses)
    assert not found.flipped.any()
