"""Crop and flip, the operations of AugMix, AugMix itself and AutoAugment against Pillow, loops and counts."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from experiments.augment import augmix as mix
from experiments.augment import autoaugment as auto
from experiments.augment import operations as ops
from experiments.augment import standard
from experiments.augment.operations import Operation, apply_operation

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def normalize(pixels):
    mean, std = (torch.tensor(v)[:, None, None] for v in (CIFAR_MEAN, CIFAR_STD))
    return (pixels - mean) / std


def picture(seed=0, shape=(32, 32, 3)):
    """Smooth shapes and noise in a part of the range, so that contrast and histograms have something to do."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(30, 150, shape[0] * shape[1]).reshape(*shape[:2], 1)
    return (ramp + rng.integers(0, 40, shape)).astype(np.uint8)


def within_five_errors(hits, total, share):
    return abs(hits / total - share) <= 5 * np.sqrt(share * (1 - share) / total)


# Crop and flip ------------------------------------------------------------------------------------------------------


def test_random_crop_is_a_window_of_the_image_padded_with_black():
    image = picture()
    padded = np.zeros((40, 40, 3), dtype=np.uint8)
    padded[4:36, 4:36] = image
    windows = {padded[t : t + 32, s : s + 32].tobytes() for t in range(9) for s in range(9)}
    rng = np.random.default_rng(0)
    seen = {np.ascontiguousarray(standard.random_crop(image, rng)).tobytes() for _ in range(1500)}
    assert seen == windows  # all 81, and nothing else


def test_random_flip_mirrors_half_of_the_time():
    image, rng = picture(), np.random.default_rng(1)
    flips = 0
    for _ in range(2000):
        out = standard.random_flip(image, rng)
        flipped = not np.array_equal(out, image)
        assert np.array_equal(out, image[:, ::-1] if flipped else image)
        flips += flipped
    assert within_five_errors(flips, 2000, 0.5)


def test_bad_images_say_what_was_expected():
    with pytest.raises(ValueError, match="image: expected bytes"):
        standard.as_picture(np.zeros((8, 8, 3)))
    with pytest.raises(ValueError, match="crop: expected 1 to resize"):
        standard.center_crop_resize(picture(), 300)


def test_boxes_of_the_resized_crop_have_the_promised_area_and_ratio():
    rng, n = np.random.default_rng(0), 4000
    boxes = np.array([standard.resized_crop_box(300, 400, rng) for _ in range(n)])
    top, left, height, width = boxes.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 300).all()
    assert (left + width <= 400).all()
    share, ratio = height * width / 120_000, width / height
    assert share.min() > 0.078
    assert 0.74 < ratio.min() < 0.77
    assert 1.3 < ratio.max() < 1.35
    # A share below 9/16 fits at any ratio, so there the law is uniform: equal counts in equal parts.
    low, high = ((share > 0.08) & (share < 0.3)).sum(), ((share >= 0.3) & (share < 0.52)).sum()
    assert abs(low - high) <= 5 * np.sqrt(low + high)
    # Of the boxes that fit whatever their ratio, half are wider than high.
    fits = share < 0.5
    assert within_five_errors((ratio[fits] > 1).sum(), fits.sum(), 0.5)


def test_resized_crop_falls_back_to_the_centre_when_nothing_fits():
    rng = np.random.default_rng(0)
    # 10 x 100: ratios up to 4/3 need boxes at most 13 wide, area at most 13 % of the image; 90 % never fits.
    assert standard.resized_crop_box(10, 100, rng, scale=(0.9, 1.0)) == (0, 43, 10, 13)
    assert standard.resized_crop_box(100, 10, rng, scale=(0.9, 1.0)) == (43, 0, 13, 10)
    assert standard.resized_crop_box(10, 10, rng, scale=(4.0, 5.0)) == (0, 0, 10, 10)


