"""A derivative that is not that of the values is refused with the module's name; a right one never is."""

import pytest
import torch
from problems import finish, generator, mlp, preact_resnet18, randn, small_cnn, tiny_transformer
from torch import nn
from torch.ao import quantization

import nfm_theory as nt
from nfm_theory.calculus.cuts import check_problem
from nfm_theory.calculus.failures import DerivativeError

X, Y = randn(1, 5, 6), torch.arange(5) % 3
LAW = nt.Law(add_noise=0.4)


class Gate(nn.Module):
    """A function between two layers."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, z):
        return self.function(z)


class Straight(torch.autograd.Function):
    """Rounding with the derivative of the identity in both modes."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z):
        return (4 * z).round() / 4

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        return gradient

    @staticmethod
    def jvp(ctx, tangent):
        return tangent.clone()


class WrongSecond(torch.autograd.Function):
    """z³ with the right gradient, whose own derivative is forgotten."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z):
        return z**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        (z,) = ctx.saved_tensors
        return gradient * 3 * z.detach() ** 2

    @staticmethod
    def jvp(ctx, tangent):
        (z,) = ctx.saved_tensors
        return tangent * 3 * z.detach() ** 2


def without_gradient(z):
    with torch.no_grad():
        return z * z


CUTS = {
    "detach": lambda z: z.detach(),
    "data": lambda z: z.data * 2,
    "no_grad": without_gradient,
    "norm held constant": lambda z: z / z.norm(dim=1, keepdim=True).detach(),
    "half of the units": lambda z: torch.cat([z[:, :3], z[:, 3:].detach()], 1),
    "straight-through rounding": lambda z: z + ((4 * z).round() / 4 - z).detach(),
    "custom straight-through": Straight.apply,
    "wrong second derivative": WrongSecond.apply,
}


def network(function, dtype=torch.float64):
    return finish(lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), Gate(function), nn.Linear(5, 3)), 0).to(dtype)


def problem(model, dtype=torch.float64, **options):
    return nt.Problem(model, X.to(dtype), Y, law=LAW, **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", CUTS)
def test_a_cut_is_refused_and_its_module_named(name, dtype):
    with pytest.raises(DerivativeError, match=r"module '2' \(Gate\)"):
        nt.terms(problem(network(CUTS[name], dtype), dtype))


def test_derivatives_that_are_nan_are_refused():
    """0 times infinity behind `torch.where`, and a norm at 0: no term is silently nan."""
    trap = network(lambda z: torch.where(z > 0, z.sqrt(), z))
    with pytest.raises(DerivativeError, match=r"size nan, .*torch\.where"):
        nt.terms(problem(trap))
    x = X.clone()
    x[0] = 0
    model = mlp(0, [6, 5, 3])
    norm = nt.Problem(lambda z: model(z) * z.norm(dim=1, keepdim=True), x, Y, law=LAW)
    for verb in (nt.terms, nt.regularizers):
        with pytest.raises(DerivativeError, match=r"R1, R2, .* would be nan or infinite.*norm or square root at 0"):
            verb(norm)
    with nt.options(check_derivatives=False):
        assert nt.terms(norm).R1.isnan()


def test_a_backward_hook_is_named_with_the_way_out():
    model = network(torch.tanh)
    handle = model[0].register_full_backward_hook(lambda module, inputs, outputs: None)
    with pytest.raises(DerivativeError, match=r"module '0' \(Linear\): a backward hook.* handle\.remove\(\)"):
        nt.terms(problem(model))
    handle.remove()
    assert nt.terms(problem(model)).R1.isfinite()


VERBS = {
    "regularizers": nt.regularizers,
    "coefficients": lambda p: nt.coefficients(p, 2),
    "bound": lambda p: nt.adversarial.bound(p, 0.1),
    "pgd_attack": lambda p: nt.adversarial.pgd_attack(p, 0.1),
    "flip_radius": nt.adversarial.flip_radius,
    "jacobian_norms": nt.generalization.jacobian_norms,
    "penalty": lambda p: nt.TaylorRegularizer("", LAW)(p.model, X, Y),
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_that_differentiates_refuses(verb):
    with pytest.raises(DerivativeError, match="Gate"):
        VERBS[verb](problem(network(CUTS["detach"])))


def test_a_cut_on_purpose_is_an_option():
    with nt.options(check_derivatives=False):
        assert float(nt.terms(problem(network(CUTS["detach"]))).R2.detach()) == 0.0


def test_a_loss_needs_no_derivative():
    """Monte Carlo goes without the control variate, and says so only if one was asked for."""
    cut = problem(network(CUTS["no_grad"]))
    found = nt.loss(cut, 0.1, "monte_carlo", samples=2000, generator=generator(0))
    plain = nt.loss(cut, 0.1, "monte_carlo", samples=2000, generator=generator(0), control_variate="none")
    assert torch.equal(found.value, plain.value)
    with pytest.raises(DerivativeError):
        nt.loss(cut, 0.1, "monte_carlo", samples=2000, control_variate="linear")


def test_a_callable_without_modules_is_refused_too():
    with pytest.raises(DerivativeError, match="its forward"):
        nt.terms(problem(lambda x: x[:, :3] * x[:, 3:].detach()))


def test_a_cut_in_the_forward_of_the_whole_model_names_its_class():
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x):
            return self.layer(x.detach() + x)

    with pytest.raises(DerivativeError, match="the forward of Whole"):
        nt.terms(problem(finish(Whole, 0)))


def mixed_precision(z):
    return z * torch.rsqrt(z.float().square().mean(-1, keepdim=True) + 1e-6).to(z.dtype)


RIGHT = {
    "relu": lambda: mlp(0, [6, 64, 64, 3], "relu"),
    "tanh": lambda: mlp(0, [6, 8, 3]),
    "dead units": lambda: nn.Sequential(nn.Linear(6, 4), Gate(lambda z: torch.relu(z - 100)), nn.Linear(4, 3)).double(),
    "saturated": lambda: nn.Sequential(Gate(lambda z: torch.sigmoid(1e4 * z)), nn.Linear(6, 3)).double(),
    "constant": lambda: Gate(lambda z: 0 * z[:, :3] + 1),
    "argmax": lambda: Gate(lambda z: nn.functional.one_hot(z.argmax(1), 6)[:, :3].to(z.dtype)),
    "rounded, honest": lambda: Gate(lambda z: z[:, :3].round() + z[:, 3:].sin()),
    "kinks at the features": lambda: Gate(lambda z: (z - X[0].to(z.dtype)).abs()[:, :3]),
    "a part in float32": lambda: network(mixed_precision),
    "linear": lambda: nn.Linear(6, 3).double(),
    "large numbers": lambda: Gate(lambda z: 1e6 + (1e3 * z[:, :3]).tanh()),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", RIGHT)
def test_a_right_derivative_is_never_refused(name, dtype):
    check_problem(problem(RIGHT[name]().to(dtype).eval(), dtype), 3)


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_deep_networks_are_not_refused(activation):
    images = randn(2, 3, 3, 12, 12)
    for dtype in (torch.float64, torch.float32):
        net = preact_resnet18(0, activation=activation).to(dtype)
        check_problem(nt.Problem(net, images.to(dtype), torch.arange(3) % 2, law=LAW), 2)


def test_other_architectures_are_not_refused():
    images = randn(2, 3, 1, 8, 8)
    check_problem(nt.Problem(small_cnn(0, activation="relu"), images, torch.arange(3), law=LAW), 3)
    check_problem(nt.Problem(tiny_transformer(0), randn(2, 3, 3, 4), torch.arange(3), law=LAW), 2)


def test_the_check_runs_once_for_each_problem_and_leaves_random_numbers_alone():
    class Counted(nn.Module):
        calls = 0

        def forward(self, x):
            Counted.calls += 1
            return x[:, :3].tanh()

    one = problem(Counted())
    state = torch.get_rng_state()
    check_problem(one, 3)
    assert torch.equal(state, torch.get_rng_state())
    before = Counted.calls
    check_problem(one, 2)
    check_problem(one.with_law(nt.Law()), 3)
    assert Counted.calls == before


def test_a_verdict_names_the_module_that_cuts_a_derivative():
    class Half(nn.Module):
        def forward(self, x):
            return torch.cat([x[:, :2], x[:, 2:].detach()], 1)

    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), Half(), nn.Linear(4, 3)).double()
    x, y = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3), torch.arange(4) % 3
    report = nt.verify(nt.Problem(model.eval(), x, y, law=nt.Law(add_noise=0.4)))
    assert report.verdict == "refuted"
    assert "cut in module '2' (Half)" in report.reason


class Quantized(nn.Module):
    """Rounds its hidden units to a few levels; the gradient is that of the identity."""

    def __init__(self, quantizer):
        super().__init__()
        self.enter, self.quantizer, self.leave = nn.Linear(6, 5), quantizer, nn.Linear(5, 3)

    def forward(self, x):
        return self.leave(torch.tanh(self.quantizer(self.enter(x))))


def by_channel(z):
    scale, zero = torch.full((5,), 0.1), torch.zeros(5, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(z, scale, zero, 1, -128, 127)


QUANTIZERS = {
    "FakeQuantize": quantization.FakeQuantize,
    "FusedMovingAvgObsFakeQuantize": quantization.FusedMovingAvgObsFakeQuantize,
    "Gate": lambda: Gate(lambda z: torch.fake_quantize_per_tensor_affine(z, 0.1, 0, -128, 127)),
    "Gate by channel": lambda: Gate(by_channel),
}


@pytest.mark.parametrize("name", QUANTIZERS)
def test_fake_quantization_is_refused_and_its_module_named_with_the_way_out(name):
    """PyTorch has no forward mode for it, and its derivative by reverse mode is straight through."""
    model = finish(lambda: Quantized(QUANTIZERS[name]()), 0).float().train()
    with torch.no_grad():
        model(X.float())  # the observers see the range
    model.apply(quantization.disable_observer).eval()
    rounded = problem(model, torch.float32)
    for verb in (nt.terms, nt.verify, nt.regularizers, VERBS["pgd_attack"], VERBS["flip_radius"]):
        with pytest.raises(DerivativeError, match=rf"(?s){name.split()[0]}.*an operation rounds.*nn\.Identity\(\)"):
            verb(rounded)
    assert nt.loss(rounded, 0.1, method="monte_carlo", samples=2000).stderr > 0  # values need no derivative
    model.quantizer = nn.Identity()
    assert nt.verify(problem(model, torch.float32)).verdict == "holds"
