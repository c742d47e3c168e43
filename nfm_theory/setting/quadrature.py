r"""Quadrature rules for the loss: all pairs × Gauss-Jacobi nodes of λ × nodes of the noise, in blocks of weighted rows.

Rules of the noise, for d features:

| rule | points | exact for |
|---|---|---|
| `"tensor"` | nodes^d for each noise | the law itself, up to the accuracy of Gauss rules (exactly for Rademacher) |
| `"cubature-3"` | 2 D, with D = d for each noise | all polynomials of degree 3 in the noise |
| `"cubature-5"` | 2 D² + 1 | all polynomials of degree 5 in the noise |

The loss by a cubature of degree q agrees with the exact loss up to O(ε^{q+1}). The cubatures are rules 3-1 and 5-2 of
A. H. Stroud, *Approximate Calculation of Multiple Integrals*, 1971, here for symmetric laws with given fourth moments.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from math import comb, prod
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .checks import one_of
from .draws import Draw
from .mixing import FixedMixing, MixingLaw
from .noise import NoiseLaw
from .options import progress_bar
from .rules import Rule, RuleKind

#: Default of the largest number of rows of a grid (evaluations of the head).
MAX_ROWS = 50_000_000
#: Largest number of entries of a noise rule in memory.
MAX_RULE_NUMBERS = 100_000_000

RULES = ("tensor", "cubature-3", "cubature-5")


class GridTooLargeError(ValueError):
    """Raised if a quadrature rule needs more evaluations than allowed."""


@dataclass(frozen=True)
class NoiseRule:
    """Nodes `(points, d)` of each noise, or `None` without noise, and weights `(points,)` that sum to 1."""

    name: str
    weights: Tensor
    add: Tensor | None = None
    mult: Tensor | None = None

    @property
    def amplification(self) -> float:
        """Σ|w|, the factor by which the rule can enlarge rounding errors; 1 for positive weights."""
        return float(self.weights.abs().sum())


def rule_points(
    name: str, d: int, add: NoiseLaw | None, mult: NoiseLaw | None, num_nodes: int, kind: RuleKind = "gauss"
) -> int:
    """The number of points of a noise rule, computed without building it."""
    one_of("rule", name, RULES)
    laws = [law for law in (add, mult) if law is not None]
    if not laws:
        return 1
    if name == "tensor":
        return prod(len(law.scale_nodes(num_nodes, kind)[0]) * len(law.nodes(num_nodes, kind)[0]) ** d for law in laws)
    total = d * len(laws)
    return 2 * total if name == "cubature-3" else 1 + 2 * total + 4 * comb(total, 2)


def _tensor_points(law: NoiseLaw, d: int, num: int, kind: RuleKind) -> Rule:
    z, w = law.nodes(num, kind)
    points = np.array(list(itertools.product(z, repeat=d)))
    weights = np.array([prod(c) for c in itertools.product(w, repeat=d)])
    scale, scale_weight = law.scale_nodes(num, kind)
    return (scale[:, None, None] * points).reshape(-1, d), np.outer(scale_weight, weights).ravel()


def _degree_three(second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    dims = len(second)
    axes = np.diag(np.sqrt(dims * second))
    return np.concatenate([axes, -axes]), np.full(2 * dims, 1 / (2 * dims))


def _degree_five(second: np.ndarray, moments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The points 0, ±r_j e_j and s(±e_j ± e_k); `moments[j, k]` = E x_j² x_k² in coordinates of unit variance."""
    dims = len(second)
    others = moments.sum(1) - moments.diagonal()
    excess = moments.diagonal() - others
    s_squared = float((moments.diagonal() + others).mean() / 2)
    curvature = 1 - others / s_squared
    # If the pair points alone have the right moments, the points on the axes get no weight, and any position will do.
    spare = (abs(excess) < 1e-12) & (abs(curvature) < 1e-12)
    if (excess * curvature <= 0)[~spare].any():
        raise ValueError("No real degree-5 rule exists for these fourth moments; use rule='tensor' or Monte Carlo.")
    r_squared = np.divide(excess, curvature, out=np.ones_like(excess), where=~spare)
    axis_weight = curvature / (2 * r_squared)
    first, second_axis = np.triu_indices(dims, 1)
    pair_weight = moments[first, second_axis] / (4 * s_squared**2)
    axes = np.diag(np.sqrt(r_squared))
    points, weights = [np.zeros((1, dims)), axes, -axes], [axis_weight, axis_weight]
    for sign_1, sign_2 in itertools.product((1, -1), repeat=2):
        block = np.zeros((len(first), dims))
        block[np.arange(len(first)), first] = sign_1 * np.sqrt(s_squared)
        block[np.arange(len(first)), second_axis] = sign_2 * np.sqrt(s_squared)
        points.append(block)
        weights.append(pair_weight)
    rest = np.concatenate(weights)
    return np.concatenate(points) * np.sqrt(second), np.concatenate([[1 - rest.sum()], rest])


