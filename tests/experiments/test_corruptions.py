"""Corruptions against hand computations, naive twins and other libraries; sets on disk against stops and damage."""

import colorsys
import hashlib
import io
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from experiments.corruptions import EXTRA, NAMES, SEVERITIES, STANDARD, blur, corrupt, digital, weather
from experiments.corruptions.blur import blur_along, disk_kernel, motion_kernel, zoom_operator
from experiments.corruptions.constants import CONSTANTS
from experiments.corruptions.digital import sample
from experiments.corruptions.generate import generate_corrupted
from experiments.corruptions.pixels import clipped_zoom, streams
from experiments.corruptions.store import read_manifest
from experiments.corruptions.textures import frost_textures
from experiments.corruptions.weather import plasma, snow_flakes, water_mask, whiten

#: Keeps the tests free of photographs.
ICE = {"frost": "procedural"}


def smooth_images(n=12, side=32, channels=3, seed=0):
    """Smooth random colors that use most of the range, as photographs do."""
    noise = np.random.default_rng(seed).normal(size=(n, side, side, channels))
    smooth = ndimage.gaussian_filter(noise, (0, 3, 3, 0), mode="reflect")
    smooth = 0.5 + 0.22 * smooth / smooth.std(axis=(1, 2), keepdims=True)
    return (smooth.clip(0.02, 0.98) * 255).astype(np.uint8)


def damaged_files(folder):
    """Names of the files that are missing or whose bytes are not those of the manifest."""
    files = read_manifest(folder)["files"]
    return [
        name
        for name, entry in files.items()
        if not (folder / name).is_file() or hashlib.sha256((folder / name).read_bytes()).hexdigest() != entry["sha256"]
    ]


def flat(level, n=4, side=32, channels=3):
    return np.full((n, side, side, channels), level, dtype=np.uint8)


def difference(a, b):
    return np.asarray(a, dtype=float) - np.asarray(b, dtype=float)


def test_every_name_has_five_constants_and_keeps_kind_and_shape():
    assert len(STANDARD) == 15
    assert len(EXTRA) == 4
    images = smooth_images(2)
    before = images.copy()
    for name in NAMES:
        assert len(CONSTANTS[name]) == 5
        for severity in SEVERITIES:
            out = corrupt(images, name, severity, seed=0, **ICE)
            assert out.dtype == np.uint8
            assert out.shape == images.shape
            assert not np.array_equal(out, images) or name == "spatter", name
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_noise_has_the_mean_and_variance_of_its_law(severity):
    # Grey 128 is far from the clipping; cutting to levels takes half a level and adds a variance of 1/12.
    x, level = flat(128, n=40), 128 / 255
    count = x.size
    laws = {
        "gaussian_noise": CONSTANTS["gaussian_noise"][severity - 1] ** 2,
        "speckle_noise": (CONSTANTS["speckle_noise"][severity - 1] * level) ** 2,
        "shot_noise": level / CONSTANTS["shot_noise"][severity - 1],
    }
    for name, variance in laws.items():
        change = difference(corrupt(x, name, severity, seed=3), x) / 255
        assert abs(change.mean() + 0.5 / 255) < 5 * np.sqrt(variance / count), name
        # Shot noise falls on a grid as coarse as the levels, hence the wider margin.
        assert change.var() == pytest.approx(variance + 1 / 12 / 255**2, rel=0.03), name
    share = CONSTANTS["impulse_noise"][severity - 1]
    hit = corrupt(x, "impulse_noise", severity, seed=3)
    for value in (0, 255):
        assert abs((hit == value).mean() - share / 2) < 5 * np.sqrt(share / 2 / count)
    assert set(np.unique(hit)) == {0, 128, 255}


def test_kernels_sum_to_one_and_have_the_shape_by_hand():
    for constants in CONSTANTS["defocus_blur"]:
        assert disk_kernel(*constants).sum() == pytest.approx(1, abs=1e-6)
    # Radius 1 covers five pixels; a softening of 0.2 pixels moves next to nothing.
    plus = np.pad(np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]]) / 5, 2)
    np.testing.assert_allclose(disk_kernel(1, 0.2), plus, atol=1e-5)
    kernel, anchor = motion_kernel(6, 1.5, 0)
    weights = np.exp(-(np.arange(13) ** 2) / (2 * 1.5**2))
    np.testing.assert_allclose(kernel[0], (weights / weights.sum())[: kernel.shape[1]], atol=2e-6)
    assert anchor == (0, 0)
    kernel, anchor = motion_kernel(6, 1.5, -90)
    assert kernel.shape[1] == 1
    assert anchor == (0, kernel.shape[0] - 1)
    np.testing.assert_allclose(zoom_operator(32, 32, CONSTANTS["zoom_blur"][4]).sum(axis=1), 1)


