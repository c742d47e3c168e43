"""Find the layers of a network through which everything passes that the outputs learn of the inputs.

One forward pass is recorded, operation by operation. A layer is usable if no operation after it reads anything that was
computed before it from the inputs. The cost is that of a few forward passes, however many layers there are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class UnknownFlowError(Exception):
    """The model takes numbers out of tensors, so that it is not known what depends on them."""


class _Flow(TorchDispatchMode):
    """Numbers every result that depends on the inputs, in the order of computation, and stores what it was made of."""

    def __init__(self, inputs: Sequence[Tensor]):
        super().__init__()
        self.sources: list[set[int]] = [set()]  # of every result, the results that it was made of; 0 is the input
        self._number = {id(x): 0 for x in inputs}
        self._overwritten: dict[int, int] = {}  # by memory: the last result that was written there in place
        self._alive: list[object] = list(inputs)  # so that no id and no memory is used twice

    def read(self, tensor: Tensor) -> set[int]:
        """The results that one sees when the tensor is read now."""
        place = self._overwritten.get(_memory(tensor))
        return {found for found in (self._number.get(id(tensor)), place) if found is not None}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        sources = set().union(*(self.read(item) for item in _tensors((args, kwargs))))
        if not sources or _reads_shape_only(func):
            return out
        if func is torch.ops.aten._local_scalar_dense.default:
            raise UnknownFlowError
        number = len(self.sources)
        self.sources.append(sources)
        for tensor in _written(func, args, kwargs):
            self._overwritten[_memory(tensor)] = number
            self._keep(tensor, number)
        for tensor in _tensors(out):
            self._keep(tensor, number)
        return out

    def _keep(self, tensor: Tensor, number: int) -> None:
        self._number[id(tensor)] = number
        self._alive.append(tensor)


def _tensors(items) -> list[Tensor]:
    return [item for item in pytree.tree_leaves(items) if isinstance(item, Tensor)]


def _memory(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage()._cdata
    except (RuntimeError, NotImplementedError):  # sparse tensors have no storage
        return -id(tensor)


def _reads_shape_only(func) -> bool:
    name = func.overloadpacket.__name__
    return name.startswith("new_") or name.endswith("_like")


def _written(func, args, kwargs) -> list[Tensor]:
    """The arguments that an operation changes in place."""
    found = []
    for k, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found += _tensors(args[k] if k < len(args) else kwargs.get(argument.name))
    return found


def bottlenecks(
    call: Callable[..., Tensor], modules: Mapping[str, nn.Module], x: Any, inputs: Sequence[Tensor]
) -> list[str]:
    """The names of the modules, in order, whose output decides the outputs of the network.

    These are the modules that are called once and return a finite floating-point tensor, if nothing else that depends
    on the inputs reaches the outputs except through this tensor.

    Args:
        call: the network, from inputs to outputs.
        modules: its modules by name.
        x: what the network is called with.
        inputs: the tensors in it that differ from sample to sample.

    Raises:
        UnknownFlowError: if the model takes numbers that depend on the inputs out of tensors, or if no operation of
            PyTorch leads from the inputs to the outputs.
    """
    flow, calls, features = _Flow(inputs), dict.fromkeys(modules.values(), 0), {}

    def after(module, args, output):
        calls[module] += 1
        if not isinstance(output, Tensor):
            return None
        output = output.clone()  # a result of its own, as if other features were put in its place
        features[module] = (output, flow.read(output))
        return output

    with torch.no_grad(), contextlib.ExitStack() as hooks:
        for module in calls:
            hooks.callback(module.register_forward_hook(after).remove)
        with flow:
            ends = flow.read(call(x))
    if not ends:
        raise UnknownFlowError
    through = _passes(flow.sources, ends)
    usable = {
        module
        for module, (output, numbers) in features.items()
        if calls[module] == 1 and numbers & through and output.is_floating_point() and bool(output.isfinite().all())
    }
    return [name for name, module in modules.items() if module in usable]


def _passes(sources: list[set[int]], ends: set[int]) -> set[int]:
    """The results that lie on every way from the input to the end.

    Results are numbered in the order of computation. Of those that lead to the end, result v is on every way if no
    later result was made of an earlier one, both beside v.
    """
    last = len(sources)
    used, stack = {last}, list(ends)
    edges = [(first, last) for first in ends]
    while stack:
        number = stack.pop()
        if number not in used:
            used.add(number)
            stack.extend(sources[number])
            edges += [(first, number) for first in sources[number]]
    skipped = [0] * (last + 2)
    for first, second in edges:
        skipped[first + 1] += 1
        skipped[second] -= 1
    return {k for k, count in enumerate(accumulate(skipped)) if not count and k in used}
