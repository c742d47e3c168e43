"""Errors of derivatives in words that say what to do: PyTorch's own name its internals."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn


class DerivativeError(ValueError):
    """Derivatives of a model cannot be taken, or are not those of what it computes; the message says what to change.

    Attributes:
        place: the module that cuts a derivative, such as `"module 'act' (Sign)"`; empty if that is not known.
    """

    place = ""


_ROUNDS = (
    "an operation rounds, and the derivative that PyTorch gives it (straight-through) is not that of its values",
    "take the model before quantization, or put nn.Identity() in place of what rounds",
)
#: A part of PyTorch's message -> what it means, and the way out; the first one that fits.
CURES = {
    "fake_quantize": _ROUNDS,
    "_obs_fq": _ROUNDS,
    "saved tensor hooks": (
        "the model recomputes or offloads activations",
        "switch activation checkpointing and saved-tensor hooks off for this call, "
        "model.gradient_checkpointing_disable() for example",
    ),
    "setup_context": (
        "a torch.autograd.Function has no rule for forward mode",
        "write it with torch operations, or give it setup_context() and jvp()",
    ),
    "implement the jvp function": (
        "a torch.autograd.Function has no rule for forward mode",
        "write it with torch operations, or give it a jvp()",
    ),
    "not implemented jvp": (
        "a torch.autograd.Function has no rule for forward mode",
        "write it with torch operations, or give it a jvp()",
    ),
    "generate_vmap_rule": (
        "a torch.autograd.Function has no rule for vmap",
        "set generate_vmap_rule = True in it, or write it with torch operations",
    ),
    "forward AD": (
        "PyTorch has no forward-mode derivative of an operation",
        "write the operation with others, such as products, sums and indexing",
    ),
    "forward-mode": (
        "PyTorch has no forward-mode derivative of an operation",
        "write the operation with others, such as products, sums and indexing",
    ),
    "derivative for": (
        "PyTorch has no second derivative of an operation",
        "write the operation with others, such as products, sums and indexing",
    ),
    "is not implemented": (
        "PyTorch has no derivative of an operation",
        "write the operation with others, such as products, sums and indexing",
    ),
    "data-dependent control flow": (
        "torch.vmap hides the values that are checked, or on which a branch depends",
        "loop over what is mapped",
    ),
    "functorch transform": (
        "this computation takes gradients of its own, which torch.func cannot transform",
        "use torch.autograd with params= that require gradients",
    ),
    "vmap": (
        "an operation cannot run for many directions at once",
        "write it without in-place changes, .item() and branches that depend on values",
    ),
    "data pointer": (
        "the values leave PyTorch, by NumPy or a foreign kernel, and their derivative is lost",
        "compute with torch operations",
    ),
    "numpy()": (
        "the values leave PyTorch, by NumPy, and their derivative is lost",
        "compute with torch operations",
    ),
    "Inference tensors": (
        "a tensor was made inside torch.inference_mode()",
        "make the model and its inputs outside of it, or under torch.no_grad()",
    ),
    "inference tensor": (
        "a tensor was made inside torch.inference_mode()",
        "make the model and its inputs outside of it, or under torch.no_grad()",
    ),
    "modified by an inplace operation": (
        "an in-place operation overwrites what a derivative needs",
        "set inplace=False, and write x = x + y for x += y",
    ),
    "undefined Tensor": (
        "PyTorch has no forward-mode derivative of an operation",
        "write the operation with others, such as products, sums and indexing",
    ),
}


def cause(error: BaseException) -> tuple[str, str] | None:
    """What an error of PyTorch means, and the way out; `None` if it is no error of derivatives."""
    message = str(error)
    return next((cure for part, cure in CURES.items() if part in message), None)


def described(name: str, module: nn.Module) -> str:
    """A module for a message, with the name of its class."""
    return f"module {name!r} ({type(module).__name__})" if name else f"the forward of {type(module).__name__}"


def failing_module(error: BaseException, modules: Mapping[str, nn.Module]) -> str:
    """The innermost module of the model in whose `forward` the error was raised, for a message; `""` if none."""
    names = {id(module): name for name, module in modules.items()}
    found, trace = "", error.__traceback__
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and id(owner) in names:
            found = described(names[id(owner)], owner)
        trace = trace.tb_next
    return found


def running_module() -> str:
    """The class of the innermost module whose `forward` runs now, for a message; `""` if none."""
    frame = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module):
            return type(owner).__name__
        frame = frame.f_back
    return ""


@contextmanager
def explained(modules: Mapping[str, nn.Module] | None = None, *, subject: str = "model") -> Iterator[None]:
    """Turn errors of PyTorch about derivatives into a `DerivativeError` that names the module and the way out.

    Args:
        modules: the modules of the model by name.
        subject: what is differentiated, for the message.

    Raises:
        DerivativeError: for every error whose cause is known. Other errors pass unchanged.
    """
    try:
        yield
    except RuntimeError as error:
        known = cause(error)
        if known is None:
            raise
        place = failing_module(error, modules or {})
        if "setup_context" in str(error) and any(
            module._backward_hooks or module._backward_pre_hooks for module in (modules or {}).values()
        ):
            known = "a backward hook is no rule for forward mode", "remove the hook for this call, handle.remove()"
        meaning, cure = known
        first = str(error).splitlines()[0][:200]
        where = f" in {place}" if place else ""
        raise DerivativeError(f"{subject}: no derivative{where}: {meaning}; {cure}. (PyTorch: {first})") from error
