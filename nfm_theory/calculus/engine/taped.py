"""Derivatives of a head from its recorded operations."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from ...setting.ambient import undisturbed
from .base import Linearization, block_bytes, gradients
from .rules import per_sample
from .series import Series
from .tape import Node, Recorder, UnsupportedOperationError, Value


class Taped(Linearization):
    """Derivatives by forward and reverse passes through the recorded operations."""

    path = "tangent-adjoint"

    def __init__(
        self,
        recorder: Recorder,
        outputs: Tensor,
        differentiable: bool,
        record: Callable[[], tuple[Recorder, Tensor]] | None = None,
    ):
        self.differentiable, self._record = differentiable, record
        self._load(recorder, outputs)
        assert recorder.features is not None  # `_load` has refused outputs without features
        self.h, self.outputs = (z if differentiable else z.detach() for z in (recorder.features, outputs))
        self.piecewise_linear = not self._curved
        self._last: tuple[Tensor, Tensor | None, dict] | None = None
        self._last_series: tuple[Tensor, dict, dict] | None = None
        self._rows: Tensor | None = None

    def _load(self, recorder: Recorder, outputs: Tensor) -> None:
        """Use this recording from now on."""
        start, output = recorder.value, recorder.find(outputs)
        if start is None or output is None:
            raise UnsupportedOperationError("outputs that do not depend on the features")
        if output.layout != (0, 1) or outputs.ndim != 2:
            raise UnsupportedOperationError("outputs whose samples are not along the first dimension")
        self._input, self._output, self._spent = start, output, False
        self._nodes, self._samples = recorder.nodes, recorder.samples
        self._curved = {node: node.form for node in self._nodes if node.form is not None}
        self._start, self._before_start = self._find_start()

    def _find_start(self) -> tuple[Value, list[Node]]:
        """The narrowest value that the whole head depends on by linear operations alone, and the operations before it.

        Directions are propagated to this value once. Directions that all samples share are still shared there.
        """
        users: dict[int, list[Node]] = {}
        for node in self._nodes:
            for value in node.inputs:
                users.setdefault(id(value), []).append(node)
        chain = [self._input]
        while len(users.get(id(chain[-1]), [])) == 1:
            (node,) = users[id(chain[-1])]
            if node.form is not None or not node.output.shared or node.output is self._output:
                break
            chain.append(node.output)
        length = min(range(len(chain)), key=lambda k: chain[k].shape.numel())
        return chain[length], self._nodes[:length]

    @property
    def width(self):
        """The number of coordinates that `propagate` returns."""
        return self._start.shape[1:].numel()

    @property
    def tail_share(self):
        """The part of the head after its last curved operation."""
        sizes = [node.output.shape.numel() for node in self._nodes]
        last = max((k for k, node in enumerate(self._nodes) if node.form is not None), default=0)
        return sum(sizes[last:]) / sum(sizes)

    def _grads(self, targets: list[Value], weights: Tensor, *, retain: bool = True) -> list[Tensor]:
        with torch.enable_grad():
            found = torch.autograd.grad(
                self._output.edge,
                [value.edge for value in targets],
                weights,
                retain_graph=retain,
                create_graph=self.differentiable,
                allow_unused=True,
            )
        return [
            self.outputs.new_zeros(value.shape) if f is None else f for f, value in zip(found, targets, strict=True)
        ]

    @undisturbed()
    def rows(self):
        """The Jacobian, computed once."""
        if self._rows is None and self._record is not None and self._spent:
            self._rows = Taped(*self._record(), False, self._record).rows()
        if self._rows is None:
            classes = self.outputs.shape[-1]
            basis = torch.eye(classes, dtype=self.outputs.dtype, device=self.outputs.device)
            rows = (self._grads([self._start], e.expand_as(self.outputs).contiguous())[0] for e in basis)
            rows = (row.reshape(self._samples, -1) for row in rows)
            if self.differentiable:
                with torch.enable_grad():
                    self._rows = torch.stack(list(rows), dim=1)
            else:  # row by row into one tensor, so that memory holds a single copy
                self._rows = self.outputs.new_empty(self._samples, classes, self.width)
                for k, row in enumerate(rows):
                    self._rows[:, k] = row
        return self._rows

    @undisturbed()
    def pullback(self, slope):
        """`Jᵀ a`, from the Jacobian if it is known, otherwise by a reverse pass."""
        if self._rows is not None:
            with gradients(self.differentiable):
                return (slope.unsqueeze(1) @ self._rows).squeeze(1)
        return self._adjoint(slope, pullback=True)[0]

    @undisturbed()
    def propagate(self, directions):
        """Map directions through the first linear operations."""
        with gradients(self.differentiable):
            for node in self._before_start:
                directions = node.push(directions)
            return directions.reshape(*directions.shape[:2], -1)

    def _adjoint(self, slope: Tensor, *, pullback: bool = False) -> tuple[Tensor | None, dict[int, Callable]]:
        """`Jᵀ a` (if `pullback`), and the local second derivatives, contracted with the cotangents of `a·f`.

        The results for the last a are kept. `Jᵀ a` is optional because it is expensive for wide inputs.
        """
        last = self._last
        same = last is not None and (last[0] is slope or (not self.differentiable and torch.equal(last[0], slope)))
        if last is None or not same or (pullback and last[1] is None):
            weigh = self._weigh if self._record is None else partial(self._consume, self._record)
            self._last = last = (slope, *weigh(slope, pullback))
        return last[1:]

    def _weigh(self, slope: Tensor, pullback: bool) -> tuple[Tensor | None, dict[int, Callable]]:
        """The reverse pass if results carry gradients: all cotangents at once, and the graph is kept."""
        targets = [value for node in self._curved for value in node.weighed] + [self._start] * pullback
        adjoints = self._grads(targets, slope) if targets else []
        given = iter(adjoints)
        with gradients(self.differentiable):
            forms = {id(node): form(*islice(given, len(node.weighed))) for node, form in self._curved.items()}
        return adjoints[-1].reshape(self._samples, -1) if pullback else None, forms

    def _consume(
        self, record: Callable[[], tuple[Recorder, Tensor]], slope: Tensor, pullback: bool
    ) -> tuple[Tensor | None, dict[int, Callable]]:
        """The reverse pass if results carry no gradients, with little memory.

        Each cotangent is replaced at once by the local second derivative that the tangents need, and the graph is freed
        on the way. Another slope therefore needs another recording.
        """
        if self._spent:
            self._load(*record())
        forms: dict[int, Callable] = {}

        known: dict[Node, list[Tensor]] = {}

        def take(node: Node, form: Callable, value: Value, adjoints: tuple[Tensor | None, ...]) -> None:
            adjoint = adjoints[value.edge.output_nr]
            if adjoint is not None:
                known.setdefault(node, []).append(adjoint)  # the output comes first in the reverse pass
                if len(known[node]) == len(node.weighed):
                    forms[id(node)] = form(*known.pop(node))

        # The pass ends at the start value or at the first curved operations, whose cotangents autograd returns.
        ends = [] if pullback else self._first_curved()
        within = [item for item in self._curved.items() if item[0] not in ends]
        hooks = [(value, partial(take, node, form, value)) for node, form in within for value in node.weighed]
        handles = [value.edge.node.register_prehook(hook) for value, hook in hooks]
        targets = [self._start] if pullback else [value for node in ends for value in node.weighed]
        try:
            adjoints = self._grads(targets, slope, retain=False) if targets else []
        finally:
            for handle in handles:
                handle.remove()
        given = iter(adjoints)
        with torch.no_grad():
            forms |= {id(node): self._curved[node](*islice(given, len(node.weighed))) for node in ends}
        for value in [self._input, *(value for node in self._nodes for value in node.weighed)]:
            del value.edge
        self._spent = True
        return adjoints[0].reshape(self._samples, -1) if pullback else None, forms

    def _first_curved(self) -> list[Node]:
        """The curved operations that do not depend on other curved operations."""
        after_curved: set[int] = set()
        first = []
        for node in self._nodes:
            after = any(id(value) in after_curved for value in node.inputs)
            if node.form is not None and not after:
                first.append(node)
            if node.form is not None or after:
                after_curved.add(id(node.output))
        return first

    def _plan(self, forms: Collection[int], want_tangents: bool) -> list[tuple[Node, bool]]:
        """The operations that are needed, in order, and for each whether the tangent of its result is needed."""
        wanted = {id(self._output)} if want_tangents else set()
        plan = []
        for node in reversed(self._nodes[len(self._before_start) :]):
            needed = id(node.output) in wanted
            if needed or id(node) in forms:
                wanted.update(id(value) for value in node.inputs)
                plan.append((node, needed))
        return plan[::-1]

    def _rows_within(self, limit: int) -> int:
        """The number of rows whose largest tensor takes that many bytes."""
        return limit * self._samples // max(node.output.nbytes for node in self._nodes)

    def _block_rows(self):
        return self._rows_within(block_bytes(self.h.device))

    def _free_rows(self):
        kept = sum(node.output.nbytes for node in self._nodes)
        return self._rows_within(min(kept // 8, 4 * block_bytes(self.h.device)))

    def _series_adjoints(self, slope: Tensor, order: int) -> tuple[dict[int, Tensor], dict[int, Callable]]:
        """The cotangents of `a·f` after the curved operations, and what they give to `cubic`; the last a is kept."""
        if self._last_series is None or self._last_series[0] is not slope:
            targets = [node.output for node in self._curved]
            adjoints = self._grads(targets, slope) if targets else []
            names = (id(node) for node in self._curved)
            self._last_series = (slope, dict(zip(names, adjoints, strict=True)), {})
        _, known, cubics = self._last_series
        if order == 3 and not cubics:
            cubics |= {id(node): node.cubic(known[id(node)]) for node in self._curved if node.cubic is not None}
        return known, cubics if order == 3 else {}

    def _series_block(self, coefficients, slope, order, propagated):
        with gradients(self.differentiable):
            adjoints, cubics = self._series_adjoints(slope, order)
            given = coefficients if propagated else [self.propagate(z) for z in coefficients]
            start: Series = [z.reshape(*z.shape[:2], *self._start.shape[1:]) for z in given]
            start += [None] * (order - len(start))
            moving = {id(self._start): start}
            total = self.outputs.new_zeros(len(given[0]), self._samples)
            plan = [node for node, _ in self._plan(adjoints, True)]
            last = {id(value): k for k, node in enumerate(plan) for value in node.inputs}
            for k, node in enumerate(plan):
                found = [moving[id(value)] for value in node.inputs]
                if id(node) in cubics and found[0][0] is not None:
                    *lower, third = cubics[id(node)](*found[0][:2])
                    total = total + per_sample(node.output, self._samples, third)
                elif node.series is not None:
                    *lower, highest = node.series(*found)
                    if highest is not None:  # without what a linear function of the last coefficients would add
                        total = total + per_sample(node.output, self._samples, adjoints[id(node)] * highest)
                else:
                    lower = [_pushed(node, row) for row in zip(*found, strict=True)][:-1]
                moving[id(node.output)] = [*lower, None]
                for value in node.inputs:
                    if last[id(value)] == k:
                        moving.pop(id(value), None)
            shape = (len(total), *self.outputs.shape)
            out = moving[id(self._output)][:-1]
            return [self.outputs.new_zeros(shape) if z is None else z.expand(shape) for z in out], total

    def _block(self, directions, slope, tangents, propagated):
        with gradients(self.differentiable):
            forms = {} if slope is None else self._adjoint(slope)[1]
            directions = directions if propagated else self.propagate(directions)
            moving = {id(self._start): directions.reshape(*directions.shape[:2], *self._start.shape[1:])}
            plan = self._plan(forms, tangents)
            last = {id(value): k for k, (node, _) in enumerate(plan) for value in node.inputs}
            hessian_forms = self.outputs.new_zeros(len(directions), self._samples)
            for k, (node, needed) in enumerate(plan):
                given = [moving[id(value)] for value in node.inputs]
                moved = None
                if id(node) in forms:
                    found = forms[id(node)](*given)
                    found, moved = found if node.joint else (found, None)
                    hessian_forms = hessian_forms + per_sample(node.output, self._samples, found)
                if needed:
                    moving[id(node.output)] = node.push(*given) if moved is None else moved
                del given, moved
                for value in node.inputs:
                    if last[id(value)] == k:
                        moving.pop(id(value), None)
            out = moving[id(self._output)].expand(len(directions), *self.outputs.shape) if tangents else None
            return out, None if slope is None else hessian_forms


def _pushed(node: Node, tangents: tuple[Tensor | None, ...]) -> Tensor | None:
    """The tangent of a linear operation whose inputs may have the tangent 0, given as `None`."""
    known = next((t for t in tangents if t is not None), None)
    if known is None:
        return None
    m = len(known)
    pairs = zip(tangents, node.inputs, strict=True)
    return node.push(*(known.new_zeros(m, *value.shape) if t is None else t for t, value in pairs))