@pytest.mark.parametrize("level", [0, 1, 77, 200, 255])
def test_flat_images_stay_flat_under_blur_pixels_and_displacement(level):
    x = flat(level)
    kept = ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "gaussian_blur", "pixelate", "contrast")
    for severity in SEVERITIES:
        for name in (*kept, "elastic_transform"):
            np.testing.assert_array_equal(corrupt(x, name, severity, seed=1), x, err_msg=name)
        # JPEG rounds the mean of a block to steps of at most 2.5 levels.
        assert np.abs(difference(corrupt(x, "jpeg_compression", severity, seed=1), x)).max() <= 1.25


#: What ImageMagick 6.9.11 (Q16), the program behind the published generator, makes of `_pattern`.
MAGICK = {
    (6, 2, 30.0): [
        [99, 132, 121, 67, 145, 127, 72], [116, 186, 165, 148, 110, 90, 124], [105, 98, 157, 174, 137, 135, 89],
        [141, 162, 128, 123, 148, 154, 112], [153, 134, 140, 171, 80, 84, 132], [130, 109, 133, 87, 79, 102, 69],
    ],
    (10, 4, -70.0): [
        [71, 116, 101, 87, 127, 92, 34], [78, 125, 112, 101, 143, 65, 54], [105, 110, 102, 142, 142, 69, 62],
        [119, 132, 85, 177, 98, 118, 70], [93, 160, 116, 176, 111, 87, 91], [127, 116, 164, 152, 104, 85, 92],
    ],
}  # fmt: skip


@pytest.mark.parametrize(("radius", "sigma", "angle"), MAGICK)
def test_motion_blur_has_the_bytes_of_the_program_behind_the_published_sets(radius, sigma, angle):
    i, j = np.mgrid[0:6, 0:7]
    pattern = ((37 * i * i + 91 * j + 13 * i * j) % 256).astype(np.uint8)
    out = blur_along(pattern[None, ..., None], radius, sigma, [angle])
    np.testing.assert_array_equal(out[0, ..., 0], MAGICK[radius, sigma, angle])


def test_snow_by_hand_from_its_own_draws():
    """Flakes as bytes, blurred, truncated to bytes, and added twice to the whitened image."""
    images, (mean, std, zoom, threshold, radius, sigma, share) = smooth_images(2), CONSTANTS["snow"][0]
    assert zoom == 1  # so that the flakes are the draws themselves
    out = corrupt(images, "snow", 1, seed=4)
    for image, got, g in zip(images, out, streams("snow", 1, range(2), seed=4), strict=True):
        flakes = mean + std * g.standard_normal((32, 32))
        flakes = np.floor(255 * np.clip(np.where(flakes < threshold, 0, flakes), 0, 1)).astype(np.uint8)
        layer = blur_along(flakes[None, ..., None], radius, sigma, [g.uniform(-135, -45)])[0] / 255
        x = image / 255
        luma = (x @ [0.299, 0.587, 0.114])[..., None]
        x = share * x + (1 - share) * np.maximum(x, 1.5 * luma + 0.5)
        total = 255 * np.clip(x + layer + np.rot90(layer, 2), 0, 1)
        whole = np.abs(total - np.rint(total)) < 1e-3
        assert ((got == np.floor(total)) | whole).all()