def test_resized_crop_of_the_whole_image_is_pillows_resize():
    image = picture(shape=(48, 48, 3))
    out = standard.random_resized_crop(image, np.random.default_rng(0), 24, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    assert out.dtype == np.uint8
    assert np.array_equal(out, np.asarray(Image.fromarray(image).resize((24, 24), Image.Resampling.BILINEAR)))


def test_centre_crop_keeps_the_middle_and_the_aspect():
    image = picture(shape=(32, 64, 3))
    assert np.array_equal(standard.center_crop_resize(image, 16, resize=32), image[8:24, 24:40])
    assert standard.center_crop_resize(image, 224).shape == (224, 224, 3)
    assert standard.center_crop_resize(picture(shape=(64, 32, 1)), 20, resize=32).shape == (20, 20, 1)


# Operations ---------------------------------------------------------------------------------------------------------


def affine(image, matrix):
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR)


# By hand from the published parametrisation at level 2.9, image 32 x 24 (height x width):
# 4 - int(1.16) bits, int(8.7) degrees, 256 - int(74.24), shear 0.087, int(2.32) and int(3.09) pixels.
PILLOW = {
    "autocontrast": lambda image, sign: ImageOps.autocontrast(image),
    "equalize": lambda image, sign: ImageOps.equalize(image),
    "posterize": lambda image, sign: ImageOps.posterize(image, 3),
    "rotate": lambda image, sign: image.rotate(8 * sign, resample=Image.Resampling.BILINEAR),
    "solarize": lambda image, sign: ImageOps.solarize(image, 182),
    "shear_x": lambda image, sign: affine(image, (1, sign * 0.087, 0, 0, 1, 0)),
    "shear_y": lambda image, sign: affine(image, (1, 0, 0, sign * 0.087, 1, 0)),
    "translate_x": lambda image, sign: affine(image, (1, 0, sign * 2, 0, 1, 0)),
    "translate_y": lambda image, sign: affine(image, (1, 0, 0, 0, 1, sign * 3)),
}


def awkward():
    """Images on which look-up tables differ most: constant, two values, few pixels, full range, one channel."""
    rng = np.random.default_rng(5)
    two = np.full((32, 24, 3), 7, dtype=np.uint8)
    two[3, 4] = (250, 7, 8)
    return {
        "smooth": picture(shape=(32, 24, 3)),
        "noise": rng.integers(0, 256, (32, 24, 3), dtype=np.uint8),
        "constant": np.full((32, 24, 3), 200, dtype=np.uint8),
        "two values": two,
        "narrow": rng.integers(90, 130, (32, 24, 3), dtype=np.uint8),
        "grey": rng.integers(0, 256, (32, 24, 1), dtype=np.uint8),
        "view": rng.integers(0, 256, (32, 24, 3), dtype=np.uint8)[:, ::-1],
    }


@pytest.mark.parametrize("name", ops.NAMES)
@pytest.mark.parametrize("kind", awkward())
@pytest.mark.parametrize("sign", [1, -1])
def test_every_operation_gives_pillows_bytes(name, kind, sign):
    image = awkward()[kind]
    before = image.copy()
    got = apply_operation(image, Operation(name, 2.9, sign))
    expected = standard.as_array(PILLOW[name](standard.as_picture(image), sign))
    assert got.dtype == np.uint8
    assert got.shape == image.shape
    assert np.array_equal(got, expected)
    assert np.array_equal(image, before)


def test_operations_on_four_pixels_by_hand():
    row = np.array([[10, 60, 110, 210]], dtype=np.uint8)[:, :, None]
    assert ops.autocontrast(row).ravel().tolist() == [0, 63, 127, 255]  # 255 (v - 10) / 200, cut
    assert ops.posterize(row, 3).ravel().tolist() == [0, 32, 96, 192]
    assert ops.solarize(row, 110).ravel().tolist() == [10, 60, 145, 45]
    assert ops.translate(row, 1, 0).ravel().tolist() == [0, 10, 60, 110]
    assert ops.translate(row, -2, 0).ravel().tolist() == [110, 210, 0, 0]
    assert apply_operation(row, Operation("translate_y", 9.0, 1)).ravel().tolist() == row.ravel().tolist()
    # 510 pixels below the top: a step every 2 pixels; 255 zeros fill steps 0 to 127.
    levels = np.repeat(np.array([0, 100, 200], dtype=np.uint8), [255, 255, 10])[None, :, None]
    assert ops.equalize(levels)[0, [0, 300, 515], 0].tolist() == [0, 128, 255]


