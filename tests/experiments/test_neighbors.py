"""The neighbors of the theory: data, networks, steps, measurements and verdicts against plain computations."""

import importlib.util
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ledger_entries import entry
from problems import generator, randn
from torch.testing import assert_close

import nfm_theory as nt
from experiments.augment.cutmix import cutmix_series
from experiments.claims import Records
from experiments.claims import neighbors as claims
from experiments.claims.check import Check
from experiments.claims.checks import CHECKS
from experiments.claims.checks_neighbors import alternating, cosine, linear_direction, logistic_direction
from experiments.data import load_data
from experiments.data.neighbor_sets import features
from experiments.data.series import read_ts, shortened
from experiments.data.toy_sets import ToyData
from experiments.evaluation import Subject, run_suite
from experiments.evaluation.neighbors import boundary
from experiments.models import build_model
from experiments.recipes import get_recipe, select_recipes
from experiments.recipes.neighbors import DELTA, NOISE, PRIVATE_BATCH, PRIVATE_EPOCHS
from experiments.recipes.recipe import Scheme, Training
from experiments.schemes import build_step
from experiments.schemes.private import shifted_copies
from experiments.training.batches import batch_indices
from nfm_theory.training.private import gradients_by_sample, privacy_spent

needs_aeon = pytest.mark.skipif(importlib.util.find_spec("aeon") is None, reason="aeon, which has the data, is missing")


def series(lengths, seed=0, channels=2, longest=10):
    """Sequences with zeros behind their end, and the channel that says where they end."""
    x = randn(seed, len(lengths), channels + 1, longest)
    inside = (torch.arange(longest) < torch.tensor(lengths)[:, None]).double()
    x[:, -1] = 1
    return x * inside[:, None]


# Data -----------------------------------------------------------------------------------------------------------


def test_each_class_has_both_of_its_features_and_little_of_others():
    data, known = load_data("toy_features"), features()
    products = torch.einsum("npd,cfd->ncfp", data.x, known)
    own = products[torch.arange(len(data.x)), data.y]
    assert ((own > 0.49).sum(-1) == 1).all()  # each of the two features in one patch
    strong = (products > 0.4).any(-1).any(-1)
    assert torch.equal(strong.double().argmax(1), data.y)
    assert torch.equal(strong.sum(1), torch.ones(len(data.x), dtype=torch.int64))


@pytest.mark.parametrize("name", ["toy_spirals", "toy_moons"])
def test_classes_in_the_plane_have_a_gap(name):
    """The nearest neighbor has the same label for nearly all test points, and labels are balanced."""
    data = load_data(name)
    near = torch.cdist(data.x_test, data.x).argmin(1)
    assert float((data.y[near] == data.y_test).double().mean()) > 0.97
    assert abs(float(data.y_test.double().mean()) - 0.5) < 0.02
    assert not torch.equal(load_data(name, seed=1).x, data.x)


def test_a_file_of_series_is_read_as_written(tmp_path):
    path = tmp_path / "a.ts"
    path.write_text("# words\n@problemName a\n@data\n1,2,3:4,5,6:left\n7,8:9,1:right\n")
    sequences, labels = read_ts(path)
    assert labels == ["left", "right"]
    assert [one.tolist() for one in sequences] == [[[1, 2, 3], [4, 5, 6]], [[7, 8], [9, 1]]]
    assert shortened(sequences[0], 2).tolist() == [[1.5, 3], [4.5, 6]]
    path.write_text("@data\n1,2:3:left\n")
    with pytest.raises(ValueError, match="expected channels of equal length"):
        read_ts(path)
    path.write_text("nothing")
    with pytest.raises(ValueError, match="expected lines of data after @data"):
        read_ts(path)


@needs_aeon
@pytest.mark.parametrize("name", ["basic_motions", "gun_point", "japanese_vowels", "wiimote"])
def test_series_are_standardized_and_end_where_the_last_channel_says(name):
    data = load_data(f"series_{name}")
    inside = data.x[:, -1:]
    assert set(inside.unique().tolist()) <= {0.0, 1.0}
    assert (inside.diff(dim=2) <= 0).all()
    assert ((data.x * (1 - inside)) == 0).all()
    values = data.x[:, :-1].movedim(1, 0)[:, inside[:, 0] == 1]
    assert_close(values.mean(1), torch.zeros(len(values)), atol=1e-4, rtol=0)
    assert_close(values.std(1, unbiased=False), torch.ones(len(values)), atol=1e-4, rtol=0)
    assert set(data.y.tolist()) == set(data.y_test.tolist()) == set(range(data.classes))


