"""Images and videos in class folders, as ImageNet and its corrupted sets have them."""

import pickle

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from experiments.data import load_data
from experiments.data.corrupted import CorruptedFolders, VideoFolder
from experiments.data.imagenet import (
    ImageFolder,
    centre_view,
    class_indices,
    load_imagenet,
    restrict_to_classes,
)
from experiments.data.integrity import DataError


@pytest.fixture(autouse=True)
def _no_data_of_the_user(monkeypatch):
    for name in ("NFM_DATA", "NFM_IMAGENET"):
        monkeypatch.delenv(name, raising=False)


WNIDS = ("n01", "n02", "n05")
COLORS = {"n01": (200, 30, 30), "n02": (30, 200, 30), "n05": (30, 30, 200)}


def write_images(folder, wnids=WNIDS, count=2, size=(40, 30)):
    for wnid in wnids:
        (folder / wnid).mkdir(parents=True)
        for k in range(count):
            Image.new("RGB", size, COLORS[wnid]).save(folder / wnid / f"{wnid}_{k}.JPEG")
    return folder


def test_image_folders_are_sorted_lazy_and_rgb(tmp_path):
    folder = write_images(tmp_path / "train", reversed(WNIDS))
    Image.new("L", (40, 30), 90).save(folder / "n05/n05_9.JPEG")  # ImageNet has grey images
    (folder / "n01/notes.txt").write_text("no image")
    (folder / ".hidden").mkdir()
    data = ImageFolder(folder)
    assert (data.wnids, len(data), data.labels.tolist()) == (WNIDS, 7, [0, 0, 1, 1, 2, 2, 2])
    for k in range(6):
        array, label = data[k]
        assert (array.dtype, array.shape) == (np.uint8, (30, 40, 3))
        assert np.abs(array.astype(int).mean((0, 1)) - COLORS[WNIDS[label]]).max() < 3
    assert data[-1][0].shape == (30, 40, 3)
    batch, labels = next(iter(DataLoader(data, batch_size=7)))
    assert batch.shape == (7, 30, 40, 3)
    assert labels.tolist() == data.labels.tolist()
    assert len(pickle.loads(pickle.dumps(data))) == 7  # worker processes need that
    assert ImageFolder(folder, transform=lambda image: image.resize((8, 4)))[0][0].shape == (4, 8, 3)
    with pytest.raises(ValueError, match="transform: expected an image or bytes"):
        ImageFolder(folder, transform=lambda image: np.zeros((3, 4, 4)))[0]
    assert ImageFolder(folder, wnids=("n00", *WNIDS)).labels.tolist() == [1, 1, 2, 2, 3, 3, 3]
    with pytest.raises(DataError, match=r"train: expected classes out of the 2 .* such as 'n05'"):
        ImageFolder(folder, wnids=WNIDS[:2])


def test_a_truncated_or_foreign_image_names_the_file(tmp_path):
    folder = write_images(tmp_path / "t", size=(200, 200))
    path = folder / "n01/n01_0.JPEG"
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    data = ImageFolder(folder)
    assert data[0][0].shape == (200, 200, 3)
    for content in (path.read_bytes()[:5000], b"no image", b""):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"n01_0.JPEG: cannot be decoded"):
            data[0]
    path.unlink()
    with pytest.raises(DataError, match=r"n01_0.JPEG: no such file"):
        data[0]


