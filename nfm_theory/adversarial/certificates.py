r"""Certificates: the inner maximum `max_{‖δ‖ <= ρ_i} ℓ(f(h_i + δ), y_i)` from above (theory §5).

With a hard label both losses are functions of the margins, decreasing in each of them:

$$ \ell = \log\big(1 + \sum_j e^{-m_j}\big), \qquad m_j = f_y - f_j \ (j \ne y), \quad m = \pm f \ (K = 1) $$

so lower bounds of the margins over the ball give an upper bound of the loss. How tight the bound of the loss is:

| number of margins | how tight the upper bound of the loss is |
|---|---|
| one (K = 1 or 2) | as tight as the bound of the margin |
| several | looser: each margin is bounded by itself, and they need not all be smallest at the same point |

| method | networks and balls | tightness of the margins |
|---|---|---|
| `"region"` | ReLU, LeakyReLU; balls in one linear region | exact; no bound for other balls |
| `"enumeration"` | small networks with ReLU, LeakyReLU | exact up to a gap that is reported |
| `"crown"`, `"crown-ibp"`, `"interval"` | all supported modules | bounds, each looser and cheaper than the last |

A certificate is about two functions at once: the network in exact arithmetic with its weights, and the network as it
computes in its own precision, with sums in any order. It is computed in float64, and bounds of all rounding errors are
added (`rounding`). A network that may compute anything else than its modules one after the other is refused
(`module_chain`).
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
from .guards import attackable, network_of
from .label_margins import loss_of_margins, margin_objectives
from .linear_bounds import (
    FEW_ACTIVATIONS,
    RELAXATIONS,
    Ball,
    Norm,
    Relaxed,
    activation_count,
    check_ball,
    output_range,
    region_minimum,
    relaxed_minimum,
)
from .regions import MAX_CELLS, enumerated_minimum
from .relaxations import Step, network_steps
from .rounding import UNIT, in_double, rounded_down, rounded_up

CertificateMethod = Literal["auto", "region", "enumeration", "crown", "crown-ibp", "interval"]
METHODS = ("auto", "region", "enumeration", *RELAXATIONS)
VERDICTS = ("certified", "refuted", "undecided")
#: Number of examples that are certified at once.
BLOCK_EXAMPLES = 64


@dataclass(frozen=True)
class Certificate:
    """Bounds of margins and losses over balls, from `certify`.

    Attributes:
        method: how the bounds were computed.
        norm: norm that defines the balls.
        radius: radius ρ of each ball, `(b,)`.
        clean_margins: margins at the centers, `(b, J)`.
        margins: lower bounds of the margins over the balls, `(b, J)`; -inf where the method gives no bound.
        attained: the smallest margins that some point of the ball has, `(b, J)`; methods other than enumeration give
            the margins at the center.
        clean_losses: losses at the centers, `(b,)`.
        loss_upper: upper bounds of the largest losses in the balls, `(b,)`.
        loss_lower: losses that some point of the ball has, `(b,)`.
        inside: True if the ball is known to lie in one linear region, `(b,)`.
        regions: number of linear regions that meet the ball, `(b,)`; `None` if they were not counted.
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
        """True if it is proved that every point of the ball is classified as the label says, `(b,)`."""
        return (self.margins > 0).all(1)

    def to_dict(self) -> dict:
        """All fields as plain lists, for JSON; infinite numbers become None."""
        return {name: _listed(getattr(self, name)) for name in self.__dataclass_fields__}


