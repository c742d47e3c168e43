"""How cost grows with directions and samples: `python -m benchmarks.estimators.scaling --json PATH`.

Residual terms along m random shared directions on the MLP with 64 inputs. Time is in forward passes of the smallest
batch, memory in its peak; both are added to the file of `python -m benchmarks.estimators`.
"""

import argparse
import json
from pathlib import Path

import torch

from nfm_theory import linearize

from .cases import Case, build_case
from .measure import interleaved, num_threads, peak_memory

DIRECTIONS, SAMPLES = (16, 32, 64, 128, 256, 512), (32, 64, 128, 256, 512)


def _sweep(case: Case, directions: int, samples: int):
    problem = case.problem
    g = problem.features[torch.arange(samples) % len(problem.features)]
    labels = problem.labels[torch.arange(samples) % len(problem.features)]
    v = torch.randn(directions, 1, g.shape[1], generator=torch.Generator().manual_seed(0))

    def call() -> None:
        with torch.no_grad():
            at = linearize(problem.head, g)
            at.sweep(v, problem.loss.gradient(at.outputs, labels), tangents=False)

    return call


def measure(repeats: int = 7) -> dict[str, list[dict]]:
    """`{"directions": [..], "samples": [..]}`."""
    case, found = build_case("mlp64"), {}
    smallest = case.problem.features[: SAMPLES[0]]
    unit = lambda: case.problem.head(smallest)  # noqa: E731
    grids = {"directions": [(m, 256) for m in DIRECTIONS], "samples": [(64, n) for n in SAMPLES]}
    with torch.no_grad():
        memory = peak_memory(unit)
    for name, grid in grids.items():
        calls = {pair: _sweep(case, *pair) for pair in grid}
        timings = interleaved({"": unit} | {str(pair): call for pair, call in calls.items()}, repeats=repeats)
        found[name] = [
            {
                "count": pair[name == "samples"],
                "time": timings[str(pair)].median / timings[""].median,
                "memory": peak_memory(call) / memory,
            }
            for pair, call in calls.items()
        ]
    return found


def main() -> None:
    """Measure, print, and add to the file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.estimators.scaling", description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="file of `python -m benchmarks.estimators`")
    path = parser.parse_args().json
    with num_threads(1):
        scaling = measure()
    record = json.loads(path.read_text()) if path.exists() else {"cells": []}
    path.write_text(json.dumps(record | {"scaling": scaling}, indent=1) + "\n")
    print(json.dumps(scaling, indent=1))


if __name__ == "__main__":
    main()
