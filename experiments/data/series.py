"""Labeled time series that are part of the package aeon, of equal or of different lengths.

The sets are from the UCR and UEA archives: motions recorded by a watch (BasicMotions), a hand that draws or points
(GunPoint), speakers of two vowels (JapaneseVowels, sequences of different lengths), and gestures with a remote control
(PickupGestureWiimoteZ, of different lengths as well). None is a physiological recording in the narrow sense: no package
that we know ships labeled ones.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch

from .integrity import DataError
from .toy_sets import ToyData

#: Names of the sets in the package.
SETS = {
    "basic_motions": "BasicMotions", "gun_point": "GunPoint", "japanese_vowels": "JapaneseVowels",
    "wiimote": "PickupGestureWiimoteZ",
}  # fmt: skip
#: If a set has longer sequences, means over so few neighboring times are taken that none is longer.
LONGEST = 100


def read_ts(path: Path) -> tuple[list[np.ndarray], list[str]]:
    """The sequences `(C, T)` of a file of the format `.ts`, and their labels.

    Each line of the data has the channels and the label, separated by colons; the values have commas between them.

    Raises:
        DataError: if there are no data in the file, or they cannot be read.
    """
    _, mark, data = path.read_text(encoding="utf-8").partition("@data")
    lines = [line for line in data.splitlines() if line.strip()]
    try:
        rows = [line.strip().split(":") for line in lines]
        found = [np.array([np.array(part.split(","), dtype=np.float64) for part in row[:-1]]) for row in rows]
    except ValueError as error:
        raise DataError(
            f"{path}: expected channels of equal length in each line, got another file ({error})."
        ) from None
    if not mark or not found:
        raise DataError(f"{path}: expected lines of data after @data, got none.")
    return found, [row[-1].strip() for row in rows]


def shortened(sequence: np.ndarray, step: int) -> np.ndarray:
    """The means of a sequence `(C, T)` over `step` neighboring times each, the last ones over those that are left."""
    starts = np.arange(0, sequence.shape[1], step)
    return np.add.reduceat(sequence, starts, axis=1) / np.diff([*starts, sequence.shape[1]])


def _padded(sequences: list[np.ndarray], length: int, mean: np.ndarray, std: np.ndarray) -> torch.Tensor:
    """Standardized sequences with zeros behind their end and a last channel that is 1 inside: `(n, C + 1, T)`."""
    found = np.zeros((len(sequences), len(mean) + 1, length), np.float32)
    for row, sequence in zip(found, sequences, strict=True):
        row[:-1, : sequence.shape[1]] = (sequence - mean) / std
        row[-1, : sequence.shape[1]] = 1
    return torch.from_numpy(found)


def load_series(name: str) -> ToyData:
    """A set of time series with its published split, each channel standardized by the training part.

    Args:
        name: key of `SETS`.

    Returns:
        Sequences `(n, C + 1, T)`. The last channel is 1 inside of a sequence and 0 behind its end.

    Raises:
        DataError: if aeon is not installed, or a file is damaged.
    """
    package = importlib.util.find_spec("aeon")
    if package is None or not package.submodule_search_locations:
        raise DataError(
            "time series: expected the package aeon, which ships them; install it by `pip install --no-deps aeon`, "
            "since only its files are read."
        )
    folder = Path(package.submodule_search_locations[0]) / "datasets" / "data" / SETS[name]
    parts = {part: read_ts(folder / f"{SETS[name]}_{part}.ts") for part in ("TRAIN", "TEST")}
    longest = max(one.shape[1] for found, _ in parts.values() for one in found)
    step = -(-longest // LONGEST)
    sequences = {part: [shortened(one, step) for one in found] for part, (found, _) in parts.items()}
    together = np.concatenate(sequences["TRAIN"], axis=1)
    mean, std = together.mean(1, keepdims=True), together.std(1, keepdims=True)
    length = -(-longest // step)
    names = sorted(set(parts["TRAIN"][1]))
    (x, y), (x_test, y_test) = (
        (_padded(sequences[part], length, mean, std), torch.tensor([names.index(label) for label in labels]))
        for part, (_, labels) in parts.items()
    )
    return ToyData(x, y, x_test, y_test, len(names))
