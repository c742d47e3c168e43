r"""Record a head as a sequence of operations, each with its own first and second derivative.

The second-order chain rule telescopes to a sum of local second derivatives (book: eq-tangent-adjoint),

$$ D^2(a\cdot f)[v, v] = \sum_s \mathrm{adj}_s \cdot D^2\mathrm{op}_s(z_s)[\dot z_s, \dot z_s], $$

with $\dot z_s$ the tangent before operation s (of the direction $v$) and $\mathrm{adj}_s$ the cotangent of
$a \cdot f$ after it. `Recorder` runs the head once. For each operation it stores how a tangent is transformed
(`Node.push`) and the local second derivative (`Node.form`), which linear operations do not have. The rules of the
operations are in `rules.py`; `taped.py` computes the sum.

If it cannot be determined how an operation depends on the features, `UnsupportedOperationError` is raised, and the
caller uses nested automatic differentiation instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from weakref import ref

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

from ...setting.ambient import full_precision
from ..replacements import OUT_OF_PLACE, REPLACEMENTS
from .series import Series

#: Where the samples are in a tensor: (dimension k, entries per sample c). Index j along k belongs to sample j // c.
Layout = tuple[int, int]

#: Attributes of a tensor that may be read after an operation has overwritten it.
_METADATA = {torch.Tensor.size, torch.Tensor.dim, torch.Tensor.numel, torch.Tensor.__len__} | {
    getattr(torch.Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device")
}


class UnsupportedOperationError(Exception):
    """Raised if it cannot be followed how an operation depends on the features; the message names the operation."""


@dataclass(eq=False)
class Value:
    """A tensor that depends on the features, without the numbers in it.

    Attributes:
        edge: place in the autograd graph, which stays alive with it; deleted once it is no longer needed.
        shape: shape of the tensor.
        nbytes: size in bytes.
        layout: where the samples are.
        shared: True if samples that share their directions share the tangents of this tensor as well.
    """

    edge: GradientEdge
    shape: torch.Size
    nbytes: int
    layout: Layout
    shared: bool = False

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)


@dataclass(eq=False)
class Node:
    """One recorded operation.

    Attributes:
        inputs: values that it depends on.
        output: its result.
        push: maps tangents of the inputs, `(m, *shape)`, to the tangent of the output.
        form: maps the cotangent of the output to a function of the tangents of the inputs. This function returns the
            local second derivatives, contracted with the cotangent: entry by entry, `(m, *shape)`, or already summed
            over each sample, `(m, b)`. `None` if the operation is linear or piecewise linear in all inputs together.
        series: maps the Taylor series of the inputs along a path to that of the output, see `series.py`; `None` where
            `form` is.
        cubic: the same for paths with two coefficients t and u, and with little arithmetic: maps the cotangent of the
            output to a function of t and u, which may be `None`. It returns both coefficients of the output, and the
            third one without that of the input, contracted as in `form`. `None` if `series` has to do.
        joint: True if the function of `form` returns the local second derivatives together with the result of `push`.
        cotangents: values whose cotangents `form` takes, besides that of the output.
    """

    inputs: tuple[Value, ...]
    output: Value
    push: Callable[..., Tensor]
    form: Callable[..., Callable[..., Any]] | None
    series: Callable[..., Series] | None = None
    joint: bool = False
    cotangents: tuple[Value, ...] = ()
    cubic: Callable[[Tensor], Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor, Tensor]]] | None = None

    @property
    def weighed(self) -> tuple[Value, ...]:
        """The values whose cotangents `form` takes."""
        return (self.output, *self.cotangents)


def tensors_in(*items) -> list[Tensor]:
    """All tensors inside lists, tuples and dicts."""
    found = []
    for item in items:
        if isinstance(item, Tensor):
            found.append(item)
        elif isinstance(item, (list, tuple)):
            found += tensors_in(*item)
        elif isinstance(item, dict):
            found += tensors_in(*item.values())
    return found


def _memory(tensor: Tensor) -> int:
    """A number that identifies the memory of a tensor: a tensor and its views have the same one."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # without a storage
        return -id(tensor)


def graph_nodes(root) -> Iterator:
    """All nodes of the autograd graph that `root` depends on."""
    seen, stack = set(), [root]
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            stack.extend(parent for parent, _ in node.next_functions)


