r"""The regularizers of data that arrive in batches, with memory that does not grow with the number of samples.

Two ways to them:

| | passes over the data | data terms |
|---|---|---|
| `regularizers(Problem.from_loader(...))` | two | exact, from the mean and the covariance of the features |
| `StreamingRegularizers`, `update` and `compute` | one | R1 exact; R2 and R3 from the pairs within each batch |

The pairs within a batch are a random sample of all pairs if the batches are drawn at random. With b samples in a batch
and n in all, the mean over the pairs in a batch, times `b / (b - 1) (n - 1) / n`, has the mean over all pairs as its
expectation. Its standard error is that of independent batches, which is an upper bound if the batches share no samples.
The terms of the noise are exact in both ways.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..calculus.engine import Linearization, linearize
from ..expansion.second_order import SOURCES, exact_terms
from ..setting.inputs import Inputs
from ..setting.law import Law
from ..setting.network import Output
from ..setting.options import block_bytes
from ..setting.problem import Model, Problem
from ..setting.results import SECOND_ORDER, Estimate
from ..setting.streamed import StreamedProblem
from ..setting.targets import Labels, Loss
from .regularizers import Regularizers

_PAIRS = ("R2", "R3")


def _sum_over_processes(values: Tensor) -> Tensor:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(values)
    return values


class _Sums:
    """Sums over the samples of what the terms are made of, in float64.

    Args:
        law: the law of mixing and noise.
        pairs: True if R2 and R3 of the data come from the pairs within each batch.
    """

    def __init__(self, law: Law, pairs: bool):
        sources = list(law.scales)
        self.pairs, self.first_moment = pairs and "data" in sources, law.mixing.moment(1)
        names = ["standard", "R1"] if "data" in sources else ["standard"]
        self.total = dict.fromkeys([*names, *(name + SOURCES[s] for s in sources for name in _PAIRS)], 0.0)
        self.squares = dict.fromkeys(_PAIRS, 0.0)  # of the estimates from pairs, weighted by the samples
        self.count = self.batches = 0
        self.mass = self.paired = 0.0  # the weights of the samples, and of those in batches of at least two
        self.vectors: Tensor | None = None  # Σ Jᵀa and Σ g behind the first linear layers, for R1 from pairs
        self.engine, self.passes, self.piecewise_linear = "", 0, True

    def add(self, problem: Problem) -> None:
        """Add one batch."""
        at = linearize(problem.head, problem.features)
        rows = None if block_bytes() is None else problem.block_rows(passes=4)
        found = exact_terms(problem, at, block_rows=rows)
        found["standard"] = problem.loss(at.outputs, problem.labels).mean()
        if self.pairs:
            found["R1"] = self._first_order(problem, at)
        b, mass = len(problem.features), float(problem.mass)
        for name in self.total:
            value = float(found[name].detach())
            if self.pairs and name in _PAIRS:
                value *= b / max(b - 1, 1)  # a single sample has no pair, and the value 0
                self.squares[name] += mass * value**2
            self.total[name] += mass * value
        self.count, self.batches, self.mass = self.count + b, self.batches + 1, self.mass + mass
        self.paired += mass if b > 1 else 0.0
        self.engine, self.piecewise_linear = at.path, self.piecewise_linear and at.piecewise_linear
        data = problem.num_partners if "data" in problem.law.scales else 0
        self.passes += at.outputs.shape[-1] + (0 if at.piecewise_linear else min(data, at.width))

    def _first_order(self, problem: Problem, at: Linearization) -> Tensor:
        """The mean of `-(p - y)ᵀ J g`; the part with the mean feature follows from the sums of all batches."""
        pulled = at.pullback(problem.loss.gradient(at.outputs, problem.labels)).detach().double()
        moved = at.propagate(problem.features.unsqueeze(0))[0].detach().double()
        both = torch.stack([pulled.sum(0) * (float(problem.mass) / len(pulled)), moved.sum(0)])
        self.vectors = both if self.vectors is None else self.vectors + both
        return -(pulled * moved).sum(1).mean()

    def result(self, like: Tensor) -> Regularizers:
        """The terms of all batches, of all processes."""
        numbers = [*self.total.values(), *self.squares.values(), self.count, self.batches, self.paired, self.mass]
        values = _sum_over_processes(torch.tensor(numbers, dtype=torch.float64, device=like.device)).tolist()
        total = dict(zip(self.total, values, strict=False))
        squares = dict(zip(self.squares, values[len(total) :], strict=False))
        count, batches, paired, mass = values[-4:]
        if not count:
            raise ValueError("compute: expected at least one batch, got none; call update(x, y) first.")
        if not mass:
            raise ValueError("y: expected a position that counts; all are ignored, or have the weight 0.")
        if self.vectors is not None:
            pulled, moved = _sum_over_processes(self.vectors.clone())
            total["R1"] = self.first_moment * (total["R1"] + float(pulled @ moved) / count)
        estimates = {}
        for name in ("R1", *SECOND_ORDER):
            if name in total and self.pairs and name in _PAIRS:
                estimates[name] = _from_pairs(total[name], squares[name], count, batches, paired, like)
            elif name in total:
                value = like.new_tensor(total[name] / mass)
                estimates[name] = Estimate(value, torch.zeros_like(value), 0, "exact")
        standard = like.new_tensor(total["standard"] / mass)
        return Regularizers(standard, estimates, self.engine, self.passes, self.piecewise_linear)

    def state_dict(self) -> dict:
        """Everything needed to continue."""
        return dict(vars(self)) | {"total": dict(self.total), "squares": dict(self.squares)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`."""
        if set(state) != set(vars(self)) or list(state["total"]) != list(self.total):
            raise ValueError("state: expected that of a computation with the same sources of perturbation.")
        vars(self).update({**state, "total": dict(state["total"]), "squares": dict(state["squares"])})