def test_imagenet_counts_its_classes(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"no folder is named.*image-net.org.*NFM_IMAGENET"):
        load_imagenet()
    write_images(tmp_path / "imagenet/train")
    write_images(tmp_path / "imagenet/val", count=1)
    monkeypatch.setenv("NFM_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"train: expected 1000 class folders, got 3. Get ILSVRC"):
        load_data("imagenet")
    data = load_data("imagenet", classes=3)
    assert (len(data.train), len(data.test), data.mean) == (6, 3, (0.485, 0.456, 0.406))
    assert data.test[2][0].shape == (224, 224, 3)
    flat = tmp_path / "imagenet/val"
    for wnid in WNIDS:
        (flat / wnid / f"{wnid}_0.JPEG").rename(flat / f"{wnid}.JPEG")
    with pytest.raises(DataError, match=r"n01: expected files .jpeg, .* got none. Get"):
        load_imagenet(classes=3)
    for wnid in WNIDS:
        (flat / wnid).rmdir()
    with pytest.raises(DataError, match="images must be in them"):
        load_imagenet(classes=3)
    with pytest.raises(DataError, match="train: expected a folder of class folders, but there is none"):
        load_imagenet(tmp_path)


def test_centre_view_keeps_the_middle():
    pixels = np.zeros((50, 80, 3), np.uint8)
    pixels[20:30, 35:45] = 255  # a square in the exact middle
    view = np.array(centre_view(Image.fromarray(pixels), resize=50, crop=20))
    np.testing.assert_array_equal(view, pixels[15:35, 30:50])
    large = np.array(centre_view(Image.fromarray(pixels), resize=100, crop=60)).astype(float)
    np.testing.assert_array_equal(large, large[::-1, ::-1])
    assert large[20:40, 20:40].mean() > 230
    with pytest.raises(ValueError, match="crop: expected 1 to resize"):
        centre_view(Image.fromarray(pixels), resize=10, crop=20)


def test_logits_of_some_classes():
    everything = [f"n{k:02}" for k in range(8)]
    indices = class_indices(("n01", "n04", "n07"), everything)
    assert indices == (1, 4, 7)
    logits = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    short = restrict_to_classes(logits, indices)
    assert torch.equal(short, torch.stack([logits[:, k] for k in indices], dim=1))
    # the same decision as with all other classes made impossible
    masked = torch.full_like(logits, -torch.inf)
    masked[:, list(indices)] = logits[:, list(indices)]
    assert [indices[k] for k in short.argmax(1)] == masked.argmax(1).tolist()
    with pytest.raises(DataError, match="got 1 others, such as 'n99'"):
        class_indices(("n01", "n99"), everything)
    for wrong in ((0, 8), (-1,), (2, 2)):
        with pytest.raises(ValueError, match="indices: expected different classes from 0 to 7"):
            restrict_to_classes(logits, wrong)


def test_corrupted_folders_in_both_arrangements(tmp_path):
    for severity in range(1, 6):
        write_images(tmp_path / "c/fog" / str(severity), WNIDS[1:], count=severity)
        write_images(tmp_path / "c/noise/shot_noise" / str(severity), WNIDS[:1])
    found = CorruptedFolders(tmp_path / "c", wnids=WNIDS)
    assert (found.names, found.severities) == (("fog", "shot_noise"), (1, 2, 3, 4, 5))
    assert found.read("fog", 3).labels.tolist() == [1, 1, 1, 2, 2, 2]
    array, label = found.read("shot_noise", 5)[0]
    assert (array.shape, label) == ((30, 40, 3), 0)
    with pytest.raises(DataError, match="expected one of fog, shot_noise, got 'noise'"):
        found.read("noise", 1)
    with pytest.raises(ValueError, match="severity: expected one of"):
        found.read("fog", 6)
    write_images(tmp_path / "c/weather/fog/1", WNIDS[:1])
    with pytest.raises(DataError, match="a second folder fog"):
        CorruptedFolders(tmp_path / "c")
    with pytest.raises(DataError, match="got no such folders"):
        CorruptedFolders(tmp_path / "c/fog/1")


def test_videos(tmp_path):
    place = tmp_path / "tilt" / "n02"
    place.mkdir(parents=True)
    writer = cv2.VideoWriter(str(place / "a.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 10, (64, 48))
    if not writer.isOpened():
        pytest.skip("this OpenCV writes no mp4")
    levels = range(0, 250, 25)
    for level in levels:
        frame = np.zeros((48, 64, 3), np.uint8)
        frame[..., 2] = level  # OpenCV's order is blue, green, red
        writer.write(frame)
    writer.release()
    video, label = VideoFolder(tmp_path / "tilt", wnids=WNIDS, frames=10)[0]
    assert (video.shape, video.dtype, label) == ((10, 48, 64, 3), np.uint8, 1)
    assert np.abs(video[..., 0].mean((1, 2)) - np.array(levels)).max() < 8  # red, in order
    assert video[..., 1:].max() < 40
    with pytest.raises(DataError, match=r"a.mp4: expected at least 11 frames, got 10"):
        VideoFolder(tmp_path / "tilt", frames=11)[0]
    (place / "a.mp4").write_bytes(b"no video")
    with pytest.raises(DataError, match=r"a.mp4: expected a video, got no frame"):
        VideoFolder(tmp_path / "tilt")[0]
