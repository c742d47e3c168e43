"""Perturbation sequences: each step by hand or by a twin, and sets on disk."""

import numpy as np
import pytest
from scipy import ndimage

from experiments.corruptions import sequences, weather
from experiments.corruptions.generate import generate_perturbed
from experiments.corruptions.sequences import (
    CIFAR_P,
    IMAGENET_P,
    PERTURBATIONS,
    perturbation_sequences,
    tilt_matrix,
)

MIDDLE = 15
LENGTHS = {"motion_blur": 21, "translate": 16}


def smooth_images(n=4, side=32, channels=3, seed=0):
    noise = np.random.default_rng(seed).normal(size=(n, side, side, channels))
    smooth = ndimage.gaussian_filter(noise, (0, 3, 3, 0), mode="reflect")
    return ((0.5 + 0.2 * smooth / smooth.std()).clip(0.02, 0.98) * 255).astype(np.uint8)


def steps(frames):
    """Root mean square change from frame to frame."""
    return np.sqrt((np.diff(frames.astype(float), axis=1) ** 2).mean(axis=(0, 2, 3, 4)))


def test_lists_of_ten_and_published_lengths():
    assert len(set(CIFAR_P)) == len(set(IMAGENET_P)) == 10
    assert set(CIFAR_P) ^ set(IMAGENET_P) == {"snow", "spatter"}
    images = smooth_images(2)
    for name in PERTURBATIONS:
        frames = perturbation_sequences(images, name, seed=0)
        assert frames.dtype == np.uint8
        assert frames.shape == (2, LENGTHS.get(name, 31), 32, 32, 3)


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_parts_and_fewer_frames_are_parts_of_the_whole(name):
    images = smooth_images(3)
    whole = perturbation_sequences(images, name, frames=6, seed=2)
    parts = [perturbation_sequences(images[a:b], name, frames=6, seed=2, start=a) for a, b in ((0, 1), (1, 3))]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    np.testing.assert_array_equal(perturbation_sequences(images, name, frames=4, seed=2), whole[:, :4])
    assert perturbation_sequences(images[:0], name, frames=6, seed=2).shape == (0, 6, 32, 32, 3)
    drawn = "noise" in name or name in ("snow", "spatter")
    assert np.array_equal(whole, perturbation_sequences(images, name, frames=6, seed=3)) != drawn


@pytest.mark.parametrize(
    ("name", "variance"),
    [
        ("gaussian_noise", 0.02**2),
        ("gaussian_noise_2", 0.04**2),
        ("gaussian_noise_3", 0.06**2),
        ("shot_noise", 128 / 255 / 700),
        ("shot_noise_2", 128 / 255 / 400),
        ("shot_noise_3", 128 / 255 / 200),
    ],
)
def test_noise_is_fresh_in_every_frame_after_the_clean_one(name, variance):
    x = np.full((4, 32, 32, 3), 128, dtype=np.uint8)
    frames = perturbation_sequences(x, name, seed=0).astype(float)
    np.testing.assert_array_equal(frames[:, 0], x)
    change = (frames[:, 1:] - 128) / 255
    assert change.var() == pytest.approx(variance + 1 / 12 / 255**2, rel=0.05)
    one, two = change[:, :-1].ravel(), change[:, 1:].ravel()
    assert abs(np.corrcoef(one, two)[0, 1]) < 5 / np.sqrt(one.size)


def test_brightness_moves_grey_by_its_steps():
    x = np.full((1, 32, 32, 3), 128, dtype=np.uint8)
    levels = perturbation_sequences(x, "brightness", seed=0)[0, :, 0, 0, 0]
    expected = [int(128 + 255 * 0.015 * (i - MIDDLE) + 1e-6) for i in range(31)]
    np.testing.assert_array_equal(levels, expected)


def test_translation_moves_columns_and_leaves_black():
    images = smooth_images(2)
    frames = perturbation_sequences(images, "translate", seed=0)
    np.testing.assert_array_equal(frames[:, 7], images)
    np.testing.assert_array_equal(frames[:, 10, :, 3:], images[:, :, :-3])
    assert not frames[:, 10, :, :3].any()
    np.testing.assert_array_equal(frames[:, 0, :, :-7], images[:, :, 7:])
    assert not frames[:, 0, :, -7:].any()
    assert not perturbation_sequences(images, "translate", frames=45, seed=0)[:, 40:].any()


