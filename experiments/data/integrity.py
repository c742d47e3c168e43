"""Checks of files by size and checksum. Errors name the file and the remedy.

The checksums find damaged and mistaken files. They do not protect against forgery, but the code that reads the files
runs nothing from them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

_CHUNK = 1 << 20


class DataError(ValueError):
    """A file that is missing, incomplete, damaged or of another version, which the user can replace."""


def file_hash(path: Path | str, algorithm: str = "md5") -> str:
    """Checksum of a file in hexadecimal, as `md5sum` or `sha256sum` prints it. The file is read in pieces."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with Path(path).open("rb") as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def check_file(
    path: Path | str,
    *,
    md5: str | None = None,
    sha256: str | None = None,
    size: int | None = None,
    what: str = "a data file",
    remedy: str = "Fetch it again from where it came.",
    others: Mapping[str, str] | None = None,
) -> Path:
    """Check a file before it is read, the fast checks first. Returns its path.

    Args:
        path: path of the file.
        md5: expected checksum; `None` for no check.
        sha256: expected checksum; `None` for no check.
        size: expected number of bytes; `None` for no check.
        what: description for the error, such as `"training batch 1 of CIFAR-10"`.
        remedy: sentence that tells the user what to do.
        others: descriptions by checksum of files that may be here by mistake, such as another version.

    Raises:
        DataError: if the file is missing, too short, too long, or not the expected one.
    """
    path = Path(path)
    if not path.is_file():
        kind = "a folder is there" if path.is_dir() else "no such file"
        raise DataError(f"{path}: expected {what}, but {kind}. {remedy}")
    found = path.stat().st_size
    if size is not None and found < size:
        raise DataError(f"{path}: {what} is cut off: expected {size} bytes, got {found}. {remedy}")
    for algorithm, expected in (("md5", md5), ("sha256", sha256)):
        if expected is None:
            continue
        came = file_hash(path, algorithm)
        if came == expected.lower():
            continue
        if others and came in others:
            raise DataError(f"{path}: expected {what}, got {others[came]} ({algorithm} {came}). {remedy}")
        raise DataError(
            f"{path}: expected {what} with {algorithm} {expected}, got {came}: damaged, or of another version. {remedy}"
        )
    if size is not None and found > size:
        raise DataError(f"{path}: expected {what} of {size} bytes, got {found}: another version. {remedy}")
    return path
