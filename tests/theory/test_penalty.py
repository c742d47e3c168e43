"""The penalty against the exact terms of the expansion, and what it must leave alone."""

import pytest
import torch
import torch.nn.functional as F
from problems import finish, generator, mlp, randn
from torch import nn
from torch.testing import assert_close

import nfm_theory as nt
from nfm_theory import Law, TaylorRegularizer
from nfm_theory.training.penalty import TERMS

UNIFORM = Law(alpha=0.0, add_noise=0.4, mult_noise=0.3, noise="uniform")
NOISE = Law(add_noise=0.4, mult_noise=0.3)


def cnn():
    """With batch norm and dropout, which training mode makes random."""

    def build():
        return nn.Sequential(
            *(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.SiLU(inplace=True), nn.Dropout(0.3)),
            *(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 3)),
        )

    return finish(build, 0), randn(1, 4, 1, 4, 4), torch.tensor([0, 1, 2, 1])


CASES = {
    "inputs of an mlp": lambda: (mlp(0, [3, 4, 2], "gelu"), randn(1, 4, 3), torch.tensor([0, 1, 1, 0]), {}),
    "a hidden layer": lambda: (mlp(0, [3, 4, 4, 2]), randn(1, 4, 3), torch.tensor([0, 1, 1, 0]), {"layer": "1"}),
    "logistic": lambda: (mlp(0, [3, 4, 1]), randn(1, 4, 3), torch.tensor([0, 1, 1, 0]), {"loss": "logistic"}),
    "square": lambda: (mlp(0, [3, 4, 2]), randn(1, 4, 3), randn(2, 4, 2), {"loss": "square"}),
    "cnn": lambda: (*cnn(), {}),
    "a layer of the cnn": lambda: (*cnn(), {"layer": "1"}),
    "pairs alone": lambda: (*cnn(), {"law": Law()}),
    "some terms": lambda: (*cnn(), {"layer": "0", "terms": ["R1", "R3", "R2_add", "R3_mult"]}),
    "gauss-newton alone": lambda: (*cnn(), {"terms": ["R2", "R2_add", "R2_mult"]}),
    "noise alone": lambda: (*cnn(), {"law": UNIFORM, "distribution": "normal"}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_expectation_is_that_of_the_expansion_with_its_gradient(name):
    model, x, y, options = CASES[name]()
    options, eps = {"layer": "", "law": NOISE} | options, 0.7
    terms = options.get("terms") or TERMS
    setting = {k: v for k, v in options.items() if k not in ("terms", "distribution")}
    exact = nt.terms(nt.Problem(model, x, y, **setting), remainder=False)
    truth = sum(getattr(exact, t) * (eps if t == "R1" else eps**2) for t in terms)
    params = [p for p in model.parameters() if p.requires_grad]
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(truth, params, materialize_grads=True)])
    penalty = TaylorRegularizer(eps=eps, num_probes=50, generator=generator(3), **options)
    model.train()
    values, grads = [], []
    for _ in range(12):
        value = penalty(model, x, y)
        values.append(value.detach())
        found = torch.autograd.grad(value, params, materialize_grads=True)
        grads.append(torch.cat([g.flatten() for g in found]))
    for samples, target in ((torch.stack(values), truth.detach()), (torch.stack(grads), expected)):
        stderr = samples.std(0) / len(samples) ** 0.5
        # Student's t with 11 degrees of freedom, and for gradients the worst of many coordinates
        slack = 1e-12 + (10 if samples.ndim > 1 else 6) * stderr
        assert ((samples.mean(0) - target).abs() <= slack).all()
    spread = torch.stack(grads)
    assert float((spread.mean(0) - expected).norm() / expected.norm()) < 0.3
    assert penalty.engine == "tangent-adjoint"
    assert set(penalty.last) == {"R1", "R2", "R3"}
    parts = eps * penalty.last["R1"] + eps**2 * (penalty.last["R2"] + penalty.last["R3"])
    assert_close(parts, values[-1], rtol=1e-10, atol=1e-14)


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_mode_statistics_and_gradients_are_left_alone():
    model, x, y = cnn()
    model.train()
    model[3].eval()  # some parts may be frozen
    before, modes = state(model), [m.training for m in model.modules()]
    penalty = TaylorRegularizer("0", NOISE)
    penalty(model, x, y).backward()
    assert [m.training for m in model.modules()] == modes
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    assert model[0].weight.grad is not None  # in front of the layer
    assert x.grad is None
    with pytest.raises(ValueError, match="Labels"):
        penalty(model, x, torch.tensor([0, 1, 2, 9]))
    with pytest.raises(ValueError, match="no module"):
        TaylorRegularizer("nowhere", NOISE)(model, x, y)
    assert [m.training for m in model.modules()] == modes
    assert all(not m._forward_hooks for m in model.modules())
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_training_lowers_the_penalized_loss(optimizer):
    model, x, y = cnn()
    penalty = TaylorRegularizer("", NOISE, eps=0.5, num_probes=2, generator=generator(0))

    def total():
        model.eval()
        terms = nt.terms(nt.Problem(model, x, y, law=NOISE), remainder=False)
        return float(terms.polynomial(0.5).detach())

    before = total()
    steps = optimizer(model.parameters(), lr=0.05)
    for _ in range(20):
        model.train()
        loss = F.cross_entropy(model(x), y) + penalty(model, x, y)
        steps.zero_grad()
        loss.backward()
        steps.step()
    assert total() < before - 0.03


