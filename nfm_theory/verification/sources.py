r"""The sources of a perturbation, each on a law of its own: mixing, additive noise or multiplicative noise alone.

A term of second order belongs to one source and depends on the second moment of its directions alone:

| source | directions e of sample i | factor of the coefficient of t along `g_i + t e`, and of t² |
|---|---|---|
| data | `g_r - g_i`, r with probability P(r given i) | m1, and m2 |
| additive | `σ_add √Eξ² s`, s unit vectors (summed) or random signs (averaged) | 1 |
| multiplicative | `σ_mult √Eξ² s ⊙ g_i` | 1 |

All pairs and all unit vectors give a term exactly. Random partners and signs give it with a standard error. The
partners are shifts of the samples without repetition; signs have the smallest variance of all laws with the same second
moment. The moments come from the quadrature nodes of the law, not from the closed forms that the terms use.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from ..calculus.derivatives import gauss_newton_forms
from ..setting.noise import NoiseLaw
from ..setting.problem import Path, Problem


def mixing_moment(problem: Problem, power: int) -> float:
    """`E (1 - λ)^power` by the nodes of the law after unmixing."""
    lam, weights = problem.mixing.nodes(4)
    return float(weights @ (1 - lam) ** power)


def second_moment(law: NoiseLaw) -> float:
    """`E ξ²` of one element, by the nodes of the law."""
    z, w = law.nodes(4)
    b, v = NoiseLaw(law.base, law.beta_scaled, law.sparsity).scale_nodes(4)
    return float((w @ z**2) * (v @ b**2))


@dataclass(frozen=True)
class Source:
    """One source of a problem.

    Attributes:
        problem: the setting.
        name: `"data"`, `"additive"` or `"multiplicative"`.
    """

    problem: Problem
    name: str

    @cached_property
    def factors(self) -> dict[str, float]:
        """What the first and the second coefficient along the directions are multiplied by: terms by name."""
        if self.name == "data":
            m1, m2 = (mixing_moment(self.problem, k) for k in (1, 2))
            return {"R1": m1, "R2": m2, "R3": m2}
        suffix = "_add" if self.name == "additive" else "_mult"
        return {"R2" + suffix: 1.0, "R3" + suffix: 1.0}

    @cached_property
    def _level(self) -> float:
        """σ √Eξ²."""
        law, add = self.problem.law, self.name == "additive"
        noise = self.problem._sampled_law.noises[0 if add else 1]
        return (law.add_noise if add else law.mult_noise) * second_moment(noise) ** 0.5

    @cached_property
    def _pairs(self) -> Tensor:
        """Pairs (i, r) of different samples that can meet, `(pairs, 2)`."""
        p, n = self.problem, len(self.problem.features)
        meet = torch.ones(n, n) if p.partners is None else p.partners
        return (meet.to(p.features.device) * (1 - torch.eye(n, device=p.features.device))).nonzero()

    @property
    def total(self) -> int:
        """Number of rows that give the terms exactly."""
        if self.name == "data":
            return len(self._pairs)
        return len(self.problem.features) * prod(self.problem.feature_shape)

    def rows(self, index: Tensor) -> tuple[Path, Tensor]:
        """Some of the rows that give the terms exactly, with their weights `(b,)`."""
        p, n = self.problem, len(self.problem.features)
        if self.name == "data":
            anchor, partner = self._pairs[index].unbind(1)
            weights = torch.full((len(index),), 1 / n**2, dtype=torch.float64, device=index.device)
            if p.partners is not None:
                weights = p.partners[anchor, partner].double() / n
            return self._ray(anchor, p.features[partner] - p.features[anchor]), weights
        d = prod(p.feature_shape)
        units = p.features.new_zeros(len(index), d)
        units[torch.arange(len(index), device=index.device), index % d] = 1.0
        weights = torch.full((len(index),), 1 / n, dtype=torch.float64, device=index.device)
        return self._noisy(index // d, units.reshape(-1, *p.feature_shape)), weights

    def sweeps(self, generator: torch.Generator) -> Iterator[Path]:
        """Random rows, one from each sample at a time; data rows without partners of their own end after n - 1."""
        p, n = self.problem, len(self.problem.features)
        device = p.features.device
        anchor = torch.arange(n, device=device)
        if self.name == "data" and p.partners is None:
            for shift in (torch.randperm(n - 1, generator=generator, device=generator.device) + 1).tolist():
                yield self._ray(anchor, p.features.roll(-shift, 0) - p.features)
            return
        while True:
            if self.name == "data" and p.partners is not None:
                partner = torch.multinomial(p.partners.to(generator.device), 1, generator=generator)[:, 0].to(device)
                yield self._ray(anchor, p.features[partner] - p.features)
            else:
                shape = (n, *p.feature_shape)
                signs = torch.randint(2, shape, generator=generator, device=generator.device)
                yield self._noisy(anchor, (2 * signs - 1).to(p.features))

    @property
    def population(self) -> float:
        """How many sweeps there are: with all of them the mean has no sampling error."""
        return len(self.problem.features) - 1 if self.name == "data" and self.problem.partners is None else float("inf")

    @property
    def share(self) -> float:
        """The mean over the sweeps is multiplied by this: a sample is never its own partner in a sweep."""
        n = len(self.problem.features)
        return (n - 1) / n if self.name == "data" and self.problem.partners is None else 1.0

    def _ray(self, anchor: Tensor, direction: Tensor) -> Path:
        return Path(self.problem, anchor, self.problem.features[anchor], direction, None)

    def _noisy(self, anchor: Tensor, signs: Tensor) -> Path:
        first = self.problem.features[anchor]
        return self._ray(anchor, self._level * (signs.expand_as(first) if self.name == "additive" else signs * first))


def sources_of(problem: Problem) -> list[Source]:
    """The sources that the law of a problem switches on."""
    return [Source(problem, name) for name in problem.law.scales]


def control_mean(source: Source, jacobian: Tensor, slope: Tensor, curvature: Tensor) -> Tensor:
    """Mean over all directions of `a·J e` and `½ (J e)ᵀ F (J e)` with a given matrix J, `(2,)`.

    Args:
        source: the source.
        jacobian: J of every sample, `(n, K, *feature)`: any matrix is right, one close to the Jacobian helps most.
        slope: a, `(n, K)`.
        curvature: F, `(n, K, K)`, or its blocks.
    """
    p, n = source.problem, len(source.problem.features)
    g, rows = p.features.flatten(1).double(), jacobian.flatten(2)
    if source.name == "data":
        chance = torch.full((n, n), 1 / n, dtype=torch.float64, device=g.device)
        chance = chance if p.partners is None else p.partners.double()
        moved = torch.einsum("nkd,rd->nrk", rows, g) - torch.einsum("nkd,nd->nk", rows, g).unsqueeze(1)
        first = (torch.einsum("nrk,nk->nr", moved, slope) * chance).sum() / n
        second = (gauss_newton_forms(curvature, moved.mT) * chance).sum() / n
        return torch.stack([first, second / 2])
    weighted = rows if source.name == "additive" else rows * g.unsqueeze(1)
    if prod(p.feature_shape) < g.shape[1]:  # shared noise: the branches move together
        weighted = weighted.unflatten(2, (-1, prod(p.feature_shape))).sum(2)
    second = source._level**2 / 2 * gauss_newton_forms(curvature, weighted).sum() / n
    return torch.stack([torch.zeros_like(second), second])
