"""Draw every figure again: `python -m figures [--results DIR] [--benchmarks DIR] [--out DIR]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.record.files import RESULTS, read_lines
from experiments.record.ledger import LEDGER
from experiments.tables.published import PUBLISHED

from . import (
    anim_toy,
    fig_audit,
    fig_bounds,
    fig_corruptions,
    fig_cost,
    fig_maps,
    fig_overview,
    fig_remainder,
    fig_robustness,
    fig_second_order,
    fig_toy,
    fig_validity,
    fig_validity_trained,
    fig_where,
    style,
)

#: Every figure with the file of results it reads.
FIGURES = (
    ("expansion.jsonl", fig_remainder.make),
    ("validity.jsonl", fig_validity.make),
    ("validity_trained.jsonl", fig_validity_trained.make),
    ("bounds.jsonl", fig_bounds.make),
    (LEDGER.name, fig_toy.make),
    (LEDGER.name, anim_toy.make),
    (LEDGER.name, fig_robustness.make),
    (LEDGER.name, fig_corruptions.make),
    (LEDGER.name, fig_second_order.make),
    ("decomposition.jsonl", fig_second_order.make_decomposition),
    (LEDGER.name, fig_where.make),
)


#: Figures that are computed when they are drawn, from networks that train in seconds.
COMPUTED = (fig_maps.make, fig_overview.make)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw them and print the paths."""
    parser = argparse.ArgumentParser(prog="python -m figures", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="directory of the results")
    parser.add_argument("--benchmarks", type=Path, default=fig_cost.RESULTS, help="directory of the measured costs")
    parser.add_argument("--out", type=Path, default=style.OUT, help="directory of the figures")
    chosen = parser.parse_args(arguments)
    sources = [(chosen.results / name, make) for name, make in FIGURES]
    sources += [(chosen.benchmarks / "estimators.json", fig_cost.make), (PUBLISHED, fig_audit.make)]
    try:
        for name, _ in FIGURES:
            if name != LEDGER.name:
                read_lines(chosen.results / name)  # what is missing is said before minutes of drawing
        for source, make in sources:
            print(*make(source, chosen.out), sep="\n")
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 2
    for make in COMPUTED:
        print(*make(chosen.out), sep="\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