def test_generators_are_replayed_bit_by_bit():
    model, x, y = cnn()
    first, again = (
        [TaylorRegularizer("", NOISE, generator=generator(s))(model, x, y) for s in (0, 1)] for _ in range(2)
    )
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], first[1])
    state = torch.get_rng_state()
    TaylorRegularizer("", NOISE, generator=generator(0))(model, x, y)
    assert torch.equal(torch.get_rng_state(), state)


def test_autocast_does_not_touch_the_penalty():
    model, x, y = cnn()
    model, x = model.float(), x.float()
    plain = TaylorRegularizer("", NOISE, generator=generator(0))(model, x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(x).dtype == torch.bfloat16
        inside = TaylorRegularizer("", NOISE, generator=generator(0))(model, x, y)
        assert model(x).dtype == torch.bfloat16
    assert inside.dtype == torch.float32
    assert_close(inside, plain, rtol=1e-6, atol=1e-8)
    inside.backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_refused(dtype):
    model, x, y = cnn()
    with pytest.raises(TypeError, match=r"x: expected float32 or float64.*torch\.autocast"):
        TaylorRegularizer("", NOISE)(model, x.to(dtype), y)
    with pytest.raises(TypeError, match=r"0.weight: expected float32 or float64"):
        TaylorRegularizer("", NOISE)(model.to(dtype), x, y)


ERRORS = {
    "nothing": ({"law": Law(alpha=0)}, "nothing to penalize"),
    "no terms": ({"terms": []}, "nothing to penalize"),
    "unknown": ({"terms": ["R9"]}, "terms: expected one of"),
    "idle": ({"terms": ["R2_add"]}, r"\['R2_add'\] are zero"),
    "probes": ({"num_probes": 0}, "num_probes: expected >= 1"),
    "eps": ({"eps": float("nan")}, "eps: expected a finite number"),
    "loss": ({"loss": "hinge"}, "loss: expected one of"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_options_out_of_range_are_refused(name):
    options, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        TaylorRegularizer(**{"layer": "", "law": Law(), **options})


@pytest.mark.parametrize(
    ("layer", "law", "got"),
    [
        ("1", {"add_noise": 0.4}, "str and dict"),
        ("1", None, "str and NoneType"),
        ("1", "released", "str and str"),
        (["1"], NOISE, "list and Law"),
        ({"1": NOISE}, NOISE, "dict and Law"),
        (NOISE, "1", "Law and str"),
    ],
)
def test_what_is_no_layer_and_no_law_is_refused(layer, law, got):
    with pytest.raises(TypeError, match=rf"TaylorRegularizer\(layer, law\).*{got}"):
        TaylorRegularizer(layer, law)


def test_what_is_no_module_and_no_number_is_refused():
    with pytest.raises(TypeError, match=r"model: expected an nn\.Module, got function"):
        TaylorRegularizer("", NOISE)(lambda x: x, torch.ones(2, 2), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"num_probes: expected >= 1, an integer, got 1\.5"):
        TaylorRegularizer("", NOISE, num_probes=1.5)


def test_there_is_no_law_by_default():
    with pytest.raises(TypeError, match="law"):
        TaylorRegularizer("1")
    with pytest.raises(ValueError, match="add_noise: expected a finite number"):
        TaylorRegularizer("1", Law(add_noise=-1.0))


def test_a_wrong_distribution_is_refused_at_the_call():
    with pytest.raises(ValueError, match="distribution: expected one of"):
        TaylorRegularizer("", NOISE, distribution="cauchy")(*cnn())


def test_a_relu_network_costs_no_second_derivatives():
    model, x, y = mlp(0, [3, 6, 2], "relu"), randn(1, 4, 3), torch.tensor([0, 1, 1, 0])
    penalty = TaylorRegularizer("", NOISE)
    assert float(penalty(model, x, y).detach()) > 0 or penalty.last["R1"] < 0
    assert penalty.last["R3"] == 0
    assert "layer=''" in repr(penalty)


def test_a_fallback_is_said_and_gives_the_same():
    class Sorted(nn.Module):
        def forward(self, x):
            return x.sort(1).values if self.opaque else x

    model = nn.Sequential(*mlp(0, [3, 4, 4]), Sorted(), *mlp(1, [4, 2]))
    model[3].opaque = True
    x, y = randn(2, 4, 3), torch.tensor([0, 1, 1, 0])
    penalty = TaylorRegularizer("0", NOISE, num_probes=400, generator=generator(0))
    value = penalty(model, x, y).detach()
    assert penalty.engine.startswith("nested torch.func (sort")
    terms = nt.terms(nt.Problem(model, x, y, layer="0", law=NOISE), remainder=False)
    truth = float(sum(getattr(terms, t) for t in TERMS).detach())
    assert float(value) == pytest.approx(truth, rel=0.25)


@pytest.mark.compile
@pytest.mark.parametrize("layer", ["", "0"])
def test_compiled_models_are_penalized_like_the_original(layer):
    model, x, y = cnn()
    plain = TaylorRegularizer(layer, NOISE, generator=generator(0))(model, x, y)
    compiled = torch.compile(model, backend="eager")
    compiled.train()
    found = TaylorRegularizer(layer, NOISE, generator=generator(0))(compiled, x, y)
    assert_close(found, plain, rtol=1e-10, atol=1e-14)
    assert model.training


# The compiler itself looks at .grad of tensors on which a graph starts
@pytest.mark.compile
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_training_step_may_hold_the_penalty(backend):
    torch.compiler.reset()
    grads = []
    for wrap in (lambda f: f, lambda f: torch.compile(f, backend=backend)):
        model, x, y = cnn()
        model.train()
        model[3].eval()
        penalty = TaylorRegularizer("", NOISE, generator=generator(0))

        def loss(x, y, model=model, penalty=penalty):
            return F.cross_entropy(model(x), y) + penalty(model, x, y)

        wrap(loss)(x, y).backward()
        grads.append([p.grad for p in model.parameters()])
    for plain, compiled in zip(*grads, strict=True):
        assert_close(compiled, plain, rtol=1e-9, atol=1e-12)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same():
    model, x, y = cnn()
    values = []
    for device in ("cpu", "cuda"):
        penalty = TaylorRegularizer("0", NOISE, generator=generator(0), num_probes=3)  # draws on the CPU
        values.append(penalty(model.to(device), x.to(device), y.to(device)).detach().cpu())
    assert_close(values[1], values[0], rtol=1e-9, atol=1e-12)
