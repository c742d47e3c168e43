"""Link 4: at ε = 1 the loss with mixed labels, as it is trained, equals the unmixed loss (book: eq-unmixing).

The identity holds for the pairs of any few samples and for every realization of the noise. So it is checked on a few
samples, over all of their pairs, with some draws of the noise that both sides share, and with Gauss nodes of λ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..setting.draws import Draw
from ..setting.problem import Problem
from .rays import in_double

#: Numbers of nodes of λ; their difference is the error of the integral. Samples and draws of the noise.
NODES, SAMPLES, NOISES = (8, 12), 4, 2
#: The same for large networks.
FEW_NODES, FEW_SAMPLES, FEW_NOISES = (3, 5), 2, 1


@dataclass(frozen=True)
class Unmixing:
    """Both sides of the identity.

    Attributes:
        mixed: the loss with mixed labels.
        unmixed: the loss with the label of the first sample, λ from the law after unmixing.
        error: largest difference that the integral over λ and rounding explain.
    """

    mixed: float
    unmixed: float
    error: float

    @property
    def holds(self) -> bool:
        """True if both sides agree within the error."""
        return abs(self.mixed - self.unmixed) <= self.error


def unmixing_rows(problem: Problem, large: bool) -> int:
    """Evaluations of the head that `check_unmixing` takes."""
    nodes, samples, noises = (FEW_NODES, FEW_SAMPLES, FEW_NOISES) if large else (NODES, SAMPLES, NOISES)
    n = min(samples, len(problem.features))
    return 2 * sum(nodes) * n**2 * noises + n


def check_unmixing(
    problem: Problem, seed: int, spend: Callable[[int], None] = lambda rows: None, *, large: bool = False
) -> Unmixing | None:
    """Both sides of the identity for the first samples; `None` where nothing mixes or partners have a law of their own.

    Args:
        problem: the setting.
        seed: seed of the draws of the noise.
        spend: called with the number of evaluations of the head.
        large: take fewer samples and nodes.
    """
    if not problem.mixing.mixes or problem.partners is not None:
        return None
    nodes, samples, noises = (FEW_NODES, FEW_SAMPLES, FEW_NOISES) if large else (NODES, SAMPLES, NOISES)
    double, device, n = in_double(problem), problem.features.device, min(samples, len(problem.features))
    noise = problem.draw(1, noises, generator=torch.Generator(device).manual_seed(seed))
    first, second = (
        part.flatten().to(device) for part in torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    )

    def side(unmixed: bool, nodes: int) -> Tensor:
        lam, weights = problem.mixing.nodes(nodes, unmixed=unmixed)
        total = torch.zeros((), dtype=torch.float64, device=device)
        for value, weight in zip(lam.tolist(), weights.tolist(), strict=True):
            for k in range(noises):
                row = torch.full_like(first, k)
                some = noise[row]
                draw: Draw = replace(some, anchor=first, index=second, lam=torch.full_like(some.lam, value))
                spend(len(first))
                losses = double.path(draw)(1.0) if unmixed else double.mixed_label_losses(draw)
                total = total + weight * losses.double().mean() / noises
        return total

    coarse, fine = ([float(side(unmixed, num)) for unmixed in (False, True)] for num in nodes)
    unit = torch.finfo(problem.features.dtype).eps
    spend(n)
    size = float(double.head(problem.features[:n]).abs().max()) + abs(fine[0])
    error = 10 * sum(abs(a - b) for a, b in zip(coarse, fine, strict=True)) + 1e3 * unit * size
    return Unmixing(fine[0], fine[1], error)
