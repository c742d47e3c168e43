"""Fashion-MNIST in full, from the files in this repository, with the same classes and sizes as MNIST.

The images are from Xiao, Rasul and Vollgraf, "Fashion-MNIST" (2017). Source and license are named in
`fashion_mnist/README.md`.
"""

from __future__ import annotations

import gzip
import math
import struct
from pathlib import Path

import numpy as np
import torch

from .images import ImageData, ImageSet
from .integrity import DataError, check_file

FOLDER = Path(__file__).with_name("fashion_mnist")
#: Checksums of the compressed files.
MD5 = {
    "train-images-idx3-ubyte.gz": "cf8536b0aa1a6ac5fa3f23001093305c",
    "train-labels-idx1-ubyte.gz": "10bea18fdb374794d4bb42e356e600c9",
    "t10k-images-idx3-ubyte.gz": "f78720b4224f21cce2f2ccf2d7a94c9a",
    "t10k-labels-idx1-ubyte.gz": "0d30e22e447f3c33dab9ed536400ac01",
}
#: Mean and standard deviation of all training pixels, for pixels in [0, 1].
MEAN, STD = (0.2860,), (0.3530,)
CLASSES = 10
_REMEDY = f"Restore it from the repository (`git checkout {FOLDER.name}` in {FOLDER.parent})."
_BYTES = 0x08  # the type of the elements in an IDX file


def read_idx(path: Path | str) -> np.ndarray:
    """The array of bytes in a gzip-compressed IDX file, the format of MNIST.

    The header is big-endian: two zero bytes, the type of the elements, the number of axes, and the length of each axis.

    Raises:
        DataError: if the file cannot be unpacked, or is not an array of bytes.
    """
    try:
        content = gzip.decompress(Path(path).read_bytes())
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path}: expected a gzip file, but it cannot be unpacked ({error}). {_REMEDY}") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != _BYTES:
        raise DataError(
            f"{path}: expected an IDX file of bytes, got a file that begins with {content[:4]!r}. {_REMEDY}"
        )
    start = 4 + 4 * content[3]
    shape = struct.unpack(f">{content[3]}I", content[4:start]) if len(content) >= start else ()
    if not shape or len(content) != start + math.prod(shape):
        raise DataError(f"{path}: expected {shape} elements, got {len(content) - start} bytes. {_REMEDY}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _part(folder: Path, prefix: str, check: bool) -> ImageSet:
    names = f"{prefix}-images-idx3-ubyte.gz", f"{prefix}-labels-idx1-ubyte.gz"
    for name in names:
        check_file(folder / name, md5=MD5[name] if check else None, what=f"{name} of Fashion-MNIST", remedy=_REMEDY)
    images, labels = (read_idx(folder / name) for name in names)
    return ImageSet(torch.from_numpy(images.copy())[:, None], torch.from_numpy(labels.astype(np.int64)))


def load_fashion(folder: Path | str | None = None, *, check: bool = True) -> ImageData:
    """Fashion-MNIST: 60,000 training and 10,000 test images `(1, 28, 28)` of ten classes.

    Args:
        folder: folder of the four files; `None` for the one in this repository.
        check: True to compare every file with its md5.

    Raises:
        DataError: if a file is missing or damaged.
    """
    place = FOLDER if folder is None else Path(folder)
    train, test = (_part(place, prefix, check) for prefix in ("train", "t10k"))
    return ImageData("fashion_mnist", train, test, CLASSES, MEAN, STD)