def test_blurs_against_naive_twins():
    images = smooth_images(3)
    angles = [-30.0, 10.0, -100.0]
    out = blur_along(images, 8, 2, angles)
    for image, got, angle in zip(images, out, angles, strict=True):
        weights = np.exp(-(np.arange(17) ** 2) / 8)
        total = np.zeros(image.shape)
        for i, weight in enumerate(weights / weights.sum()):
            right = int(np.ceil(i * np.cos(np.deg2rad(angle)) - 0.5))
            down = int(np.ceil(i * np.sin(np.deg2rad(angle)) - 0.5))
            rows, columns = np.clip(np.arange(32) + down, 0, 31), np.clip(np.arange(32) + right, 0, 31)
            total += weight * image[np.ix_(rows, columns)]
        exact = np.abs(total - np.rint(total)) < 1e-3  # a whole level up to rounding
        assert ((got == np.floor(total)) | exact).all()
        assert np.abs(got - total).max() < 1
    # Zoom by the library that the published generator uses.
    factors = CONSTANTS["zoom_blur"][3]
    total = images[0] / 255
    for factor in factors:
        kept = int(np.ceil(32 / factor))
        top = (32 - kept) // 2
        large = ndimage.zoom(images[0, top : top + kept, top : top + kept] / 255, (factor, factor, 1), order=1)
        trim = (len(large) - 32) // 2
        total = total + large[trim : trim + 32, trim : trim + 32]
    expected = total / (len(factors) + 1) * 255
    assert np.abs(corrupt(images, "zoom_blur", 4, seed=0)[0] - expected).max() < 1.01
    layer = np.random.default_rng(0).normal(size=(1, 32, 32))
    enlarged = ndimage.zoom(layer[0, 6:25, 6:25], 1.75, order=1)
    np.testing.assert_allclose(clipped_zoom(layer, 1.75)[0], enlarged[:32, :32], atol=1e-12)


def test_glass_takes_every_pixel_from_its_neighborhood_and_leaves_two_lines():
    # Sigma 0.05 does not smooth, so the result is a pure gather. Rows and columns are readable off the colors.
    row, column = np.meshgrid(np.arange(32), np.arange(32), indexing="ij")
    x = np.stack([row, column, 0 * row], axis=-1).astype(np.uint8)[None].repeat(20, axis=0)
    out = corrupt(x, "glass_blur", 1, seed=0)
    change = difference(out, x)[..., :2]
    assert set(np.unique(change)) == {-1.0, 0.0}
    assert not change[:, :2].any()
    assert not change[:, :, :2].any()
    assert change[:, 2:, 2:].mean() == pytest.approx(-0.5, abs=5 * 0.5 / np.sqrt(change[:, 2:, 2:].size))


def test_brightness_and_saturation_against_colorsys():
    images = np.random.default_rng(0).integers(0, 256, size=(1, 32, 32, 3), dtype=np.uint8)
    images[0, 0, 0], images[0, 0, 1], images[0, 0, 2] = 0, 255, 90  # black, white, grey
    for severity in SEVERITIES:
        shift = CONSTANTS["brightness"][severity - 1]
        factor, plus = CONSTANTS["saturate"][severity - 1]
        bright, vivid = (corrupt(images, name, severity, seed=0) for name in ("brightness", "saturate"))
        for i, pixel in enumerate(images.reshape(-1, 3)):
            h, s, v = colorsys.rgb_to_hsv(*(pixel / 255))
            expected = np.array(colorsys.hsv_to_rgb(h, s, min(v + shift, 1))) * 255
            assert np.abs(bright.reshape(-1, 3)[i] + 0.5 - expected).max() < 0.51
            expected = np.array(colorsys.hsv_to_rgb(h, min(s * factor + plus, 1), v)) * 255
            assert np.abs(vivid.reshape(-1, 3)[i] + 0.5 - expected).max() < 0.51


def test_contrast_pixelate_and_jpeg_by_hand():
    images = smooth_images(3)
    for severity in SEVERITIES:
        factor = CONSTANTS["contrast"][severity - 1]
        mean = images.mean(axis=(1, 2), keepdims=True)
        expected = mean + factor * (images - mean)
        assert np.abs(corrupt(images, "contrast", severity, seed=0) + 0.5 - expected).max() < 0.51
        buffer = io.BytesIO()
        Image.fromarray(images[1]).save(buffer, "JPEG", quality=CONSTANTS["jpeg_compression"][severity - 1])
        np.testing.assert_array_equal(
            corrupt(images, "jpeg_compression", severity, seed=0)[1], np.asarray(Image.open(buffer))
        )
    # 24 of 32: a box of 4/3 pixels averages those whose middle it contains: old 0 | 1, 2 | 3 | ...; enlarging takes
    # the box that a pixel's middle falls into: 0 | 1, 1 | 2 | ...
    line = np.zeros((1, 32, 32, 3), dtype=np.uint8)
    line[:, :, 1] = 200
    out = corrupt(line, "pixelate", 4, seed=0)
    np.testing.assert_array_equal(out[0, 5, :, 0], [0, 100, 100, *[0] * 29])


