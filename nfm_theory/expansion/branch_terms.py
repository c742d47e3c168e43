r"""The stability loss of NoisyMix and its expansion in the scale of mixing and noise (NoisyMix, Theorem 2).

$$ L_{JSD}(\varepsilon) = S_0 + \varepsilon S_1 + \varepsilon^2 S_2 + \varepsilon^3 C_3 + O(\varepsilon^4)
   \qquad \text{(book: eq-jsd-expansion)} $$

| term | value, averaged over i | here |
|---|---|---|
| S0 | `Φ(u)`, Φ the JSD as a function of all logits | `StabilityTerms.S0` |
| S1 | `m1 Σ_j ∂_jΦ·J_j (ḡ^j - g^j)` | `.S1` |
| S2, curvature of Φ | `½ E (J e)ᵀ ∇²Φ (J e)`, J e stacked over the branches | `.curvature` |
| S2, curvature of f | `½ E Σ_j ∂_jΦ·∇²f[e^j, e^j]` | `.residual` |
| S2 by source | `m2 E_r v vᵀ`, `σ² E ξ ξᵀ`, `σ² E (ξ⊙g)(ξ⊙g)ᵀ` for `E e eᵀ` | `.data`, `.additive`, `.multiplicative` |
| C3 | `m3/6 E_r D³[v, v, v] + m1 D(noise part of S2)[ḡ - g]` | `.C3` |

The blocks ∂²Φ/∂u_j∂u_l with j ≠ l always contribute to the data terms, and to the noise terms only if the branches
share their noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..calculus.derivatives import directional_derivatives, mapped_over_directions
from ..calculus.directions import centered_features, compressed, coordinate_basis, unit_vectors
from ..calculus.engine import Linearization, linearize
from ..calculus.forward_mode import jvp
from ..setting.ambient import undisturbed
from ..setting.branches import Branches
from ..setting.pointwise import CROSS_ENTROPY, LOGISTIC
from ..setting.results import TaylorTerms
from .second_order import COORDINATE_BLOCK, SOURCES, gauss_newton_terms
from .third_order import pair_cubic

#: The number of entries in a block of tangents.
BLOCK_NUMBERS = 2**22


@dataclass(frozen=True)
class StabilityTerms(TaylorTerms):
    r"""The expansion `S0 + ε S1 + ε² S2 + ε³ C3 + O(ε⁴)` of a loss of several branches (book: eq-jsd-expansion).

    The fields are those of `TaylorTerms`. The `R2` terms hold the second derivatives of Φ, also across branches; the
    `R3` terms hold those of f.
    """

    @property
    def S0(self) -> Tensor:
        """The loss without perturbation."""
        return self.standard

    @property
    def S1(self) -> Tensor:
        """The coefficient of ε."""
        return self.R1

    @property
    def S2(self) -> Tensor:
        """The coefficient of ε²."""
        return self.second

    @property
    def curvature(self) -> Tensor:
        """The part of S2 with ∇²Φ."""
        return self.R2 + self.R2_add + self.R2_mult

    @property
    def residual(self) -> Tensor:
        """The part of S2 with ∂Φ·∇²f. It is zero almost everywhere for piecewise-linear heads."""
        return self.R3 + self.R3_add + self.R3_mult

    @property
    def data(self) -> Tensor:
        """The part of S2 from mixing."""
        return self.R2 + self.R3

    @property
    def additive(self) -> Tensor:
        """The part of S2 from additive noise."""
        return self.R2_add + self.R3_add

    @property
    def multiplicative(self) -> Tensor:
        """The part of S2 from multiplicative noise."""
        return self.R2_mult + self.R3_mult

    def size(self, order: int) -> float:
        """The sum of the absolute values of the terms of this order, but at least the size of rounding errors.

        S0 and S1 of equal branches are 0. `judge` multiplies the size by 1e-6, so the minimum is 1e8 rounding errors.
        """
        known = [super(StabilityTerms, self).size(k) for k in range(3)]
        floor = 1e8 * torch.finfo(self.standard.dtype).eps * max(known)
        return max(known[order], floor) if order < 3 else super().size(order)

    def to_dict(self) -> dict[str, float]:
        """S0, S1, S2, the parts of S2 by derivative and by source, and C3, as floats."""
        names = ("S0", "S1", "S2", "curvature", "residual", "data", "additive", "multiplicative", "C3")
        return {name: float(getattr(self, name).detach()) for name in names if getattr(self, name) is not None}


@dataclass(frozen=True)
class _Expanded:
    """The heads of the branches at their features, with the derivatives of Φ there."""

    at: list[Linearization]
    value: Tensor  # Φ, (n,)
    slopes: list[Tensor]  # ∂_jΦ, m of (n, K)
    curvature: Tensor  # ∇²Φ, (n, m K, m K)

    @classmethod
    def of(cls, branches: Branches) -> _Expanded:
        at = [linearize(branches.branch_head, g) for g in branches.features.unbind(1)]
        outputs = torch.stack([a.outputs for a in at], dim=1).flatten(1)
        slope = branches.loss.gradient(outputs, branches.labels).unflatten(1, (len(at), -1))
        return cls(
            at=at,
            value=branches.loss(outputs, branches.labels),
            slopes=[s.contiguous() for s in slope.unbind(1)],
            curvature=branches.loss.hessian(outputs, branches.labels),
        )

    def own_blocks(self) -> Tensor:
        """∇²Φ without the blocks across branches."""
        m = len(self.at)
        same = torch.eye(m, dtype=torch.bool, device=self.curvature.device)
        size = self.curvature.shape[1] // m
        return self.curvature * same.repeat_interleave(size, 0).repeat_interleave(size, 1)

    def sweep(self, directions: Tensor) -> tuple[Tensor, Tensor]:
        """`J_j v^j` `(s, n, m, K)` and `∂_jΦ·∇²f[v^j, v^j]` `(s, n, m)` for directions `(s, n or 1, m, *feature)`."""
        tangents, hessian_forms = [], []
        for j, (at, slope) in enumerate(zip(self.at, self.slopes, strict=True)):
            tangent, form = at.sweep(directions[:, :, j], None if at.piecewise_linear else slope)
            tangents.append(tangent)
            hessian_forms.append(tangent.new_zeros(tangent.shape[:2]) if form is None else form)
        return torch.stack(tangents, dim=2), torch.stack(hessian_forms, dim=2)


def _forms(curvature: Tensor, tangents: Tensor) -> Tensor:
    """`Σ_s tᵀ H t` for each sample, `(n,)`, where the tangents t are `(s, n, m, K)`."""
    return torch.einsum("snp,npq,snq->n", tangents.flatten(2), curvature, tangents.flatten(2))


def _second_order(branches: Branches, expanded: _Expanded) -> dict[str, Sequence[Tensor]]:
    """`E (J e)ᵀ∇²Φ(J e)` and `E Σ_j ∂_jΦ·∇²f[e^j, e^j]` for each sample, `(n,)`, by source, for unit scales."""
    g = branches.features
    n, m = g.shape[:2]
    block = max(1, BLOCK_NUMBERS // expanded.curvature[:, 0].numel())
    found = {}
    sources = branches.law.scales
    if "data" in sources:
        drift = (g.mean(0) - g).unsqueeze(0)
        spread = compressed(centered_features(g).flatten(1)).reshape(-1, 1, *g.shape[1:])
        curvature = residual = g.new_zeros(n)
        for part in (drift, *spread.split(block)):
            tangents, hessian_forms = expanded.sweep(part)
            curvature = curvature + _forms(expanded.curvature, tangents)
            residual = residual + hessian_forms.sum((0, 2))
        found["data"] = curvature, residual
    noisy = [name for name in ("additive", "multiplicative") if name in sources]
    if noisy:
        curvature = expanded.curvature if branches.shared_noise else expanded.own_blocks()
        totals = {name: [g.new_zeros(n), g.new_zeros(n)] for name in noisy}
        d = g[0, 0].numel()
        for coordinates in torch.arange(d, device=g.device).split(min(block, COORDINATE_BLOCK)):
            units = unit_vectors(g[:, 0], coordinates).reshape(-1, 1, 1, *g.shape[2:])
            tangents, hessian_forms = expanded.sweep(units.expand(-1, -1, m, *g.shape[2:]))
            for name in noisy:
                weight = 1.0 if name == "additive" else g.flatten(2)[:, :, coordinates].movedim(-1, 0)
                scaled = tangents * weight.unsqueeze(-1) if isinstance(weight, Tensor) else tangents
                totals[name][0] = totals[name][0] + _forms(curvature, scaled)
                totals[name][1] = totals[name][1] + (weight**2 * hessian_forms).sum((0, 2))
        found |= totals
    return found


def _noise_slope(branches: Branches, block_rows: int) -> Tensor:
    """The derivative along ḡ - g of the noise part of `D²Φ`, levels included, as a mean over the samples, 0-dim."""
    g = branches.features
    basis = coordinate_basis(g[:, :1] if branches.shared_noise else g)
    basis = basis.expand(-1, *g.shape[1:])
    drift = g.mean(0) - g
    scales = branches.law.scales

    def moved(h: Tensor, unit: Tensor, rows: Tensor) -> Tensor:
        def noise(z: Tensor) -> Tensor:
            total = z.new_zeros(())
            for name, direction in (("additive", unit), ("multiplicative", unit * z)):
                if name in scales:
                    form = directional_derivatives(lambda q: branches.losses(q, rows), z, direction, 2)[2]
                    total = total + scales[name] * form
            return total

        return jvp(noise, (h,), (drift[rows],))[1]

    return mapped_over_directions(moved, g, basis, block_rows=block_rows).mean()


def cubic_coefficient(branches: Branches) -> Tensor:
    r"""C3, the coefficient of ε³, exact over all pairs and for noise with zero third moments (book: eq-jsd-expansion).

    $$ C_3 = \frac1n \sum_i \Big\{ \frac{m_3}{6} \mathbb E_r D^3[v, v, v] + m_1 \frac{d}{dt}\Big|_0
       S_{2,i}^{noise}\big(g_i + t (\bar g - g_i)\big) \Big\} $$

    The noise acts on features that are mixed already. Its part of S2 is therefore taken at the mixed point; for
    multiplicative noise, this accounts for the ε² part of the perturbation.
    """
    if not branches.mixing.mixes:
        return branches.features.new_zeros(())
    rows = branches.block_rows(passes=8)
    total = branches.mixing.moment(3) / 6 * pair_cubic(branches).mean()
    if branches.noises != (None, None):
        total = total + branches.mixing.moment(1) * _noise_slope(branches, rows)
    return total


def branch_terms(branches: Branches, *, remainder: bool = True) -> StabilityTerms:
    """The terms of one setting, for any loss of its branches (book: eq-jsd-second)."""
    expanded, scales = _Expanded.of(branches), branches.law.scales
    zero = expanded.value.new_zeros(())
    terms = {"R1": zero} | {order + suffix: zero for suffix in SOURCES.values() for order in ("R2", "R3")}
    if "data" in scales:
        drift = (branches.features.mean(0) - branches.features).unbind(1)
        pulled = (
            (at.pullback(slope) * at.propagate(v.unsqueeze(0))[0]).sum(1).mean()
            for at, slope, v in zip(expanded.at, expanded.slopes, drift, strict=True)
        )
        terms["R1"] = branches.mixing.moment(1) * sum(pulled, zero)
    for name, parts in _second_order(branches, expanded).items():
        for order, form in zip(("R2", "R3"), parts, strict=True):
            terms[order + SOURCES[name]] = scales[name] * form.mean()
    third = cubic_coefficient(branches) if remainder else None
    return StabilityTerms(standard=expanded.value.mean(), C3=third, per_layer={}, **terms)


@undisturbed()
def equal_branches_term(branches: Branches) -> Tensor:
    r"""S2 in closed form, for equal branches with independent noise (book: eq-jsd-equal).

    $$ S_2 = \frac{1 - \sum_j \pi_j^2}{2n} \sum_i \big( \sigma_{add}^2 \mathbb E\xi^2 \operatorname{tr} J_i^\top F_i J_i
       + \sigma_{mult}^2 \mathbb E\xi^2 \operatorname{tr} \operatorname{diag}(g_i) J_i^\top F_i J_i
       \operatorname{diag}(g_i) \big), \qquad S_0 = S_1 = 0 $$

    Here `F = diag p - p pᵀ`. For m = 2 the factor `(1 - Σ π²)/2` is π1 π2. The Hessian of the JSD has the blocks
    `(π_j δ_jl - π_j π_l) F`, which vanish on directions that the branches share. Hence mixing does not contribute.

    Source: NoisyMix for m = 2 and additive noise, as stated in the book on the page on notation. The rest is ours.

    Args:
        branches: equal branches with independent noise.

    Returns:
        S2, 0-dim.

    Raises:
        ValueError: if the branches differ or share their noise.

    Example:
        >>> from nfm_theory import Law
        >>> same = Branches(lambda u: 2 * u, torch.zeros(2, 4, 1), law=Law(alpha=0, add_noise=1.0))
        >>> round(float(equal_branches_term(same)), 6)  # 2² / 4 / 4
        0.25
    """
    if branches.shared_noise or not bool((branches.features == branches.features[:, :1]).all()):
        raise ValueError("branches: expected the same inputs in every branch and a noise of its own for each.")
    features, pi = branches.features[:, 0], branches.weights
    at = linearize(branches.branch_head, features)
    loss = LOGISTIC if at.outputs.shape[-1] == 1 else CROSS_ENTROPY
    labels = torch.zeros_like(at.outputs)  # the curvature does not depend on them
    one = branches.single(features=features, loss=loss, labels=labels)
    scales = {name: scale for name, scale in branches.law.scales.items() if name != "data"}
    forms = gauss_newton_terms(one, at, scales) if scales else {}
    total = sum((scales[name] * form.mean() for name, form in forms.items()), at.outputs.new_zeros(()))
    return (1 - (pi**2).sum()).to(total) * total