def noise_rule(
    name: str,
    d: int,
    add: NoiseLaw | None,
    mult: NoiseLaw | None,
    *,
    num_nodes: int = 12,
    kind: RuleKind = "gauss",
) -> NoiseRule:
    """Build a rule of the noise for d features; `"tensor"` has `num_nodes` nodes, or panels, for each element.

    Raises:
        ValueError: for an unknown rule, or if no rule of degree 5 exists for the law.
        GridTooLargeError: if the rule does not fit in memory.
    """
    points = rule_points(name, d, add, mult, num_nodes, kind)
    laws = [law for law in (add, mult) if law is not None]
    if not laws:
        return NoiseRule("no noise", torch.ones(1, dtype=torch.float64))
    if points * d * len(laws) > MAX_RULE_NUMBERS:
        raise GridTooLargeError(
            f"The {name} noise rule for {d} features needs {points:.3g} points; use a cubature of lower degree, "
            "fewer nodes, or method='monte_carlo'."
        )
    if name == "tensor":
        parts = [_tensor_points(law, d, num_nodes, kind) for law in laws]
        sizes = [len(w) for _, w in parts]
        picks = np.indices(sizes).reshape(len(sizes), -1)
        nodes = [p[pick] for (p, _), pick in zip(parts, picks, strict=True)]
        weights = np.prod([w[pick] for (_, w), pick in zip(parts, picks, strict=True)], axis=0)
    else:
        second = np.repeat([law.second for law in laws], d)
        if name == "cubature-3":
            stacked, weights = _degree_three(second)
        else:
            owner = np.repeat(np.arange(len(laws)), d)
            # The two noises are independent: E x² y² = 1 for x and y of unit variance.
            moments = np.ones((len(second), len(second)))
            for k, law in enumerate(laws):
                moments[np.ix_(owner == k, owner == k)] = law.mixed_fourth / law.second**2
            moments[np.diag_indices(len(second))] = np.repeat([law.fourth / law.second**2 for law in laws], d)
            stacked, weights = _degree_five(second, moments)
        nodes = np.split(stacked, len(laws), axis=1)
    tensors = iter(torch.from_numpy(np.ascontiguousarray(part)) for part in nodes)
    return NoiseRule(
        name,
        torch.from_numpy(weights),
        add=None if add is None else next(tensors),
        mult=None if mult is None else next(tensors),
    )


@dataclass(frozen=True)
class Grid:
    """All combinations of samples, partners, λ nodes and noise nodes, with weights that sum to 1.

    Args:
        num_samples: the number n of samples.
        feature_shape: shape of one sample's features.
        mixing: law of λ.
        rule: rule of the noise.
        num_lam: number of nodes, or of panels, for each Beta law.
        lam_kind: kind of the rule of λ.
        unmixed: True uses the law of λ after label unmixing, False uses Beta(α, β).
        partners: `P(r|i)`, `(n, n)`; `None` means uniform partners. Pairs of probability 0 are left out.
    """

    num_samples: int
    feature_shape: tuple[int, ...]
    mixing: MixingLaw | FixedMixing
    rule: NoiseRule
    num_lam: int = 8
    unmixed: bool = True
    partners: Tensor | None = None
    lam_kind: RuleKind = "gauss"

    @property
    def lam_rule(self) -> Rule:
        """The nodes of λ and their weights."""
        return self.mixing.nodes(self.num_lam, unmixed=self.unmixed, kind=self.lam_kind)

    @property
    def shape(self) -> tuple[int, int, int]:
        """The numbers of pairs of samples, of λ nodes and of noise nodes."""
        pairs = _num_pairs(self.num_samples, self.mixing, self.unmixed, self.partners)
        return pairs, len(self.lam_rule[0]), len(self.rule.weights)

    @property
    def rows(self) -> int:
        """The number of evaluations of the head."""
        return prod(self.shape)

    def blocks(self, block_rows: int, *, like: Tensor, title: str) -> Iterator[tuple[Draw, Tensor]]:
        """The rows with their weights, in blocks, with a progress bar; they get dtype and device of `like`."""
        dtype, device = like.dtype, like.device
        lam, lam_weight = (torch.from_numpy(a) for a in self.lam_rule)
        lam, weight = lam.to(device, dtype), lam_weight.to(device, torch.float64)
        add, mult = (
            None if part is None else part.to(device, dtype).reshape(-1, *self.feature_shape)
            for part in (self.rule.add, self.rule.mult)
        )
        noise_weight, n = self.rule.weights.to(device), self.num_samples
        chosen = None if self.partners is None else self.partners.nonzero().to(device)
        pairs, lams, noises = self.shape
        per_anchor = pairs // n
        with progress_bar(title=title, total=self.rows, unit="row") as bar:
            for start in range(0, self.rows, block_rows):
                row = torch.arange(start, min(start + block_rows, self.rows), device=device)
                noise, row = row % noises, row // noises
                node, pair = row % lams, row // lams
                if chosen is None or self.partners is None:
                    anchor, partner = pair // per_anchor, pair % per_anchor
                    weights = weight[node] * noise_weight[noise] / (n * per_anchor)
                else:
                    anchor, partner = chosen[pair].unbind(1)
                    weights = weight[node] * noise_weight[noise] * self.partners.to(device)[anchor, partner] / n
                draw = Draw(
                    anchor=anchor,
                    lam=lam[node],
                    index=partner if pairs > n or chosen is not None else anchor,
                    add=None if add is None else add[noise],
                    mult=None if mult is None else mult[noise],
                )
                yield draw, weights
                bar.update(len(draw))


