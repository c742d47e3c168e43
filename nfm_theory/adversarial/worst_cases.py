"""The inner maximum, enclosed between an attack and a certificate, with a verdict for each example (theory §5)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..setting.ambient import undisturbed
from ..setting.problem import Problem
from .attacks import Attack, pgd_attack
from .balls import Norm
from .certificates import Certificate, CertificateMethod, certify, checked_steps, listed, loss_below
from .guards import attackable
from .label_margins import margin_objectives
from .regions import MAX_CELLS
from .rounding import in_double

VERDICTS = ("certified", "refuted", "undecided")


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
            "lower": listed(self.lower),
            "upper": listed(self.upper),
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


@torch.no_grad()
def between(problem: Problem, attack: Attack, certificate: Certificate) -> WorstCase:
    """Combine the lower bounds of an attack with the upper bounds of a certificate.

    The loss at the points of the attack is computed again from the margins, which is accurate also where it is tiny.

    Raises:
        RuntimeError: if they contradict each other.
    """
    outputs = in_double(problem.head(attack.features))
    objectives = margin_objectives(outputs, problem.labels.to(outputs), problem.loss)
    met = loss_below((objectives * outputs.unsqueeze(1)).sum(2), attack.losses)
    return WorstCase(
        lower=torch.maximum(met, certificate.loss_lower),
        upper=certificate.loss_upper,
        attack=attack,
        certificate=certificate,
    )


@undisturbed()
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
