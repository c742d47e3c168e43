"""A Hugging Face `Trainer` that trains a classifier with NFM, with the penalty, or with both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Trainer  # pyright: ignore[reportMissingImports]

from ..training.mixup import NoisyFeatureMixup
from ..training.penalty import TaylorRegularizer


def soft_cross_entropy(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """Cross entropy of class indices or distributions, for the argument `compute_loss_func` of a Trainer.

    A model of Hugging Face that is given distributions computes another loss: it takes floating-point labels `(n, K)`
    for several labels at once, unless its configuration has a `problem_type`, and then fails on them.

    Args:
        outputs: what the model returns, with logits `(n, K)`.
        labels: class indices `(n,)`, or distributions over the classes `(n, K)`.
        num_items_in_batch: number of labels of all batches whose gradients are accumulated; `None` takes the mean.

    Returns:
        The loss, 0-dim.

    Raises:
        ValueError: for labels of another shape.
    """
    logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
    logits = logits.float() if logits.dtype.itemsize < 4 else logits
    fits = labels.shape == logits.shape if labels.is_floating_point() else labels.shape == logits.shape[:1]
    if logits.ndim != 2 or not fits:
        raise ValueError(
            f"labels: expected class indices (n,) or distributions (n, K) for logits {tuple(logits.shape)}, got "
            f"{labels.dtype} of shape {tuple(labels.shape)}; give another loss by compute_loss_func=."
        )
    labels = labels.to(logits) if labels.is_floating_point() else labels
    if num_items_in_batch is None:
        return F.cross_entropy(logits, labels)
    return F.cross_entropy(logits, labels, reduction="sum") / num_items_in_batch


class MixupTrainer(Trainer):  # pyright: ignore[reportGeneralTypeIssues]  (it takes this file for the library)
    r"""A `Trainer` whose batches are steps of NFM: `trainer.regularize(mixup)`, then `trainer.train()`.

    The loss of a classifier is `soft_cross_entropy`, in training and in evaluation, unless `compute_loss_func` was
    given. Regression and problems with several labels at once keep the loss of the model, which takes mixed targets as
    they are. Evaluation is never mixed. A Trainer of your own becomes one by inheritance,
    `class Mine(MixupTrainer, MyTrainer)`.

    Gradient accumulation, `bf16=True` and several processes work as without it. A step without a generator of its own
    draws from the global one, whose state is in the checkpoints of the Trainer, so that a training resumes bit by bit.
    """

    mixup: NoisyFeatureMixup | None = None
    penalty: TaylorRegularizer | None = None
    stop_epoch: float | None = None
    _given: Callable | None = None

    def regularize(
        self,
        mixup: NoisyFeatureMixup | None = None,
        *,
        penalty: TaylorRegularizer | None = None,
        stop_epoch: float | None = None,
    ) -> None:
        """Choose the step and the penalty of the training.

        Args:
            mixup: step, built on the model of this Trainer; a `TimmMixup` adds probability and CutMix. It mixes the
                input `model.main_input_name` or hidden features; other inputs, such as masks, stay as they are.
            penalty: penalty on the clean batch. The model must need no other input than its main one.
            stop_epoch: the epoch, counted from 0, at which the mixing ends; `None` mixes to the end.

        Raises:
            ValueError: if the arguments of the Trainer ask for label smoothing.
        """
        if self.args.label_smoothing_factor:
            raise ValueError(
                f"label_smoothing_factor: expected 0, got {self.args.label_smoothing_factor}; it is for class indices. "
                "Give label_smoothing= to the NoisyFeatureMixup instead."
            )
        self.mixup, self.penalty, self.stop_epoch = mixup, penalty, stop_epoch

    @property
    def compute_loss_func(self) -> Callable | None:
        """The loss that was given, or that of a classifier."""
        config = getattr(getattr(self, "model", None), "config", None)
        single = getattr(config, "problem_type", None) in (None, "single_label_classification")
        own = soft_cross_entropy if single and getattr(config, "num_labels", 2) > 1 else None
        return self._given or own

    @compute_loss_func.setter
    def compute_loss_func(self, value: Callable | None) -> None:
        self._given = value

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of a batch: that of a mixed one in training, plus the penalty.

        Args:
            model: the model as the Trainer has wrapped it.
            inputs: batch with the inputs and `labels`.
            return_outputs: True returns the loss and the outputs of the model.
            num_items_in_batch: see `soft_cross_entropy`.
        """
        if not model.training or (self.mixup is None and self.penalty is None):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        name = getattr(self.model, "main_input_name", "input_ids")
        x, y = inputs[name], inputs["labels"]
        if self.mixup is None:
            found = super().compute_loss(model, dict(inputs), True, num_items_in_batch)
        else:
            self.mixup.enabled = self.stop_epoch is None or self.state.epoch < self.stop_epoch
            with self.mixup.step(x, y) as (mixed, targets):
                batch = {**inputs, name: mixed, "labels": targets}
                found = super().compute_loss(model, batch, True, num_items_in_batch)
        loss, outputs = found
        if self.penalty is not None:
            loss = loss + self._share(len(y), num_items_in_batch) * self._penalty(inputs, name)
        return (loss, outputs) if return_outputs else loss

    def _share(self, samples: int, num_items: Tensor | int | None) -> Tensor | float:
        """The weight of a mean over the batch in the loss, as the Trainer weights the loss itself."""
        if num_items is None or not (self.model_accepts_loss_kwargs or self.compute_loss_func):
            return 1.0
        return samples / num_items * (self.accelerator.num_processes if self.args.average_tokens_across_devices else 1)

    def _penalty(self, inputs: dict[str, Any], name: str) -> Tensor:
        assert self.penalty is not None  # the caller has looked
        if others := sorted(set(inputs) - {name, "labels"}):
            raise ValueError(
                f"penalty: expected a batch of {name!r} and 'labels', got {others} as well; leave them out of the "
                "batches, or penalize a module around the model that needs a single input."
            )
        # The penalty wants the logits, and the names of the layers must stay those of the model
        handle = self.model.register_forward_hook(lambda module, args, output: output["logits"])
        try:
            return self.penalty(self.model, inputs[name], inputs["labels"])
        finally:
            handle.remove()
