"""Layers that PyTorch cannot differentiate twice: right by another way, or refused with the way out."""

import pytest
import torch
import torch.nn.functional as F
from problems import finish, randn
from torch import nn

import nfm_theory as nt
from nfm_theory.calculus.engine.local import _along
from nfm_theory.calculus.failures import DerivativeError

X, Y = randn(1, 4, 8), torch.arange(4) % 3
V, POINTS = randn(2, 8, 3), randn(3, 3, 8)
GRID = 0.8 * randn(4, 1, 2, 4, 2).tanh()
LAW = nt.Law(add_noise=0.4)


class Recurrent(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer, self.last = layer(2, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        return self.last(self.layer(x.reshape(len(x), 4, 2))[0][:, -1])


class ByHand(nn.Module):
    """The same function as a network with `torch.logdet`, from products and a logarithm."""

    def __init__(self, by_hand):
        super().__init__()
        self.by_hand, self.first, self.last = by_hand, nn.Linear(8, 4), nn.Linear(5, 3)

    def forward(self, x):
        z = self.first(x)
        if self.by_hand:
            a, b, c, d = z.unbind(1)
            extra = ((a * a + b * b + 1) * (c * c + d * d + 1) - (a * c + b * d) ** 2).log()
        else:
            m = z.reshape(-1, 2, 2)
            extra = torch.logdet(m @ m.mT + torch.eye(2, dtype=z.dtype))
        return self.last(torch.cat([z, extra[:, None]], 1))


def sampled(x, align_corners=False):
    return F.grid_sample(
        x.tanh().reshape(-1, 1, 2, 4), GRID.to(x).expand(len(x), -1, -1, -1), align_corners=align_corners
    )


NETWORKS = {
    "LSTM": lambda: finish(lambda: Recurrent(nn.LSTM), 0),
    "GRU": lambda: finish(lambda: Recurrent(nn.GRU), 0),
    "RReLU": lambda: finish(lambda: nn.Sequential(nn.Linear(8, 6), nn.RReLU(), nn.Linear(6, 3)), 0),
    "cdist": lambda: lambda x: torch.cdist(x, POINTS.to(x)),
    "grid_sample": lambda: lambda x: sampled(x).flatten(1) @ V.to(x),
    "logit": lambda: lambda x: torch.logit(torch.sigmoid(x) * 0.9 + 0.05) @ V.to(x),
    "eigenvalues": lambda: lambda x: torch.linalg.eigvalsh((z := x[:, :4].reshape(-1, 2, 2)) + z.mT) @ V.to(x)[:2],
    "solve": lambda: lambda x: torch.linalg.solve(
        x[:, :4].reshape(-1, 2, 2) + 4 * torch.eye(2).to(x), x[:, 4:6]
    ) @ V.to(x)[:2],
    "logdet": lambda: finish(lambda: ByHand(False), 0),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", NETWORKS)
def test_second_order_terms_are_those_of_the_values(name, dtype):
    """The second difference of losses along every direction of an exact rule takes no derivative."""
    model = NETWORKS[name]()
    model = model.to(dtype) if isinstance(model, nn.Module) else model
    problem = nt.Problem(model, X.to(dtype), Y, law=nt.Law())
    terms = nt.terms(problem, remainder=False)
    float64 = nt.Problem(model.double() if isinstance(model, nn.Module) else model, X, Y, law=nt.Law())
    step = 2e-3
    grid = float64.grid(rule="smallest", degree=2, num_lam=2, num_noise=2)
    values = torch.zeros(5, dtype=torch.float64)
    with torch.no_grad():
        for draw, weights in float64.blocks(grid, title="values"):
            path = float64.path(draw)
            values += torch.stack([weights @ path(k * step) for k in (-2, -1, 0, 1, 2)])
    second = (-values[0] + 16 * values[1] - 30 * values[2] + 16 * values[3] - values[4]) / (24 * step**2)
    torch.testing.assert_close(terms.second.detach().double(), second, rtol=2e-4, atol=1e-5)


def test_a_determinant_has_the_terms_of_the_same_function_written_by_hand():
    tool, hand = finish(lambda: ByHand(False), 0), finish(lambda: ByHand(True), 0)
    found, known = (nt.terms(nt.Problem(model, X, Y, law=LAW)).to_dict() for model in (tool, hand))
    assert found == pytest.approx(known, rel=1e-9, abs=1e-12)


MODES = [(mode, padding, corners) for mode in ("bilinear", "nearest") for padding in ("zeros", "border", "reflection")
         for corners in (False, True)]  # fmt: skip


@pytest.mark.parametrize(("mode", "padding", "corners"), MODES)
def test_sampled_images_have_pytorchs_values(mode, padding, corners):
    images, grid = randn(5, 2, 3, 5, 6), 1.5 * randn(6, 2, 4, 7, 2)
    volumes, places = randn(7, 1, 2, 3, 4, 5), randn(8, 1, 2, 2, 3, 3)
    for image, where in ((images, grid), (volumes, places)):
        known = F.grid_sample(image, where, mode, padding, corners)
        with nt.exact_derivatives():
            torch.testing.assert_close(F.grid_sample(image, where, mode, padding, corners), known)


@pytest.mark.parametrize("p", [0.0, 1.0, 1.5, 2.0, 3.0, float("inf")])
def test_distances_have_pytorchs_values_and_gradients(p):
    known_at = randn(5, 4, 3).requires_grad_()
    known = torch.cdist(known_at, known_at[:2].detach(), p)
    with nt.exact_derivatives():
        found_at = known_at.detach().clone().requires_grad_()
        found = torch.cdist(found_at, known_at[:2].detach(), p)
        torch.testing.assert_close(found, known, atol=1e-7, rtol=1e-7)
        torch.testing.assert_close(F.pdist(known_at, p), torch.pdist(known_at.detach(), p))
    if p:
        weights = randn(6, 4, 2)
        (one,) = torch.autograd.grad((known * weights).sum(), known_at)
        (two,) = torch.autograd.grad((found * weights).sum(), found_at)
        torch.testing.assert_close(one, two)


REFUSALS = {
    "bicubic sampling": (lambda x: F.grid_sample(x.reshape(-1, 1, 2, 4), GRID.expand(len(x), -1, -1, -1), "bicubic",
                                                 align_corners=False).flatten(1) @ V, "forward-mode derivative"),
    "NumPy": (lambda x: x[:, :3] * torch.from_numpy(x.detach().numpy()[:, :3] ** 2), "NumPy"),
    "eigenvalues of any matrix": (lambda x: torch.linalg.eigvals(x[:, :4].reshape(-1, 2, 2)).real, "torch.linalg.eigh"),
    "old custom function": (lambda x: Old.apply(x)[:, :3], r"setup_context\(\) and jvp\(\)"),
}  # fmt: skip


class Old(torch.autograd.Function):
    """Written without the method that `torch.func` needs."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0].cos()


@pytest.mark.parametrize("name", REFUSALS)
def test_what_remains_is_refused_with_the_way_out(name):
    function, message = REFUSALS[name]
    with pytest.raises(DerivativeError, match=message):
        nt.terms(nt.Problem(function, X, Y, law=LAW))


def test_the_error_names_the_module_in_which_it_happens():
    class Inner(nn.Module):
        def forward(self, x):
            return Old.apply(x)

    model = nn.Sequential(nn.Linear(8, 3), Inner()).double()
    with pytest.raises(DerivativeError, match=r"module '1' \(Inner\)"):
        nt.terms(nt.Problem(model, X, Y, law=LAW))


class Cubed(torch.autograd.Function):
    """z³ with right rules; PyTorch holds what they have saved constant in nested forward mode."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_forward(*inputs)
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        return 3 * ctx.saved_tensors[0] ** 2 * gradient

    @staticmethod
    def jvp(ctx, tangent):
        return 3 * ctx.saved_tensors[0] ** 2 * tangent


def test_a_custom_function_is_refused_where_pytorch_forgets_its_second_derivative():
    with pytest.raises(DerivativeError, match="second derivative that PyTorch reports is not"):
        nt.terms(nt.Problem(lambda x: Cubed.apply(x)[:, :3], X, Y, law=LAW))


def test_an_operation_that_vmap_refuses_goes_direction_by_direction():
    directions = randn(4, 5, 2, 3)

    def quadratic(d):
        return d * float(d.sum())

    found = _along(quadratic, [directions], "quadratic")
    assert torch.equal(found, torch.stack([quadratic(d) for d in directions]))


def test_images_in_channels_last_order():
    layer = finish(lambda: nn.Conv2d(2, 3, 2), 0)
    images = randn(6, 3, 2, 3, 3)
    plain = lambda x: layer(x).tanh().flatten(2).mean(2)  # noqa: E731
    last = lambda x: plain(x.contiguous(memory_format=torch.channels_last).to(memory_format=torch.channels_last))  # noqa: E731
    found, known = (nt.terms(nt.Problem(head, images, torch.arange(3), law=LAW)).to_dict() for head in (last, plain))
    assert found == pytest.approx(known, rel=1e-9)
