"""Fashion-MNIST: the four files of the repository, and what comes when one is damaged."""

import gzip
import shutil

import numpy as np
import pytest
import torch

from experiments.data import load_data
from experiments.data.fashion import FOLDER, MD5, MEAN, STD, load_fashion, read_idx
from experiments.data.integrity import DataError, file_hash


def test_all_images_of_all_classes():
    data = load_data("fashion_mnist")
    assert (len(data.train), len(data.test), data.classes) == (60_000, 10_000, 10)
    assert data.train.images.shape[1:] == data.test.images.shape[1:] == (1, 28, 28)
    assert torch.bincount(data.train.labels).tolist() == [6000] * 10
    assert torch.bincount(data.test.labels).tolist() == [1000] * 10
    pixels = data.train.images.double() / 255
    assert (round(float(pixels.mean()), 4), round(float(pixels.std()), 4)) == (*MEAN, *STD)
    assert data.train.labels[:5].tolist() == [9, 0, 0, 3, 0]  # an ankle boot, two T-shirts, a dress, a T-shirt


def test_the_files_are_intact_and_licensed():
    assert {path.name for path in FOLDER.glob("*.gz")} == set(MD5)
    assert all(file_hash(FOLDER / name) == md5 for name, md5 in MD5.items())
    assert "Copyright © 2017 Zalando SE" in (FOLDER / "LICENSE").read_text(encoding="utf-8")


def test_idx_by_hand(tmp_path):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 5, 6, 7, 8, 9, 255])))
    assert (read_idx(path) == np.array([[5, 6, 7], [8, 9, 255]])).all()


BAD = {
    "no gzip": (b"hello", "expected a gzip file"),
    "cut off": (gzip.compress(bytes(100))[:-9], "expected a gzip file"),
    "empty": (gzip.compress(b""), "expected an IDX file of bytes"),
    "other type": (gzip.compress(bytes([0, 0, 13, 1, 0, 0, 0, 1, 0])), "expected an IDX file of bytes"),
    "no axes": (gzip.compress(bytes([0, 0, 8, 0, 1])), "expected"),
    "short": (gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 9, 1, 2])), r"expected \(9,\) elements, got 2 bytes"),
    "half a header": (gzip.compress(bytes([0, 0, 8, 2, 0, 0, 0, 9])), "expected"),
}


@pytest.mark.parametrize("name", BAD)
def test_damaged_content_is_an_error_with_file_and_remedy(name, tmp_path):
    content, match = BAD[name]
    path = tmp_path / "b.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"b.gz: {match}.*Restore it"):
        read_idx(path)


def test_a_changed_or_missing_file_is_refused(tmp_path):
    for name in MD5:
        shutil.copy(FOLDER / name, tmp_path)
    labels = tmp_path / "t10k-labels-idx1-ubyte.gz"
    labels.write_bytes(gzip.compress(gzip.decompress(labels.read_bytes()), mtime=1))
    with pytest.raises(DataError, match=r"t10k-labels.*with md5 0d30e22e.*Restore it"):
        load_fashion(tmp_path)
    assert len(load_fashion(tmp_path, check=False).test) == 10_000
    labels.unlink()
    with pytest.raises(DataError, match=r"t10k-labels.*no such file.*Restore it"):
        load_fashion(tmp_path, check=False)