@dataclass(frozen=True)
class WorstCase:
    """The largest loss in each ball, enclosed between an attack and a certificate.

    Attributes:
        lower: lower bounds: losses that some point of the ball has, `(b,)`.
        upper: certified upper bounds, `(b,)`.
        attack: the attack that gave lower bounds.
        certificate: the certificate that gave the upper bounds.

    Raises:
        RuntimeError: if a lower bound is above the upper one, or a certified label was changed by the attack.
    """

    lower: Tensor
    upper: Tensor
    attack: Attack
    certificate: Certificate

    def __post_init__(self):
        above = ~(self.lower <= self.upper)
        flipped = self.certificate.robust & self.attack.flipped
        if (above | flipped).any():
            raise RuntimeError(
                f"worst case: for {int((above | flipped).sum())} of {len(above)} examples the attack found what the "
                "certificate excludes, so that one of them is wrong and there is no verdict. The network may compute "
                "less accurately than its dtype, or something else than its modules say; try float64, and "
                "certificate='none' in `bound`."
            )

    @property
    def gap(self) -> Tensor:
        """Upper minus lower bound, `(b,)`: how much remains unknown."""
        return self.upper - self.lower

    def verdicts(self, threshold: float | Tensor | None = None) -> list[str]:
        """For each example, "certified" if the loss is at most `threshold` in the whole ball, "refuted" or "undecided".

        Args:
            threshold: one number for all examples or one for each, `(b,)`; `None` asks instead if every point of the
                ball is classified as the label says.
        """
        if threshold is None:
            held, broken = self.certificate.robust, self.attack.flipped | (self.certificate.attained < 0).any(1)
        else:
            held, broken = self.upper <= threshold, self.lower > threshold
        return ["refuted" if b else "certified" if h else "undecided" for h, b in zip(held, broken, strict=True)]

    def counts(self, threshold: float | Tensor | None = None) -> dict[str, int]:
        """The number of examples with each verdict.

        Args:
            threshold: the threshold of `verdicts`.
        """
        verdicts = self.verdicts(threshold)
        return {name: verdicts.count(name) for name in VERDICTS}

    def to_dict(self) -> dict:
        """Bounds, verdicts on the label and the certificate as plain lists, for JSON."""
        return {
            "lower": _listed(self.lower),
            "upper": _listed(self.upper),
            "label_kept": self.verdicts(),
            "certificate": self.certificate.to_dict(),
        }

    def __str__(self) -> str:
        """A table with mean bounds, the largest gap and the number of examples with each verdict."""
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
    method: CertificateMethod = "auto",
    slope_steps: int = 0,
    max_cells: int = MAX_CELLS,
) -> Certificate:
    """Certify a network that is given as a chain of steps.

    Args:
        steps: the network as steps, see `network_steps`.
        ball: the balls over which margins and losses are bounded.
        labels: labels in the form that the loss expects.
        loss: cross entropy or logistic loss.
        method: method of the bounds, see the module.
        slope_steps: number of gradient steps that improve the free slopes of the CROWN methods.
        max_cells: largest number of linear regions that enumeration follows.

    Raises:
        ValueError: for an unknown method, other losses and soft labels.
    """
    one_of("method", method, METHODS)
    like, radius, ball = ball.center, ball.radius, ball.covering()
    with torch.no_grad():
        outputs = _run(steps, ball.center)
    objectives = in_double(margin_objectives(outputs, labels.to(outputs), loss))
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
    loss_lower = clean_losses
    margins = torch.cat([part.lower for part in parts])
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
    margins = rounded_down(torch.minimum(margins, clean), like)
    return Certificate(
        method=method if not slope_steps or method not in RELAXATIONS[1:] else f"{method}, {slope_steps} slope steps",
        norm=ball.norm,
        radius=radius,
        clean_margins=clean.to(like),
        margins=margins,
        attained=rounded_up(attained, like),
        clean_losses=clean_losses.to(like),
        loss_upper=_loss_above(margins, like),
        loss_lower=rounded_down(loss_lower * (1 - 1e-12), like),
        inside=inside.to(like.device),
        regions=None if regions is None else regions.to(like.device),
    )


def _loss_above(margins: Tensor, like: Tensor) -> Tensor:
    """The loss at margins `(b, J)`, rounded upwards."""
    margins = in_double(margins)
    losses = loss_of_margins(margins)
    relative = UNIT * (32 + margins.shape[1] + 8 * margins.abs().amax(1))
    return rounded_up(torch.where(losses.isinf(), losses, losses * (1 + relative)), like)