def test_rotation_and_scale_against_scipy_and_their_middle_frames():
    images = smooth_images(2)
    turned, scaled = (perturbation_sequences(images, name, seed=0) for name in ("rotate", "scale"))
    np.testing.assert_array_equal(turned[:, MIDDLE], images)
    np.testing.assert_array_equal(scaled[:, MIDDLE], images)
    centre = np.array([15.5, 15.5])
    for frames, i in ((turned, 4), (turned, 28), (scaled, 2), (scaled, 29)):
        angle, scale = (np.deg2rad(i - 15), 1) if frames is turned else (0, 0.7 + 0.02 * i)
        # Rows and columns of the old image for those of the new one; the picture turns clockwise.
        matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale
        for c in range(3):
            expected = ndimage.affine_transform(
                images[0, ..., c].astype(float), matrix, offset=centre - matrix @ centre, order=1
            )
            inner = np.abs(frames[0, i, 8:24, 8:24, c] - expected[8:24, 8:24])
            assert inner.max() < 1.6
    assert not scaled[:, 0, :4].any()  # 0.7 of 32 leaves 4.8 black pixels on each side
    assert scaled[:, 0, 6, 16].all()


def test_zoom_is_the_running_mean_of_enlargements():
    images = smooth_images(2)
    frames = perturbation_sequences(images, "zoom_blur", frames=12, seed=0)
    np.testing.assert_array_equal(frames[:, 0], images)
    total = images[0].astype(float)
    for i in range(1, 12):
        zoom = 1 + 0.004 * i
        for c in range(3):
            total[..., c] += ndimage.affine_transform(
                images[0, ..., c].astype(float), np.eye(2) / zoom, offset=15.5 - 15.5 / zoom, order=1, mode="nearest"
            )
    assert np.abs(frames[0, 11] + 0.5 - total / 12).max() < 1.6


def test_tilt_projects_corners_as_a_pinhole_does():
    angle, height, width = 11.25, 32, 40
    matrix = tilt_matrix(height, width, angle)
    focal, a = np.hypot(height, width), np.deg2rad(angle)
    for x, y in ((0, 0), (40, 0), (7, 30)):
        # Turn the point about the vertical axis, then about the horizontal one, step by step.
        u, v, w = x - width / 2, y - height / 2, 1.0
        u, w = np.cos(a) * u - np.sin(a) * w, np.sin(a) * u + np.cos(a) * w
        v, w = np.cos(a) * v - np.sin(a) * w, np.sin(a) * v + np.cos(a) * w
        seen = np.array([focal * u / (w + focal) + width / 2, focal * v / (w + focal) + height / 2])
        got = matrix @ (x, y, 1)
        np.testing.assert_allclose(got[:2] / got[2], seen, rtol=1e-12)
    shrink = focal / (focal + 1)
    np.testing.assert_allclose(tilt_matrix(height, width, 0)[[0, 1], [0, 1]], shrink, rtol=1e-12)


def test_motion_turns_half_a_circle_and_flat_images_stay():
    flat = np.full((2, 32, 32, 3), 90, dtype=np.uint8)
    for name in ("motion_blur", "zoom_blur"):
        frames = perturbation_sequences(flat, name, frames=12, seed=0)
        if name == "zoom_blur":
            np.testing.assert_array_equal(frames, np.broadcast_to(flat[:, None], frames.shape))
        else:
            assert (frames == 90).all()
    # From -180 to 0 degrees: the first and the last frame blur to the left and to the right.
    images = smooth_images(1)
    frames = perturbation_sequences(images, "motion_blur", seed=0)
    mirrored = perturbation_sequences(np.ascontiguousarray(images[:, :, ::-1]), "motion_blur", seed=0)
    assert np.abs(frames[:, 0].astype(int) - mirrored[:, 20, :, ::-1]).max() <= 1


