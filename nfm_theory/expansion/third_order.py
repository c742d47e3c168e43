r"""C3, the predicted coefficient of ε³, the leading term of the remainder at second order (book: eq-remainder).

$$ C_3 = \frac1n \sum_i \Big\{ \frac{m_3}{6}\, \mathbb E_r D^3\ell_i[v, v, v] + m_1 \frac{d}{dt}\Big|_0
   \tfrac12 \mathbb E_\xi D^2\ell_i[e, e]\big(g_i + t\, \mathbb E_r v\big) \Big\}, \qquad v = g_r - g_i $$

Here e is the noise at the moved features. C3 is exact over all pairs, for noise with zero third moments.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..calculus.derivatives import directional_derivatives, mapped_over_directions
from ..calculus.directions import coordinate_basis
from ..calculus.forward_mode import jvp
from ..setting.problem import Problem


def pair_cubic(problem: Problem, block_rows: int) -> Tensor:
    """The mean of `D³ℓ_i[v, v, v]`, v = g_r - g_i, over samples i and partners r."""
    g = problem.features

    def cubic(h: Tensor, partner: Tensor, rows: Tensor) -> Tensor:
        return directional_derivatives(lambda z: problem.losses(z, rows), h, partner - h, 3)[3]

    if problem.partners is None:
        return mapped_over_directions(cubic, g, g, block_rows=block_rows).mean() / len(g)
    total = g.new_zeros(())
    for pairs in problem.partners.nonzero().split(block_rows):
        i, r = pairs.T
        total = total + (problem.partners[i, r].to(g) * cubic(g[i], g[r], i)).sum()
    return total / len(g)


def _diagonal_with_slope(problem: Problem, drift: Tensor, block_rows: int) -> Tensor:
    """`D²ℓ_i[e_j, e_j]` for the unit vectors e_j, and its derivative along the drift of the sample, `(n, d, 2)`."""

    def both(h: Tensor, e: Tensor, rows: Tensor) -> Tensor:
        def diagonal(z: Tensor) -> Tensor:
            return directional_derivatives(lambda q: problem.losses(q, rows), z, e, 2)[2]

        return torch.stack(jvp(diagonal, (h,), (drift[rows],)), dim=-1)

    basis = coordinate_basis(problem.features)
    return mapped_over_directions(both, problem.features, basis, block_rows=block_rows, reduce=False)


def predicted_remainder(problem: Problem) -> Tensor:
    """C3 of one problem, 0-dim."""
    g, mixing, (add, mult) = problem.features, problem.mixing, problem.noises
    if not mixing.mixes:
        return g.new_zeros(())
    block_rows = problem.block_rows(passes=8)
    total = mixing.moment(3) / 6 * pair_cubic(problem, block_rows)
    if add is None and mult is None:
        return total
    drift, m1 = problem.drift, mixing.moment(1)
    diagonal, slope = _diagonal_with_slope(problem, drift, block_rows).unbind(-1)
    flat, flat_drift = g.flatten(1), drift.flatten(1)
    if add is not None:
        total = total + m1 / 2 * problem.law.add_noise**2 * add.second * slope.sum(1).mean()
    if mult is not None:
        variance = problem.law.mult_noise**2 * mult.second
        total = total + m1 / 2 * variance * (slope * flat**2).sum(1).mean()
        total = total + m1 * variance * (diagonal * flat_drift * flat).sum(1).mean()
    return total
