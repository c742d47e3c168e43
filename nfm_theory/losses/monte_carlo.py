r"""Monte Carlo for the NFM loss: antithetic noise, common random numbers across ε, a Taylor control variate.

The control variate of a row is its own Taylor polynomial, whose expectation is known exactly (`terms`):

$$ \hat L(\varepsilon) = T_q(\varepsilon) + \frac1N \sum_{rows} \Big[\varphi(\varepsilon)
   - \sum_{k \le q} \tfrac{\varphi^{(k)}(0)}{k!} \varepsilon^k\Big] \qquad \text{(book: eq-control-variate)} $$

so that a remainder of O(ε³) is resolved with noise of O(ε³), not O(ε). Which order q pays is measured, not assumed:
at large ε a polynomial hurts. Up to order 2 a row's polynomial costs one tangent through the recorded head
(`paths.Polynomials`); order 3 takes nested differentiation and has to earn its cost.
"""

from __future__ import annotations

import warnings
from typing import Literal

import torch
from torch import Tensor

from ..calculus.engine.base import block_bytes
from ..expansion.paths import Polynomials
from ..expansion.terms import problem_terms
from ..setting.checks import one_of
from ..setting.draws import Draw, antithetic
from ..setting.options import progress_bar
from ..setting.problem import Problem
from ..setting.results import Estimate

ControlVariate = Literal["auto", "none", "linear", "quadratic", "cubic"]
#: Head evaluations that Monte Carlo spends per ε unless told otherwise.
DEFAULT_SAMPLES = 200_000
#: Sweeps of the pilot run that chooses the control variate; they are not used again.
PILOT_SWEEPS = 64
#: Control variates: highest order of the Taylor polynomial, -1 for none.
CONTROL_VARIATES = {"none": -1, "linear": 1, "quadratic": 2, "cubic": 3}
#: Cost of a row with each of them, in evaluations of the head (benchmarks/control_variate.py).
COSTS = {-1: 1.0, 1: 1.1, 2: 2.2, 3: 30.0}


class RunningMoments:
    """Mean and variance of a stream of blocks, `(rows, *out)`, in float64."""

    def __init__(self):
        self.count = 0
        self.mean = self.squares = torch.zeros((), dtype=torch.float64)

    def add(self, values: Tensor) -> None:
        """Merge a block (Chan, Golub and LeVeque 1979)."""
        values = values.double()
        count, mean = len(values), values.mean(0)
        shift = mean - self.mean
        total = self.count + count
        self.squares = self.squares + ((values - mean) ** 2).sum(0) + shift**2 * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total

    def stderr(self) -> Tensor:
        """Standard error of the mean."""
        return (self.squares / max(self.count - 1, 1) / max(self.count, 1)) ** 0.5


