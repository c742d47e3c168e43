"""What our training loop costs, as a multiple of a plain PyTorch loop: `python -m benchmarks.training_loop`.

Both train the same network with the same steps, on images in memory, with crop and flip. The plain loop is what a user
would write: it shuffles, augments whole batches by indexing, and calls the optimiser. Rounds of both are interleaved in
one process on one thread. CPU time counts, so that other processes do not disturb, and the ratio is the median over the
rounds. Writes `benchmarks/results/training_loop.json`.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import process_time

import torch
import torch.nn.functional as F

from experiments.models import build_model
from experiments.recipes import get_recipe
from experiments.record.files import RESULTS, versions, write_json
from experiments.runner import load_training_data
from experiments.training import Execution, MemorySource, train

RESULT = RESULTS.parents[1] / "benchmarks" / "results" / "training_loop.json"
RECIPE = "fashion-compact/baseline"


def plain(training, source: MemorySource, classes: int) -> float:
    """CPU seconds of a plain loop."""
    model = build_model(training.model, classes, seed=1, **dict(training.model_options))
    model = model.to(memory_format=torch.channels_last).train()
    optimiser = torch.optim.SGD(
        model.parameters(), training.learning_rate, momentum=0.9, nesterov=True, weight_decay=training.weight_decay
    )
    size, n = training.batch_size, len(source.labels)
    steps = training.epochs * -(-n // size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    images, labels = torch.from_numpy(source.samples), torch.from_numpy(source.labels)
    padded = F.pad(images, (0, 0, 4, 4, 4, 4))
    side, mean, std = torch.arange(images.shape[1]), torch.tensor(source.mean), torch.tensor(source.std)
    start = process_time()
    for _ in range(training.epochs):
        for index in torch.randperm(n).split(size):
            corner = torch.randint(0, 9, (2, len(index), 1))
            rows, columns = corner[0] + side, corner[1] + side
            columns = torch.where(torch.rand(len(index), 1) < 0.5, columns.flip(1), columns)
            x = padded[index[:, None, None], rows[:, :, None], columns[:, None, :]].float()
            x = x.div_(255).sub_(mean).div_(std).permute(0, 3, 1, 2)
            optimiser.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=training.precision == "bfloat16"):
                loss = F.cross_entropy(model(x), labels[index])
            loss.backward()
            optimiser.step()
            schedule.step()
    return process_time() - start


def ours(training, source: MemorySource, classes: int) -> float:
    """CPU seconds of our loop, with the file of weights at its end."""
    start = process_time()
    with tempfile.TemporaryDirectory() as folder:
        execution = Execution(device="cpu", progress=False)
        train(training, source, classes=classes, seed=1, runs=Path(folder), execution=execution)
    return process_time() - start


def measure(*, images: int, epochs: int, rounds: int) -> list[float]:
    """Ratio of our time to that of the plain loop, by round."""
    recipe = get_recipe(RECIPE)
    training = replace(recipe.training, epochs=epochs, augmentation="crop_flip")
    source, _, classes = load_training_data(training)
    part = MemorySource(source.samples[:images], source.labels[:images], source.mean, source.std)
    plain(training, part, classes), ours(training, part, classes)
    return [ours(training, part, classes) / plain(training, part, classes) for _ in range(rounds)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=5120)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    ratios = measure(images=options.images, epochs=options.epochs, rounds=options.rounds)
    print(f"{median(ratios):.3f}", *(f"{ratio:.3f}" for ratio in sorted(ratios)))
    machine = {"processor": platform.processor() or platform.machine(), "threads": 1}
    settings = {"recipe": RECIPE, "augmentation": "crop_flip", **vars(options)}
    record = {"settings": settings, "ratio": round(median(ratios), 3), "rounds": [round(r, 3) for r in ratios]}
    write_json(RESULT, {**record, "versions": versions(), "machine": machine})


if __name__ == "__main__":
    main()
