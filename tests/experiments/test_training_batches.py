"""Rates and batches of a training: by hand, whole, and the same whoever makes them."""

import math
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_training_loop import image_source, image_training, toy
from torch.testing import assert_close

from experiments.augment.standard import random_crop, random_flip
from experiments.recipes.recipe import Scheme
from experiments.training.batches import Batches, Views, batch_indices
from experiments.training.distributed import World
from experiments.training.loop import effective_epochs
from experiments.training.optimization import build_optimiser, learning_rate
from experiments.training.seeds import IMAGE, ORDER, STEP, epoch_order, image_generator, stream_seed

# Rates --------------------------------------------------------------------------------------------------------------


def test_rates_by_hand():
    steps = toy(learning_rate=1.0, epochs=6, schedule="steps", milestones=(1, 3))
    assert [learning_rate(steps, 5 * epoch + 4, 5) for epoch in range(6)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    cosine = toy(learning_rate=0.1, epochs=2, schedule="cosine", final_rate=0.02)
    expected = [0.1, 0.06 + 0.04 * math.sqrt(0.5), 0.06, 0.06 - 0.04 * math.sqrt(0.5)]
    assert [learning_rate(cosine, step, 2) for step in range(4)] == pytest.approx(expected)
    assert learning_rate(toy(), 10**6, 1) == 0.05
    with pytest.raises(ValueError, match="schedule: expected 'constant', 'steps' or 'cosine', got 'linear'"):
        learning_rate(toy(schedule="linear"), 0, 1)
    with pytest.raises(ValueError, match="optimiser: expected 'sgd' or 'adam', got 'lion'"):
        build_optimiser(toy(optimiser="lion"), torch.nn.Linear(2, 2))


@pytest.mark.parametrize(("epochs", "replays"), [(200, 4), (20, 8), (15, 4)])
def test_replayed_batches_go_through_the_whole_schedule(epochs, replays):
    """An eighth of the epochs must not end at an eighth of the schedule."""
    scheme = Scheme("adversarial", radius=0.1, replays=replays)
    cosine = toy(scheme, epochs=epochs, schedule="cosine", learning_rate=0.1)
    last = effective_epochs(cosine) * 10 - 1
    assert effective_epochs(cosine) == -(-epochs // replays)
    rates = [learning_rate(cosine, step, 10) for step in range(last + 1)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == 0.1
    assert rates[-1] < 0.003
    drops = replace(cosine, schedule="steps", milestones=(epochs // 2,))
    half = effective_epochs(drops) // 2
    assert learning_rate(drops, 10 * half - 10, 10) == 0.1
    assert learning_rate(drops, last, 10) == pytest.approx(0.01)


# Batches ------------------------------------------------------------------------------------------------------------


def test_every_sample_once_in_an_order_of_its_own_each_epoch():
    training = toy(batch_size=6)
    orders = [np.concatenate(batch_indices(20, training, seed, epoch)) for seed, epoch in ((1, 0), (1, 1), (2, 0))]
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert [len(b) for b in batch_indices(20, training, 1, 0)] == [6, 6, 6, 2]
    assert (epoch_order(20, 1, 0) == orders[0]).all()


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_processes_share_each_batch(size):
    for batch in batch_indices(20, toy(batch_size=8), 1, 0):
        shares = [World(rank, size).share(batch) for rank in range(size)]
        assert sorted(np.concatenate(shares)) == sorted(batch)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("augmentation", ["none", "crop_flip"])
def test_a_last_batch_smaller_than_the_number_of_processes_is_left_out(augmentation):
    training = image_training(batch_size=3, augmentation=augmentation)  # 3, 3, 3, 1
    for rank in range(2):
        found = list(Batches(image_source(), training, seed=1, world=World(rank, 2)).epoch(0))
        assert [(number, len(y), size) for number, _, y, size in found] == [(k, 2 - rank, 3) for k in range(3)]


def gathered(training, source, start=0, workers=0):
    return list(Batches(source, training, seed=3, world=World(), workers=workers).epoch(1, start))


def test_batches_from_a_start_are_the_rest_of_the_whole():
    training = image_training("noisymix", views="augmix")
    whole = gathered(training, image_source())
    rest = gathered(training, image_source(), start=1)
    assert [b[0] for b in whole] == [0, 1, 2]
    for (n1, x1, y1, s1), (n2, x2, y2, s2) in zip(whole[1:], rest, strict=True):
        assert (n1, s1) == (n2, s2)
        assert torch.equal(x1, x2)
        assert torch.equal(y1, y2)


class ProcessSource:
    """Vectors that hold the number of the process that reads them, and the index of the sample."""

    labels = np.zeros(8, dtype=np.int64)
    mean = std = ()

    def sample(self, index):
        return np.array([os.getpid(), index], np.float64)


def test_loader_processes_make_the_same_batches():
    training = image_training("noisymix", views="augmix")
    source = image_source()
    alone, helped = (Batches(source, training, seed=3, world=World(), workers=workers) for workers in (0, 2))
    for epoch, start in ((0, 0), (1, 1)):
        for one, other in zip(alone.epoch(epoch, start), helped.epoch(epoch, start), strict=True):
            assert one[0] == other[0]
            assert torch.equal(one[1], other[1])
            assert torch.equal(one[2], other[2])


def test_loader_processes_live_through_all_epochs():
    batches = Batches(ProcessSource(), toy(batch_size=4), seed=3, world=World(), workers=1)
    seen = [torch.cat([x for _, x, _, _ in batches.epoch(epoch)]) for epoch in range(3)]
    assert len(torch.cat(seen)[:, 0].unique()) == 1
    assert seen[0][0, 0] != os.getpid()
    assert all(sorted(x[:, 1].tolist()) == list(range(8)) for x in seen)
    assert not torch.equal(seen[0], seen[1])


def test_views_by_hand():
    """Clean views first, each crop and flip from the generator of its image; normalized bytes, channels first."""
    source = image_source()
    training = image_training("noisymix", views="augmix")
    indices = np.array([7, 2])
    x, y = Views(source, training, 3, 1)[indices]
    assert x.shape == (6, 1, 8, 8)
    assert y.tolist() == [source.labels[7], source.labels[2]]
    for row, index in enumerate(indices):
        rng = image_generator(3, 1, index)
        image = random_flip(random_crop(source.samples[index], rng), rng)
        expected = torch.from_numpy((image / 255 - 0.5) / 0.25).permute(2, 0, 1)
        assert_close(x[row].double(), expected, rtol=1e-6, atol=1e-6)
    assert not torch.equal(x[2:4], x[4:6])
    copies, _ = Views(source, replace(training, views=""), 3, 1)[indices]
    assert torch.equal(copies[:2], copies[2:4])
    assert torch.equal(copies[:2], x[:2])


def test_unknown_ways_to_make_views_are_refused():
    with pytest.raises(ValueError, match=r"augmentation: expected one of .*, got 'cutout'"):
        Views(image_source(), image_training(augmentation="cutout"), 0, 0)
    with pytest.raises(ValueError, match=r"views: expected one of .*, got 'randaugment'"):
        Views(image_source(), image_training(views="randaugment"), 0, 0)


def test_streams_are_apart():
    seeds = {
        stream_seed(purpose, *path) for purpose in (ORDER, STEP, IMAGE) for path in ((1, 0), (2, 0), (0, 1), (1, 1))
    }
    assert len(seeds) == 12
    assert all(0 <= seed < 2**63 for seed in seeds)
    first = [image_generator(*key).random() for key in ((1, 0, 0), (1, 0, 1), (1, 1, 0), (2, 0, 0), (1, 0, 0))]
    assert len(set(first)) == 4
    assert first[0] == first[-1]