class Recorder(TorchFunctionMode):
    """Context manager that records every operation on the features, from the call of `start` on.

    Args:
        rules: maps a function of PyTorch to its handler `(recorder, function, *args, **kwargs) -> result`.
        local: handler for all other functions.
        light: True if no gradients of the results are needed. Parameters are then kept out of the autograd graph, and
            the rules keep no tensors with a graph.
    """

    #: `exact_derivatives` has no effect inside this context: the rules are exact themselves.
    exact = True

    def __init__(self, rules: dict[Callable, Callable], local: Callable, *, light: bool = False):
        super().__init__()
        self.rules, self.local, self.light = rules, local, light
        self.nodes: list[Node] = []
        self.features: Tensor | None = None
        self.value: Value | None = None
        self.samples = 0
        self._values: dict[int, tuple[ref, Value]] = {}  # by id, as long as the tensor exists
        self._constants: dict[int, Tensor] = {}
        self._overwritten: dict[int, StorageWeakRef | Tensor] = {}  # by memory, which several tensors may share
        self._replacing: list[Callable] = []

    def start(self, h: Tensor) -> Tensor:
        """Start with features `h` `(b, *feature)` that require grad; returns the tensor to pass to the head."""
        if self.value is not None:
            raise UnsupportedOperationError("a layer that is called more than once")
        h = h.view_as(h)  # a graph node of its own, which shows whether a tensor depends on the features
        self.samples, self.features, self.value = len(h), h, self.track(h, (0, 1), shared=True)
        return h

    def track(self, tensor: Tensor, layout: Layout | None, shared: bool = False) -> Value:
        """Register a tensor as a function of the features, as long as it exists."""
        if layout is None:
            raise UnsupportedOperationError("an operation after which the samples cannot be told apart")
        if tensor.is_complex():
            raise UnsupportedOperationError("complex numbers")
        if tensor.grad_fn is None:
            raise UnsupportedOperationError("an operation without a derivative")
        value = Value(GradientEdge(tensor.grad_fn, tensor.output_nr), tensor.shape, tensor.nbytes, layout, shared)
        key, known = id(tensor), self._values
        known[key] = ref(tensor, lambda _: known.pop(key, None)), value
        return value

    def keep(self, tensor: Tensor) -> Tensor:
        """The tensor in the form that a rule may store: detached from its graph, unless gradients are needed."""
        return tensor.detach() if self.light else tensor

    def find(self, item) -> Value | None:
        """The record of a tensor, or `None` if the item is no tensor that depends on the features."""
        return self._values.get(id(item), (None, None))[1] if isinstance(item, Tensor) else None

    def emit(
        self, inputs, out: Tensor, push, form=None, series=None, *, layout, shared: bool = False, joint: bool = False,
        cotangents=(), cubic=None,
    ) -> Tensor:  # fmt: skip
        """Record one operation and return its result."""
        if self.find(out) is not None:  # the operation returned its argument
            return out
        output = self.track(out, layout, shared and all(v.shared for v in inputs))
        self.nodes.append(Node(tuple(inputs), output, push, form, series, joint, cotangents, cubic))
        return out

    def run(self, function: Callable, *args, **kwargs):
        """Call a function as part of the head, so that its operations are recorded too."""
        with self:
            return function(*args, **kwargs)

    def _check(self, func, tensors: list[Tensor], start: Value) -> None:
        """Refuse tensors that depend on the features by an unrecorded operation, and overwritten tensors."""
        for tensor in tensors:
            if tensor.grad_fn is not None and id(tensor) not in self._values and id(tensor) not in self._constants:
                if any(node is start.edge.node for node in graph_nodes(tensor.grad_fn)):
                    raise UnsupportedOperationError("a custom autograd function, whose operations are not visible")
                self._constants[id(tensor)] = tensor
            if self._overwritten and func not in _METADATA and self._is_overwritten(tensor):
                raise UnsupportedOperationError("a tensor that is read again after an operation has overwritten it")

    def _is_overwritten(self, tensor: Tensor) -> bool:
        found = self._overwritten.get(_memory(tensor))
        if isinstance(found, StorageWeakRef) and found.expired():  # another tensor has the memory now
            del self._overwritten[_memory(tensor)]
            return False
        return found is not None

    def _constant(self, function, args, kwargs):
        out = function(*args, **kwargs)
        for tensor in tensors_in(out):
            if tensor.grad_fn is not None:
                self._constants[id(tensor)] = tensor
        return out

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Record one call, in full precision. The mode is off meanwhile."""
        if torch._C._is_any_autocast_enabled():
            with full_precision():
                return self.__torch_function__(func, types, args, kwargs)
        kwargs = dict(kwargs or {})
        if self.value is None:
            return func(*args, **kwargs)
        tensors = tensors_in(*args, *kwargs.values())
        self._check(func, tensors, self.value)
        overwrites = bool(kwargs.get("inplace")) or func in OUT_OF_PLACE
        if not any(id(t) in self._values for t in tensors):
            return self._constant(func, args, kwargs)
        if kwargs.get("inplace"):
            kwargs["inplace"] = False
        func = OUT_OF_PLACE.get(func, func)
        name = getattr(func, "__name__", str(func))
        if not torch.is_grad_enabled():
            raise UnsupportedOperationError(f"{name} under no_grad")
        if kwargs.get("out") is not None or name == "__setitem__" or (name.endswith("_") and not name.endswith("__")):
            raise UnsupportedOperationError(f"{name}, which overwrites a tensor")
        if self.light and any(t.requires_grad and id(t) not in self._values for t in tensors):
            args, kwargs = self._without_graph(args), self._without_graph(kwargs)
        out = self._record(func, args, kwargs, name)
        if overwrites:
            target = args[0] if args else kwargs["input"]
            if _memory(target) != _memory(out):  # equal if there was nothing to do
                plain = _memory(target) >= 0
                self._overwritten[_memory(target)] = StorageWeakRef(target.untyped_storage()) if plain else target
        return out

    def _without_graph(self, item) -> Any:
        """The same arguments, with all tensors that do not depend on the features detached from their graph."""
        if isinstance(item, Tensor):
            return item.detach() if item.requires_grad and id(item) not in self._values else item
        if type(item) in (list, tuple):
            return type(item)(map(self._without_graph, item))
        return {k: self._without_graph(v) for k, v in item.items()} if type(item) is dict else item

    def _record(self, func, args, kwargs, name: str):
        rule = self.rules.get(func)
        if rule is not None:
            try:
                return rule(self, func, *args, **kwargs)
            except (TypeError, AttributeError) as error:  # arguments that the rule does not know
                raise UnsupportedOperationError(f"{name}: {error}") from error
        if func in REPLACEMENTS and func not in self._replacing:
            self._replacing.append(func)  # a composition may call the function itself
            try:
                return self.run(REPLACEMENTS[func], *args, **kwargs)
            finally:
                self._replacing.pop()
        return self.local(self, func, *args, **kwargs)
