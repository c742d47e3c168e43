"""A certificate is about what a network computes: what may compute something else is refused by name."""

import types
import warnings

import pytest
import torch
import torch.nn.functional as F
from problems import mlp, randn
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.overrides import TorchFunctionMode
from torch.testing import assert_close

from nfm_theory import Problem
from nfm_theory.adversarial import WorstCase, certify, pgd_attack, worst_case
from nfm_theory.adversarial.relaxations import network_steps


def plain(activation=None):
    model = nn.Sequential(nn.Linear(3, 6), activation or nn.ReLU(), nn.Sequential(nn.Linear(6, 5), nn.ReLU()))
    model.append(nn.Linear(5, 2))
    for k, parameter in enumerate(model.parameters()):
        parameter.data = randn(k, *parameter.shape)
    return model.double().eval()


class Adapted(nn.Linear):
    def forward(self, x):
        return super().forward(x) + x.sum(-1, keepdim=True)


class Leaky(nn.ReLU):
    def forward(self, x):
        return F.leaky_relu(x, 0.5)


class Shifted(nn.Identity):
    def forward(self, x):
        return x + 1


class Twice(nn.Sequential):
    def forward(self, x):
        return super().forward(super().forward(x))


class Backwards(nn.Sequential):
    def __iter__(self):
        return reversed(list(self._modules.values()))


class Named(nn.Sequential):
    """Only its constructor is its own."""

    def __init__(self, *modules):
        super().__init__(*modules)
        self.width = 5


class Doubling(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, kinds, args=(), kwargs=None):
        out = super().__torch_function__(func, kinds, args, kwargs or {})
        return 2 * out if func is F.linear else out


def swap(model, index, module):
    model[index] = module.double().eval()
    return model


def adapted(model):
    return swap(model, 0, Adapted(3, 6))


def leaf_hook(model):
    model[1].register_forward_hook(lambda module, args, out: out - 1)


def pre_hook(model):
    model[0].register_forward_pre_hook(lambda module, args: (args[0] * 2,))


def container_hook(model):
    model[2].register_forward_hook(lambda module, args, out: out.abs())


def root_hook(model):
    model.register_forward_hook(lambda module, args, out: -out)


def backward_hook(model):
    model[0].register_full_backward_hook(lambda module, grads, outs: None)


def own_forward(model):
    model[1].forward = lambda x: F.leaky_relu(x, 0.5)


def bound_forward(model):
    model[2].forward = types.MethodType(lambda self, x: nn.Sequential.forward(self, x) + 1, model[2])


def tensor_subclass(model):
    model[0].weight = nn.Parameter(model[0].weight.data.as_subclass(Doubling), requires_grad=False)


def not_finite(model):
    model[3].bias.data[0] = torch.inf


def other_dtype(model):
    model[3].float()


CHANGED = [
    (adapted, "Adapted '0' is a subclass of nn.Linear"),
    (lambda model: swap(model, 1, Leaky()), "Leaky '1' is a subclass of nn.ReLU"),
    (lambda model: swap(model, 1, Shifted()), "Shifted '1' is a subclass of nn.Identity"),
    (lambda model: swap(model, 2, Twice(nn.Linear(6, 6), nn.Linear(6, 5))), "Twice '2' defines its own 'forward'"),
    (lambda model: swap(model, 2, Backwards(nn.ReLU(), nn.Linear(6, 5))), "Backwards '2' defines its own '__iter__'"),
    (leaf_hook, "the hook .* on ReLU '1'"),
    (pre_hook, "the hook .* on Linear '0'"),
    (container_hook, "the hook .* on Sequential '2'"),
    (root_hook, "the hook .* on Sequential may"),
    (backward_hook, "the hook .* on Linear '0'"),
    (own_forward, "ReLU '1' has its own 'forward'"),
    (bound_forward, "Sequential '2' has its own 'forward'"),
    (tensor_subclass, "weight of Linear '0' to be a plain tensor, got Doubling"),
    (not_finite, "bias of Linear '3' is not finite"),
    (other_dtype, "weights of one dtype"),
    (lambda model: swap(model, 1, nn.Softplus(threshold=1.0)), "a threshold at which it jumps down by 0.31"),
    (lambda model: swap(model, 1, nn.Softplus(beta=30, threshold=5.0)), "jumps down"),
    (lambda model: swap(model, 1, nn.LeakyReLU(-0.5)), "a negative_slope outside"),
    (lambda model: swap(model, 1, nn.ELU(2.0)), "an alpha outside"),
    (lambda model: swap(model, 1, nn.GELU("tanh")), "approximate='tanh'"),
    (lambda model: swap(model, 1, nn.Flatten(0)), "the samples may mix"),
]


