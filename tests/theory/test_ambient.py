"""Numbers do not depend on what surrounds a call: autocast, inference mode, checkpointing, threads, torch.func."""

import threading
from contextlib import nullcontext

import pytest
import torch
from problems import generator, mlp, randn
from torch import nn
from torch.nn.utils import prune, weight_norm
from torch.utils.checkpoint import checkpoint

import nfm_theory as nt
from nfm_theory.calculus.failures import DerivativeError

LAW = nt.Law(add_noise=0.4)
MODEL = mlp(0, [4, 6, 3]).float()
X, Y = randn(1, 5, 4).float(), torch.arange(5) % 3


def problem(model=MODEL, x=X, y=Y):
    return nt.Problem(model, x, y, law=LAW)


def penalty(p):
    return nt.TaylorRegularizer("", LAW, generator=generator(0))(p.model, X.clone(), Y)


VERBS = {
    "terms": lambda p: nt.terms(p).R3_add,
    "C3": lambda p: nt.terms(p).C3,
    "regularizers": lambda p: nt.regularizers(p, "exact").R2_add.value,
    "coefficients": lambda p: nt.coefficients(p, 2)[2],
    "monte_carlo": lambda p: nt.loss(p, 0.1, "monte_carlo", samples=2000, generator=generator(0)).value,
    "pgd_attack": lambda p: nt.adversarial.pgd_attack(p, 0.1, generator=generator(0)).losses.sum(),
    "jacobian_norms": lambda p: nt.generalization.jacobian_norms(p).spectral.sum(),
    "linearize": lambda p: nt.linearize(p.head, p.features).sweep(torch.ones(1, 5, 4), torch.ones(5, 3))[1].sum(),
    "penalty": penalty,
}
KNOWN = {name: verb(problem()).detach() for name, verb in VERBS.items()}


def check(name, build=problem):
    torch.testing.assert_close(VERBS[name](build()).detach(), KNOWN[name], rtol=1e-5, atol=1e-8)


AMBIENT = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no_grad": torch.no_grad,
}


@pytest.mark.parametrize("ambient", AMBIENT)
@pytest.mark.parametrize("name", VERBS)
def test_a_verb_gives_the_same_number_within(name, ambient):
    with AMBIENT[ambient]():
        check(name)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", ["terms", "coefficients", "linearize", "penalty"])
def test_data_and_parameters_may_be_made_in_inference_mode(name, inside):
    with torch.inference_mode():
        x, y, model = X.clone(), Y.clone(), mlp(0, [4, 6, 3]).float()
    with torch.inference_mode() if inside else nullcontext():
        check(name, lambda: problem(model, x, y))


class Wrapped(nn.Module):
    """A model whose forward switches autocast on, as trainers of mixed precision do."""

    def __init__(self):
        super().__init__()
        self.net = MODEL

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.net(x).float()


@pytest.mark.parametrize("name", VERBS)
def test_autocast_inside_of_the_model_is_switched_off(name):
    check(name, lambda: problem(Wrapped()))


class Saved(nn.Module):
    """A model that recomputes the activations of its first layers."""

    def __init__(self, reentrant):
        super().__init__()
        self.net, self.reentrant = MODEL, reentrant

    def forward(self, x):
        return self.net[2](checkpoint(self.net[:2], x, use_reentrant=self.reentrant))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["terms", "C3", "coefficients", "pgd_attack", "penalty"])
def test_activation_checkpointing_changes_nothing(name, reentrant):
    check(name, lambda: problem(Saved(reentrant)))


def test_checkpointing_works_again_afterwards():
    calls = []
    layer = nn.Linear(4, 3)
    layer.register_forward_pre_hook(lambda *args: calls.append(1))
    problem(Saved(False))
    x = X.clone().requires_grad_()
    checkpoint(layer, x, use_reentrant=False).sum().backward()
    assert len(calls) == 2  # once more in the backward pass