def test_elastic_samples_like_scipy_and_moves_no_further_than_it_may():
    images = smooth_images(2)
    rows, columns = np.random.default_rng(0).uniform(-3, 35, size=(2, 2, 32, 32))
    out = sample(images, rows, columns)
    for k in range(2):
        for c in range(3):
            expected = ndimage.map_coordinates(
                images[k, ..., c].astype(float), [rows[k], columns[k]], order=1, mode="reflect"
            )
            np.testing.assert_allclose(out[k, ..., c], expected, atol=1e-9)
    # Severity 1 is an affine map: a ramp stays a ramp away from the mirrored border.
    ramp = np.broadcast_to((np.arange(32) * 8)[None, None, :, None], (6, 32, 32, 3)).astype(np.uint8)
    inner = corrupt(ramp, "elastic_transform", 1, seed=0)[:, 10:22, 10:22, 0].astype(float)
    assert np.abs(np.diff(inner, 2, axis=2)).max() <= 2.0
    assert np.abs(difference(inner, ramp[:, 10:22, 10:22, 0])).max() > 3


@pytest.mark.parametrize(("height", "width"), [(40, 100), (100, 40), (64, 64)])
def test_elastic_turns_about_the_middle_of_the_image(height, width, monkeypatch):
    """The points lie around the middle, which moves no further than they do."""
    seen, real = [], digital.cv2.getAffineTransform
    monkeypatch.setattr(digital.cv2, "getAffineTransform", lambda a, b: (seen.append(a.copy()), real(a, b))[1])
    side = min(height, width)
    for slope in ((0, 2), (2, 0)):
        heights = slope[0] * np.arange(height)[:, None] + slope[1] * np.arange(width)
        images = np.broadcast_to(heights[None, :, :, None], (30, height, width, 1)).astype(np.uint8)
        out = corrupt(images, "elastic_transform", 1, seed=0)
        moved = difference(out, images)[:, height // 2, width // 2, 0]
        assert np.abs(moved).max() <= 2 * 0.08 * side + 2
        assert np.abs(moved).max() > 0.05 * side
    for points in seen:
        assert points[[0, 2]].mean(0).tolist() == [width // 2, height // 2]
        assert (points >= 0).all()
        assert (points < (width, height)).all()


def test_fog_is_scaled_plasma_and_snow_is_sparse():
    draws = streams("fog", 1, range(5), seed=0)
    heights = plasma(32, 3, draws)
    assert heights.min(axis=(1, 2)).tolist() == [0] * 5
    assert heights.max(axis=(1, 2)).tolist() == [1] * 5
    # A larger decay leaves less noise on the finest level: smoother heights.
    rough, calm = (
        np.abs(np.diff(plasma(32, decay, streams("fog", 1, range(200), seed=0)), axis=2)).mean() for decay in (1.75, 3)
    )
    assert calm < 0.7 * rough
    black = corrupt(flat(0), "fog", 3, seed=0)
    assert not black.any()  # scaled by max / (max + amount), which is 0
    white = difference(corrupt(flat(255), "fog", 3, seed=0), 0)
    amount = CONSTANTS["fog"][2][0]
    assert white.min() == pytest.approx(255 / (1 + amount), abs=1)
    assert white.max() == 255
    flakes = snow_flakes((32, 32), (0.1, 0.2, 1, 0.6), streams("snow", 1, range(50), seed=0))
    # Share above the threshold: 1 - Phi(2.5) = 0.00621.
    assert (flakes > 0).mean() == pytest.approx(0.00621, abs=5 * np.sqrt(0.00621 / flakes.size))
    assert flakes[flakes > 0].min() >= 153
    # Winter light on black: (1 - share) / 2 of white, plus flakes that darken nothing.
    snowy = corrupt(flat(0), "snow", 1, seed=0)
    assert snowy.min() == int(255 * 0.05 * 0.5)
    assert not water_mask(np.zeros((32, 32)), 0.5).any()


def test_plasma_against_a_loop_over_midpoints():
    side, decay = 8, 2.5
    noise = iter(streams("fog", 2, range(1), seed=4)[0].uniform(-1, 1, size=side * side - 1))
    heights, step, amplitude = np.zeros((side, side)), side, 100.0
    while step >= 2:
        half = step // 2
        corners, middles = range(0, side, step), range(half, side, step)
        for rows, columns, reach in (
            (middles, middles, [(half, half), (half, -half), (-half, half), (-half, -half)]),
            (corners, middles, [(0, half), (0, -half), (half, 0), (-half, 0)]),
            (middles, corners, [(0, half), (0, -half), (half, 0), (-half, 0)]),
        ):
            for i in rows:
                for j in columns:
                    mean = np.mean([heights[(i + a) % side, (j + b) % side] for a, b in reach])
                    heights[i, j] = mean + amplitude**2 * next(noise)
        step, amplitude = half, amplitude / decay
    heights = (heights - heights.min()) / np.ptp(heights)
    np.testing.assert_allclose(plasma(side, decay, streams("fog", 2, range(1), seed=4))[0], heights, atol=1e-12)


def test_draws_and_strengths_reach_the_functions(monkeypatch):
    angles, fields = [], []
    along = blur.blur_along
    for module in (blur, weather):
        monkeypatch.setattr(module, "blur_along", lambda x, r, s, a: angles.extend(a) or along(x, r, s, a))
    images = smooth_images(300)
    corrupt(images, "motion_blur", 1, seed=0)
    corrupt(images, "snow", 1, seed=0)
    for part, low in ((angles[:300], -45), (angles[300:], -135)):
        assert low <= min(part) < low + 3
        assert low + 87 < max(part) <= low + 90
    monkeypatch.setattr(digital, "sample", lambda x, y, c: fields.append((y, c)) or sample(x, y, c))
    corrupt(images, "elastic_transform", 5, seed=0)
    # Uniform noise (variance 1/3) through a Gaussian of sigma 0.03 x 32 in two directions, cut at radius 3, times 3.2.
    weights = np.exp(-(np.arange(-3, 4) ** 2) / (2 * 0.96**2))
    spread = 3.2 * np.sqrt(1 / 3) * (weights**2).sum() / weights.sum() ** 2
    for place, grid in zip(fields[0], (np.arange(32)[:, None], np.arange(32)), strict=True):
        assert (place - grid)[:, 4:-4, 4:-4].std() == pytest.approx(spread, rel=0.03)
    # 0.7 of the pixel and 0.3 of the larger of the pixel and 1.5 luma + 0.5.
    color = np.array([0.1, 0.4, 0.2])
    light = 1.5 * (0.299 * 0.1 + 0.587 * 0.4 + 0.114 * 0.2) + 0.5
    np.testing.assert_allclose(whiten(color, 0.7), 0.7 * color + 0.3 * light)


def test_frost_names_the_way_out_and_mixes_a_piece_of_a_texture(tmp_path, monkeypatch):
    monkeypatch.delenv("NFM_FROST", raising=False)
    x = smooth_images(4)
    with pytest.raises(FileNotFoundError, match=r"NFM_FROST.*procedural"):
        corrupt(x, "frost", 1, seed=0)
    for number, suffix in enumerate(("png", "png", "png", "jpg"), start=1):
        Image.new("RGB", (400, 300), (40 * number, 10, 200)).save(tmp_path / f"frost{number}.{suffix}", quality=95)
    with pytest.raises(FileNotFoundError, match="frost5"):
        corrupt(x, "frost", 1, seed=0, frost_textures=tmp_path)
    Image.new("RGB", (400, 300), (200, 10, 200)).save(tmp_path / "frost5.jpg", quality=95)
    assert [t.shape for t in frost_textures("textures", tmp_path)] == [(60, 80, 3)] * 5
    monkeypatch.setenv("NFM_FROST", str(tmp_path))
    out = corrupt(flat(100, n=60), "frost", 3, seed=0)
    # 0.9 x 100 + 0.4 x (40 k, 10, 200); JPEG may move a level.
    assert sorted({int(v) for v in out[:, 0, 0, 0]} - {169, 170}) == [106, 122, 138, 154]
    assert set(np.unique(out[..., 1])) <= {93, 94, 95}
    small = tmp_path / "small"
    small.mkdir()
    for number in range(1, 6):
        Image.new("RGB", (100, 100)).save(small / f"frost{number}.png")
    with pytest.raises(ValueError, match="larger than the images"):
        corrupt(x, "frost", 1, seed=0, frost_textures=small)
    textures = frost_textures("procedural")
    assert len({t.tobytes() for t in textures}) == 5
    assert not np.array_equal(corrupt(x, "frost", 1, seed=0, **ICE), corrupt(x, "frost", 1, seed=0))


def test_damage_grows_with_severity_where_the_constants_say_so():
    images = smooth_images(30)
    # Not listed, as their constants trade one effect for another: glass (reach or smoothness), frost (light or ice),
    # elastic (affine or local), spatter (water or mud), saturate (pale or vivid). For them: never negligible.
    grows = set(NAMES) - {"glass_blur", "frost", "elastic_transform", "spatter", "saturate"}
    for name in NAMES:
        errors = [(difference(corrupt(images, name, s, seed=0, **ICE), images) ** 2).mean() for s in SEVERITIES]
        assert min(errors) > 0.05, (name, errors)
        if name == "motion_blur":
            del errors[3]  # severities 3 and 4 share sigma, and the longer radius reaches nothing that counts
        if name in grows:
            assert all(b > a for a, b in pairwise(errors)), (name, errors)


@pytest.mark.parametrize("name", NAMES)
def test_parts_give_the_bytes_of_the_whole_and_seeds_differ(name):
    images = smooth_images(7)
    whole = corrupt(images, name, 3, seed=5, **ICE)
    parts = [corrupt(images[a:b], name, 3, seed=5, start=a, **ICE) for a, b in ((0, 1), (1, 5), (5, 7))]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    fixed = {"defocus_blur", "zoom_blur", "gaussian_blur", "brightness", "contrast", "saturate", "pixelate"}
    same = np.array_equal(whole, corrupt(images, name, 3, seed=6, **ICE))
    assert same == (name in fixed | {"jpeg_compression"})
    assert corrupt(images[:0], name, 3, seed=5, **ICE).shape == (0, 32, 32, 3)


@pytest.mark.parametrize("shape", [(1, 1, 3), (2, 2, 3), (8, 8, 1), (28, 28, 1), (33, 97, 1), (40, 64, 3)])
def test_long_tiny_and_constant_images_are_corrupted_one_by_one(shape):
    images = np.random.default_rng(0).integers(0, 256, (2, *shape), dtype=np.uint8)
    images[1] = 0
    before = images.copy()
    for name in NAMES:
        for severity in (1, 5):
            out = corrupt(images, name, severity, seed=0, **ICE)
            assert out.shape == images.shape
            np.testing.assert_array_equal(out[1:], corrupt(images[1:], name, severity, seed=0, start=1, **ICE))
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize(("side", "channels"), [(32, 1), (8, 1), (8, 3), (20, 3), (48, 3)])
def test_other_sizes_and_one_channel(side, channels):
    images = smooth_images(6, side=side, channels=channels)
    for name in NAMES:
        out = corrupt(images, name, 4, seed=0, **ICE)
        assert out.shape == images.shape
        assert out.dtype == np.uint8
    # Flat images see the enlargement and the averaging as nothing at all.
    x = flat(90, side=side, channels=channels)
    np.testing.assert_array_equal(corrupt(x, "gaussian_blur", 5, seed=0), x)
    bright = corrupt(x, "brightness", 5, seed=0)
    assert set(np.unique(bright)) == {int(90 + 0.3 * 255)}
    factor = -(-32 // side)
    noisy = difference(corrupt(flat(128, 60, side, channels), "gaussian_noise", 5, seed=0), 128)
    assert noisy.std() == pytest.approx(25.5 / factor, rel=0.05)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda x: corrupt(x, "rain", 1, seed=0), "name: expected one of"),
        (lambda x: corrupt(x, "fog", 6, seed=0), "severity: expected one of"),
        (lambda x: corrupt(x.astype(float), "fog", 1, seed=0), "images: expected bytes"),
        (lambda x: corrupt(x.transpose(0, 3, 1, 2), "fog", 1, seed=0), r"permute\(0, 2, 3, 1\)"),
        (lambda x: corrupt(x, "frost", 1, seed=0, frost="ice"), "frost: expected one of"),
    ],
)
def test_bad_requests_say_what_was_expected(call, match):
    with pytest.raises(ValueError, match=match):
        call(smooth_images(1))


