r"""A head written down as a sequence of operations, each with its own first and second derivative.

The second-order chain rule telescopes to a sum of local second derivatives (book: eq-tangent-adjoint),

$$ D^2(a\cdot f)[v, v] = \sum_s \mathrm{adj}_s \cdot D^2\mathrm{op}_s(z_s)[\dot z_s, \dot z_s], $$

with $\dot z_s$ the tangent of $v$ in front of operation s and $\mathrm{adj}_s$ the cotangent of $a \cdot f$ behind it.
`Recorder` runs the head once and keeps, per operation, how a tangent passes it (`Node.push`) and its local second
derivative (`Node.form`); linear operations have none. What each operation contributes is said in `rules.py`;
`linearization.py` puts the sum together.

Nothing is guessed: an operation whose dependence on the features cannot be followed raises
`UnsupportedOperationError`, and the caller takes nested automatic differentiation instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..primitives import OUT_OF_PLACE, REPLACEMENTS

#: Where the samples are in a tensor: (dimension k, entries per sample c); sample of index j along k is j // c.
Layout = tuple[int, int]


#: What may be asked of a tensor after an operation has overwritten it.
_METADATA = {torch.Tensor.size, torch.Tensor.dim, torch.Tensor.numel, torch.Tensor.__len__} | {
    getattr(torch.Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device")
}


class UnsupportedOperationError(Exception):
    """The dependence of an operation on the features cannot be followed; says which and why."""


@dataclass(eq=False)
class Value:
    """A tensor that depends on the features.

    Attributes:
        tensor: the value itself, part of the autograd graph.
        layout: where its samples are.
        shared: whether a tangent that is the same for all samples is the same for all samples here.
    """

    tensor: Tensor
    layout: Layout
    shared: bool = False


@dataclass(eq=False)
class Node:
    """One operation.

    Attributes:
        name: for reports.
        inputs: the values it depends on.
        output: its result.
        push: tangents of the inputs, `(m, *shape)`, to the tangent of the output.
        form: `None` for an operation that is linear (or piecewise linear) in all inputs together; otherwise maps the
            cotangent of the output to a function from tangents of the inputs to the local second derivatives against
            it, entry by entry, `(m, *shape)`, or already summed for each sample, `(m, b)`.
    """

    name: str
    inputs: tuple[Value, ...]
    output: Value
    push: Callable[..., Tensor]
    form: Callable[[Tensor], Callable[..., Tensor]] | None


def tensors_in(*items) -> list[Tensor]:
    """All tensors inside lists, tuples and dicts."""
    found, stack = [], list(items)
    while stack:
        item = stack.pop()
        if isinstance(item, Tensor):
            found.append(item)
        elif isinstance(item, (list, tuple)):
            stack.extend(item)
        elif isinstance(item, dict):
            stack.extend(item.values())
    return found


def _memory(tensor: Tensor) -> int:
    """A number that tensors share with their views."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # without a storage
        return -id(tensor)


def graph_nodes(root) -> Iterator:
    """The nodes of an autograd graph behind `root`."""
    seen, stack = set(), [root]
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            stack.extend(parent for parent, _ in node.next_functions)


class Recorder(TorchFunctionMode):
    """Context that writes down what happens to the features, from the call of `start` on.

    Args:
        rules: torch function -> handler `(recorder, function, *args, **kwargs) -> result`.
        local: handler for any other function.
    """

    #: Entering `exact_derivatives` inside does nothing: the rules here are exact themselves.
    exact = True

    def __init__(self, rules: dict[Callable, Callable], local: Callable):
        super().__init__()
        self.rules, self.local = rules, local
        self.nodes: list[Node] = []
        self.value: Value | None = None
        self.samples = 0
        self._values: dict[int, Value] = {}
        self._constants: dict[int, Tensor] = {}
        self._overwritten: dict[int, Tensor] = {}  # by their memory, which other tensors may share
        self._replacing: list[Callable] = []

    def start(self, h: Tensor) -> Tensor:
        """The features `h` `(b, *feature)`, as the head has to take them to be followed; they must require grad."""
        if self.value is not None:
            raise UnsupportedOperationError("a layer that is called more than once")
        h = h.view_as(h)  # a graph node of their own, by which a dependence on them can be told
        self.samples, self.value = len(h), self.track(h, (0, 1), shared=True)
        return h

    def track(self, tensor: Tensor, layout: Layout | None, shared: bool = False) -> Value:
        """Make a tensor known as a function of the features; its record keeps it alive, and so its id."""
        if layout is None:
            raise UnsupportedOperationError("the samples of a tensor could not be told apart behind it")
        if tensor.is_complex():
            raise UnsupportedOperationError("complex numbers")
        value = Value(tensor, layout, shared)
        self._values[id(tensor)] = value
        return value

    def find(self, item) -> Value | None:
        """The record of a tensor that depends on the features."""
        return self._values.get(id(item)) if isinstance(item, Tensor) else None

    def emit(self, name: str, inputs, out: Tensor, push, form=None, *, layout, shared: bool = False) -> Tensor:
        """Write down one operation and return its result."""
        if self.find(out) is not None:  # the operation returned its argument
            return out
        output = self.track(out, layout, shared and all(v.shared for v in inputs))
        self.nodes.append(Node(name, tuple(inputs), output, push, form))
        return out

    def run(self, function: Callable, *args, **kwargs):
        """Call a function as part of the head: what it does is written down too."""
        with self:
            return function(*args, **kwargs)

    def _reaches_features(self, tensor: Tensor) -> bool:
        """Whether an unknown tensor depends on the features by a way that went unseen."""
        return any(node is self.value.tensor.grad_fn for node in graph_nodes(tensor.grad_fn))

    def _check(self, func, tensors: list[Tensor]) -> None:
        """Whether all tensors are what they seem: known, or independent of the features, and not overwritten."""
        for tensor in tensors:
            if tensor.grad_fn is not None and id(tensor) not in self._values and id(tensor) not in self._constants:
                if self._reaches_features(tensor):
                    raise UnsupportedOperationError("a custom autograd function, whose inside cannot be seen")
                self._constants[id(tensor)] = tensor
            if self._overwritten and func not in _METADATA and _memory(tensor) in self._overwritten:
                raise UnsupportedOperationError("a tensor that is read again after an operation has overwritten it")

    def _constant(self, function, args, kwargs):
        out = function(*args, **kwargs)
        for tensor in tensors_in(out):
            if tensor.grad_fn is not None:
                self._constants[id(tensor)] = tensor
        return out

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Write down one call; the mode is off meanwhile."""
        kwargs = dict(kwargs or {})
        if self.value is None:
            return func(*args, **kwargs)
        tensors = tensors_in(args, kwargs)
        self._check(func, tensors)
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
        out = self._record(func, args, kwargs, name)
        if overwrites:
            target = args[0] if args else kwargs["input"]
            if _memory(target) != _memory(out):  # not if nothing had to be done
                self._overwritten[_memory(target)] = target
        return out

    def _record(self, func, args, kwargs, name: str):
        rule = self.rules.get(func)
        if rule is not None:
            try:
                return rule(self, func, *args, **kwargs)
            except (TypeError, AttributeError) as error:  # arguments that PyTorch takes and the rule does not know
                raise UnsupportedOperationError(f"{name}: {error}") from error
        if func in REPLACEMENTS and func not in self._replacing:
            self._replacing.append(func)  # a composition may end in the function itself, for options it leaves alone
            try:
                return self.run(REPLACEMENTS[func], *args, **kwargs)
            finally:
                self._replacing.pop()
        return self.local(self, func, *args, **kwargs)
