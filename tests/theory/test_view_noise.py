"""`NoisyFeatureMixup(view_noise=...)`: a factor of the additive level for each view, as in the released NoisyMix."""

import copy
import pickle

import pytest
import torch
from problems import generator, mlp, randn
from test_training import NOISY, build, network, output_of
from torch.testing import assert_close

from nfm_theory import Law

X, Y = randn(1, 12, 3), torch.tensor([0, 2, 1, 1])
FACTORS = (1.0, 2.0, 3.0)


def mixed_features(model, nfm, layer, x=X, replay=None):
    inputs, targets = nfm(x, Y, views=3, replay=replay)
    return (output_of(model, layer, inputs)[0] if layer else inputs), targets


@pytest.mark.parametrize("layer", ["", "1", "3"])
def test_factors_act_on_the_additive_noise_of_each_view(layer):
    model = network()
    plain = output_of(model, layer, X)[0] if layer else X
    nfm = build(model, layer, NOISY, view_noise=FACTORS)
    mixed, _ = mixed_features(model, nfm, layer)
    draw = nfm.last.draw
    lam = draw.lam[0]
    for view, factor in enumerate(FACTORS):
        rows = slice(4 * view, 4 * view + 4)
        between = lam * plain[rows] + (1 - lam) * plain[draw.index[rows]]
        expected = (1 + 0.2 * draw.mult[rows]) * between + 0.4 * factor * draw.add[rows]
        assert_close(mixed[rows], expected, rtol=1e-10, atol=1e-12)
        assert 4 * view <= int(draw.index[rows].min())
        assert int(draw.index[rows].max()) < 4 * view + 4


def test_what_is_drawn_does_not_depend_on_the_factors():
    found = []
    for factors in (None, (1.0, 1.0, 1.0), FACTORS):
        model = network()
        nfm = build(model, ("", "1"), NOISY, view_noise=factors)
        mixed, targets = mixed_features(model, nfm, "1")
        found.append((mixed, targets, nfm.last.draw.add, nfm.last.draw.mult))
    for k in range(4):
        assert torch.equal(found[0][k], found[1][k])
    assert all(torch.equal(found[0][k], found[2][k]) for k in (1, 2, 3))


def test_a_factor_of_zero_leaves_a_view_without_additive_noise():
    model = network()
    nfm = build(model, "", Law.released(alpha=0.0, add_noise=0.4), view_noise=(0.0, 1.0, 1.0))
    mixed, _ = mixed_features(model, nfm, "")
    assert torch.equal(mixed[:4], X[:4])
    assert bool((mixed[4:] != X[4:]).all())


def test_multiplicative_noise_has_no_factor():
    mixed = []
    for factors in (None, FACTORS):
        model = network()
        nfm = build(model, "", Law.released(mult_noise=0.3), view_noise=factors)
        mixed.append(mixed_features(model, nfm, "")[0])
    assert torch.equal(*mixed)


@pytest.mark.parametrize("layer", ["", "1"])
def test_replay_repeats_the_step(layer):
    model = network()
    nfm = build(model, layer, NOISY, view_noise=FACTORS)
    first, targets = mixed_features(model, nfm, layer)
    again, targets_again = mixed_features(model, nfm, layer, replay=nfm.last)
    assert torch.equal(first, again)
    assert torch.equal(targets, targets_again)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_go_on_with_the_same_factors(duplicate):
    model = network()
    nfm = build(model, ("", "1"), NOISY, view_noise=FACTORS)
    other_model, other = duplicate((model, nfm))
    assert other.view_noise == FACTORS
    for _ in range(4):
        pairs = []
        for m, n in ((model, nfm), (other_model, other)):
            inputs, targets = n(X, Y, views=3)
            pairs.append((m(inputs), targets))
        assert torch.equal(pairs[0][0], pairs[1][0])
        assert torch.equal(pairs[0][1], pairs[1][1])


def test_half_precision_features_keep_their_dtype():
    model = mlp(0, [3, 5, 3]).train().bfloat16()
    nfm = build(model, "1", NOISY, view_noise=FACTORS)
    mixed, _ = mixed_features(model, nfm, "1", x=X.bfloat16())
    assert mixed.dtype == torch.bfloat16


@pytest.mark.parametrize("views", [1, 2])
def test_the_number_of_views_must_fit(views):
    nfm = build(network(), "", NOISY, view_noise=FACTORS)
    with pytest.raises(ValueError, match=f"views: expected 3, one for each of view_noise, got {views}"):
        nfm(X[: 4 * views], Y, views=views)


@pytest.mark.parametrize("wrong", [(1.0, -1.0, 1.0), (1.0, float("nan"), 1.0), (float("inf"),)])
def test_factors_are_levels(wrong):
    with pytest.raises(ValueError, match="view_noise: expected"):
        build(network(), "", NOISY, view_noise=wrong)


def test_the_variance_of_each_view_grows_with_the_square_of_its_factor():
    """5 standard errors; for normal noise the variance of a variance is 2 / n."""
    x = torch.zeros(3 * 2000, 5, dtype=torch.float64)
    model = mlp(0, [5, 2]).train()
    nfm = build(model, "", Law(add_noise=0.5), view_noise=FACTORS, num_classes=2, generator=generator(3))
    mixed, _ = nfm(x, torch.zeros(2000, dtype=torch.long), views=3)
    for view, factor in zip(mixed.chunk(3), FACTORS, strict=True):
        true = (0.5 * factor) ** 2
        assert abs(float(view.square().mean()) - true) < 5 * true * (2 / view.numel()) ** 0.5
