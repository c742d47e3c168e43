"""Data sets in memory: official files, corrupted sets, digits and toys, and what comes when files are damaged."""

import dataclasses
import hashlib
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.path import Path as Polygon

from experiments.corruptions.generate import generate_corrupted
from experiments.data import NAMES, cifar, load_data
from experiments.data import toy_sets as toy
from experiments.data.corrupted import CorruptedSet, PerturbedSet
from experiments.data.digits import load_digits
from experiments.data.integrity import DataError, check_file, file_hash

VARIABLES = ("NFM_CIFAR10", "NFM_CIFAR100", "NFM_DATA", "NFM_IMAGENET")
REAL = os.environ.get("NFM_CIFAR10")


@pytest.fixture(autouse=True)
def _no_data_of_the_user(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


# integrity ------------------------------------------------------------------------------------------------------------


def test_checksums_are_the_published_ones(tmp_path):
    path = tmp_path / "abc"
    path.write_bytes(b"abc")  # test vectors of RFC 1321 and FIPS 180-2
    assert file_hash(path) == "900150983cd24fb0d6963f7d28e17f72"
    assert file_hash(path, "sha256") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    path.write_bytes(bytes(range(256)) * 5000)  # longer than one piece
    assert file_hash(path) == hashlib.md5(path.read_bytes()).hexdigest()
    assert check_file(path, md5=file_hash(path).upper(), sha256=file_hash(path, "sha256"), size=1_280_000) == path


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"size": 4}, "a list is cut off: expected 4 bytes, got 3"),
        ({"size": 2}, "of 2 bytes, got 3: another version"),
        ({"md5": "0" * 32}, "with md5 0+, got 9001.*damaged"),
        ({"sha256": "0" * 64}, "with sha256 0+, got ba78"),
        ({"md5": "0" * 32, "others": {"900150983cd24fb0d6963f7d28e17f72": "last year's list"}}, "got last year's list"),
    ],
)
def test_errors_name_file_and_remedy(tmp_path, options, match):
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    with pytest.raises(DataError, match=match) as caught:
        check_file(path, what="a list", remedy="Ask again.", **options)
    assert str(path) in str(caught.value)
    assert "Ask again." in str(caught.value)
    with pytest.raises(DataError, match="no such file"):
        check_file(tmp_path / "x")
    with pytest.raises(DataError, match="a folder is there"):
        check_file(tmp_path)


# CIFAR ----------------------------------------------------------------------------------------------------------------


def write_cifar(folder, classes=10, rows=4, protocol=2):
    """A toy of the official files; returns labels and bytes of all rows in the order of the files."""
    folder.mkdir(parents=True)
    rng, kind = np.random.default_rng(classes), cifar.release(classes)
    labels, data = [], []
    for name in kind.files:
        data.append(rng.integers(0, 256, (rows, 3072), dtype=np.uint8))
        labels.append(rng.integers(0, classes, rows).tolist())
        content = {"data": data[-1], kind.label: labels[-1], "batch_label": "toy", "coarse_labels": [0] * rows}
        (folder / name).write_bytes(pickle.dumps(content, protocol=protocol))
    return np.concatenate(labels), np.concatenate(data)


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_cifar_is_read_plane_by_plane(tmp_path, monkeypatch, classes, protocol):
    labels, data = write_cifar(tmp_path / cifar.release(classes).folder, classes, protocol=protocol)
    monkeypatch.setenv("NFM_DATA", str(tmp_path))
    found = load_data(f"cifar{classes}", check=False)
    assert (found.name, found.classes, len(found.test)) == (f"cifar{classes}", classes, 4)
    images = torch.cat([found.train.images, found.test.images])
    assert torch.cat([found.train.labels, found.test.labels]).tolist() == labels.tolist()
    for i, channel, row, column in ((0, 0, 0, 1), (3, 1, 2, 3), (7, 2, 31, 30)):  # the official description, by hand
        assert images[i, channel, row, column] == data[i, 1024 * channel + 32 * row + column]
    images[0] = 0  # the memory is writable and not that of the file


