"""Frost textures: photographs from a folder, or a substitute made from noise.

The published frost corruption adds pieces of photographs that belong to the corruption packages (`frost1.png` to
`frost5.jpg` in hendrycks/robustness and in the packages made from it). They are not part of this project.
"""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from experiments.corruptions.constants import FROST_SCALE, FROST_TEXTURES

#: Sources of the frost pixels. Every manifest names its source.
FROST_KINDS = ("textures", "procedural")
#: Environment variable that names the folder.
VARIABLE = "NFM_FROST"
#: Mean level of red, green and blue of the substitutes, and their spread: rounded values of the photographs.
PROCEDURAL_MEAN = (145, 165, 180)
PROCEDURAL_STD = 32
PROCEDURAL_SHAPE = (100, 140)


def texture_files(folder: str | Path | None = None) -> list[Path]:
    """Paths of the five photographs from which the released generator draws (it never draws its sixth).

    Args:
        folder: folder of the photographs; `None` for $NFM_FROST.

    Raises:
        FileNotFoundError: if no folder is named or a photograph is missing.
    """
    folder = folder or os.environ.get(VARIABLE)
    ways = (
        "Pass frost_textures= (or set $NFM_FROST to) the folder with frost1.png, frost2.png, frost3.png, frost4.jpg, "
        "frost5.jpg of hendrycks/robustness (the package imagecorruptions-imaug contains them in "
        'imagecorruptions/frost); or leave frost out; or choose frost="procedural", our own substitute, which is not '
        "the published corruption and is recorded under that name."
    )
    if not folder:
        raise FileNotFoundError(f"frost needs the texture photographs, which are not part of this project. {ways}")
    found = []
    for number in range(1, FROST_TEXTURES + 1):
        candidates = [Path(folder) / f"frost{number}{suffix}" for suffix in (".png", ".jpg", ".jpeg")]
        existing = [path for path in candidates if path.is_file()]
        if not existing:
            raise FileNotFoundError(f"{folder}: expected a file frost{number}.png or .jpg, but there is none. {ways}")
        found.append(existing[0])
    return found


def texture_digest(folder: str | Path | None = None) -> str:
    """SHA-256 of the five photographs, for manifests."""
    digest = hashlib.sha256()
    for path in texture_files(folder):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def frost_textures(kind: str, folder: str | Path | None = None) -> tuple[np.ndarray, ...]:
    """Five textures at the scale of the images: bytes `(H, W, 3)`, red first.

    Args:
        kind: `"textures"` for the photographs, `"procedural"` for the substitute.
        folder: folder of the photographs; `None` for $NFM_FROST.

    Raises:
        FileNotFoundError: if the photographs are missing.
    """
    if kind not in FROST_KINDS:
        raise ValueError(f"frost: expected one of {FROST_KINDS}, got {kind!r}.")
    if kind == "procedural":
        return tuple(procedural_texture(number) for number in range(FROST_TEXTURES))
    return _read(tuple(texture_files(folder)))


@lru_cache(maxsize=4)
def _read(paths: tuple[Path, ...]) -> tuple[np.ndarray, ...]:
    """The photographs, scaled down with linear interpolation."""
    textures = []
    for path in paths:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        textures.append(cv2.resize(pixels, (0, 0), fx=FROST_SCALE, fy=FROST_SCALE))
    return tuple(textures)


@lru_cache(maxsize=FROST_TEXTURES)
def procedural_texture(number: int) -> np.ndarray:
    """Our own pale blue, frost-like texture, bytes `(100, 140, 3)`: ridges of smooth noise in five octaves.

    A ridge is (1 - |noise|)², a bright vein where smooth noise changes its sign. Each octave has half the length scale
    and 0.6 times the weight of the previous one. It is multiplied by a function of the previous ridges, so that veins
    branch. The number, 0 to 4, seeds the noise.
    """
    g = np.random.Generator(np.random.Philox(key=np.array([0x6672_6F73_74, number], dtype=np.uint64)))
    height, width = PROCEDURAL_SHAPE
    total, carried = np.zeros(PROCEDURAL_SHAPE), np.ones(PROCEDURAL_SHAPE)
    for octave in range(5):
        cells = 2 ** (octave + 1)
        coarse = g.uniform(-1, 1, size=(3 * cells + 4, 4 * cells + 4)).astype(np.float32)
        noise = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.float64)
        ridge = (1 - np.abs(noise).clip(0, 1)) ** 2
        total += 0.6**octave * ridge * carried
        carried = 0.4 + 0.6 * ridge
    total = (total - total.mean()) / total.std()
    # The bright veins are whiter than the ice between them.
    color = np.array(PROCEDURAL_MEAN) + PROCEDURAL_STD * total[..., None] * np.array([1.1, 1.0, 0.9])
    return np.clip(color, 0, 255).astype(np.uint8)