# Networks and steps -----------------------------------------------------------------------------------------------


def test_a_network_of_sequences_does_not_see_the_padding():
    model = build_model("series_cnn", 3, seed=1, in_channels=2).double().eval()
    x = series([10, 4, 7])
    longer = F.pad(x, (0, 6))
    assert_close(model(longer), model(x))
    assert_close(model(x[1:2, :, :4]), model(x)[1:2])


@pytest.mark.parametrize("layer", ["", "block1", "block2"])
def test_mixing_sequences_mixes_their_ends_at_any_layer(layer):
    """Where one sequence has ended, the layers behind see the share of the other, and the mean counts it so."""
    model = build_model("series_cnn", 3, seed=1, in_channels=2).double().train()
    x, y = series([10, 4, 7, 5]), torch.tensor([0, 1, 2, 1])
    nfm = nt.NoisyFeatureMixup(model, layer, nt.Law(), num_classes=3, generator=generator(2))
    inputs, targets = nfm(x, y)
    found = model(inputs)
    lam, index = float(nfm.last.draw.lam[0]), nfm.last.draw.index
    h = x
    with nfm.clean():
        for name in ("", "block1", "block2", "block3"):
            h = model.get_submodule(name)(h) if name else h
            h = lam * h + (1 - lam) * h[index] if name == layer else h
    length = lam * x[:, -1].sum(1) + (1 - lam) * x[index, -1].sum(1)
    assert_close(found, model.logits(h[:, :-1].sum(2) / length[:, None]))
    assert_close(targets.sum(1), torch.ones(4).double())


@pytest.mark.parametrize("seed", range(8))
def test_a_window_of_a_sequence_is_that_of_its_partner(seed):
    """A twin with loops: of every time, whose value is it; the labels count the times inside of a sequence."""
    lengths = [10, 4, 7, 5]
    x, y = series(lengths, seed), torch.tensor([0, 1, 2, 1])
    mixed, targets = cutmix_series(x, y, generator=generator(seed), num_classes=3)
    index = torch.randperm(4, generator=generator(seed))
    labels = F.one_hot(y, 3).double()
    for i, r in enumerate(index.tolist()):
        own = [bool((mixed[i, :, t] == x[i, :, t]).all()) for t in range(10)]
        other = [bool((mixed[i, :, t] == x[r, :, t]).all()) for t in range(10)]
        assert all(a or b for a, b in zip(own, other, strict=True))
        kept = sum(o and t < lengths[i] for t, o in enumerate(own))
        taken = sum(not o and t < lengths[r] for t, o in enumerate(own))
        if i != r and kept + taken:
            assert_close(targets[i], (kept * labels[i] + taken * labels[r]) / (kept + taken), atol=1e-6, rtol=0)
    assert_close(targets.sum(1), torch.ones(4).double())


def test_shifted_copies_are_the_nine_shifts():
    image = randn(0, 1, 1, 4, 5)
    blank = float(image.min())
    padded = F.pad(image, (1, 1, 1, 1), value=blank)
    known = [padded[0, :, a : a + 4, b : b + 5] for a in range(3) for b in range(3)]
    copies = shifted_copies(image, 300, generator(0))[0]
    counts = torch.stack([(copies == one).flatten(1).all(1) for one in known]).sum(1)
    assert int(counts.sum()) == 300
    assert (abs(counts - 300 / 9) <= 5 * (300 / 9) ** 0.5).all()