def test_cifar_folders_and_their_order(tmp_path, monkeypatch):
    for name in ("given", "variable", "shelf/cifar-10-batches-py"):
        write_cifar(tmp_path / name)
    assert cifar.find_cifar() is None
    with pytest.raises(DataError, match=r"no folder is named.*cifar-10-python.*c58f30108.*kriz/cifar.*NFM_CIFAR10"):
        cifar.load_cifar()
    monkeypatch.setenv("NFM_DATA", str(tmp_path))  # without CIFAR
    assert cifar.find_cifar() is None
    monkeypatch.setenv("NFM_DATA", str(tmp_path / "shelf"))
    assert cifar.find_cifar() == tmp_path / "shelf/cifar-10-batches-py"
    monkeypatch.setenv("NFM_CIFAR10", str(tmp_path / "variable"))
    assert cifar.find_cifar() == tmp_path / "variable"
    assert cifar.find_cifar(10, tmp_path / "given") == tmp_path / "given"
    assert cifar.find_cifar(10, tmp_path / "shelf") == tmp_path / "shelf/cifar-10-batches-py"
    (tmp_path / "given/data_batch_4").unlink()
    with pytest.raises(DataError, match=r"missing: data_batch_4\. Download"):
        cifar.find_cifar(10, tmp_path / "given")
    with pytest.raises(DataError, match="missing: train, test"):
        cifar.find_cifar(100, tmp_path)


def test_cifar_files_are_checked_before_they_are_read(tmp_path, monkeypatch):
    write_cifar(tmp_path / "c")
    with pytest.raises(DataError, match="data_batch_1 of CIFAR-10 is cut off: expected 31035704 bytes"):
        cifar.load_cifar(10, tmp_path / "c")
    kind = dataclasses.replace(cifar.release(10), size={})
    monkeypatch.setitem(cifar.RELEASES, 10, kind)
    with pytest.raises(DataError, match=r"data_batch_1: expected .* md5 c99cafc1.*, got"):
        cifar.load_cifar(10, tmp_path / "c")
    md5 = {name: file_hash(tmp_path / "c" / name) for name in kind.files}
    monkeypatch.setitem(cifar.RELEASES, 10, dataclasses.replace(kind, md5=md5))
    assert len(cifar.load_cifar(10, tmp_path / "c").train) == 20
    (tmp_path / "c/test_batch").write_bytes((tmp_path / "c/data_batch_3").read_bytes())
    with pytest.raises(DataError, match="expected test_batch of CIFAR-10, got data_batch_3 of CIFAR-10"):
        cifar.load_cifar(10, tmp_path / "c")


GOOD = {"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1]}


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"labels": [0]}, "no 'data'"),
        ({"data": GOOD["data"]}, "no 'labels'"),
        ([1, 2], "cannot be read"),
        ({**GOOD, "data": [1]}, "got list"),
        ({**GOOD, "data": np.zeros((2, 3071), np.uint8)}, r"\(n, 3072\), got uint8 \(2, 3071\)"),
        ({**GOOD, "data": np.zeros((2, 3072), np.float32)}, "got float32"),
        ({**GOOD, "labels": [0]}, "one integer of 'labels' for each of 2"),
        ({**GOOD, "labels": [0.0, 1.0]}, "got float64"),
        ({**GOOD, "labels": [0, 10]}, "from 0 to 9, got 0 to 10"),
        ({**GOOD, "labels": [-1, 0]}, "got -1 to 0"),
    ],
)
def test_cifar_of_wrong_content_is_refused(tmp_path, content, match):
    path = tmp_path / "data_batch_1"
    path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(DataError, match=match) as caught:
        cifar.read_batch(path, check=False)
    assert str(path) in str(caught.value)


class Touch:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, call, *arguments):
        self.parts = call, arguments

    def __reduce__(self):
        return self.parts


@pytest.mark.parametrize("kind", ["stdlib", "numpy", "builtin", "truncated", "protocol 4"])
def test_a_malicious_or_damaged_pickle_runs_nothing(tmp_path, kind):
    from numpy.testing import runstring  # a function of NumPy that runs a text as code

    mark = tmp_path / "mark"
    code = f"open({str(mark)!r}, 'w').close()"
    objects = {
        "stdlib": Touch(os.mkdir, str(mark)),
        "numpy": Touch(runstring, code, {}),
        "builtin": Touch(exec, code),
        "truncated": GOOD,
        "protocol 4": Touch(Path.mkdir, mark),
    }
    content = pickle.dumps({**GOOD, "x": objects[kind]}, protocol=4 if kind == "protocol 4" else 2)
    if kind == "truncated":
        content = content[:-1000]
    else:
        pickle.loads(content)  # the attack works
        assert mark.exists()
        mark.rmdir() if mark.is_dir() else mark.unlink()
    path = tmp_path / "data_batch_1"
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot be read" if kind == "truncated" else "expected arrays, got"):
        cifar.read_batch(path, check=False)
    assert not mark.exists()


