r"""How Mixup regularizes a generalized linear model, and a bound of the loss of the models that it leads to.

For $\ell = A(\theta\cdot x) - y\,\theta\cdot x$, centered data and mixed points that are rescaled by 1/λ, Mixup adds to
the loss, to second order (book: eq-glm),

$$ L_{mix} - L_{std} \approx \frac{1}{2n} \sum_i A''(\theta\cdot x_i)\;
   \mathbb E_{\tilde D}\Big[\frac{(1-\lambda)^2}{\lambda^2}\Big]\; \theta^\top \hat\Sigma\, \theta. $$

| symbol | here |
|---|---|
| $A,\ A',\ A'',\ A'''$ | `GLMFamily.potential`, `.mean`, `.variance`, `.skewness` |
| $w = (1-\lambda)/\lambda,\ \mathbb E_{\tilde D} w^j$ | `rescaled_moment(alpha, beta, order=j)` |
| $x_i + t\,w\,x_r$ | the rescaled mixed point at the scale t, which is $\tilde x/\lambda$ for t = 1 |

Source: L. Zhang, Z. Deng, K. Kawaguchi, A. Ghorbani, J. Zou, *How does Mixup help with robustness and generalization?*,
arXiv 2010.04819.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy
import torch
import torch.nn.functional as F
from torch import Tensor

from ..setting.checks import one_of

#: Data count as centered if the absolute value of their mean is at most this fraction of their spread.
CENTRING = 1e-6
Family = Literal["logistic", "square", "poisson"]
#: Largest ρ for which the statement about W_γ is made.
MAX_RHO = 0.5


@dataclass(frozen=True)
class GLMFamily:
    """A generalized linear model with the loss `A(θ·x) - y θ·x`.

    Attributes:
        name: name of the family, for messages.
        potential: function A of a tensor, entry by entry.
        mean: first derivative A'.
        variance: second derivative A''.
        skewness: third derivative A'''.
        growth: power with which A(u) grows in |u|; infinite if A grows faster than every power.
    """

    name: str
    potential: Callable[[Tensor], Tensor]
    mean: Callable[[Tensor], Tensor]
    variance: Callable[[Tensor], Tensor]
    skewness: Callable[[Tensor], Tensor]
    growth: float


def _logistic_variance(u: Tensor) -> Tensor:
    return u.sigmoid() * (-u).sigmoid()


LOGISTIC_FAMILY = GLMFamily(
    "logistic",
    F.softplus,
    torch.sigmoid,
    _logistic_variance,
    lambda u: -_logistic_variance(u) * torch.tanh(u / 2),
    1,
)
SQUARE_FAMILY = GLMFamily("square", lambda u: u**2 / 2, lambda u: u, torch.ones_like, torch.zeros_like, 2)
POISSON_FAMILY = GLMFamily("poisson", torch.exp, torch.exp, torch.exp, torch.exp, math.inf)
_FAMILIES = {family.name: family for family in (LOGISTIC_FAMILY, SQUARE_FAMILY, POISSON_FAMILY)}


def glm_family(family: Family | GLMFamily) -> GLMFamily:
    """The family of a name; a `GLMFamily` is returned as it is.

    Args:
        family: `"logistic"`, `"square"`, `"poisson"`, or a `GLMFamily`.

    Raises:
        ValueError: for an unknown name.

    Example:
        >>> glm_family("square").variance(torch.tensor([3.0]))
        tensor([1.])
    """
    if isinstance(family, GLMFamily):
        return family
    return _FAMILIES[one_of("family", family, _FAMILIES)]


def check_positive(**values: float) -> None:
    """Refuse values that are not finite numbers > 0.

    Args:
        **values: the values by name.
    """
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name}: expected a finite number > 0, got {value!r}.")


def check_features(features: Tensor) -> None:
    """Refuse features that are no floating-point matrix.

    Args:
        features: data or hidden features, `(n, d)`.
    """
    if features.ndim != 2 or not features.is_floating_point() or len(features) < 1:
        raise ValueError(f"features: expected floating-point (n, d), got {tuple(features.shape)}; flatten them first.")


def _check_laws(alpha: float, beta: float | None) -> tuple[float, float]:
    beta = alpha if beta is None else beta
    check_positive(alpha=alpha, beta=beta)
    return float(alpha), float(beta)


def rescaled_moment(alpha: float, beta: float | None = None, *, order: int = 2) -> float:
    r"""The moment `E w^order` of `w = (1 - λ)/λ` under the unmixed law, in closed form (book: eq-glm).

    $$ \mathbb E_{\tilde D} w^2 = \frac{1}{\alpha+\beta}
       \Big[\frac{\beta(\beta+1)}{\alpha-1} + \frac{\alpha(\alpha+1)}{\beta-1}\Big] $$

    Args:
        alpha: first parameter of the Beta law of λ, > 0.
        beta: second parameter; `None` takes the value of `alpha`.
        order: power of w, ≥ 1.

    Raises:
        ValueError: if the moment is infinite. Near 0 the density of λ is of the order of λ^min(α, β), so that the
            moment is finite only for min(α, β) > order - 1.

    Example:
        >>> rescaled_moment(3.0)  # (α + 1)/(α - 1)
        2.0
    """
    a, b = _check_laws(alpha, beta)
    if order < 1:
        raise ValueError(f"order: expected >= 1, got {order}.")
    if min(a, b) <= order - 1:
        raise ValueError(
            f"E[((1 - λ)/λ)^{order}] is infinite for Beta({a:g}, {b:g}): near λ = 0 the unmixed law has a density of "
            f"the order of λ^min(α, β), so min(α, β) > {order - 1} is needed. Use larger parameters, or the expansion "
            "without rescaling by 1/λ, nfm_theory.terms(problem), whose moments E(1 - λ)^j always exist."
        )

    def part(p: float, q: float) -> float:
        return math.prod((q + k) / (p - 1 - k) for k in range(order))

    return (a * part(a + 1, b) + b * part(b + 1, a)) / (a + b)


def _check_data(theta: Tensor, x: Tensor) -> None:
    if x.ndim != 2 or theta.shape != x.shape[1:]:
        raise ValueError(f"theta, x: expected (d,) and (n, d), got {tuple(theta.shape)} and {tuple(x.shape)}.")
    if not (x.isfinite().all() and theta.isfinite().all()):
        raise ValueError("theta, x: expected finite numbers.")
    spread = float(x.detach().abs().max())
    if float(x.detach().mean(0).abs().max()) > CENTRING * spread:
        raise ValueError("x: expected centered data, since the statement assumes mean 0; pass x - x.mean(0).")


def glm_regularizer(
    theta: Tensor,
    x: Tensor,
    *,
    alpha: float,
    beta: float | None = None,
    family: Family | GLMFamily = "logistic",
) -> Tensor:
    r"""What Mixup adds to the loss of a generalized linear model, to second order (book: eq-glm).

    This is the theorem of arXiv 2010.04819, in the notation of this package. The value is differentiable in `theta`.

    Args:
        theta: parameters θ, `(d,)`.
        x: centered data, `(n, d)`.
        alpha: first parameter of the Beta law of λ.
        beta: second parameter; `None` takes the value of `alpha`.
        family: `"logistic"`, `"square"`, `"poisson"` or a `GLMFamily`.

    Returns:
        The regularizer, a 0-dim tensor.

    Raises:
        ValueError: for data that are not centered, shapes that do not fit and an unknown family; and for
            min(α, β) <= 1, such as Beta(1, 1), for which the expectation is infinite.

    Example:
        >>> x = torch.tensor([[1.0], [-1.0]])
        >>> glm_regularizer(torch.tensor([3.0]), x, alpha=3.0, family="square")  # 1/2 · 2 · 9
        tensor(9.)
    """
    _check_data(theta, x)
    moment = rescaled_moment(alpha, beta, order=2)
    scores = x @ theta
    return moment / 2 * glm_family(family).variance(scores).mean() * (scores**2).mean()


def glm_cubic(
    theta: Tensor, x: Tensor, *, alpha: float, beta: float | None = None, family: Family | GLMFamily = "logistic"
) -> Tensor:
    """The coefficient of t³ of `glm_mixup_loss` in its scale t, which the second-order statement leaves out.

    Args:
        theta: parameters θ, `(d,)`.
        x: centered data, `(n, d)`.
        alpha: first parameter of the Beta law of λ.
        beta: second parameter; `None` takes the value of `alpha`.
        family: `"logistic"`, `"square"`, `"poisson"` or a `GLMFamily`.

    Returns:
        The coefficient, a 0-dim tensor.

    Raises:
        ValueError: for everything that `glm_regularizer` refuses, and for min(α, β) <= 2, for which the remainder of
            the logistic loss is of the order t^(1 + min(α, β)) and not t³.

    Example:
        >>> x = torch.tensor([[1.0], [-1.0]])
        >>> glm_cubic(torch.tensor([3.0]), x, alpha=3.0, family="square")
        tensor(0.)
    """
    _check_data(theta, x)
    moment = rescaled_moment(alpha, beta, order=3)
    scores = x @ theta
    return moment / 6 * glm_family(family).skewness(scores).mean() * (scores**3).mean()


def _rescaled_nodes(a: float, b: float, growth: float, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes λ and weights for `E_D̃ f(λ)`, if `λ^growth f` is smooth: the Jacobi weight contains the pole."""
    lams, weights = [], []
    for share, p, q in ((a / (a + b), a + 1, b), (b / (a + b), b + 1, a)):
        z, w = scipy.special.roots_jacobi(num, q - 1, p - growth - 1)
        lam = (z + 1) / 2
        ratio = math.exp(scipy.special.betaln(p - growth, q) - scipy.special.betaln(p, q))
        lams.append(lam)
        weights.append(share * ratio * w / w.sum() * lam**growth)
    return np.concatenate(lams), np.concatenate(weights)


def glm_mixup_loss(
    theta: Tensor,
    x: Tensor,
    y: Tensor,
    *,
    alpha: float,
    beta: float | None = None,
    family: Family | GLMFamily = "logistic",
    scale: float | Tensor = 1.0,
    num_lam: int = 64,
) -> Tensor:
    r"""The Mixup loss of a generalized linear model with the mixed point rescaled by 1/λ, without sampling.

    $$ L_{mix}(t) = \frac1{n^2} \sum_{i,r} \mathbb E_{\tilde D}
       \big[A(\theta\cdot\tilde x) - y_i\,\theta\cdot\tilde x\big],\quad
       \tilde x = x_i + t\,\tfrac{1-\lambda}{\lambda}\,x_r \qquad \text{(book: eq-glm)} $$

    The loss is summed over all n² pairs, with a Gauss-Jacobi rule in λ whose weight contains the pole of 1/λ. It is
    finite for the logistic family for all α, β > 0, for the square family for min(α, β) > 1, and never for the Poisson
    family.

    Args:
        theta: parameters θ, `(d,)`.
        x: centered data, `(n, d)`.
        y: targets, `(n,)`.
        alpha: first parameter of the Beta law of λ.
        beta: second parameter; `None` takes the value of `alpha`.
        family: `"logistic"`, `"square"`, `"poisson"` or a `GLMFamily`.
        scale: scale t, a number or a vector of them; 1 gives the Mixup loss, and 0 the standard loss.
        num_lam: number of nodes λ for each of the two Beta laws. A small t needs more of them, because values of λ of
            the order of t matter.

    Returns:
        The losses, in the shape of `scale`.

    Raises:
        ValueError: for data, parameters and families that do not fit, and if the loss is infinite.

    Example:
        >>> x, y = torch.tensor([[1.0], [-1.0]]), torch.tensor([1.0, 0.0])
        >>> glm_mixup_loss(torch.tensor([3.0]), x, y, alpha=3.0, family="square")  # 4.5 - 1.5 + 9
        tensor(12.)
    """
    _check_data(theta, x)
    family, (a, b) = glm_family(family), _check_laws(alpha, beta)
    if y.shape != x.shape[:1]:
        raise ValueError(f"y: expected ({len(x)},), got {tuple(y.shape)}.")
    if not family.growth < min(a, b) + 1:
        raise ValueError(
            f"The rescaled Mixup loss of the {family.name} family is infinite for Beta({a:g}, {b:g}): A grows like "
            f"|u|^{family.growth:g}, and E((1 - λ)/λ)^j is finite for j < 1 + min(α, β) only. Use larger parameters "
            "or the logistic family; glm_regularizer(...) may exist where the loss does not."
        )
    lam, weight = (torch.from_numpy(v).to(theta) for v in _rescaled_nodes(a, b, family.growth, num_lam))
    scores, scales = x @ theta, torch.as_tensor(scale).to(theta)
    standard = (family.potential(scores) - y * scores).mean()
    values = []
    for t in scales.reshape(-1):
        mixed = scores[:, None, None] + t * ((1 - lam) / lam) * scores[:, None]
        # The difference from the standard loss has no constant part, which the quadrature would compute with an error
        values.append(((family.potential(mixed) - family.potential(scores)[:, None, None]) @ weight).mean())
    # E_r of the label term is y_i θ·x_i, as the data are centered
    return standard + torch.stack(values).reshape(scales.shape)


def class_constraint(theta: Tensor, x: Tensor, *, family: Family | GLMFamily = "logistic") -> Tensor:
    r"""The number `E A''(θ·x) · θᵀΣθ` over the data, which is at most γ for θ in W_γ (book: eq-rademacher-glm).

    Up to the factor that contains λ it is twice `glm_regularizer`.

    Args:
        theta: parameters θ, `(*batch, d)`.
        x: centered data, `(n, d)`.
        family: `"logistic"`, `"square"`, `"poisson"` or a `GLMFamily`.

    Returns:
        One number for each θ, `(*batch)`.

    Example:
        >>> class_constraint(torch.tensor([3.0]), torch.tensor([[1.0], [-1.0]]), family="square")
        tensor(9.)
    """
    scores = theta @ x.T
    return glm_family(family).variance(scores).mean(-1) * (scores**2).mean(-1)


def glm_radius(gamma: float, rho: float, *, sharp: bool = False) -> float:
    r"""The number q such that W_γ lies in the ellipsoid `θᵀΣθ ≤ q`, if x is ρ-retentive.

    The paper has `max{(γ/ρ)^{1/2}, γ/ρ}`. Its assumption is stronger than this needs, `E A'' ≥ √ρ min{1, √(θᵀΣθ)}`, and
    implies `max{(γ/√ρ)^{2/3}, γ/√ρ}`, which is never larger.

    Args:
        gamma: bound γ > 0 that defines W_γ.
        rho: retentiveness ρ in (0, 1/2].
        sharp: True for the smaller number, False for that of the paper.

    Raises:
        ValueError: for γ ≤ 0 or ρ outside (0, 1/2].

    Example:
        >>> glm_radius(1.0, 0.25), glm_radius(1.0, 0.25, sharp=True)
        (4.0, 2.0)
    """
    check_positive(gamma=gamma)
    if not 0 < rho <= MAX_RHO:
        raise ValueError(
            f"rho: expected 0 < rho <= {MAX_RHO}, got {rho!r}; `retentiveness(...).lower` is a proved value."
        )
    if sharp:
        return max((gamma / rho**0.5) ** (2 / 3), gamma / rho**0.5)
    return max((gamma / rho) ** 0.5, gamma / rho)


def generalization_bound(
    standard: float | Tensor,
    rademacher: float | Tensor,
    *,
    lipschitz: float,
    loss_range: float,
    num_samples: int,
    delta: float = 0.05,
) -> float:
    r"""An upper bound of the expected loss that holds with probability 1 - δ (book: eq-rademacher-glm).

    $$ L \le L_{std} + 2\,\mathrm{Lip}\cdot\mathrm{Rad} + B \sqrt{\log(1/\delta) / (2n)} $$

    The bound follows from the contraction of a Lipschitz loss and from McDiarmid's inequality, as in arXiv 2010.04819.

    Args:
        standard: mean loss L_std on the data.
        rademacher: upper bound of the expected Rademacher complexity of the class from which θ was chosen.
        lipschitz: Lipschitz constant of the loss as a function of the score.
        loss_range: length B of an interval that contains every loss.
        num_samples: number n of samples.
        delta: probability δ in (0, 1) with which the bound may fail.

    Raises:
        ValueError: for negative constants, n < 1 or δ outside (0, 1).

    Example:
        >>> round(generalization_bound(0.2, 0.1, lipschitz=1.0, loss_range=1.0, num_samples=1000), 4)
        0.4387
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta: expected 0 < delta < 1, got {delta!r}.")
    if num_samples < 1 or min(lipschitz, loss_range, float(rademacher)) < 0:
        raise ValueError(
            "Expected num_samples >= 1, lipschitz >= 0, loss_range >= 0 and rademacher >= 0, got "
            f"{num_samples}, {lipschitz}, {loss_range} and {float(rademacher)}."
        )
    deviation = loss_range * math.sqrt(math.log(1 / delta) / (2 * num_samples))
    return float(standard) + 2 * lipschitz * float(rademacher) + deviation