@pytest.mark.parametrize(
    ("options", "scale"), [({}, 1), ({"alpha": 1.0}, 2), ({"alpha": 1.0, "copies": 3, "mixtures": 2}, 1)]
)
def test_the_private_step_has_the_private_gradient(options, scale):
    """Twin: clip by loops what the per-sample gradients are, and the noise has the level of the scheme."""
    model = build_model("smooth_mlp", 3, seed=1, in_features=16, width=6).double()
    x, y = randn(0, 6, 1, 4, 4), torch.tensor([0, 1, 2, 1, 0, 2])
    gradients = {}
    for noise in (0.0, 2.0):
        scheme = Scheme("private", clip_norm=0.5, noise_multiplier=noise, **options)
        step = build_step(
            scheme, model, layers=("",), classes=3, mean=(), std=(), generator=generator(4), batch_size=9
        )  # fmt: skip
        model.zero_grad()
        loss = step.loss(x, y)
        loss.backward()
        gradients[noise] = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert float(gradients[0.0].norm()) <= 6 * 0.5 / 9
    noise = gradients[2.0] - gradients[0.0]
    level = scale * 2.0 * 0.5 / 9
    assert abs(float(noise.square().mean()) - level**2) <= 5 * level**2 * (2 / len(noise)) ** 0.5
    if not options:
        found, losses = gradients_by_sample(model, x[:, None], F.one_hot(y, 3).double()[:, None])
        each = torch.cat([g.flatten(1) for g in found], 1)
        assert_close(gradients[0.0], sum(g * min(1.0, 0.5 / float(g.norm())) for g in each) / 9)
        assert_close(loss.detach(), losses.mean())


def test_batches_of_private_training_are_poisson_samples():
    training = get_recipe("neighbours/dp-1-plain").training
    batches = [b for epoch in range(40) for b in batch_indices(1347, training, 1, epoch)]
    assert len(batches) == 40 * math.ceil(1347 / PRIVATE_BATCH)
    sizes = np.array([len(b) for b in batches])
    rate = PRIVATE_BATCH / 1347
    assert abs(sizes.mean() - PRIVATE_BATCH) <= 5 * (1347 * rate * (1 - rate) / len(sizes)) ** 0.5
    assert 0.7 < sizes.var() / (1347 * rate * (1 - rate)) < 1.4
    counts = np.bincount(np.concatenate(batches), minlength=1347)
    assert 0.8 < counts.var() / (len(batches) * rate * (1 - rate)) < 1.2


@pytest.mark.parametrize("epsilon", NOISE)
def test_the_noise_of_the_recipes_gives_their_privacy(epsilon):
    steps = PRIVATE_EPOCHS * math.ceil(1347 / PRIVATE_BATCH)
    spent = privacy_spent(NOISE[epsilon], PRIVATE_BATCH / 1347, steps, DELTA)
    assert 0.998 * epsilon <= spent <= epsilon


# Measurements -----------------------------------------------------------------------------------------------------


class Halfplane(torch.nn.Module):
    """Two classes on both sides of the line x = 0.3."""

    def forward(self, x):
        return torch.stack([torch.zeros(len(x)), x[:, 0] - 0.3], 1)


def test_the_margin_of_a_line_is_the_distance_to_it():
    x = torch.tensor([[1.0, 0.2], [0.5, -0.4], [-0.1, 0.0], [0.9, 0.1]])
    data = ToyData(x, torch.tensor([1, 1, 0, 0]), x, torch.tensor([1, 1, 0, 0]))
    training = get_recipe("neighbours/moons-erm").training
    assert_close(boundary(Halfplane(), x)[:, 0].unique(), torch.tensor([0.3]), atol=1e-3, rtol=0)
    found, _ = run_suite("margins", Subject(Halfplane().eval(), data, "toy", training=training))
    assert found["margin/mean"] == pytest.approx((0.7 + 0.2 + 0.4) / 3, abs=0.005)
    assert found["margin/least"] == pytest.approx(0.2, abs=0.005)
    assert found["margin/right"] == 0.75


def test_a_network_of_the_right_filters_has_learned_what_they_match():
    model, known = build_model("patch_network", 10, seed=0, width=2), features()
    data = load_data("toy_features")
    with torch.no_grad():
        model.filters.weight.copy_((known * torch.tensor([1.0, 2.0])[:, None]).flatten(0, 1))
    found, _ = run_suite("learned_features", Subject(model.eval(), data, "toy"))
    assert found == {"learned_both": 1, "learned_any": 1, "feature_balance": 0.5, "feature_strong": 2}
    with torch.no_grad():
        model.filters.weight[1::2][:5] = 0  # the second feature of five classes
    found, _ = run_suite("learned_features", Subject(model.eval(), data, "toy"))
    assert found["learned_any"] == 1
    assert found["learned_both"] <= 0.6  # the first class is the one that ties decide for