def block_sweeps(problem: Problem, order: int) -> int:
    """How often all samples are drawn at once: as often as memory allows and perturbations stay in a cache.

    Args:
        problem: the setting.
        order: order of the control variate.
    """
    rows = problem.block_rows(passes=8 if order > 2 else 2)
    cached = 4 * block_bytes(problem.features.device) // problem.features[0].nbytes
    return max(1, min(rows, cached) // len(problem.features))


def sweep_means(
    problem: Problem, polynomials: Polynomials | None, draw: Draw, eps: Tensor, order: int, both_signs: bool
) -> tuple[Tensor, Tensor]:
    """Sweep means of the loss at every ε, `(sweeps, E)`, and of the Taylor coefficients, `(sweeps, order + 1)`."""
    n = len(problem.features)
    losses, coefficients = [], []
    for rows in (draw, antithetic(draw)) if both_signs else (draw,):
        path = problem.path(rows)
        losses.append(torch.stack([path(e) for e in eps], dim=-1))
        coefficients.append(polynomials(path, order) if polynomials is not None and order >= 0 else losses[-1][:, :0])
    sweeps = len(draw) // n
    loss_means, coefficient_means = (
        sum(part[1:], part[0]).reshape(sweeps, n, part[0].shape[-1]).mean(1).double() / len(part)
        for part in (losses, coefficients)
    )
    return loss_means, coefficient_means


def corrected(losses: Tensor, coefficients: Tensor, eps: Tensor, orders: list[int]) -> Tensor:
    """Losses minus the rows' own Taylor polynomial of the order chosen for each ε."""
    columns = []
    for column, order in enumerate(orders):
        powers = eps[column].double() ** torch.arange(order + 1, device=eps.device)
        columns.append(losses[:, column] - coefficients[:, : order + 1] @ powers)
    return torch.stack(columns, dim=-1)


def _cheapest(variances: dict[int, Tensor]) -> list[int]:
    """For each ε the order whose standard error falls fastest per cost.

    A row pays for the highest order among all ε, and so does every ε then.
    """
    efforts = {}
    for top in COSTS:
        allowed = [q for q in COSTS if q <= top]
        best = [min(allowed, key=lambda q, c=column: float(variances[q][c])) for column in range(len(variances[top]))]
        efforts[top] = COSTS[top] * torch.stack([variances[q][c] for c, q in enumerate(best)]), best
    tiny = torch.finfo(torch.float64).tiny
    return min(efforts.values(), key=lambda effort: float(effort[0].clamp_min(tiny).log().mean()))[1]


@torch.no_grad()
def monte_carlo_loss(
    problem: Problem,
    eps: Tensor,
    *,
    samples: int,
    control_variate: ControlVariate = "auto",
    antithetic_noise: bool = True,
    target_stderr: float | None = None,
    generator: torch.Generator | None = None,
) -> Estimate:
    """The unmixed NFM loss of one layer with its standard error, at every ε of `eps` `(E,)`, with common draws.

    Args:
        problem: the setting.
        eps: scales, `(E,)`.
        samples: most evaluations of the head per ε to spend (antithetic pairs count twice).
        control_variate: `"none"`, `"linear"`, `"quadratic"`, `"cubic"`, or `"auto"`: per ε the one with the
            smallest variance times cost in a pilot run.
        antithetic_noise: average each row with its noise reversed.
        target_stderr: stop as soon as the largest standard error is below this.
        generator: random generator of the draws.

    Raises:
        ValueError: for unknown control variates, or too few samples for a standard error.

    Warns:
        RuntimeWarning: if `target_stderr` was not reached; `converged` is then False.
    """
    one_of("control_variate", control_variate, ("auto", *CONTROL_VARIATES))
    g, n = problem.features, len(problem.features)
    noisy = problem.noises != (None, None)
    both_signs = antithetic_noise and noisy
    per_sweep = n * (2 if both_signs else 1)
    pilot = PILOT_SWEEPS if control_variate == "auto" else 0
    sweeps = samples // per_sweep - pilot
    if sweeps < 2:
        raise ValueError(
            f"samples: expected at least {(pilot + 2) * per_sweep} (n = {n} samples a sweep"
            f"{', twice for antithetic noise' if both_signs else ''}, {pilot} pilot sweeps), got {samples}."
        )

    polynomials = None if control_variate == "none" else Polynomials(problem)
    if control_variate == "auto":
        draw = problem.draw(n, pilot, generator=generator)
        losses, coefficients = sweep_means(problem, polynomials, draw, eps, 3, both_signs)
        variances = {q: corrected(losses, coefficients, eps, [q] * len(eps)).var(0) for q in CONTROL_VARIATES.values()}
        orders = _cheapest(variances)
    else:
        orders = [CONTROL_VARIATES[control_variate]] * len(eps)
    top = max(orders)
    known = eps.new_zeros(0, dtype=torch.float64)
    if top >= 0:
        terms = problem_terms(problem, remainder=top == 3)
        known = torch.stack(terms.coefficients(top)).double()
    means = torch.stack(
        [
            known[: q + 1] @ e.double() ** torch.arange(q + 1, device=eps.device)
            for q, e in zip(orders, eps, strict=True)
        ]
    )

    block = block_sweeps(problem, top)
    moments, done, converged = RunningMoments(), 0, None
    with progress_bar(title="Monte Carlo", total=sweeps * per_sweep, unit="row") as bar:
        while done < sweeps:
            count = min(block, sweeps - done)
            losses, coefficients = sweep_means(
                problem, polynomials, problem.draw(n, count, generator=generator), eps, top, both_signs
            )
            moments.add(corrected(losses, coefficients, eps, orders))
            done += count
            bar.update(count * per_sweep)
            if target_stderr is not None and done >= 30:
                bar.set_postfix(stderr=float(moments.stderr().max()))
                if float(moments.stderr().max()) <= target_stderr:
                    break
    stderr = moments.stderr()
    if target_stderr is not None:
        converged = bool((stderr <= target_stderr).all())
        if not converged:
            warnings.warn(
                f"Monte Carlo stopped at samples = {samples} with a standard error of {float(stderr.max()):.3g}, above "
                f"target_stderr = {target_stderr:.3g}; allow more samples.",
                RuntimeWarning,
                stacklevel=3,
            )
    names = {q: name for name, q in CONTROL_VARIATES.items()}
    chosen = sorted({names[q] for q in orders}, key=list(CONTROL_VARIATES).index)
    return Estimate(
        value=(moments.mean + means).to(g.dtype),
        stderr=stderr.to(g.dtype),
        samples=(done + pilot) * per_sweep,
        method=f"Monte Carlo, control variate {'/'.join(chosen)}{', antithetic noise' if both_signs else ''}",
        converged=converged,
    )
