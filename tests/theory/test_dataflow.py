"""The layers found by one recorded pass are those at which the network can be split, which is tested one by one."""

import pytest
import torch
import torch.nn.functional as F
from problems import mlp, preact_resnet18, randn, small_cnn, tiny_transformer
from torch import nn

from nfm_theory.setting import layers
from nfm_theory.setting.layers import layer_names
from nfm_theory.setting.network import Network

X = randn(0, 5, 4)


class Net(nn.Module):
    """A model from a function of three linear layers and a ReLU that works in place."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))
        self.act, self.same = nn.ReLU(inplace=True), nn.Identity()
        self.to(torch.float64).eval()

    def forward(self, x):
        return self.function(self, x)


def overwritten(m, x):
    """The result of the activation is read through the tensor that it has overwritten."""
    h = m.a(x)
    m.act(h)
    return m.c(m.b(h))


def view_overwritten(m, x):
    """An operation in place on a view changes the tensor itself, which is read later."""
    h = m.a(x)
    h[:, :2].copy_(m.b(x)[:, :2])
    return m.c(h)


def half_shown(m, x):
    """The identity returns a part of the features only."""
    h = m.a(x)
    return m.c(torch.cat([m.same(h[:, :2]), h[:, 2:]], 1))


def number_taken_out(m, x):
    h = m.b(m.a(x))
    sizes = [float(row.abs().max()) for row in x]
    return m.c(h) / torch.tensor(sizes, dtype=x.dtype)[:, None]


TRICKY = {
    "chain": lambda m, x: m.c(m.act(m.b(m.a(x)))),
    "skip around b": lambda m, x: m.c(m.b(h := m.a(x)) + h),
    "skip around an identity": lambda m, x: m.c(m.same(h := m.a(x)) + h),
    "mask of the input": lambda m, x: m.c(m.b(m.a(x)) * (x > 0)),
    "cut off and added": lambda m, x: m.c(m.b(m.a(x))) + x.detach(),
    "gate": lambda m, x: m.c(m.a(x) * m.b(x).sigmoid()),
    "size of the input alone": lambda m, x: m.c(m.b(m.a(x)) + torch.zeros_like(x) + x.new_ones(len(x), 1)),
    "called twice": lambda m, x: m.c(m.a(m.a(x))),
    "unused": lambda m, x: (m.b(x), m.c(m.a(x)))[1],
    "parts in a list": lambda m, x: m.c(torch.stack([m.b(h) for h in m.a(x).unbind()])),
    "chunks": lambda m, x: m.c(torch.cat([F.silu(h[0]) * h[1] for h in [m.b(m.a(x)).chunk(2, 1)]] * 2, 1)),
    "not finite": lambda m, x: m.c(m.b(m.a(x) * 1e308 * 1e308).nan_to_num(0, 1, -1)),
    "overwritten": overwritten,
    "view overwritten": view_overwritten,
    "half shown": half_shown,
    "number taken out": number_taken_out,
}
MODELS = {
    **{name: (lambda function=function: Net(function), X) for name, function in TRICKY.items()},
    "cnn": (lambda: small_cnn(0), randn(1, 4, 1, 6, 6)),
    "resnet": (lambda: preact_resnet18(0), randn(2, 3, 3, 8, 8)),
    "transformer": (lambda: tiny_transformer(0, depth=2), randn(3, 4, 3, 4)),
}


@pytest.mark.parametrize("name", MODELS)
def test_equal_to_splitting_at_each_layer(name):
    build, x = MODELS[name]
    torch.manual_seed(0)
    model = build()
    network = Network(model)
    one_by_one = [layer for layer in network.modules if layers._works(network, x[:4], layer)]
    containers = [name for name, module in network.modules.items() if isinstance(module, nn.ModuleList)]
    assert layer_names(model, x) == ["", *(layer for layer in one_by_one if layer not in containers)]


def test_known_answers():
    assert layer_names(Net(TRICKY["chain"]), X) == ["", "a", "b", "c", "act"]
    assert layer_names(Net(TRICKY["skip around b"]), X) == ["", "a", "c"]
    assert layer_names(Net(TRICKY["mask of the input"]), X) == ["", "c"]
    assert layer_names(Net(overwritten), X) == ["", "a", "b", "c"]
    assert layer_names(Net(half_shown), X) == ["", "a", "c"]


def test_five_passes_whatever_the_depth():
    model = mlp(0, (4, *[4] * 80, 2))
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    assert len(layer_names(model, X)) == len(model) + 1
    assert len(calls) <= 5


def test_depth():
    model = tiny_transformer(0, depth=2)
    x = randn(3, 4, 3, 4)
    assert layer_names(model, x, depth=2) == [name for name in layer_names(model, x) if name.count(".") < 2]
    assert all("." not in name for name in layer_names(model, depth=1))
    with pytest.raises(ValueError, match="depth: expected a positive number"):
        layer_names(model, depth=0)
