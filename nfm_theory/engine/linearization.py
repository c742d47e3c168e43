r"""A head at given features: Jacobian rows, tangents `J v` and second derivatives `a·∇²f[v, v]` for many directions.

| path | what runs | cost of m directions, in forward passes |
|---|---|---|
| `"tangent-adjoint"` | one recorded forward pass, one adjoint sweep, m tangents through the recording | about m + 2 |
| `"nested"` | `jvp(jvp)` of the whole head, a row per direction and sample | about 6 m |

The results do not depend on the path; `Linearization.path` says which one runs and why.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..curvature import directional_derivatives, jacobian_rows
from ..layers import split
from ..networks import Network
from ..primitives import exact_derivatives
from . import linear, nonlinear, products  # noqa: F401  (importing a module registers its rules)
from .local import local_rule
from .rules import RULES, per_sample
from .tape import Node, Recorder, UnsupportedOperationError, Value, graph_nodes

#: Bytes of the largest tangent that a sweep carries at once: what stays in a cache, or what keeps a GPU busy.
BLOCK_BYTES = {"cpu": 2**20, "gpu": 2**28}
ENGINES = ("auto", "tangent-adjoint", "nested")


def _gradients(wanted: bool):
    return torch.enable_grad() if wanted else torch.no_grad()


class Linearization(ABC):
    """Derivatives of a head `(b, *feature) -> (b, K)` at features `h`; made by `linearize`.

    Directions are `(m, b, *feature)`, or `(m, 1, *feature)` for directions that all samples share.

    Attributes:
        h: the features.
        outputs: f(h), `(b, K)`.
        path: what runs: `"tangent-adjoint"`, or `"nested"` with the reason.
        differentiable: whether results carry gradients.
        piecewise_linear: whether every operation is linear or piecewise linear, so that ∇²f is 0 almost everywhere.
    """

    h: Tensor
    outputs: Tensor
    path: str
    differentiable: bool
    piecewise_linear = False

    @property
    @abstractmethod
    def width(self) -> int:
        """w, the number of coordinates behind `enter`."""

    @property
    def tail_share(self) -> float:
        """Share of the head that lies behind its last curved operation: what J v costs beyond a·∇²f[v, v]."""
        return 0.0

    @abstractmethod
    def rows(self) -> Tensor:
        """The Jacobian, in the coordinates of `enter`: `(b, K, w)`."""

    @abstractmethod
    def pullback(self, slope: Tensor) -> Tensor:
        """`Jᵀ a` in the coordinates of `enter`, `(b, w)`.

        Args:
            slope: a, `(b, K)`.
        """

    @abstractmethod
    def enter(self, directions: Tensor) -> Tensor:
        """Directions in the coordinates behind the first linear operations, `(m, b, w)` or `(m, 1, w)`."""

    def sweep(
        self,
        directions: Tensor,
        slope: Tensor | None = None,
        *,
        tangents: bool = True,
        entered: bool = False,
        block_rows: int | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """`(J v, a·∇²f[v, v])` for each direction and sample, `(m, b, K)` and `(m, b)`.

        Directions are streamed in blocks, so that memory does not grow with their number (unless gradients of the
        results are wanted).

        Args:
            directions: v, `(m, b, *feature)` or `(m, 1, *feature)`; results of `enter`, if `entered`.
            slope: a, `(b, K)`, constant in the derivative; `None` leaves the second derivatives out (`None`).
            tangents: whether J v is wanted (`None` otherwise).
            entered: whether the directions are already behind the first linear operations.
            block_rows: rows (directions times samples) carried at once.
        """
        block = max(1, (block_rows or self._block_rows()) // len(self.h))
        parts = tqdm(directions.split(block), desc="directions", disable=None, delay=2, leave=False)
        results = [self._block(part, slope, tangents, entered) for part in parts]
        with _gradients(self.differentiable):
            return tuple(None if found[0] is None else torch.cat(found) for found in zip(*results, strict=True))

    @abstractmethod
    def _block(self, directions: Tensor, slope: Tensor | None, tangents: bool, entered: bool) -> tuple:
        """`sweep` of few directions."""

    @abstractmethod
    def _block_rows(self) -> int:
        """Rows that are fast to carry at once."""


class _Nested(Linearization):
    """By `torch.func` through the whole head."""

    def __init__(self, head: Callable[[Tensor], Tensor], h: Tensor, differentiable: bool, reason: str):
        self.head, self.h, self.differentiable = head, h, differentiable
        self.path = f"nested torch.func ({reason})"
        with _gradients(differentiable):
            self.outputs = head(h)

    @property
    def width(self):
        return self.h[0].numel()

    def rows(self):
        with _gradients(self.differentiable):
            rows = jacobian_rows(self.head, self.h)
            return rows.reshape(*rows.shape[:2], -1)

    def pullback(self, slope):
        with _gradients(self.differentiable):
            return torch.func.vjp(self.head, self.h)[1](slope)[0].reshape(len(self.h), -1)

    def enter(self, directions):
        return directions.reshape(*directions.shape[:2], -1)

    def _block_rows(self):
        return 4 * len(self.h)

    def _block(self, directions, slope, tangents, entered):
        if entered:
            directions = directions.reshape(*directions.shape[:2], *self.h.shape[1:])
        m, b = len(directions), len(self.h)
        points = self.h.repeat(m, *[1] * (self.h.ndim - 1))
        along = directions.expand(m, *self.h.shape).flatten(0, 1)
        results = directional_derivatives(self.head, points, along, 1 if slope is None else 2)
        found = results[1].unflatten(0, (m, b)) if tangents else None
        return found, None if slope is None else (results[2].unflatten(0, (m, b)) * slope).sum(-1)


class _Taped(Linearization):
    """By the recorded operations."""

    path = "tangent-adjoint"

    def __init__(self, recorder: Recorder, outputs: Tensor, differentiable: bool):
        self.differentiable = differentiable
        self._input, self._nodes, self._samples = recorder.value, recorder.nodes, recorder.samples
        self._output = recorder.find(outputs)
        if self._output is None:
            raise UnsupportedOperationError("outputs that do not depend on the features")
        if self._output.layout != (0, 1) or outputs.ndim != 2:
            raise UnsupportedOperationError("outputs whose samples are not along the first dimension")
        self.h, self.outputs = (z if differentiable else z.detach() for z in (self._input.tensor, outputs))
        self._curved = [node for node in self._nodes if node.form is not None]
        self.piecewise_linear = not self._curved
        self._gate, self._stem = self._find_gate()
        self._last: tuple[Tensor, Tensor | None, dict] | None = None
        self._rows: Tensor | None = None

    def _find_gate(self) -> tuple[Value, list[Node]]:
        """The narrowest value that everything passes and that shared directions reach by linear operations alone."""
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
        length = min(range(len(chain)), key=lambda k: chain[k].tensor.numel())
        return chain[length], self._nodes[:length]

    @property
    def width(self):
        return self._gate.tensor[0].numel()

    @property
    def tail_share(self):
        sizes = [node.output.tensor.numel() for node in self._nodes]
        last = max((k for k, node in enumerate(self._nodes) if node.form is not None), default=0)
        return sum(sizes[last:]) / sum(sizes)

    def _grads(self, targets: list[Tensor], weights: Tensor) -> list[Tensor]:
        with torch.enable_grad():
            found = torch.autograd.grad(
                self._output.tensor,
                targets,
                weights,
                retain_graph=True,
                create_graph=self.differentiable,
                allow_unused=True,
            )
        return [torch.zeros_like(t) if f is None else f for f, t in zip(found, targets, strict=True)]

    def rows(self):
        if self._rows is None:
            classes = self.outputs.shape[-1]
            basis = torch.eye(classes, dtype=self.outputs.dtype, device=self.outputs.device)
            rows = [self._grads([self._gate.tensor], e.expand_as(self.outputs).contiguous())[0] for e in basis]
            with _gradients(self.differentiable):
                self._rows = torch.stack(rows, dim=1).reshape(len(self.outputs), classes, -1)
        return self._rows

    def pullback(self, slope):
        if self._rows is not None:
            with _gradients(self.differentiable):
                return (slope.unsqueeze(1) @ self._rows).squeeze(1)
        return self._adjoint(slope, gate=True)[0]

    def enter(self, directions):
        with _gradients(self.differentiable):
            for node in self._stem:
                directions = node.push(directions)
            return directions.reshape(*directions.shape[:2], -1)

    def _adjoint(self, slope: Tensor, *, gate: bool = False) -> tuple[Tensor | None, dict[int, Callable]]:
        """`Jᵀ a` (if `gate`), and the local second derivatives against the cotangents of `a·f`.

        Those of the last a are kept. The way down to the gate is a large part of the sweep for wide inputs.
        """
        if self._last is None or self._last[0] is not slope or (gate and self._last[1] is None):
            targets = [node.output.tensor for node in self._curved] + [self._gate.tensor] * gate
            adjoints = self._grads(targets, slope) if targets else []
            with _gradients(self.differentiable):
                forms = {id(node): node.form(adj) for node, adj in zip(self._curved, adjoints, strict=False)}
            self._last = slope, adjoints[-1].reshape(self._samples, -1) if gate else None, forms
        return self._last[1:]

    def _plan(self, forms: dict[int, Callable], want_tangents: bool) -> list[tuple[Node, bool]]:
        """The nodes behind the gate that are needed, in order, and whether their own tangent is."""
        wanted = {id(self._output)} if want_tangents else set()
        plan = []
        for node in reversed(self._nodes[len(self._stem) :]):
            needed = id(node.output) in wanted
            if needed or id(node) in forms:
                wanted.update(id(value) for value in node.inputs)
                plan.append((node, needed))
        return plan[::-1]

    def _block_rows(self):
        largest = max(node.output.tensor.nbytes for node in self._nodes) / self._samples
        return int((BLOCK_BYTES["cpu" if self.h.device.type == "cpu" else "gpu"]) // largest)

    def _block(self, directions, slope, tangents, entered):
        with _gradients(self.differentiable):
            forms = {} if slope is None else self._adjoint(slope)[1]
            directions = directions if entered else self.enter(directions)
            moving = {id(self._gate): directions.reshape(*directions.shape[:2], *self._gate.tensor.shape[1:])}
            plan = self._plan(forms, tangents)
            last = {id(value): k for k, (node, _) in enumerate(plan) for value in node.inputs}
            bends = self.outputs.new_zeros(len(directions), self._samples)
            for k, (node, needed) in enumerate(plan):
                given = [moving[id(value)] for value in node.inputs]
                if id(node) in forms:
                    bends = bends + per_sample(node.output, self._samples, forms[id(node)](*given))
                if needed:
                    moving[id(node.output)] = node.push(*given)
                del given
                for value in node.inputs:
                    if last[id(value)] == k:
                        moving.pop(id(value), None)
            out = None
            if tangents:
                out = moving[id(self._output)].expand(len(directions), *self.outputs.shape)
            return out, None if slope is None else bends


def linearize(
    head: Callable[[Tensor], Tensor], h: Tensor, *, engine: str = "auto", differentiable: bool | None = None
) -> Linearization:
    """The head at features `h`, ready for any number of directions.

    Args:
        head: maps `(b, *feature)` to `(b, K)`; samples must not interact, and the head is in evaluation mode.
        h: features, `(b, *feature)`, floating point.
        engine: `"tangent-adjoint"` records the head operation by operation; `"nested"` differentiates it as a whole;
            `"auto"` takes the first where it can and the second elsewhere, with the same results.
        differentiable: whether results carry gradients to parameters and features; `None` means while gradients are
            enabled.

    Raises:
        ValueError: for an unknown engine, or if `"tangent-adjoint"` is asked for and an operation cannot be followed.

    Example:
        >>> h = torch.tensor([[0.5, -1.0]], dtype=torch.float64)
        >>> at = linearize(lambda u: (u**3).sum(-1, keepdim=True), h)
        >>> at.sweep(torch.eye(2, dtype=h.dtype).unsqueeze(1), torch.ones(1, 1, dtype=h.dtype))[1].tolist()  # 6 h
        [[3.0], [-6.0]]
    """
    if engine not in ENGINES:
        raise ValueError(f"engine: expected one of {list(ENGINES)}, got {engine!r}.")
    differentiable = torch.is_grad_enabled() if differentiable is None else differentiable
    if engine == "nested":
        return _Nested(head, h, differentiable, "as asked")
    recorder = Recorder(RULES, local_rule)
    try:
        with torch.enable_grad(), recorder:
            leaf = h if differentiable and h.requires_grad else h.detach().requires_grad_()
            outputs = head(recorder.start(leaf))
        if leaf is not h:  # gradients of what else? of the parameters, if any
            others = (getattr(node, "variable", leaf) is not leaf for node in graph_nodes(outputs.grad_fn))
            differentiable = differentiable and any(others)
        return _Taped(recorder, outputs, differentiable)
    except UnsupportedOperationError as error:
        if engine == "tangent-adjoint":
            raise ValueError(
                f"engine='tangent-adjoint' cannot follow {error}; use engine='auto', which differentiates such a "
                "head as a whole with the same result."
            ) from error
        return _Nested(head, h, differentiable, str(error))


def linearize_layer(model: nn.Module, x: Tensor, layer: str = "") -> Linearization:
    """The head behind a layer at the features of `x`, differentiable, from a single forward pass of the model.

    For training: nothing is checked (`split` checks), the features keep their graph, and results carry gradients to
    all parameters, those before the layer included.

    Args:
        model: network in evaluation mode.
        x: inputs, `(b, *input)`.
        layer: dotted name of the layer; `""` is the input.
    """
    network, recorder = Network(model, None), Recorder(RULES, local_rule)

    def begin(module, args, output):
        return recorder.start(output if output.requires_grad else output.detach().requires_grad_())

    try:
        with torch.enable_grad(), recorder:
            if layer:
                with network.hook(layer, begin):
                    outputs = network(x)
            else:
                outputs = network(begin(None, None, x))
            outputs = outputs.unsqueeze(-1) if outputs.ndim == 1 else outputs
        return _Taped(recorder, outputs, True)
    except UnsupportedOperationError as error:
        cut = split(model, x, layer=layer)
        with torch.enable_grad(), exact_derivatives():
            return _Nested(_columns(cut.head), cut.encode(x), True, str(error))


def _columns(head: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The head with outputs `(b, K)`, and exact derivatives."""

    def columns(h: Tensor) -> Tensor:
        with exact_derivatives():
            outputs = head(h)
        return outputs.unsqueeze(-1) if outputs.ndim == 1 else outputs

    return columns
