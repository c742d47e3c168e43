r"""The regularizers of NFM as estimators: one interface, several methods (book: eq-second-moment).

| method | terms | cost, in forward passes | error |
|---|---|---|---|
| `"exact"` | R2 | K | none |
| | R3 | directions, see `second_order` | none |
| `"probes"` | any | 1 for each probe, and `deflate` | standard error |
| `"pairs"` | R2, R3 (data) | 1 for each probe | standard error |
| `"auto"` | any | what is cheaper for the accuracy `rtol` | none, or about `rtol` |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, inf
from typing import Literal

import torch
from torch import Tensor

from ..calculus.cuts import check_problem
from ..calculus.engine import Linearization, linearize
from ..expansion.second_order import (
    JOINT_WIDTH,
    MANY_OUTPUTS,
    SOURCES,
    exact_terms,
    follows_directions,
    num_directions,
)
from ..setting.ambient import undisturbed
from ..setting.branches import Branches
from ..setting.checks import one_of
from ..setting.options import block_bytes
from ..setting.problem import Problem, as_problems
from ..setting.results import SECOND_ORDER, Estimate, Record, TaylorTerms
from ..setting.streamed import StreamedProblem
from .probes import mean_and_stderr, probe_forms

Method = Literal["auto", "exact", "probes", "pairs"]
METHODS = ("auto", "exact", "probes", "pairs")
#: Directions up to which exact terms are not worth a pilot run, and the probes of a pilot run.
FEW_DIRECTIONS, PILOT_PROBES = 64, 16
#: Most probes carried through a sweep at once.
PROBE_BLOCK = 64


@dataclass(frozen=True)
class Regularizers(Record):
    """R1 and the second-order terms with their evidence; a term is an attribute, `.R2_add`, and an item, `["R2_add"]`.

    With `reduction="none"` every value is `(n,)`, one for each sample.

    Attributes:
        standard: L_std, 0-dim.
        estimates: by name (`"R1"`, `"R2"`, .., `"R3_mult"`): value, standard error, probes, method. Terms of sources
            that are switched off are missing.
        engine: how second derivatives were taken, `"tangent-adjoint"` or `"nested torch.func (reason)"`.
        passes: directions and Jacobian rows spent, each about the cost of a forward pass.
        piecewise_linear: whether ∇²f is 0 almost everywhere, and R3 with it.
    """

    standard: Tensor
    estimates: Mapping[str, Estimate]
    engine: str
    passes: int
    piecewise_linear: bool

    @property
    def terms(self) -> TaylorTerms:
        """The values as `TaylorTerms`, 0 for terms that are switched off."""
        zero = torch.zeros_like(self.standard)
        values = {
            name: self.estimates[name].value if name in self.estimates else zero for name in ("R1", *SECOND_ORDER)
        }
        return TaylorTerms(standard=self.standard, per_layer={}, **values)

    def __getitem__(self, name: str) -> Estimate:
        """One term by its name.

        Raises:
            KeyError: for a term whose source is switched off.
        """
        return self.estimates[name]

    def __getattr__(self, name: str) -> Estimate:
        if name in (*SECOND_ORDER, "R1") and "estimates" in self.__dict__:
            if name in self.estimates:
                return self.estimates[name]
            raise AttributeError(f"{name}: its source is switched off by the law; here are {list(self.estimates)}.")
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}.")

    def plot(self, ax=None):
        """Draw the second-order terms as bars with their standard errors; returns the matplotlib axes.

        Raises:
            ImportError: if matplotlib is not installed.
        """
        ax = self.terms.plot(ax)
        names = [name for name in SECOND_ORDER if name in self.estimates]
        errors = [float(self.estimates[name].averaged.stderr) for name in names]
        places = [SECOND_ORDER.index(name) for name in names]
        ax.errorbar([float(self.estimates[n].averaged) for n in names], places, xerr=errors, fmt="none", ecolor="0.2")
        return ax

    @staticmethod
    def average(parts: Sequence[Regularizers]) -> Regularizers:
        """The mean over layers; standard errors add in quadrature.

        Args:
            parts: one per layer, with the same sources.
        """
        estimates = {}
        for name in parts[0].estimates:
            own = [part.estimates[name] for part in parts]
            reached = [e.converged for e in own if e.converged is not None]
            stderr = torch.stack([e.stderr**2 for e in own]).sum(0).sqrt() / len(own)
            value, samples = torch.stack([e.value for e in own]).mean(0), sum(e.samples for e in own)
            estimates[name] = Estimate(value, stderr, samples, own[0].method, all(reached) if reached else None)
        return Regularizers(
            torch.stack([part.standard for part in parts]).mean(0), estimates, parts[0].engine,
            sum(part.passes for part in parts), all(part.piecewise_linear for part in parts),
        )  # fmt: skip

    def __str__(self) -> str:
        """A table for people, of means over the samples."""
        lines = [f"{'term':8}{'value':>14}{'stderr':>12}  method"]
        for name, one in self.estimates.items():
            e = one.averaged
            lines.append(f"{name:8}{float(e.value.detach()):14.6g}{float(e.stderr):12.2g}  {e.method}")
        if self.piecewise_linear:
            lines.append("piecewise linear: the second derivative of the head, and R3, is 0 almost everywhere")
        return "\n".join([*lines, f"{self.engine}; about {self.passes} forward passes"])


class _Plan:
    """Decides, term by term, and gathers the probes it had to draw for that."""

    def __init__(self, problem: Problem, at: Linearization, *, rtol, max_passes, deflate, distribution, generator):
        self.problem, self.at, self.rtol, self.max_passes = problem, at, rtol, max_passes
        self.options = {"deflate": deflate, "distribution": distribution, "generator": generator}
        self.drawn: dict[tuple[str, bool], list] = {}  # by source, and whether from pairs
        self.passes = 0

    def draw(self, source: str, num: int, pairs: bool = False) -> None:
        """Add `num` probes of a source."""
        for start in range(0, num, PROBE_BLOCK):
            block = min(PROBE_BLOCK, num - start)
            forms = probe_forms(self.problem, self.at, source, block, pairs=pairs, **self.options)
            self.drawn.setdefault((source, pairs), []).append(forms)
            self.passes += block + forms.passes

    def values(self, order: str, source: str, pairs: bool = False) -> Tensor:
        """All probes of a term, `(P, n)`."""
        parts = [f.gauss_newton if order == "R2" else f.residual for f in self.drawn[source, pairs]]
        return torch.cat(parts)

    def needed(self, order: str, source: str) -> float:
        """Probes that bring the relative standard error to `rtol`, judged by those drawn so far."""
        values = self.values(order, source).detach()
        mean, stderr = (float(z) for z in mean_and_stderr(values))
        return inf if mean == 0 else len(values) * (stderr / (self.rtol * abs(mean))) ** 2

    def choose(self, order: str, source: str, joint: bool) -> str:
        """`"exact"` or `"probes"`, whichever gets to `rtol` for less."""
        directions = num_directions(self.problem, self.at, [source])
        cost = min(self.at.outputs.shape[-1], directions) if order == "R2" else directions
        if cost <= FEW_DIRECTIONS or joint or (order == "R3" and self.at.piecewise_linear):
            return "exact"
        if (source, False) not in self.drawn:
            self.draw(source, PILOT_PROBES)
        needed = self.needed(order, source)
        if needed >= cost and cost <= self.max_passes:
            return "exact"
        missing = min(needed, self.max_passes) - sum(len(f.gauss_newton) for f in self.drawn[source, False])
        self.draw(source, max(0, ceil(missing)))
        return "probes"


def problem_regularizers(
    problem: Problem,
    method: Method | Mapping[str, Method],
    rtol: float,
    *,
    num_probes: int,
    max_passes: int,
    deflate: int,
    distribution: str,
    engine: str,
    generator: torch.Generator | None,
    per_sample: bool = False,
) -> Regularizers:
    """The regularizers of one problem; see `regularizers`."""
    scales = problem.law.scales
    names = {(order, s): order + SOURCES[s] for s in scales for order in ("R2", "R3")}
    methods = _methods(method, list(names.values()))
    if num_probes < 2 or rtol <= 0 or deflate < 0:
        raise ValueError(
            f"expected num_probes >= 2 (for a standard error), rtol > 0 and deflate >= 0, got {num_probes}, {rtol} and "
            f"{deflate}."
        )
    at = linearize(problem.head, problem.features, engine=engine)
    limits = {"rtol": rtol, "max_passes": max_passes}
    plan = _Plan(problem, at, **limits, deflate=deflate, distribution=distribution, generator=generator)
    if "data" in scales and set(methods.values()) <= {"probes", "pairs"} and at.path == "tangent-adjoint":
        at.pullback(problem.loss.gradient(at.outputs, problem.labels))  # one reverse sweep for R1 and the probes
    many = at.outputs.shape[-1] > MANY_OUTPUTS  # then R2 may come along the directions of R3
    # Additive noise first: where it is exact, its basis serves the data terms as well
    for (order, source), name in sorted(names.items(), key=lambda item: item[0][1] != "additive"):
        if methods[name] == "auto":
            shared = methods.get("R3_add") == "exact" and "multiplicative" not in scales and at.width <= JOINT_WIDTH
            free = many and methods[names["R2", source]] == "exact" and follows_directions(problem, at, [source])
            joint = order == "R3" and (free or (source == "data" and shared))
            methods[name] = plan.choose(order, source, joint=joint)
        elif methods[name] != "exact" and (source, methods[name] == "pairs") not in plan.drawn:
            plan.draw(source, num_probes, pairs=methods[name] == "pairs")

    exact = {order: [s for s in scales if methods[names[order, s]] == "exact"] for order in ("R2", "R3")}
    rows = None if block_bytes() is None else problem.block_rows(passes=4)
    values = exact_terms(
        problem, at, gauss_newton=exact["R2"], residual=exact["R3"], block_rows=rows, per_sample=per_sample
    )
    along = many and set(exact["R2"]) == set(exact["R3"]) and follows_directions(problem, at, exact["R2"])
    passes = plan.passes + (at.outputs.shape[-1] if exact["R2"] and not along else 0)
    if exact["R3"] and (along or not at.piecewise_linear):
        passes += num_directions(problem, at, exact["R3"])
    zero = torch.zeros_like(values["R1"])
    estimates = {"R1": Estimate(values["R1"], zero, 0, "exact")} if "data" in scales else {}
    for (order, source), name in names.items():
        if methods[name] == "exact":
            estimates[name] = Estimate(values[name], zero, 0, "exact")
        else:
            probes = plan.values(order, source, methods[name] == "pairs")
            mean, stderr = (scales[source] * z for z in mean_and_stderr(probes, per_sample=per_sample))
            reached = bool(stderr.mean() <= rtol * mean.detach().abs().mean())
            estimates[name] = Estimate(mean, stderr, len(probes), f"{len(probes)} {methods[name]}", reached)
    losses = problem.loss(at.outputs, problem.labels)
    standard = losses if per_sample else losses.mean()
    ordered = {name: estimates[name] for name in ("R1", *SECOND_ORDER) if name in estimates}
    return Regularizers(standard, ordered, at.path, passes, at.piecewise_linear)


def _methods(method: str | Mapping[str, str], names: list[str]) -> dict[str, str]:
    """The method of every term."""
    chosen = dict.fromkeys(names, method) if isinstance(method, str) else dict.fromkeys(names, "auto") | dict(method)
    for name, value in chosen.items():
        if name not in names:
            raise ValueError(f"method: expected terms that are switched on, {names}, got {name!r}.")
        one_of("method", value, METHODS)
        if value == "pairs" and name not in ("R2", "R3"):
            chosen[name] = "probes"
            if not isinstance(method, str):
                raise ValueError(f"method: 'pairs' are pairs of examples, for R2 and R3; use 'probes' for {name}.")
    return chosen


@undisturbed()
def regularizers(
    problem: Problem | StreamedProblem | Sequence[Problem],
    method: Method | Mapping[str, Method] = "auto",
    rtol: float = 0.01,
    generator: torch.Generator | None = None,
    *,
    num_probes: int = 64,
    max_passes: int = 4096,
    deflate: int = 0,
    distribution: Literal["rademacher", "normal"] = "rademacher",
    engine: Literal["auto", "tangent-adjoint", "nested"] = "auto",
    reduction: Literal["mean", "none"] = "mean",
) -> Regularizers:
    r"""R1 and the second-order regularizers of NFM, each by the method that suits it (book: eq-second-moment).

    $$ \tfrac12\operatorname{tr}(A_i\,C_i), \qquad A_i = J_i^\top F_i J_i \ (R_2) \quad\text{or}\quad
       \textstyle\sum_c (p_i - y_i)_c \nabla^2 f_{i,c} \ (R_3) $$

    Values are differentiable in the parameters while gradients are enabled.

    Args:
        problem: the setting; a list of problems is averaged over. With a loader (`Problem.from_loader`) the terms are
            exact or come from the pairs within the batches, have no gradients, and ignore the other arguments.
        method: `"exact"`, `"probes"`, `"pairs"` or `"auto"`, for all terms or as a mapping from their names
            (`{"R3_add": "probes"}`; the others are `"auto"`).
        rtol: relative standard error that `"auto"` aims at.
        generator: random generator of the probes; the global one if `None`.
        num_probes: probes per source for `"probes"` and `"pairs"`, ≥ 2.
        max_passes: most directions that `"auto"` spends on one term.
        deflate: leading eigen-directions of the data that `"probes"` takes exactly.
        distribution: entries of the probes, `"rademacher"` or `"normal"`.
        engine: how second derivatives are taken, see `linearize`.
        reduction: `"none"` gives the terms of every sample, `(n,)`, whose mean is the term. Not with a loader.

    Raises:
        ValueError: for an unknown method, engine or distribution, numbers out of range, and a problem without a law.
        TypeError: for anything but problems, and for branches, whose exact terms are `nfm_theory.terms(branches)`.

    Example:
        >>> from nfm_theory import Law
        >>> head = lambda u: (u**2).sum(-1)
        >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0.0, 1.0])
        >>> found = regularizers(Problem(head, x, y, law=Law(alpha=0, add_noise=1.0), loss="square"))
        >>> round(float(found.R2_add), 4), found["R3_add"].method, found.engine  # ½ (2 g)², ½ (f - y) 2 d
        (2.0, 'exact', 'tangent-adjoint')
    """
    per_sample = one_of("reduction", reduction, ("mean", "none")) == "none"
    if isinstance(problem, StreamedProblem):
        if per_sample:
            raise ValueError("reduction: with a loader, expected 'mean'; take the problem of one batch for 'none'.")
        from .streaming import streamed_regularizers

        return streamed_regularizers(problem)
    problems = as_problems(problem)
    if any(isinstance(one, Branches) for one in problems):
        raise TypeError("problem: expected a Problem, got Branches; terms(branches) gives their exact terms.")
    for one in problems:
        check_problem(one, 2)
    found = [
        problem_regularizers(
            one, method, rtol, num_probes=num_probes, max_passes=max_passes, deflate=deflate,
            distribution=distribution, engine=engine, generator=generator, per_sample=per_sample,
        )
        for one in problems
    ]  # fmt: skip
    return found[0] if len(found) == 1 else Regularizers.average(found)