def test_normalisations_are_those_of_the_protocol(tmp_path):
    write_cifar(tmp_path / "c")
    for name, (mean, std) in cifar.NORMALISATION.items():
        found = cifar.load_cifar(10, tmp_path / "c", normalisation=name, check=False)
        assert (found.mean, found.std) == (mean, std)
        pixels = found.train.images.numpy()[:2] / 255  # naive twin
        expected = np.stack([(pixels[:, c] - mean[c]) / std[c] for c in range(3)], axis=1)
        np.testing.assert_allclose(found.normalize(found.train.images[:2]), expected, rtol=1e-5, atol=1e-5)
    assert [round(v, 3) for v in cifar.NORMALISATION["nfm_head_cifar10"][1]] == [0.247, 0.244, 0.262]
    with pytest.raises(ValueError, match=r"normalisation: expected one of nfm_preprint, .* got 'none'"):
        cifar.load_cifar(10, tmp_path / "c", normalisation="none")
    with pytest.raises(ValueError, match="classes: expected 10 or 100, got 20"):
        cifar.load_cifar(20)


@pytest.mark.skipif(not REAL, reason="NFM_CIFAR10 names no folder with the real set")
def test_the_real_set_has_the_published_statistics():
    data = cifar.load_cifar(10, REAL, normalisation="nfm_head_cifar10")
    assert torch.bincount(data.train.labels).tolist() == [5000] * 10
    assert torch.bincount(data.test.labels).tolist() == [1000] * 10
    for channel in range(3):
        pixels = data.train.images[:, channel].double() / 255
        assert float(pixels.mean()) == pytest.approx(data.mean[channel], abs=3e-4)
        assert float(pixels.std()) == pytest.approx(data.std[channel], abs=3e-4)


# corrupted and perturbed arrays ---------------------------------------------------------------------------------------


def write_corrupted(folder, names=("fog", "gaussian_noise"), n=3):
    folder.mkdir()
    rng = np.random.default_rng(0)
    arrays = {name: rng.integers(0, 256, (5 * n, 4, 6, 3), dtype=np.uint8) for name in names}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    np.save(folder / "labels.npy", np.tile(np.arange(n), 5).astype(np.uint8))
    return arrays


def write_manifest(folder, kind="digests"):
    files = {path.name: file_hash(path, "sha256") for path in folder.glob("*.npy")}
    if kind == "records":
        files = {name: {"sha256": sha, "bytes": (folder / name).stat().st_size} for name, sha in files.items()}
    (folder / "manifest.json").write_text(json.dumps({"files": files}))


@pytest.mark.parametrize("manifest", ["", "digests", "records"])
def test_severities_are_blocks_of_rows(tmp_path, manifest):
    arrays = write_corrupted(tmp_path / "c")
    if manifest:
        write_manifest(tmp_path / "c", manifest)
    found = CorruptedSet(tmp_path / "c")
    assert (found.names, found.severities, len(found)) == (("fog", "gaussian_noise"), (1, 2, 3, 4, 5), 3)
    for name in found.names:
        together = torch.cat([found.read(name, severity).images for severity in found.severities])
        np.testing.assert_array_equal(together.permute(0, 2, 3, 1), arrays[name])
    part = found.read("fog", 4)
    assert part.labels.tolist() == [0, 1, 2]
    assert part.images[1, 2, 3, 5] == arrays["fog"][10, 3, 5, 2]  # by hand: rows 9, 10, 11
    with pytest.raises(ValueError, match=r"severity: expected one of .* got 0"):
        found.read("fog", 0)
    with pytest.raises(DataError, match="expected one of fog, gaussian_noise, got 'labels'"):
        found.read("labels", 1)


