"""Cutting networks: both halves join to the model, gradients flow, and unfit models are refused with advice."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import finish, mlp, preact_resnet18, randn, small_cnn, tiny_transformer
from torch import nn
from torch.func import functional_call, grad, jvp, vmap
from torch.testing import assert_close

from nfm_theory.calculus.replacements import exact_derivatives
from nfm_theory.setting import layers
from nfm_theory.setting import network as networks
from nfm_theory.setting.layers import Split, layer_names, split


class Net(nn.Module):
    """A model from a function of its parts: `Net(lambda m, x: m.a(x), a=nn.Linear(3, 2))`."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.function(self, x)


def net(function, **parts):
    return finish(lambda: Net(function, **parts), 0)


def linear(seed=0, inputs=3, outputs=3):
    return finish(lambda: nn.Linear(inputs, outputs), seed)


X = randn(0, 5, 3)
CASES = {
    "mlp": (lambda: mlp(0, (3, 5, 4, 2)), X, ["", "1", "2", "4"]),
    "cnn": (lambda: small_cnn(0), randn(1, 4, 1, 6, 6), ["", "1", "3", "7"]),
    "cnn, instance norm": (lambda: small_cnn(0, norm=nn.InstanceNorm2d), randn(1, 4, 1, 6, 6), ["1"]),
    "resnet": (
        lambda: preact_resnet18(0),
        randn(2, 3, 3, 8, 8),
        ["", "conv1", "layer1", "layer2.1", "layer4.0"],
    ),
    "transformer": (lambda: tiny_transformer(0, depth=2), randn(3, 4, 3, 4), ["", "blocks.0", "norm"]),
}
CUTS = [(name, layer) for name, (_, _, names) in CASES.items() for layer in names]


# What split returns -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "layer"), CUTS)
def test_halves_join_to_the_model(name, layer):
    build, x, _ = CASES[name]
    model = build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    cut = split(model, x, layer=layer)
    features = cut.encode(x)
    expected = model(x)
    assert isinstance(cut, Split)
    assert cut.layer == layer
    assert_close(cut.head(features), expected, rtol=1e-10, atol=1e-12)
    for rows in (slice(0, 1), slice(1, 3), [2, 0, 0, 1, 2, 1, 0]):  # any batch size, any order
        assert_close(cut.head(features[rows]), expected[rows], rtol=1e-10, atol=1e-12)
    assert all(len(module._forward_hooks) == 0 for module in model.modules())
    assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


@pytest.mark.parametrize(("name", "layer"), CUTS)
def test_derivatives_flow_through_both_halves(name, layer):
    build, x, _ = CASES[name]
    model = build()
    params = {name: value.detach() for name, value in model.named_parameters()}
    v = randn(9, *x.shape)

    def whole(p, t):
        return (functional_call(model, p, (x + t * v,)) ** 2).sum()

    def halves(p, t):
        cut = layers._cut(networks.Network(model, p), x, layer)[0]
        return (cut.head(cut.encode(x + t * v)) ** 2).sum()

    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    results = []
    for loss in (whole, halves):
        form = lambda p, f=loss: jvp(grad(lambda t: f(p, t)), (zero,), (one,))[1]  # noqa: E731
        with exact_derivatives():
            results.append((form(params), grad(form)(params)))
    assert_close(results[1], results[0], rtol=1e-9, atol=1e-11)


def test_gradients_reach_features_and_parameters_the_ordinary_way():
    model = mlp(0, (3, 5, 4, 2))
    cut = split(model, X, layer="1")
    features = cut.encode(X).detach().requires_grad_()
    cut.head(features).sum().backward()
    assert features.grad.abs().max() > 0
    assert model[0].weight.grad is None, "the part before the layer is not part of the head"
    assert model[4].weight.grad.abs().max() > 0
    cut.encode(X).sum().backward()
    assert model[0].weight.grad.abs().max() > 0


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    sizes=st.lists(st.integers(1, 5), min_size=2, max_size=5),
    activation=st.sampled_from(["tanh", "silu", "gelu", "relu"]),
    rows=st.integers(1, 6),
    data=st.data(),
)
def test_any_mlp_can_be_cut_anywhere(seed, sizes, activation, rows, data):
    model, x = mlp(seed, sizes, activation), randn(seed, rows, sizes[0])
    layer = data.draw(st.sampled_from(layer_names(model)))
    if layer and not model[: int(layer) + 1](x).any():  # dead ReLU: nothing to see
        return
    cut = split(model, x, layer=layer)
    assert_close(cut.head(cut.encode(x)), model(x), rtol=1e-12, atol=1e-14)


