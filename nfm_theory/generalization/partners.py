r"""Relatives of Mixup as laws of the partner or of λ in the same expansion (book: eq-expansion).

The partner r of sample i is drawn with probability `P(r|i)`, an `(n, n)` matrix with rows that sum to 1; Mixup is 1/n.

| relative | what changes | here |
|---|---|---|
| k-mixup | partner by optimal transport between two batches of k | `k_mixup_weights` |
| DP-Mix self | partner among the augmentations of the same image | `self_weights` |
| midpoint Mixup | λ = 1/2 | `FixedMixing(0.5)` |

With v = g_r - g_i the terms are those of Mixup with `E_r` over P: `R1 = m1 E a·J v`, `R2 = ½ m2 E (J v)ᵀF(J v)`,
`R3 = ½ m2 E a·∇²f[v, v]`, `C3 = m3/6 E D³ℓ[v, v, v]`. They depend on P through the moments of v alone. The loss with
mixed labels is the unmixed one (book: eq-unmixing) for every P that is symmetric, as those above are.

Sources: K. Greenewald et al., *k-Mixup regularization for deep learning via optimal transport*; W. Bao et al., *DP-Mix:
Mixup-based data augmentation for differentially private learning*; M. Chidambaram et al., *Provably learning diverse
features in multi-view data with Midpoint Mixup* (ICML 2023).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..calculus.derivatives import directional_derivatives, gauss_newton_forms
from ..calculus.engine import linearize
from ..setting.problem import Problem
from ..setting.results import Estimate, TaylorTerms
from ..verification.report import observed_order

#: Pairs of batches that k-mixup enumerates at most.
MAX_BATCH_PAIRS = 40_000


@dataclass(frozen=True)
class FixedMixing:
    r"""λ equal to one number; 1/2 is midpoint Mixup. Takes the place of a `MixingLaw` in a `Problem`.

    $$ \tilde D = \lambda\,\delta_\lambda + (1-\lambda)\,\delta_{1-\lambda} $$

    Use `dataclasses.replace(problem, mixing=FixedMixing(0.5))`. At λ = 1/2 mixed and unmixed law are the same.

    Args:
        lam: λ, weight of the first sample, in [0, 1].

    Raises:
        ValueError: for λ outside [0, 1].

    Example:
        >>> FixedMixing(0.5).moment(2)
        0.25
    """

    lam: float = 0.5

    def __post_init__(self):
        """Refuse what is no weight."""
        if not 0 <= self.lam <= 1:
            raise ValueError(f"lam: expected 0 <= lam <= 1, got {self.lam!r}.")

    @property
    def mixes(self) -> bool:
        """Whether two different samples are ever combined."""
        return 0 < self.lam < 1

    def _atoms(self, unmixed: bool) -> tuple[np.ndarray, np.ndarray]:
        if not unmixed:
            return np.array([self.lam]), np.array([1.0])
        if self.lam == 0.5 or not self.mixes:
            return np.array([max(self.lam, 1 - self.lam)]), np.array([1.0])
        return np.array([self.lam, 1 - self.lam]), np.array([self.lam, 1 - self.lam])

    def moment(self, j: int, *, unmixed: bool = True) -> float:
        """Exact `E (1 - lam)^j`."""
        lam, weight = self._atoms(unmixed)
        return float(weight @ (1 - lam) ** j)

    def nodes(self, num: int, *, unmixed: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """The atoms and their weights, whatever `num`."""
        return self._atoms(unmixed)

    def sample(
        self, shape: tuple[int, ...], *, unmixed: bool = True, generator=None, dtype=None, device=None
    ) -> Tensor:
        """Draws of λ."""
        atoms, weights = self._atoms(unmixed)
        source = generator.device if generator is not None else device
        u = torch.rand(shape, generator=generator, dtype=torch.float64, device=source)
        lam = torch.where(u < float(weights[0]), float(atoms[0]), float(atoms[-1]))
        return lam.to(device=device, dtype=dtype or torch.get_default_dtype())


def self_weights(groups: Tensor) -> Tensor:
    """DP-Mix self: the partner is uniform among the views of the same image, itself included, `(n, n)`.

    Args:
        groups: for every view the number of its image, `(n,)`; the samples of the problem are the views.

    Raises:
        ValueError: if `groups` is not a vector.

    Example:
        >>> self_weights(torch.tensor([0, 0, 1]))
        tensor([[0.5000, 0.5000, 0.0000],
                [0.5000, 0.5000, 0.0000],
                [0.0000, 0.0000, 1.0000]], dtype=torch.float64)
    """
    if groups.ndim != 1:
        raise ValueError(f"groups: expected (n,), got {tuple(groups.shape)}.")
    same = (groups[:, None] == groups).double()
    return same / same.sum(1, keepdim=True)


def _matched(cost: np.ndarray, first: Sequence[int], second: Sequence[int]) -> np.ndarray:
    """The partners of `first` in `second` by optimal transport."""
    _, columns = linear_sum_assignment(cost[np.ix_(first, second)])
    return np.asarray(second)[columns]


def k_mixup_weights(
    points: Tensor,
    k: int,
    *,
    method: str = "auto",
    sweeps: int = 2000,
    generator: torch.Generator | None = None,
) -> Estimate:
    """k-mixup: `P(r|i)` when two random batches of k are matched by optimal transport in squared distance, `(n, n)`.

    k = 1 is Mixup. The batches are independent, each without repetition; k = n matches every sample with itself. P is
    symmetric and doubly stochastic (equal costs, where the matching is not unique, are shared by swapping the batches).

    Args:
        points: where distances are measured, inputs or features, `(n, *feature)`.
        k: size of the batches, 1 ≤ k ≤ n.
        method: `"exact"` enumerates all pairs of batches, `"monte_carlo"` cuts pairs of random permutations into
            batches (k must divide n), `"auto"` enumerates up to 40,000 pairs.
        sweeps: permutation pairs for Monte Carlo.
        generator: seeds Monte Carlo.

    Returns:
        `Estimate` of shape `(n, n)`; `stderr` is zero when enumerated.

    Raises:
        ValueError: for k outside 1..n, an unknown method, or a k that does not divide n.

    Example:
        >>> k_mixup_weights(torch.tensor([[0.0], [1.0]]), 1).value
        tensor([[0.5000, 0.5000],
                [0.5000, 0.5000]], dtype=torch.float64)
    """
    n = len(points)
    if not 1 <= k <= n:
        raise ValueError(f"k: expected 1 <= k <= n = {n}, got {k}.")
    if method not in ("auto", "exact", "monte_carlo"):
        raise ValueError(f"method: expected 'auto', 'exact' or 'monte_carlo', got {method!r}.")
    flat = points.detach().flatten(1).double()
    cost = ((flat[:, None] - flat) ** 2).sum(-1).cpu().numpy()
    if method == "auto":
        method = "exact" if comb(n, k) ** 2 <= MAX_BATCH_PAIRS else "monte_carlo"
    if method == "exact":
        batches = list(itertools.combinations(range(n), k))
        law = np.zeros((n, n))
        for first, second in itertools.product(batches, repeat=2):
            law[list(first), _matched(cost, first, second)] += n / k / len(batches) ** 2
        value = torch.from_numpy((law + law.T) / 2).to(points.device)
        return Estimate(value, torch.zeros_like(value), len(batches) ** 2, "all pairs of batches")
    if n % k or sweeps < 2:
        raise ValueError(f"Expected k to divide n and sweeps >= 2 for Monte Carlo, got k = {k}, n = {n}, {sweeps}.")
    source = generator.device if generator is not None else "cpu"
    mean, square = np.zeros((n, n)), np.zeros((n, n))
    for _ in range(sweeps):
        order = torch.rand((2, n), generator=generator, device=source).argsort(1).cpu().numpy()
        one = np.zeros((n, n))
        for first, second in zip(*(half.reshape(-1, k) for half in order), strict=True):
            one[first, _matched(cost, first, second)] = 1
        one = (one + one.T) / 2
        mean, square = mean + one / sweeps, square + one**2 / sweeps
    stderr = np.sqrt(np.maximum(square - mean**2, 0) / (sweeps - 1))
    value, error = (torch.from_numpy(a).to(points.device) for a in (mean, stderr))
    return Estimate(value, error, sweeps * (n // k), f"Monte Carlo, {sweeps} pairs of permutations")


def _check(problem: Problem, weights: Tensor) -> Tensor:
    n = len(problem.features)
    if weights.shape != (n, n):
        raise ValueError(f"weights: expected P(r|i) of shape ({n}, {n}), got {tuple(weights.shape)}.")
    if (weights < 0).any() or not torch.allclose(weights.sum(1).double(), weights.new_ones(n).double(), atol=1e-6):
        raise ValueError("weights: expected non-negative rows that sum to 1.")
    if problem.active_laws != (None, None):
        raise ValueError("Expected a problem without noise: its terms do not depend on the partner; see taylor_terms.")
    return weights.to(problem.features)


def direction_moments(features: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `Σ_r P(r|i) v` and second moment `Σ_r P(r|i) v vᵀ` of the directions v = g_r - g_i of every sample.

    Args:
        features: g, `(n, *feature)`.
        weights: `P(r|i)`, `(n, n)`.

    Returns:
        `(n, d)` and `(n, d, d)`, for flattened features.

    Example:
        >>> g = torch.tensor([[0.0], [2.0]])
        >>> [m.flatten().tolist() for m in direction_moments(g, torch.full((2, 2), 0.5))]
        [[1.0, -1.0], [2.0, 2.0]]
    """
    flat, weights = features.flatten(1), weights.to(features)
    mean = weights @ flat
    cross = mean.unsqueeze(2) * flat.unsqueeze(1)
    second = torch.einsum("ir,rd,re->ide", weights, flat, flat) - cross - cross.mT
    return mean - flat, second + flat.unsqueeze(2) * flat.unsqueeze(1)


