"""A problem whose samples arrive in batches from a loader: only one batch is in memory at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from .checks import checked_lengths
from .inputs import as_inputs, each
from .law import Law
from .network import Output
from .options import progress_bar
from .population import FeatureMoments, Population
from .problem import Model, Problem
from .targets import Loss

#: Number of features up to which the covariance of the features, `(d, d)`, is stored: 134 MB in float64.
MAX_FEATURES = 4096


class StreamedProblem:
    """One layer of one network with a loader of data, a loss and a law; `Problem.from_loader` makes one.

    `regularizers` and `terms` take it in place of a `Problem`. The loader is read twice: first for the mean and the
    covariance of the features, then for the terms. Under `torchrun`, each process reads its own part of the data.

    Args:
        model: network in eval mode.
        loader: yields batches `(x, y, ...)`, or dicts with the labels under `"labels"`; it can be read more than once,
            always with the same samples. To continue an interrupted computation, the batches must also come in the
            same order.
        layer: dotted name of the layer whose output is perturbed; `""` is the input.
        law: law of mixing and noise.
        loss: see `Problem`.
        params: parameters to use instead of the model's own, by name.
        output: which part of what the model returns are the outputs, see `Problem`.
        device: device on which the model is; batches are moved there. `None` leaves them where they are.
        max_features: largest number of features for which the covariance is stored. Above it, R2 and R3 of the data are
            estimated by pairs within the batches, with a standard error.

    Example:
        >>> data = torch.utils.data.TensorDataset(torch.randn(10, 3), torch.arange(10) % 2)
        >>> loader = torch.utils.data.DataLoader(data, batch_size=4)
        >>> Problem.from_loader(torch.nn.Linear(3, 2), loader, law=Law(add_noise=0.4))
        StreamedProblem(input, batches from DataLoader; alpha = 1, beta = 1, ... normal noise)
    """

    def __init__(
        self,
        model: Model,
        loader: Iterable,
        *,
        layer: str = "",
        law: Law,
        loss: Loss = "cross_entropy",
        params: Mapping[str, Tensor] | None = None,
        output: Output = None,
        device: torch.device | str | None = None,
        max_features: int = MAX_FEATURES,
    ):
        if isinstance(loader, Iterator) or not isinstance(loader, Iterable):
            kind = type(loader).__name__
            raise TypeError(f"loader: expected something that can be read twice, such as a DataLoader, got {kind}.")
        if not isinstance(law, Law):
            raise TypeError(f"law: expected an nfm_theory.Law, got {type(law).__name__}.")
        self.loader, self.device = loader, device
        self._build: dict[str, Any] = {
            "model": model, "layer": layer, "law": law, "loss": loss, "params": params, "output": output,
        }  # fmt: skip
        self._first: Problem | None = None
        self.law, self.layer = law, layer
        self.moments = FeatureMoments(max_features)
        self._read = 0  # batches in the moments
        self._population: Population | None = None
        self.sums: dict = {}  # of the terms, while they are computed

    def __repr__(self) -> str:
        place = f"layer {self.layer!r}" if self.layer else "input"
        return f"StreamedProblem({place}, batches from {type(self.loader).__name__}; {self.law})"

    def batches(self, start: int = 0, *, title: str) -> Iterator[Problem]:
        """The batches as problems, from number `start` on, without what they know of the other samples."""
        size = len(self.loader) if hasattr(self.loader, "__len__") else None  # pyright: ignore[reportArgumentType]
        for number, batch in enumerate(progress_bar(self.loader, title=title, total=size, unit="batch")):
            if number >= start:
                yield self._problem(batch)

    def _problem(self, batch) -> Problem:
        if isinstance(batch, Mapping) and "labels" in batch:
            batch = {name: z for name, z in batch.items() if name != "labels"}, batch["labels"]
        if not isinstance(batch, (tuple, list)) or len(batch) < 2:
            raise TypeError(
                f"loader: expected batches (inputs, labels), or dicts with 'labels', got {type(batch).__name__}; wrap "
                "the loader in one that yields such pairs."
            )
        x, y = as_inputs(batch[0]), batch[1]
        checked_lengths(x, y)
        if self.device is not None:
            x, y = (each(z, lambda leaf: leaf.to(self.device)) for z in (x, y))
        if self._first is None:  # with all checks
            self._first = Problem(self._build["model"], x, y, **{k: v for k, v in self._build.items() if k != "model"})
            return self._first
        return self._first.with_samples(x, y)

    @property
    def first(self) -> Problem:
        """The first batch, which was checked in full."""
        if self._first is None:
            next(self.batches(title="first batch"), None)
        if self._first is None:
            raise ValueError("loader: expected at least one batch, got none.")
        return self._first

    @property
    def stores_covariance(self) -> bool:
        """True if the features are few enough for their covariance to be stored."""
        return self.first.features[0].numel() <= self.moments.max_features

    @property
    def population(self) -> Population:
        """Mean and covariance of the features of all samples; the first use reads the loader once."""
        if self._population is None:
            with torch.no_grad():
                for problem in self.batches(self._read, title="features"):
                    self.moments.add(problem.features)
                    self._read += 1
            self._population = self.moments.reduced().population(self.first.features)
        return self._population

    def parts(self, start: int = 0) -> Iterator[Problem]:
        """The batches from number `start` on, as problems whose partners are all samples."""
        population = self.population
        for problem in self.batches(start, title="terms"):
            yield problem.within(population)

    def state_dict(self) -> dict:
        """How far the computation has come, to continue in another process; `torch.save` stores it."""
        return {"moments": self.moments.state_dict(), "read": self._read, "sums": self.sums}

    def load_state_dict(self, state: dict) -> None:
        """Continue from `state_dict()`."""
        self.moments.load_state_dict(state["moments"])
        self._read, self._population, self.sums = state["read"], None, state["sums"]