def test_nested_transforms_of_a_head_agree_with_the_plain_rest():
    model = mlp(0, (3, 5, 4, 2), "silu")
    head = split(model, X, layer="1").head
    h, directions = randn(1, 2, 5), randn(2, 3, 2, 5)
    one = torch.ones((), dtype=torch.float64)

    def second(f):
        along = lambda v: lambda t: f(h + t * v)  # noqa: E731
        twice = lambda v: jvp(lambda t: jvp(along(v), (t,), (one,))[1], (0 * one,), (one,))[1]  # noqa: E731
        with exact_derivatives(), torch.no_grad():
            return vmap(twice)(directions)

    assert_close(second(head), second(model[2:]), rtol=1e-12, atol=1e-14)


class Counted(nn.Module):
    """A linear map that counts the rows it is given."""

    def __init__(self, seed=0):
        super().__init__()
        self.map, self.rows = linear(seed), []

    def forward(self, x):
        self.rows.append(len(x))
        return self.map(x)


def test_part_before_the_layer_does_not_run():
    block = nn.Sequential(Counted(1), nn.Tanh(), Counted(2))
    model = net(lambda m, x: m.c(torch.relu(m.block(m.a(x)))), a=Counted(), block=block, c=Counted(3))
    expected = model(X)
    for layer, before, behind in (("a", [model.a], [block[0], block[2], model.c]),
                                  ("block.1", [model.a, block[0]], [block[2], model.c]),
                                  ("block", [model.a, block[0], block[2]], [model.c])):  # fmt: skip
        cut = split(model, X, layer=layer)
        features = cut.encode(X)
        for part in (*before, *behind):
            part.rows.clear()
        assert_close(cut.head(features), expected, rtol=0, atol=0)
        assert [part.rows for part in before] == [[]] * len(before), layer
        assert [part.rows for part in behind] == [[len(X)]] * len(behind), layer
    assert_close(model(X), expected, rtol=0, atol=0)  # nothing is left behind


def test_what_runs_again_behind_the_layer_runs():
    shared = Counted()
    model = net(lambda m, x: m.shared(torch.tanh(m.b(m.shared(x)))), shared=shared, b=linear(1))
    cut = split(model, X, layer="b")
    features = cut.encode(X)
    shared.rows.clear()
    assert_close(cut.head(features), model(X), rtol=0, atol=0)
    assert shared.rows == [1, len(X), len(X), len(X)]


def test_replaced_forward_methods_come_back():
    model = mlp(0, (3, 5, 4, 2))
    own = model[0].forward
    model[0].forward = lambda x: 2 * own(x)
    expected, patched = model(X), model[0].forward
    cut = split(model, X, layer="1")
    assert_close(cut.head(cut.encode(X)), expected, rtol=0, atol=0)
    with pytest.raises(RuntimeError):
        cut.head(torch.zeros(2, 7, dtype=torch.float64))
    assert model[0].forward is patched
    assert "forward" not in vars(model[1])
    assert_close(model(X), expected, rtol=0, atol=0)


def test_results_before_the_layer_may_be_overwritten_in_place():
    model = net(lambda m, x: m.b(m.a(x).mul_(3)), a=linear(), b=linear(1))
    cut = split(model, X, layer="b")
    for _ in range(3):
        assert_close(cut.head(cut.encode(X)), model(X), rtol=0, atol=0)


def test_batch_size_seen_before_the_layer_may_be_used_behind_it():
    model = net(lambda m, x: m.b(m.a(x).reshape(x.shape[0], 3) + torch.zeros(x.shape[0], 3)), a=linear(), b=linear(1))
    cut = split(model, X, layer="a")
    assert_close(cut.head(cut.encode(X)[[0, 1, 1, 1, 2, 2, 2]]), model(X)[[0, 1, 1, 1, 2, 2, 2]])
    model = net(lambda m, x: m.b(m.a(x))[: len(x)], a=linear(), b=linear(1))  # cuts silently
    cut = split(model, X, layer="a")
    assert_close(cut.head(cut.encode(X)), model(X))


