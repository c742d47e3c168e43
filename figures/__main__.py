"""Draw every figure again: `python -m figures [--results DIR] [--benchmarks DIR] [--out DIR]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.records import RESULTS

from . import fig_bounds, fig_cost, fig_remainder, fig_validity, style

#: Every figure with the file of results it reads.
FIGURES = {
    "expansion.jsonl": fig_remainder.make,
    "validity.jsonl": fig_validity.make,
    "bounds.jsonl": fig_bounds.make,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw them and print the paths."""
    parser = argparse.ArgumentParser(prog="python -m figures", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="directory of the results")
    parser.add_argument("--benchmarks", type=Path, default=fig_cost.RESULTS, help="directory of the measured costs")
    parser.add_argument("--out", type=Path, default=style.OUT, help="directory of the figures")
    chosen = parser.parse_args(arguments)
    sources = {chosen.results / name: make for name, make in FIGURES.items()}
    sources[chosen.benchmarks / "estimators.json"] = fig_cost.make
    for source, make in sources.items():
        try:
            written = make(source, chosen.out)
        except FileNotFoundError as error:
            print(error, file=sys.stderr)
            return 2
        print(*written, sep="\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
