r"""The stability loss of NoisyMix, its expansion in the scale of mixing and noise, and the verdict on it.

$$ L_{JSD}(\varepsilon) = S_0 + \varepsilon S_1 + \varepsilon^2 S_2 + \varepsilon^3 C_3 + O(\varepsilon^4)
   \qquad \text{(book: eq-jsd-expansion)} $$

| term | value, averaged over i | here |
|---|---|---|
| S0 | `Φ(u)`, Φ the JSD of all logits jointly | `StabilityTerms.S0` |
| S1 | `m1 Σ_j ∂_jΦ·J_j (ḡ^j - g^j)` | `.S1` |
| S2, curvature of Φ | `½ E (J e)ᵀ ∇²Φ (J e)`, J e stacked over the branches | `.curvature` |
| S2, curvature of f | `½ E Σ_j ∂_jΦ·∇²f[e^j, e^j]` | `.residual` |
| S2 by source | `m2 E_r v vᵀ`, `σ² E ξ ξᵀ`, `σ² E (ξ⊙g)(ξ⊙g)ᵀ` for `E e eᵀ` | `.data`, `.additive`, `.multiplicative` |
| C3 | `m3/6 E_r D³[v, v, v] + m1 D(noise part of S2)[ḡ - g]` | `.C3` |

The blocks ∂²Φ/∂u_j∂u_l across branches act on data directions always, on the noise only if it is shared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import jvp

from ..calculus.derivatives import directional_derivatives, mapped_over_directions
from ..calculus.directions import centred_features, compressed, coordinate_basis
from ..calculus.engine import Linearization, linearize
from ..setting.branches import GAMMA, Branches, build_layers
from ..setting.divergence import checked_weights
from ..setting.laws import NoiseLaw
from ..setting.pointwise import CROSS_ENTROPY, LOGISTIC
from ..setting.problem import build_problem
from ..setting.results import TaylorTerms
from ..verification.report import ExpansionReport
from ..verification.verify import verify_problems
from .second_order import COORDINATE_BLOCK, SOURCES, active_sources, gauss_newton_terms
from .terms import pair_cubic

#: Numbers in a block of tangents.
BLOCK_NUMBERS = 2**22
OBJECTIVES = {"stability": "stability loss", "noisymix": "NoisyMix loss"}


@dataclass(frozen=True)
class StabilityTerms(TaylorTerms):
    r"""The expansion `S0 + ε S1 + ε² S2 + ε³ C3 + O(ε⁴)` of a loss of several branches (book: eq-jsd-expansion).

    The fields are those of `TaylorTerms`: `R2*` hold the curvature of Φ, blocks across branches included, `R3*` of f.
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
        """Part of S2 with ∇²Φ."""
        return self.R2 + self.R2_add + self.R2_mult

    @property
    def residual(self) -> Tensor:
        """Part of S2 with ∂Φ·∇²f; zero almost everywhere for piecewise-linear heads."""
        return self.R3 + self.R3_add + self.R3_mult

    @property
    def data(self) -> Tensor:
        """Part of S2 from mixing."""
        return self.R2 + self.R3

    @property
    def additive(self) -> Tensor:
        """Part of S2 from additive noise."""
        return self.R2_add + self.R3_add

    @property
    def multiplicative(self) -> Tensor:
        """Part of S2 from multiplicative noise."""
        return self.R2_mult + self.R3_mult

    def size(self, order: int) -> float:
        """As `TaylorTerms.size`, not below rounding (times 1e6, see `judge`): S0 and S1 of equal branches are 0."""
        known = [super(StabilityTerms, self).size(k) for k in range(3)]
        floor = 1e8 * torch.finfo(self.standard.dtype).eps * max(known)
        return max(known[order], floor) if order < 3 else super().size(order)

    def to_dict(self) -> dict[str, float]:
        """S0, S1, S2, its parts in both ways of cutting, and C3 as plain floats."""
        names = ("S0", "S1", "S2", "curvature", "residual", "data", "additive", "multiplicative", "C3")
        return {name: float(getattr(self, name).detach()) for name in names if getattr(self, name) is not None}