@pytest.mark.parametrize(("change", "match"), CHANGED, ids=lambda v: getattr(v, "__name__", None))
def test_what_may_compute_something_else_is_refused_by_name(change, match):
    model = plain()
    model = change(model) or model
    with pytest.raises(ValueError, match=match):
        network_steps(model)


def test_what_lies_before_the_layer_may_be_anything():
    model = adapted(plain())
    x = randn(3, 5, 3)
    y = model(x).argmax(1)
    with pytest.raises(ValueError, match="Adapted"):
        worst_case(Problem(model, x, y), 0.1)
    inner = certify(Problem(model, x, y, layer="1"), 0.1)
    assert torch.equal(inner.margins, certify(Problem(model[2:], model[:2](x).detach(), y), 0.1).margins)


@pytest.mark.parametrize(
    "module",
    [nn.Conv2d(1, 2, 3, padding=1, padding_mode=mode) for mode in ("circular", "reflect", "replicate")],
    ids=lambda module: module.padding_mode,
)
def test_other_paddings_are_refused(module):
    with pytest.raises(ValueError, match=f"padding_mode='{module.padding_mode}'"):
        network_steps(nn.Sequential(module, nn.Flatten()))


def test_surroundings_that_change_every_network_are_refused(monkeypatch):
    class Mode(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    model = plain()
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(ValueError, match="autocast is on for cpu"):
        network_steps(model)
    with Mode(), pytest.raises(ValueError, match="the mode Mode"):
        network_steps(model)
    with torch.device("cpu"):
        assert len(network_steps(model)) == 5
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, out: out)
    with pytest.raises(ValueError, match="a hook on all modules"):
        network_steps(model)
    handle.remove()
    with monkeypatch.context() as patch:
        patch.setattr(nn.ReLU, "forward", lambda self, x: x)
        with pytest.raises(ValueError, match=r"the forward of nn\.ReLU was replaced"):
            network_steps(model)
    original = nn.Module.__call__
    with monkeypatch.context() as patch:
        patch.setattr(nn.Module, "__call__", lambda self, *args: original(self, *args))
        with pytest.raises(ValueError, match="__call__ was replaced"):
            network_steps(model)
    assert len(network_steps(model)) == 5


def test_the_outputs_that_are_certified_are_those_of_the_problem(monkeypatch):
    model, x, y = plain(), randn(3, 5, 3), torch.arange(5) % 2
    with pytest.raises(ValueError, match="output: a certificate needs a model that returns its outputs alone"):
        certify(Problem(model, x, y, output=lambda out: -out), 0.1)
    monkeypatch.setattr(F, "relu", lambda z, inplace=False: torch.tanh(z))
    with pytest.raises(ValueError, match="does not give the outputs of its modules"):
        certify(Problem(model, x, y), 0.1)


def test_a_loss_is_recognized_by_what_it_is_and_not_by_its_name():
    def cross_entropy(outputs, labels):
        return 2 * F.cross_entropy(outputs, labels, reduction="none")

    problem = Problem(plain(), randn(3, 4, 3), torch.eye(2, dtype=torch.float64)[[0, 1, 0, 1]], loss=cross_entropy)
    with pytest.raises(ValueError, match=r"named 'cross_entropy' and 'logistic'.*a function of this name"):
        certify(problem, 0.1)


