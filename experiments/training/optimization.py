"""Optimiser and learning rate of a recipe. The rate is a function of the step, so it needs no state."""

from __future__ import annotations

import math

import torch
from torch import nn

from ..recipes.recipe import Training


def build_optimiser(training: Training, model: nn.Module) -> torch.optim.Optimizer:
    """SGD or Adam on all parameters."""
    rate, decay = training.learning_rate, training.weight_decay
    if training.optimiser == "sgd":
        return torch.optim.SGD(
            model.parameters(), lr=rate, momentum=training.momentum, nesterov=training.nesterov, weight_decay=decay
        )
    if training.optimiser == "adam":
        return torch.optim.Adam(model.parameters(), lr=rate, weight_decay=decay)
    raise ValueError(f"optimiser: expected 'sgd' or 'adam', got {training.optimiser!r}.")


def learning_rate(training: Training, step: int, steps_per_epoch: int) -> float:
    """The learning rate of a step.

    With `"steps"` it falls to a tenth after each milestone has *finished* (protocol: after epoch index 100, 150, 180).
    With `"cosine"` it falls in every batch, from `learning_rate` to `final_rate`.

    Args:
        training: settings of the training.
        step: number of batches before this one. A batch that is used several times counts as often, so that free
            adversarial training, with fewer epochs, goes through the whole schedule.
        steps_per_epoch: number of batches in an epoch.
    """
    start, total = training.learning_rate, training.epochs * steps_per_epoch
    step = min(step * training.scheme.replays, total)
    if training.schedule == "constant":
        return start
    if training.schedule == "steps":
        epoch = step // steps_per_epoch
        return start * 0.1 ** sum(epoch > milestone for milestone in training.milestones)
    if training.schedule == "cosine":
        return training.final_rate + (start - training.final_rate) * (1 + math.cos(math.pi * step / total)) / 2
    raise ValueError(f"schedule: expected 'constant', 'steps' or 'cosine', got {training.schedule!r}.")