def test_one_sample_and_one_dimensional_outputs():
    model = net(lambda m, x: m.b(torch.tanh(m.a(x))).squeeze(-1), a=linear(), b=linear(1, 3, 1))
    cut = split(model, X[:1], layer="a")
    assert cut.head(cut.encode(X)).shape == (5,)
    assert_close(cut.head(cut.encode(X)), model(X))


@pytest.mark.parametrize("layer", ["", "a"])
def test_in_place_layers_change_neither_argument_nor_leaf(layer):
    model = net(lambda m, x: m.b(m.relu(m.a(m.relu(x)))), a=linear(), b=linear(1), relu=nn.ReLU(inplace=True))
    x = X.clone()
    cut = split(model, x, layer=layer)
    features = cut.encode(x)
    kept = features.clone()
    cut.head(features)
    assert_close(features, kept, rtol=0, atol=0)
    assert_close(x, X, rtol=0, atol=0)
    leaf = features.detach().requires_grad_()
    cut.head(leaf).sum().backward()
    assert leaf.grad is not None


def test_parameters_replace_the_model_s_own():
    model = mlp(0, (3, 5, 2))
    other = mlp(1, (3, 5, 2))
    params = dict(other.named_parameters())
    cut = split(model, X, layer="1", params=params)
    assert_close(cut.head(cut.encode(X)), other(X))
    model_cut = split(model, X, params={"0.weight": params["0.weight"]})
    assert_close(model_cut.head(X), functional_call(model, {"0.weight": params["0.weight"]}, (X,)))
    norm = small_cnn(0)
    shift = {"1.running_mean": torch.ones(4, dtype=torch.float64)}
    x = randn(1, 2, 1, 6, 6)
    assert_close(split(norm, x, layer="1", params=shift).encode(x), functional_call(norm[:2], shift, (x,)))