def test_a_generated_set_of_some_severities_is_read_as_it_was_made(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)
    options = {"corruptions": ["brightness"], "seed": 0, "progress": False}
    generate_corrupted(images, np.arange(10), tmp_path / "all", **options)
    generate_corrupted(images, np.arange(10), tmp_path / "some", severities=(4, 2), **options)
    everything, some = CorruptedSet(tmp_path / "all"), CorruptedSet(tmp_path / "some")
    assert (some.severities, len(some), len(everything)) == ((4, 2), 10, 10)  # 20 rows, also a multiple of 5
    for severity in some.severities:
        assert torch.equal(some.read("brightness", severity).images, everything.read("brightness", severity).images)
    assert (
        everything.read("brightness", 5).images.float().mean() > everything.read("brightness", 1).images.float().mean()
    )
    assert some.read("brightness", 2).labels.tolist() == list(range(10))
    with pytest.raises(ValueError, match=r"severity: expected one of .* got 1"):
        some.read("brightness", 1)


def test_corrupted_sets_that_are_damaged(tmp_path):
    arrays = write_corrupted(tmp_path / "c")
    write_manifest(tmp_path / "c")
    path = tmp_path / "c/fog.npy"
    np.save(path, 255 - arrays["fog"])
    with pytest.raises(DataError, match=r"fog.npy: expected the file that the manifest lists with sha256"):
        CorruptedSet(tmp_path / "c").read("fog", 1)
    CorruptedSet(tmp_path / "c", check=False).read("fog", 1)
    np.save(tmp_path / "c/snow.npy", arrays["fog"])
    with pytest.raises(DataError, match=r"snow.npy: expected only files that manifest.json lists"):
        CorruptedSet(tmp_path / "c").read("snow", 1)
    path.unlink()
    with pytest.raises(DataError, match=r"lists fog.npy, but there is no such file"):
        CorruptedSet(tmp_path / "c")
    (tmp_path / "c/manifest.json").write_text("{}")
    with pytest.raises(DataError, match=r'manifest.json: expected JSON with "files"'):
        CorruptedSet(tmp_path / "c")
    (tmp_path / "c/manifest.json").unlink()
    for wrong, match in (
        (arrays["fog"][:-1], "expected 15 images, one for each label, got 14"),
        (arrays["fog"].astype(np.float32), r"expected bytes \(n, H, W, C\), got float32"),
        (arrays["fog"][..., 0], "got uint8"),
        (np.array([{}], dtype=object), r"fog.npy: cannot be read as an array"),  # a pickle
    ):
        np.save(path, wrong, allow_pickle=True)
        with pytest.raises(DataError, match=match):
            CorruptedSet(tmp_path / "c").read("fog", 1)
    np.save(path, arrays["fog"])
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"fog.npy: cannot be read as an array, it may be incomplete"):
        CorruptedSet(tmp_path / "c").read("fog", 1)
    np.save(tmp_path / "c/labels.npy", np.zeros(14, np.int64))
    with pytest.raises(DataError, match=r"labels.npy: .* a multiple of 5, got 14"):
        CorruptedSet(tmp_path / "c")
    (tmp_path / "c/labels.npy").unlink()
    with pytest.raises(DataError, match=r"labels.npy: expected .* no such file"):
        CorruptedSet(tmp_path / "c")
    with pytest.raises(DataError, match=r"expected arrays <name>.npy, got none"):
        CorruptedSet(tmp_path)


def test_perturbed_sequences(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (5, 7, 4, 6, 3), dtype=np.uint8)
    np.save(tmp_path / "tilt.npy", frames)
    np.save(tmp_path / "flat.npy", frames[0])
    found = PerturbedSet(tmp_path)
    assert found.names == ("flat", "tilt")
    np.testing.assert_array_equal(found.read("tilt", 1, 3).permute(0, 1, 3, 4, 2), frames[1:3])
    batches = [found.read("tilt", k, k + 2) for k in (0, 2, 4)]
    assert [len(b) for b in batches] == [2, 2, 1]
    assert torch.equal(torch.cat(batches), found.read("tilt"))
    with pytest.raises(DataError, match=r"expected bytes \(n, frames, H, W, C\), got uint8 \(7, 4, 6, 3\)"):
        found.read("flat")


# digits and toys ------------------------------------------------------------------------------------------------------


