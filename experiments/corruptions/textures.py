"""Frost textures: photographs from a folder, or a clearly named stand-in made from noise.

The published frost corruption adds pieces of photographs that come with the corruption packages (`frost1.png` to
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

#: Where the frost pixels come from; the kind is part of every manifest.
FROST_KINDS = ("textures", "procedural")
#: Environment variable that names the folder.
VARIABLE = "NFM_FROST"
#: Mean level and spread of red, green, blue of the stand-ins: near those of the photographs, rounded.
PROCEDURAL_MEAN = (145, 165, 180)
PROCEDURAL_STD = 32
PROCEDURAL_SHAPE = (100, 140)


def texture_files(folder: str | Path | None = None) -> list[Path]:
    """The five files that the released generator draws from (it never draws its sixth).

    Args:
        folder: where they lie; by default the folder named by $NFM_FROST.

    Returns:
        The paths, frost1 to frost5.

    Raises:
        FileNotFoundError: if no folder is named or a texture is missing, with the ways out.
    """
    folder = folder or os.environ.get(VARIABLE)
    ways = (
        "Ways out: pass frost_textures= (or set $NFM_FROST to) the folder with frost1.png, frost2.png, frost3.png, "
        "frost4.jpg, frost5.jpg of hendrycks/robustness (the package imagecorruptions-imaug contains them in "
        'imagecorruptions/frost); leave frost out; or choose frost="procedural", a stand-in of our own that is not '
        "the published corruption and is recorded under that name."
    )
    if not folder:
        raise FileNotFoundError(f"frost needs the texture photographs, which are not part of this project. {ways}")
    found = []
    for number in range(1, FROST_TEXTURES + 1):
        candidates = [Path(folder) / f"frost{number}{suffix}" for suffix in (".png", ".jpg", ".jpeg")]
        existing = [path for path in candidates if path.is_file()]
        if not existing:
            raise FileNotFoundError(f"{folder}: no file frost{number}.png or .jpg. {ways}")
        found.append(existing[0])
    return found


def texture_digest(folder: str | Path | None = None) -> str:
    """SHA-256 over the five texture files, for manifests."""
    digest = hashlib.sha256()
    for path in texture_files(folder):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def frost_textures(kind: str, folder: str | Path | None = None) -> tuple[np.ndarray, ...]:
    """Textures at the scale of the images.

    Args:
        kind: `"textures"` for the photographs, `"procedural"` for the stand-in.
        folder: of the photographs; by default $NFM_FROST.

    Returns:
        Five arrays `(H, W, 3)`, bytes, red first.

    Raises:
        FileNotFoundError: see `texture_files`.
        ValueError: for another kind.
    """
    if kind not in FROST_KINDS:
        raise ValueError(f"frost: expected one of {FROST_KINDS}, got {kind!r}.")
    if kind == "procedural":
        return tuple(procedural_texture(number) for number in range(FROST_TEXTURES))
    return _read(tuple(texture_files(folder)))


@lru_cache(maxsize=4)
def _read(paths: tuple[Path, ...]) -> tuple[np.ndarray, ...]:
    """Photographs, scaled down with linear interpolation."""
    textures = []
    for path in paths:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        textures.append(cv2.resize(pixels, (0, 0), fx=FROST_SCALE, fy=FROST_SCALE))
    return tuple(textures)


@lru_cache(maxsize=FROST_TEXTURES)
def procedural_texture(number: int) -> np.ndarray:
    """A frost-like texture: ridges of smooth noise in five octaves, pale blue. Our own choice, not the published one.

    A ridge is 1 - |noise|, squared: bright veins where smooth noise changes its sign. Each octave has half the size
    and 0.6 times the weight of the one before and is modulated by the ridges so far, so that veins branch.

    Args:
        number: 0 to 4; seeds the noise.

    Returns:
        `(100, 140, 3)`, bytes.
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
    # Bright veins are whiter than the ice between them.
    colour = np.array(PROCEDURAL_MEAN) + PROCEDURAL_STD * total[..., None] * np.array([1.1, 1.0, 0.9])
    return np.clip(colour, 0, 255).astype(np.uint8)
