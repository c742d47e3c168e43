r"""Certificates: the inner maximum `max_{‖δ‖ <= ρ_i} ℓ(f(h_i + δ), y_i)` from above (theory §5).

With a hard label both losses are functions of the margins, decreasing in each of them:

$$ \ell = \log\big(1 + \sum_j e^{-m_j}\big), \qquad m_j = f_y - f_j \ (j \ne y), \quad m = \pm f \ (K = 1) $$

so lower bounds of the margins over the ball give an upper bound of the loss. What is certified:

| | margins | loss |
|---|---|---|
| one margin (K = 1 or 2) | each bound of the table below | as tight as the margin |
| several | each by itself | at least the maximum: the margins need not be smallest at one point |

| method | for | tightness |
|---|---|---|
| `"region"` | ReLU, LeakyReLU; balls in one linear region | exact there, silent elsewhere |
| `"enumeration"` | the same, small networks | exact up to a reported gap |
| `"crown"`, `"crown-ibp"`, `"interval"` | all supported modules | upper bounds, decreasing in quality and cost |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..setting.checks import one_of
from ..setting.options import progress_bar
from ..setting.pointwise import PointwiseLoss
from ..setting.problem import Problem
from .attacks import Attack, pgd_attack
from .label_margins import loss_of_margins, margin_objectives
from .linear_bounds import (
    FEW_ACTIVATIONS,
    RELAXATIONS,
    Ball,
    Norm,
    Relaxed,
    activation_count,
    check_ball,
    region_minimum,
    relaxed_minimum,
)
from .regions import MAX_CELLS, enumerated_minimum
from .relaxations import Step, network_steps

CertificateMethod = Literal["auto", "region", "enumeration", "crown", "crown-ibp", "interval"]
METHODS = ("auto", "region", "enumeration", *RELAXATIONS)
VERDICTS = ("certified", "refuted", "undecided")
#: Examples certified at once.
BLOCK_EXAMPLES = 64


@dataclass(frozen=True)
class Certificate:
    """Outcome of `certify`.

    Attributes:
        method: how the bounds were computed.
        norm: of the balls.
        radius: ρ, `(b,)`.
        clean_margins: margins at the centres, `(b, J)`.
        margins: lower bounds of the margins over the balls, `(b, J)`; -inf where nothing is claimed.
        attained: margins that are attained in the ball, `(b, J)`: by enumeration; otherwise those at the centre.
        clean_losses: losses at the centres, `(b,)`.
        loss_upper: upper bounds of the maximal losses, `(b,)`.
        loss_lower: losses that are attained in the ball, `(b,)`.
        inside: whether the ball is known to lie in one linear region, `(b,)`.
        regions: linear regions that meet the ball, `(b,)`; `None` if they were not counted.
    """

    method: str
    norm: str
    radius: Tensor
    clean_margins: Tensor
    margins: Tensor
    attained: Tensor
    clean_losses: Tensor
    loss_upper: Tensor
    loss_lower: Tensor
    inside: Tensor
    regions: Tensor | None = None

    @property
    def robust(self) -> Tensor:
        """Whether no point of the ball is classified differently from the label, for certain, `(b,)`."""
        return (self.margins > 0).all(1)

    def to_dict(self) -> dict:
        """Everything as plain lists; -inf and inf become None."""
        return {name: _listed(getattr(self, name)) for name in self.__dataclass_fields__}


@dataclass(frozen=True)
class WorstCase:
    """The inner maximum between an attack and a certificate.

    Attributes:
        lower: losses that are attained, `(b,)`.
        upper: certified upper bounds, `(b,)`.
        attack: what gave the lower bounds.
        certificate: what gave the upper bounds.
    """

    lower: Tensor
    upper: Tensor
    attack: Attack
    certificate: Certificate

    @property
    def gap(self) -> Tensor:
        """What remains unknown, `(b,)`."""
        return self.upper - self.lower

    def verdicts(self, threshold: float | Tensor | None = None) -> list[str]:
        """Per example, whether the loss stays at or below `threshold` everywhere in the ball.

        Args:
            threshold: a number or `(b,)`; `None` asks instead whether the label is kept.
        """
        if threshold is None:
            held, broken = self.certificate.robust, self.attack.flipped | (self.certificate.attained < 0).any(1)
        else:
            held, broken = self.upper <= threshold, self.lower > threshold
        return ["refuted" if b else "certified" if h else "undecided" for h, b in zip(held, broken, strict=True)]

    def counts(self, threshold: float | Tensor | None = None) -> dict[str, int]:
        """Examples per verdict."""
        verdicts = self.verdicts(threshold)
        return {name: verdicts.count(name) for name in VERDICTS}

    def to_dict(self) -> dict:
        """Everything as plain lists."""
        return {
            "lower": _listed(self.lower),
            "upper": _listed(self.upper),
            "label_kept": self.verdicts(),
            "certificate": self.certificate.to_dict(),
        }

    def __str__(self) -> str:
        """A table for people: mean bounds, gap and counts."""
        c, counts = self.certificate, self.counts()
        tightness = self.gap.isfinite()
        gap = self.gap[tightness]
        lines = [
            f"Inner maximum over {c.norm} balls, {len(self.lower)} examples, upper bounds by {c.method}",
            f"  radius       {float(c.radius.min()):.4g} .. {float(c.radius.max()):.4g}",
            f"  clean loss   {float(c.clean_losses.mean()):.6g}",
            f"  from below   {float(self.lower.mean()):.6g}",
            f"  from above   {float(self.upper.mean()):.6g}",
            f"  largest gap  {float(gap.max()) if len(gap) else float('inf'):.3g}"
            + ("" if tightness.all() else f"   ({int((~tightness).sum())} without an upper bound)"),
            f"  one region   {int(c.inside.sum())} of {len(self.lower)}",
            "  label kept   " + ", ".join(f"{name} {counts[name]}" for name in VERDICTS),
        ]
        return "\n".join(lines)


def _listed(value):
    if not isinstance(value, Tensor):
        return value
    if not value.is_floating_point():
        return value.tolist()
    flat = [v if abs(v) < float("inf") else None for v in value.flatten().tolist()]
    return flat if value.ndim < 2 else [flat[k : k + value.shape[1]] for k in range(0, len(flat), value.shape[1] or 1)]


def _run(steps: list[Step], h: Tensor) -> Tensor:
    for step in steps:
        h = step(h)
    return h.unsqueeze(-1) if h.ndim == 1 else h


def steps_certificate(
    steps: list[Step],
    ball: Ball,
    labels: Tensor,
    loss: PointwiseLoss,
    *,
    method: str = "auto",
    slope_steps: int = 0,
    max_cells: int = MAX_CELLS,
) -> Certificate:
    """The certificate of a chain of steps.

    Args:
        steps: the network as steps, see `network_steps`.
        ball: where.
        labels: labels in the form that the loss expects.
        loss: cross entropy or logistic.
        method: how the bounds are computed.
        slope_steps: steps of gradient ascent on the free slopes of the CROWN methods.
        max_cells: most linear regions that enumeration follows.

    Raises:
        ValueError: for an unknown method, other losses and soft labels.
    """
    one_of("method", method, METHODS)
    with torch.no_grad():
        outputs = _run(steps, ball.center)
    objectives = margin_objectives(outputs, labels, loss)
    if method == "auto":
        method = "crown" if activation_count(steps, ball.center) <= FEW_ACTIVATIONS else "crown-ibp"
    parts = []
    blocks = torch.arange(len(outputs), device=outputs.device).split(BLOCK_EXAMPLES)
    for rows in progress_bar(blocks, title="certificates"):
        some = Ball(ball.center[rows], ball.radius[rows], ball.norm, ball.box)
        if method == "enumeration":
            parts.append(enumerated_minimum(steps, some, objectives[rows], max_cells=max_cells))
        elif method == "region":
            parts.append(region_minimum(steps, some, objectives[rows]))
        else:
            parts.append(relaxed_minimum(steps, some, objectives[rows], method=method, slope_steps=slope_steps))
    clean = (objectives * outputs.unsqueeze(1)).sum(2)
    clean_losses, regions, attained = loss_of_margins(clean), None, clean
    loss_lower, margins = clean_losses, torch.cat([part.lower for part in parts])
    if isinstance(parts[0], Relaxed):
        inside = torch.cat([part.inside for part in parts])
    else:
        regions, attained = (torch.cat([getattr(part, name) for part in parts]) for name in ("regions", "upper"))
        inside = regions == 1
        points = torch.cat([part.points for part in parts])
        with torch.no_grad():
            found = _run(steps, points.flatten(0, 1)).unflatten(0, points.shape[:2])
        found = (objectives.unsqueeze(1) * found.unsqueeze(2)).sum(3)  # (b, points, margins)
        loss_lower = torch.maximum(loss_lower, loss_of_margins(found).amax(1))
    margins = torch.minimum(margins, clean)
    return Certificate(
        method=method if not slope_steps or method not in RELAXATIONS[1:] else f"{method}, {slope_steps} slope steps",
        norm=ball.norm,
        radius=ball.radius,
        clean_margins=clean,
        margins=margins,
        attained=attained,
        clean_losses=clean_losses,
        loss_upper=loss_of_margins(margins),
        loss_lower=loss_lower,
        inside=inside,
        regions=regions,
    )


def certify(
    problem: Problem,
    radius: float | Tensor,
    *,
    norm: Norm = "l2",
    method: CertificateMethod = "auto",
    box: tuple[float, float] | None = None,
    slope_steps: int = 0,
    max_cells: int = MAX_CELLS,
) -> Certificate:
    """Upper bounds of the loss over l2 or l∞ balls around the features (theory §5).

    Args:
        problem: network, layer, data and loss; the network is an `nn.Sequential` (nested, if you like) of the modules
            in `relaxations`, the loss `"cross_entropy"` or `"logistic"`, the labels hard. It needs no law.
        radius: ρ ≥ 0, a number or `(n,)`.
        norm: `"l2"` or `"linf"`.
        method: see the module; `"auto"` is `"crown"` for up to `FEW_ACTIVATIONS` activations, then `"crown-ibp"`.
        box: smallest and largest value of a feature; the features must lie in it.
        slope_steps: steps of gradient ascent on the free slopes of the CROWN methods.
        max_cells: most linear regions that enumeration follows.

    Raises:
        ValueError: for modules, methods, losses, labels, radii or boxes that do not fit;
            `regions.RegionLimitError` if enumeration would explode.

    Example:
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(2, 1, bias=False))
        >>> _ = net.requires_grad_(False)[0].weight.copy_(torch.tensor([[3.0, 4.0]]))
        >>> found = certify(Problem(net, torch.ones(1, 2), torch.tensor([1.0]), loss="logistic"), radius=1.0)
        >>> found.margins.tolist(), found.robust.tolist()  # 7 - ‖(3, 4)‖
        ([[2.0]], [True])
    """
    steps = network_steps(problem.model, problem.layer, problem.params)
    ball = check_ball(problem.features.detach(), radius, norm, box)
    return steps_certificate(
        steps, ball, problem.labels, problem.loss, method=method, slope_steps=slope_steps, max_cells=max_cells
    )


def between(attack: Attack, certificate: Certificate) -> WorstCase:
    """The two sides together."""
    return WorstCase(
        lower=torch.maximum(attack.losses, certificate.loss_lower),
        upper=certificate.loss_upper,
        attack=attack,
        certificate=certificate,
    )


def worst_case(
    problem: Problem,
    radius: float | Tensor,
    *,
    norm: Norm = "l2",
    method: CertificateMethod = "auto",
    box: tuple[float, float] | None = None,
    slope_steps: int = 0,
    max_cells: int = MAX_CELLS,
    steps: int = 40,
    restarts: int = 4,
    generator: torch.Generator | None = None,
) -> WorstCase:
    """The inner maximum from below (`pgd_attack`) and from above (`certify`), example by example (theory §5).

    Args:
        problem: network, layer, data and loss, see `certify`.
        radius: ρ ≥ 0, a number or `(n,)`.
        norm: `"l2"` or `"linf"`.
        method: method of the certificate.
        box: smallest and largest value of a feature; the features must lie in it.
        slope_steps: steps of gradient ascent on the free slopes of the CROWN methods.
        max_cells: most linear regions that enumeration follows.
        steps: steps of each run of the attack.
        restarts: runs of the attack.
        generator: random generator of the attack; the global one if `None`.

    Raises:
        ValueError: for everything that `certify` and `pgd_attack` refuse.

    Example:
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(2, 1, bias=False))
        >>> _ = net.requires_grad_(False)[0].weight.copy_(torch.tensor([[3.0, 4.0]]))
        >>> problem = Problem(net, torch.ones(1, 2), torch.tensor([1.0]), loss="logistic")
        >>> found = worst_case(problem, radius=1.0)
        >>> bool(found.gap.abs() < 1e-5), found.counts()["certified"]
        (True, 1)
    """
    network_steps(problem.model, problem.layer, problem.params)  # refuses before the attack takes its time
    attack = pgd_attack(problem, radius, norm=norm, steps=steps, restarts=restarts, box=box, generator=generator)
    certificate = certify(
        problem, radius, norm=norm, method=method, box=box, slope_steps=slope_steps, max_cells=max_cells
    )
    return between(attack, certificate)
