r"""The second-order expansion of the NFM loss with its predicted remainder (NFM, Theorem 1; book: eq-expansion).

| term | value, averaged over i | here |
|---|---|---|
| R1 | `m1 (p - y)ᵀ J (ḡ - g)` | one Jacobian-vector product with the mean feature |
| R2 | `½ m2 E_r (J v)ᵀ F (J v)` | Jacobian rows against the features, no pair of networks |
| R3 | `½ m2 E_r (p - y)·∇²f[v, v]` | eigen-directions of the data second moment, and ḡ - g |
| R2_add, R3_add | the same with `σ_add² E ξξᵀ` | Jacobian rows; Hessian diagonal |
| R2_mult, R3_mult | the same with `σ_mult² E (ξ⊙g)(ξ⊙g)ᵀ` | the same, weighted by g² |
| C3 | remainder / ε³ as ε → 0 | third derivatives along pairs and along ḡ - g |

v = g_r - g_i, J and ∇²f of the head at g_i, p - y = ∂ℓ/∂u, F = ∂²ℓ/∂u². For a piecewise-linear head (ReLU, max-pool)
R3 is zero almost everywhere and the remainder need not be O(ε³): its kinks carry the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import jvp

from ..calculus.derivatives import directional_derivatives, mapped_over_directions
from ..calculus.directions import coordinate_basis
from ..calculus.engine import linearize
from ..setting.draws import Draw
from ..setting.laws import NoiseLaw
from ..setting.pointwise import PointwiseLoss
from ..setting.problem import Problem, build_problems
from ..setting.quadrature import MAX_ROWS, Grid, build_grid, integrate
from ..setting.results import TaylorTerms
from .paths import taylor_coefficients
from .second_order import exact_terms


def pair_cubic(problem: Problem, block_rows: int) -> Tensor:
    """Mean over all pairs of `D³ℓ_i[v_ir, v_ir, v_ir]`."""
    g = problem.features

    def cubic(h: Tensor, partner: Tensor, rows: Tensor) -> Tensor:
        return directional_derivatives(lambda z: problem.losses(z, rows), h, partner - h, 3)[3]

    return mapped_over_directions(cubic, g, g, block_rows=block_rows).mean() / len(g)


def _diagonal_with_slope(problem: Problem, drift: Tensor, block_rows: int) -> Tensor:
    """`D²ℓ_i[e_j, e_j]` and its derivative along the drift of each sample, `(n, d, 2)`."""

    def both(h: Tensor, e: Tensor, rows: Tensor) -> Tensor:
        def diagonal(z: Tensor) -> Tensor:
            return directional_derivatives(lambda q: problem.losses(q, rows), z, e, 2)[2]

        return torch.stack(jvp(diagonal, (h,), (drift[rows],)), dim=-1)

    basis = coordinate_basis(problem.features)
    return mapped_over_directions(both, problem.features, basis, block_rows=block_rows, reduce=False)


def predicted_remainder(problem: Problem, *, block_rows: int) -> Tensor:
    """C3, the coefficient of ε³ (book: eq-remainder), exact over all pairs and for noise with zero third moments."""
    g, (add_law, mult_law) = problem.features, problem.active_laws
    m1, m3 = problem.mixing.moment(1), problem.mixing.moment(3)
    if not problem.mixing.mixes:
        return g.new_zeros(())
    total = m3 / 6 * pair_cubic(problem, block_rows)
    if add_law is None and mult_law is None:
        return total
    drift = g.mean(0) - g
    diagonal, slope = _diagonal_with_slope(problem, drift, block_rows).unbind(-1)
    flat, flat_drift = g.flatten(1), drift.flatten(1)
    if add_law is not None:
        total = total + m1 / 2 * problem.add_noise**2 * add_law.second * slope.sum(1).mean()
    if mult_law is not None:
        variance = problem.mult_noise**2 * mult_law.second
        total = total + m1 / 2 * variance * (slope * flat**2).sum(1).mean()
        total = total + m1 * variance * (diagonal * flat_drift * flat).sum(1).mean()
    return total


def problem_terms(problem: Problem, *, remainder: bool = True, memory_limit: int | None = None) -> TaylorTerms:
    """`taylor_terms` of one `Problem`."""
    g = problem.features
    at = linearize(problem.head, g)
    rows = None if memory_limit is None else problem.block_rows(memory_limit, passes=4)
    terms = exact_terms(problem, at, block_rows=rows)
    third = predicted_remainder(problem, block_rows=problem.block_rows(memory_limit, passes=8)) if remainder else None
    return TaylorTerms(standard=problem.loss(at.outputs, problem.labels).mean(), C3=third, **terms)


def taylor_terms(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    layer: str | Sequence[str] = "",
    params: Mapping[str, Tensor] | None = None,
    alpha: float = 1.0,
    beta: float | None = None,
    add_noise: float = 0.0,
    mult_noise: float = 0.0,
    noise: str | NoiseLaw | tuple[NoiseLaw, NoiseLaw] = "normal",
    loss: str | PointwiseLoss | Callable = "cross_entropy",
    remainder: bool = True,
    memory_limit: int | None = None,
) -> TaylorTerms:
    r"""Terms of the second-order expansion of the NFM loss, exact over all n² pairs (book: eq-expansion).

    $$ L_{NFM}(\varepsilon) = L_{std} + \varepsilon R_1 + \varepsilon^2 (R_2 + R_3 + R_2^{add} + R_3^{add}
       + R_2^{mult} + R_3^{mult}) + \varepsilon^3 C_3 + O(\varepsilon^4) $$

    Differentiable in the parameters of the model (and in `x`); wrap in `torch.no_grad()` if only values are wanted.

    Args:
        model: network in eval mode, or any callable from inputs to outputs `(n, K)` or `(n,)`.
        x: inputs, `(n, *input)`; fixes device and dtype.
        y: labels: indices `(n,)`, or distributions or targets `(n, K)`.
        layer: dotted name of the layer that is perturbed, `""` for the input; a sequence averages over layers.
        params: parameters to use instead of the model's own, by name.
        alpha: first Beta parameter of λ; 0 for no mixing.
        beta: second Beta parameter, `None` means `alpha`.
        add_noise: σ_add.
        mult_noise: σ_mult.
        noise: `"normal"`, `"uniform"`, `"rademacher"`, `"released"`, or laws (see `NoiseLaw`).
        loss: `"cross_entropy"`, `"logistic"`, `"square"`, or a smooth callable `(outputs, labels) -> (batch,)`.
        remainder: also predict `C3`, which costs third derivatives along all pairs.
        memory_limit: bytes that a block of head evaluations may take.

    Returns:
        `TaylorTerms`; the noise terms already hold the second moments σ² E ξ².

    Raises:
        ValueError: if model, data, layer, laws or labels do not fit; the message says what to do.
        TypeError: for arguments of the wrong kind.

    Example:
        >>> head = lambda u: u @ torch.tensor([[1.0], [2.0]])
        >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0.0, 1.0])
        >>> round(float(taylor_terms(head, x, y, loss="square", add_noise=0.5, alpha=0).R2_add), 6)  # σ²‖w‖²/2
        0.625
    """
    problems = build_problems(
        model, x, y, layer=layer, params=params, alpha=alpha, beta=beta, add_noise=add_noise,
        mult_noise=mult_noise, noise=noise, loss=loss,
    )  # fmt: skip
    records = {p.layer: problem_terms(p, remainder=remainder, memory_limit=memory_limit) for p in problems}
    return next(iter(records.values())) if len(records) == 1 else TaylorTerms.average(records)


def expansion_coefficients(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    order: int = 4,
    layer: str | Sequence[str] = "",
    rule: str = "auto",
    max_rows: int = MAX_ROWS,
    memory_limit: int | None = None,
    progress: bool | None = None,
    **options,
) -> Tensor:
    """Coefficients of ε⁰ .. ε^order of the NFM loss, of any order, `(order + 1,)` (book: eq-order-p).

    Derivatives in ε along every row of a deterministic rule that is exact for polynomials of this degree: an
    independent witness of `taylor_terms` up to order 3 and the only way beyond.

    Args:
        model: as `taylor_terms`.
        x: inputs.
        y: labels.
        order: highest power of ε, ≥ 0.
        layer: as `taylor_terms`.
        rule: noise rule, `"auto"` for the cheapest exact one (see `quadrature`).
        max_rows: refuse more evaluations of the head than this.
        memory_limit: bytes that a block of evaluations may take.
        progress: show a bar; `None` for long sums on a terminal only.
        **options: as `taylor_terms`.

    Raises:
        ValueError: as `taylor_terms`, for a negative order, or where no rule is exact and small enough.

    Example:
        >>> x, y = torch.tensor([[1.0], [3.0]]), torch.tensor([0.0, 0.0])
        >>> expansion_coefficients(lambda u: u, x, y, order=2, loss="square", add_noise=2.0)
        tensor([ 2.5000, -0.3333,  2.1667])
    """
    problems = build_problems(model, x, y, layer=layer, **options)
    values = [
        problem_coefficients(p, order, rule=rule, max_rows=max_rows, memory_limit=memory_limit, progress=progress)
        for p in problems
    ]
    return torch.stack(values).mean(0)


def problem_coefficients(
    problem: Problem, order: int, *, rule: str, max_rows: int, memory_limit: int | None, progress: bool | None
) -> Tensor:
    """`expansion_coefficients` of one `Problem`."""
    if order < 0:
        raise ValueError(f"order: expected >= 0, got {order}.")
    rule = "smallest" if rule == "auto" else rule
    grid = problem_grid(
        problem, rule=rule, degree=order, num_lam=order // 2 + 1, num_noise=order // 2 + 1, max_rows=max_rows
    )
    total = rule_sum(
        problem,
        grid,
        lambda draw: taylor_coefficients(problem.path(draw), order),
        passes=2**order,
        memory_limit=memory_limit,
        progress=progress,
        title=f"coefficients to order {order}",
    )
    return total.to(problem.features.dtype)


def rule_sum(
    problem: Problem,
    grid: Grid,
    function: Callable[[Draw], Tensor],
    *,
    passes: int,
    title: str,
    memory_limit: int | None = None,
    progress: bool | None = None,
) -> Tensor:
    """Weighted sum of `function(draw)` over a grid, in float64; a row costs the memory of `passes` forward passes."""
    g = problem.features
    blocks = grid.blocks(problem.block_rows(memory_limit, passes=passes), dtype=g.dtype, device=g.device)
    return integrate(blocks, function, total_rows=grid.rows, progress=progress, title=title)


def problem_grid(
    problem: Problem,
    *,
    rule: str,
    degree: int,
    num_lam: int,
    max_rows: int,
    num_noise: int = 12,
    unmixed: bool = True,
) -> Grid:
    """The deterministic rule of a problem; see `build_grid` for `"auto"` and `"smallest"`."""
    return build_grid(
        len(problem.features),
        problem.feature_shape,
        problem.mixing,
        *problem.active_laws,
        rule=rule,
        degree=degree,
        num_lam=num_lam,
        num_noise=num_noise,
        unmixed=unmixed,
        max_rows=max_rows,
    )
