"""A callback that trains any Lightning module with NFM: `Trainer(callbacks=[MixupCallback(mixup)])`."""

from __future__ import annotations

from collections.abc import MutableMapping, MutableSequence
from contextlib import ExitStack
from typing import Any

from lightning.pytorch import Callback  # pyright: ignore[reportMissingImports]

from ..setting.network import kind
from ..training.mixup import NoisyFeatureMixup


class MixupCallback(Callback):
    r"""Each training batch is a step of NFM; the training step of the module stays as it is.

    The callback replaces inputs and targets of the batch before `training_step`, which must compare the outputs with
    distributions, `F.cross_entropy(self(x), y)` for example. All passes of a training step are mixed with the same
    draw, so that automatic and manual optimization and closures work. Validation and test are never mixed. Metrics of
    the training batches see the mixed targets. The state of the generator is in the checkpoint.

    A module that needs the clean batch as well, for a `TaylorRegularizer` or a teacher, calls the step by itself,
    `inputs, targets = self.mixup(*batch)`, and has no use for this callback.

    Args:
        mixup: step, built on the module or on the network inside it; a `TimmMixup` adds probability and CutMix.
        keys: where inputs and targets are in a batch: two positions of a list, or two keys of a dict.
        stop_epoch: number of the first epoch without mixing, counted from 0; `None` mixes to the end.

    Raises:
        TypeError: at the first batch, if it is neither a list nor a dict.
        ValueError: if `stop_epoch` is negative.
    """

    def __init__(
        self, mixup: NoisyFeatureMixup, *, keys: tuple[Any, Any] = (0, 1), stop_epoch: int | None = None
    ) -> None:
        if stop_epoch is not None and stop_epoch < 0:
            raise ValueError(f"stop_epoch: expected the number of an epoch >= 0, or None, got {stop_epoch!r}.")
        self.mixup, self.keys, self.stop_epoch = mixup, keys, stop_epoch
        self._step = ExitStack()

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        """End the mixing at `stop_epoch`."""
        self.mixup.enabled = self.stop_epoch is None or trainer.current_epoch < self.stop_epoch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        """Begin a step: mixed inputs and targets take the places of the clean ones in the batch."""
        if not isinstance(batch, MutableSequence | MutableMapping):
            raise TypeError(
                f"batch: expected a list or a dict, in which inputs and targets can be replaced, got {kind(batch)}; "
                "let the collate function return a list, or call the step inside training_step."
            )
        clean = [(key, batch[key]) for key in self.keys]
        mixed = self._step.enter_context(self.mixup.step(*(value for _, value in clean)))
        for (key, value), other in zip(clean, mixed, strict=True):
            self._step.callback(batch.__setitem__, key, value)  # a loader may hand out the same batch again
            batch[key] = other

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        """End the step and put the clean batch back; it is an error if no pass was mixed."""
        self._step.close()

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        """Forget a step of which the module has skipped the batch."""
        self._forget()

    def on_exception(self, trainer, pl_module, exception) -> None:
        """Forget the step that has failed."""
        self._forget()

    def _forget(self) -> None:
        self.mixup.disarm()
        self._step.close()

    def state_dict(self) -> dict[str, Any]:
        """The state of the generator, for the checkpoint."""
        return self.mixup.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with the generator of a checkpoint.

        Args:
            state_dict: what `state_dict()` returned.
        """
        self.mixup.load_state_dict(state_dict)