def partner_terms(
    problem: Problem, weights: Tensor, *, remainder: bool = True, memory_limit: int | None = None
) -> TaylorTerms:
    """Terms of the expansion for any law of the partner, exact over all pairs (book: eq-expansion).

    Args:
        problem: the setting, without noise; its `mixing` may be a `MixingLaw` or a `FixedMixing`.
        weights: `P(r|i)`, `(n, n)`.
        remainder: also predict `C3`.
        memory_limit: bytes that a block of third derivatives may take.

    Raises:
        ValueError: for weights that are no law, or a problem with noise.

    Example:
        >>> from nfm_theory import build_problem
        >>> g = torch.tensor([[0.0], [2.0]])
        >>> problem = build_problem(lambda u: u, g, torch.zeros(2), loss="square")
        >>> round(float(partner_terms(problem, torch.full((2, 2), 0.5)).R2), 6)  # m2 / 2 · E v²
        0.166667
    """
    weights, g = _check(problem, weights), problem.features
    mixing, n = problem.mixing, len(g)
    at = linearize(problem.head, g)
    slope = problem.loss.gradient(at.outputs, problem.labels)
    curvature = problem.loss.hessian(at.outputs, problem.labels)
    directions = g.unsqueeze(1) - g  # (r, i, *feature)
    tangents, bends = at.sweep(directions, slope)
    forms = gauss_newton_forms(curvature, tangents.permute(1, 2, 0))  # (i, r)
    law = weights / n
    zero, third = g.new_zeros(()), None
    if remainder:
        rows = problem.block_rows(memory_limit, passes=8)
        total = zero
        for pairs in weights.nonzero().split(rows):
            i, r = pairs.T
            cubic = directional_derivatives(lambda h, i=i: problem.losses(h, i), g[i], g[r] - g[i], 3)[3]
            total = total + (law[i, r] * cubic).sum()
        third = mixing.moment(3) / 6 * total
    return TaylorTerms(
        standard=problem.loss(at.outputs, problem.labels).mean(),
        R1=mixing.moment(1) * (law.T.unsqueeze(2) * tangents * slope).sum(),
        R2=mixing.moment(2) / 2 * (law * forms).sum(),
        R3=mixing.moment(2) / 2 * (law.T * bends).sum(),
        R2_add=zero,
        R3_add=zero,
        R2_mult=zero,
        R3_mult=zero,
        C3=third,
    )


