r"""The stability loss of NoisyMix as a term of a training loss: $\gamma\,\mathrm{JSD}_\pi$ of several views."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..setting.checks import level
from ..setting.divergence import checked_weights, jensen_shannon


class JSDConsistency(nn.Module):
    r"""The stability term of a training loss, $\gamma$ times the mean Jensen-Shannon divergence.

    NoisyMix adds it, over a clean and two augmented views of each image (m = 3, equal weights, γ = 12 in the released
    code, which the defaults are), to the mixed-label cross entropy of the clean view alone. All views share λ, the
    partners and the layer, and go through the model in one pass, so that batch statistics are shared as well.

    Args:
        weights: π, one number ≥ 0 for each branch, with sum 1; `None` means equal weights for any number of branches.
        gamma: γ ≥ 0.

    Raises:
        ValueError: for weights that are no distribution, and a γ that is negative or not finite.

    Example:
        >>> import torch
        >>> consistency = JSDConsistency()
        >>> clean, first, second = torch.zeros(3, 5, 10)
        >>> consistency(clean, first, second)
        tensor(0.)
    """

    weights: Tensor | None

    def __init__(self, weights: Sequence[float] | Tensor | None = None, gamma: float = 12.0):
        super().__init__()
        self.gamma = level("gamma", gamma)
        weights = None if weights is None else checked_weights(weights, len(weights))
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, *logits: Tensor) -> Tensor:
        """γ · mean JSD, 0-dim, of m tensors `(n, K)` or of one stacked tensor `(m, n, K)`."""
        stacked = logits[0] if len(logits) == 1 else logits
        return self.gamma * jensen_shannon(stacked, self.weights)

    def extra_repr(self) -> str:
        """Options, for `print(model)`."""
        weights = None if self.weights is None else self.weights.tolist()
        return f"weights={weights}, gamma={self.gamma}"