def _num_pairs(num_samples: int, mixing: MixingLaw | FixedMixing, unmixed: bool, partners: Tensor | None) -> int:
    """The number of pairs of samples. Without mixing, the only partner is the sample itself."""
    if partners is not None:
        return int((partners != 0).sum())
    return num_samples * (num_samples if mixing.mixes or not unmixed else 1)


def build_grid(
    num_samples: int,
    feature_shape: tuple[int, ...],
    mixing: MixingLaw | FixedMixing,
    add: NoiseLaw | None,
    mult: NoiseLaw | None,
    *,
    rule: str,
    degree: int,
    num_lam: int,
    num_noise: int,
    unmixed: bool,
    max_rows: int,
    partners: Tensor | None = None,
) -> Grid:
    """Choose and build a grid of at most `max_rows` rows.

    `rule="auto"` uses the law itself (`"tensor"`) if the grid is small enough, and otherwise the cubature that is exact
    for polynomials of this degree in the noise. `rule="smallest"` uses the exact rule with the fewest points.

    Raises:
        GridTooLargeError: if the grid has more rows. The message names the size of each factor and the alternatives.
        ValueError: for an unknown rule.
    """
    d = prod(feature_shape)
    pairs = _num_pairs(num_samples, mixing, unmixed, partners)
    lams = len(mixing.nodes(num_lam, unmixed=unmixed)[0])
    cubature = "tensor" if degree > 5 else ("cubature-3" if degree <= 3 else "cubature-5")
    if rule == "auto":
        fits = pairs * lams * rule_points("tensor", d, add, mult, num_noise) <= max_rows
        rule = "tensor" if fits else cubature
    elif rule == "smallest":
        num_noise = degree // 2 + 1
        rule = min(("tensor", cubature), key=lambda name: rule_points(name, d, add, mult, num_noise))
    points = rule_points(rule, d, add, mult, num_noise)
    if pairs * lams * points > max_rows:
        raise GridTooLargeError(
            f"The quadrature rule needs {_size(pairs * lams * points)} evaluations of the head ({pairs} pairs of "
            f"samples × {lams} λ nodes × {_size(points)} noise nodes of rule {rule!r} over {d} features), more than "
            f"max_rows = {max_rows:.3g}. Use fewer samples, rule='cubature-3', a larger max_rows, or "
            "method='monte_carlo'."
        )
    built = noise_rule(rule, d, add, mult, num_nodes=num_noise)
    return Grid(num_samples, feature_shape, mixing, built, num_lam, unmixed, partners)


def _size(count: int) -> str:
    """A count as text; a power of ten where it is too large for a float."""
    return f"{count:.3g}" if count < 10**300 else f"10^{math.log10(count):.0f}"


@dataclass(frozen=True)
class Quadrature:
    """Options of the loss by quadrature, see `loss`.

    Args:
        rule: rule of the noise: `"tensor"` for the law itself, `"auto"`, `"cubature-3"` or `"cubature-5"`.
        num_lam: number of Gauss-Jacobi nodes of λ for each Beta law.
        num_noise: number of nodes for each element of the noise.
        max_rows: largest number of evaluations of the head.
        rtol: relative error above which the rule is replaced by finer ones, as far as the number of evaluations allows;
            `None` keeps the rule. The error of the value is stated in both cases.

    Raises:
        ValueError: for an unknown rule, or numbers that are not positive.
    """

    rule: Literal["tensor", "auto", "cubature-3", "cubature-5"] = "tensor"
    num_lam: int = 16
    num_noise: int = 12
    max_rows: int = MAX_ROWS
    rtol: float | None = None

    def __post_init__(self):
        one_of("rule", self.rule, (*RULES, "auto"))
        for name in ("num_lam", "num_noise", "max_rows", "rtol"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name}: expected a number > 0, got {value!r}.")
