"""What a training step of each scheme costs, as a multiple of a plain one: `python -m benchmarks.training_step`.

Steps of all schemes are interleaved in one process, medians of ratios within a round; the batch and its views are
made beforehand. Writes `benchmarks/results/training_step.json`.
"""

from __future__ import annotations

import argparse
import platform
from statistics import median
from time import perf_counter

import torch

from experiments.models import build_model, eligible_layers
from experiments.recipes.schemes import SCHEMES
from experiments.record.files import RESULTS, versions, write_json
from experiments.schemes import build_step

RESULT = RESULTS.parents[1] / "benchmarks" / "results" / "training_step.json"
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
#: PuzzleMix is timed on its own: its graph cuts are by far the longest.
NAMES = tuple(name for name in SCHEMES if name not in ("puzzlemix", "augmix_no_jsd", "autoaugment"))


def build(name: str, width: int, layers: tuple[str, ...] | None, device: str):
    """A network and its step."""
    model = build_model("preactresnet18", 10, seed=0, width=width).to(device, memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(0)
    layers = eligible_layers("preactresnet18") if layers is None else layers
    step = build_step(SCHEMES[name], model, layers=layers, classes=10, mean=MEAN, std=STD, generator=generator)
    return model.train(), step


def one_step(model, step, optimiser, x, y) -> float:
    """Seconds of a whole step; several on the same batch count as one each."""
    start = perf_counter()
    for _ in range(step.repeats):
        optimiser.zero_grad(set_to_none=True)
        step.loss(x, y).backward()
        step.after_backward()
        optimiser.step()
    if x.device.type == "cuda":
        torch.cuda.synchronize()
    return (perf_counter() - start) / step.repeats


def measure(*, width: int, batch: int, rounds: int, device: str) -> dict[str, float]:
    """Median ratio to the plain step, by scheme."""
    generator = torch.Generator().manual_seed(0)
    subjects = {}
    for name in NAMES:
        model, step = build(name, width, None, device)
        x = torch.randn(step.scheme.views * batch, 3, 32, 32, generator=generator).to(device)
        y = torch.randint(10, (batch,), generator=generator).to(device)
        optimiser = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
        subjects[name] = (model, step, optimiser, x.contiguous(memory_format=torch.channels_last), y)
    for subject in subjects.values():
        one_step(*subject)
    ratios: dict[str, list[float]] = {name: [] for name in NAMES}
    for _ in range(rounds):
        seconds = {name: one_step(*subject) for name, subject in subjects.items()}
        for name in NAMES:
            ratios[name].append(seconds[name] / seconds["baseline"])
    return {name: round(median(values), 3) for name, values in ratios.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = {"width": options.width, "batch": options.batch, "rounds": options.rounds, "device": options.device}
    ratios = measure(**settings)
    for name, ratio in ratios.items():
        print(f"{name:18s} {ratio:6.3f}")
    machine = {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    write_json(RESULT, {"settings": settings, "ratios": ratios, "versions": versions(), "machine": machine})


if __name__ == "__main__":
    main()