def test_a_module_that_is_called_twice_is_certified_twice():
    """The activation is one object in two places."""
    act = nn.ReLU()
    shared = nn.Sequential(nn.Linear(3, 6), act, nn.Linear(6, 6), act, nn.Linear(6, 2)).double().eval()
    own = nn.Sequential(shared[0], nn.ReLU(), shared[2], nn.ReLU(), shared[4])
    block = nn.Sequential(nn.Linear(4, 4), nn.Tanh()).double().eval()
    again = nn.Sequential(block, nn.Linear(4, 4).double(), block, nn.Linear(4, 2).double()).eval()
    assert len(network_steps(again)) == 6
    x, y = randn(3, 6, 3), torch.arange(6) % 2
    found, expected = (certify(Problem(model, x, y), 0.5).margins for model in (shared, own))
    assert torch.equal(found, expected)
    assert (worst_case(Problem(again, randn(2, 6, 4), y), 0.3).gap >= 0).all()


def pruned(linear):
    prune.l1_unstructured(linear, "weight", amount=0.3)
    prune.random_unstructured(linear, "weight", amount=0.2)
    return linear


def old_weight_norm(linear):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(linear)


KNOWN = [
    parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal, pruned, old_weight_norm,
    nn.utils.spectral_norm,
]  # fmt: skip


@pytest.mark.parametrize("change", KNOWN, ids=lambda change: change.__module__.rpartition(".")[2] + change.__name__)
def test_weights_that_pytorch_computes_are_resolved(change):
    torch.manual_seed(0)
    model, x = plain(), randn(3, 6, 3)
    change(model[0])
    model.eval()
    y = model(x).argmax(1)
    fixed = plain()
    with torch.no_grad():
        fixed[0].weight.copy_(model[0].weight)
        fixed[0].bias.copy_(model[0].bias)
    found, expected = (certify(Problem(m, x, y), 0.2) for m in (model, fixed))
    assert torch.equal(found.margins, expected.margins)
    assert (worst_case(Problem(model, x, y), 0.2).gap >= 0).all()
    params = {name: 0.5 * value for name, value in model.named_parameters()}
    other = certify(Problem(model, x, y, params=params), 0.2)
    outputs = torch.func.functional_call(model, params, (x,)).detach()
    clean = outputs.gather(1, y[:, None]) - outputs.gather(1, 1 - y[:, None])
    assert_close(other.clean_margins, clean)
    if "weight" not in dict(model[0].named_parameters()) and change is not pruned:
        model.train()
        if change is not old_weight_norm:
            with pytest.raises(ValueError, match="training mode"):
                network_steps(model)


def test_harmless_variants_are_certified():
    model, x = plain(), randn(3, 6, 3)
    y = model(x).argmax(1)
    expected = certify(Problem(model, x, y), 0.3).margins
    named = Named(*model).eval()
    in_place = nn.Sequential(model[0], nn.ReLU(inplace=True), model[2], nn.Identity(), model[3]).eval()
    for other in (named, in_place):
        assert_close(certify(Problem(other, x, y), 0.3).margins, expected, rtol=1e-12, atol=1e-12)
    same = nn.Sequential(nn.Conv2d(1, 2, 3, padding="same"), nn.ReLU(), nn.Flatten(), nn.Linear(50, 2)).double().eval()
    problem = Problem(same, randn(1, 4, 1, 5, 5), torch.arange(4) % 2)
    assert (worst_case(problem, 0.3, steps=5).gap >= 0).all()


def test_a_contradiction_is_an_error_and_no_verdict():
    problem = Problem(plain(), randn(3, 4, 3), torch.arange(4) % 2)
    found = worst_case(problem, 0.1, steps=3, restarts=1)
    upper = found.upper.clone()
    upper[2] = found.lower[2] - 1e-9
    with pytest.raises(RuntimeError, match="1 of 4 examples"):
        WorstCase(found.lower, upper, found.attack, found.certificate)
    with pytest.raises(RuntimeError, match="there is no verdict"):
        WorstCase(found.lower * torch.nan, found.upper, found.attack, found.certificate)


def test_half_precision_is_refused_with_the_way_out():
    model = mlp(1, [3, 4, 2], "relu").to(torch.bfloat16)
    problem = Problem(model, torch.ones(2, 3, dtype=torch.bfloat16), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"float32 and float64, got torch\.bfloat16; model\.float\(\)"):
        certify(problem, 0.1)
    assert pgd_attack(problem, 0.1, steps=2).losses.shape == (2,)