def _from_pairs(total: float, squares: float, count, batches, paired, like: Tensor) -> Estimate:
    """An estimate from the pairs within the batches; the batches are the independent observations."""
    if not paired:
        raise ValueError("update: expected batches of at least two samples, whose pairs give R2 and R3 of the data.")
    mean, scale = total / paired, (count - 1) / count
    variance = max(squares / paired - mean**2, 0.0)
    stderr = (variance / (batches - 1)) ** 0.5 if batches > 1 else float("inf")
    value, error = like.new_tensor(scale * mean), like.new_tensor(scale * stderr)
    return Estimate(value, error, int(count), f"pairs within {batches:.0f} batches")


class StreamingRegularizers:
    """The regularizers of data that are given batch by batch, in the manner of torchmetrics.

    The batches must be drawn at random, as by a shuffled loader: R2 and R3 of the data come from the pairs within each
    batch. If the data can be read twice, `Problem.from_loader` gives exact terms. Under `torchrun`, `compute` reduces
    the sums of all processes.

    Args:
        model: network in eval mode.
        layer: dotted name of the layer whose output is perturbed; `""` is the input.
        law: law of mixing and noise.
        loss: see `Problem`.
        params: parameters to use instead of the model's own, by name.
        output: which part of what the model returns are the outputs, see `Problem`.

    Raises:
        ValueError: by `update` if the first batch does not fit the model; by `compute` if there is no batch.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
        >>> metric = StreamingRegularizers(model, law=Law(add_noise=0.4))
        >>> for _ in range(3):
        ...     metric.update(torch.randn(8, 3), torch.randint(2, (8,)))
        >>> metric.compute()["R3_add"].method
        'exact'
    """

    def __init__(
        self,
        model: Model,
        *,
        layer: str = "",
        law: Law,
        loss: Loss = "cross_entropy",
        params: Mapping[str, Tensor] | None = None,
        output: Output = None,
    ):
        self._options: dict[str, Any] = {"layer": layer, "law": law, "loss": loss, "params": params, "output": output}
        self.model, self.law = model, law
        self._problem: Problem | None = None
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self._sums = _Sums(self.law, pairs=True)

    @torch.no_grad()
    def update(self, x: Inputs, y: Labels) -> None:
        """Add a batch of inputs `(b, *input)` and labels `(b, ...)`, see `Problem`."""
        if self._problem is None:
            self._problem = Problem(self.model, x, y, **self._options)
            self._sums.add(self._problem)
        else:
            self._sums.add(self._problem.with_samples(x, y))

    def compute(self) -> Regularizers:
        """The terms of all batches so far."""
        like = torch.zeros(()) if self._problem is None else self._problem.features
        return self._sums.result(like)

    def state_dict(self) -> dict:
        """Everything needed to continue in another process."""
        return self._sums.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self._sums.load_state_dict(state)


def streamed_regularizers(stream: StreamedProblem) -> Regularizers:
    """The regularizers of the data of a loader; exact if the covariance of the features can be stored.

    An interrupted call leaves its sums in `stream`, and the next call continues with the batch after them.
    """
    with torch.no_grad():
        pairs = not stream.stores_covariance
        sums = _Sums(stream.law, pairs)
        if stream.sums:
            sums.load_state_dict(stream.sums)
        batches = stream.batches(sums.batches, title="terms") if pairs else stream.parts(sums.batches)
        for problem in batches:
            sums.add(problem)
            stream.sums = sums.state_dict()
        stream.sums = {}
        return sums.result(stream.first.features)
