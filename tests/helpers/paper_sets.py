"""Tiny stand-ins for the data of the papers' size: ImageNet, its test sets, CIFAR-10; solid colors, known by heart.

A network that answers with the strongest channel (`Color`) has class 0 for red, 1 for green, 2 for blue.
"""

import io
import pickle

import cv2
import numpy as np
import torch
from PIL import Image
from torch import nn

from experiments.metrics.corruption import CATEGORIES, CORRUPTIONS

WNIDS = ("n01", "n02", "n05")
COLORS = ((200, 30, 30), (30, 200, 30), (30, 30, 200))
SIDE, PER_CLASS = 64, 2
ARCHIVES = {"gaussian_noise": "noise", "translate": "digital"}  # others lie in the folder itself


class Color(nn.Module):
    """The strongest of three channels, normalized."""

    def forward(self, x):
        return x.mean((2, 3))


class Projection(nn.Module):
    """Sees every pixel, so that noise matters."""

    def __init__(self):
        super().__init__()
        self.register_buffer("w", torch.randn(3 * SIDE * SIDE, 3, generator=torch.Generator().manual_seed(3)))

    def forward(self, x):
        return x.flatten(1) @ self.w


def jpeg(color, size):
    file = io.BytesIO()
    Image.new("RGB", size, COLORS[color]).save(file, "JPEG")
    return file.getvalue()


def write_class_folders(folder, colors, size):
    """`colors[wnid]` lists the colors of its images."""
    for wnid, shown in colors.items():
        (folder / wnid).mkdir(parents=True)
        for k, color in enumerate(shown):
            (folder / wnid / f"{k}.JPEG").write_bytes(jpeg(color, size))


def write_imagenet(folder):
    """Four training and two validation images of each class; the second one of each class shows the next color."""
    write_class_folders(folder / "train", {w: [k] * 4 for k, w in enumerate(WNIDS)}, (90, 70))
    write_class_folders(folder / "val", {w: [k, (k + 1) % 3] for k, w in enumerate(WNIDS)}, (70, 90))


def write_imagenet_c(folder):
    """At severity s the first s images of six show their class; all of them in the noises."""
    for category, names in CATEGORIES.items():
        for name in names:
            for severity in range(1, 6):
                right = 6 if category == "noise" else severity
                colors = {
                    w: [(k + (PER_CLASS * k + j >= right)) % 3 for j in range(PER_CLASS)] for k, w in enumerate(WNIDS)
                }
                place = folder / category / name if category == "noise" else folder / name
                write_class_folders(place / str(severity), colors, (SIDE, SIDE))


def write_imagenet_r(folder):
    """Two of the classes; the last image shows the color of the class that is not among them."""
    write_class_folders(folder, {"n01": [0, 2, 0], "n05": [2, 2, 1]}, (80, 100))


def write_video(path, colors):
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10, (SIDE, SIDE))
    if not writer.isOpened():
        return False
    for color in colors:
        writer.write(np.full((SIDE, SIDE, 3), COLORS[color][::-1], np.uint8))  # blue, green, red
    writer.release()
    return True


def write_imagenet_p(folder, names):
    """One sequence of 30 frames that is green for frames 10 and 11, and one of 33 that does not change."""
    changing = folder / "changing.mp4"
    if not write_video(changing, [0] * 10 + [1] * 2 + [0] * 18):
        return False
    steady = folder / "steady.mp4"
    write_video(steady, [2] * 33)
    for name in names:
        place = folder / ARCHIVES.get(name, "") / name
        for wnid, video in (("n02", changing), ("n05", steady)):
            (place / wnid).mkdir(parents=True)
            (place / wnid / "a.mp4").write_bytes(video.read_bytes())
    for video in (changing, steady):
        video.unlink()
    return True


def write_cifar10(folder):
    """Four images in each file."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"):
        content = {"data": rng.integers(0, 256, (4, 3072), dtype=np.uint8), "labels": [0, 3, 5, 9]}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))


def write_cifar10_c(folder):
    """Four images at each severity."""
    folder.mkdir()
    rng = np.random.default_rng(1)
    np.save(folder / "labels.npy", np.tile(np.array([0, 3, 5, 9]), 5))
    for name in CORRUPTIONS:
        np.save(folder / f"{name}.npy", rng.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8))
