r"""The stability loss of NoisyMix: how much the predictions for several versions of one example differ.

| symbol | here |
|---|---|
| $u_1, \dots, u_m$, logits of the branches | `logits` |
| $\pi_j$ | `weights` |
| $p_j = \mathrm{softmax}(u_j)$; sigmoid if K = 1 | exponential of `log_probabilities` |
| $\mathrm{JSD}_\pi$ | `jensen_shannon` |
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from .checks import one_of


def jensen_shannon(
    logits: Tensor | Sequence[Tensor],
    weights: Tensor | Sequence[float] | None = None,
    *,
    reduction: Literal["mean", "sum", "none"] = "mean",
) -> Tensor:
    r"""The Jensen-Shannon divergence of m predictive distributions, computed from their logits.

    $$ \mathrm{JSD}_\pi = H\Big(\sum_j \pi_j p_j\Big) - \sum_j \pi_j H(p_j)
       = \sum_j \pi_j\, \mathrm{KL}\Big(p_j \,\Big\|\, \sum_l \pi_l p_l\Big) $$

    The divergence lies between 0 and the entropy of π. All computations use logarithms, so that value, gradient and
    Hessian are finite for all finite logits. A class may be masked by the logit -inf in some or all branches: its
    probability is 0 there, and so is the gradient in that logit. One class of each row must be left; on a GPU, where a
    check would force a synchronization, a row without one gives nan. A divergence far below the rounding errors of the
    logits can have either sign. The code of AugMix and NoisyMix uses probabilities and clamps the mixture at 1e-7. This
    sets the gradient to 0 there, and can give nan if a probability underflows to 0.

    Args:
        logits: m ≥ 2 tensors `(n, K)`, or one tensor `(m, n, K)`. K = 1 means the logit of class 1. Half precision is
            converted to float32.
        weights: π, m numbers ≥ 0 that sum to 1; `None` means 1/m each.
        reduction: `"mean"`, `"sum"` or `"none"`.

    Returns:
        The divergence in nats, 0-dim, or `(n,)` with `reduction="none"`.

    Raises:
        TypeError: if the logits are not floating-point tensors.
        ValueError: for fewer than two branches, different shapes, an unknown reduction, weights that are no
            distribution over the branches, or a row in which every class is masked.

    Example:
        >>> certain = torch.tensor([[1000.0, 0.0]])
        >>> round(float(jensen_shannon([certain, -certain])), 6)  # log 2, nothing in common
        0.693147
    """
    one_of("reduction", reduction, ("mean", "sum", "none"))
    logits = _stacked(logits)
    _check_masks(logits)
    log_p = log_probabilities(logits)
    if weights is None:
        value = (log_p.exp() * (log_p - (log_p.logsumexp(0) - math.log(len(log_p))))).sum(-1).mean(0)
    else:
        pi = checked_weights(weights, len(log_p)).to(log_p.dtype).to(log_p.device).reshape(-1, 1, 1)
        mixture = (log_p + pi.log()).logsumexp(0)
        value = (pi * log_p.exp() * (log_p - mixture)).sum((0, -1))
    return value if reduction == "none" else getattr(value, reduction)()


def _stacked(logits: Tensor | Sequence[Tensor]) -> Tensor:
    """Logits `(m, n, K)` in at least single precision."""
    branches = [logits] if isinstance(logits, Tensor) else list(logits)
    for branch in branches:
        if not isinstance(branch, Tensor) or not branch.is_floating_point():
            got = branch.dtype if isinstance(branch, Tensor) else type(branch).__name__
            raise TypeError(f"logits: expected floating-point tensors, got {got}.")
    if not isinstance(logits, Tensor):
        shapes = {tuple(branch.shape) for branch in branches}
        if len(shapes) > 1:
            raise ValueError(f"logits: expected branches of one shape (n, K), got {sorted(shapes)}.")
        logits = torch.stack(branches) if branches else torch.empty(0)
    if logits.ndim != 3 or len(logits) < 2 or 0 in logits.shape:
        raise ValueError(
            "logits: expected m >= 2 tensors (n, K), or one tensor (m, n, K), got shape "
            f"{tuple(logits.shape)}; for one logit per sample, pass columns, u.unsqueeze(-1)."
        )
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _check_masks(logits: Tensor) -> None:
    """Refuse a row in which every class is masked, on the CPU, and where no transform hides the values."""
    hidden = torch.compiler.is_compiling() or is_functorch_wrapped_tensor(logits)
    if logits.device.type != "cpu" or logits.shape[-1] == 1 or hidden:
        return
    masked = (logits == -math.inf).all(-1)
    if masked.any():
        branch, row = masked.nonzero()[0].tolist()
        raise ValueError(
            f"logits: every class of row {row} in branch {branch} is masked by -inf, which leaves no distribution; "
            f"keep one class, or leave out such rows (here {int(masked.any(0).sum())} of {masked.shape[1]})."
        )


def log_probabilities(logits: Tensor) -> Tensor:
    """The logarithms of the probabilities, `(m, n, max(K, 2))`. A single logit u stands for the pair (0, u).

    The logarithm of a probability of 0 is replaced by the smallest number of the dtype, with gradient 0. Then a class
    with the logit -inf, which was masked, contributes 0 and not nan.
    """
    if logits.shape[-1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], -1)
    log_p = logits.log_softmax(-1)
    return log_p.clamp(min=torch.finfo(log_p.dtype).min)


def checked_weights(weights: Tensor | Sequence[float], branches: int) -> Tensor:
    """π as a tensor `(m,)`. Its values are checked on the CPU only: on a GPU this would force a synchronization."""
    weights = torch.as_tensor(weights, dtype=None if isinstance(weights, Tensor) else torch.float64)
    if weights.shape != (branches,):
        raise ValueError(
            f"weights: expected one for each of the {branches} branches, got shape {tuple(weights.shape)}."
        )
    if weights.device.type == "cpu" and not (bool((weights >= 0).all()) and abs(float(weights.sum()) - 1) < 1e-5):
        raise ValueError(f"weights: expected numbers >= 0 that sum to 1, got {weights.tolist()}.")
    return weights