def test_low_levels_leave_the_image_or_its_highest_bits():
    image = picture()
    for name in ("rotate", "solarize", "translate_x", "translate_y"):
        level = 0.03 if name == "solarize" else 0.3
        assert np.array_equal(apply_operation(image, Operation(name, level, 1)), image)
    assert np.array_equal(apply_operation(image, Operation("posterize", 2.0, 1)), image & 0b11110000)
    with pytest.raises(ValueError, match="operation: expected one of"):
        apply_operation(image, Operation("invert", 1.0, 1))


# AugMix -------------------------------------------------------------------------------------------------------------


def test_augmix_is_the_published_mixture_of_normalized_images():
    image, pixels = picture(), lambda array: torch.from_numpy(array.copy()).permute(2, 0, 1).double() / 255
    for seed in range(30):
        draw = mix.sample_draw(np.random.default_rng(seed))
        got = normalize(torch.from_numpy(mix.augmix_pixels(image, np.random.default_rng(seed))))
        mixture = torch.zeros(3, 32, 32, dtype=torch.float64)
        for weight, chain in zip(draw.weights, draw.chains, strict=True):
            changed = Image.fromarray(image)
            for operation in chain:
                changed = Image.fromarray(apply_operation(np.asarray(changed), operation))
            mixture += weight * normalize(pixels(np.asarray(changed)))
        expected = (1 - draw.share) * normalize(pixels(image)) + draw.share * mixture
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)


def test_a_draw_is_replayed_to_the_bit_and_pixels_stay_in_range():
    for seed in range(200):
        image = awkward()["noise" if seed % 2 else "grey"]
        draw = mix.sample_draw(np.random.default_rng(seed), severity=10)
        out = mix.apply_draw(image, draw)
        assert np.array_equal(out, mix.augmix_pixels(image, np.random.default_rng(seed), severity=10))
        assert out.shape == (image.shape[2], 32, 24)
        assert 0 <= out.min() <= out.max() <= 1
    unchanged = mix.apply_draw(image, mix.Draw(0.7, np.array([0.4, 0.6]), ((), ())))
    np.testing.assert_allclose(unchanged, image.transpose(2, 0, 1) / 255, atol=1e-6)


@pytest.mark.parametrize("shape", [(37, 53, 3), (53, 37, 1), (1, 1, 1), (3, 40, 1), (1, 90, 3)], ids=str)
def test_augmix_takes_images_of_any_shape_and_leaves_them_alone(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    kept = image.copy()
    for seed in range(30):
        view = mix.augmix_pixels(image, np.random.default_rng(seed), severity=10)
        assert view.shape == (shape[2], *shape[:2])
        assert 0 <= view.min() <= view.max() <= 1
    assert np.array_equal(image, kept)


def test_statistics_of_augmix_draws():
    rng, n = np.random.default_rng(0), 6000
    draws = [mix.sample_draw(rng) for _ in range(n)]
    shares = np.array([d.share for d in draws])
    weights = np.array([d.weights for d in draws])
    np.testing.assert_allclose(weights.sum(1), 1)
    # Beta(1, 1): mean 1/2, variance 1/12. Dirichlet(1, 1, 1): mean 1/3, variance 1/18; second moments are bounded.
    assert abs(shares.mean() - 1 / 2) <= 5 * np.sqrt(1 / 12 / n)
    assert abs(shares.var() - 1 / 12) <= 5 * np.sqrt(1 / 180 / n)
    assert np.all(abs(weights.mean(0) - 1 / 3) <= 5 * np.sqrt(1 / 18 / n))
    assert np.all(abs((weights**2).mean(0) - 1 / 6) <= 5 * np.sqrt((1 / 15 - 1 / 36) / n))
    depths = np.array([[len(chain) for chain in d.chains] for d in draws]).ravel()
    operations = [op for d in draws for chain in d.chains for op in chain]
    assert all(within_five_errors((depths == k).sum(), depths.size, 1 / 3) for k in (1, 2, 3))
    total = len(operations)
    for name in ops.NAMES:
        assert within_five_errors(sum(op.name == name for op in operations), total, 1 / 9)
    levels = np.array([op.level for op in operations])
    assert 0.1 <= levels.min() < 0.11
    assert 2.99 < levels.max() <= 3
    assert abs(levels.mean() - 1.55) <= 5 * 2.9 / np.sqrt(12 * total)
    assert within_five_errors(sum(op.sign == 1 for op in operations), total, 0.5)
    up = [op.sign == 1 for op in operations if op.name == "rotate"]
    assert within_five_errors(sum(up), len(up), 0.5)


@pytest.mark.parametrize("alpha", [1e-300, 1e-4, 1e-3, 1e-2, 1.0, 1e300])
def test_weights_are_numbers_with_sum_one_for_every_concentration(alpha):
    """Dirichlet(a, a, a): mean 1/3 and second moment (a + 1) / (3 (3 a + 1)); Beta(a, a): mean 1/2."""
    n = 1500
    draws = [mix.sample_draw(np.random.default_rng(seed), alpha=alpha) for seed in range(n)]
    shares, weights = np.array([d.share for d in draws]), np.array([d.weights for d in draws])
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-12)
    assert ((weights >= 0) & np.isfinite(weights)).all()
    assert ((shares >= 0) & (shares <= 1)).all()
    assert abs(shares.mean() - 1 / 2) <= 5 * shares.std() / np.sqrt(n) + 1e-12
    for power, mean in ((1, 1 / 3), (2, (1 + alpha) / (1 + 3 * alpha) / 3)):
        found = weights**power
        assert np.all(abs(found.mean(0) - mean) <= 5 * found.std(0) / np.sqrt(n) + 1e-12)
    view = mix.augmix_pixels(picture(), np.random.default_rng(1), alpha=alpha)
    assert np.isfinite(view).all()


