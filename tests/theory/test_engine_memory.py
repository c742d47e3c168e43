"""What a linearization without gradients keeps alive, and that it can compute again what it let go."""

import gc

import pytest
import torch
import torch.nn.functional as F
from building import build_problem
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.testing import assert_close

import nfm_theory as nt
from nfm_theory import linearize
from nfm_theory.calculus.engine.base import BLOCK_BYTES
from nfm_theory.calculus.replacements import exact_derivatives
from nfm_theory.expansion.second_order import exact_terms

WIDTH, BATCH, DEPTH, MAPS = 96, 64, 6, (8, 12, 12)


def randn(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def dense(activation):
    layers = [layer for _ in range(DEPTH) for layer in (nn.Linear(WIDTH, WIDTH), activation())]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 2)), (WIDTH,)


def convolutional(activation):
    channels = MAPS[0]
    layers = []
    for _ in range(DEPTH):
        layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), activation()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 2)), MAPS


def memory(function):
    """Bytes at the peak, and still allocated when the function has returned, its result alive."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as record:
        result = function()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    level = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    del result
    return peak, level


# In sizes of one activation. Kept: σ' and weighted σ'' of every smooth one, a mask for every ReLU. At the peak: that
# and a tangent on its way, or what autograd saves (a convolution its input even where its weight is constant).
KEPT = {
    "dense tanh": (dense, nn.Tanh, 2 * DEPTH, 16),
    "dense gelu": (dense, nn.GELU, 2 * DEPTH, 18),
    "dense relu": (dense, nn.ReLU, DEPTH / 4, 11),
    "convolutional silu": (convolutional, nn.SiLU, 2 * DEPTH, 24),
    "convolutional relu in place": (convolutional, lambda: nn.ReLU(inplace=True), DEPTH / 4, 17),
}


@pytest.mark.parametrize("trainable", [False, True], ids=["frozen", "trainable"])
@pytest.mark.parametrize("name", KEPT)
def test_little_more_is_kept_than_the_tangents_need(name, trainable):
    build, activation, kept, most = KEPT[name]
    model, shape = build(activation)
    model.eval().requires_grad_(trainable)
    h, v = randn(0, BATCH, *shape, dtype=torch.float32), randn(1, 2, BATCH, *shape, dtype=torch.float32)
    slope = randn(2, BATCH, 2, dtype=torch.float32)

    @torch.no_grad()
    def measured():
        at = linearize(model, h, engine="tangent-adjoint")
        at.pullback(slope)
        at.sweep(v, slope, block_rows=BATCH)
        return at

    measured()
    peak, held = memory(measured)
    assert held <= (kept + 1.5) * h.nbytes
    assert peak <= most * h.nbytes


@pytest.mark.parametrize("build", [dense, convolutional])
def test_parameters_that_could_be_trained_cost_no_memory(build):
    model, shape = build(nn.GELU)
    h = randn(0, BATCH, *shape, dtype=torch.float32)
    with torch.no_grad():
        frozen = memory(lambda: linearize(model.eval().requires_grad_(False), h))[1]
        trainable = memory(lambda: linearize(model.eval().requires_grad_(True), h))[1]
    assert 0 < trainable <= frozen + 10_000


def test_what_is_small_beside_a_deep_recording_is_carried_at_once():
    block, deep, shallow = nn.Sequential(nn.Linear(512, 512), nn.Tanh()), [], []
    for depth, found in ((40, deep), (1, shallow)):
        with torch.no_grad():
            at = linearize(nn.Sequential(*depth * [block], nn.Linear(512, 1)), randn(0, 512, 512, dtype=torch.float32))
        at._block = lambda directions, *_, found=found: found.append(len(directions)) or (None, directions[..., 0])
        at.sweep(randn(1, 8, 512, 512, dtype=torch.float32), torch.ones(512, 1))
    assert deep == 4 * [2]  # an activation takes 1 MB, and the recording 80
    assert shallow == 8 * [1]


def test_few_directions_are_not_carried_all_at_once():
    width, batch = 512, 128
    large = 4 * batch * width  # bytes of an activation, half a block
    model = nn.Sequential(nn.Linear(8, width), nn.Tanh(), nn.Linear(width, 1)).requires_grad_(False)
    g = randn(0, batch, 8, dtype=torch.float32)
    assert 2 * large == BLOCK_BYTES["cpu"]
    at, slope, v = linearize(model, g), torch.ones(batch, 1), randn(1, 4, batch, 8, dtype=torch.float32)
    at.sweep(v[:1], slope)
    assert memory(lambda: at.sweep(v, slope))[0] < 3 * large


def test_memory_of_a_sweep_does_not_depend_on_the_number_of_directions():
    model, shape = dense(nn.Tanh)
    model = model.double()
    h, slope = randn(0, BATCH, *shape), randn(2, BATCH, 2)

    def swept(m):
        v = randn(1, m, 1, *shape)
        with torch.no_grad():
            return memory(lambda: linearize(model, h).sweep(v, slope, block_rows=BATCH)[1])[0]

    assert swept(40) <= swept(4) + 2 * 40 * BATCH * 8 * 3


class Counted(nn.Module):
    """Two first curved operations, one that leads nowhere, products, and a count of its calls."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (nn.Parameter(randn(seed, 4, 4) / 2) for seed in (3, 4))
        self.calls = 0

    def forward(self, u):
        self.calls += 1
        u = u * 1.5
        a, b = torch.tanh(u @ self.first), torch.sin(u)
        torch.exp(a)  # does not reach the outputs
        scores = torch.softmax(a.unsqueeze(2) * b.unsqueeze(1), -1)
        return torch.cat([F.layer_norm(a * b, (4,)), (scores @ b.unsqueeze(-1)).squeeze(-1)], 1) @ torch.cat(
            [self.second, self.first]
        )


