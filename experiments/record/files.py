"""Read and write files of results, with one JSON object per line. A file is never left half written."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from nfm_theory.cli.files import check_regular, replace_file, versions, writable_file, write_json

__all__ = [
    "RESULTS", "check_regular", "read_lines", "replace_file", "versions", "writable_file", "write_json", "write_lines",
]  # fmt: skip

#: The folder of the tracked results.
RESULTS = Path(__file__).resolve().parents[1] / "results"

#: The study that writes a file of results, by the start of the file's name; all others are of the study `expansion`.
_STUDIES = {name: name.rstrip("_") for name in ("bounds", "validity_", "decomposition", "explore", "choice", "where")}


def write_lines(path: str | Path, records: Iterable[dict]) -> None:
    """Write records to a file, one JSON object per line."""
    with replace_file(path) as temporary:
        temporary.write_text("".join(json.dumps(r, allow_nan=False) + "\n" for r in records), encoding="utf-8")


def read_lines(path: str | Path) -> list[dict]:
    """Read the records that `write_lines` wrote.

    Raises:
        FileNotFoundError: if there is no such file; the message names the command that writes it.
    """
    path = Path(path)
    if not path.exists():
        study = next((study for start, study in _STUDIES.items() if path.name.startswith(start)), "expansion")
        raise FileNotFoundError(f"{path} does not exist; `python -m experiments study {study} --record` writes it.")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