def test_draws_of_usual_concentrations_are_those_of_one_gamma_draw():
    for seed, alpha in ((0, 1.0), (1, 0.3), (2, 5.0)):
        draw, rng = mix.sample_draw(np.random.default_rng(seed), depth=1, alpha=alpha), np.random.default_rng(seed)
        rng.integers(0, 18, size=3)
        rng.random(3)
        gamma = rng.standard_gamma(alpha, size=3)
        assert np.array_equal(draw.weights, gamma / gamma.sum())
        assert draw.share == rng.beta(alpha, alpha)


def test_lost_digits_do_not_change_the_law_of_the_weights(monkeypatch):
    """All weights from the second way: again the moments of Dirichlet(1/2, 1/2, 1/2)."""
    monkeypatch.setattr(mix, "SMALLEST", np.inf)
    weights = np.array([mix.sample_draw(np.random.default_rng(seed), alpha=0.5).weights for seed in range(4000)])
    for power, mean in ((1, 1 / 3), (2, 1 / 5)):
        found = weights**power
        assert np.all(abs(found.mean(0) - mean) <= 5 * found.std(0) / np.sqrt(4000))


@pytest.mark.parametrize("shape", [(37, 53, 3), (53, 37, 1), (1, 1, 1), (3, 40, 1)])
def test_views_of_images_of_any_size(shape):
    rng = np.random.default_rng(0)
    for _ in range(20):
        image = rng.integers(0, 256, shape, dtype=np.uint8)
        kept = image.copy()
        view = mix.augmix_pixels(image, rng, severity=10)
        assert view.shape == (shape[2], *shape[:2])
        assert 0 <= view.min() <= view.max() <= 1
        assert np.array_equal(image, kept)


def test_options_of_a_draw():
    draw = mix.sample_draw(np.random.default_rng(0), width=2, depth=4, severity=0.1)
    assert [len(chain) for chain in draw.chains] == [4, 4]
    assert {op.level for chain in draw.chains for op in chain} == {0.1}
    for bad in ({"width": 0}, {"depth": 0}, {"severity": 11}, {"alpha": 0}, {"alpha": np.nan}, {"alpha": np.inf}):
        with pytest.raises(ValueError, match="expected"):
            mix.sample_draw(np.random.default_rng(0), **bad)


# AutoAugment --------------------------------------------------------------------------------------------------------