def test_spatter_runs_down_by_the_published_convolution(monkeypatch):
    layers = []
    original = weather.water_mask
    monkeypatch.setattr(weather, "water_mask", lambda layer, s: layers.append(layer) or original(layer, s))
    images = smooth_images(1)
    frames = perturbation_sequences(images, "spatter", frames=3, seed=1)
    assert layers[0].any()
    expected = np.apply_along_axis(np.convolve, 0, layers[0], np.array([0.2, 0.8]), mode="same")
    np.testing.assert_allclose(layers[1], expected, atol=1e-15)
    assert (frames >= images[:, None]).all()  # water only adds


def test_snow_keeps_its_flakes_and_turns_the_wind():
    black = np.zeros((3, 32, 32, 3), dtype=np.uint8)
    frames = perturbation_sequences(black, "snow", seed=0)
    # Winter light on black is 0.15 x 0.5; the flakes' total light hardly changes while they turn.
    assert frames.min() == int(255 * 0.15 * 0.5)
    light = frames.astype(float).mean(axis=(2, 3, 4))
    assert light.std(axis=1).max() < 0.2 * light.mean()
    assert not np.array_equal(frames[:, 0], frames[:, 20])


@pytest.mark.parametrize("name", [n for n in PERTURBATIONS if "noise" not in n])
def test_no_step_is_most_of_the_way(name):
    frames = perturbation_sequences(smooth_images(4), name, frames=16, seed=0)
    change = steps(frames)
    # Snow falls along pixels, so its turning wind goes in jumps; fresh drops change most at first.
    limit = 0.75 if name in ("snow", "spatter") else 0.6
    whole = np.sqrt(((frames[:, -1].astype(float) - frames[:, 0]) ** 2).mean())
    assert change.max() < limit * whole
    assert change.max() > 0


@pytest.mark.parametrize(("side", "channels"), [(8, 1), (32, 1), (8, 3), (40, 3)])
def test_other_sizes_and_one_channel(side, channels):
    images = smooth_images(2, side=side, channels=channels)
    for name in PERTURBATIONS:
        assert perturbation_sequences(images, name, frames=3, seed=0).shape == (2, 3, side, side, channels)
    first = perturbation_sequences(images, "zoom_blur", frames=2, seed=0)[:, 0].astype(int)
    assert np.abs(first - images).max() <= 255 // 8
    if side >= 32:
        np.testing.assert_array_equal(first, images)


def test_sets_on_disk_repeat_resume_and_refuse(tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.corruptions.pieces.PIECE", 2)
    images, labels = smooth_images(5), np.array([3, 1, 4, 1, 5])
    names = ("shot_noise", "translate")

    def generate(folder, **options):
        return generate_perturbed(images, labels, folder, perturbations=names, progress=False, **{"seed": 1} | options)

    manifest = generate(tmp_path / "one")
    assert generate(tmp_path / "two", workers=2) == manifest
    for name in names:
        stored = np.load(tmp_path / "two" / f"{name}.npy")
        np.testing.assert_array_equal(stored, perturbation_sequences(images, name, seed=1))
    assert np.load(tmp_path / "one" / "labels.npy").tolist() == labels.tolist()
    assert manifest["files"]["translate.npy"]["notes"] == {"frames": 16}
    (tmp_path / "one" / "translate.npy").write_bytes(b"short")
    with pytest.warns(UserWarning, match=r"translate\.npy"):
        assert generate(tmp_path / "one") == manifest
    for options in ({"seed": 2}, {"frames": 5}):
        with pytest.raises(ValueError, match=r"manifest\.json"):
            generate(tmp_path / "one", **options)
    with pytest.raises(ValueError, match="perturbations: expected"):
        generate_perturbed(images, labels, tmp_path, seed=0, perturbations=())


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda x: perturbation_sequences(x, "rain", seed=0), "name: expected one of"),
        (lambda x: perturbation_sequences(x, "tilt", frames=1, seed=0), "frames: expected at least 2"),
        (lambda x: perturbation_sequences(x.astype(float), "tilt", seed=0), "images: expected bytes"),
        (lambda x: sequences.frame_count("fog"), "name: expected one of"),
    ],
)
def test_bad_requests_say_what_was_expected(call, match):
    with pytest.raises(ValueError, match=match):
        call(smooth_images(1))