SMALL = ("fog", "gaussian_noise", "frost")


def generate(folder, *, count=20, **options):
    arguments = {"seed": 1, "corruptions": SMALL, "severities": (1, 4), "progress": False, **ICE} | options
    return generate_corrupted(smooth_images(count), np.arange(count) % 10, folder, **arguments)


def test_a_set_has_the_published_layout_and_two_workers_write_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.corruptions.pieces.PIECE", 7)
    manifest = generate(tmp_path / "one")
    images = smooth_images(20)
    stored = np.load(tmp_path / "one" / "fog.npy")
    np.testing.assert_array_equal(stored, np.concatenate([corrupt(images, "fog", s, seed=1) for s in (1, 4)]))
    labels = np.load(tmp_path / "one" / "labels.npy")
    assert labels.dtype == np.uint8
    assert labels.tolist() == [*(np.arange(20) % 10)] * 2
    assert manifest["files"]["frost.npy"]["notes"] == {"frost": "procedural"}
    assert manifest["settings"]["seed"] == 1
    assert generate(tmp_path / "two", workers=2) == manifest
    assert damaged_files(tmp_path / "two") == []
    assert {p.name for p in (tmp_path / "two").iterdir()} == {
        "manifest.json",
        "labels.npy",
        *(f"{n}.npy" for n in SMALL),
    }