def test_policies_are_complete_and_hold_known_pairs():
    names = {*auto.LARGEST, "posterize", "solarize", "autocontrast", "equalize", "invert"}
    for policy in auto.POLICIES.values():
        assert len(policy) == 25
        for step in (s for pair in policy for s in pair):
            assert step.name in names
            assert 0 <= step.probability <= 1
            assert 0 <= step.index <= 9
    assert auto.CIFAR[0] == (("invert", 0.1, 7), ("contrast", 0.2, 6))
    assert auto.CIFAR[24] == (("translate_y", 0.7, 9), ("autocontrast", 0.9, 1))
    assert auto.IMAGENET[0] == (("posterize", 0.4, 8), ("rotate", 0.6, 9))
    # The published ImageNet table repeats five of its pairs.
    plain = [tuple((s.name, s.probability) for s in pair) for pair in auto.IMAGENET]
    assert len(set(plain)) == 20


@pytest.mark.parametrize(
    ("name", "index", "sign", "value"),
    [
        ("shear_x", 9, -1, -0.3),
        ("shear_y", 3, 1, 0.1),
        ("translate_x", 9, 1, 45),  # int(100 * 150 / 331)
        ("translate_y", 9, -1, -22),  # int(50 * 150 / 331)
        ("rotate", 6, -1, -20),
        ("color", 0, 1, 1),
        ("contrast", 5, -1, 0.5),
        ("sharpness", 9, 1, 1.9),
        ("posterize", 9, 1, 4),
        ("posterize", 5, -1, 6),
        ("solarize", 0, 1, 256),
        ("solarize", 9, 1, 0),
        ("equalize", 7, 1, 0),
    ],
)
def test_strengths_by_hand(name, index, sign, value):
    assert auto.strength(name, index, sign, (100, 50)) == pytest.approx(value)


def test_steps_of_autoaugment_on_small_images():
    row = np.array([[10, 60, 110, 210]], dtype=np.uint8)[:, :, None]

    def step(name, value):
        return standard.as_array(auto.apply_step(standard.as_picture(row), name, value)).ravel().tolist()

    assert step("invert", 0) == [245, 195, 145, 45]
    assert step("translate_x", 1) == [60, 110, 210, 128]
    assert step("translate_x", -2) == [128, 128, 10, 60]
    assert step("brightness", 0.5) == [5, 30, 55, 105]
    assert step("posterize", 4) == [0, 48, 96, 208]
    assert step("solarize", 110) == [10, 60, 145, 45]
    for name in ("color", "contrast", "brightness", "sharpness"):
        assert step(name, 1.0) == row.ravel().tolist()
    with pytest.raises(ValueError, match="operation: expected"):
        step("cutout", 1.0)
    with pytest.raises(ValueError, match="policy: expected one of"):
        auto.sample_steps(np.random.default_rng(0), "svhn")


@pytest.mark.parametrize("policy", auto.POLICIES)
def test_autoaugment_replays_and_keeps_shape_and_bytes(policy):
    for seed in range(60):
        image = awkward()[("noise", "grey", "view")[seed % 3]]
        out = auto.autoaugment(image, np.random.default_rng(seed), policy=policy)
        expected = standard.as_picture(np.ascontiguousarray(image))
        for name, index, sign in auto.sample_steps(np.random.default_rng(seed), policy):
            expected = auto.apply_step(expected, name, auto.strength(name, index, sign, (24, 32)))
        assert out.dtype == np.uint8
        assert np.array_equal(out, standard.as_array(expected))


@pytest.mark.parametrize("policy", auto.POLICIES)
def test_statistics_of_autoaugment_draws(policy):
    rng, n = np.random.default_rng(0), 8000
    steps = [step for _ in range(n) for step in auto.sample_steps(rng, policy)]
    for name in ("equalize", "rotate", "posterize"):
        chances = [[s.probability * (s.name == name) for s in pair] for pair in auto.POLICIES[policy]]
        per_pair = np.sum(chances, axis=1)
        spread = np.mean([sum(p * (1 - p) for p in pair) for pair in chances]) + per_pair.var()
        hits = sum(step[0] == name for step in steps)
        assert abs(hits - n * per_pair.mean()) <= 5 * np.sqrt(n * spread)
    assert within_five_errors(sum(sign == 1 for _, _, sign in steps), len(steps), 0.5)
