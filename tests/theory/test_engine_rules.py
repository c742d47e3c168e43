"""Operations that are followed, those that are not, and that the result is the same: nothing is silently wrong."""

import pytest
import torch
import torch.nn.functional as F
from problems import finish, mlp, randn
from tiers import slow
from torch import nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from nfm_theory import Problem, exact_derivatives, linearize
from nfm_theory.calculus.engine import linearize_layer

W, W2, B = randn(0, 4, 4), randn(1, 4, 3), randn(2, 4)


class Square(torch.autograd.Function):
    """Differentiable for PyTorch, opaque for anyone who watches operations."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad * ctx.saved_tensors[0]

    @staticmethod
    def jvp(ctx, tangent):
        return 2 * tangent * ctx.saved_tensors[0]


def wide(z):
    """A number per sample as three equal outputs."""
    return z.reshape(-1, 1).expand(-1, 3)


def out_of_a_custom_function(h):
    return Square.apply(torch.tanh(h @ W)) @ W2


def beside_a_custom_function(h):
    return (torch.tanh(h) + Square.apply(h)) @ W2


def beside_a_vmap(h):
    return (h + torch.vmap(lambda row: torch.tanh(row @ W))(h)) @ W2


def beside_a_gradient(h):
    return (h + torch.func.grad(lambda u: torch.tanh(u @ W).sum())(h)) @ W2


def written_into(h):
    z = torch.tanh(h).clone()
    z[:, 0] = h[:, 1] ** 2
    return z @ W2


def written_into_a_constant(h):
    z = torch.zeros(len(h), 4, dtype=h.dtype)
    z[:, 1:] = h[:, :3] ** 2
    return z @ W2


def added_in_a_statement(h):
    z = h @ W
    z.add_(h * h)
    return torch.tanh(z) @ W2


def activated_in_a_statement(h):
    z = h @ W
    z.tanh_()
    return z @ W2


def in_place_without_the_result(h):
    z = h @ W
    F.relu(z, inplace=True)
    return torch.sin(z) @ W2


def overwritten_through_a_view(h):
    z = h @ W
    z[:, :2].mul_(2.0)
    return torch.tanh(z) @ W2


def gathered_in_a_constant(h):
    total = torch.zeros(len(h), 4, dtype=h.dtype)
    total.add_(torch.sin(h))
    return torch.tanh(total) @ W2


def sorted_samples(h):
    """Samples in another order than they came in, as for packed sequences; the first stays the first."""
    order = torch.arange(len(h))
    order[1:] = order[1:].flip(0)
    z = torch.tanh(torch.tanh(h @ W).index_select(0, order) @ W)
    return z.index_select(0, order.argsort()) @ W2


def all_samples_sorted(h):
    order = h.detach().sum(1).argsort()
    return torch.tanh(torch.tanh(h)[order] @ W)[order.argsort()] @ W2


def one_by_one(h):
    return torch.stack([torch.tanh(row @ W) for row in h]) @ W2


def in_complex_numbers(h):
    return torch.tanh(torch.fft.fft(torch.tanh(h)).abs()) @ W2


def read_out(h):
    return torch.tanh(h * (1 + 0 * h.detach().abs().max().item())) @ W2


def without_gradients(h):
    with torch.no_grad():
        scale = h.abs() + 1
    return torch.tanh(h / scale) @ W2


def samples_as_columns(h):
    return (W2.T @ torch.tanh(W.T @ h.T)).T


def einsum_to_columns(h):
    return torch.einsum("bt,ti->ib", torch.tanh(h), W2).tanh().T


def in_an_option(h):
    return torch.add(input=torch.sin(h), other=h**3) @ W2


def rows_of_rows(h):
    return torch.nn.utils.rnn.pad_sequence([h, h * h], batch_first=False).sum(1) @ W2


#: Followed: what it does to samples can be told.
FOLLOWED = {
    "einsum of several tensors": lambda h: wide(torch.einsum("bi,ij,bj->b", torch.tanh(h), W, h)),
    "addmm": lambda h: torch.addmm(h @ W2, h.tanh(), W2),
    "addcmul": lambda h: torch.addcmul(h, h.tanh(), h) @ W2,
    "lerp": lambda h: torch.lerp(h, h.tanh(), h.sigmoid()) @ W2,
    "matrix by vector": lambda h: wide(torch.tanh(h @ B) + torch.mv(h.sin(), B)),
    "where": lambda h: torch.where(h > 0, h**2, h.sin()) @ W2,
    "maximum": lambda h: torch.maximum(h @ W, h.sin()) @ W2,
    "amax": lambda h: wide(torch.sin((h @ W).amax(1))),
    "cumsum": lambda h: torch.tanh(h.cumsum(1)) @ W2,
    "standard deviation": lambda h: torch.tanh(h / h.std(1, keepdim=True)) @ W2,
    "normalize": lambda h: F.normalize(h @ W, dim=-1) @ W2,
    "variance": lambda h: wide((h @ W).var(1)),
    "logsumexp of two": lambda h: wide(torch.logsumexp((h @ W).reshape(-1, 2, 2), (1, 2))),
    "logsumexp": lambda h: wide(torch.logsumexp(h @ W, 1)),
    "prelu": lambda h: torch.sin(F.prelu(h @ W, randn(4, 1))) @ W2,
    "glu": lambda h: F.glu(torch.cat([h @ W, h], 1)) @ W2,
    "threshold in place": lambda h: torch.sin(nn.Threshold(0.1, 0.2, inplace=True)(h @ W)) @ W2,
    "clamp by tensors": lambda h: torch.sin((h @ W).clamp(min=B - 1, max=B + 1)) @ W2,
    "masked fill": lambda h: torch.tanh(h).masked_fill(B > 0, 2.0) @ W2,
    "gather": lambda h: h.gather(1, torch.tensor([[0, 2, 1]]).expand(len(h), 3)).tanh(),
    "flip and roll": lambda h: (h.flip(1) * h.roll(1, 1)).tanh() @ W2,
    "repeat": lambda h: h.repeat(1, 2).tanh() @ torch.cat([W2, W2]),
    "unfold": lambda h: h.unfold(1, 2, 1).prod(-1).sin(),
    "division": lambda h: (1 / (1 + h**2) - h / (2 + h.sin())) @ W2,
    "powers": lambda h: (2**h + (h.abs() + 1).pow(h) + h**3) @ W2,
    "subtraction": lambda h: torch.rsub(torch.sin(3 - h), h, alpha=2) @ W2,
    "cast of a constant": lambda h: torch.tanh(h * B.to(h) + torch.ones(4).type_as(h)) @ W2,
    "log softmax to another type": lambda h: F.log_softmax(h @ W, -1, dtype=torch.float64) @ W2,
    "checkpoint": lambda h: checkpoint(lambda u: torch.tanh(u @ W), h, use_reentrant=False) @ W2,
    "detached factor": lambda h: torch.tanh(h * h.detach()) @ W2,
    "comparison": lambda h: torch.tanh(h * (h > 0.3).to(h.dtype)) @ W2,
    "linear with samples as columns": samples_as_columns,
    "in-place sums": lambda h: in_place_sums(h),
}


def in_place_sums(h):
    z = h @ W
    z += h
    z *= 2
    z -= torch.sin(h)
    z /= 3
    return torch.tanh(z) @ W2


#: Not followed: id -> (head, what the reason says).
REFUSED = {
    "custom function": (out_of_a_custom_function, "no_grad|custom autograd function"),
    "beside a custom function": (beside_a_custom_function, "no_grad|custom autograd function"),
    "beside a vmap": (beside_a_vmap, "custom autograd function"),
    "beside a gradient": (beside_a_gradient, "custom autograd function"),
    "setitem": (written_into, "__setitem__"),
    "setitem of a constant": (written_into_a_constant, "__setitem__"),
    "in-place method": (added_in_a_statement, "overwritten"),
    "in-place activation": (activated_in_a_statement, "overwritten"),
    "in-place without the result": (in_place_without_the_result, "overwritten"),
    "in place through a view": (overwritten_through_a_view, "overwritten"),
    "in place in a constant": (gathered_in_a_constant, "overwritten"),
    "permuted samples": (sorted_samples, "cannot be told apart"),
    "sorted samples": (all_samples_sorted, "__getitem__"),
    "samples flipped": (lambda h: h.flip(0).tanh().flip(0) @ W2, "flip"),
    "samples one by one": (one_by_one, "unbind"),
    "complex numbers": (in_complex_numbers, "complex"),
    "index tensor": (lambda h: torch.tanh(h[:, torch.tensor([2, 0, 1, 1])] * h) @ W2, "__getitem__"),
    "several results": (lambda h: wide(h.max(1).values.tanh()), "several results"),
    "sort": (lambda h: h.sort(1).values.tanh() @ W2, "several results"),
    "data": (lambda h: (h * h.data) @ W2, "data"),
    "columns": (einsum_to_columns, "cannot be told apart"),
    "keyword of another library": (lambda h: torch.tanh(h.mean(1, keepdims=True) + h) @ W2, "keepdims"),
    "features in a list": (rows_of_rows, "several results|inside a list"),
    "under no_grad": (without_gradients, "no_grad"),
    "mean over all": (lambda h: (h + 0 * h.mean()) @ W2, "over all samples"),
}


def compare(head, batch, *, engine="auto"):
    h, slope = randn(7, batch, 4), randn(8, batch, 3)
    with torch.no_grad():
        found = linearize(head, h.clone(), engine=engine)
        nested = linearize(head, h.clone(), engine="nested")
        assert_close(found.outputs, head(h.clone()), rtol=1e-12, atol=1e-13)
        for directions in (randn(9, 3, 1, 4), randn(10, 3, batch, 4)):
            for f, e in zip(found.sweep(directions, slope), nested.sweep(directions, slope), strict=True):
                assert f.dtype == torch.float64
                assert_close(f, e, rtol=1e-10, atol=1e-11)
    return found.path


def with_exact_derivatives(head):
    def exact(h):
        with exact_derivatives():
            return head(h)

    return exact


@pytest.mark.parametrize("batch", [1, 3, 4])
@pytest.mark.parametrize("name", FOLLOWED)
def test_followed_operations(name, batch):
    head = FOLLOWED[name]
    head = with_exact_derivatives(head) if name in ("glu", "normalize") else head
    assert compare(head, batch, engine="tangent-adjoint") == "tangent-adjoint"


@pytest.mark.parametrize("batch", [4, *slow([3])])  # four features too: what belongs to samples cannot be told by size
@pytest.mark.parametrize("name", REFUSED)
def test_refused_operations_fall_back_to_the_same_result_and_say_why(name, batch):
    head, reason = REFUSED[name]
    # PyTorch's own modes do not agree on what `no_grad` hides
    path = linearize(head, randn(7, batch, 4)).path if "no_grad" in name else compare(head, batch)
    assert path.startswith("nested torch.func (")
    with pytest.raises(ValueError, match=f"(?s)cannot follow .*({reason}).*use engine='auto'"):
        linearize(head, randn(7, batch, 4), engine="tangent-adjoint")


@pytest.mark.parametrize("norm", [lambda z, w: F.layer_norm(z, (4,), w, 2 * w), lambda z, w: F.rms_norm(z, (4,), w)])
def test_a_norm_whose_weight_is_made_from_the_features_is_not_followed(norm):
    with pytest.raises(ValueError, match="cannot follow"):
        linearize(lambda h: norm(h @ W, torch.tanh(h.reshape(4))) @ W2, randn(7, 1, 4), engine="tangent-adjoint")


def test_a_single_sample_is_no_excuse():
    for name in ("beside a custom function", "in-place method", "in place through a view", "beside a vmap"):
        assert compare(REFUSED[name][0], 1).startswith("nested")


def test_data_dependent_choices_are_those_of_the_point():
    h, v = randn(0, 3, 4), randn(1, 2, 1, 4)

    def head(u):
        return (u.sin() if u.detach().max().item() < 1e9 else u.cos()) @ W2

    at = linearize(head, h)
    assert at.path == "tangent-adjoint"
    assert_close(at.sweep(v)[0], (h.cos() * v) @ W2, rtol=1e-12, atol=1e-13)
    with pytest.raises(ValueError, match="tolist, which reads a value of the tensor"):
        linearize(lambda u: u * u.tolist()[0][0], h, engine="tangent-adjoint")


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_dropout(rate):
    drop = nn.Dropout(rate).train()
    h = randn(0, 3, 4)
    if rate:
        with pytest.raises(ValueError, match="dropout in training mode"):
            linearize(lambda u: drop(torch.tanh(u)), h, engine="tangent-adjoint")
        with pytest.raises(ValueError, match=r"model\.eval"):
            Problem(nn.Sequential(nn.Linear(4, 3).double(), drop.train()), h, torch.tensor([0, 1, 2]))
    else:
        assert linearize(lambda u: drop(torch.tanh(u)), h).path == "tangent-adjoint"
    assert linearize(lambda u: F.dropout(u.tanh(), 0.5, False, True) @ W2, h).path == "tangent-adjoint"


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(4).double(), nn.BatchNorm1d(4, track_running_stats=False).double()])
def test_batch_statistics_are_not_followed(norm):
    norm.train(norm.track_running_stats)
    with pytest.raises(ValueError, match="batch norm on the statistics of the batch"):
        linearize(lambda u: norm(u) @ W2, randn(0, 3, 4), engine="tangent-adjoint")


def test_outputs_that_do_not_depend_on_the_features_fall_back():
    h = randn(0, 3, 4)
    at = linearize(lambda u: W2[:3] + 0, h)
    assert "do not depend" in at.path
    with pytest.raises(ValueError, match="samples are not along the first"):
        linearize(lambda u: (u @ W2).T, h, engine="tangent-adjoint")


def test_recurrent_networks_are_right_whichever_way():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.out = nn.GRUCell(2, 3), nn.Linear(3, 3)

        def forward(self, x):
            state = x.new_zeros(len(x), 3)
            for step in x.reshape(len(x), 2, 2).unbind(1):
                state = torch.tanh(self.out(state) + self.rnn.weight_ih[:3].sum() * step.sum(1, keepdim=True))
            return self.out(state)

    compare(finish(Last, 0), 3)


def test_errors_of_the_head_itself_are_not_swallowed():
    for head, error in ((lambda h: h @ randn(0, 5, 2), RuntimeError), (lambda h: h.no_such_method(), AttributeError)):
        with pytest.raises(error):
            linearize(head, randn(0, 3, 4))
    with pytest.raises(TypeError):
        linearize(lambda h: torch.softmax(h, no_such_option=1), randn(0, 3, 4))


def test_the_features_are_left_alone():
    h = randn(0, 3, 4)
    before = h.clone()
    linearize(lambda u: nn.ReLU(inplace=True)(u.mul_(2.0)) @ W2, h).sweep(randn(1, 2, 1, 4), randn(2, 3, 3))
    assert torch.equal(h, before)
    assert h.grad is None
    assert not h.requires_grad


def test_a_layer_that_is_not_followed_is_differentiated_as_a_whole():
    class Opaque(nn.Module):
        def forward(self, x):
            return torch.tanh(x).sort(1).values

    model = nn.Sequential(*mlp(0, [3, 4, 4]), Opaque(), *mlp(1, [4, 2]))
    x, slope, v = randn(2, 5, 3), randn(3, 5, 2), randn(4, 2, 1, 4)
    at = linearize_layer(model, x, "0")
    assert at.path.startswith("nested torch.func (sort")
    expected = linearize(lambda h: model[1:](h), model[0](x), engine="nested").sweep(v, slope)
    for f, e in zip(at.sweep(v, slope), expected, strict=True):
        assert_close(f, e, rtol=1e-10, atol=1e-12)
    found, reference = (torch.autograd.grad(z[1].sum(), model[0].weight)[0] for z in (at.sweep(v, slope), expected))
    assert_close(found, reference, rtol=1e-9, atol=1e-12)


def test_contexts_of_exact_derivatives_nest():
    """Inside a recording another context changes nothing; it takes over inside other modes."""
    calls = []
    head = with_exact_derivatives(lambda h: calls.append(1) or F.layer_norm(F.silu(h @ W), (4,)) @ W2)
    assert linearize(head, randn(0, 3, 4), engine="tangent-adjoint").path == "tangent-adjoint"
    compare(head, 3)
    with exact_derivatives(), exact_derivatives():
        inner = torch.func.jvp(
            lambda t: torch.func.jvp(F.silu, (t,), (torch.ones(()),))[1], (torch.zeros(()),), (torch.ones(()),)
        )[1]
    assert float(inner) == pytest.approx(0.5)
    with exact_derivatives(), torch.device("cpu"), exact_derivatives(), torch.no_grad():
        second = torch.func.jvp(
            lambda t: torch.func.jvp(F.silu, (t,), (torch.ones(()),))[1], (torch.zeros(()),), (torch.ones(()),)
        )[1]
    assert float(second) == pytest.approx(0.5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layout", ["batch first", "tokens first", "one sequence"])
def test_plain_multi_head_attention_is_that_of_pytorch(layout, bias):
    attention = finish(lambda: nn.MultiheadAttention(4, 2, bias=bias, batch_first=layout == "batch first"), 0)
    tokens = randn(1, 3, 4) if layout == "one sequence" else randn(1, 3, 2, 4)
    expected = attention(tokens, tokens, tokens, need_weights=True)[0]
    with exact_derivatives():
        found, weights = attention(tokens, tokens, tokens, need_weights=False)
        shared = attention(tokens, tokens.flip(0), tokens * 2, need_weights=False)[0]
    assert weights is None
    assert_close(found, expected, rtol=1e-12, atol=1e-13)
    plain = attention(tokens, tokens.flip(0), tokens * 2, need_weights=True)[0]
    assert_close(shared, plain, rtol=1e-12, atol=1e-13)


RARE = {
    "mask": {"attn_mask": torch.tensor([[False, True], [False, False]])},
    "padding": {"key_padding_mask": torch.tensor([[False, True]])},
}


@pytest.mark.parametrize("option", RARE)
def test_rare_attention_is_left_to_pytorch_and_still_right(option):
    attention = finish(lambda: nn.MultiheadAttention(4, 2, batch_first=True), 0)

    def head(h):
        x = h.reshape(len(h), 2, 2).repeat(1, 1, 2)
        options = {k: v.expand(len(h), 2) if k == "key_padding_mask" else v for k, v in RARE[option].items()}
        return attention(x, x, x, need_weights=False, **options)[0].flatten(1)[:, :3]

    compare(with_exact_derivatives(head), 3)


def test_attention_that_returns_its_weights_is_followed_too():
    attention = finish(lambda: nn.MultiheadAttention(6, 2, batch_first=True), 3)
    tokens = randn(4, 3, 4, 6)
    for average in (True, False):
        plain, expected = attention(tokens, tokens, tokens, average_attn_weights=average)
        with exact_derivatives():
            found, weights = attention(tokens, tokens, tokens, average_attn_weights=average)
        assert_close(found, plain, rtol=1e-12, atol=1e-14)
        assert_close(weights, expected, rtol=1e-12, atol=1e-14)
    at = linearize(lambda z: attention(z, z, z)[0].mean(1), tokens)
    assert at.path == "tangent-adjoint"
