"""What surrounds a call: autocast, inference mode and activation checkpointing, none of which may change a number."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

_TURN = threading.RLock()
_INSIDE = 0


@contextmanager
def full_precision() -> Iterator[None]:
    """Switch autocast off, for all devices."""
    with ExitStack() as stack:
        for device in {"cpu", torch._C._get_accelerator().type}:
            if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


@contextmanager
def undisturbed() -> Iterator[None]:
    """Compute as outside of autocast and of `torch.inference_mode()`; as a decorator, for a whole function.

    Rounding to bfloat16 would hide second derivatives, and inference mode records none. What is computed instead of in
    inference mode has no graph, as there.
    """
    with ExitStack() as stack:
        if torch._C._is_any_autocast_enabled():
            stack.enter_context(full_precision())
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
        yield


def recordable(z: Tensor) -> Tensor:
    """The tensor, or a copy of one that was made in inference mode and that no derivative may use."""
    return z.clone() if isinstance(z, Tensor) and z.is_inference() else z


def taking_turns():
    """The context in which one thread at a time runs models and their derivatives.

    Hooks and exchanged parameters of one thread would act in the passes of another one, and forward-mode
    differentiation has one stack of levels for all threads of a process, so that it would be silently wrong.
    """
    return _TURN


class _Direct:
    """Stands in for the function that recomputes activations: it calls what it is given."""

    @staticmethod
    def apply(function: Callable, preserve_rng_state: bool, *args):
        return function(*args)


def _recompute_nothing(*args, **kwargs) -> Iterator[None]:
    yield


_REPLACED = {"CheckpointFunction": _Direct, "_checkpoint_without_reentrant_generator": _recompute_nothing}
_ORIGINAL: dict[str, Any] = {}


@contextmanager
def without_checkpointing() -> Iterator[None]:
    """Let `torch.utils.checkpoint` keep all activations: forward mode and `torch.func` refuse to recompute them.

    The numbers are the same. Other threads keep their activations as well for that time.
    """
    global _INSIDE
    module = sys.modules.get("torch.utils.checkpoint")
    if module is None:
        yield
        return
    with _TURN:
        _INSIDE += 1
        if _INSIDE == 1:
            _ORIGINAL.update({name: vars(module)[name] for name in _REPLACED if name in vars(module)})
            vars(module).update({name: _REPLACED[name] for name in _ORIGINAL})
    try:
        yield
    finally:
        with _TURN:
            _INSIDE -= 1
            if _INSIDE == 0:
                vars(module).update(_ORIGINAL)
