import math

import pytest
import torch
from building import build_problem
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import finish, mlp, randn, small_cnn
from torch import nn
from torch.testing import assert_close

import nfm_theory as nt
from nfm_theory import observed_order
from nfm_theory.generalization.margins import (
    QuadraticGap,
    jacobian_norms,
    quadratic_gap_along,
    score_gap,
    segment_margins,
)

seeds = st.integers(0, 10_000)


def any_loss(outputs, labels):
    return outputs.sum(-1)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=seeds, n=st.integers(1, 6), classes=st.integers(2, 5))
def test_gap_is_the_loop(seed, n, classes):
    outputs = randn(seed, n, classes)
    labels = torch.randint(classes, (n,), generator=torch.Generator().manual_seed(seed))
    for u, y, gap in zip(outputs, labels, score_gap(outputs, labels), strict=True):
        assert float(gap) == float(u[y] - max(u[k] for k in range(classes) if k != y))
    assert torch.equal(score_gap(outputs, labels) > 0, outputs.argmax(1) == labels)


def test_gap_of_one_output():
    outputs, labels = torch.tensor([2.0, -3.0, 1.0]), torch.tensor([1.0, 0.0, 0.0])
    assert score_gap(outputs, labels).tolist() == [2.0, 3.0, -1.0]
    assert torch.equal(score_gap(outputs[:, None], labels), score_gap(outputs, labels))
    # the same numbers as two scores 0 and f
    both = torch.stack([torch.zeros(3), outputs], 1)
    assert torch.equal(score_gap(both, labels.long()), score_gap(outputs, labels))


@pytest.mark.parametrize(
    ("build", "shape", "layer"),
    [
        (lambda: mlp(0, [6, 3, 4]), (6,), ""),  # narrower behind the first layer
        (lambda: mlp(0, [2, 7, 3], "relu"), (2,), ""),
        (lambda: mlp(0, [2, 7, 5, 3], "gelu"), (2,), "1"),
        (lambda: small_cnn(0), (1, 6, 6), ""),
        (lambda: mlp(0, [4, 3, 1]), (4,), ""),
        (lambda: lambda u: (u**3).sum(1), (3,), ""),
    ],
    ids=["narrow", "wide", "hidden", "cnn", "one", "callable"],
)
def test_norms_are_those_of_the_dense_jacobian(build, shape, layer):
    model, x = build(), randn(1, 3, *shape)
    found = jacobian_norms(nt.Problem(model, x, torch.zeros(3, dtype=torch.long), layer=layer, loss=any_loss))
    for i in range(3):
        point, function = x[i : i + 1], lambda h: model(h).reshape(-1)
        if layer:
            point, function = model[:2](point).detach(), lambda h: model[2:](h).reshape(-1)
        jacobian = torch.func.jacrev(function)(point).flatten(1)
        assert_close(found.spectral[i], torch.linalg.matrix_norm(jacobian, 2).detach(), rtol=1e-9, atol=1e-12)
        assert_close(found.frobenius[i], jacobian.norm().detach(), rtol=1e-9, atol=1e-12)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=seeds, n=st.integers(1, 5), d=st.integers(1, 4), classes=st.integers(1, 4))
def test_linear_models_exactly(seed, n, d, classes):
    """The crossing in closed form, and the bound is never above it."""
    weight, bias = randn(seed, d, classes), randn(seed + 1, classes)
    model = lambda u: u @ weight + bias  # noqa: E731
    x, ends = randn(seed + 2, n, d), 5 * randn(seed + 3, n, d)
    outputs = model(x)
    labels = (outputs[:, 0] > 0).long() if classes == 1 else outputs.argmax(1)
    found = segment_margins(
        nt.Problem(model, x, labels, loss="logistic" if classes == 1 else "cross_entropy"), ends, num_points=65
    )
    for i in range(n):
        slopes = (ends[i] - x[i]) @ weight
        times = [1e9]
        for k in range(classes):
            fall = -(2 * labels[i] - 1) * slopes[0] if classes == 1 else slopes[k] - slopes[labels[i]]
            gap = found.gap[i] if classes == 1 else outputs[i, labels[i]] - outputs[i, k]
            if fall > 0:
                times.append(float(gap / fall))
        crossing = min(times) * float(found.length[i]) if min(times) <= 1 else math.inf
        assert float(found.crossing[i]) == pytest.approx(crossing, rel=1e-6)
    assert found.consistent.all()
    assert_close(found.jacobian, torch.linalg.matrix_norm(weight, 2).expand(n), rtol=1e-9, atol=1e-12)


def test_bound_is_attained_where_it_should_be():
    """Two classes with opposite score gradients, straight down the gap: nothing is lost in √2 sup‖J‖."""
    weight = torch.tensor([[2.0, -2.0]], dtype=torch.float64)
    x = torch.tensor([[1.5]], dtype=torch.float64)
    found = segment_margins(nt.Problem(lambda u: u @ weight, x, torch.tensor([0])), -x)
    assert float(found.bound) == pytest.approx(1.5)
    assert float(found.crossing) == pytest.approx(1.5, rel=1e-9)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(seed=seeds, activation=st.sampled_from(["tanh", "relu", "softplus"]), layer=st.sampled_from(["", "1"]))
def test_no_change_before_the_bound_on_networks(seed, activation, layer):
    model = mlp(seed, [2, 8, 8, 3], activation)
    x, ends = randn(seed + 1, 6, 2), 2 * randn(seed + 2, 6, 2)
    labels = model(x).argmax(1)
    problem = nt.Problem(model, x, labels, layer=layer)
    found = segment_margins(problem, ends, num_points=51)
    assert found.consistent.all()
    assert (found.bound > 0).all()
    finer = segment_margins(problem, ends, num_points=201)
    assert (finer.jacobian >= found.jacobian - 1e-12).all()  # 201 points contain the 51