@dataclass(frozen=True)
class _Expanded:
    """Heads of the branches at their features with the derivatives of Φ there."""

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
        """`J_j v^j` `(s, n, m, K)` and `∂_jΦ·∇²f[v^j, v^j]` `(s, n, m)` of directions `(s, n or 1, m, *feature)`."""
        tangents, bends = [], []
        for j, (at, slope) in enumerate(zip(self.at, self.slopes, strict=True)):
            flat = at.piecewise_linear
            tangent, bend = at.sweep(directions[:, :, j], None if flat else slope)
            tangents.append(tangent)
            bends.append(tangent.new_zeros(tangent.shape[:2]) if flat else bend)
        return torch.stack(tangents, dim=2), torch.stack(bends, dim=2)


def _forms(curvature: Tensor, tangents: Tensor) -> Tensor:
    """`Σ_s tᵀ H t` per sample, `(n,)`, of tangents `(s, n, m, K)`."""
    return torch.einsum("snp,npq,snq->n", tangents.flatten(2), curvature, tangents.flatten(2))


def _second_order(branches: Branches, expanded: _Expanded) -> dict[str, Sequence[Tensor]]:
    """Of each source with unit scale: `E (J e)ᵀ∇²Φ(J e)` and `E Σ_j ∂_jΦ·∇²f[e^j, e^j]`, per sample `(n,)`."""
    g = branches.features
    n, m = g.shape[:2]
    block = max(1, BLOCK_NUMBERS // expanded.curvature[:, 0].numel())
    found = {}
    sources = active_sources(branches)
    if "data" in sources:
        drift = (g.mean(0) - g).unsqueeze(0)
        spread = compressed(centred_features(g).flatten(1)).reshape(-1, 1, *g.shape[1:])
        form = bend = g.new_zeros(n)
        for part in (drift, *spread.split(block)):
            tangents, bends = expanded.sweep(part)
            form, bend = form + _forms(expanded.curvature, tangents), bend + bends.sum((0, 2))
        found["data"] = form, bend
    noisy = [name for name in ("additive", "multiplicative") if name in sources]
    if noisy:
        curvature = expanded.curvature if branches.shared_noise else expanded.own_blocks()
        totals = {name: [g.new_zeros(n), g.new_zeros(n)] for name in noisy}
        d = g[0, 0].numel()
        for coordinates in torch.arange(d, device=g.device).split(min(block, COORDINATE_BLOCK)):
            units = g.new_zeros(len(coordinates), d)
            units[torch.arange(len(coordinates)), coordinates] = 1.0
            tangents, bends = expanded.sweep(units.reshape(-1, 1, 1, *g.shape[2:]).expand(-1, -1, m, *g.shape[2:]))
            for name in noisy:
                weight = 1.0 if name == "additive" else g.flatten(2)[:, :, coordinates].movedim(-1, 0)
                scaled = tangents if name == "additive" else tangents * weight.unsqueeze(-1)
                totals[name][0] = totals[name][0] + _forms(curvature, scaled)
                totals[name][1] = totals[name][1] + (weight**2 * bends).sum((0, 2))
        found |= totals
    return found


def _noise_slope(branches: Branches, block_rows: int) -> Tensor:
    """Half the noise part of `D²Φ`, all levels included, moved along ḡ - g: mean over the samples, 0-dim."""
    g = branches.features
    basis = coordinate_basis(g[:, :1] if branches.shared_noise else g)
    basis = basis.expand(-1, *g.shape[1:])
    drift = g.mean(0) - g
    scales = active_sources(branches)

    def moved(h: Tensor, unit: Tensor, rows: Tensor) -> Tensor:
        def noise(z: Tensor) -> Tensor:
            total = 0.0
            for name, direction in (("additive", unit), ("multiplicative", unit * z)):
                if name in scales:
                    form = directional_derivatives(lambda q: branches.losses(q, rows), z, direction, 2)[2]
                    total = total + scales[name] * form
            return total

        return jvp(noise, (h,), (drift[rows],))[1]

    return mapped_over_directions(moved, g, basis, block_rows=block_rows).mean()


def cubic_coefficient(branches: Branches, *, memory_limit: int | None = None) -> Tensor:
    r"""C3, the coefficient of ε³, exact over all pairs and for noise with zero third moments (book: eq-jsd-expansion).

    $$ C_3 = \frac1n \sum_i \Big\{ \frac{m_3}{6} \mathbb E_r D^3[v, v, v] + m_1 \frac{d}{dt}\Big|_0
       S_{2,i}^{noise}\big(g_i + t (\bar g - g_i)\big) \Big\} $$

    The noise acts on features that are mixed already; so its part of S2 moves along with the base point, which for
    multiplicative noise is the ε² part of the perturbation.

    Args:
        branches: the setting.
        memory_limit: bytes that a block of head evaluations may take.
    """
    if not branches.mixing.mixes:
        return branches.features.new_zeros(())
    rows = branches.block_rows(memory_limit, passes=8)
    total = branches.mixing.moment(3) / 6 * pair_cubic(branches, rows)
    if branches.active_laws != (None, None):
        total = total + branches.mixing.moment(1) * _noise_slope(branches, rows)
    return total


def branch_terms(branches: Branches, *, remainder: bool = True, memory_limit: int | None = None) -> StabilityTerms:
    """`stability_terms` of one setting, of whatever loss of its branches (book: eq-jsd-second)."""
    expanded, scales = _Expanded.of(branches), active_sources(branches)
    zero = expanded.value.new_zeros(())
    terms = {"R1": zero} | {order + suffix: zero for suffix in SOURCES.values() for order in ("R2", "R3")}
    if "data" in scales:
        drift = (branches.features.mean(0) - branches.features).unbind(1)
        pulled = (
            (at.pullback(slope) * at.enter(v.unsqueeze(0))[0]).sum(1).mean()
            for at, slope, v in zip(expanded.at, expanded.slopes, drift, strict=True)
        )
        terms["R1"] = branches.mixing.moment(1) * sum(pulled)
    for name, parts in _second_order(branches, expanded).items():
        for order, form in zip(("R2", "R3"), parts, strict=True):
            terms[order + SOURCES[name]] = scales[name] * form.mean()
    third = cubic_coefficient(branches, memory_limit=memory_limit) if remainder else None
    return StabilityTerms(standard=expanded.value.mean(), C3=third, **terms)


def stability_terms(
    model: nn.Module | Callable[[Tensor], Tensor],
    xs: Tensor | Sequence[Tensor],
    y: Tensor | None = None,
    *,
    layer: str | Sequence[str] = "",
    remainder: bool = True,
    memory_limit: int | None = None,
    **options,
) -> StabilityTerms:
    r"""Terms of the second-order expansion of the stability loss, exact over all n² pairs (book: eq-jsd-second).

    $$ S_2 = \tfrac12 \mathbb E \Big[ (J e)^\top \nabla^2\Phi\, (J e)
       + \sum_j \partial_j\Phi \cdot \nabla^2 f[e^j, e^j] \Big] $$

    Differentiable in the parameters of the model; wrap in `torch.no_grad()` if only values are wanted.

    Source: NoisyMix, Theorem 2, as stated in `notation`, for any number of branches; C3 is this project's.

    Args:
        model: network in eval mode, or any callable from inputs to outputs.
        xs: branches `(m, n, *input)`, or m tensors: clean inputs, then augmented copies.
        y: labels, for `loss="noisymix"`.
        layer: layer that is perturbed; a sequence averages over layers.
        remainder: also predict `C3`, which costs third derivatives along all pairs.
        memory_limit: bytes that a block of head evaluations may take.
        **options: as `build_branches`.

    Raises:
        ValueError: if something does not fit; the message says what to do.
        TypeError: for arguments of the wrong kind.

    Example:
        >>> x = torch.zeros(2, 1, 3, dtype=torch.float64)  # equal branches: π1 π2 σ² tr F
        >>> round(float(stability_terms(lambda u: u, x, add_noise=1.0, alpha=0).S2), 12) == round(2 / 3 / 4, 12)
        True
    """
    found = {
        b.layer: branch_terms(b, remainder=remainder, memory_limit=memory_limit)
        for b in build_layers(model, xs, y, layer=layer, **options)
    }
    return next(iter(found.values())) if len(found) == 1 else StabilityTerms.average(found)


def verify_stability(
    model: nn.Module | Callable[[Tensor], Tensor],
    xs: Tensor | Sequence[Tensor],
    y: Tensor | None = None,
    *,
    layer: str | Sequence[str] = "",
    terms: StabilityTerms | None = None,
    verification: Mapping | None = None,
    **options,
) -> ExpansionReport:
    """Verify the second-order expansion of the stability loss with its predicted remainder (book: eq-jsd-expansion).

    The evidence is that of `verify_expansion`; the leading order is 3, and 4 where nothing is mixed.

    Args:
        model: network in eval mode, or any callable from inputs to outputs.
        xs: branches `(m, n, *input)`, or m tensors.
        y: labels, for `loss="noisymix"`.
        layer: layer that is perturbed, or several, over which everything is averaged.
        terms: the terms to verify; `None` computes them with `stability_terms`.
        verification: options of `verify_expansion`: `eps`, `order`, `method`, `remainder_form`, `samples`, `seed`,
            `max_rows`, `memory_limit`, `progress`.
        **options: as `build_branches`.

    Returns:
        `ExpansionReport`; `verdict` is `"holds"`, `"refuted"` or `"undecided"`, `reason` says why.

    Raises:
        ValueError: if something does not fit, nothing is perturbed, or nothing tells the branches apart.
        TypeError: for arguments of the wrong kind.

    Example:
        >>> xs = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3, 1)
        >>> verify_stability(lambda u: u, xs).verdict
        'holds'
    """
    settings = build_layers(model, xs, y, layer=layer, **options)
    first, loss = settings[0], options.get("loss", "stability")
    alike = first.shared_noise or first.active_laws == (None, None)
    if loss == "stability" and alike and bool((first.features == first.features[:, :1]).all()):
        raise ValueError("xs: nothing tells the branches apart, the stability loss is 0 at every scale.")
    return verify_problems(
        settings,
        terms=terms,
        find_terms=branch_terms,
        layer=layer,
        facts={
            "objective": OBJECTIVES.get(loss, "loss of the branches"),
            "branches": first.branches,
            "weights": first.weights.tolist(),
            "shared_noise": first.shared_noise,
            "features": tuple(first.features.shape[2:]),
        }
        | ({"gamma": options.get("gamma", GAMMA)} if loss == "noisymix" else {}),
        **dict(verification or {}),
    )


def equal_branches_term(
    model: nn.Module | Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    weights: Tensor | Sequence[float] = (0.5, 0.5),
    add_noise: float = 0.0,
    mult_noise: float = 0.0,
    noise: str | NoiseLaw | tuple[NoiseLaw, NoiseLaw] = "normal",
    layer: str = "",
    **options,
) -> Tensor:
    r"""S2 of equal branches with independent noise, in closed form (book: eq-jsd-equal).

    $$ S_2 = \frac{1 - \sum_j \pi_j^2}{2n} \sum_i \big( \sigma_{add}^2 \mathbb E\xi^2 \operatorname{tr} J_i^\top F_i J_i
       + \sigma_{mult}^2 \mathbb E\xi^2 \operatorname{tr} \operatorname{diag}(g_i) J_i^\top F_i J_i
       \operatorname{diag}(g_i) \big), \qquad S_0 = S_1 = 0 $$

    with `F = diag p - p pᵀ`; for m = 2 the factor `(1 - Σ π²)/2` is π1 π2. The Hessian of the JSD has the blocks
    `(π_j δ_jl - π_j π_l) F`, which vanish on directions that the branches share: mixing does not enter, and noise that
    is shared gives 0.

    Source: as stated in `notation` for m = 2 and additive noise; the rest is this project's.

    Args:
        model: network in eval mode, or any callable from inputs to outputs.
        x: the inputs of every branch, `(n, *input)`.
        weights: π.
        add_noise: σ_add.
        mult_noise: σ_mult.
        noise: law of the noise.
        layer: layer that is perturbed.
        **options: `params`.

    Returns:
        S2, 0-dim.

    Raises:
        ValueError: if something does not fit.

    Example:
        >>> round(float(equal_branches_term(lambda u: 2 * u, torch.zeros(4, 1), add_noise=1.0)), 6)  # 2² / 4 / 4
        0.25
    """
    pi = checked_weights(weights, len(weights))
    problem = build_problem(
        model, x, x.new_zeros(len(x)), layer=layer, add_noise=add_noise, mult_noise=mult_noise, noise=noise, alpha=0.0,
        loss=lambda outputs, labels: outputs.sum(-1), **options,
    )  # fmt: skip
    at = linearize(problem.head, problem.features)
    problem = replace(problem, loss=LOGISTIC if at.outputs.shape[-1] == 1 else CROSS_ENTROPY)
    scales = active_sources(problem)
    forms = gauss_newton_terms(problem, at, scales) if scales else {}
    total = sum((scales[name] * form.mean() for name, form in forms.items()), at.outputs.new_zeros(()))
    return (1 - (pi**2).sum()).to(total) * total