def test_digits_as_bytes_are_the_same_digits():
    data, other = load_data("digits"), load_digits(10)
    assert torch.equal(data.train.labels, other.y)
    assert torch.equal(data.test.labels, other.y_test)
    assert data.train.images.unique().tolist() == [round(255 * v / 16) for v in range(17)]
    # bytes are rounded, so the standardized pixels agree to half a step
    seen = data.normalize(data.test.images).double()
    assert float((seen - other.x_test).abs().max()) < 0.6 / 255 / data.std[0]
    train = data.normalize(data.train.images)
    assert float(train.mean()) == pytest.approx(0, abs=1e-5)
    assert float(train.std()) == pytest.approx(1, abs=1e-3)


def test_rings_have_the_moments_of_their_definition():
    parts = [toy.nfm_rings(seed) for seed in range(20)]
    assert {tuple(len(getattr(p, k)) for k in ("x", "y", "x_test", "y_test")) for p in parts} == {(300, 300, 200, 200)}
    assert (parts[0].x.dtype, parts[0].y.dtype, parts[0].classes) == (torch.float32, torch.int64, 2)
    assert torch.equal(parts[3].x, load_data("toy_rings", seed=3).x)
    assert not torch.equal(parts[3].x, parts[4].x)
    x = torch.cat([torch.cat([p.x, p.x_test]) for p in parts]).double()
    y = torch.cat([torch.cat([p.y, p.y_test]) for p in parts])
    assert torch.bincount(y).tolist() == [5000, 5000]
    squared = (x**2).sum(1)  # mean r² + 2σ²; variance of it 4r²σ² + 4σ⁴
    for label, radius in ((0, 1.0), (1, 0.05)):
        stderr = (4 * radius**2 * 0.09 + 4 * 0.09**2) ** 0.5 / 5000**0.5
        assert abs(float(squared[y == label].mean()) - radius**2 - 2 * 0.09) < 5 * stderr


def test_the_signed_distance_of_the_u_has_two_witnesses():
    points = np.random.default_rng(1).uniform(-2, 2, (400, 2))
    found = toy.signed_distance(points)
    corners = np.array(toy.U_SHAPE)
    np.testing.assert_array_equal(found > 0, Polygon(corners).contains_points(points))
    for k, p in enumerate(points):  # naive twin: the nearest point of each edge
        best = np.inf
        for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            t = np.clip((p - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
            best = min(best, float(np.linalg.norm(p - a - t * (b - a))))
        assert abs(found[k]) == pytest.approx(best, abs=1e-5)
    np.testing.assert_allclose(toy.signed_distance(np.array([(0.0, -0.7), (0.0, 0.5)])), [0.3, -0.4], atol=1e-6)


def test_the_band_has_random_labels_and_everything_else_those_of_the_u():
    parts = [toy.noisymix_band(seed, scale=1.0, noise=0.0) for seed in range(20)]
    x = torch.cat([torch.cat([p.x, p.x_test]) for p in parts]).double().numpy()
    y = torch.cat([torch.cat([p.y, p.y_test]) for p in parts]).numpy()
    distance = toy.signed_distance(x)
    outside = np.abs(distance) > toy.BAND + 1e-6
    np.testing.assert_array_equal(y[outside], distance[outside] > 0)
    coins = y[~outside]
    assert len(coins) > 300
    assert abs(coins.mean() - 0.5) < 5 * 0.5 / len(coins) ** 0.5
    area = 2 * 2 - 0.8 * 1.4  # of the U, by hand, in a square of area 16
    assert abs((distance > 0).mean() - area / 16) < 5 * (area / 16 * (1 - area / 16) / len(x)) ** 0.5
    # the same seed with noise: the same labels, points moved by 0.5 * 0.2
    noisy = [load_data("toy_band", seed=seed) for seed in range(20)]
    moved = torch.cat([a.x - 0.5 * b.x for a, b in zip(noisy, parts, strict=True)])
    assert all(torch.equal(a.y, b.y) and len(a.y) == len(a.y_test) == 250 for a, b in zip(noisy, parts, strict=True))
    assert abs(float(moved.std()) - 0.1) < 5 * 0.1 / (2 * moved.numel()) ** 0.5


def test_names():
    with pytest.raises(ValueError, match=r"name: expected one of digits, fashion_mnist, .* got 'mnist'"):
        load_data("mnist")
    for name in NAMES:
        if not name.startswith(("cifar", "imagenet", "series")):
            assert load_data(name) is not None
