"""The loss as it is trained: mixed labels at ε = 1, over random minibatches, each at one layer drawn uniformly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ..setting.draws import Draw
from ..setting.options import progress_bar
from ..setting.problem import Problem
from ..setting.random_numbers import home_of
from ..setting.results import Estimate
from .monte_carlo import DEFAULT_SAMPLES, RunningMoments


def _into_minibatches(draw: Draw, num_samples: int, batch: int, generator: torch.Generator | None) -> Draw:
    """Re-index sweeps over 0..batch-1 as sweeps over random subsets of the samples, without replacement."""
    device = draw.index.device
    sweeps = len(draw) // batch
    source = home_of(generator, device)
    order = torch.rand((sweeps, num_samples), generator=generator, device=source).argsort(1)[:, :batch].to(device)
    start = torch.arange(sweeps, device=device).repeat_interleave(batch) * batch
    return replace(draw, anchor=order.flatten()[start + draw.anchor], index=order.flatten()[start + draw.index])


@torch.no_grad()
def training_loss(
    problems: Sequence[Problem],
    *,
    samples: int = DEFAULT_SAMPLES,
    batch_size: int | None = None,
    permute: bool = True,
    generator: torch.Generator | None = None,
) -> Estimate:
    """Mean mixed-label loss over random minibatches at ε = 1, each at one layer drawn uniformly.

    With `permute` a minibatch has one λ, one permutation and one noise scale, as in training; its self-pairs weigh
    1/batch_size instead of 1/n, so that the mean equals the exact loss for `batch_size = n` only. Otherwise every row
    has its own λ and partner.

    Args:
        problems: one per layer.
        samples: evaluations of the head.
        batch_size: size of the minibatches, `None` for all samples.
        permute: True draws as in training.
        generator: random generator of the draws.

    Raises:
        ValueError: for a batch size outside 1..n, or fewer than two batches.
    """
    n = len(problems[0].features)
    batch = n if batch_size is None else batch_size
    if not 1 <= batch <= n:
        raise ValueError(f"batch_size: expected 1 <= batch_size <= n = {n}, got {batch_size}.")
    steps = samples // batch
    if steps < 2:
        raise ValueError(f"samples: expected at least two batches of {batch}, got {samples}.")
    device = home_of(generator, problems[0].features.device)
    layers = torch.randint(len(problems), (steps,), generator=generator, device=device)
    moments = RunningMoments()
    with progress_bar(title="minibatches", total=steps, unit="step") as bar:
        for problem, count in zip(problems, layers.bincount(minlength=len(problems)).tolist(), strict=True):
            block = max(1, problem.block_rows() // batch)
            for start in range(0, count, block):
                times = min(block, count - start)
                draw = problem.draw(batch, times, unmixed=False, as_trained=permute, generator=generator)
                if batch < n:
                    draw = _into_minibatches(draw, n, batch, generator)
                moments.add(problem.mixed_label_losses(draw).reshape(times, batch).mean(1))
                bar.update(times)
    dtype = problems[0].features.dtype
    method = f"as trained, batches of {batch}" if permute else "Monte Carlo, mixed labels"
    return Estimate(moments.mean.to(dtype), moments.stderr().to(dtype), steps * batch, method)
