"""Networks of timm and Hugging Face: the terms against nested derivatives, the verdict, and training.

The twin knows nothing of the library but the split of the network. It has `J v` by forward mode and `D²ℓ[v, v]` by
forward over reverse mode, of PyTorch's own operations.
"""

import time

import pytest
import timm
import torch
import torch.nn.functional as F
import transformers
from foreign_models import CLASSES, MODELS
from problems import generator, mlp
from torch import nn
from torch.func import grad, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

import nfm_theory as nt

Y = torch.tensor([0, 2, 1])
LAW = nt.Law(add_noise=0.1)


def nested(problem):
    """R1, R2, R3, R2_add and R3_add by nested derivatives, sample by sample; the rows of a batch are the directions."""
    h, law = problem.features.detach(), problem.law
    m1, m2 = (law.mixing.moment(k) for k in (1, 2))
    totals, n = dict.fromkeys(("R1", "R2", "R3", "R2_add", "R3_add"), 0.0), len(h)
    for g, y in zip(h, Y, strict=True):

        def losses(z, y=y):
            return F.cross_entropy(problem.head(z), y.expand(len(z)), reduction="sum")

        p = problem.head(g.unsqueeze(0))[0].softmax(-1)
        fisher = p.diag() - p.outer(p)
        units = torch.eye(g.numel(), dtype=g.dtype).reshape(-1, *g.shape)
        for source, weight, directions in (("", m2 / n, h - g), ("_add", law.add_noise**2, units)):
            rows = g.expand_as(directions).clone()
            tangents = jvp(problem.head, (rows,), (directions,))[1]
            slopes, twice = jvp(grad(losses), (rows,), (directions,))
            gauss_newton = ((tangents @ fisher) * tangents).sum()
            totals["R2" + source] += weight / 2 * gauss_newton / n
            totals["R3" + source] += weight / 2 * ((twice * directions).sum() - gauss_newton) / n
            if not source:
                totals["R1"] += m1 / n * (slopes * directions).sum() / n
    return {name: float(value) for name, value in totals.items()}


@pytest.fixture(scope="module", params=MODELS)
def case(request):
    foreign = MODELS[request.param]
    model = foreign.model()
    return foreign, nt.Problem(model, foreign.x, Y, layer=foreign.layer, law=LAW, output=foreign.output)


def test_there_are_twelve():
    assert len(MODELS) == 12


def test_terms_equal_nested_derivatives(case):
    foreign, problem = case
    found = nt.regularizers(problem, method="exact")
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no forward mode
        expected = nested(problem)
    size = max(abs(value) for value in expected.values())
    for name, value in expected.items():
        assert float(found[name].value) == pytest.approx(value, rel=1e-10, abs=1e-10 * size), name
    assert foreign.kinks or abs(expected["R3"]) > 1e-6 * size  # the comparison is of something


@pytest.mark.parametrize("name", MODELS)
def test_the_verdict_holds_or_names_kinks(name):
    """For the data terms alone, which need no random directions; those of the noise are compared above."""
    foreign = MODELS[name]
    problem = nt.Problem(foreign.model(), foreign.x, Y, layer=foreign.layer, law=nt.Law(), output=foreign.output)
    report = nt.verify(problem)
    assert report.verdict == "holds" or ((foreign.kinks or foreign.steep) and "kink" in report.reason), report.reason


def test_a_part_that_computes_in_float32_is_named():
    """Llama's own norm, in a model of float64."""
    options = {"vocab_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "pad_token_id": 0}
    config = transformers.LlamaConfig(**options, intermediate_size=24, num_labels=CLASSES)
    model = transformers.LlamaForSequenceClassification(config).double().eval()
    x = MODELS["Hugging Face Llama"].x
    problem = nt.Problem(model, x, Y, layer="model.embed_tokens", law=nt.Law(), output="logits")
    report = nt.verify(problem)
    assert report.verdict == "undecided"
    assert "something computes in float32" in report.reason


class Logits(nn.Module):
    """A model that returns its logits alone."""

    def __init__(self, model, output):
        super().__init__()
        self.net, self.output = model, output

    def forward(self, x):
        found = self.net(x)
        return found if self.output is None else found[self.output]


def test_the_step_and_the_penalty_train(case):
    """With the same draws in every step, what is minimized is a function of the parameters, and it falls."""
    foreign, _ = case
    model = Logits(foreign.model().float(), foreign.output)
    model.training = True  # the outer module alone: neither dropout nor the statistics of three samples
    x = foreign.x.float() if foreign.x.is_floating_point() else foreign.x
    layer = f"net.{foreign.layer}"
    mixup = nt.NoisyFeatureMixup(model, [layer], LAW, num_classes=CLASSES, generator=generator(0))
    penalty = nt.TaylorRegularizer(layer, LAW, generator=generator(1))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    objective = []
    for _ in range(5):
        inputs, targets = mixup(x, Y, replay=mixup.last)
        loss = F.cross_entropy(model(inputs), targets) + penalty(model, x, Y)
        penalty.generator.manual_seed(1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        objective.append(loss.item())
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert min(objective[-2:]) < objective[0]


# The names of the layers ---------------------------------------------------------------------------------------------


def counted(model):
    """The model and a list that grows by the number of samples of each forward pass."""
    calls = []
    model.register_forward_hook(lambda module, args, output: calls.append(len(args[0])))
    return model, calls


def test_the_layers_of_a_deep_network_take_five_passes():
    model, calls = counted(mlp(0, [4] * 81))
    names = nt.layer_names(model, torch.randn(4, 4, generator=generator(0), dtype=torch.float64))
    assert names == ["", *(str(k) for k in range(159))]
    assert len(calls) <= 5


@pytest.mark.parametrize("name", ["efficientnet_b0", "regnety_004"])
def test_the_layers_of_a_real_network_take_seconds(name):
    """Processor time, since other programs may run beside this one."""
    model = timm.create_model(name, num_classes=10).eval()
    start = time.process_time()
    names = nt.layer_names(model, torch.randn(4, 3, 64, 64, generator=generator(0)))
    assert time.process_time() - start < 30
    assert len(names) > 20
    assert "" in names
    assert "classifier" in names or "head.fc" in names
