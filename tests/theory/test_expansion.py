import itertools

import pytest
import torch
from building import build_problem
from hypothesis import given
from naive import naive_terms
from problems import mlp, preact_resnet18, randn, small_cnn, tiny_transformer
from strategies import settings_of_the_theory
from tiers import random_cases, some_slow
from torch.testing import assert_close

import nfm_theory as nt
from nfm_theory.setting.noise import noise_pair
from nfm_theory.setting.pointwise import pointwise_loss

NAMES = ("standard", "R1", "R2", "R3", "R2_add", "R3_add", "R2_mult", "R3_mult", "C3")
POTENTIALS = {
    "cross_entropy": lambda u: u.logsumexp(-1),
    "logistic": lambda u: torch.nn.functional.softplus(u).sum(),
    "square": lambda u: (u**2).sum() / 2,
}


def seconds(options):
    add, mult = noise_pair(options["noise"])
    return {
        "add_second": options["add_noise"] ** 2 * add.second,
        "mult_second": options["mult_noise"] ** 2 * mult.second,
    }


@random_cases(8, 40, given(settings_of_the_theory()))
def test_terms_are_those_of_the_naive_twin(case):
    model, x, y, options = case
    terms = nt.terms(build_problem(model, x, y, **options))
    parts = nt.split(model, x, layer=options["layer"])
    mixing = nt.MixingLaw(options["alpha"], options["beta"])
    labels = pointwise_loss(options["loss"]).prepare(model(x), y)
    naive = naive_terms(
        parts.head,
        parts.encode(x).detach(),
        labels,
        POTENTIALS[options["loss"]],
        moments=[mixing.moment(j) for j in (1, 2, 3)],
        **seconds(options),
    )
    for name in NAMES:
        expected = torch.as_tensor(naive[name], dtype=torch.float64)
        assert_close(getattr(terms, name), expected, rtol=1e-9, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")


@random_cases(6, 25, given(settings_of_the_theory()))
def test_coefficients_along_the_rows_of_a_rule_are_those_of_the_terms(case):
    model, x, y, options = case
    terms = nt.terms(build_problem(model, x, y, **options))
    coefficients = nt.coefficients(build_problem(model, x, y, **options), order=3, rule="cubature-3")
    assert_close(coefficients, torch.stack(terms.coefficients(3)), rtol=1e-9, atol=1e-12)


def closed_form_linear_square():
    """f(g) = W g with the square loss: everything is a second moment."""
    x, weight, y = randn(0, 5, 3), randn(1, 2, 3), randn(2, 5, 2)
    return x, weight, y, lambda h: h @ weight.T


def test_closed_form_of_a_linear_network_with_the_square_loss():
    x, weight, y, head = closed_form_linear_square()
    terms = nt.terms(build_problem(head, x, y, loss="square", add_noise=0.3, mult_noise=0.2))
    gram = weight.T @ weight
    v = x[None] - x[:, None]
    residual = x @ weight.T - y
    assert_close(terms.R1, (residual * ((x.mean(0) - x) @ weight.T)).sum(-1).mean() / 3)
    assert_close(terms.R2, torch.einsum("ird,de,ire->ir", v, gram, v).mean() / 12)
    assert_close(terms.R2_add, 0.3**2 * gram.trace() / 2)
    assert_close(terms.R2_mult, 0.2**2 * (x**2 @ gram.diagonal()).mean() / 2)
    for name in ("R3", "R3_add", "R3_mult"):
        assert getattr(terms, name) == 0
    drift = x.mean(0) - x
    assert_close(terms.C3, 0.2**2 / 3 * ((drift * x) @ gram.diagonal()).mean())


def test_relu_networks_have_no_residual_curvature():
    model, x = mlp(0, [3, 6, 6, 4], "relu"), randn(1, 5, 3)
    terms = nt.terms(build_problem(model, x, torch.tensor([0, 1, 2, 3, 0]), add_noise=0.3, mult_noise=0.2))
    for name in ("R3", "R3_add", "R3_mult"):
        assert abs(getattr(terms, name)) < 1e-15
    assert terms.R2 > 0


def test_several_layers_are_averaged():
    model, x, y = mlp(0, [3, 4, 4, 3]), randn(1, 4, 3), torch.tensor([0, 1, 2, 0])
    layers = ["", "1", "3"]
    options = {"add_noise": 0.2, "mult_noise": 0.1}
    mean = nt.terms(build_problem(model, x, y, layer=layers, **options))
    single = [nt.terms(build_problem(model, x, y, layer=name, **options)) for name in layers]
    assert list(mean.per_layer) == layers
    for name in NAMES:
        assert_close(getattr(mean, name), torch.stack([getattr(t, name) for t in single]).mean())
    loss = nt.loss(build_problem(model, x, y, layer=layers), method="exact", eps=0.3).value
    assert_close(
        loss,
        torch.stack(
            [nt.loss(build_problem(model, x, y, layer=k), method="exact", eps=0.3).value for k in layers]
        ).mean(),
    )


def test_polynomial_and_coefficients():
    terms = nt.terms(build_problem(mlp(0, [2, 3, 2]), randn(1, 4, 2), torch.tensor([0, 1, 1, 0]), add_noise=0.5))
    eps = torch.tensor([0.1, 0.2], dtype=torch.float64)
    second = terms.R2 + terms.R3 + terms.R2_add + terms.R3_add + terms.R2_mult + terms.R3_mult
    assert_close(terms.polynomial(eps), terms.standard + eps * terms.R1 + eps**2 * second)
    assert_close(terms.polynomial(0.1, order=3) - terms.polynomial(0.1), terms.C3 * 0.1**3)
    assert set(terms.to_dict()) == set(NAMES)
    with pytest.raises(ValueError, match=r"coefficients\(problem, order\)"):
        terms.polynomial(0.1, order=4)
    without = nt.terms(build_problem(mlp(0, [2, 3, 2]), randn(1, 4, 2), torch.tensor([0, 1, 1, 0])), remainder=False)
    assert without.C3 is None
    with pytest.raises(ValueError, match="remainder=True"):
        without.coefficients(3)


MODELS = {
    "cnn": lambda: (small_cnn(0, activation="gelu"), randn(1, 4, 1, 6, 6), "3"),
    "resnet": lambda: (preact_resnet18(0), randn(1, 2, 3, 4, 4), "layer4"),
    "transformer": lambda: (tiny_transformer(0), randn(1, 4, 3, 4), "blocks.0"),
}


SHALLOW_AND_DEEP = list(itertools.product(MODELS, [False, True]))


@pytest.mark.parametrize(("name", "deep"), some_slow(SHALLOW_AND_DEEP, lambda case: case != ("resnet", False)))
def test_images_and_transformers_agree_with_derivatives_along_rows(name, deep):
    model, x, layer = MODELS[name]()
    y = torch.arange(len(x)) % 3
    options = {"layer": layer if deep else "", "add_noise": 0.2, "mult_noise": 0.3}
    with torch.no_grad():
        terms = nt.terms(build_problem(model, x, y, **options))
        rows = nt.coefficients(build_problem(model, x, y, **options), order=3, rule="cubature-3")
    assert_close(rows, torch.stack(terms.coefficients(3)), rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize(
    "build", [lambda: mlp(0, [3, 4, 3], "silu"), lambda: tiny_transformer(0, length=2)], ids=["mlp", "vit"]
)
@pytest.mark.parametrize("deep", [False, True])
def test_parameter_gradients_of_every_term(build, deep):
    model = build()
    transformer = hasattr(model, "blocks")
    x = randn(1, 4, 2, 4) if transformer else randn(1, 4, 3)
    layer = ("blocks.0" if transformer else "1") if deep else ""
    y = torch.tensor([0, 1, 2, 0])
    params = {k: v.detach() for k, v in model.named_parameters()}
    name = next(k for k in params if k.endswith("linear1.weight") or k == "0.weight")
    direction = randn(2, *params[name].shape)

    def terms(step):
        moved = {**params, name: params[name] + step * direction}
        record = nt.terms(build_problem(model, x, y, layer=layer, add_noise=0.3, mult_noise=0.2, params=moved))
        return torch.stack([getattr(record, field) for field in NAMES])

    step = torch.zeros((), dtype=torch.float64, requires_grad=True)
    values, h = terms(step), 1e-3
    slopes = torch.stack([torch.autograd.grad(value, step, retain_graph=True)[0] for value in values])
    with torch.no_grad():  # a five-point stencil, exact to h^4
        points = [terms(torch.tensor(k * h, dtype=torch.float64)) for k in (-2, -1, 1, 2)]
    stencil = (points[0] - 8 * points[1] + 8 * points[2] - points[3]) / (12 * h)
    for field, slope, expected in zip(NAMES, slopes, stencil, strict=True):
        assert_close(slope, expected, rtol=1e-7, atol=1e-9, msg=lambda m, field=field: f"{field}: {m}")


@pytest.mark.parametrize("order", [0, 1, 2, 3, 4, 5])
def test_any_order_against_the_exact_loss(order):
    model, x, y = mlp(3, [2, 4, 3]), randn(1, 3, 2), torch.tensor([0, 1, 2])
    options = {"add_noise": 0.4, "mult_noise": 0.3, "noise": "rademacher", "alpha": 0.8}
    with torch.no_grad():
        coefficients = nt.coefficients(build_problem(model, x, y, **options), order=order + 2)
        eps = 0.02 if order < 4 else 0.05
        loss = nt.loss(
            build_problem(model, x, y, **options), method="exact", eps=eps, quadrature=nt.Quadrature(num_lam=5)
        ).value
    polynomial = sum(c * eps**k for k, c in enumerate(coefficients[: order + 1]))
    leading = coefficients[order + 1] + eps * coefficients[order + 2]
    assert_close((loss - polynomial) / eps ** (order + 1), leading, rtol=0.02, atol=0.0)


def test_bad_requests():
    model, x, y = mlp(0, [2, 3, 2]), randn(1, 4, 2), torch.tensor([0, 1, 1, 0])
    with pytest.raises(ValueError, match="order: expected >= 0"):
        nt.coefficients(build_problem(model, x, y), order=-1)
    with nt.options(block_bytes=8), pytest.raises(ValueError, match="block_bytes"):
        nt.terms(build_problem(model, x, y))
    with pytest.raises(ValueError, match="non-empty sequence"):
        nt.terms(build_problem(model, x, y, layer=[]))
