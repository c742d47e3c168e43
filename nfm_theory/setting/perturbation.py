r"""Mixed and noisy features as polynomials in the scale ε (NFM paper, §3; book: eq-perturbation).

| symbol | here |
|---|---|
| $e_i(\varepsilon) = \varepsilon e^1 + \varepsilon^2 e^2$ | `perturbation` |
| $g_i + e_i(\varepsilon)$ | `perturb` |
"""

from __future__ import annotations

from torch import Tensor

from .draws import Draw
from .law import Law


def perturbation(features: Tensor, draw: Draw, law: Law) -> tuple[Tensor, Tensor, Tensor | None]:
    """The perturbation of every row as a polynomial in ε: `(g_i, e¹, e²)` with `e_i(ε) = ε e¹ + ε² e²`.

    `e²` is `None` where it vanishes (no multiplicative noise).

    Args:
        features: features g of the samples, `(n, *feature)`.
        draw: rows of randomness.
        law: gives the levels of the noises.
    """
    first = features[draw.anchor]
    linear = (1 - draw.lam).reshape(-1, *[1] * (features.ndim - 1)) * (features[draw.index] - first)
    quadratic = None
    if draw.mult is not None and law.mult_noise:
        factor = law.mult_noise * draw.mult
        quadratic = factor * linear
        linear = linear + factor * first
    if draw.add is not None and law.add_noise:
        linear = linear + law.add_noise * draw.add
    return first, linear, quadratic


def displaced(parts: tuple[Tensor, Tensor, Tensor | None], eps: float | Tensor) -> Tensor:
    """`g + ε e¹ + ε² e²` in as few operations as possible: it is differentiated in ε many times."""
    first, linear, quadratic = parts
    if isinstance(eps, float) and eps == 1.0:  # as in training, where every operation on large features counts
        moved = first + linear
        return moved if quadratic is None else moved.add_(quadratic)
    if isinstance(eps, Tensor) and eps.ndim:
        eps = eps.reshape(-1, *[1] * (first.ndim - 1))
    return first + eps * (linear if quadratic is None else linear + eps * quadratic)


def perturb(features: Tensor, draw: Draw, law: Law, *, eps: float | Tensor = 1.0) -> Tensor:
    r"""Mixed and noisy features `g_i + e_i(ε)` of every row of a draw.

    $$ (1 + \varepsilon\sigma_{mult}\,\xi_{mult}) \odot \big(g_i + \varepsilon(1-\lambda)(g_r - g_i)\big)
       + \varepsilon\sigma_{add}\,\xi_{add} \qquad \text{(book: eq-perturbation)} $$

    Args:
        features: features g of the samples, `(n, *feature)`.
        draw: rows of randomness.
        law: gives the levels σ_add and σ_mult.
        eps: scale of the perturbation, a number, 0-dim or one per row `(rows,)`; 1 is what is trained.

    Returns:
        `(rows, *feature)`.

    Example:
        >>> import torch
        >>> from nfm_theory import Draw, Law
        >>> g = torch.tensor([[0.0, 0.0], [4.0, 8.0]])
        >>> rows = Draw(anchor=torch.tensor([0]), lam=torch.tensor([0.75]), index=torch.tensor([1]))
        >>> perturb(g, rows, Law())
        tensor([[1., 2.]])
    """
    return displaced(perturbation(features, draw, law), eps)