def checked_steps(problem: Problem) -> list[Step]:
    """The network behind the layer as steps, after a check that they give its outputs at the features."""
    network = network_of(problem)
    if network.output is not None:
        raise ValueError(
            f"output: a certificate needs a model that returns its outputs alone, got output={network.output!r}; build "
            "the problem with a model that returns the logits."
        )
    steps = network_steps(problem.model, problem.layer, problem.params)
    h = problem.features.detach()
    with torch.no_grad():
        outputs = in_double(problem.head(h))
        for rows in torch.arange(len(h)).split(BLOCK_EXAMPLES):
            center = in_double(h[rows])
            lo, hi = output_range(steps, Ball(center, center.new_zeros(len(rows))))
            found = outputs[rows].to(lo)
            if found.shape != lo.shape or ((found < lo) | (found > hi)).any():
                raise ValueError(
                    "certificate: the network does not give the outputs of its modules one after the other; something "
                    "changes what it computes. Write it as a plain nn.Sequential."
                )
    return steps


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
        problem: network, layer, data and loss; a certificate needs no law. The network is an `nn.Sequential`, possibly
            nested, of the modules listed in `relaxations.SUPPORTED`; the loss is `"cross_entropy"` or `"logistic"`;
            each label is one class.
        radius: ρ ≥ 0, one number for all examples or one for each, `(n,)`.
        norm: norm that defines the balls, `"l2"` or `"linf"`.
        method: method of the bounds, see the module; `"auto"` takes `"crown"` for networks with up to
            `FEW_ACTIVATIONS` activations, and `"crown-ibp"` for larger ones.
        box: smallest and largest value of a feature; the features must lie in it.
        slope_steps: number of gradient steps that improve the free slopes of the CROWN methods.
        max_cells: largest number of linear regions that enumeration follows.

    Raises:
        ValueError: for modules, methods, losses, labels, radii or boxes that are not supported; and
            `regions.RegionLimitError`, which is one, if more than `max_cells` regions cross a ball.
        TypeError: for anything but one `Problem`.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 1, bias=False))
        >>> _ = net.requires_grad_(False)[0].weight.copy_(torch.tensor([[3.0, 4.0]]))
        >>> found = certify(Problem(net, torch.ones(1, 2), torch.tensor([1.0]), loss="logistic"), radius=1.0)
        >>> found.margins.tolist(), found.robust.tolist()  # 7 - ‖(3, 4)‖
        ([[2.0]], [True])
    """
    with attackable(problem):
        steps = checked_steps(problem)
        ball = check_ball(problem.features.detach(), radius, norm, box)
        return steps_certificate(
            steps, ball, problem.labels, problem.loss, method=method, slope_steps=slope_steps, max_cells=max_cells
        )


@torch.no_grad()
def between(problem: Problem, attack: Attack, certificate: Certificate) -> WorstCase:
    """Combine the lower bounds of an attack with the upper bounds of a certificate.

    The loss at the points of the attack is computed again from the margins, which is accurate also where it is tiny.

    Raises:
        RuntimeError: if they contradict each other.
    """
    outputs = in_double(problem.head(attack.features))
    objectives = margin_objectives(outputs, problem.labels.to(outputs), problem.loss)
    met = loss_of_margins((objectives * outputs.unsqueeze(1)).sum(2))
    return WorstCase(
        lower=torch.maximum(rounded_down(met * (1 - 1e-12), attack.losses), certificate.loss_lower),
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
        problem: network, layer, data and loss, with the restrictions of `certify`; no law is needed.
        radius: ρ ≥ 0, one number for all examples or one for each, `(n,)`.
        norm: norm that defines the balls, `"l2"` or `"linf"`.
        method: method of the certificate.
        box: smallest and largest value of a feature; the features must lie in it.
        slope_steps: number of gradient steps that improve the free slopes of the CROWN methods.
        max_cells: largest number of linear regions that enumeration follows.
        steps: number of gradient steps of each run of the attack.
        restarts: number of runs of the attack.
        generator: random generator of the attack; the global one if `None`.

    Raises:
        ValueError: for everything that `certify` or `pgd_attack` refuses.
        TypeError: for anything but one `Problem`.
        RuntimeError: if the attack finds what the certificate excludes.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 1, bias=False))
        >>> _ = net.requires_grad_(False)[0].weight.copy_(torch.tensor([[3.0, 4.0]]))
        >>> problem = Problem(net, torch.ones(1, 2), torch.tensor([1.0]), loss="logistic")
        >>> found = worst_case(problem, radius=1.0)
        >>> bool(found.gap.abs() < 1e-5), found.counts()["certified"]
        (True, 1)
    """
    with attackable(problem):  # an unsupported network is refused before the attack takes its time
        checked_steps(problem)
    attack = pgd_attack(problem, radius, norm=norm, steps=steps, restarts=restarts, box=box, generator=generator)
    certificate = certify(
        problem, radius, norm=norm, method=method, box=box, slope_steps=slope_steps, max_cells=max_cells
    )
    return between(problem, attack, certificate)