def test_what_is_missing_or_damaged_is_made_again_and_what_is_whole_is_kept(tmp_path, monkeypatch):
    manifest = generate(tmp_path)
    kept = (tmp_path / "frost.npy").stat().st_mtime_ns
    (tmp_path / "fog.npy").unlink()
    content = (tmp_path / "gaussian_noise.npy").read_bytes()
    (tmp_path / "gaussian_noise.npy").write_bytes(content[:1000])
    assert damaged_files(tmp_path) == ["fog.npy", "gaussian_noise.npy"]
    with pytest.warns(UserWarning, match=r"gaussian_noise\.npy.*made again"):
        assert generate(tmp_path) == manifest
    (tmp_path / "fog.npy").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.warns(UserWarning, match=r"fog\.npy"):
        generate(tmp_path)
    assert damaged_files(tmp_path) == []
    assert (tmp_path / "frost.npy").stat().st_mtime_ns == kept
    # A stop in the middle of a file leaves no part of it, and more kinds can be added later.
    with monkeypatch.context() as patch:
        patch.setattr("experiments.corruptions.store.fill", None)
        with pytest.raises(TypeError):
            generate(tmp_path, corruptions=("snow",))
    assert not list(tmp_path.glob(".*"))
    assert not (tmp_path / "snow.npy").exists()
    assert set(generate(tmp_path, corruptions=("snow",))["files"]) == {*manifest["files"], "snow.npy"}


