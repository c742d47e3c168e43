"""Measure what a GPU can say, within some minutes: `python -m benchmarks.gpu --minutes 9 --out DIR`.

It needs no network and only torch, numpy, scipy, sympy, scikit-learn, matplotlib, typer and rich. The most telling
comes first: whether the device agrees with the CPU (and the tests with the marker `gpu` where pytest is installed),
time and memory of an epoch of the schemes with PreActResNet-18, the estimators in float32 and bfloat16, a verdict on
that network, and then as many compact networks as fit. DIR/gpu.json has every cell with the device and the versions; a
cell that fails is recorded with its error, and the rest goes on. A second call with the same folder goes on where the
first one stopped.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path

from .stand_ins import install

DONE, FAILED, BEGUN = "done", "failed", "begun"
ROOT = Path(__file__).resolve().parents[2]


class Results:
    """The cells in DIR/gpu.json, written anew after every change.

    Args:
        path: the file.
    """

    def __init__(self, path: Path):
        self.path = path
        self.content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"cells": {}}

    @property
    def cells(self) -> dict[str, dict]:
        """The cells by name."""
        return self.content["cells"]

    def put(self, name: str, **cell) -> None:
        """Keep a cell."""
        self.cells[name] = cell
        self.write()

    def write(self) -> None:
        """Write the file, so that a reader finds the old or the new content."""
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, self.path)


def work(out: Path, device: str, small: bool) -> int:
    """Measure, in this process, every cell that is not there yet; returns the exit status."""
    missing = install()
    import torch

    from benchmarks.estimators.measure import machine, versions

    from .cells import Place, cells

    if device == "cuda" and not torch.cuda.is_available():
        print("expected a CUDA device, found none; --device cpu --small tests the command.", file=sys.stderr)
        return 2
    results = Results(out / "gpu.json")
    packages = versions("numpy", "scipy", "sympy", "scikit-learn", "matplotlib", "typer", "rich", "pytest")
    about = {"machine": machine(device), "versions": packages, "cuda": torch.version.cuda, "small": small}
    if results.content.get("about", about) != about:
        print(f"{results.path} was measured elsewhere or with other versions; name another folder.", file=sys.stderr)
        return 2
    results.content |= {"about": about, "stand_ins": missing}
    results.write()
    place = Place(device, out, small)
    for name, measure in cells(small).items():
        if results.cells.get(name, {}).get("status") in (DONE, FAILED):
            continue
        results.put(name, status=BEGUN)
        start = time.perf_counter()
        try:
            found = {"status": DONE, "result": measure(place)}
        except Exception as error:  # a failure is a result
            found = {"status": FAILED, "error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
        finally:
            if device == "cuda":
                torch.cuda.empty_cache()
        try:
            results.put(name, seconds=round(time.perf_counter() - start, 2), **found)
        except ValueError as error:
            results.put(name, status=FAILED, error=f"the result is no JSON: {error}")
        print(f"{name:44} {results.cells[name]['status']:8} {results.cells[name].get('seconds', 0):8.1f} s", flush=True)
    return 0


def watch(arguments: argparse.Namespace) -> int:
    """Run `work` in processes of its own until all is measured or the time is over; returns the exit status."""
    out, deadline = arguments.out.resolve(), time.monotonic() + 60 * arguments.minutes
    out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(out), "--device", arguments.device, "--work"]
    command += ["--small"] if arguments.small else []
    while (left := deadline - time.monotonic()) > 0:
        try:
            status = subprocess.run(command, cwd=ROOT, timeout=left, check=False).returncode
        except subprocess.TimeoutExpired:
            break
        except KeyboardInterrupt:
            print("stopped; the same command goes on", file=sys.stderr)
            return 130
        if status == 2:
            return 2
        results = Results(out / "gpu.json")
        begun = [name for name, cell in results.cells.items() if cell["status"] == BEGUN]
        if status == 0 or not begun:
            return summary(out) or status
        results.put(begun[0], status=FAILED, error=f"the process ended with the status {status}")
    return summary(out)


def summary(out: Path) -> int:
    """Print how many cells there are of each kind; 1 if there is none."""
    path = out / "gpu.json"
    cells = Results(path).cells
    counts = {word: sum(cell["status"] == word for cell in cells.values()) for word in (DONE, FAILED, BEGUN)}
    print(f"{path}: {counts[DONE]} cells done, {counts[FAILED]} failed, {counts[BEGUN]} cut off by the time")
    for name, cell in cells.items():
        if cell["status"] == FAILED:
            print(f"  {name}: {cell['error'][:200]}")
    return 0 if counts[DONE] else 1


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=9.0, help="when to stop (default 9)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results; a second call goes on in it")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu is for a test of the command")
    parser.add_argument("--small", action="store_true", help="few cells of small sizes, for a test of the command")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if not args.minutes > 0:
        parser.error(f"--minutes: expected a number > 0, got {args.minutes}.")
    if args.work:
        return work(args.out, args.device, args.small)
    return watch(args)


if __name__ == "__main__":
    sys.exit(main())
