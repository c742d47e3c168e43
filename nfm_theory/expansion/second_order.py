r"""The second-order regularizers of NFM, exact over all n² pairs and over the noise (book: eq-second-moment).

Each regularizer is `½ tr(A_i C_i)`. In R2, A is the Gauss-Newton part `JᵀFJ` of the Hessian of the loss; in R3 it is
the residual part `(p - y)·∇²f`. C is the second moment of the perturbation from one source: the data, the additive
noise or the multiplicative noise.

| term | computation | cost, in forward passes |
|---|---|---|
| R2, all sources | K Jacobian rows and the second-moment matrices, no directions | about K |
| R2, if R3 takes fewer directions than K | along these directions | none beside R3 |
| R3 data | along the centered features, compressed after the first linear layers | min(n, d, w) |
| R3 additive | along the unit vectors, compressed likewise; the data can share these directions | min(d, w) |
| R3 multiplicative | along the unit vectors, weighted by g² for each sample | d |

Here d is the number of features of a sample, and w the width after the first linear layers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from ..calculus.cuts import check_finite
from ..calculus.derivatives import gauss_newton_forms, in_blocks
from ..calculus.directions import compressed, coordinate_basis, joint_directions, unit_vectors
from ..calculus.engine import Linearization
from ..calculus.engine.base import block_bytes
from ..setting.memory import BLOCK_BYTES
from ..setting.problem import Problem

#: The sources of a perturbation, and the suffix of their terms.
SOURCES = {"data": "", "additive": "_add", "multiplicative": "_mult"}
#: The largest width at which data and noise are diagonalized together.
JOINT_WIDTH = 2048
#: The number of outputs above which tangents of a piecewise-linear head may replace its Jacobian.
MANY_OUTPUTS = 64
#: The number of unit vectors in memory at once.
COORDINATE_BLOCK = 1024


def _propagated(at: Linearization, directions: Tensor) -> Tensor:
    """Propagate directions `(m, *feature)` that all samples share through the first linear layers, to `(m, w)`."""
    return at.propagate(directions.unsqueeze(1)).squeeze(1)


def num_directions(problem: Problem, at: Linearization, sources: Collection[str]) -> int:
    """The number of directions that the exact R3 of these sources needs."""
    d, n = problem.features[0].numel(), problem.num_partners
    data = (min(n, at.width) + 1 if problem.partners is None else n) if "data" in sources else 0
    if "multiplicative" in sources:
        return data + d
    noise = min(d, at.width) if "additive" in sources else 0
    joint = data and noise and _joined(problem, at)
    return noise + 1 if joint else data + noise


def follows_directions(problem: Problem, at: Linearization, sources: Collection[str]) -> bool:
    """True if R2 is cheaper along the directions of R3 than by K Jacobian rows, as for outputs with many positions."""
    outputs, share = at.outputs.shape[-1], at.tail_share
    if at.piecewise_linear:  # R3 is zero and takes no directions
        if outputs <= MANY_OUTPUTS:
            return False
        share = 1.0
    return share * num_directions(problem, at, sources) < outputs


def _joined(problem: Problem, at: Linearization) -> bool:
    """True if one set of directions serves data and additive noise."""
    return at.width <= JOINT_WIDTH and not at.differentiable and problem.partners is None


def _pairs(g: Tensor, weights: Tensor, at: Linearization) -> Iterator[tuple[Tensor, Tensor]]:
    """Propagated directions to every partner r, `(m, n, w)`, with the probabilities `P(r|i)`, `(m, n)`."""
    weights = weights.to(g).T
    block = max(1, block_bytes(g.device) // g.nbytes)
    for partners, probability in zip(g.split(block), weights.split(block), strict=True):
        yield at.propagate(partners.unsqueeze(1) - g), probability


def _blocks(curvature: Tensor, rows: Tensor, columns: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Split F and the Jacobians into blocks of samples, for results of K × `columns` numbers for each sample."""
    block = max(1, block_bytes(rows.device) // (rows.shape[1] * columns * rows.element_size()))
    yield from zip(curvature.split(block), rows.split(block), strict=True)


def _jacobian_forms(curvature: Tensor, rows: Tensor, directions: Tensor | None = None) -> Tensor:
    """`(J w_s)ᵀ F (J w_s)` for each sample and direction, `(b, m)`; `None` stands for the unit vectors."""
    if directions is None:
        return torch.cat([gauss_newton_forms(f, r) for f, r in _blocks(curvature, rows, rows.shape[-1])])
    blocks = _blocks(curvature, rows, len(directions))
    return torch.cat([gauss_newton_forms(f, r @ directions.T) for f, r in blocks])


def _summed_forms(curvature: Tensor, rows: Tensor, directions: Tensor) -> Tensor:
    """`Σ_s (J w_s)ᵀ F (J w_s)` for each sample, `(b,)`, by way of the matrix `Σ_s w_s w_sᵀ` if that is smaller."""
    m, w = directions.shape
    if m <= w:
        return _jacobian_forms(curvature, rows, directions).sum(1)
    moment = directions.T @ directions
    parts = ((f, in_blocks(f, r)) for f, r in _blocks(curvature, rows, w))
    return torch.cat([(f * (r @ moment @ r.mT)).sum(tuple(range(1, f.ndim))) for f, r in parts])


def gauss_newton_terms(problem: Problem, at: Linearization, sources: Collection[str]) -> dict[str, Tensor]:
    """`tr(JᵀFJ C_i)` for each sample, `(n,)`, by source; exact, for sources of unit scale."""
    g = problem.features
    curvature = problem.loss.hessian(at.outputs, problem.labels)
    rows = at.rows()
    forms = {}
    if "data" in sources and problem.partners is not None:
        forms["data"] = g.new_zeros(len(g))
        for directions, probability in _pairs(g, problem.partners, at):
            tangents = torch.einsum("nkw,mnw->nkm", rows, directions)
            forms["data"] = forms["data"] + (gauss_newton_forms(curvature, tangents) * probability.T).sum(1)
    elif "data" in sources:
        drift = at.propagate(problem.drift.unsqueeze(0))[0]
        tangent = (rows @ drift.unsqueeze(-1)).squeeze(-1)
        spread = _summed_forms(curvature, rows, _propagated(at, problem.spread))
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
    """Propagated directions `(m, 1 or n, w)`, and by source their weights, `(m, 1)` or `(m, n)`."""
    g = problem.features
    d = g[0].numel()
    noisy = {"additive", "multiplicative"} & set(sources)
    if "data" in sources and problem.partners is not None:
        for directions, probability in _pairs(g, problem.partners, at):
            yield directions, {"data": probability}
    elif "data" in sources:
        data = compressed(_propagated(at, problem.spread))
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
            weights = {"additive": g.new_ones(len(block), 1), "multiplicative": g.flatten(1)[:, block].T ** 2}
            directions = _propagated(at, unit_vectors(g, block).reshape(len(block), *g.shape[1:]))
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
    """`tr(a·∇²f C_i)` for each sample, `(n,)`, by source; exact, for sources of unit scale.

    Args:
        problem: the problem of one layer.
        at: the head linearized at the features.
        slope: a = p - y, `(n, K)`.
        sources: the sources to compute.
        curvature: F, `(n, K, K)`. If it is given, the second result holds `tr(JᵀFJ C_i)`, otherwise nothing.
        block_rows: number of rows in one block.
    """
    g = problem.features
    residual = {name: g.new_zeros(len(g)) for name in sources}
    gauss_newton = {} if curvature is None else dict(residual)
    if at.piecewise_linear and curvature is None:
        return residual, gauss_newton

    def add(directions: Tensor, weights: dict, propagated: bool) -> None:
        tangents, hessian_forms = at.sweep(
            directions, None if at.piecewise_linear else slope, tangents=curvature is not None,
            propagated=propagated, block_rows=block_rows,
        )  # fmt: skip
        if hessian_forms is not None:
            for name, weight in weights.items():
                residual[name] = residual[name] + (weight * hessian_forms).sum(0)
        if curvature is not None and tangents is not None:
            forms = gauss_newton_forms(curvature, tangents.permute(1, 2, 0)).T
            for name, weight in weights.items():
                gauss_newton[name] = gauss_newton[name] + (weight * forms).sum(0)

    for directions, weights in _families(problem, at, sources):
        # the tangents of many positions are large
        together = len(directions) if curvature is None else max(1, BLOCK_BYTES // at.outputs.nbytes)
        for start in range(0, len(directions), together):
            part = slice(start, start + together)
            add(directions[part], {name: weight[part] for name, weight in weights.items()}, propagated=True)
    if "data" in sources and problem.partners is None:
        add(problem.drift.unsqueeze(0), {"data": 1.0}, propagated=False)
    return residual, gauss_newton


def exact_terms(
    problem: Problem,
    at: Linearization,
    *,
    gauss_newton: Collection[str] | None = None,
    residual: Collection[str] | None = None,
    block_rows: int | None = None,
    per_sample: bool = False,
) -> dict[str, Tensor]:
    """R1 and the second-order terms by name, exact over all n² pairs; 0-dim, or `(n,)` if they are per sample.

    Args:
        problem: the problem of one layer.
        at: the head linearized at the features.
        gauss_newton: sources whose R2 is computed; `None` means all sources of the law. The others are 0.
        residual: sources whose R3 is computed; `None` means all sources of the law. The others are 0.
        block_rows: number of rows in one block.
        per_sample: True gives the terms of every sample, whose mean over the samples is the term.

    Raises:
        DerivativeError: if a term is nan or infinite.
    """
    scales = problem.law.scales
    gauss_newton = scales if gauss_newton is None else gauss_newton
    residual = scales if residual is None else residual
    slope = problem.loss.gradient(at.outputs, problem.labels)
    zero = at.outputs.new_zeros(len(slope) if per_sample else ())
    terms = {"R1": zero} | {f"{order}{suffix}": zero for suffix in SOURCES.values() for order in ("R2", "R3")}
    averaged = (lambda form: form) if per_sample else Tensor.mean
    # If R3 is computed anyway, its tangents may give R2 at a lower cost than K Jacobian rows
    along = set(gauss_newton) == set(residual) and follows_directions(problem, at, residual)
    # The order matters: R1 uses the Jacobian rows of R2, and R3 uses the reverse pass of R1
    forms = {"R2": gauss_newton_terms(problem, at, gauss_newton) if gauss_newton and not along else {}}
    if "data" in scales:
        pulled = at.pullback(slope)
        drift = at.propagate(problem.drift.unsqueeze(0))[0]
        terms["R1"] = problem.mixing.moment(1) * averaged((pulled * drift).sum(1))
    curvature = problem.loss.hessian(at.outputs, problem.labels) if along else None
    if residual:
        forms["R3"], swept = residual_terms(problem, at, slope, residual, curvature=curvature, block_rows=block_rows)
        forms["R2"] |= swept
    for order, found in forms.items():
        for name, form in found.items():
            terms[order + SOURCES[name]] = scales[name] * averaged(form)
    check_finite(terms)
    return terms
