r"""The stability loss of NoisyMix as a term of a training loss: $\gamma\,\mathrm{JSD}_\pi$ of several views."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..setting.checks import level
from ..setting.divergence import checked_weights, jensen_shannon


class JSDConsistency(nn.Module):
    r"""The stability term of a training loss, $\gamma$ times the mean Jensen-Shannon divergence.

    NoisyMix takes it over a clean view and two augmented views of each image, and adds it to the mixed-label cross
    entropy of the clean view. The defaults are those of the released code: equal weights and γ = 12. All views share λ,
    the partners and the layer, and they go through the model in one pass, so that they also share batch statistics.

    Args:
        weights: weights π of the views, numbers ≥ 0 with sum 1; `None` means equal weights for any number of views.
        gamma: factor γ ≥ 0 of the divergence.

    Raises:
        ValueError: for weights that are no distribution, and for a γ that is negative or not finite.

    Example:
        >>> import torch
        >>> consistency = JSDConsistency()
        >>> clean, first, second = torch.zeros(3, 5, 10)
        >>> consistency(clean, first, second)
        tensor(0.)
    """

    def __init__(self, weights: Sequence[float] | Tensor | None = None, gamma: float = 12.0):
        super().__init__()
        self.gamma = level("gamma", gamma)
        # no buffer: a conversion of the module to half precision would round them, and some devices have no float64
        self.weights = None if weights is None else checked_weights(weights, len(weights))

    def forward(self, *logits: Tensor) -> Tensor:
        """The stability term of a batch, a 0-dim tensor.

        Args:
            *logits: outputs of the views, m tensors `(n, K)` or one stacked tensor `(m, n, K)`.
        """
        stacked = logits[0] if len(logits) == 1 else logits
        return self.gamma * jensen_shannon(stacked, self.weights)

    def extra_repr(self) -> str:
        """The options in one line, for `print(model)`."""
        weights = None if self.weights is None else self.weights.tolist()
        return f"weights={weights}, gamma={self.gamma}"
