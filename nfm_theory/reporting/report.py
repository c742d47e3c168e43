"""The report on a network: everything that the library says about its layers, as numbers, as text and as one page."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..adversarial.bound_report import BoundReport
from ..estimators.regularizers import Regularizers
from ..setting.ambient import undisturbed
from ..setting.branches import Branches
from ..setting.checks import one_of
from ..setting.options import progress_bar
from ..setting.problem import Problem, as_problems
from ..setting.random_numbers import seed_of
from ..setting.results import SECOND_ORDER, Record, plain
from ..verification.effort import Budget, Plan, seconds_per_evaluation
from ..verification.error_curve import ErrorCurve
from ..verification.report import ExpansionReport, settings_of
from .parts import MEASURES, PARTS, Margins, Robustness, Task, cost

#: What a layer may take if the caller names no budget: so many seconds, but at least so many passes over the samples.
SECONDS, PASSES = 6.0, 200
#: Why a part is missing that was not reached.
STOPPED, NOT_ASKED = "the report was stopped before", "it was not asked for"


@dataclass(frozen=True)
class LayerReport(Record):
    """What is known of one layer; a part that could not be computed is `None`, and `missing` says why.

    Attributes:
        layer: dotted name, `""` for the input.
        features: shape of one sample's features.
        terms: R1 and the second-order regularizers with their errors.
        margins: score gaps and Jacobian norms.
        reach: error of the expansion up to the scale of training.
        attacks: classes that stay in balls around the features.
        bound: the adversarial bound at one scale.
        verdict: whether the expansion holds here.
        missing: why a part is missing, by its name.
    """

    layer: str
    features: tuple[int, ...]
    terms: Regularizers | None = None
    margins: Margins | None = None
    reach: ErrorCurve | None = None
    attacks: Robustness | None = None
    bound: BoundReport | None = None
    verdict: ExpansionReport | None = None
    missing: Mapping[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The name of the layer in words."""
        return f"layer {self.layer}" if self.layer else "the input"

    @property
    def shares(self) -> dict[str, float]:
        """Part of each second-order term in the sum of their absolute values; empty if that is 0 or unknown."""
        if self.terms is None:
            return {}
        sizes = {name: abs(float(self.terms[name])) for name in SECOND_ORDER if name in self.terms.estimates}
        total = sum(sizes.values())
        return {name: size / total for name, size in sizes.items()} if total else {}

    @property
    def predicted(self) -> float | None:
        """What NFM adds to the loss at ε = 1 by the expansion to second order: R1 and the second-order terms."""
        if self.terms is None:
            return None
        return float(self.terms.terms.R1.detach() + self.terms.terms.second.detach())

    @property
    def added(self) -> tuple[float, float] | None:
        """What NFM adds to the loss at ε = 1 by random draws, and its error of four standard errors."""
        if self.reach is None:
            return None
        return float(self.reach.loss.value[-1]) - self.reach.standard, float(self.reach.loss.error[-1])

    def to_dict(self) -> dict:
        """Everything that is known, as plain values."""
        derived = {"shares": self.shares, "predicted": self.predicted, "added": self.added}
        return super().to_dict() | {name: plain(value) for name, value in derived.items()}


@dataclass(frozen=True)
class NetworkReport(Record):
    """Outcome of `report`; `report["layer3"]` is the part about one layer.

    Attributes:
        layers: one report per layer.
        settings: law, loss and precision.
        num_samples: n, number of data.
        plan: the plan that was made before the start.
        interrupted: True if the report was stopped before its end.
        seconds: how long it took.
        title: how the network and the data are called on the page.
    """

    layers: tuple[LayerReport, ...]
    settings: dict
    num_samples: int
    plan: Plan
    interrupted: bool
    seconds: float
    title: str

    def __getitem__(self, layer: str) -> LayerReport:
        """The report on a layer by its dotted name.

        Raises:
            KeyError: if the report has no such layer.
        """
        for one in self.layers:
            if one.layer == layer:
                return one
        raise KeyError(f"expected one of the layers {[one.layer for one in self.layers]}, got {layer!r}.")

    def __str__(self) -> str:
        """For each layer, a paragraph on each part."""
        from .words import PARAGRAPHS, TITLES, heading, overview

        lines = [self.title or "Report", heading(self), "", *overview(self)]
        for one in self.layers:
            lines += ["", one.title, "-" * len(one.title)]
            lines += [f"{TITLES[part].rstrip('?')}: {PARAGRAPHS[part](one)}" for part in PARTS]
        return "\n".join(lines)

    def to_html(self) -> str:
        """One page that needs no other file: tables, plots and a paragraph on each part. Plots need matplotlib."""
        from .page import whole_page

        return whole_page(self)

    def _repr_html_(self) -> str:
        from .page import fragment

        return fragment(self)