def nested(model, h):
    def head(u):
        with exact_derivatives():
            return model(u)

    return linearize(head, h, engine="nested")


def test_another_slope_is_recorded_anew_and_an_equal_one_is_not():
    model, h, v = Counted(), randn(0, 5, 4), randn(1, 3, 5, 4)
    one, other = randn(2, 5, 4), randn(6, 5, 4)
    with torch.no_grad():
        at, witness = linearize(model, h, engine="tangent-adjoint"), nested(model, h)
        expected = {id(slope): witness.sweep(v, slope) for slope in (one, other)}
        before = model.calls
        for slope, times in ((one, 0), (one.clone(), 0), (other, 1), (one, 2)):
            for found, known in zip(at.sweep(v, slope), expected[id(other if slope is other else one)], strict=True):
                assert_close(found, known, rtol=1e-10, atol=1e-12)
            assert model.calls == before + times
        pulled = torch.einsum("bw,mbw->mb", at.pullback(one), at.propagate(v))
        assert_close(pulled, torch.einsum("bk,mbk->mb", one, expected[id(one)][0]), rtol=1e-10, atol=1e-12)
        rows = at.rows()  # by a recording of their own: what belongs to the slope stays
        assert_close(at.sweep(v, one)[1], expected[id(one)][1], rtol=1e-10, atol=1e-12)
        assert_close(torch.einsum("bkw,mbw->mbk", rows, at.propagate(v)), expected[id(one)][0], rtol=1e-10, atol=1e-12)


def test_tangents_before_the_adjoint_sweep_change_nothing():
    model, h, v, slope = Counted(), randn(0, 5, 4), randn(1, 3, 5, 4), randn(2, 5, 4)
    with torch.no_grad():
        at = linearize(model, h, engine="tangent-adjoint")
        tangents = at.sweep(v)[0]
        found = at.sweep(v, slope)
        expected = linearize(model, h).sweep(v, slope)
    assert_close(tangents, expected[0], rtol=0, atol=0)
    assert_close(found, expected, rtol=0, atol=0)


def test_gradients_are_taken_of_recordings_that_want_them():
    model, h, v, slope = Counted(), randn(0, 5, 4), randn(1, 3, 5, 4), randn(2, 5, 4)
    found = []
    for at in (linearize(model, h, engine="tangent-adjoint"), nested(model, h)):
        tangents, hessian_forms = at.sweep(v, slope)
        found.append(torch.autograd.grad((tangents**2).sum() + hessian_forms.sum(), list(model.parameters())))
    assert_close(found[0], found[1], rtol=1e-9, atol=1e-11)


def test_memory_that_an_overwritten_tensor_gave_back_may_be_read():
    def head(u):
        total = u
        for k in range(1, 20):  # every turn is likely to get the memory of the last
            total = total + F.relu(u * k, inplace=True)
        return total

    with torch.no_grad():
        assert linearize(head, randn(0, 200, 50), engine="tangent-adjoint").path == "tangent-adjoint"


def test_probes_of_all_terms_take_one_recording():
    model, x, y = Counted(), randn(0, 5, 4), torch.tensor([0, 1, 2, 3, 0])
    options = {"method": "probes", "num_probes": 2, "generator": torch.Generator().manual_seed(0)}
    with torch.no_grad():
        with nt.options(check_derivatives=False):
            nt.regularizers(build_problem(model, x, y, add_noise=0.1), **options)
        counts = model.calls
        nt.split(model, x)
        checks = model.calls - counts
    assert counts - checks == 2  # the outputs are checked, and recorded once for R1 and the probes


@pytest.mark.parametrize("noise", [{"add_noise": 0.1}, {"add_noise": 0.1, "mult_noise": 0.1}], ids=["add", "add, mult"])
def test_the_exact_gauss_newton_terms_hold_the_jacobian_once_and_no_forms_of_all_samples(noise, monkeypatch):
    samples, inputs, width, classes = 64, 96, 48, 12
    model = nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, classes)).eval()
    x, y = randn(0, samples, inputs, dtype=torch.float32), torch.arange(samples) % classes
    monkeypatch.setitem(BLOCK_BYTES, "cpu", 2**14)
    problem = build_problem(model, x, y, **noise)

    @torch.no_grad()
    def measured():
        return exact_terms(problem, linearize(problem.head, problem.features), residual=())

    measured()
    rows, basis = 4 * samples * classes * width, 4 * inputs * (inputs + width)
    assert memory(measured)[0] <= rows + basis + 4 * samples * (inputs + 6 * width + classes**2)
