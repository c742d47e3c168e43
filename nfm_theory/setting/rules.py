r"""Quadrature rules for one random variable: nodes, and weights that sum to 1.

| kind | nodes | for |
|---|---|---|
| `"gauss"` | `num` Gauss nodes | smooth functions |
| `"closed"` | `num` nodes, with both ends of a bounded law (Gauss-Lobatto) | a comparison that sees the ends |
| `"panels"` | `num` panels of `PANEL_ORDER` Gauss nodes | functions with kinks or jumps |

A Beta law has a density that may be singular at both ends. Its panels are equal in x, where t = x^q / 2 is the distance
from the end. Near a singular end the panels are narrow, so that none has a large share of the
probability.
"""

from __future__ import annotations

from math import ceil, log
from typing import Literal

import numpy as np

RuleKind = Literal["gauss", "closed", "panels"]
Rule = tuple[np.ndarray, np.ndarray]
#: Number of Gauss nodes in one panel.
PANEL_ORDER = 5
#: Half of the range of the panels of N(0, 1). Beyond it the law has a probability of 1e-15.
_NORMAL_RANGE = 8.0
#: Largest exponent q of the panels of a Beta law.
_LARGEST_POWER = 12


def beta_nodes(num: int, a: float, b: float, kind: RuleKind = "gauss") -> Rule:
    """A rule for Beta(a, b) on (0, 1); `num` counts nodes, or panels for `"panels"`, and is then even."""
    if kind == "gauss":
        return _gauss_beta(num, a, b)
    return _closed_beta(num, a, b) if kind == "closed" else _beta_panels(num, a, b)


def _gauss_beta(num: int, a: float, b: float) -> Rule:
    """Nodes and weights from the Jacobi matrix, whose entries do not overflow at any a and b (Golub and Welsch)."""
    from scipy.linalg import eigh_tridiagonal

    s, k = a + b, np.arange(1, num)
    u = 2 * k + s - 2
    middle = np.concatenate([[a / s], 0.5 + 0.5 * ((a - b) / (u + 2)) * ((s - 2) / u)])
    pairs = (k + b - 1) / u * ((k + a - 1) / u) * k
    ratio = np.ones(num - 1)
    ratio[1:] = (k + s - 2)[1:] / (u - 1)[1:]  # at k = 1 both are s - 1
    nodes, vectors = eigh_tridiagonal(middle, np.sqrt(pairs * ratio / (u + 1)))
    weights = vectors[0] ** 2
    return nodes.clip(0, 1), weights / weights.sum()


def _closed_beta(num: int, a: float, b: float) -> Rule:
    """The Gauss-Lobatto rule: its inner nodes are the Gauss nodes of x (1 - x) times the density."""
    inner, weights = beta_nodes(num - 2, a + 1, b + 1) if num > 2 else (np.zeros(0), np.zeros(0))
    weights = weights * (a * b / ((a + b) * (a + b + 1))) / (inner * (1 - inner))
    last = a / (a + b) - weights @ inner
    first = 1 - weights.sum() - last
    return np.concatenate([[0.0], inner, [1.0]]), np.concatenate([[first], weights, [last]])


def _beta_panels(num: int, a: float, b: float) -> Rule:
    """Panels on both halves of (0, 1)."""
    (below, first), (above, last) = (_half_of_beta(num // 2, *ends) for ends in ((a, b), (b, a)))
    weights = np.concatenate([first, last[::-1]])
    return np.concatenate([below, 1 - above[::-1]]), weights / weights.sum()


def _half_of_beta(num: int, a: float, b: float) -> Rule:
    """Panels for the density t^(a-1) (1 - t)^(b-1) / B(a, b) on t in (0, 1/2)."""
    from scipy.special import betaln

    power = min(ceil(1 / a), _LARGEST_POWER)
    shape = power * a  # the density in x is proportional to x^(shape - 1) (1 - t)^(b-1)
    x, weights = legendre_panels(np.linspace(0, 1, num + 1))
    with np.errstate(over="ignore", under="ignore"):
        weights = weights * x ** (shape - 1)
        x[:PANEL_ORDER], first = beta_nodes(PANEL_ORDER, shape, 1.0)
        x[:PANEL_ORDER] /= num
        weights[:PANEL_ORDER] = first * num**-shape / shape
        t = x**power / 2
        density = np.exp((b - 1) * np.log1p(-t) - betaln(a, b) - a * log(2) + log(power))
    return t, weights * density


def legendre_panels(edges: np.ndarray) -> Rule:
    """Gauss-Legendre nodes in every panel between neighboring edges; the weights sum to the length."""
    from scipy.special import roots_legendre

    nodes, weights = roots_legendre(PANEL_ORDER)
    middle, half = (edges[1:] + edges[:-1]) / 2, (edges[1:] - edges[:-1]) / 2
    return (middle[:, None] + half[:, None] * nodes).ravel(), (half[:, None] * weights).ravel()


def normal_nodes(num: int, kind: RuleKind = "gauss") -> Rule:
    """A rule for N(0, 1). It has no ends, so that its closed rule is a Gauss rule."""
    if kind != "panels":
        from scipy.special import roots_hermitenorm

        return roots_hermitenorm(num)
    x = np.linspace(-1, 1, num + 1)
    z, weights = legendre_panels(_NORMAL_RANGE * (x + 3 * x**3) / 4)  # four times as narrow at 0 as equal panels
    return z, weights * np.exp(-(z**2) / 2)


def uniform_nodes(num: int, kind: RuleKind = "gauss") -> Rule:
    """A rule for the uniform law on (-1, 1)."""
    if kind == "gauss":
        from scipy.special import roots_legendre

        return roots_legendre(num)
    if kind == "panels":
        return legendre_panels(np.linspace(-1, 1, num + 1))
    nodes, weights = beta_nodes(num, 1.0, 1.0, "closed")
    return 2 * nodes - 1, weights


def sign_nodes(num: int, kind: RuleKind = "gauss") -> Rule:
    """The two values of a random sign, whatever rule is asked for."""
    return np.array([-1.0, 1.0]), np.array([0.5, 0.5])
