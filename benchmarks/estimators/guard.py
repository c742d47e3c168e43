"""`python -m benchmarks.estimators.guard`: has a method become slower, or does it need more memory, than committed?

Compares ratios to a forward pass or a training step, never seconds, so that the limits hold on any machine of the kind.
"""

import argparse
import json
import sys
from pathlib import Path

from .run import Options, Record, about, run

LIMITS = Path(__file__).resolve().parents[1] / "limits.json"
KEY = ("case", "quantity", "method")


def violations(cells: list[dict], limits: list[dict], tolerance: float) -> list[str]:
    """One message for each limit that is exceeded or was not measured.

    Args:
        cells: measured, with `time` and `memory`, or `skipped`.
        limits: `case`, `quantity`, `method` and the largest `time` and `memory`.
        tolerance: factor by which a limit may be exceeded.
    """
    measured = {tuple(cell[k] for k in KEY): cell for cell in cells}
    messages = []
    for limit in limits:
        key = tuple(limit[k] for k in KEY)
        name, cell = " / ".join(key), measured.get(key)
        if cell is None or "time" not in cell:
            messages.append(f"{name}: not measured ({(cell or {}).get('skipped', 'no such method')})")
            continue
        for what in ("time", "memory"):
            if cell[what] > tolerance * limit[what]:
                allowed = f"limit {limit[what]:.3g} x tolerance {tolerance:g}"
                messages.append(f"{name}: {what} {cell[what]:.3g} exceeds {allowed}")
    return messages


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status, 1 if a limit is exceeded."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.estimators.guard", description=__doc__.splitlines()[0])
    parser.add_argument("--limits", type=Path, default=LIMITS, help="file of the limits")
    parser.add_argument("--results", type=Path, help="compare this file instead of measuring now")
    parser.add_argument("--tolerance", type=float, default=1.5, help="factor by which a limit may be exceeded")
    args = parser.parse_args(arguments)
    limits = json.loads(args.limits.read_text())
    if args.results is None:
        wanted = {tuple(limit[k] for k in KEY) for limit in limits}
        parts = {(quantity, method) for _, quantity, method in wanted}
        options = Options(repeats=5, budget=5.0, only=lambda quantity, name: (quantity, name) in parts)
        record = Record(None, about(options))
        run(sorted({case for case, _, _ in wanted}), record, options)
        cells = record.cells
    else:
        cells = json.loads(args.results.read_text())["cells"]
    found = violations(cells, limits, args.tolerance)
    for message in found:
        print(message, file=sys.stderr)
    print(f"{len(limits)} limits, {len(found)} exceeded or not measured.")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
