"""The forward passes of a training step: which of them is mixed, and which is refused.

| call | passes of the model in training mode |
|---|---|
| `mixup(x, y)` | exactly one, and it is mixed |
| `with mixup.step(x, y)` | any number, all mixed with the same draw |
| `with mixup.clean()` | any number, none is mixed or counted |

What is allowed does not depend on the layer drawn, so that a loop that does not fit fails in its first step. Passes in
evaluation mode, and those of the library's own measurements, are never mixed and never counted.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from ..setting.network import MEASURING
from .hooks import Hook, hooked_modules

WAYS_OUT = (
    "For several passes on one batch use `with mixup.step(x, y) as (inputs, targets):`, which mixes all of them with "
    "the same draw. Run a pass that shall not be mixed in `with mixup.clean():`. Call mixup.disarm() when training "
    "goes on without mixing."
)


class Passes:
    """Hooks on a model that find its forward passes, and the state of the present step.

    Without hidden layers there are no hooks, and no pass is counted: the inputs are mixed before the pass.

    Args:
        model: network, not wrapped for parallel training.
        layers: names of the eligible layers.
        owner: object whose end removes the hooks.

    Attributes:
        state: `"idle"` outside of steps, `"waiting"` for the first pass of a step, `"running"` in a pass, and `"used"`
            after it.
        scope: True inside `with mixup.step(x, y)`.
    """

    def __init__(self, model: nn.Module, layers: tuple[str, ...], owner: object):
        self.model = model
        self.state: Literal["idle", "waiting", "running", "used"] = "idle"
        self.scope = False
        self._layer, self._mix, self._mixed, self._clean = "", None, False, False
        modules = hooked_modules(model, layers)
        handles = [m.register_forward_hook(Hook(model, partial(self._at, name))) for name, m in modules.items()]
        if modules:
            handles.append(model.register_forward_pre_hook(Hook(model, self._begin)))
            # after an exception too: a pass that has failed is over
            handles.append(model.register_forward_hook(Hook(model, self._end), always_call=True))
        self.hidden = bool(modules)
        self.remove = weakref.finalize(owner, _remove, handles)
        self.remove.atexit = False

    @property
    def removed(self) -> bool:
        """True if the hooks are gone."""
        return not self.remove.alive

    def open(self, layer: str, mix: Callable[[Tensor], Tensor]) -> None:
        """Start a step: the next pass is mixed.

        Args:
            layer: layer that is mixed, `""` for the input, which was mixed before.
            mix: function from the features of the layer to mixed features. It also keeps its object alive until a pass
                has used it.
        """
        if self.hidden:
            self.state, self._layer, self._mix, self._mixed = "waiting", layer, mix, False

    def close(self) -> None:
        """End the step: no later pass is mixed or refused."""
        self.state, self._mix = "idle", None

    def check_unused(self) -> None:
        """Refuse to go on when no pass has used the step."""
        if self.state == "waiting":
            raise RuntimeError(
                f"NoisyFeatureMixup: the targets of the last batch are mixed, but the features at layer {self._layer!r}"
                f" {'are' if self._layer else 'may be'} not, since no forward pass in training mode followed. Run "
                "model(inputs) once after each call, or call mixup.disarm() if you skipped that batch on purpose."
            )

    @contextlib.contextmanager
    def clean(self) -> Iterator[None]:
        """Within this context, passes are neither mixed nor counted."""
        before, self._clean = self._clean, True
        try:
            yield
        finally:
            self._clean = before

    # Hooks, called in training mode only ---------------------------------------------------------------------

    @property
    def _ignored(self) -> bool:
        """True if the present pass is none of the step."""
        return self._clean or MEASURING.get() or self.state == "idle"

    def _begin(self) -> None:
        if self._ignored or _in_backward():
            return
        if self.state != "waiting" and not self.scope:
            raise RuntimeError(
                "NoisyFeatureMixup: expected one forward pass in training mode after each call, got another one, which "
                f"would not be mixed like its targets. {WAYS_OUT}"
            )
        if torch._C._get_tracing_state() is not None or torch.compiler.is_compiling():
            raise RuntimeError(
                "NoisyFeatureMixup: the hooks would write the random numbers of one step into the traced model; call "
                "model.eval() or mixup.remove() before you export or trace it."
            )
        self.state, self._mixed = "running", False

    def _end(self, output) -> None:
        if self._ignored or self.state != "running" or _in_backward():
            return
        self._spend()
        if output is None or not self._layer or self._mixed:  # there is no output after an exception
            return
        raise RuntimeError(
            f"layer {self._layer!r}: expected it to be called in the forward pass, but the pass has ended without a "
            "call; remove the layer from `layers`."
        )

    def _at(self, layer: str, output):
        if _in_backward() and not MEASURING.get():
            raise RuntimeError(
                f"layer {layer!r}: it is recomputed in the backward pass (activation checkpointing), when its mixing "
                "is no longer known; put an nn.Identity behind the checkpointed part and name that one."
            )
        if self._ignored:
            return None
        if self.state != "running" and not self.scope:
            self._spend()
            raise RuntimeError(
                f"layer {layer!r}: expected one forward pass of the whole model, {type(self.model).__name__}, after "
                "each call, but the layer was called outside of it. Call the whole model, or build NoisyFeatureMixup "
                f"on the part that your loop calls. {WAYS_OUT}"
            )
        if layer != self._layer:
            return None
        if self.state == "running" and self._mixed:
            raise ValueError(
                f"layer {layer!r}: expected a module that is called once in a forward pass, but it is called again "
                "after it was mixed; name a layer around it or next to it."
            )
        assert self._mix is not None  # a step is open
        mixed = self._mix(output)
        self._mixed = True
        if self.state != "running":
            self._spend()  # in a scope a call outside of the whole model is a pass
        return mixed

    def _spend(self) -> None:
        """The step has had a pass."""
        self.state = "used"
        if not self.scope:
            self._mix = None


def _remove(handles: list) -> None:
    for handle in handles:
        handle.remove()


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1