def test_callables_and_token_models():
    assert_close(split(lambda h: h.sin(), X).head(X), X.sin())
    model = net(lambda m, x: m.out(torch.tanh(m.embed(x)).mean(1)), embed=nn.Embedding(7, 4), out=linear(0, 4, 2))
    tokens = torch.arange(10).reshape(2, 5) % 7
    for ids in (tokens, tokens[:1]):
        cut = split(model, ids, layer="embed")
        assert_close(cut.head(cut.encode(ids)), model(ids))
    with pytest.raises(TypeError, match="layer='embed'"):
        split(model, tokens)
    with pytest.raises(TypeError, match=r"indices cannot be mixed.*layer='\.\.\.'"):
        split(lambda h: h, tokens)
    assert layer_names(model, tokens) == ["embed", "out"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_follows_the_inputs(dtype):
    model, x = tiny_transformer(0).to(dtype), randn(0, 2, 3, 4).to(dtype)
    cut = split(model, x, layer="blocks.0")
    assert cut.encode(x).dtype == cut.head(cut.encode(x)).dtype == dtype


def test_split_inside_the_context_and_inside_a_transform():
    model = tiny_transformer(0)
    x = randn(0, 2, 3, 4)
    with exact_derivatives():
        inside = split(model, x, layer="blocks.0")
        assert_close(inside.head(inside.encode(x)), model(x))

    def loss(params):
        cut = split(model, x, layer="blocks.0", params=params)
        return cut.head(cut.encode(x)).pow(2).sum()

    params = {name: value.detach() for name, value in model.named_parameters()}
    with exact_derivatives():
        ours, plain = (grad(f)(params) for f in (loss, lambda p: functional_call(model, p, (x,)).pow(2).sum()))
    assert_close(ours, plain)


def test_compiled_models_are_cut_like_the_original():
    model = mlp(0, (3, 5, 4, 2))
    expected = model(X)
    inner = net(lambda m, x: m.out(m.block(x)), block=torch.compile(mlp(1, (3, 4, 3)), backend="eager"), out=linear())
    own = mlp(0, (3, 5, 4, 2))
    own.compile(backend="eager")
    for compiled in (torch.compile(model, backend="eager"), own):
        cut = split(compiled, X, layer="1", params={"0.weight": model[0].weight})
        assert_close(cut.head(cut.encode(X)), expected)
    assert layer_names(inner, X) == ["", "block", "block.0", "block.1", "block.2", "out"]
    weight = {"block.0.weight": inner.block._orig_mod[0].weight * 2}
    cut = split(inner, X, layer="block.1", params=weight)
    assert_close(
        cut.head(torch.zeros(2, 4, dtype=torch.float64)),
        inner.out(inner.block._orig_mod[2].bias.expand(2, 3)),
    )


# layer_names --------------------------------------------------------------------------------------------------


def test_layer_names():
    model = preact_resnet18(0)
    names = layer_names(model, randn(0, 2, 3, 8, 8))
    assert {"", "conv1", "layer1", "layer1.0", "layer4.1", "bn", "act", "linear"} <= set(names)
    # the shortcut passes by what is inside a residual block, except where it starts behind the first norm
    inside = {name for name in names if "conv2" in name or ".bn" in name or ".act" in name}
    assert inside == {"layer2.0.bn1", "layer3.0.bn1", "layer4.0.bn1"}
    for name in names:
        split(model, randn(0, 2, 3, 8, 8), layer=name)
    assert "blocks" not in layer_names(tiny_transformer(0))
    assert layer_names(lambda x: x) == layer_names(lambda x: x, X) == [""]
    with pytest.raises(ValueError, match=r"call.*model\.eval\(\)"):
        layer_names(small_cnn(0).train(), randn(0, 2, 1, 6, 6))


# What split refuses -------------------------------------------------------------------------------------------


def residual():
    block = Net(lambda m, x: x + m.inner(x), inner=linear(1))
    return net(lambda m, x: m.out(m.block(m.first(x))), first=linear(), block=block, out=linear(2))


def lazy():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lazy modules announce that they may change
        return nn.Sequential(nn.LazyLinear(2))


class DropPath(nn.Module):
    drop_prob = 0.2

    def forward(self, x):
        return x


INF = X.clone().index_fill(1, torch.tensor(1), torch.inf)
REFUSED = {
    "not callable": (lambda: "model", X, "", TypeError, "callable, got str"),
    "inputs no tensor": (lambda: mlp(0, (3, 2)), [1.0], "", TypeError, "x: expected a tensor"),
    "no batch": (lambda: mlp(0, (3, 2)), X[0, 0], "", ValueError, "at least one sample"),
    "empty batch": (lambda: mlp(0, (3, 2)), X[:0], "", ValueError, r"at least one sample.*\(0, 3\)"),
    "callable with layer": (lambda: torch.sin, X, "a", ValueError, "the callable and the features as x"),
    "unknown layer": (lambda: preact_resnet18(0), randn(0, 1, 3, 8, 8), "layer1.0.conv3", ValueError, "layer1.0.conv"),
    "nothing like it": (lambda: mlp(0, (3, 2)), X, "zzz", ValueError, r"'zzz'; layer_names\(model\)"),
    "never called": (lambda: net(lambda m, x: m.a(x), a=linear(), b=linear()), X, "b", ValueError, "never"),
    "called twice": (lambda: net(lambda m, x: m.a(m.a(x)), a=linear()), X, "a", ValueError, "called 2 times"),
    "tuple": (
        lambda: net(lambda m, x: m.a(m.rnn(x)[0]), rnn=nn.RNN(3, 3), a=linear()), X, "rnn", TypeError, "got tuple"),
    "integer features": (
        lambda: net(lambda m, x: m.a(x) + m.b(x).sum(), a=linear(), b=Net(lambda m, x: x.long())), X, "b", TypeError,
        "torch.int64"),
    "infinite inputs": (lambda: mlp(0, (3, 2)), INF, "", ValueError, "x: expected finite"),
    "infinite features": (
        lambda: net(lambda m, x: torch.tanh(m.a(x)), a=Net(lambda m, x: 1 / (x - x))), X, "a", ValueError,
        "finite features|finite outputs"),
    "infinite outputs": (lambda: lambda x: 1 / (x - x), X, "", ValueError, "finite outputs"),
    "output dictionary": (lambda: lambda x: {"logits": x}, X, "", TypeError, "got dict.*output='logits'"),
    "integer outputs": (lambda: lambda x: x.argmax(-1), X, "", TypeError, "got torch.int64"),
    "one output for all": (lambda: lambda x: x.sum(0), X, "", ValueError, r"got \(3,\)"),
    "batch norm": (lambda: nn.BatchNorm1d(3).double(), X, "", ValueError, r"BatchNorm1d ''.*model\.eval"),
    "batch norm without statistics": (
        lambda: nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False)).eval(), X, "", ValueError,
        "track_running_stats=True"),
    "instance norm": (
        lambda: nn.Sequential(nn.InstanceNorm1d(3, track_running_stats=True), nn.Flatten()).double(),
        randn(0, 2, 3, 4), "", ValueError, "running statistics"),
    "dropout": (lambda: nn.Sequential(nn.Dropout(0.1)), X, "", ValueError, r"Dropout '0'.*random"),
    "drop path": (lambda: nn.Sequential(DropPath()), X, "", ValueError, "DropPath"),
    "attention dropout": (
        lambda: nn.Sequential(nn.MultiheadAttention(4, 2, 0.1)), X, "", ValueError, "MultiheadAttention"),
    "random by a function": (lambda: lambda x: F.dropout(x, 0.5), X, "", ValueError, "differ from call to call"),
    "mean over the batch": (lambda: lambda x: x - x.mean(0), X, "", ValueError, "do not interact"),
    "mean over the batch, one sample": (lambda: lambda x: x + x.mean(0), X[:1], "", ValueError, "do not interact"),
    "order in the batch": (lambda: lambda x: x.cumsum(0), X, "", ValueError, "order"),
    "bypass": (residual, X, "block.inner", ValueError, "layer='block'"),
    "bypass, one sample": (residual, X[:1], "block.inner", ValueError, "layer='block'"),
    "bypass at the top": (
        lambda: net(lambda m, x: x + m.a(x), a=linear()), X, "a", ValueError, "after the connection"),
    "lazy": (lazy, X.float(), "", ValueError, "not initialized"),
    "device": (lambda: nn.Linear(3, 2, device="meta"), X.float(), "", ValueError, "device meta, got cpu"),
    "dtype": (lambda: nn.Linear(3, 2), X, "", TypeError, "dtype torch.float32, got torch.float64"),
    "overwritten in place": (
        lambda: net(lambda m, x: (lambda h: m.relu(h) + h)(m.a(x)), a=linear(), relu=nn.ReLU(inplace=True)), X, "",
        ValueError, "without in-place operations"),
    "overwritten by a method": (
        lambda: net(lambda m, x: (lambda h: (h.mul_(2), h)[1])(m.a(x)), a=linear()), X, "",
        ValueError, "without in-place operations"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_with_advice(name):
    build, x, layer, error, message = REFUSED[name]
    model = build()
    with torch.random.fork_rng(devices=[]), pytest.raises(error, match=message):
        split(model, x, layer=layer)
    if isinstance(model, nn.Module):
        assert all(len(module._forward_hooks) == 0 for module in model.modules())


@pytest.mark.parametrize(
    ("model", "params", "error", "message"),
    [
        (torch.sin, {"a": X}, TypeError, "no nn.Module"),
        (mlp(0, (3, 2)), {"0.weigth": X}, ValueError, "did you mean '0.weight'"),
        (mlp(0, (3, 2)), {"0.weight": X}, ValueError, r"expected shape \(2, 3\), got \(5, 3\)"),
    ],
)
def test_refuses_parameters_with_advice(model, params, error, message):
    with pytest.raises(error, match=message):
        split(model, X, params=params)


def test_dropout_that_does_nothing_is_accepted():
    model = nn.Sequential(nn.Dropout(0.0), nn.RReLU().eval(), nn.Dropout(0.5).eval(), nn.Linear(3, 2)).double()
    model[0].train()
    split(model, X)
    assert networks.is_random(nn.RReLU())
    assert networks.is_random(nn.LSTM(2, 2, 2, dropout=0.1))


def test_hooks_are_removed_when_the_model_fails():
    model = mlp(0, (3, 5, 2))
    head = split(model, X, layer="1").head
    with pytest.raises(RuntimeError, match="shapes"):
        head(X)
    assert not model[1]._forward_hooks


def test_only_the_first_samples_are_probed(monkeypatch):
    rows = []
    monkeypatch.setattr(layers, "PROBE_ROWS", 4)
    split(lambda x: (rows.append(len(x)), x)[1], torch.cat([X, X]))
    assert max(rows) == 4
