"""Published test sets as they come: with further files, or with a part missing; and points on another device."""

import numpy as np
import paper_sets
import pytest
import torch
from torch import nn

from experiments.corruptions import STANDARD
from experiments.corruptions.sequences import CIFAR_P
from experiments.data.corrupted import CorruptedFolders
from experiments.data.images import ImageData, ImageSet
from experiments.data.integrity import DataError
from experiments.data.toy_sets import ToyData
from experiments.evaluation import Subject, run_suite
from experiments.metrics.flips import is_noise

#: What the published folder of CIFAR-10-P holds besides the ten perturbations of the reference evaluation.
FURTHER = (
    "gaussian_noise_2", "gaussian_noise_3", "shot_noise_2", "shot_noise_3", "speckle_noise", "speckle_noise_2",
    "speckle_noise_3", "gaussian_blur", "shear", "snow",
)  # fmt: skip


class Bright(nn.Module):
    """Class 1 for an image that is brighter than grey, else class 0."""

    def forward(self, x):
        value = x.mean((1, 2, 3))
        return torch.stack([-value, value], 1)


def subject(model=None):
    empty = ImageSet(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.long))
    return Subject((model or Bright()).eval(), ImageData("cifar10", empty, empty, 2, (0.5,) * 3, (0.25,) * 3), "paper")


def frames(bright):
    """Sequences `(n, frames, 8, 8, 3)` that are bright where it says so."""
    return np.broadcast_to(np.where(bright, 200, 50).astype(np.uint8)[..., None, None, None], (*bright.shape, 8, 8, 3))


@pytest.fixture
def sequences(tmp_path, monkeypatch):
    """A folder of sequences of which every perturbation changes in its own way, with further files."""
    folder = tmp_path / "CIFAR-10-P"
    folder.mkdir()
    rng = np.random.default_rng(0)
    made = {name: rng.random((5, 11)) < 0.2 + 0.03 * k for k, name in enumerate(CIFAR_P)}
    for name, bright in made.items():
        np.save(folder / f"{name}.npy", frames(bright))
    for name in FURTHER:
        np.save(folder / f"{name}.npy", frames(rng.random((5, 11)) < 0.5))
    (folder / "README.txt").write_text("read me")
    monkeypatch.setenv("NFM_DATA", str(tmp_path))
    return folder, made


def naive(bright, noise):
    """Mean over sequences of the share of frames unlike the previous one, for noises unlike the first one."""
    shares = []
    for row in bright.tolist():
        pairs = [(row[0] if noise else row[i - 1], row[i]) for i in range(1, len(row))]
        shares.append(sum(a != b for a, b in pairs) / len(pairs))
    return sum(shares) / len(shares)


def test_only_the_ten_perturbations_of_the_evaluation_count(sequences):
    _, made = sequences
    found, settings = run_suite("flips", subject())
    expected = {name: naive(bright, "noise" in name) for name, bright in made.items()}
    assert {k.partition("/")[2] for k in found} == {*CIFAR_P, "mean", "mean_without_noise"}
    for name, value in expected.items():
        assert found[f"flip_probability/{name}"] == pytest.approx(value)
    assert found["flip_probability/mean"] == pytest.approx(sum(expected.values()) / 10)
    quiet = [value for name, value in expected.items() if name not in ("gaussian_noise", "shot_noise")]
    assert found["flip_probability/mean_without_noise"] == pytest.approx(sum(quiet) / 8)
    assert settings["not_measured"] == sorted(FURTHER)


def test_a_missing_perturbation_is_named_before_the_measurement(sequences):
    folder, _ = sequences
    (folder / "spatter.npy").unlink()

    class Refusing(nn.Module):
        def forward(self, x):
            raise AssertionError("measured")

    with pytest.raises(DataError, match=r"expected the ten perturbations of CIFAR-10-P; missing: spatter\."):
        run_suite("flips", subject(Refusing()))


def test_every_kind_of_noise_is_held_against_its_first_frame():
    assert all(is_noise(name) for name in ("gaussian_noise", "gaussian_noise_2", "speckle_noise_3"))
    assert not any(is_noise(name) for name in ("snow", "spatter", "gaussian_blur", "motion_blur"))


def test_corrupted_arrays_with_further_files_and_without_one(tmp_path, monkeypatch):
    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    monkeypatch.setenv("NFM_DATA", str(tmp_path))
    np.save(folder / "labels.npy", np.tile(np.array([0, 1, 0, 1], np.uint8), 5))
    right, wrong = (frames(np.tile(np.array(b), 5)) for b in ([False, True, False, True], [True, False, True, False]))
    for name in STANDARD:
        np.save(folder / f"{name}.npy", right)
    for name in ("spatter", "saturate", "gaussian_blur", "my_own"):
        np.save(folder / f"{name}.npy", wrong)
    np.save(folder / "speckle_noise.npy", wrong)
    found, _ = run_suite("corrupted", subject())
    assert found["corrupted/mean"] == 1
    assert found["corrupted/speckle_noise/1"] == 0  # measured, but in no mean
    assert not any(name in key for key in found for name in ("spatter", "saturate", "gaussian_blur", "my_own"))
    (folder / "fog.npy").unlink()
    with pytest.raises(DataError, match=r"15 corruptions of the benchmark; missing: fog\."):
        run_suite("corrupted", subject())


def test_corrupted_folders_beside_others(tmp_path):
    """Folders of other corruptions, with fewer severities or twice, do not matter to those that are asked for."""
    paper_sets.write_class_folders(tmp_path / "extra/speckle_noise/1", {"n01": [0]}, (8, 8))
    paper_sets.write_class_folders(tmp_path / "more/speckle_noise/1", {"n01": [0]}, (8, 8))
    for severity in range(1, 6):
        paper_sets.write_class_folders(tmp_path / f"fog/{severity}", {"n01": [0]}, (8, 8))
    found = CorruptedFolders(tmp_path, only=STANDARD)
    assert (found.names, found.severities) == (("fog",), (1, 2, 3, 4, 5))
    with pytest.raises(DataError, match="a second folder speckle_noise"):
        CorruptedFolders(tmp_path)


def test_points_are_measured_where_the_network_is():
    class Elsewhere(nn.Module):
        """A network on another device, which refuses points on the CPU."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1, device="meta"))

        def forward(self, x):
            assert x.device.type == "meta"
            assert x.dtype == torch.float32
            return torch.eye(2)[torch.tensor([0, 1, 1])]

    points = torch.zeros(3, 2, dtype=torch.float64)
    data = ToyData(points, torch.tensor([0, 1, 0]), points, torch.tensor([0, 1, 0]))
    found, _ = run_suite("clean", Subject(Elsewhere().eval(), data, "toy"))
    assert found["clean"] == pytest.approx(2 / 3)
