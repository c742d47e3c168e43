r"""Random estimates of the second-order regularizers, with standard errors.

A probe is a random direction v for each sample. Its second moment is that of the source at unit scale, so that `vᵀA v`
is an unbiased estimate of `tr(A C_i)`. The probes of different samples are independent. Antithetic probes would not
help, because a quadratic form has the same value at v and at -v.

| source | probe |
|---|---|
| data | `ḡ - g_i` and the first `deflate` eigenvectors of the covariance exactly, the others with random signs |
| data, `pairs=True` | `g_r - g_i` with a random partner r, as in a minibatch |
| additive | random signs or normal numbers |
| multiplicative | random signs or normal numbers, times g_i |
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..calculus.derivatives import gauss_newton_forms
from ..calculus.directions import second_moment_directions
from ..calculus.engine import Linearization
from ..setting.checks import one_of
from ..setting.problem import Problem
from ..setting.random_numbers import home_of

DISTRIBUTIONS = ("rademacher", "normal")


@dataclass(frozen=True)
class ProbeForms:
    """Unbiased estimates of `tr(A C_i)` at unit scale, one for each probe and sample.

    Attributes:
        gauss_newton: estimates for A = JᵀFJ, `(P, n)`.
        residual: estimates for A = a·∇²f, `(P, n)`, or `None`.
        passes: number of directions besides the P probes.
    """

    gauss_newton: Tensor
    residual: Tensor | None
    passes: int = 0


def random_signs(
    shape: tuple[int, ...], like: Tensor, distribution: str = "rademacher", generator: torch.Generator | None = None
) -> Tensor:
    """Independent random numbers with mean 0 and variance 1, `"rademacher"` (±1) or `"normal"`.

    They are drawn on the device of the generator, and get dtype and device of `like`.
    """
    one_of("distribution", distribution, DISTRIBUTIONS)
    device = home_of(generator, like.device)
    if distribution == "normal":
        return torch.randn(shape, generator=generator, dtype=like.dtype, device=device).to(like.device)
    bits = torch.randint(2, shape, generator=generator, dtype=torch.int8, device=device)
    return bits.to(like).mul_(2).sub_(1)


def _forms(at: Linearization, curvature: Tensor, directions: Tensor, slope: Tensor | None) -> tuple:
    """`(Jv)ᵀF(Jv)` and `a·∇²f[v, v]`, each `(m, b)`, for directions v `(m, b or 1, *feature)`."""
    tangents, hessian_forms = at.sweep(directions, slope)
    return gauss_newton_forms(curvature, tangents.permute(1, 2, 0)).T, hessian_forms


def probe_forms(
    problem: Problem,
    at: Linearization,
    source: str,
    num_probes: int,
    *,
    residual: bool = True,
    pairs: bool = False,
    deflate: int = 0,
    distribution: str = "rademacher",
    generator: torch.Generator | None = None,
) -> ProbeForms:
    """Estimate the terms of one source by random probes.

    Args:
        problem: the problem of one layer.
        at: the head linearized at the features.
        source: `"data"`, `"additive"` or `"multiplicative"`.
        num_probes: number P of probes, ≥ 1.
        residual: True estimates the residual part too.
        pairs: True uses random pairs as probes of the data.
        deflate: number of leading eigenvectors of the covariance that are computed exactly.
        distribution: distribution of the random numbers, `"rademacher"` or `"normal"`.
        generator: random generator of the probes.
    """
    g, n = problem.features, len(problem.features)
    slope = problem.loss.gradient(at.outputs, problem.labels) if residual and not at.piecewise_linear else None
    curvature = problem.loss.hessian(at.outputs, problem.labels)
    fixed, passes = (0.0, 0.0), 0
    if source == "data" and (pairs or problem.partners is not None):
        home = home_of(generator, g.device)
        if problem.partners is None:
            index = torch.randint(n, (num_probes, n), generator=generator, device=home)
        else:
            index = torch.multinomial(problem.partners.to(home), num_probes, True, generator=generator).T
        directions = g[index.to(g.device)] - g
    elif source == "data":
        eigen = second_moment_directions(g)
        exact = [problem.drift.unsqueeze(0), eigen[:deflate].unsqueeze(1)]
        known = [_forms(at, curvature, part, slope) for part in exact if len(part)]
        fixed = tuple(0.0 if k[0] is None else sum(part.sum(0) for part in k) for k in zip(*known, strict=True))
        passes, rest = sum(len(part) for part in exact), eigen[deflate:]
        signs = random_signs((num_probes, n, len(rest)), g, distribution, generator)
        directions = torch.tensordot(signs, rest, dims=1)
    else:
        directions = random_signs((num_probes, *g.shape), g, distribution, generator)
        directions = directions if source == "additive" else directions * g
    gauss_newton, hessian_forms = _forms(at, curvature, directions, slope)
    if residual and slope is None:
        hessian_forms = torch.zeros_like(gauss_newton)
    return ProbeForms(gauss_newton + fixed[0], None if hessian_forms is None else hessian_forms + fixed[1], passes)


def mean_and_stderr(values: Tensor, *, per_sample: bool = False) -> tuple[Tensor, Tensor]:
    """Mean of `(P, n)` over probes, and samples, and its standard error. Only the probes count as random."""
    num, n = values.shape
    mean = values.mean(0) if per_sample else values.mean()
    if num < 2:
        return mean, torch.full_like(mean, float("inf"))
    variance = values.detach().var(0)
    return mean, (variance / num).sqrt() if per_sample else (variance.sum() / num).sqrt() / n
