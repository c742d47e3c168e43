r"""The mean and the covariance of the features of a data set that does not fit into memory.

The data terms of the expansion need the other samples through these two alone:
$\mathbb E_r (g_r - g_i)(g_r - g_i)^\top = \mathrm{Cov} + (\bar g - g_i)(\bar g - g_i)^\top$.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Population:
    """What a batch has to know of all samples.

    Attributes:
        count: number of samples.
        mean: ḡ, `(*feature)`.
        directions: w_s with `Σ_s w_s w_sᵀ = Cov`, `(rank, *feature)`; `None` if the covariance is too large to store.
    """

    count: int
    mean: Tensor
    directions: Tensor | None


class FeatureMoments:
    """Running count, mean and covariance of features, in float64 and with memory that does not grow with the samples.

    Args:
        max_features: largest number d of features of a sample for which the `(d, d)` covariance is stored.
    """

    def __init__(self, max_features: int):
        self.max_features = max_features
        self.count = 0
        self.mean: Tensor | None = None
        self.scatter: Tensor | None = None

    def add(self, features: Tensor) -> None:
        """Add a batch of features, `(b, *feature)`, by the update of Chan, Golub and LeVeque, which does not cancel."""
        rows = features.detach().flatten(1).double()
        count, mean, d = len(rows), rows.mean(0), rows.shape[1]
        if self.mean is None:
            self.mean = torch.zeros_like(mean)
            self.scatter = rows.new_zeros(d, d) if d <= self.max_features else None
        step, total = mean - self.mean, self.count + count
        if self.scatter is not None:
            centered = rows - mean
            self.scatter += centered.T @ centered + torch.outer(step, step) * (self.count * count / total)
        self.mean, self.count = self.mean + step * (count / total), total

    def reduced(self) -> FeatureMoments:
        """The moments of the samples of all processes of `torch.distributed`; itself if there is one process."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return self
        if self.mean is None:
            raise ValueError("loader: expected at least one batch in every process, this one has none.")
        whole = FeatureMoments(self.max_features)
        count = self.mean.new_tensor([float(self.count)])
        torch.distributed.all_reduce(count)
        mean = self.mean * (self.count / count)
        torch.distributed.all_reduce(mean)
        whole.count, whole.mean = int(count), mean
        if self.scatter is not None:
            away = self.mean - mean
            whole.scatter = self.scatter + self.count * torch.outer(away, away)
            torch.distributed.all_reduce(whole.scatter)
        return whole

    def population(self, like: Tensor) -> Population:
        """The moments in the shape, dtype and device of features `(b, *feature)`."""
        if self.mean is None:
            raise ValueError("loader: expected at least one sample, got none.")
        directions = None
        if self.scatter is not None:
            if not self.scatter.isfinite().all():
                raise ValueError("features: expected a finite covariance, got inf; scale the inputs down.")
            sizes, basis = torch.linalg.eigh(self.scatter / self.count)
            keep = sizes > sizes.max() * len(sizes) * torch.finfo(sizes.dtype).eps
            directions = (basis[:, keep] * sizes[keep].sqrt()).T.flip(0)
            directions = directions.to(like).reshape(-1, *like.shape[1:])
            if not len(directions):
                directions = like.new_zeros(1, *like.shape[1:])
        return Population(self.count, self.mean.to(like).reshape(like.shape[1:]), directions)

    def state_dict(self) -> dict:
        """Everything needed to continue."""
        return {"count": self.count, "mean": self.mean, "scatter": self.scatter}

    def load_state_dict(self, state: dict) -> None:
        """Continue from `state_dict()`."""
        self.count, self.mean, self.scatter = state["count"], state["mean"], state["scatter"]
