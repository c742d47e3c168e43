r"""AugMix: mix an image with the results of a few short chains of operations.

$$ \tilde x = (1 - m)\, x + m \sum_{i=1}^{w} w_i\, T_i(x), \qquad
   m \sim \mathrm{Beta}(\alpha, \alpha), \quad w \sim \mathrm{Dirichlet}(\alpha, \dots, \alpha) $$

Each chain $T_i$ applies 1, 2 or 3 of the nine `operations`, drawn uniformly, each with its own level and direction.
Source: Hendrycks et al. (2020), with the settings of NoisyMix: width 3, severity 3, alpha 1, operations on bytes, and
the mixture of normalized pixels (protocol, section 2.4). Here pixels are mixed first and normalized once. Up to
rounding this is the same, since normalisation is affine in each channel and the weights sum to one.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

import numpy as np

from experiments.augment.operations import LEVELS, LOWEST_LEVEL, NAMES, Operation, apply_operation

#: Longest chain if the depth is random.
MAX_DEPTH = 3
#: Smallest and largest concentration. At these, one weight is 1, and all weights are equal, up to rounding.
ALPHAS = (1e-300, 1e300)
#: Sums of Gamma variables below this have lost digits.
SMALLEST = np.finfo(np.float64).tiny


@dataclass(frozen=True)
class Draw:
    """The random numbers of one augmented view.

    Attributes:
        share: m, the weight of the augmented part.
        weights: weights of the chains, `(width,)`, with sum 1.
        chains: operations of each chain, in the order in which they are applied.
    """

    share: float
    weights: np.ndarray
    chains: tuple[tuple[Operation, ...], ...]


def sample_draw(
    rng: np.random.Generator, *, width: int = 3, depth: int | None = None, severity: float = 3, alpha: float = 1.0
) -> Draw:
    """Draw one view.

    Args:
        rng: source of randomness.
        width: number of chains.
        depth: number of operations in each chain; `None` draws 1, 2 or 3 uniformly for each chain.
        severity: largest level, at most 10. Levels are uniform from 0.1 to the severity.
        alpha: parameter of the Beta and of the Dirichlet law. Near 0 almost all weight goes to one chain.

    Raises:
        ValueError: for options out of range.
    """
    if width < 1 or not (depth is None or depth >= 1):
        raise ValueError(f"expected width >= 1 and depth >= 1 (or None), got width = {width}, depth = {depth}.")
    if not (LOWEST_LEVEL <= severity <= LEVELS and ALPHAS[0] <= alpha <= ALPHAS[1]):
        raise ValueError(
            f"expected severity from {LOWEST_LEVEL} to {LEVELS} and alpha > 0, from {ALPHAS[0]:g} to {ALPHAS[1]:g}, "
            f"got severity = {severity}, alpha = {alpha}."
        )
    lengths = rng.integers(1, MAX_DEPTH + 1, size=width).tolist() if depth is None else [depth] * width
    size = sum(lengths)
    # One integer for both name and direction, and one uniform number for the level, since calls are expensive here.
    kinds = rng.integers(0, 2 * len(NAMES), size=size).tolist()
    levels = rng.random(size).tolist()
    span = severity - LOWEST_LEVEL
    drawn = (
        Operation(NAMES[kind >> 1], LOWEST_LEVEL + span * u, 1 - 2 * (kind & 1))
        for kind, u in zip(kinds, levels, strict=True)
    )
    chains = tuple(tuple(islice(drawn, length)) for length in lengths)
    # Dirichlet weights from Gamma variables, which is faster than Generator.dirichlet.
    gamma = rng.standard_gamma(alpha, size=width)
    total = gamma.sum()
    share = float(rng.beta(alpha, alpha))
    # Far below alpha = 1 all Gamma variables may round to 0. Ratios are independent of the sum, so new ones serve.
    weights = gamma / total if total >= SMALLEST else _dirichlet(rng, alpha, width)
    return Draw(share if np.isfinite(share) else float(_dirichlet(rng, alpha, 2)[0]), weights, chains)


def _dirichlet(rng: np.random.Generator, alpha: float, size: int) -> np.ndarray:
    """Weights of the law Dirichlet(α, ..., α), `(size,)`, for any small α.

    `G U^(1 / α)` has the law Gamma(α) if G has the law Gamma(α + 1) and U is uniform. Only logarithms are computed.
    """
    scaled = alpha * np.log(rng.standard_gamma(alpha + 1, size=size)) + np.log(1 - rng.random(size))
    with np.errstate(over="ignore"):  # the weight is 0 there
        weights = np.exp((scaled - scaled.max()) / alpha)
    return weights / weights.sum()


def apply_draw(image: np.ndarray, draw: Draw) -> np.ndarray:
    """The view of an image `(H, W, C)` before normalisation: float32 pixels in [0, 1], `(C, H, W)`."""
    parts = np.empty((len(draw.chains) + 1, image.size), dtype=np.float32)
    parts[0] = image.reshape(-1)
    for row, chain in zip(parts[1:], draw.chains, strict=True):
        changed = image
        for operation in chain:
            changed = apply_operation(changed, operation)
        row[:] = changed.reshape(-1)
    weights = np.empty(len(parts), dtype=np.float32)
    weights[0], weights[1:] = 1 - draw.share, draw.share * draw.weights
    weights /= 255
    mixed = (weights @ parts).reshape(image.shape)
    # Rounded weights may sum to slightly more than 1.
    return np.minimum(mixed, 1, out=mixed).transpose(2, 0, 1)


def augmix_pixels(image: np.ndarray, rng: np.random.Generator, **options) -> np.ndarray:
    """One AugMix view of an image `(H, W, C)` before normalisation: float32 pixels in [0, 1], `(C, H, W)`.

    The options are those of `sample_draw`.
    """
    return apply_draw(image, sample_draw(rng, **options))
