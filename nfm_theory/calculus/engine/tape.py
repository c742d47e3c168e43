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
from weakref import ref

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

from ..replacements import OUT_OF_PLACE, REPLACEMENTS

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
    """What is known of a tensor that depends on the features; the tensor itself is not kept.

    Attributes:
        edge: its place in the autograd graph, which it keeps alive; `None` once that is not needed any more.
        shape: its shape.
        nbytes: its size.
        layout: where its samples are.
        shared: whether a tangent that is the same for all samples is the same for all samples here.
    """

    edge: GradientEdge | None
    shape: torch.Size
    nbytes: int
    layout: Layout
    shared: bool = False

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)


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
        light: whether only numbers are wanted, no gradients of them: parameters stay outside the graph, and what the
            rules keep does not hold on to it.
    """

    #: Entering `exact_derivatives` inside does nothing: the rules here are exact themselves.
    exact = True

    def __init__(self, rules: dict[Callable, Callable], local: Callable, *, light: bool = False):
        super().__init__()
        self.rules, self.local, self.light = rules, local, light
        self.nodes: list[Node] = []
        self.features: Tensor | None = None
        self.value: Value | None = None
        self.samples = 0
        self._values: dict[int, tuple[ref, Value]] = {}  # while the tensor lives, whose id it is
        self._constants: dict[int, Tensor] = {}
        self._overwritten: dict[int, StorageWeakRef | Tensor] = {}  # by their memory, which other tensors may share
        self._replacing: list[Callable] = []

    def start(self, h: Tensor) -> Tensor:
        """The features `h` `(b, *feature)`, as the head has to take them to be followed; they must require grad."""
        if self.value is not None:
            raise UnsupportedOperationError("a layer that is called more than once")
        h = h.view_as(h)  # a graph node of their own, by which a dependence on them can be told
        self.samples, self.features, self.value = len(h), h, self.track(h, (0, 1), shared=True)
        return h

    def track(self, tensor: Tensor, layout: Layout | None, shared: bool = False) -> Value:
        """Make a tensor known as a function of the features, as long as it lives."""
        if layout is None:
            raise UnsupportedOperationError("the samples of a tensor could not be told apart behind it")
        if tensor.is_complex():
            raise UnsupportedOperationError("complex numbers")
        value = Value(GradientEdge(tensor.grad_fn, tensor.output_nr), tensor.shape, tensor.nbytes, layout, shared)
        key, known = id(tensor), self._values
        known[key] = ref(tensor, lambda _: known.pop(key, None)), value
        return value

    def keep(self, tensor: Tensor) -> Tensor:
        """A tensor as a rule may hold it: the graph behind it stays alive only where gradients are wanted."""
        return tensor.detach() if self.light else tensor

    def find(self, item) -> Value | None:
        """The record of a tensor that depends on the features."""
        return self._values.get(id(item), (None, None))[1] if isinstance(item, Tensor) else None

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
        return any(node is self.value.edge.node for node in graph_nodes(tensor.grad_fn))

    def _check(self, func, tensors: list[Tensor]) -> None:
        """Whether all tensors are what they seem: known, or independent of the features, and not overwritten."""
        for tensor in tensors:
            if tensor.grad_fn is not None and id(tensor) not in self._values and id(tensor) not in self._constants:
                if self._reaches_features(tensor):
                    raise UnsupportedOperationError("a custom autograd function, whose inside cannot be seen")
                self._constants[id(tensor)] = tensor
            if self._overwritten and func not in _METADATA and self._is_overwritten(tensor):
                raise UnsupportedOperationError("a tensor that is read again after an operation has overwritten it")

    def _is_overwritten(self, tensor: Tensor) -> bool:
        found = self._overwritten.get(_memory(tensor))
        if isinstance(found, StorageWeakRef) and found.expired():  # freed, and its memory given to another tensor
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
        if self.light and any(t.requires_grad and id(t) not in self._values for t in tensors):
            args, kwargs = self._without_graph(args), self._without_graph(kwargs)
        out = self._record(func, args, kwargs, name)
        if overwrites:
            target = args[0] if args else kwargs["input"]
            if _memory(target) != _memory(out):  # not if nothing had to be done
                plain = _memory(target) >= 0
                self._overwritten[_memory(target)] = StorageWeakRef(target.untyped_storage()) if plain else target
        return out

    def _without_graph(self, item):
        """The same arguments, those that do not depend on the features cut off from their graph."""
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
            except (TypeError, AttributeError) as error:  # arguments that PyTorch takes and the rule does not know
                raise UnsupportedOperationError(f"{name}: {error}") from error
        if func in REPLACEMENTS and func not in self._replacing:
            self._replacing.append(func)  # a composition may end in the function itself, for options it leaves alone
            try:
                return self.run(REPLACEMENTS[func], *args, **kwargs)
            finally:
                self._replacing.pop()
        return self.local(self, func, *args, **kwargs)
