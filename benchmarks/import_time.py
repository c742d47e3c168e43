"""How long the import of nfm_theory takes, as a multiple of `import torch`: `python -m benchmarks.import_time`.

`import nfm_theory` alone loads nothing, not even PyTorch, so the names of the quick start are imported. Each import
runs in a fresh process. The two are measured in turn, after one unmeasured pair that fills the caches, and the ratio is
taken within a pair, so that a machine that gets slower meanwhile slows both. Writes
`benchmarks/results/import_time.json`. With `--limit`, the exit status is 1 if the median ratio is larger.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from nfm_theory.cli.files import versions, write_json

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "import_time.json"
IMPORTS = {
    "torch": "import torch",
    "nfm_theory": "from nfm_theory import Law, Problem, terms, loss, verify, NoisyFeatureMixup, TaylorRegularizer",
}
CODE = "import time; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"


def import_seconds(module: str) -> float:
    """Seconds that an import takes in a fresh process, the start of Python left out.

    Args:
        module: one of `IMPORTS`.
    """
    command = [sys.executable, "-W", "ignore", "-c", CODE.format(statement=IMPORTS[module])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return float(done.stdout)


def measure(pairs: int) -> dict[str, list[float]]:
    """Measure both imports in turn, after one pair that does not count.

    Args:
        pairs: how often.

    Returns:
        Seconds of every import, by module.
    """
    seconds: dict[str, list[float]] = {module: [] for module in IMPORTS}
    for round_ in range(pairs + 1):
        for module in IMPORTS if round_ % 2 else reversed(IMPORTS):
            found = import_seconds(module)
            if round_:
                seconds[module].append(found)
    return seconds


def median_ratio(seconds: dict[str, list[float]]) -> float:
    """Median over the pairs of the time of `nfm_theory` by that of `torch`.

    Args:
        seconds: the times that `measure` returns.
    """
    return median(ours / torch for torch, ours in zip(seconds["torch"], seconds["nfm_theory"], strict=True))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write the result; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.import_time", description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=15, help="how many pairs of imports are measured (default: 15)")
    parser.add_argument("--limit", type=float, help="largest median ratio that is accepted (default: any)")
    parser.add_argument("--out", type=Path, default=RESULT, help="the file to write")
    chosen = parser.parse_args(arguments)
    if chosen.pairs < 1:
        parser.error(f"--pairs: expected at least 1, got {chosen.pairs}")
    seconds = measure(chosen.pairs)
    ratio = median_ratio(seconds)
    for module, times in seconds.items():
        print(f"import {module:10s} {median(times):6.3f} s (median of {chosen.pairs})")
    print(f"median ratio within a pair: {ratio:.3f}")
    machine = {"processor": platform.processor() or platform.machine()}
    rounded = {module: [round(t, 4) for t in times] for module, times in seconds.items()}
    result = {"ratio": round(ratio, 4), "pairs": chosen.pairs, "seconds": rounded}
    write_json(chosen.out, {**result, "versions": versions(), "machine": machine})
    return 1 if chosen.limit is not None and ratio > chosen.limit else 0


if __name__ == "__main__":
    sys.exit(main())
