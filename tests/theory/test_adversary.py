"""Attacks against closed forms, constraints and two established libraries."""

import importlib
import warnings

import pytest
import torch
from problems import generator, mlp, randn, small_cnn
from torch import nn
from torch.testing import assert_close

from nfm_theory import Problem
from nfm_theory.adversarial import flip_radius, pgd_attack


def lengths(delta, norm):
    return delta.flatten(1).norm(dim=1) if norm == "l2" else delta.flatten(1).abs().amax(1)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("loss", ["logistic", "square"])
def test_a_linear_model_is_attacked_exactly(norm, loss):
    w, x, y = randn(1, 5), randn(2, 6, 5), torch.arange(6) % 2
    radius = torch.linspace(0, 1, 6, dtype=torch.float64)
    found = pgd_attack(Problem(lambda z: z @ w, x, y.double(), loss=loss), radius, norm=norm)
    reach = radius * (w.norm() if norm == "l2" else w.abs().sum())
    f = x @ w
    if loss == "logistic":
        expected = nn.functional.softplus(-(2 * y - 1) * f + reach)
    else:
        expected = torch.stack([(u / 2 - y) * u for u in (f - reach, f + reach)]).amax(0)
    assert_close(found.losses, expected, rtol=1e-9, atol=1e-11)
    assert (lengths(found.features - x, norm) <= radius + 1e-12).all()
    assert found.losses[0] == found.clean_losses[0]


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("box", [None, (-1.0, 1.0)])
def test_points_stay_where_they_must_and_never_lose(norm, box):
    model, x = small_cnn(3, activation="relu"), randn(4, 5, 1, 6, 6).clamp(-1, 1)
    radius = torch.tensor([0.0, 0.1, 0.3, 1.0, 3.0], dtype=torch.float64)
    problem = Problem(model, x, torch.arange(5) % 3)
    found = pgd_attack(problem, radius, norm=norm, box=box, steps=15, restarts=2, generator=generator(0))
    assert (lengths(found.features - x, norm) <= radius * (1 + 1e-12)).all()
    assert (found.losses >= found.clean_losses).all()
    assert_close(
        nn.functional.cross_entropy(model(found.features), torch.arange(5) % 3, reduction="none"), found.losses
    )
    if box is not None:
        assert found.features.abs().max() <= 1
    changed = model(found.flip_features).argmax(1) != torch.arange(5) % 3
    assert torch.equal(changed, found.flipped)
    assert_close(
        lengths(found.flip_features - x, norm)[found.flipped], found.flip_distance[found.flipped], check_dtype=True
    )


def test_seeds_decide_and_restarts_help():
    model, x, y = mlp(1, [6, 12, 12, 3], "relu"), randn(2, 10, 6), torch.arange(10) % 3
    problem, options = Problem(model, x, y), {"radius": 1.5, "steps": 8}
    first, again, other = (pgd_attack(problem, restarts=3, generator=generator(seed), **options) for seed in (0, 0, 1))
    assert torch.equal(first.features, again.features)
    assert not torch.equal(first.features, other.features)
    one = pgd_attack(problem, restarts=1, **options)
    assert (first.losses >= one.losses).all()


def test_flip_radius_of_a_linear_model_and_of_wrong_examples():
    w, x = randn(1, 4, 3), randn(2, 8, 4)
    f = x @ w
    y = f.argmax(1)
    y[0] = (y[0] + 1) % 3
    problem = Problem(lambda z: z @ w, x, y)
    for norm, dual in (("l2", 2), ("linf", 1)):
        found = flip_radius(problem, 20.0, norm=norm, bisections=4)
        ratios = torch.stack(
            [(f.gather(1, y[:, None])[:, 0] - f[:, j]) / (w.T[y] - w.T[j]).norm(p=dual, dim=1) for j in range(3)], 1
        )
        expected = ratios.masked_fill(nn.functional.one_hot(y, 3).bool(), torch.inf).amin(1).clamp(min=0)
        assert_close(found.radius, expected, rtol=1e-3, atol=1e-9)
        assert (found.radius >= expected * (1 - 1e-9)).all()
        assert ((found.features @ w).argmax(1)[1:] != y[1:]).all()
    short = flip_radius(problem, 1e-6, bisections=1)
    assert torch.isinf(short.radius[1:]).all()
    assert short.radius[0] == 0


ERRORS = [
    ({"radius": -1.0}, "radius: expected"),
    ({"radius": torch.ones(3)}, "radius: expected"),
    ({"radius": 1.0, "norm": "l1"}, "norm: expected"),
    ({"radius": 1.0, "steps": 0}, "steps and restarts"),
    ({"radius": 1.0, "step_size": 0.0}, "step_size"),
    ({"radius": 1.0, "box": (0.0, 0.5)}, "box: the features leave"),
    ({"radius": 1.0, "box": (1.0, 0.0)}, "box: expected"),
]


@pytest.mark.parametrize(("options", "match"), ERRORS)
def test_unfit_options_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        pgd_attack(Problem(lambda z: z, torch.ones(2, 2), torch.tensor([0, 1])), **options)


def optional_library(name):
    """A peer, or the reason why it is not there; some import what SciPy deprecates."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except ImportError as error:
            pytest.skip(f"{name} cannot be imported: {error}")


def trained_ground():
    """Images in [0, 1] and a network in single precision, as the libraries want them."""
    model = small_cnn(7, activation="relu").float()
    x = torch.rand(16, 1, 6, 6, generator=generator(8))
    with torch.no_grad():
        model[-1].weight.mul_(20)
        y = model(x).argmax(1)
    return model, x.contiguous(), y


# foolbox 3.3.4 imports `scipy.ndimage.filters`, which SciPy deprecates
@pytest.mark.filterwarnings("ignore:Please import:DeprecationWarning")
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_at_least_as_strong_as_foolbox(norm):
    import foolbox

    model, x, y = trained_ground()
    radius = {"l2": 0.3, "linf": 0.05}[norm]
    kind = {"l2": foolbox.attacks.L2PGD, "linf": foolbox.attacks.LinfPGD}[norm]
    peer = kind(steps=40, rel_stepsize=0.1, random_start=False)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    _, theirs, _ = peer(wrapped, x, y, epsilons=radius)
    assert (lengths(theirs - x, norm) <= radius + 1e-5).all()
    loss = nn.functional.cross_entropy(model(theirs), y, reduction="none").detach()
    ours = pgd_attack(Problem(model, x, y), radius, norm=norm, box=(0.0, 1.0), restarts=2, generator=generator(0))
    assert (ours.losses >= loss * 0.999 - 1e-6).all()
    assert ours.losses.mean() <= 1.2 * loss.mean()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_at_least_as_strong_as_torchattacks(norm):
    torchattacks = optional_library("torchattacks")  # it imports torchvision, which is not among the dependencies
    model, x, y = trained_ground()
    radius = {"l2": 0.3, "linf": 0.05}[norm]
    if norm == "l2":
        peer = torchattacks.PGDL2(model, eps=radius, alpha=radius / 10, steps=40, random_start=False)
    else:
        peer = torchattacks.PGD(model, eps=radius, alpha=radius / 10, steps=40, random_start=False)
    theirs = peer(x, y)
    loss = nn.functional.cross_entropy(model(theirs), y, reduction="none").detach()
    ours = pgd_attack(Problem(model, x, y), radius, norm=norm, box=(0.0, 1.0), restarts=2, generator=generator(0))
    assert (ours.losses >= loss * 0.999 - 1e-6).all()
    assert ours.losses.mean() <= 1.2 * loss.mean()
