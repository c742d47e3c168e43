"""The parts of the adversarial bound, measured on a model: radii, regularizer, slack and assumptions (theory §5)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..calculus.derivatives import jacobian_rows
from ..calculus.engine import linearize
from ..calculus.forward_mode import jvp
from ..calculus.replacements import exact_derivatives
from ..setting.problem import Problem
from .bound_report import Assumption
from .guards import raise_if_cut
from .label_margins import margin_objectives

RADII = ("sharp", "paper", "mean")
#: A measure of homogeneity, centering or the Hessian counts as 0 below this multiple of the root of the precision.
_ROUNDING = 10.0
_POWER_STEPS = 12


@dataclass(frozen=True)
class Measured:
    """The parts of the bound that do not depend on ε.

    Attributes:
        problem: the setting.
        outputs: outputs f, `(n, K)`.
        objectives: coefficients of the outputs in the margins, `(n, J, K)`.
        margins: margins m, or for the radius "mean" their change along g - ḡ, `(n, J)`.
        gradients: gradients of the margins in the features, `(n, J, d)`.
        unit_radius: ρ / ε for each kind of radius, `(n,)`.
        regularizer: L_reg / ε².
        slack: coefficients of ε and ε² in the predicted slack.
        assumptions: the assumptions, as they were measured.
        kind: kind of radius that was chosen.
    """

    problem: Problem
    outputs: Tensor
    objectives: Tensor
    margins: Tensor
    gradients: Tensor
    unit_radius: dict[str, Tensor]
    regularizer: float
    slack: tuple[float, float]
    assumptions: tuple[Assumption, ...]
    kind: str


def _hessian_norm(problem: Problem, objectives: Tensor, gradients: Tensor, generator) -> float:
    """The largest curvature of a margin relative to its gradient, `‖∇²m‖ ‖g‖ / ‖∇m‖`; power iteration, from below."""
    g = problem.features
    c = objectives[:, 0]

    def slope(z: Tensor) -> Tensor:
        return torch.func.grad(lambda u: (problem.head(u) * c).sum())(z)

    v = torch.randn(g.shape, generator=generator, dtype=g.dtype).to(g.device)
    size = torch.zeros(len(g), dtype=g.dtype, device=g.device)
    with exact_derivatives():
        for _ in range(_POWER_STEPS):
            v = v / v.flatten(1).norm(dim=1).clamp(min=1e-30).reshape(-1, *[1] * (g.ndim - 1))
            v = jvp(slope, (g,), (v,))[1].detach()
            size = v.flatten(1).norm(dim=1)
    scale = g.flatten(1).norm(dim=1) / gradients[:, 0].norm(dim=1).clamp(min=1e-30)
    return float((size * scale).max())


def _regularizer(problem: Problem, rows: Tensor, curvature: Tensor, centered: bool) -> float:
    """The regularizer L_reg / ε², from the rows of the Jacobian, `(n, K, d)`."""
    scales, g = problem.law.scales, problem.features.flatten(1)
    total = rows.new_zeros(len(g))
    forms = lambda t: torch.einsum("iks,ikl,ils->i", t, curvature, t)  # noqa: E731
    if "data" in scales:
        partners = g - g.mean(0) if centered else g
        for block in partners.split(256):
            total = total + scales["data"] * forms(rows @ block.T) / len(g)
    if "additive" in scales:
        total = total + scales["additive"] * forms(rows)
    if "multiplicative" in scales:
        total = total + scales["multiplicative"] * forms(rows * g.unsqueeze(1))
    return float(total.mean())


def measure(problem: Problem, kind: str, seed: int) -> Measured:
    """Measure margins, radii and assumptions.

    Args:
        problem: the setting.
        kind: kind of radius, see `RADII`.
        seed: random seed of the power iteration for the Hessian.
    """
    g = problem.features.flatten(1)
    at = linearize(problem.head, problem.features, differentiable=False)
    outputs = at.outputs
    objectives = margin_objectives(outputs, problem.labels, problem.loss)
    with exact_derivatives():
        rows = jacobian_rows(problem.head, problem.features).flatten(2).detach()
    gradients = objectives @ rows
    steepness = gradients.norm(dim=2)
    if not steepness.any():  # else the radii would be as large as numbers get
        raise_if_cut(problem.head, problem.features, -problem.features)
    margins = (objectives * outputs.unsqueeze(1)).sum(2)
    along = (rows @ (g - g.mean(0)).unsqueeze(-1)).squeeze(-1)
    reach = (objectives * along.unsqueeze(1)).sum(2)
    size, d = g.norm(dim=1), g.shape[1]
    c = float(size.min()) / math.sqrt(d)
    m1 = problem.mixing.moment(1)
    floor = torch.finfo(g.dtype).tiny
    cosine = (gradients @ g.unsqueeze(-1)).squeeze(-1).abs() / (steepness * size.unsqueeze(1)).clamp(min=floor)
    unit_radius = {
        "sharp": m1 * (margins.abs() / steepness.clamp(min=floor)).amin(1),
        "paper": m1 * c * math.sqrt(d) * cosine.amin(1),
        "mean": m1 * (reach.abs() / steepness.clamp(min=floor)).amin(1),
    }
    used, vector = (reach, along) if kind == "mean" else (margins, outputs)
    curvature = problem.loss.hessian(outputs, problem.labels)
    m2 = problem.mixing.moment(2)
    slope = problem.loss.gradient(outputs, problem.labels)  # p - y
    steepest = (slope.unsqueeze(1) @ rows).squeeze(1)
    push = steepest.norm(dim=1)
    across = (rows @ (steepest / push.clamp(min=floor).unsqueeze(1)).unsqueeze(-1)).squeeze(-1)
    form = lambda t: torch.einsum("ik,ikl,il->i", t, curvature, t)  # noqa: E731
    ball = unit_radius[kind]
    first = float((-m1 * (slope * vector).sum(1) - ball * push).mean())
    second = float((m2 * form(vector) - ball**2 * form(across)).mean()) / 2
    tolerance = _ROUNDING * torch.finfo(g.dtype).eps ** 0.5
    linear = (rows @ g.unsqueeze(-1)).squeeze(-1)
    homogeneity = float(((outputs - linear).norm(dim=1) / outputs.norm(dim=1).clamp(min=floor)).max())
    hessian = 0.0
    if not at.piecewise_linear:
        hessian = _hessian_norm(problem, objectives, gradients, torch.Generator().manual_seed(seed))
    centring = float(g.mean(0).norm() / (size**2).mean().sqrt().clamp(min=floor))
    right = (used >= 0).all(1)
    wanted = kind != "mean"
    assumptions = (
        Assumption(
            "homogeneity", "max |f - ∇f·g| / |f|: 0 without biases", homogeneity, homogeneity <= tolerance, wanted
        ),
        Assumption("Hessian", "max ‖∇²m‖ ‖g‖ / ‖∇m‖: 0 if piecewise linear", hessian, hessian <= tolerance, True),
        Assumption("centring", "‖mean g‖ / rms ‖g‖: 0", centring, centring <= tolerance, wanted),
        Assumption(
            "Θ", "share of examples on the right side: 1", float(right.double().mean()), bool(right.all()), True
        ),
        Assumption("gradient", "min ‖∇m‖: positive", float(steepness.min()), bool(steepness.min() > 0), True),
        Assumption("norm", "c = min ‖g‖ / √d: positive", c, c > 0, kind == "paper"),
    )
    return Measured(
        problem, outputs, objectives, used, gradients, unit_radius,
        _regularizer(problem, rows, curvature, kind == "mean"), (first, second), assumptions, kind,
    )  # fmt: skip
