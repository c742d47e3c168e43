"""Is a file what it should be? Sizes and checksums, with errors that name the file and the way out.

Checksums here find damage and mix-ups. They are no defence against a forger: what is read afterwards is read by
code that runs nothing from the file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

_CHUNK = 1 << 20


class DataError(ValueError):
    """Data that a user can put right: a file that is missing, cut off, damaged or of another version."""


def file_hash(path: Path | str, algorithm: str = "md5") -> str:
    """Checksum of a file, as lower-case hexadecimal digits.

    Args:
        path: of the file, which is read in pieces.
        algorithm: a name that `hashlib` knows, `"md5"` or `"sha256"` here.

    Returns:
        What `md5sum` or `sha256sum` prints.
    """
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
    """Check a file before it is read; cheap tests come first.

    Args:
        path: of the file.
        md5: expected checksum; `None` for no check.
        sha256: the same.
        size: expected bytes.
        what: the file's role, for the error, such as `"training batch 1 of CIFAR-10"`.
        remedy: sentence that tells the user what to do.
        others: checksum -> description of files that may stand here by mistake, such as another version.

    Returns:
        The path.

    Raises:
        DataError: if the file is missing, too short, too long, or another one than expected.
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
