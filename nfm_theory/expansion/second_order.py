r"""The second-order regularizers of NFM, exact over all n² pairs and over the noise (book: eq-second-moment).

All are `½ tr(A_i C_i)`: A the Gauss-Newton part `JᵀFJ` of the curvature of the loss (R2) or its residual part
`(p - y)·∇²f` (R3), C the second moment of the perturbation by data, additive or multiplicative noise.

| what | exact | cost, in forward passes |
|---|---|---|
| R2, all | K Jacobian rows against second-moment matrices, no directions | about K |
| R3 data | the centred features as directions, compressed behind a first linear layer | min(n, d, w) |
| R3 additive | the unit vectors, compressed likewise; data and additive share one basis | min(d, w) |
| R3 multiplicative | the unit vectors, weighted by g² for each sample | d |

with d the number of features of a sample and w the width behind the first linear layers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from ..calculus.derivatives import gauss_newton_forms
from ..calculus.directions import centred_features, compressed, coordinate_basis, joint_directions
from ..calculus.engine import Linearization
from ..calculus.engine.base import block_bytes
from ..setting.problem import Problem

#: What a perturbation is made of, and the suffix of its terms.
SOURCES = {"data": "", "additive": "_add", "multiplicative": "_mult"}
#: Widest space in which data and noise are diagonalised together.
JOINT_WIDTH = 2048
#: Coordinates whose unit vectors are written out at once.
COORDINATE_BLOCK = 1024


def _propagated(at: Linearization, directions: Tensor) -> Tensor:
    """Directions `(m, *feature)` that all samples share, behind the first linear operations, `(m, w)`."""
    return at.propagate(directions.unsqueeze(1)).squeeze(1)


def num_directions(problem: Problem, at: Linearization, sources: Collection[str]) -> int:
    """Directions that the exact R3 of these sources takes."""
    d, n = problem.features[0].numel(), len(problem.features)
    data = (min(n, at.width) + 1 if problem.partners is None else n) if "data" in sources else 0
    if "multiplicative" in sources:
        return data + d
    noise = min(d, at.width) if "additive" in sources else 0
    joint = data and noise and _joined(problem, at)
    return noise + 1 if joint else data + noise


def _joined(problem: Problem, at: Linearization) -> bool:
    """True if one set of directions serves data and additive noise."""
    return at.width <= JOINT_WIDTH and not at.differentiable and problem.partners is None


def _pairs(problem: Problem, at: Linearization) -> Iterator[tuple[Tensor, Tensor]]:
    """Directions to every partner r behind `propagate`, `(m, n, w)`, with the probabilities `P(r|i)`, `(m, n)`."""
    g, weights = problem.features, problem.partners.to(problem.features).T
    block = max(1, block_bytes(g.device) // g.nbytes)
    for partners, probability in zip(g.split(block), weights.split(block), strict=True):
        yield at.propagate(partners.unsqueeze(1) - g), probability


def _blocks(curvature: Tensor, rows: Tensor, columns: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Blocks of samples for which K × `columns` numbers each are not too many."""
    block = max(1, block_bytes(rows.device) // (rows.shape[1] * columns * rows.element_size()))
    yield from zip(curvature.split(block), rows.split(block), strict=True)


def _jacobian_forms(curvature: Tensor, rows: Tensor, directions: Tensor | None = None) -> Tensor:
    """`(J w_s)ᵀ F (J w_s)` of each sample and direction, `(b, m)`; of the unit vectors if there are no directions."""
    if directions is None:
        return torch.cat([gauss_newton_forms(f, r) for f, r in _blocks(curvature, rows, rows.shape[-1])])
    blocks = _blocks(curvature, rows, len(directions))
    return torch.cat([gauss_newton_forms(f, r @ directions.T) for f, r in blocks])


def _summed_forms(curvature: Tensor, rows: Tensor, directions: Tensor) -> Tensor:
    """`Σ_s (J w_s)ᵀ F (J w_s)` per sample, `(b,)`, through the matrix `Σ_s w_s w_sᵀ` where that is smaller."""
    m, w = directions.shape
    if m <= w:
        return _jacobian_forms(curvature, rows, directions).sum(1)
    moment = directions.T @ directions
    return torch.cat([(f * (r @ moment @ r.mT)).sum((1, 2)) for f, r in _blocks(curvature, rows, w)])


def gauss_newton_terms(problem: Problem, at: Linearization, sources: Collection[str]) -> dict[str, Tensor]:
    """`tr(JᵀFJ C_i)` of each source with unit scale, exact, per sample `(n,)`."""
    g = problem.features
    curvature = problem.loss.hessian(at.outputs, problem.labels)
    rows = at.rows()
    forms = {}
    if "data" in sources and problem.partners is not None:
        forms["data"] = g.new_zeros(len(g))
        for directions, probability in _pairs(problem, at):
            tangents = torch.einsum("nkw,mnw->nkm", rows, directions)
            forms["data"] = forms["data"] + (gauss_newton_forms(curvature, tangents) * probability.T).sum(1)
    elif "data" in sources:
        drift = at.propagate(problem.drift.unsqueeze(0))[0]
        tangent = (rows @ drift.unsqueeze(-1)).squeeze(-1)
        spread = _summed_forms(curvature, rows, _propagated(at, centred_features(g)))
        forms["data"] = spread + gauss_newton_forms(curvature, tangent)
    if {"additive", "multiplicative"} & set(sources):
        basis = None if at.width == g[0].numel() else _propagated(at, coordinate_basis(g))
        if basis is not None and "multiplicative" not in sources:
            return forms | {"additive": _summed_forms(curvature, rows, basis)}
        squares = _jacobian_forms(curvature, rows, basis)
        weights = {"additive": 1.0, "multiplicative": g.flatten(1) ** 2}
        forms |= {name: (squares * weight).sum(1) for name, weight in weights.items() if name in sources}
    return forms


def _families(problem: Problem, at: Linearization, sources: Collection[str]) -> Iterator[tuple[Tensor, dict]]:
    """Directions `(m, 1 or n, w)` behind `at.propagate`, each with its weight in the sources, `(m, 1)` or `(m, n)`."""
    g = problem.features
    d = g[0].numel()
    noisy = {"additive", "multiplicative"} & set(sources)
    if "data" in sources and problem.partners is not None:
        for directions, probability in _pairs(problem, at):
            yield directions, {"data": probability}
    elif "data" in sources:
        data = compressed(_propagated(at, centred_features(g)))
        if noisy == {"additive"} and _joined(problem, at):
            noise = None if at.width == d else _propagated(at, coordinate_basis(g))
            directions, weights = joint_directions(data, noise)
            weights = weights.unsqueeze(1)
            yield directions.unsqueeze(1), {"data": weights, "additive": torch.ones_like(weights)}
            return
        yield data.unsqueeze(1), {"data": data.new_ones(len(data), 1)}
    if noisy == {"additive"} and at.width < d:
        basis = compressed(_propagated(at, coordinate_basis(g)))
        yield basis.unsqueeze(1), {"additive": basis.new_ones(len(basis), 1)}
    elif noisy:
        for block in torch.arange(d, device=g.device).split(COORDINATE_BLOCK):
            units = g.new_zeros(len(block), d)
            units[torch.arange(len(block)), block] = 1.0
            weights = {"additive": g.new_ones(len(block), 1), "multiplicative": g.flatten(1)[:, block].T ** 2}
            directions = _propagated(at, units.reshape(len(block), *g.shape[1:]))
            yield directions.unsqueeze(1), {name: weight for name, weight in weights.items() if name in noisy}


def residual_terms(
    problem: Problem,
    at: Linearization,
    slope: Tensor,
    sources: Collection[str],
    *,
    curvature: Tensor | None = None,
    block_rows: int | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """`tr(a·∇²f C_i)` of each source with unit scale, exact, per sample `(n,)`; and `tr(JᵀFJ C_i)` by the way.

    Args:
        problem: the setting.
        at: the head at the features.
        slope: a = p - y, `(n, K)`.
        sources: which.
        curvature: F, `(n, K, K)`; with it the tangents of the sweep give the Gauss-Newton terms too (else empty).
        block_rows: rows per block.
    """
    g = problem.features
    residual = {name: g.new_zeros(len(g)) for name in sources}
    gauss_newton = {} if curvature is None else dict(residual)
    if at.piecewise_linear and curvature is None:
        return residual, gauss_newton
    for directions, weights in _families(problem, at, sources):
        _add_forms(at, slope, curvature, directions, weights, residual, gauss_newton, True, block_rows)
    if "data" in sources and problem.partners is None:
        drift, one = problem.drift.unsqueeze(0), {"data": 1.0}
        _add_forms(at, slope, curvature, drift, one, residual, gauss_newton, False, block_rows)
    return residual, gauss_newton


def _add_forms(at, slope, curvature, directions, weights, residual, gauss_newton, propagated, block_rows) -> None:
    """Add the weighted forms along directions to both dictionaries."""
    wanted = curvature is not None
    tangents, hessian_forms = at.sweep(directions, slope, tangents=wanted, propagated=propagated, block_rows=block_rows)
    forms = gauss_newton_forms(curvature, tangents.permute(1, 2, 0)).T if wanted else None
    for name, weight in weights.items():
        residual[name] = residual[name] + (weight * hessian_forms).sum(0)
        if wanted:
            gauss_newton[name] = gauss_newton[name] + (weight * forms).sum(0)


def exact_terms(
    problem: Problem,
    at: Linearization,
    *,
    gauss_newton: Collection[str] | None = None,
    residual: Collection[str] | None = None,
    block_rows: int | None = None,
) -> dict[str, Tensor]:
    """R1 and the second-order terms by name, exact over all n² pairs; those not asked for are 0.

    Args:
        problem: the setting.
        at: the head at the features, `linearize(problem.head, problem.features)`.
        gauss_newton: sources whose R2 is wanted; `None` for all that are switched on.
        residual: sources whose R3 is wanted; `None` for all that are switched on.
        block_rows: rows per block of the sweeps.
    """
    scales = problem.law.scales
    gauss_newton = scales if gauss_newton is None else gauss_newton
    residual = scales if residual is None else residual
    zero, slope = at.outputs.new_zeros(()), problem.loss.gradient(at.outputs, problem.labels)
    terms = {"R1": zero} | {f"{order}{suffix}": zero for suffix in SOURCES.values() for order in ("R2", "R3")}
    # Where R3 is swept anyway, the tangents of the sweep may be cheaper than K Jacobian rows
    along = set(gauss_newton) == set(residual) and not at.piecewise_linear
    along = along and at.tail_share * num_directions(problem, at, residual) < at.outputs.shape[-1]
    # In this order: Jacobian rows serve R1 as well, and R1 shares its reverse sweep with R3
    forms = {"R2": gauss_newton_terms(problem, at, gauss_newton) if gauss_newton and not along else {}}
    if "data" in scales:
        pulled = at.pullback(slope)
        drift = at.propagate(problem.drift.unsqueeze(0))[0]
        terms["R1"] = problem.mixing.moment(1) * (pulled * drift).sum(1).mean()
    curvature = problem.loss.hessian(at.outputs, problem.labels) if along else None
    if residual:
        forms["R3"], swept = residual_terms(problem, at, slope, residual, curvature=curvature, block_rows=block_rows)
        forms["R2"] |= swept
    for order, found in forms.items():
        for name, form in found.items():
            terms[order + SOURCES[name]] = scales[name] * form.mean()
    return terms
