"""The loss by a deterministic rule: all pairs, nodes of λ, nodes of the noise."""

from __future__ import annotations

import torch
from torch import Tensor

from ..setting.draws import Draw
from ..setting.problem import Problem
from ..setting.quadrature import Grid, Quadrature
from ..setting.results import Estimate


def grid_loss(problem: Problem, grid: Grid, eps: Tensor) -> Tensor:
    """The loss at every ε of `eps` `(E,)` by a deterministic rule, in float64, `(E,)`.

    With gradients enabled each block is recomputed in the backward pass, so that memory does not grow with the grid.
    """
    from torch.utils.checkpoint import checkpoint  # PyTorch 2.6 loads SymPy with it

    def rows(draw: Draw) -> Tensor:
        if not grid.unmixed:
            return problem.mixed_label_losses(draw).unsqueeze(-1)
        path = problem.path(draw)
        return torch.stack([path(e) for e in eps], dim=-1)

    total: Tensor | float = 0.0
    for draw, weights in problem.blocks(grid, title="exact loss"):
        values = checkpoint(rows, draw, use_reentrant=False) if torch.is_grad_enabled() else rows(draw)
        total = total + torch.tensordot(weights, values.double(), dims=1)
    return torch.as_tensor(total)


def exact_loss(problem: Problem, eps: Tensor, form: str, quadrature: Quadrature) -> Estimate:
    """The loss of one problem at every ε of `eps` `(E,)`.

    Args:
        problem: the setting.
        eps: scales, `(E,)`.
        form: `"unmixed"` or `"mixed"`.
        quadrature: rule and number of nodes.

    Raises:
        GridTooLargeError: if the rule needs more rows than `quadrature` allows.
    """
    grid = problem.grid(
        rule=quadrature.rule, degree=3, num_lam=quadrature.num_lam, num_noise=quadrature.num_noise,
        max_rows=quadrature.max_rows, unmixed=form == "unmixed",
    )  # fmt: skip
    value = grid_loss(problem, grid, eps).to(problem.features.dtype)
    return Estimate(value, torch.zeros_like(value), grid.rows, f"deterministic, {grid.rule.name}")
