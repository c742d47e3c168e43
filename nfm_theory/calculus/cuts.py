r"""Whether the derivatives that a head reports are those of what it computes, from differences of its values.

A model can cut a derivative: by `detach`, `no_grad`, `.data` or NumPy, by a straight-through estimator, or by a custom
`autograd.Function` with a wrong formula. PyTorch then reports 0, or another number, without a word. The check compares

$$ J v \quad\text{with}\quad \frac{f(h + a v) - f(h - a v)}{2a}, \qquad
   a\cdot\nabla^2 f[v, v] \quad\text{with the same quotient of}\quad a\cdot J v, $$

at a few points near the features, along random directions. Each quotient is computed for two steps, whose difference
says how far it can be trusted: near a kink, or where rounding hides the change, nothing is claimed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from math import isfinite
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch._C._functorch import peek_interpreter_stack

from ..setting.ambient import undisturbed
from ..setting.options import checks_derivatives
from .derivatives import directional_derivatives
from .engine import linearize
from .failures import DerivativeError, described, explained
from .forward_mode import jvp

if TYPE_CHECKING:
    from ..setting.problem import Problem

Head = Callable[[Tensor], Tensor]
#: The number of samples at which a head is checked, and how far these points are from the features.
SAMPLES, OFFSET = 3, 0.01
#: Steps a, relative to the size of the features, by precision: the first one decides unless rounding hides the change.
STEPS = {torch.float64: (1e-7, 1e-5, 1e-3), torch.float32: (1e-3, 1e-2)}
#: Relative difference of a derivative and its quotient that is no rounding error, by precision.
TOLERANCE = {torch.float64: 1e-3, torch.float32: 2e-2}
#: A claim needs a difference this many times larger than the error of the quotient.
CERTAINTY = 10.0
ADVICE = (
    "look there for detach(), no_grad(), .data, .item(), NumPy, rounding, or a custom autograd function. If the cut is "
    "meant, nfm_theory.options(check_derivatives=False) takes the reported derivatives"
)


INFINITE = (
    "look there for 0 times infinity, as behind torch.where(x > 0, x.sqrt(), x), or in a norm or square root at 0; "
    "keep their arguments away from 0, x.clamp_min(1e-12).sqrt() for example"
)


def check_finite(terms: Mapping[str, Tensor]) -> None:
    """Refuse terms that are not finite, unless the caller has switched the check off.

    Raises:
        DerivativeError: with the names of these terms.
    """
    if peek_interpreter_stack() is None and checks_derivatives():
        wrong = [name for name, value in terms.items() if not value.detach().isfinite().all()]
        if wrong:
            raise DerivativeError(
                f"model: {', '.join(wrong)} would be nan or infinite, because a derivative of the network is at one of "
                f"the samples, or its outputs are too large: {INFINITE}."
            )


@undisturbed()
def check_problem(problem: Problem, order: int) -> None:
    """`check_derivatives` for a problem, once for each order, and not if the caller has switched it off.

    Args:
        problem: the problem.
        order: highest order of the derivatives that are needed.

    Raises:
        DerivativeError: if a derivative is cut, wrong or missing.
    """
    inside = peek_interpreter_stack() is not None  # `vmap` hides the values
    if order <= getattr(problem, "checked_order", 0) or inside or not checks_derivatives():
        return
    check_derivatives(*_in_float64(problem), order=min(order, 3), modules=problem._split.network.named)
    vars(problem)["checked_order"] = order


def _in_float64(problem: Problem) -> tuple[Head, Tensor]:
    """Head and features in float64 if the model can compute in it, as they are otherwise."""
    if problem.features.dtype == torch.float64:
        return problem.head, problem.features
    wide = problem._changed(_split=problem._split.in_float64(), features=problem.features.detach().double())
    try:
        with torch.no_grad():
            works = wide.head(wide.features[:1]).dtype == torch.float64
    except (RuntimeError, TypeError, ValueError):
        works = False
    return (wide.head, wide.features) if works else (problem.head, problem.features)


def check_derivatives(
    head: Head, features: Tensor, *, order: int = 2, modules: Mapping[str, nn.Module] | None = None
) -> None:
    """Refuse a head whose derivatives are not those of its values; costs about a hundred rows of the head.

    Args:
        head: maps `(b, *feature)` to `(b, K)`, each sample on its own.
        features: the features, `(n, *feature)`; in float64 if the head can compute in it, which makes the check sharp.
        order: highest order that is checked: 1, 2, or 3.
        modules: the modules of the model by name, among which a cut is searched.

    Raises:
        DerivativeError: if a derivative is cut or wrong, or cannot be taken; the message names the module.

    Example:
        >>> check_derivatives(lambda h: (h * h.detach()).sum(1, keepdim=True), torch.ones(2, 3, dtype=torch.float64))
        Traceback (most recent call last):
        nfm_theory.calculus.failures.DerivativeError: model: the derivative that PyTorch reports is not ...
    """
    if features.dtype not in STEPS:
        return  # half precision, whose differences say nothing
    modules = modules or {}
    points, directions = _near(features.detach())
    order = order if features.dtype == torch.float64 else 1
    with explained(modules):
        try:
            wrong = _wrong_order(head, points, directions, order)
        except DerivativeError:
            jvp(head, (points,), (directions,))  # fails again inside the module, which the message then names
            raise
    if wrong is None:
        return
    which = ("", "derivative", "second derivative", "third derivative")[wrong[0]]
    with explained(modules):
        place = find_cut(head, points, directions, modules, order=wrong[0])
    where = described(place, modules[place]) if place is not None and place in modules else "its forward"
    error = DerivativeError(
        f"model: the {which} that PyTorch reports is not the {which} of what the model computes: along a random "
        f"direction it has the size {wrong[1]:.3g}, while the values change by {wrong[2]:.3g}. It is cut in {where}: "
        f"{ADVICE if isfinite(wrong[1]) else INFINITE}."
    )
    error.place = where
    raise error


def _near(features: Tensor) -> tuple[Tensor, Tensor]:
    """Points near a few features, and directions as long as them, `(b, *feature)`; kinks at the features are left."""
    rows = torch.linspace(0, len(features) - 1, min(SAMPLES, len(features))).round().long()
    h = features[rows.to(features.device)]
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn((2, *h.shape), generator=generator, dtype=torch.float64).to(h)
    size = h.flatten(1).square().mean(1).sqrt()
    size = torch.where(size > 0, size, 1.0).reshape(-1, *[1] * (h.ndim - 1))
    return h + OFFSET * size * draws[0], size * draws[1]


def _wrong_order(head: Head, h: Tensor, v: Tensor, order: int) -> tuple[int, float, float] | None:
    """The lowest order that is wrong, with the sizes of the reported derivative and of the quotient."""
    open_orders = list(range(1, order + 1))
    for step in STEPS[h.dtype]:
        jets = _jets(head, h, v, step, order)
        for k in list(open_orders):
            verdict = _compared(jets[k], _quotients(jets[k - 1][0], step), jets[k - 1][0], h.dtype, step)
            if verdict is not None and verdict[0]:
                return k, *verdict[1:]
            if verdict is not None:
                open_orders.remove(k)
        if not open_orders:
            return None
    return None


def _jets(head: Head, h: Tensor, v: Tensor, step: float, order: int) -> list[list[Tensor]]:
    """By order, the derivative at h + t v for t = 0, ±a, ±2a, `(5, ...)`, as each way to take it reports it."""
    times = torch.tensor([0.0, step, -step, 2 * step, -2 * step], dtype=h.dtype, device=h.device)
    rows = (h + times.reshape(-1, *[1] * h.ndim) * v).flatten(0, 1)
    along = v.repeat(len(times), *[1] * (h.ndim - 1))
    leaf = rows.clone().requires_grad_()
    with torch.enable_grad():
        outputs = head(leaf)
        weights = _weights(outputs[: len(h)]).repeat(len(times), 1)
        values = (outputs * weights).sum(1)
        # Without a graph nothing depends on the features, or so PyTorch says
        pulled = torch.autograd.grad(values.sum(), leaf, allow_unused=True)[0] if values.requires_grad else None
    reverse = torch.zeros_like(values) if pulled is None else (pulled * along).flatten(1).sum(1)
    found = [[values], [reverse]]
    if order > 1:
        at = linearize(head, rows, differentiable=False)
        tangents, forms = at.sweep(along.unsqueeze(0), weights)
        again = (at.pullback(weights) * at.propagate(along.unsqueeze(0))[0]).sum(1)
        found[1] += [(tangents[0] * weights).sum(1), again]
        found.append([forms[0]])
    if order > 2:
        nested = directional_derivatives(head, rows, along, 3)
        found[2].append((nested[2] * weights).sum(1))
        found.append([(nested[3] * weights).sum(1)])
    return [[part.detach().unflatten(0, (len(times), -1)) for part in parts] for parts in found]


def _weights(outputs: Tensor) -> Tensor:
    """Random weights of the outputs, by which all of them are seen in one number for each sample."""
    return torch.randn(outputs.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(outputs)


def _quotients(values: Tensor, step: float) -> tuple[Tensor, Tensor]:
    """The central differences for the steps a and 2a."""
    return (values[1] - values[2]) / (2 * step), (values[3] - values[4]) / (4 * step)


def _compared(
    reported: Sequence[Tensor], quotients: tuple[Tensor, Tensor], values: Tensor, dtype: torch.dtype, step: float
) -> tuple[bool, float, float] | None:
    """Whether one of the reported derivatives is wrong, with both sizes; `None` if nothing can be said."""
    near, far = quotients
    if not all(z.isfinite().all() for z in (near, far, values)):
        return None
    scale = float(values[0].norm())
    error = float((near - far).norm()) + 16 * torch.finfo(dtype).eps * scale / step
    size = float(near.norm())
    for part in reported:
        known = float(part[0].norm())
        if not float((near - part[0]).norm()) <= TOLERANCE[dtype] * max(size, known) + CERTAINTY * error:
            return True, known, size
    largest = max([size, *(float(part[0].norm()) for part in reported)])
    return (False, largest, size) if CERTAINTY * error <= max(0.3 * largest, 1e-3 * scale) else None


class _Recorded:
    """Runs a head along h + t v and returns the arguments and results of every module, in order."""

    def __init__(self, head: Head, h: Tensor, v: Tensor, modules: Mapping[str, nn.Module]):
        self.head, self.h, self.v, self.modules = head, h, v, modules
        self.calls: list[tuple[str, range, range]] = []  # name, places of the arguments and of the results

    def __call__(self, t: Tensor) -> tuple[Tensor, ...]:
        tensors: list[Tensor] = []
        self.calls, begun = [], []

        def keep(items) -> range:
            found = [z.clone() for z in _tensors(items) if z.is_floating_point()]
            tensors.extend(found)
            return range(len(tensors) - len(found), len(tensors))

        def begin(module, args, kwargs):
            begun.append(keep((args, kwargs)))

        def end(name, module, args, output):
            self.calls.append((name, begun.pop(), keep(output)))

        with ExitStack() as stack:
            named = {id(module): name for name, module in self.modules.items()}
            for module in {id(m): m for m in self.modules.values()}.values():
                stack.callback(module.register_forward_pre_hook(begin, prepend=True, with_kwargs=True).remove)
                after = lambda m, args, output: end(named[id(m)], m, args, output)  # noqa: E731
                stack.callback(module.register_forward_hook(after).remove)
            start = self.h + t * self.v
            outputs = self.head(start)
        self.calls.append(("", keep(start), keep(outputs)))
        return tuple(tensors)


def _tensors(items) -> list[Tensor]:
    if isinstance(items, Tensor):
        return [items]
    if isinstance(items, Mapping):
        items = list(items.values())
    return [z for item in items for z in _tensors(item)] if isinstance(items, (list, tuple)) else []


def find_cut(head: Head, h: Tensor, v: Tensor, modules: Mapping[str, nn.Module], *, order: int = 1) -> str | None:
    """The name of the innermost module whose arguments have the right derivative and whose result has not.

    Args:
        head: maps `(b, *feature)` to outputs.
        h: points, `(b, *feature)`.
        v: directions, `(b, *feature)`.
        modules: the modules of the model by name.
        order: the order of the derivative that is wrong.

    Returns:
        The name; `""` if it is no module inside the model; `None` if it cannot be found.
    """
    run = _Recorded(head, h, v, modules)
    step = STEPS[h.dtype][0]
    zero = torch.zeros((), dtype=h.dtype, device=h.device)

    def derived(k: int) -> Callable[[Tensor], tuple[Tensor, ...]]:
        if k == 0:
            return run
        lower = derived(k - 1)
        return lambda t: jvp(lower, (t,), (torch.ones_like(t),))[1]

    with torch.no_grad():
        ahead, behind = (derived(order - 1)(zero + s * step) for s in (1, -1))
    quotients = [(a - b) / (2 * step) for a, b in zip(ahead, behind, strict=True)]
    reported = [derived(order)(zero)]
    if order == 1:
        reported.append(_backward(run, zero))
    wrong = {k for k, q in enumerate(quotients) if any(_disagrees(part[k], q, ahead[k], step) for part in reported)}
    for name, arguments, results in run.calls:
        if wrong & set(results) and not wrong & set(arguments):
            return name
    return None


def _backward(run: _Recorded, zero: Tensor) -> tuple[Tensor, ...]:
    """The derivative of each recorded tensor by reverse mode, as a tensor along random weights times these."""
    t = zero.clone().requires_grad_()
    with torch.enable_grad():
        tensors = run(t)
        return tuple(_pulled(z, t) for z in tensors)


def _pulled(z: Tensor, t: Tensor) -> Tensor:
    """dz/dt, entry by entry, by a backward pass through a product with a dummy (two reverse passes)."""
    if not z.requires_grad:
        return torch.zeros_like(z)
    weights = torch.zeros_like(z, requires_grad=True)
    (first,) = torch.autograd.grad(z, t, weights, create_graph=True, allow_unused=True)
    if first is None or not first.requires_grad:
        return torch.zeros_like(z)
    (found,) = torch.autograd.grad(first, weights, retain_graph=True, allow_unused=True)
    return torch.zeros_like(z) if found is None else found


def _disagrees(reported: Tensor, quotient: Tensor, values: Tensor, step: float) -> bool:
    reported, quotient, values = reported.detach(), quotient.detach(), values.detach()
    rounding = 16 * torch.finfo(values.dtype).eps * float(values.norm()) / step
    size = max(float(reported.norm()), float(quotient.norm()))
    return not float((reported - quotient).norm()) <= TOLERANCE[values.dtype] * size + CERTAINTY * rounding
