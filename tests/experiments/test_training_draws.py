"""Crop and flip of a whole batch: the draws and the bits of one image after the other."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_training_loop import image_training

from experiments.augment.standard import crops, random_crop, random_flip
from experiments.training.batches import MemorySource, Views, augment
from experiments.training.philox import crop_flip_draws, first_words
from experiments.training.seeds import image_generator

INDICES = np.random.default_rng(0).choice(2**40, 300, replace=False)


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (1, 0), (7, 199), (2**20, 2**23)])
def test_the_words_are_those_of_numpy(seed, epoch):
    raw = [image_generator(seed, epoch, int(index)).bit_generator.random_raw(4) for index in INDICES]
    assert (first_words(seed, epoch, INDICES) == np.stack(raw, 1)).all()


@pytest.mark.parametrize("flip_first", [False, True])
@pytest.mark.parametrize("padding", [1, 4, 100, 2**30 - 3, 2**30])
def test_the_draws_are_those_of_each_image(padding, flip_first):
    """With the largest margins, NumPy rejects about half of its numbers."""
    found = crop_flip_draws(3, 5, INDICES, padding=padding, flip_first=flip_first)
    for row, index in enumerate(INDICES):
        rng = image_generator(3, 5, int(index))
        first = rng.random() if flip_first else None
        top, left = rng.integers(0, 2 * padding + 1, size=2)
        mirrored = (first if flip_first else rng.random()) < 0.5
        assert (found[0][row], found[1][row], found[2][row]) == (top, left, mirrored)


@pytest.mark.parametrize("flip_first", [False, True])
def test_crops_by_hand(flip_first):
    images = np.random.default_rng(1).integers(0, 256, (40, 6, 5, 2), dtype=np.uint8)
    draws = crop_flip_draws(1, 2, np.arange(40), padding=4, flip_first=flip_first)
    for image, found, index in zip(images, crops(images, *draws, flip_first=flip_first), range(40), strict=True):
        rng = image_generator(1, 2, index)
        if flip_first:
            expected = random_crop(random_flip(image, rng), rng)
        else:
            expected = random_flip(random_crop(image, rng), rng)
        assert (found == expected).all()


@pytest.mark.parametrize(("side", "channels"), [(8, 1), (28, 1), (32, 3)])
@pytest.mark.parametrize("kind", ["none", "crop_flip", "flip_crop", "resized_crop"])
@pytest.mark.parametrize("scheme", ["baseline", "noisymix"])
def test_a_batch_has_the_bits_and_the_layout_of_its_images(side, channels, kind, scheme):
    rng = np.random.default_rng(2)
    samples = rng.integers(0, 256, (30, side, side, channels), dtype=np.uint8)
    statistics = (0.49, 0.48, 0.44)[:channels], (0.2, 0.19, 0.21)[:channels]
    source = MemorySource(samples, rng.integers(0, 3, 30), *statistics)
    size = 12 if kind == "resized_crop" else 0
    training = replace(image_training(scheme), augmentation=kind, image_size=size)
    indices = np.array([4, 29, 0, 11, 11])
    x, _ = Views(source, training, 3, 1)[indices]
    mean, std = (np.asarray(v, np.float32) for v in statistics)
    images = [augment(samples[i], kind, image_generator(3, 1, int(i)), size=size) for i in indices]
    one_by_one = [np.moveaxis((image.astype(np.float32) / 255 - mean) / std, -1, 0) for image in images]
    expected = torch.from_numpy(np.concatenate([np.stack(one_by_one)] * training.scheme.views))
    assert torch.equal(x, expected)
    assert x.stride() == expected.stride()
