r"""Taylor coefficients of the loss along rays, from loss values alone: no derivative is taken.

A ray is a row of a `Path`: the loss is a function φ of one number. The coefficient of ε² has two parts. The values of
the *outputs* give their slope u' along the ray, and the values of the loss along `u + s u'` give the Gauss-Newton part
½ u'ᵀ F u'; the residual part is what remains.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..expansion.random_paths import _in_double
from ..setting.perturbation import displaced
from ..setting.problem import Path, Problem
from .fits import DEGREE, LINEAR_DEGREE, Fits
from .intervals import ENOUGH, Search
from .regions import JUMP_COST, RegionSearch, jumps


def in_double(problem: Problem) -> Problem:
    """The same problem with the loss of one sample computed in float64, whatever the precision of the network."""
    return problem._changed(loss=_in_double(problem.loss), features=problem.features.detach())


@torch.no_grad()
def along(
    path: Path,
    *,
    order: int = 3,
    degree: int = DEGREE,
    start: float | Tensor = 1.0,
    enough: float = ENOUGH,
    spend: Callable[[int], None] = lambda rows: None,
) -> Fits:
    """Fit the loss along every row of a path from its values.

    Args:
        path: rows of a problem made by `in_double`.
        order: highest power of ε.
        degree: M, an even degree.
        start: half-width of the first interval, one number or one per row.
        enough: relative error of the coefficient of ε² that is good enough.
        spend: called with the number of evaluations of the head, before they are made.
    """
    problem, found = path.problem, []
    for some in torch.arange(len(path), device=path.anchor.device).split(max(1, problem.block_rows())):
        block = path[some]
        spend(len(block))
        labels = problem.labels[block.anchor]
        first = torch.as_tensor(start, dtype=torch.float64, device=some.device).expand(len(path))[some]
        kind = RegionSearch if degree <= LINEAR_DEGREE else Search
        search = kind(problem.loss, labels, problem.head(block.first), block.first.dtype, first, order, degree)
        search.enough = enough
        while len(search.rows):
            rays = block[search.rows]
            spend(degree * len(rays))
            outputs = []
            for eps in search.scales():
                outputs.append(problem.head(displaced((rays.first, rays.linear, rays.quadratic), eps)))
            search.take(outputs)
        found.append(search.fits())
        rows = found[-1].constant.nonzero().flatten()
        if kind is RegionSearch and len(rows):  # where all units are off, outputs are at rest up to a kink
            spend(JUMP_COST * len(rows))
            found[-1].constant[rows] = jumps(block[rows], found[-1], rows)
    return found[0] if len(found) == 1 else Fits.joined(found)
