"""The parts of a report on one layer: what each measures, and how many evaluations of the head it takes at most."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..adversarial.attacks import pgd_attack
from ..adversarial.bounds import Effort, bound
from ..adversarial.worst_cases import worst_case
from ..calculus.engine import linearize
from ..estimators.regularizers import regularizers
from ..expansion.second_order import num_directions
from ..generalization.margins import class_labels, jacobian_norms, score_gap
from ..setting.problem import Problem
from ..setting.results import Record
from ..verification.error_curve import DEFAULT_SCALES, error_curve
from ..verification.verify import verify

#: Gradient steps of each attack.
STEPS = 20
#: Radii of the attacks, as parts of the median distance to another class that the gradients suggest.
RADII = (0.25, 0.5, 1.0, 2.0)
#: Parts of the evaluations of a layer that reach, bound and verdict may take.
REACH, BOUND, VERDICT = 0.3, 0.1, 0.4


@dataclass(frozen=True)
class Margins(Record):
    """Margins and Jacobian norms of the samples at one layer.

    Attributes:
        gap: score of the right class minus the best other score, `(n,)`; `None` if the labels are no single classes.
        spectral: spectral norm of the Jacobian of the outputs in the features, `(n,)`.
        frobenius: Frobenius norm of the same, `(n,)`.
        size: norm of the features, `(n,)`.
        outputs: K, the number of outputs.
    """

    gap: Tensor | None
    spectral: Tensor
    frobenius: Tensor
    size: Tensor
    outputs: int

    @property
    def right(self) -> Tensor:
        """True where the decision is right, `(n,)`; nowhere if the labels are no single classes."""
        return torch.zeros_like(self.size, dtype=torch.bool) if self.gap is None else self.gap > 0

    @property
    def distance(self) -> Tensor:
        """How far features must move until a right decision changes, by the gradients at the samples; of right samples.

        The score gap over the largest slope that it can have: `√2 ‖J‖`, or `‖J‖` for a single output. It is a lower
        bound of the true distance for a linear head, and an estimate for any other.
        """
        if self.gap is None:
            return self.size[:0]
        slope = self.spectral * (1.0 if self.outputs == 1 else math.sqrt(2))
        return (self.gap / slope)[self.right & (slope > 0)]


@dataclass(frozen=True)
class Robustness(Record):
    """How many samples keep their class in l2 balls around their features.

    Attributes:
        radii: radii of the balls, increasing.
        attacked: for each radius, the number of samples whose class the attack did not change.
        certified: for each radius, the number of samples whose class is proved to stay; `None` without a certificate.
        samples: n, the number of samples.
        method: how the classes were certified, or why there is no certificate, in words.
    """

    radii: list[float]
    attacked: list[int]
    certified: list[int] | None
    samples: int
    method: str


@dataclass(frozen=True)
class Task:
    """What the parts of a layer are computed with.

    Attributes:
        problem: the layer.
        rows: evaluations of the head that the layer may take.
        eps: scale at which the bound is checked.
        seed: seed of all draws.
    """

    problem: Problem
    rows: int
    eps: float
    seed: int

    @property
    def generator(self) -> torch.Generator:
        """A new random generator with the seed."""
        return torch.Generator(self.problem.features.device).manual_seed(self.seed)

    @property
    def max_passes(self) -> int:
        """Directions that one term may take."""
        return min(4096, max(64, self.rows // (8 * len(self.problem.features))))

    @property
    def effort(self) -> Effort:
        """What the check of the bound may spend."""
        rows = max(140 * len(self.problem.features), int(BOUND * self.rows))  # Monte Carlo has 64 pilot sweeps or more
        return Effort(steps=STEPS, restarts=1, samples=rows, max_rows=rows)


def measure_margins(problem: Problem) -> Margins:
    """Margins and Jacobian norms of all samples.

    Args:
        problem: the layer.
    """
    norms = jacobian_norms(problem)
    with torch.no_grad():
        outputs = problem.head(problem.features)
        try:
            gap = score_gap(outputs, class_labels(problem))
        except ValueError:  # targets of a regression, or distributions
            gap = None
    size = torch.linalg.vector_norm(problem.features.flatten(1), dim=1)
    return Margins(gap, norms.spectral, norms.frobenius, size, outputs.shape[-1])


def measure_robustness(task: Task, margins: Margins | None = None) -> Robustness:
    """Attack the classes, and certify them where the network can be certified, at radii that suit the margins.

    Args:
        task: the layer.
        margins: its margins, if they are known.

    Raises:
        ValueError: if no sample is classified right, or its labels are no single classes.
    """
    problem, margins = task.problem, margins or measure_margins(task.problem)
    if len(margins.distance) == 0:
        raise ValueError("attacks: expected samples that are classified right, found none.")
    radii = [part * float(margins.distance.median()) for part in RADII]
    attacked, certified, method = [], [], ""
    for radius in radii:
        options = {"steps": STEPS, "restarts": 1, "generator": task.generator}
        if not method or certified:
            try:
                both = worst_case(problem, radius, **options)
                attacked.append(int((~both.attack.flipped).sum()))
                certified.append(int(both.certificate.robust.sum()))
                method = both.certificate.method
                continue
            except ValueError as error:
                method = str(error)
        attacked.append(int((~pgd_attack(problem, radius, **options).flipped).sum()))
    return Robustness(radii, attacked, certified or None, len(problem.features), method)


#: What each part measures. Each gets what is known of its layer so far.
MEASURES: dict[str, Callable[[Task, dict], Any]] = {
    "terms": lambda task, known: regularizers(task.problem, max_passes=task.max_passes, generator=task.generator),
    "margins": lambda task, known: measure_margins(task.problem),
    "reach": lambda task, known: error_curve(
        task.problem, orders=(1, 2), method="pathwise", samples=int(REACH * task.rows / len(DEFAULT_SCALES)),
        generator=task.generator,
    ),
    "attacks": lambda task, known: measure_robustness(task, known.get("margins")),
    "bound": lambda task, known: bound(task.problem, task.eps, effort=task.effort, generator=task.generator),
    "verdict": lambda task, known: verify(task.problem, budget=int(VERDICT * task.rows), generator=task.generator),
}  # fmt: skip
#: Names of the parts, in the order in which they are computed.
PARTS = tuple(MEASURES)


def cost(task: Task, part: str) -> int:
    """Evaluations of the head that a part takes, at most or about.

    Args:
        task: the layer.
        part: name of the part.
    """
    problem, n = task.problem, len(task.problem.features)
    at = linearize(problem.head, problem.features[:1], differentiable=False)
    outputs, signs = at.outputs.shape[-1], 1 if problem.noises == (None, None) else 2
    if part == "terms":
        each = [min(task.max_passes, num_directions(problem, at, [source])) for source in problem.law.scales]
        return n * (outputs + (0 if at.piecewise_linear else sum(each)))
    if part == "margins":
        return 2 * n * outputs
    attack = 3 * n * (STEPS + 2)  # an evaluation with its gradient costs about three
    return {
        "reach": (len(DEFAULT_SCALES) + 6) * max(int(REACH * task.rows / len(DEFAULT_SCALES)), 2 * signs * n),
        "attacks": len(RADII) * attack,
        "bound": task.effort.samples + attack,
        "verdict": int(VERDICT * task.rows),
    }[part]
