"""Accuracy, clean and under noise: by hand, against naive loops, and whatever the batches are."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics.functional.classification import multiclass_accuracy

from experiments.data.images import ImageData, ImageSet
from experiments.metrics import noise_accuracy as noise_module
from experiments.metrics.accuracy import accuracy, logits_of
from experiments.metrics.noise_accuracy import noise_curve, salt_pepper, salt_pepper_released, white_noise
from experiments.metrics.streams import chunk_generator, normal_like, uniform_like

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)


def toy_data(n: int = 60, size: int = 6, seed: int = 0) -> ImageData:
    rng = np.random.default_rng(seed)
    images = torch.from_numpy(rng.integers(0, 256, (n, 3, size, size), dtype=np.uint8))
    test = ImageSet(images, torch.from_numpy(rng.integers(0, 4, n)))
    return ImageData("toy", test.first(4), test, 4, MEAN, STD)


def toy_model(size: int = 6, classes: int = 4) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        convolution = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.Tanh())
        return nn.Sequential(convolution, nn.Flatten(), nn.Linear(5 * size**2, classes)).eval()


class Recorder(nn.Module):
    """Keeps what it is given; the logits favor class 0."""

    def __init__(self):
        super().__init__()
        self.seen = []
        self.eval()

    def forward(self, x):
        self.seen.append(x.clone())
        return torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(len(x), 4)

    @property
    def all(self):
        return torch.cat(self.seen)


def normalized(images: torch.Tensor) -> torch.Tensor:
    return (images.float() / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def test_accuracy_by_hand_against_torchmetrics_and_for_any_order():
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.5, 3.0], [0.0, 1.0, 0.5], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    labels = torch.tensor([0, 2, 2, 0, 1])
    assert accuracy(logits, labels) == 3 / 5  # of the equal logits of the fourth row the first counts
    draws = np.random.default_rng(0)
    logits = torch.from_numpy(draws.normal(size=(997, 7)))
    labels = torch.from_numpy(draws.integers(0, 7, 997))
    theirs = multiclass_accuracy(logits, labels, 7, average="micro")
    assert accuracy(logits, labels) == pytest.approx(float(theirs), abs=1e-7)
    order = torch.from_numpy(draws.permutation(997))
    assert accuracy(logits[order], labels[order]) == accuracy(logits, labels)


@pytest.mark.parametrize("batch_size", [1, 7, 60, 256])
@pytest.mark.parametrize("channels_last", [False, True])
def test_logits_are_those_of_one_pass_whatever_the_batches(batch_size, channels_last):
    data, model = toy_data(), toy_model()
    found = logits_of(model, data.test, data, batch_size=batch_size, channels_last=channels_last)
    with torch.no_grad():
        expected = model(normalized(data.test.images))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert found.dtype == torch.float32
    assert not found.is_inference()
    assert torch.equal(logits_of(model, data.test.images, data, batch_size=batch_size).argmax(1), expected.argmax(1))


def test_a_model_that_trains_in_part_is_refused():
    data, model = toy_data(), toy_model()
    model[0][1].train()
    with pytest.raises(ValueError, match=r"0.1 is in training mode; call model.eval"):
        logits_of(model, data.test, data)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda d: logits_of(Recorder(), d.test.images.float(), d), "images: expected at least one image, as bytes"),
        (lambda d: logits_of(Recorder(), d.test.images[:0], d), "images: expected at least one"),
        (lambda d: logits_of(Recorder(), d.test, d, batch_size=0), "batch_size: expected >= 1"),
        (lambda d: logits_of(lambda x: x, d.test, d), "model: expected logits"),
        (lambda d: accuracy(torch.zeros(3, 2), torch.zeros(2).long()), "one label for each"),
        (lambda d: accuracy(torch.full((1, 2), math.nan), torch.zeros(1).long()), "diverged"),
        (lambda d: noise_curve(Recorder(), d, "pink", [0.1], seed=0), "kind: expected one of"),
        (lambda d: noise_curve(Recorder(), d, "white_noise", [0.1], seed=0, variant="x"), "variant: expected one of"),
        (lambda d: noise_curve(Recorder(), d, "white_noise", [-0.1], seed=0), "standard deviation >= 0"),
        (lambda d: noise_curve(Recorder(), d, "white_noise", [0.1], seed=-1), "seed: expected"),
        (lambda d: noise_curve(Recorder(), d, "salt_pepper", [1.1], seed=0), "share of the pixels"),
    ],
)
def test_bad_requests_say_what_was_expected(call, match):
    with pytest.raises(ValueError, match=match):
        call(toy_data())


def test_draws_do_not_depend_on_how_they_are_split():
    x = torch.zeros(10, 3, 5, 5)
    for like in (normal_like, uniform_like):
        whole = like(x, chunk_generator(3, "a", 0.1, 0))
        generator = chunk_generator(3, "a", 0.1, 0)
        assert torch.equal(torch.cat([like(part, generator) for part in x.split(4)]), whole)
    others = [chunk_generator(4, "a", 0.1, 0), chunk_generator(3, "b", 0.1, 0), chunk_generator(3, "a", 0.2, 0)]
    for other in [*others, chunk_generator(3, "a", 0.1, 1)]:
        assert not torch.equal(uniform_like(x, other), whole)


def test_white_noise_is_additive_unclipped_and_of_the_asked_strength():
    x = torch.full((50, 3, 16, 16), 7.0)
    z = (white_noise(x, 0.5, chunk_generator(0)) - x) / 0.5
    n = z.numel()
    assert abs(float(z.mean())) < 5 / math.sqrt(n)
    assert abs(float((z**2).mean()) - 1) < 5 * math.sqrt(2 / n)
    assert abs(float((z**4).mean()) - 3) < 5 * math.sqrt(96 / n)
    twice = (white_noise(x, 1.0, chunk_generator(0)) - x) / 1.0
    torch.testing.assert_close(twice, z, rtol=0, atol=1e-5)  # the level scales the same draw
    assert torch.equal(white_noise(x, 0.0, chunk_generator(0)), x)


def released_by_hand(x: np.ndarray, gamma: float, places) -> np.ndarray:
    """The described procedure in loops; `places(n)` gives n places."""
    x = x.copy()
    for image in x:
        plane = image[0]
        height, width = plane.shape
        for extreme in (min, max):
            value = extreme(plane[i, j] for i in range(height) for j in range(width))
            for place in places(math.ceil(gamma * height * width / 2)):
                plane[place // width, place % width] = value
    return x


@pytest.mark.parametrize("shape", [(5, 3, 32, 32), (4, 1, 3, 7)])
@pytest.mark.parametrize("gamma", [0.0, 0.02, 0.1, 0.5, 1.0])
def test_released_salt_and_pepper_is_the_described_loop_with_its_places(shape, gamma):
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    legacy = np.random.RandomState(12345)  # the generator behind np.random.seed(12345)
    size = shape[2] * shape[3]
    expected = released_by_hand(x, gamma, lambda n: legacy.choice(range(size), n, False))
    found = salt_pepper_released(torch.from_numpy(x), gamma, np.random.RandomState(12345))
    np.testing.assert_array_equal(found.numpy(), expected)


def test_released_salt_and_pepper_touches_the_expected_share_of_one_channel():
    x, gamma = torch.from_numpy(np.random.default_rng(2).normal(size=(400, 3, 32, 32))), 0.3
    found = salt_pepper_released(x, gamma, np.random.RandomState(0))
    assert torch.equal(found[:, 1:], x[:, 1:])
    share = float((found[:, 0] != x[:, 0]).double().mean())
    assert share == pytest.approx(1 - (1 - gamma / 2) ** 2, abs=2e-3)  # 0.2775; 0.3 if no place were struck twice
    assert (found[:, 0].flatten(1).amin(1) >= x[:, 0].flatten(1).amin(1)).all()


@pytest.mark.parametrize(("gamma", "white", "black"), [(0.0, 0, 0), (0.1, 2, 2), (0.14, 3, 2), (1.0, 18, 18)])
def test_salt_and_pepper_whitens_and_blackens_whole_pixels(gamma, white, black):
    data = toy_data()
    x = normalized(data.test.images // 2 + 50)  # neither 0 nor 255 before
    found = salt_pepper(x, gamma, chunk_generator(0), mean=MEAN, std=STD)
    pixels = found * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    is_white, is_black = ((pixels - value).abs().amax(1) < 1e-6 for value in (1, 0))
    assert (is_white.sum((1, 2)) == white).all()
    assert (is_black.sum((1, 2)) == black).all()
    kept = ~(is_white | is_black)[:, None].expand_as(x)
    assert torch.equal(found[kept], x[kept])
    if 0 < gamma < 1:  # everywhere equally often
        assert 0 < is_white.double().mean(0).max() < 0.3


@pytest.mark.parametrize(
    ("kind", "variant"), [("white_noise", "standard"), *[("salt_pepper", v) for v in noise_module.VARIANTS]]
)
def test_noise_depends_neither_on_the_batches_nor_on_the_limit(kind, variant, monkeypatch):
    monkeypatch.setattr(noise_module, "CHUNK", 16)
    data, seen = toy_data(40), []
    for batch_size, limit in ((3, None), (16, None), (256, None), (5, 21)):
        model = Recorder()
        noise_curve(model, data, kind, [0.3], seed=5, variant=variant, batch_size=batch_size, limit=limit)
        seen.append(model.all)
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[0][:21], seen[3])
    changed = (seen[0] != normalized(data.test.images)).any(1).flatten(1)
    assert changed.any(1).all()
    if variant == "released":  # the same places in each chunk, but for pixels that had the value before
        assert (changed[:16] == changed[16:32]).double().mean() > 0.9
    elif kind == "salt_pepper":
        assert (changed[:16] == changed[16:32]).double().mean() < 0.8


def test_noise_curve_is_the_accuracy_of_what_the_model_saw():
    data, model, state = toy_data(), toy_model(), torch.random.get_rng_state()
    curve = noise_curve(model, data, "white_noise", [0.0, 2.0], seed=0)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert curve[0.0] == accuracy(logits_of(model, data.test, data), data.test.labels)
    x = white_noise(normalized(data.test.images), 2.0, chunk_generator(0, "white_noise", 2.0, 0))
    with torch.no_grad():
        by_hand = sum(int(model(image[None]).argmax()) == int(y) for image, y in zip(x, data.test.labels, strict=True))
    assert curve[2.0] == by_hand / 60
    assert noise_curve(model, data, "white_noise", [2.0], seed=0) == {2.0: curve[2.0]}
