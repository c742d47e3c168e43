"""What a verification of a large network costs: `python -m benchmarks.verify_cost [--samples N] [--json PATH]`.

PreActResNet-18 of full width, 3×32×32 inputs, ReLU and SiLU, at the input and at `layer2`. Reported: the verdict,
forward passes of all samples, seconds, and for each term the relative error that would have been refuted. Derivatives
are counted in multiples of a forward pass.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from torch import nn

import nfm_theory as nt
from benchmarks.estimators.measure import machine, num_threads, versions
from experiments.models import build_model

CLASSES, LAW = 10, nt.Law(add_noise=0.4, mult_noise=0.2)
CASES = {f"{act}, {layer or 'input'}": (act, layer) for act in ("relu", "silu") for layer in ("", "layer2")}


def problem(activation: str, layer: str, samples: int, dtype: torch.dtype) -> nt.Problem:
    """The network with random weights and random samples."""
    model = build_model("preactresnet18", CLASSES).to(dtype).eval()
    for block in list(model.modules()) if activation == "silu" else ():
        for name, child in block.named_children():
            if isinstance(child, nn.ReLU):
                setattr(block, name, nn.SiLU())
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, 3, 32, 32, generator=generator).to(dtype)
    return nt.Problem(model, x, torch.arange(samples) % CLASSES, layer=layer, law=LAW)


def measure(one: nt.Problem, passes: int) -> dict:
    """Verdict, cost and power of one verification; the seconds are those of the processor."""
    start = time.process_time()
    report = nt.verify(one, budget=f"{passes} passes")
    seconds = time.process_time() - start
    power = {name: {k: entry[k] for k in ("resolved", "share")} for name, entry in report.to_dict()["power"].items()}
    return {
        "verdict": report.verdict, "reason": report.reason, "passes": report.samples / report.num_samples,
        "planned_passes": report.plan.evaluations / report.num_samples, "seconds": round(seconds, 1),
        "planned_seconds": round(report.plan.seconds, 1), "power": power,
    }  # fmt: skip


def kept(path: Path | None, settings: dict) -> dict[str, dict]:
    """The cases that a file has with the same settings."""
    before = json.loads(path.read_text(encoding="utf-8")) if path and path.exists() else {}
    return before["cases"] if before.get("settings") == settings else {}


def main() -> None:
    """Print the costs; write them as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--passes", type=int, default=300)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float64")
    parser.add_argument("--case", action="append", choices=list(CASES), help="only these")
    parser.add_argument("--json", type=Path, help="also write the costs to this file; cases that it has are kept")
    args = parser.parse_args()
    settings = {"samples": args.samples, "budget": args.passes}
    with num_threads(1):
        for name in args.case or CASES:
            title = f"{name}, {args.dtype}"
            if title in kept(args.json, settings):
                continue
            one = problem(*CASES[name], args.samples, getattr(torch, args.dtype))
            found = measure(one, args.passes)
            print(title, json.dumps(found, indent=1), flush=True)
            if args.json:
                record = {
                    "cases": kept(args.json, settings) | {title: found}, "settings": settings, "machine": machine(),
                    "versions": versions("nfm_theory"),
                }  # fmt: skip
                args.json.write_text(json.dumps(record, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