def test_coarse_points_are_only_an_estimate():
    """A bump of slope between two points is missed, and the report says how many points there were."""
    bump = lambda u: 1 - 2 * torch.sigmoid(200 * (u - 0.25))  # noqa: E731
    x, ends = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    problem = nt.Problem(bump, x, torch.tensor([1]), loss="logistic")
    coarse = segment_margins(problem, ends, num_points=3)
    assert coarse.points == 3
    assert not coarse.consistent.all()
    assert segment_margins(problem, ends, num_points=201).consistent.all()


def test_wrong_decisions_and_flat_scores():
    x, ends = torch.ones(2, 1), torch.zeros(2, 1)
    found = segment_margins(nt.Problem(lambda u: torch.cat([u, -u], 1), x, torch.tensor([1, 0])), ends)
    assert found.bound[0] == 0
    assert found.crossing[0] == 0
    assert found.bound[1] > 0
    flat = segment_margins(nt.Problem(lambda u: 0 * u + 1, x, torch.tensor([1, 0]), loss="logistic"), ends)
    assert flat.bound.tolist() == [math.inf, 0.0]


def test_refusals():
    x, y = torch.ones(2, 1), torch.tensor([0, 1])
    problem = nt.Problem(lambda u: u, x, y, loss="logistic")
    with pytest.raises(ValueError, match="ends"):
        segment_margins(problem, x[:1])
    with pytest.raises(ValueError, match="num_points"):
        segment_margins(problem, x, num_points=1)
    for labels in (torch.tensor([0, 2]), torch.tensor([0.5, 1.0]), torch.tensor([0]), torch.tensor([-1, 0])):
        with pytest.raises(ValueError, match="labels"):
            score_gap(x, labels)


def trained(model, x, y, loss, steps=60, keep=15):
    """Snapshots of gradient descent, the start included."""
    snapshots = [{k: v.detach().clone() for k, v in model.state_dict().items()}]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for step in range(steps):
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
        if (step + 1) % keep == 0:
            snapshots.append({k: v.detach().clone() for k, v in model.state_dict().items()})
    return snapshots


def along(model, x, y, snapshots, **options):
    """A problem for every snapshot, made when it is asked for."""
    return (build_problem(model, x, y, loss="logistic", params=state, **options) for state in snapshots)


def two_moons(n):
    angle = torch.linspace(0, math.pi, n // 2, dtype=torch.float64)
    upper = torch.stack([angle.cos(), angle.sin()], 1)
    lower = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], 1)
    x = torch.cat([upper, lower]) + 0.1 * randn(0, n, 2)
    return x - x.mean(0), torch.arange(n).div(n // 2, rounding_mode="floor").double()


def bce(outputs, y):
    return nn.functional.binary_cross_entropy_with_logits(outputs.squeeze(-1), y)


def test_logistic_regression_along_training():
    x, y = two_moons(20)
    model = finish(lambda: nn.Linear(2, 1), 0)
    records = quadratic_gap_along(along(model, x, y, trained(model, x, y, bce), alpha=1.0))
    assert [r.step for r in records] == [0, 1, 2, 3, 4]
    assert records[-1].standard < records[0].standard
    assert max(r.relative for r in records) < 0.1
    assert max(r.of_regularization for r in records) < 0.3
    assert all(r.R3 == 0 for r in records)  # the model is linear
    direct = nt.loss(build_problem(model, x, y, loss="logistic"), method="exact").value.detach()
    assert records[-1].exact == pytest.approx(float(direct))


@pytest.mark.parametrize("layer", ["", "1"])
def test_relu_net_along_training(layer):
    x, y = two_moons(20)
    model = mlp(1, [2, 12, 1], "relu")
    records = quadratic_gap_along(along(model, x, y, trained(model, x, y, bce), layer=layer))
    assert all(r.R3 == 0 for r in records)
    assert records[-1].standard < records[0].standard
    assert max(r.relative for r in records) < (0.5 if layer == "" else 0.1)


def test_small_scales_close_the_gap_and_models_are_snapshots_too():
    x, y = two_moons(10)
    model = mlp(1, [2, 6, 1], "tanh")
    problem = build_problem(model, x, y, loss="logistic")
    gaps = [quadratic_gap_along([problem], eps=e)[0].relative for e in (0.1, 0.05, 0.025)]
    assert observed_order([0.1, 0.05, 0.025], gaps) > 2.7
    (by_name,) = quadratic_gap_along(along(model, x, y, [dict(model.named_parameters())]), eps=0.1)
    assert by_name.relative == pytest.approx(gaps[0], rel=1e-9)
    assert by_name.R3 != 0


def test_gap_records():
    record = QuadraticGap(step=0, standard=1.0, exact=2.0, quadratic=1.5, R3=0.1)
    assert record.relative == 0.25
    assert record.of_regularization == 0.5
    assert record.to_dict()["of_regularization"] == 0.5
    flat = QuadraticGap(step=0, standard=0.0, exact=0.0, quadratic=1.0, R3=0.0)
    assert flat.to_dict()["relative"] is None
    with pytest.raises(ValueError, match="at least one"):
        quadratic_gap_along([])
    with pytest.raises(TypeError, match=r"expected an nfm_theory\.Problem"):
        quadratic_gap_along([{}])
