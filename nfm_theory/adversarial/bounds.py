r"""The adversarial bound of NFM and Mixup, checked on a model: assumptions measured, both sides enclosed (theory §5).

$$ L_{NFM}(\varepsilon) \ge \frac1n \sum_i \max_{\|\delta\|_2 \le \rho_i} \ell(f(g_i + \delta), y_i) + L_{reg}
   - o(\varepsilon^2) \qquad \text{(book: eq-adversarial-bound)} $$

With margins `m_j = f_y - f_j` (one margin `±f` if K = 1), gradients ∇m_j in the features, d their number:

| `radius=` | ρ_i | needs |
|---|---|---|
| `"sharp"` | `ε m1 min_j \|m_j\| / ‖∇m_j‖` (book: eq-sharp-radius) | homogeneous, no Hessian, centred, Θ |
| `"paper"` | `ε m1 c √d min_j \|cos(∇m_j, g_i)\|`, at most the sharp one | the same and `‖g_i‖ >= c √d` |
| `"mean"` | `ε m1 min_j \|∇m_j·(g_i - ḡ)\| / ‖∇m_j‖` | no Hessian; Θ for `∇m_j·(g_i - ḡ)` in place of m_j |

Proved, inside one linear region and for any number of classes: each margin falls by at most `ρ_i ‖∇m_j‖ <= ε m1 m_j`
in the ball, so that the maximum is at most the loss with all margins multiplied by `1 - ε m1`; and the expansion of
L_NFM to second order is L_reg plus that loss plus

$$ \frac{\varepsilon^2 \operatorname{Var}_{\tilde D}(\lambda)}{2n} \sum_i s_i^\top F_i\, s_i, \qquad F = \nabla^2 h,
   \quad s_i = f_i \ \text{or, for "mean"}, \ J_i (g_i - \bar g) \qquad \text{(book: eq-bound-slack)} $$

With one margin the sharp maximum is attained, and this is the slack to O(ε³). With several the margins are not
smallest at one point, and the slack starts at order ε. For every radius it is, with a = Jᵀ(p - y), u = a/‖a‖, r = ρ/ε,

$$ \frac{\varepsilon}{n} \sum_i \big[-m_1 (p_i - y_i)\cdot s_i - r_i \|a_i\|\big]
   + \frac{\varepsilon^2}{2n} \sum_i \big[m_2\, s_i^\top F_i s_i - r_i^2 (J_i u_i)^\top F_i (J_i u_i)\big]
   + O(\varepsilon^3), $$

which is what is predicted. Everything else is measured: whether the inequality holds at a given ε on a given model,
which no expansion says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..losses.nfm_loss import DEFAULT_SAMPLES, nfm_loss
from ..setting.problem import build_problem
from ..setting.quadrature import GridTooLargeError
from ..setting.results import Estimate
from .attacks import pgd_attack
from .bound_report import BoundReport, ValidityRadius
from .bound_terms import RADII, measure
from .certificates import VERDICTS, between, steps_certificate
from .linear_bounds import check_ball
from .relaxations import Step, network_steps

#: ε that `validity_radius` tries: 2⁻¹⁰ to 1.
SCALES = tuple(2.0**-k for k in range(10, -1, -1))


def left_side(
    evaluate: Callable[..., Estimate],
    *,
    method: str,
    samples: int,
    max_rows: int,
    generator: torch.Generator,
) -> tuple[float, float, str]:
    """A loss by quadrature where that is affordable, otherwise by Monte Carlo: value, error, how it was computed.

    Args:
        evaluate: of a method and its options.
        method: `"exact"`, `"monte_carlo"` or `"auto"`.
        samples: evaluations of the head for Monte Carlo.
        max_rows: largest deterministic rule.
        generator: seeds Monte Carlo.
    """
    if method != "monte_carlo":
        try:
            values = [float(evaluate("exact", num_lam=nodes, max_rows=max_rows).value) for nodes in (24, 16)]
            return values[0], abs(values[0] - values[1]), "exact by quadrature"
        except GridTooLargeError:
            if method == "exact":
                raise
    found = evaluate("monte_carlo", samples=samples, generator=generator)
    return float(found.value), 4 * float(found.stderr), found.method


class _Check:
    """A measured model, ready to be checked at any ε."""

    def __init__(self, model, x, y, *, layer, radius, method, certificate, samples, max_rows, steps, restarts, seed,
                 slope_steps, progress, control_variate="auto", **setting):  # fmt: skip
        if radius not in RADII:
            raise ValueError(f"radius: expected one of {list(RADII)}, got {radius!r}.")
        if method not in ("auto", "exact", "monte_carlo"):
            raise ValueError(f"method: expected 'auto', 'exact' or 'monte_carlo', got {method!r}.")
        self.arguments = (model, x, y)
        self.setting = {**setting, "layer": layer}
        self.method, self.samples, self.max_rows, self.seed = method, samples, max_rows, seed
        self.control_variate = control_variate
        self.attack = {"steps": steps, "restarts": restarts, "progress": progress}
        self.upper = {"method": certificate, "slope_steps": slope_steps, "progress": progress}
        problem = build_problem(model, x, y, layer=layer, **setting)
        if not problem.mixing.mixes:
            raise ValueError("alpha: the bound needs mixing, alpha > 0 and beta > 0; without it every radius is 0.")
        self.measured = measure(replace(problem, features=problem.features.detach()), radius, seed)
        self.chain, self.missing = self._chain(model, layer, setting.get("params"), certificate)

    def _chain(self, model, layer: str, params, certificate: str) -> tuple[list[Step] | None, str]:
        """The network as steps, or why there is no certificate."""
        if certificate == "none":
            return None, "no certificate was asked for"
        try:
            chain = network_steps(model, layer, params)
        except ValueError as error:
            if certificate != "auto":
                raise
            return None, str(error)
        return chain, ""

    def left(self, eps: float) -> tuple[float, float, str]:
        """L_NFM(ε), its error and how it was computed."""
        common = {**self.setting, "eps": eps, "progress": self.attack["progress"]}

        def evaluate(method: str, **evaluation) -> Estimate:
            if method == "monte_carlo":
                evaluation["control_variate"] = self.control_variate
            return nfm_loss(*self.arguments, method=method, **evaluation, **common)

        return left_side(
            evaluate, method=self.method, samples=self.samples, max_rows=self.max_rows,
            generator=torch.Generator(self.arguments[1].device).manual_seed(self.seed),
        )  # fmt: skip

    @torch.no_grad()
    def at(self, eps: float) -> BoundReport:
        """The report at ε."""
        if not 0 < eps < math.inf:
            raise ValueError(f"eps: expected a finite number > 0, got {eps!r}.")
        m = self.measured
        problem, radii = m.problem, {name: eps * value for name, value in m.unit_radius.items()}
        radius = radii[m.kind]
        left, error, how = self.left(eps)
        attack = pgd_attack(
            problem.head, problem.features, problem.labels, radius=radius, loss=problem.loss,
            generator=torch.Generator(problem.features.device).manual_seed(self.seed), **self.attack,
        )  # fmt: skip
        lower, upper, inside = attack.losses, torch.full_like(attack.losses, torch.inf), 0
        kept = {"certified": 0, "refuted": int(attack.flipped.sum()), "undecided": int((~attack.flipped).sum())}
        if self.chain is not None:
            ball = check_ball(problem.features, radius, "l2", None)
            certificate = steps_certificate(self.chain, ball, problem.labels, problem.loss, **self.upper)
            both = between(attack, certificate)
            lower, upper, inside, kept = both.lower, both.upper, int(certificate.inside.sum()), both.counts()
            how += f", upper bounds by {certificate.method}"
        binary = m.margins.shape[1] == 1
        report = BoundReport(
            verdict="undecided", reason="", layer=problem.layer, eps=float(eps), radius_kind=m.kind,
            assumptions=m.assumptions, radius=radius, paper_radius=radii["paper"], sharp_radius=radii["sharp"],
            margins=(m.objectives * m.outputs.unsqueeze(1)).sum(2).amin(1),
            standard_loss=float(problem.loss(m.outputs, problem.labels).mean()), nfm_loss=left, nfm_error=error,
            regularizer=eps**2 * m.regularizer, inner_lower=lower, inner_upper=upper,
            predicted_slack=eps * m.slack[0] + eps**2 * m.slack[1],
            inside=inside, label_kept={name: kept[name] for name in VERDICTS}, method=how, binary=binary,
        )  # fmt: skip
        return replace(report, **report.judged(torch.finfo(radius.dtype).eps, self.missing))


def adversarial_bound(
    model: nn.Module | Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    *,
    layer: str = "",
    eps: float = 0.05,
    radius: str = "sharp",
    method: str = "auto",
    certificate: str = "auto",
    samples: int = DEFAULT_SAMPLES,
    control_variate: str = "auto",
    max_rows: int = 500_000,
    steps: int = 40,
    restarts: int = 2,
    slope_steps: int = 0,
    seed: int = 0,
    progress: bool | None = None,
    **setting,
) -> BoundReport:
    r"""Both sides of the adversarial bound on a model, with every assumption measured (book: eq-adversarial-bound).

    Theory §5: NFM Theorem 2, Mixup Theorem 3.1 (`layer=""`, no noise). The inner maximum is enclosed between an attack
    and a certificate: the inequality is certified if it holds with the upper one, refuted if it fails with the lower.

    Args:
        model: network in evaluation mode; certificates need an `nn.Sequential` of the modules in `relaxations`.
        x: inputs, `(n, *input)`.
        y: hard labels.
        layer: dotted name of the layer whose output is perturbed and attacked.
        eps: ε > 0.
        radius: `"sharp"`, `"paper"` or `"mean"`, see the module.
        method: left side, `"exact"`, `"monte_carlo"` or `"auto"`: exact where it takes at most `max_rows` rows.
        certificate: as `certify`, or `"none"`; `"auto"` goes without where the model has none.
        samples: evaluations of the head for Monte Carlo.
        control_variate: of Monte Carlo, as `nfm_loss`; at large ε `"none"` is as good and saves a pilot run.
        max_rows: largest deterministic rule.
        steps: of the attack.
        restarts: of the attack.
        slope_steps: as `certify`.
        seed: of Monte Carlo and attack.
        progress: show bars; `None` for long runs on a terminal only.
        **setting: `alpha`, `beta`, `add_noise`, `mult_noise`, `noise`, `loss` (`"cross_entropy"` or `"logistic"`),
            `params`, as `nfm_loss`.

    Raises:
        ValueError: for options, losses and labels that do not fit, without mixing, and as `nfm_loss`.

    Example:
        >>> net = nn.Linear(1, 1, bias=False).double()
        >>> x, y = torch.tensor([[-1.0], [1.0]], dtype=torch.float64), torch.tensor([0, 1])
        >>> _ = net.requires_grad_(False).weight.fill_(2.0)
        >>> report = adversarial_bound(net, x, y, eps=0.001, loss="logistic")
        >>> report.verdict, round(report.slack_ratio[0], 2)
        ('certified', 1.0)
    """
    return _Check(
        model, x, y, layer=layer, radius=radius, method=method, certificate=certificate, samples=samples,
        max_rows=max_rows, steps=steps, restarts=restarts, seed=seed, slope_steps=slope_steps, progress=progress,
        control_variate=control_variate, **setting,
    ).at(eps)  # fmt: skip


def validity_radius(
    model: nn.Module | Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    *,
    layer: str = "",
    scales: Sequence[float] = SCALES,
    bisections: int = 5,
    radius: str = "sharp",
    method: str = "auto",
    certificate: str = "auto",
    samples: int = DEFAULT_SAMPLES,
    max_rows: int = 500_000,
    steps: int = 40,
    restarts: int = 2,
    slope_steps: int = 0,
    seed: int = 0,
    progress: bool | None = None,
    **setting,
) -> ValidityRadius:
    """The largest ε up to which the bound holds on a model (book: eq-adversarial-bound).

    The scales are tried from small to large until the inequality is refuted; then the end of the certified range and
    the beginning of the refuted one are located by bisection, between neighbouring scales. Nothing is said about ε
    between the scales that were tried.

    Args:
        model: as `adversarial_bound`.
        x: inputs.
        y: hard labels.
        layer: as `adversarial_bound`.
        scales: increasing ε > 0; 2⁻¹⁰, 2⁻⁹, ..., 1 if not given.
        bisections: geometric bisections of each end.
        radius: as `adversarial_bound`.
        method: as `adversarial_bound`.
        certificate: as `adversarial_bound`.
        samples: as `adversarial_bound`.
        max_rows: as `adversarial_bound`.
        steps: as `adversarial_bound`.
        restarts: as `adversarial_bound`.
        slope_steps: as `adversarial_bound`.
        seed: as `adversarial_bound`.
        progress: as `adversarial_bound`.
        **setting: as `adversarial_bound`.

    Raises:
        ValueError: as `adversarial_bound`, or if the scales do not increase.
    """
    scales = [float(e) for e in scales]
    if not scales or scales != sorted(set(scales)) or scales[0] <= 0:
        raise ValueError(f"scales: expected increasing numbers > 0, got {scales!r}.")
    check = _Check(
        model, x, y, layer=layer, radius=radius, method=method, certificate=certificate, samples=samples,
        max_rows=max_rows, steps=steps, restarts=restarts, seed=seed, slope_steps=slope_steps, progress=progress,
        **setting,
    )  # fmt: skip
    tried: dict[float, str] = {}
    for eps in scales:
        tried[eps] = check.at(eps).verdict
        if tried[eps] == "refuted":
            break
    for ended in (lambda v: v != "certified", lambda v: v == "refuted"):
        ends = [e for e in sorted(tried) if ended(tried[e])]
        before = [e for e in tried if ends and e < ends[0]]
        if not before:
            continue
        low, high = max(before), ends[0]
        for _ in range(bisections):
            middle = math.sqrt(low * high)
            tried[middle] = check.at(middle).verdict
            low, high = (low, middle) if ended(tried[middle]) else (middle, high)
    order = sorted(tried)
    verdicts = [tried[e] for e in order]
    first_bad = next((k for k, v in enumerate(verdicts) if v != "certified"), len(order))
    refuted = [e for e in order if tried[e] == "refuted"]
    return ValidityRadius(order[first_bad - 1] if first_bad else 0.0, min(refuted, default=math.inf), order, verdicts)
