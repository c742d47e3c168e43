r"""C3, the predicted coefficient of ε³, the leading term of the remainder at second order (book: eq-remainder).

$$ C_3 = \frac1n \sum_i \Big\{ \frac{m_3}{6}\, \mathbb E_r D^3\ell_i[v, v, v] + m_1 \frac{d}{dt}\Big|_0
   \tfrac12 \mathbb E_\xi D^2\ell_i[e, e]\big(g_i + t\, \mathbb E_r v\big) \Big\}, \qquad v = g_r - g_i $$

Here e is the noise at the moved features. C3 is exact over all pairs, for noise with zero third moments. The third
derivatives come from one recording of the head (`Linearization.third_order`).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..calculus.directions import coordinate_basis
from ..calculus.engine import Linearization, linearize
from ..setting.problem import Problem


class LossDerivatives:
    """Second and third derivatives `D²ℓ_i[v, v]` and `D³ℓ_i[v, v, v]` of the losses at the features.

    Args:
        problem: the setting.
        engine: see `linearize`.
    """

    def __init__(self, problem: Problem, engine: str = "auto"):
        index = torch.arange(len(problem.features), device=problem.features.device)

        def losses(h: Tensor) -> Tensor:
            repeats = len(h) // len(index)
            return problem.losses(h, index.repeat(repeats)).unsqueeze(1)

        self.at: Linearization = linearize(losses, problem.features, engine=engine, order=3)
        self.slope = torch.ones_like(self.at.outputs)

    def along(self, directions: Tensor) -> tuple[Tensor, Tensor]:
        """The second and the third derivatives, `(m, b)` each, for propagated directions `(m, b or 1, w)`."""
        _, second, third = self.at.third_order(directions, self.slope, propagated=True)
        return second.squeeze(-1), third


def _pair_directions(problem: Problem, found: LossDerivatives, block: int) -> Iterator[tuple[Tensor, Tensor]]:
    """`g_r - g_i` after the first linear operations, `(m, n, w)`, and the probabilities P(r|i), `(m, n)`, in blocks."""
    moved = found.at.propagate(problem.features.unsqueeze(1))
    own = moved.transpose(0, 1)
    partners = problem.partners
    for rows in torch.arange(len(moved), device=own.device).split(block):
        weights = own.new_full((len(rows), len(moved)), 1 / len(moved)) if partners is None else partners[:, rows].T
        yield moved[rows] - own, weights.to(own)


def pair_cubic(problem: Problem, found: LossDerivatives | None = None) -> Tensor:
    """The mean of `D³ℓ_i[v, v, v]`, v = g_r - g_i, over the partners r of every sample i, `(n,)`."""
    found = LossDerivatives(problem) if found is None else found
    n = len(problem.features)
    total = problem.features.new_zeros(n)
    for directions, weights in _pair_directions(problem, found, max(1, problem.block_rows(passes=4) // n)):
        total = total + (weights * found.along(directions)[1]).sum(0)
    return total


def noise_diagonal(problem: Problem, found: LossDerivatives, drift: Tensor) -> tuple[Tensor, Tensor]:
    """`D²ℓ_i[e_j, e_j]` for the unit vectors e_j, and its derivative along the drift of the sample, each `(n, d)`.

    The mixed derivative follows from cubes: `6 D³[w, e, e] = D³[e + w]³ - D³[e - w]³ - 2 D³[w]³`.

    Args:
        problem: the setting.
        found: its derivatives.
        drift: the drift w of every sample, `(n, *feature)`.
    """
    basis = found.at.propagate(coordinate_basis(problem.features).unsqueeze(1))
    moved = found.at.propagate(drift.unsqueeze(0))
    # The same length as a unit vector, so that nothing is lost when the cubes are subtracted
    length = drift.flatten(1).norm(dim=1).clamp_min(torch.finfo(drift.dtype).tiny)
    moved = moved / length[:, None]
    alone = found.along(moved)[1]
    seconds, slopes = [], []
    n = len(problem.features)
    for part in basis.split(max(1, problem.block_rows(passes=8) // n)):
        (plus2, plus), (minus2, minus) = found.along(part + moved), found.along(part - moved)
        seconds.append((plus2 + minus2) / 2)
        slopes.append((plus - minus - 2 * alone) / 6)
    along = found.along(moved)[0]
    return torch.cat(seconds).T - along.T, torch.cat(slopes).T * length[:, None]


def predicted_remainder(problem: Problem, *, per_sample: bool = False) -> Tensor:
    """C3 of one problem, 0-dim, or its part of every sample, `(n,)`, whose mean is C3."""
    values = _cubic_terms(problem)
    return values if per_sample else values.mean()


def _cubic_terms(problem: Problem) -> Tensor:
    g, mixing, (add, mult) = problem.features, problem.mixing, problem.noises
    if not mixing.mixes:
        return g.new_zeros(len(g))
    found = LossDerivatives(problem)
    total = mixing.moment(3) / 6 * pair_cubic(problem, found)
    if add is None and mult is None:
        return total
    drift, m1 = problem.drift, mixing.moment(1)
    diagonal, slope = noise_diagonal(problem, found, drift)
    flat, flat_drift = g.flatten(1), drift.flatten(1)
    if add is not None:
        total = total + m1 / 2 * problem.law.add_noise**2 * add.second * slope.sum(1)
    if mult is not None:
        variance = problem.law.mult_noise**2 * mult.second
        total = total + m1 / 2 * variance * (slope * flat**2).sum(1)
        total = total + m1 * variance * (diagonal * flat_drift * flat).sum(1)
    return total