def test_threads_that_share_a_model_take_turns():
    failed = []

    def work(name):
        try:
            check(name)
        except Exception as error:
            failed.append((name, error))

    threads = [threading.Thread(target=work, args=(name,)) for name in [*VERBS] * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


FUNCTIONS = {
    "terms": lambda p: nt.terms(p, remainder=False).R2_add,
    "C3": lambda p: nt.terms(p).C3,
    "regularizers": lambda p: nt.regularizers(p, "exact").R3_add.value,
    "loss": lambda p: nt.loss(p, 0.1, method="exact", quadrature=nt.Quadrature(num_lam=3, num_noise=1)).value,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_by_torch_func_are_those_of_autograd(name):
    own = {key: value.detach() for key, value in MODEL.named_parameters()}

    def value(params):
        return FUNCTIONS[name](nt.Problem(MODEL, X, Y, law=LAW, params=params))

    leaves = {key: tensor.clone().requires_grad_() for key, tensor in own.items()}
    known = torch.autograd.grad(value(leaves), list(leaves.values()), allow_unused=True, materialize_grads=True)
    found = torch.func.grad(value)(own)
    for key, gradient in zip(own, known, strict=True):
        torch.testing.assert_close(found[key], gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("method", ["monte_carlo", "as_trained"])
def test_a_sampled_loss_has_no_gradient_that_torch_func_could_take_for_zero(method):
    def value(params):
        problem = nt.Problem(MODEL, X, Y, law=LAW, params=params)
        return nt.loss(problem, 1.0, method=method, samples=6000, generator=torch.Generator().manual_seed(0)).value

    own = {key: tensor.detach() for key, tensor in MODEL.named_parameters()}
    assert value(own) > 0
    with pytest.raises(ValueError, match=r"method: expected a quadrature within torch\.func.*method='exact'"):
        torch.func.grad(value)(own)


def test_a_cubature_says_that_torch_func_cannot_transform_it():
    def value(params):
        problem = nt.Problem(MODEL, X, Y, law=LAW, params=params)
        return nt.loss(problem, 0.1, method="exact", quadrature=nt.Quadrature("cubature-3")).value

    with pytest.raises(ValueError, match=r"gradients of its own, which torch\.func cannot transform"):
        torch.func.grad(value)({key: tensor.detach() for key, tensor in MODEL.named_parameters()})


def test_vmap_over_parameters_is_refused_with_the_way_out():
    params = {key: torch.stack([value, 2 * value]).detach() for key, value in MODEL.named_parameters()}
    with pytest.raises(DerivativeError, match="loop over what is mapped"):
        torch.func.vmap(lambda p: nt.terms(nt.Problem(MODEL, X, Y, law=LAW, params=p)).R2)(params)


def loose_weight(kind):
    layer = nn.Linear(4, 6)
    if kind == "pruned":
        return prune.l1_unstructured(layer, "weight", amount=0.3)
    return weight_norm(layer)


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
@pytest.mark.parametrize("kind", ["pruned", "weight_norm"])
def test_weights_that_are_recomputed_in_each_pass_stay_as_they_were(kind):
    model = nn.Sequential(loose_weight(kind), nn.Tanh(), nn.Linear(6, 3)).eval()
    before = model[0].weight
    found = nt.terms(problem(model))
    assert model[0].weight is before
    plain = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), model[2])
    plain[0].load_state_dict({"weight": before.detach(), "bias": model[0].bias.detach()})
    assert found.to_dict() == pytest.approx(nt.terms(problem(plain)).to_dict(), rel=1e-5, abs=1e-8)


def test_half_precision_has_terms():
    model = mlp(0, [4, 6, 3]).bfloat16()
    found = nt.terms(nt.Problem(model, X.bfloat16(), Y, law=LAW), remainder=False)
    assert found.R2_add.dtype == torch.bfloat16
    known = nt.terms(problem(), remainder=False).R2_add
    assert float(found.R2_add.detach()) == pytest.approx(float(known.detach()), rel=0.1)