def test_foreign_files_and_other_settings_are_refused(tmp_path):
    generate(tmp_path)
    for options, match in (
        ({"seed": 2}, "seed: expected 2, got 1"),
        ({"count": 19}, "source"),
        ({"severities": (1,)}, "sev"),
    ):
        with pytest.raises(ValueError, match=rf"manifest\.json.*{match}"):
            generate(tmp_path, **options)
    (tmp_path / "snow.npy").write_bytes(b"someone else's")
    with pytest.raises(FileExistsError, match=r"snow\.npy"):
        generate(tmp_path, corruptions=("snow",))
    for number in range(1, 6):
        Image.new("RGB", (400, 300)).save(tmp_path / f"frost{number}.png")
    with pytest.raises(ValueError, match=r"frost\.npy: made with .*procedural"):
        generate(tmp_path, frost="textures", frost_textures=tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match=r"manifest\.json: expected the manifest"):
        generate(tmp_path)
    for options in ({"corruptions": ("rain",)}, {"severities": (0,)}, {"severities": (1, 1)}, {"workers": 0}):
        with pytest.raises(ValueError, match="expected"):
            generate(tmp_path / "new", **options)
    with pytest.raises(ValueError, match="labels: expected"):
        generate_corrupted(smooth_images(3), np.zeros(2, int), tmp_path / "new", seed=0, **ICE)