def partner_loss(
    problem: Problem,
    weights: Tensor,
    *,
    eps: float | Sequence[float] | Tensor = 1.0,
    form: str = "unmixed",
    num_lam: int = 16,
    memory_limit: int | None = None,
) -> Tensor:
    """The loss for any law of the partner: the sum over all pairs and the nodes of λ, without sampling.

    Args:
        problem: the setting, without noise.
        weights: `P(r|i)`, `(n, n)`.
        eps: ε, a number or several.
        form: `"unmixed"`: label of the first sample, λ from the unmixed law, any ε; `"mixed"`: mixed label, at ε = 1.
            The two agree at ε = 1 for symmetric weights.
        num_lam: Gauss-Jacobi nodes of λ per Beta part.
        memory_limit: bytes that a block of evaluations may take.

    Returns:
        In the shape of `eps`.

    Raises:
        ValueError: as `partner_terms`, or for a form that does not exist.

    Example:
        >>> from nfm_theory import build_problem
        >>> g = torch.tensor([[0.0], [2.0]])
        >>> problem = build_problem(lambda u: u, g, torch.zeros(2), loss="square")
        >>> partner_loss(problem, torch.eye(2))  # every sample its own partner: the standard loss
        tensor(1.)
    """
    weights, g = _check(problem, weights), problem.features
    scales = torch.as_tensor(eps, dtype=g.dtype, device=g.device)
    if form not in ("unmixed", "mixed") or (form == "mixed" and not (scales == 1).all()):
        raise ValueError(f"form: expected 'unmixed', or 'mixed' at eps = 1, got {form!r} at eps = {eps!r}.")
    nodes = problem.mixing.nodes(num_lam, unmixed=form == "unmixed")
    lam, lam_weight = (torch.from_numpy(a).to(g) for a in nodes)
    rows = max(1, problem.block_rows(memory_limit) // len(lam))
    totals = []
    for e in scales.reshape(-1):
        total = torch.zeros((), dtype=torch.float64, device=g.device)
        for pairs in weights.nonzero().split(rows):
            i, r = pairs.T.repeat_interleave(len(lam), dim=1)
            share = lam.repeat(len(pairs))
            h = g[i] + (e * (1 - share)).reshape(-1, *[1] * (g.ndim - 1)) * (g[r] - g[i])
            outputs = problem.head(h)
            values = problem.loss(outputs, problem.labels[i])
            if form == "mixed":
                values = share * values + (1 - share) * problem.loss(outputs, problem.labels[r])
            total = total + (weights[i, r] * lam_weight.repeat(len(pairs)) * values).double().sum() / len(g)
        totals.append(total)
    return torch.stack(totals).reshape(scales.shape).to(g.dtype)


@dataclass(frozen=True)
class PartnerReport:
    """Outcome of `verify_partner_expansion`.

    Attributes:
        terms: the terms.
        eps: scales, decreasing.
        remainders: loss minus the polynomial of degree 2.
        order: slope of log|remainder| against log ε; 3 is predicted.
        ratios: remainder / (ε³ C3); 1 is predicted as ε → 0.
    """

    terms: TaylorTerms
    eps: list[float]
    remainders: list[float]
    order: float
    ratios: list[float]


@torch.no_grad()
def verify_partner_expansion(
    problem: Problem, weights: Tensor, *, eps: Sequence[float] = (0.04, 0.02, 0.01), num_lam: int = 8
) -> PartnerReport:
    """Loss against expansion for any law of the partner: order and coefficient of the remainder.

    Args:
        problem: the setting, without noise; float64.
        weights: `P(r|i)`, `(n, n)`.
        eps: scales, decreasing.
        num_lam: Gauss-Jacobi nodes of λ.

    Raises:
        ValueError: as `partner_terms`, or if the features are not float64.
    """
    if problem.features.dtype != torch.float64:
        raise ValueError(f"Expected float64 features: differences drown in rounding, got {problem.features.dtype}.")
    scales = torch.as_tensor(eps, dtype=torch.float64, device=problem.features.device)
    terms = partner_terms(problem, weights)
    remainders = partner_loss(problem, weights, eps=scales, num_lam=num_lam) - terms.polynomial(scales, 2)
    return PartnerReport(
        terms=terms,
        eps=scales.tolist(),
        remainders=remainders.tolist(),
        order=observed_order(scales.tolist(), remainders.tolist()) if bool(remainders.all()) else float("nan"),
        ratios=(remainders / (scales**3 * terms.C3)).tolist(),
    )
