r"""The adversarial bound of NFM and Mixup, checked on a model (theory §5).

$$ L_{NFM}(\varepsilon) \ge \frac1n \sum_i \max_{\|\delta\|_2 \le \rho_i} \ell(f(g_i + \delta), y_i) + L_{reg}
   - o(\varepsilon^2) \qquad \text{(book: eq-adversarial-bound)} $$

The assumptions are measured and both sides are enclosed. There are three radii, in terms of the margins
`m_j = f_y - f_j` (one margin `±f` if K = 1), of their gradients ∇m_j in the features, and of the number d of features:

| `radius=` | ρ_i | what it assumes |
|---|---|---|
| `"sharp"` | `ε m1 min_j \|m_j\| / ‖∇m_j‖` (book: eq-sharp-radius) | homogeneity, no Hessian, centering, Θ |
| `"paper"` | `ε m1 c √d min_j \|cos(∇m_j, g_i)\|`, at most the sharp one | the same, and `‖g_i‖ >= c √d` |
| `"mean"` | `ε m1 min_j \|∇m_j·(g_i - ḡ)\| / ‖∇m_j‖` | no Hessian; Θ for `∇m_j·(g_i - ḡ)` in place of m_j |

The following is proved inside one linear region, for any number of classes. In the ball each margin falls by at most
`ρ_i ‖∇m_j‖ <= ε m1 m_j`, so that the maximum is at most the loss with all margins multiplied by `1 - ε m1`. The
expansion of L_NFM to second order is the sum of L_reg, of that loss, and of

$$ \frac{\varepsilon^2 \operatorname{Var}_{\tilde D}(\lambda)}{2n} \sum_i s_i^\top F_i\, s_i, \qquad F = \nabla^2 h,
   \quad s_i = f_i \ \text{or, for "mean"}, \ J_i (g_i - \bar g) \qquad \text{(book: eq-bound-slack)} $$

With one margin the maximum with the sharp radius is attained, and this term is the slack of the bound up to O(ε³). With
several margins no single point makes all of them smallest, and the slack starts at order ε. For every radius the slack
is, with a = Jᵀ(p - y), u = a/‖a‖ and r = ρ/ε,

$$ \frac{\varepsilon}{n} \sum_i \big[-m_1 (p_i - y_i)\cdot s_i - r_i \|a_i\|\big]
   + \frac{\varepsilon^2}{2n} \sum_i \big[m_2\, s_i^\top F_i s_i - r_i^2 (J_i u_i)^\top F_i (J_i u_i)\big]
   + O(\varepsilon^3), $$

and the report gives this prediction. If the inequality holds at a given ε on a given model, no expansion can say: that
is measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch

from ..calculus.cuts import check_problem
from ..losses.loss import RTOL, loss
from ..losses.monte_carlo import DEFAULT_SAMPLES, ControlVariate
from ..setting.ambient import undisturbed
from ..setting.branches import Branches, as_problem
from ..setting.checks import one_of
from ..setting.problem import Problem
from ..setting.quadrature import GridTooLargeError, Quadrature
from ..setting.random_numbers import seed_of
from .attacks import ascend
from .balls import check_ball
from .bound_report import BoundReport, ValidityRadius
from .bound_terms import RADII, measure
from .certificates import checked_steps, steps_certificate
from .guards import attackable
from .noisymix_bound import NoisyMixBoundReport, noisymix_report
from .relaxations import Step
from .worst_cases import VERDICTS, between

Radius = Literal["sharp", "paper", "mean"]
LossMethod = Literal["auto", "exact", "monte_carlo"]
CertificateName = Literal["auto", "none", "region", "enumeration", "crown", "crown-ibp", "interval"]
#: Scales ε that `validity_radius` tries, from 2⁻¹⁰ to 1.
SCALES = tuple(2.0**-k for k in range(10, -1, -1))


@dataclass(frozen=True)
class Effort:
    """How much computation a check of the bound may spend.

    Args:
        steps: number of gradient steps of each run of the attack.
        restarts: number of runs of the attack.
        slope_steps: number of gradient steps that improve the free slopes of the CROWN certificates.
        samples: number of evaluations of the head, if the left side is computed by Monte Carlo.
        max_rows: largest number of evaluations for which the left side is computed by quadrature.
        control_variate: control variate of Monte Carlo. At large ε `"none"` is as good as the others, and saves the
            pilot run with which `"auto"` chooses.
    """

    steps: int = 40
    restarts: int = 2
    slope_steps: int = 0
    samples: int = DEFAULT_SAMPLES
    max_rows: int = 500_000
    control_variate: ControlVariate = "auto"


def left_side(
    problem: Problem, eps: float, method: LossMethod, effort: Effort, seed: int, rtol: float | None = None
) -> tuple[float, float, str]:
    """The left side of the bound: its value, an estimate of the error, and how it was computed.

    Args:
        problem: the setting.
        eps: scale ε.
        method: `"exact"` for quadrature, `"monte_carlo"`, or `"auto"` for quadrature if it takes few evaluations; with
            `rtol` also Monte Carlo, if its error is smaller.
        effort: limits of quadrature and Monte Carlo.
        seed: random seed of Monte Carlo.
        rtol: relative error up to which the quadrature is refined; `None` keeps the first rule.
    """
    found = None
    if method != "monte_carlo":
        rule = Quadrature(num_lam=24, max_rows=effort.max_rows, rtol=rtol)
        try:
            by_rule = loss(problem, eps, "exact", quadrature=rule)
        except GridTooLargeError:
            if method == "exact":
                raise
        else:
            found = float(by_rule.value), float(by_rule.error), by_rule.method.replace("deterministic", "quadrature")
            if method == "exact" or rtol is None or found[1] <= rtol * abs(found[0]):
                return found
    generator = torch.Generator(problem.features.device).manual_seed(seed)
    variate = None if isinstance(problem, Branches) and problem.shared_noise else effort.control_variate
    sampled = loss(problem, eps, "monte_carlo", samples=effort.samples, control_variate=variate, generator=generator)
    by_draws = float(sampled.value), float(sampled.error), sampled.method
    return by_draws if found is None or by_draws[1] < found[1] else found


class _Check:
    """A model whose assumptions and radii are measured, so that the bound can be checked at any ε."""

    def __init__(
        self,
        problem: Problem,
        radius: Radius,
        method: LossMethod,
        certificate: CertificateName,
        effort: Effort,
        seed: int,
    ):
        one_of("radius", radius, RADII)
        one_of("method", method, get_args(LossMethod))
        one_of("certificate", certificate, get_args(CertificateName))
        if not as_problem(problem).mixing.mixes:
            raise ValueError("law: the bound needs mixing, alpha > 0 and beta > 0; without mixing every radius is 0.")
        if problem.partners is not None:
            raise ValueError("partners: the bound is about uniform partners; build the problem without `partners`.")
        check_problem(problem, 2)
        self.problem, self.effort, self.seed = problem, effort, seed
        self.method: LossMethod = method
        self.certificate: CertificateName = certificate
        with attackable(problem):
            self.measured = measure(problem._changed(features=problem.features.detach()), radius, seed)
            self.chain, self.missing = self._chain()

    def _chain(self) -> tuple[list[Step] | None, str]:
        """The network as steps, or the reason why it has no certificate."""
        if self.certificate == "none":
            return None, "no certificate was requested"
        try:
            return checked_steps(self.problem), ""
        except ValueError as error:
            if self.certificate != "auto":
                raise
            return None, str(error)

    @torch.no_grad()
    def at(self, eps: float) -> BoundReport:
        """Check the bound at the scale ε."""
        if not 0 < eps < math.inf:
            raise ValueError(f"eps: expected a finite number > 0, got {eps!r}.")
        m, effort = self.measured, self.effort
        problem, radii = m.problem, {name: eps * value for name, value in m.unit_radius.items()}
        radius = radii[m.kind]
        left, error, how = left_side(self.problem, eps, self.method, effort, self.seed)
        ball = check_ball(problem.features, radius, "l2", None)
        attack = ascend(
            problem.head, ball, problem.labels, problem.loss, steps=effort.steps, restarts=effort.restarts,
            generator=torch.Generator(problem.features.device).manual_seed(self.seed),
        )  # fmt: skip
        lower, upper, inside, upper_bounds = attack.losses, torch.full_like(attack.losses, torch.inf), 0, ""
        kept = {"certified": 0, "refuted": int(attack.flipped.sum()), "undecided": int((~attack.flipped).sum())}
        if self.chain is not None and self.certificate != "none":
            certificate = steps_certificate(
                self.chain, ball, problem.labels, problem.loss, method=self.certificate, slope_steps=effort.slope_steps
            )
            both = between(problem, attack, certificate)
            lower, upper, inside, kept = both.lower, both.upper, int(certificate.inside.sum()), both.counts()
            upper_bounds = f", upper bounds by {certificate.method}"
        binary = m.margins.shape[1] == 1
        report = BoundReport(
            verdict="undecided", reason="", layer=problem.layer, eps=float(eps), radius_kind=m.kind,
            assumptions=m.assumptions, radius=radius, paper_radius=radii["paper"], sharp_radius=radii["sharp"],
            margins=(m.objectives * m.outputs.unsqueeze(1)).sum(2).amin(1),
            standard_loss=float(problem.loss(m.outputs, problem.labels).mean()), nfm_loss=left, nfm_error=error,
            regularizer=eps**2 * m.regularizer, inner_lower=lower, inner_upper=upper,
            predicted_slack=eps * m.slack[0] + eps**2 * m.slack[1],
            inside=inside, label_kept={name: kept[name] for name in VERDICTS}, method=how + upper_bounds,
            binary=binary,
        )  # fmt: skip
        precision = torch.finfo(radius.dtype).eps
        report = replace(report, **report.judged(precision, self.missing))
        if self.method == "monte_carlo" or not report.open_by_error:
            return report
        left, error, how = left_side(self.problem, eps, self.method, effort, self.seed, RTOL)
        report = replace(report, nfm_loss=left, nfm_error=error, method=how + upper_bounds)
        return replace(report, **report.judged(precision, self.missing))


@undisturbed()
def bound(
    problem: Problem,
    eps: float = 0.05,
    *,
    radius: Radius = "sharp",
    method: LossMethod = "auto",
    certificate: CertificateName = "auto",
    effort: Effort | None = None,
    generator: torch.Generator | None = None,
) -> BoundReport | NoisyMixBoundReport:
    r"""Check the adversarial bound on a model: every assumption and both sides (book: eq-adversarial-bound).

    The bound is NFM Theorem 2, and Mixup Theorem 3.1 at the input without noise. The maximum over each ball is enclosed
    between an attack and a certificate. The inequality is certified if it holds with the upper end, and refuted if it
    fails with the lower end. For `Branches` with `gamma` the bound is NoisyMix Theorem 3 (book: eq-noisymix-bound).

    Args:
        problem: network, layer, data, loss and law; each label is one class. A certificate needs an `nn.Sequential` of
            the modules listed in `relaxations.SUPPORTED`.
        eps: scale ε > 0.
        radius: radius of the balls, `"sharp"`, `"paper"` or `"mean"`; see the module.
        method: method of the left side, `"exact"` (quadrature), `"monte_carlo"`, or `"auto"` for quadrature if it takes
            few enough evaluations. If the error of the quadrature leaves the verdict open, finer rules follow, and with
            `"auto"` Monte Carlo if its error is smaller.
        certificate: method of `certify`, or `"none"` for the attack alone. `"auto"` lets `certify` choose, and does
            without a certificate if the model has none.
        effort: how much computation is spent; `None` means `Effort()`.
        generator: random generator that seeds Monte Carlo and the attack; with `None` the seeds are always the same.

    Raises:
        ValueError: for options, losses and labels that are not supported, and for a law without mixing.
        TypeError: for anything but one `Problem` or `Branches`.

    Example:
        >>> from nfm_theory import Law
        >>> net = torch.nn.Linear(1, 1, bias=False).double()
        >>> x, y = torch.tensor([[-1.0], [1.0]], dtype=torch.float64), torch.tensor([0, 1])
        >>> _ = net.requires_grad_(False).weight.fill_(2.0)
        >>> report = bound(Problem(net, x, y, law=Law(), loss="logistic"), eps=0.001)
        >>> report.verdict, round(report.slack_ratio[0], 2)
        ('certified', 1.0)
    """
    effort, seed = effort or Effort(), seed_of(generator)
    if not isinstance(problem, Branches):
        return _Check(problem, radius, method, certificate, effort, seed).at(eps)
    clean = _Check(problem.clean, radius, method, certificate, effort, seed).at(eps)
    with torch.no_grad():
        report = noisymix_report(problem, clean, left_side(problem, eps, method, effort, seed))
        if method != "monte_carlo" and report.open_by_error:
            report = noisymix_report(problem, clean, left_side(problem, eps, method, effort, seed, RTOL))
    return report


@undisturbed()
def validity_radius(
    problem: Problem,
    scales: Sequence[float] = SCALES,
    bisections: int = 5,
    *,
    radius: Radius = "sharp",
    method: LossMethod = "auto",
    certificate: CertificateName = "auto",
    effort: Effort | None = None,
    generator: torch.Generator | None = None,
) -> ValidityRadius:
    """The largest ε up to which the bound holds on a model (book: eq-adversarial-bound).

    The function tries the scales from small to large until the inequality is refuted. Then it bisects between
    neighboring scales to find where the certified range ends and where the refuted range begins. It says nothing about
    scales between those that it tried.

    Args:
        problem: network, layer, data, loss and law, with the restrictions of `bound`.
        scales: increasing scales ε > 0.
        bisections: number of bisections, in the logarithm of ε, at the end of each range.
        radius: radius of the balls, `"sharp"`, `"paper"` or `"mean"`.
        method: method of the left side.
        certificate: method of the certificate.
        effort: how much computation is spent at each scale; `None` means `Effort()`.
        generator: random generator that seeds Monte Carlo and the attack; with `None` the seeds are always the same.

    Raises:
        ValueError: for everything that `bound` refuses, and for scales that do not increase.
        TypeError: for anything but one `Problem`.
    """
    scales = [float(e) for e in scales]
    if not scales or scales != sorted(set(scales)) or not 0 < scales[0] <= scales[-1] < math.inf:
        raise ValueError(f"scales: expected increasing numbers > 0, got {scales!r}.")
    check = _Check(problem, radius, method, certificate, effort or Effort(), seed_of(generator))
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