@pytest.mark.parametrize("k", [1, 8, 32])
def test_distances_and_expansions_of_k_mixup(k):
    """With k = n nothing is moved; with larger k directions are shorter and mixed samples closer to the data."""
    x = randn(0, 32, 2).float()
    data = ToyData(x, torch.arange(32) % 2, x, torch.arange(32) % 2)
    training = Training(
        "toy_spirals",
        "smooth_mlp",
        Scheme("k_mixup", alpha=1.0, matching=k),
        epochs=1,
        batch_size=32,
        learning_rate=0.1,
    )
    model = build_model("smooth_mlp", 2, seed=0, width=8).eval()
    subject = Subject(model, data, "toy", training=training)
    found = run_suite("mixed_distance", subject)[0]
    if k == 32:
        assert found["mixed_distance"] == pytest.approx(0, abs=1e-6)
        assert found["same_class"] == 1
        return
    plain = replace(subject, training=replace(training, scheme=Scheme("mixup", alpha=1.0)))
    report = run_suite("expansion", subject)[0]
    assert report["expansion/holds"] == 1
    assert abs(report["expansion/ratio"] - 1) < 0.05
    if k > 1:
        assert found["mixed_distance"] < run_suite("mixed_distance", plain)[0]["mixed_distance"]
        assert report["expansion/length"] < run_suite("expansion", plain)[0]["expansion/length"]


def test_the_likelihood_is_the_mean_cross_entropy():
    data = load_data("toy_moons")
    model = build_model("smooth_mlp", 2, seed=0).eval()
    p = model(data.x_test).double().softmax(1)[torch.arange(1000), data.y_test]
    assert run_suite("likelihood", Subject(model, data, "toy"))[0]["nll"] == pytest.approx(
        float(-p.log().mean().detach())
    )


# Verdicts -----------------------------------------------------------------------------------------------------------


def test_a_direction_is_where_the_loss_is_smallest():
    x, y = randn(0, 30, 3), (torch.arange(30) % 2).double()
    weights = torch.rand(30, generator=generator(1)).double()
    weights = weights / weights.sum()
    theta = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([theta], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = (weights * (F.softplus(x @ theta) - y * (x @ theta))).sum() + 1e-4 / 2 * theta @ theta
        value.backward()
        return value

    optimizer.step(loss)
    assert_close(logistic_direction(x, y, weights), (theta / theta.norm()).detach(), rtol=1e-5, atol=1e-6)


def test_quick_computations_say_what_they_found():
    assert alternating().outcome == "holds"
    assert linear_direction().outcome == "limits"
    assert cosine(400, 0) > 0.99


def lines(values, metric, row):
    return [entry(f"neighbours/{row}", seed, "clean", **{metric: value}) for seed, value in enumerate(values, 1)]


@pytest.mark.parametrize(
    ("first", "word", "weakness"),
    [
        ((0.95, 0.96, 0.97), "reproduced", ""), ((0.5, 0.51, 0.5), "not reproduced", ""),
        ((0.95, 0.8, 0.9), "not reproduced", "within noise"), ((0.95,), "not reproduced", "one seed"),
    ],
)  # fmt: skip
def test_the_verdict_follows_students_interval(first, word, weakness):
    judge = claims.better(claims.Pair("dp-1-plain", "dp-1-mixup", "clean"))
    entries = (*lines(first, "clean", "dp-1-plain"), *lines((0.9, 0.9, 0.9), "clean", "dp-1-mixup"))
    found = judge(Records(entries=entries))
    assert (found.word, found.weakness, found.seeds) == (word, weakness, len(first))
    assert judge(Records()).word == "not run"


def test_every_row_of_a_claim_is_a_recipe():
    """With a result of every recipe, no claim is left without a verdict."""
    names = ("clean", "nll", "mixed_distance", "same_class", "learned_both", "margin/mean", "margin/least")
    names += tuple(f"expansion/{key}" for key in ("holds", "ratio", "R2", "length"))
    recipes = select_recipes("neighbours/*")
    made = tuple(entry(r.name, seed, **dict.fromkeys(names, 0.5 + seed / 100)) for r in recipes for seed in (1, 2))
    records = Records(entries=made, checks={name: lambda: Check("holds", "a number") for name in CHECKS})
    words = {statement.id: statement.verdict(records).word for statement in claims.NEIGHBORS}
    assert "not run" not in words.values()
    assert len(words) == 14