@torch.no_grad()
@undisturbed()
def report(
    problem: Problem | Sequence[Problem],
    budget: int | str | None = None,
    generator: torch.Generator | None = None,
    *,
    eps: float = 0.05,
    parts: Sequence[str] = PARTS,
    title: str = "",
) -> NetworkReport:
    """Everything that the library says about a network, layer by layer, in one record and on one page.

    | part | what it measures | by |
    |---|---|---|
    | `"terms"` | what NFM regularizes, with shares and errors | `regularizers` |
    | `"margins"` | score gaps and Jacobian norms | `generalization.jacobian_norms` |
    | `"reach"` | the error of the second order up to ε = 1 | `error_curve` |
    | `"attacks"` | classes that stay under attack, and those that are proved to stay | `adversarial.worst_case` |
    | `"bound"` | the adversarial bound and its assumptions | `adversarial.bound` |
    | `"verdict"` | whether the expansion holds | `verify` |

    A plan with its cost is logged before the start, and printed if it is long or `options(progress=True)` is set.
    Ctrl-C ends the work early; the report then holds what is known so far. `Path("report.html").write_text(
    report.to_html())` keeps the page.

    Args:
        problem: a `Problem` with a law, or a list of them, one for each layer (`Problem.at_layers`).
        budget: what each layer may take: a number of evaluations of the head, or words such as `"300 passes"` (over all
            samples), `"90 s"` or `"10 min"`. It sets the size of each part, and a part finishes once it has begun.
            `None` allows some seconds, and at least 200 passes.
        generator: random generator that seeds all draws; with `None` they are always the same.
        eps: scale at which the bound is checked.
        parts: names of the parts to compute.
        title: how the network and the data are called on the page.

    Returns:
        `NetworkReport`. A part that the network or the law does not allow is missing, and the report says why.

    Raises:
        ValueError: for an unknown part, a budget that cannot be read, a scale that is not positive, and a law that
            perturbs nothing.
        TypeError: for anything but problems, and for branches.

    Example:
        >>> from nfm_theory import Law
        >>> x = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(6, 1)
        >>> problem = Problem(torch.sin, x, x, law=Law(add_noise=0.1), loss="square")
        >>> found = report(problem, budget="100 passes", parts=["terms", "margins"])
        >>> found[""].terms["R2_add"].method, found[""].missing["bound"]
        ('exact', 'it was not asked for')
    """
    problems = _checked(problem, eps, parts)
    start = time.perf_counter()
    seed = seed_of(generator)
    tasks = _tasks(problems, budget, eps, seed)
    steps = {part: sum(cost(task, part) for task in tasks) for part in PARTS if part in parts}
    plan = Plan(steps, len(problems[0].features), seconds_per_evaluation(problems[0]))
    plan.announce()
    known: list[dict[str, Any]] = [{} for _ in tasks]
    missing = [{part: STOPPED if part in parts else NOT_ASKED for part in PARTS} for _ in tasks]
    work = [(part, task, *place) for part in steps for task, *place in zip(tasks, known, missing, strict=True)]
    interrupted = False
    try:
        for part, task, found, reasons in progress_bar(work, title="report"):
            try:
                found[part] = MEASURES[part](task, found)
                del reasons[part]
            except (ValueError, RuntimeError, NotImplementedError, MemoryError) as error:
                reasons[part] = str(error).strip() or type(error).__name__
            if getattr(found.get(part), "interrupted", False):  # the verification has taken the interrupt for itself
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        interrupted = True
    layers = [
        LayerReport(layer=task.problem.layer, features=task.problem.feature_shape, missing=reasons, **found)
        for task, found, reasons in zip(tasks, known, missing, strict=True)
    ]
    settings = settings_of(problems[0]) | {"law": str(problems[0].law)}
    seconds = time.perf_counter() - start
    return NetworkReport(tuple(layers), settings, len(problems[0].features), plan, interrupted, seconds, title)


def _checked(problem, eps: float, parts: Sequence[str]) -> list[Problem]:
    """The problems, after what cannot be reported on is refused."""
    problems = as_problems(problem)
    if any(isinstance(one, Branches) for one in problems):
        raise TypeError(
            "problem: expected a Problem, got Branches; build it with Problem(model, x, y, layer=..., law=...)"
        )
    for part in parts:
        one_of("parts", part, PARTS)
    if not 0 < eps < float("inf"):
        raise ValueError(f"eps: expected a finite number > 0, got {eps!r}.")
    if not problems[0].law.perturbs:
        raise ValueError("Nothing is perturbed: expected a law with alpha > 0, add_noise > 0 or mult_noise > 0.")
    return problems


def _tasks(problems: list[Problem], budget: int | str | None, eps: float, seed: int) -> list[Task]:
    """The layers with the evaluations that each may take."""
    made = []
    for problem in problems:
        n = len(problem.features)
        limit = Budget.of(budget, n)
        seconds_per_evaluation(problem)  # the first pass is slower than those that follow
        seconds = max(seconds_per_evaluation(problem), 1e-9)
        rows = limit.evaluations
        if rows is None:
            rows = int((limit.seconds or SECONDS) / seconds)
            rows = rows if limit.seconds else max(PASSES * n, rows)
        made.append(Task(problem, max(rows, n), eps, seed))
    return made
