r"""The second-order expansion of the NFM loss with its predicted remainder (NFM, Theorem 1; book: eq-expansion).

| term | value, averaged over i | computed from |
|---|---|---|
| R1 | `m1 (p - y)ᵀ J (ḡ - g)` | one Jacobian-vector product with the mean feature |
| R2 | `½ m2 E_r (J v)ᵀ F (J v)` | Jacobian rows and features, without a loop over pairs |
| R3 | `½ m2 E_r (p - y)·∇²f[v, v]` | the centered features as directions, and ḡ - g |
| R2_add, R3_add | the same with `σ_add² E ξξᵀ` | Jacobian rows; diagonal of the Hessian |
| R2_mult, R3_mult | the same with `σ_mult² E (ξ⊙g)(ξ⊙g)ᵀ` | the same, weighted by g² |
| C3 | limit of remainder / ε³ as ε → 0 | `third_order` |

Here v = g_r - g_i, J and ∇²f belong to the head at g_i, p - y = ∂ℓ/∂u, and F = ∂²ℓ/∂u². For a piecewise-linear head
(ReLU, max-pooling) R3 is zero almost everywhere, and the remainder need not be O(ε³) because the head has kinks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ..calculus.cuts import check_problem
from ..calculus.engine import linearize
from ..setting.ambient import undisturbed
from ..setting.branches import Branches
from ..setting.checks import one_of
from ..setting.options import block_bytes
from ..setting.problem import Problem, as_problems
from ..setting.quadrature import MAX_ROWS
from ..setting.results import TaylorTerms
from ..setting.streamed import StreamedProblem
from .branch_terms import branch_terms
from .paths import series_coefficients, taylor_coefficients
from .second_order import exact_terms
from .third_order import predicted_remainder


def problem_terms(problem: Problem, *, remainder: bool = True, per_sample: bool = False) -> TaylorTerms:
    """The terms of one problem. `Branches` are treated as one feature vector with noise in every element."""
    at = linearize(problem.head, problem.features)
    rows = None if block_bytes() is None else problem.block_rows(passes=4)
    found = exact_terms(problem, at, block_rows=rows, per_sample=per_sample)
    third = predicted_remainder(problem, per_sample=per_sample) if remainder else None
    losses = problem.loss(at.outputs, problem.labels)
    return TaylorTerms(standard=losses if per_sample else losses.mean(), C3=third, per_layer={}, **found)


@undisturbed()
def terms(
    problem: Problem | StreamedProblem | Sequence[Problem],
    *,
    remainder: bool = True,
    reduction: Literal["mean", "none"] = "mean",
) -> TaylorTerms:
    r"""Terms of the second-order expansion of the NFM loss, exact over all n² pairs (book: eq-expansion).

    $$ L_{NFM}(\varepsilon) = L_{std} + \varepsilon R_1 + \varepsilon^2 (R_2 + R_3 + R_2^{add} + R_3^{add}
       + R_2^{mult} + R_3^{mult}) + \varepsilon^3 C_3 + O(\varepsilon^4) $$

    The values are differentiable in the parameters of the model and in the inputs. If you need no gradients, call the
    function within `torch.no_grad()`.

    Args:
        problem: a `Problem`, or `Branches` for the stability loss or the NoisyMix loss. A list gives average terms. A
            problem from a loader needs `remainder=False`, and its terms have no gradients.
        remainder: True also computes `C3`, which takes third derivatives along all pairs.
        reduction: `"none"` gives the terms of every sample, `(n,)`, whose mean is the term. Not with a loader or with
            branches.

    Returns:
        `TaylorTerms`, or `StabilityTerms` for branches. The noise terms include the second moments σ² E ξ².

    Raises:
        ValueError: if the problem has no law, and `DerivativeError`, which is one, if a derivative is cut in the model.
        TypeError: if `problem` is neither a problem nor a list of problems.

    Example:
        >>> from nfm_theory import Law
        >>> head = lambda u: u @ torch.tensor([[1.0], [2.0]])
        >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0.0, 1.0])
        >>> problem = Problem(head, x, y, law=Law(alpha=0, add_noise=0.5), loss="square")
        >>> round(float(terms(problem).R2_add), 6)  # σ²‖w‖²/2
        0.625
    """
    per_sample = one_of("reduction", reduction, ("mean", "none")) == "none"
    if isinstance(problem, StreamedProblem):
        if per_sample:
            raise ValueError("reduction: with a loader, expected 'mean'; take the problem of one batch for 'none'.")
        if remainder:
            raise ValueError("remainder: C3 needs all pairs of samples in memory; with a loader, use remainder=False.")
        from ..estimators.streaming import streamed_regularizers

        return streamed_regularizers(problem).terms
    found = []
    for one in as_problems(problem):
        check_problem(one, 3 if remainder else 2)
        if isinstance(one, Branches):
            if per_sample:
                raise ValueError("reduction: expected 'mean' for branches, got 'none'.")
            found.append((one.layer, branch_terms(one, remainder=remainder)))
        else:
            found.append((one.layer, problem_terms(one, remainder=remainder, per_sample=per_sample)))
    return found[0][1] if len(found) == 1 else type(found[0][1]).average(found)


def problem_coefficients(problem: Problem, order: int, *, rule: str = "auto", max_rows: int = MAX_ROWS) -> Tensor:
    """The coefficients of ε⁰ .. ε^order of one problem, `(order + 1,)`."""
    nodes = order // 2 + 1
    rule = "smallest" if rule == "auto" else rule
    grid = problem.grid(rule=rule, degree=order, num_lam=nodes, num_noise=nodes, max_rows=max_rows)
    total: Tensor | float = 0.0
    # Up to order 3 by nested differentiation, which shares nothing with the formulas of `terms`
    along, passes = (taylor_coefficients, 2**order) if order <= 3 else (series_coefficients, 4 * order)
    for draw, weights in problem.blocks(grid, title=f"coefficients to order {order}", passes=passes):
        total = total + torch.tensordot(weights, along(problem.path(draw), order).double(), dims=1)
    return torch.as_tensor(total).to(problem.features.dtype)


@undisturbed()
def coefficients(
    problem: Problem | Sequence[Problem],
    order: int = 4,
    *,
    rule: Literal["auto", "tensor", "cubature-3", "cubature-5"] = "auto",
    max_rows: int = MAX_ROWS,
) -> Tensor:
    """The coefficients of ε⁰ .. ε^order of the loss, for any order, `(order + 1,)` (book: eq-order-p).

    The loss is differentiated in ε along every row of a quadrature rule that is exact for polynomials of this degree.
    Up to order 3 this is an independent check of `terms`, by nested differentiation. Higher orders can only be computed
    in this way; there Taylor series pass through the recorded operations of the head, without nesting.

    Args:
        problem: a `Problem` or `Branches`. The coefficients of a list are averaged.
        order: highest power of ε, ≥ 0.
        rule: quadrature rule of the noise; `"auto"` uses the exact rule with the fewest points.
        max_rows: largest number of evaluations of the head.

    Raises:
        ValueError: for a negative order, or if every exact rule needs more than `max_rows` evaluations.
        TypeError: if `problem` is neither a problem nor a list of problems.

    Example:
        >>> from nfm_theory import Law
        >>> x, y = torch.tensor([[1.0], [3.0]]), torch.tensor([0.0, 0.0])
        >>> coefficients(Problem(lambda u: u, x, y, law=Law(add_noise=2.0), loss="square"), order=2)
        tensor([ 2.5000, -0.3333,  2.1667])
    """
    if order < 0:
        raise ValueError(f"order: expected >= 0, got {order}.")
    problems = as_problems(problem)
    for one in problems:
        check_problem(one, order)
    found = [problem_coefficients(one, order, rule=rule, max_rows=max_rows) for one in problems]
    return torch.stack(found).mean(0)
