r"""The exact NFM loss, in three ways (book: eq-nfm-loss): deterministic, by Monte Carlo, and as it is trained.

$$ L_{NFM}(\varepsilon) = \frac1n \sum_i \mathbb E_{\lambda \sim \tilde D}\, \frac1n \sum_r\,
   \mathbb E_\xi\; \ell\big(f_k(g_i + e_i(\varepsilon)), y_i\big), $$

averaged over the layers k. At ε = 1 it equals the loss with mixed labels and λ ~ Beta(α, β) that is trained. The losses
of `Branches`, stability loss and NoisyMix loss, are computed by the same code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack

from ..calculus.cuts import check_problem
from ..calculus.failures import DerivativeError, explained
from ..setting.ambient import undisturbed
from ..setting.branches import Branches
from ..setting.checks import one_of
from ..setting.problem import Problem, as_problems
from ..setting.quadrature import MAX_ROWS, GridTooLargeError, Quadrature
from ..setting.results import Estimate
from .as_trained import training_loss
from .exact import exact_loss
from .monte_carlo import DEFAULT_SAMPLES, ControlVariate, monte_carlo_loss

#: Rows of the deterministic rule up to which `method="auto"` takes it.
AUTO_ROWS = 500_000
#: Relative error above which the rule is refined, unless the caller chooses a rule.
RTOL = 1e-6
#: Relative error of the rule above which `method="auto"` tries Monte Carlo.
AUTO_RTOL = 1e-4


@undisturbed()
def loss(
    problem: Problem | Sequence[Problem],
    eps: float | Sequence[float] | Tensor = 1.0,
    method: Literal["auto", "exact", "monte_carlo", "as_trained"] = "auto",
    form: Literal["unmixed", "mixed"] | None = None,
    *,
    samples: int | None = None,
    target_stderr: float | None = None,
    control_variate: ControlVariate | None = None,
    batch_size: int | None = None,
    quadrature: Quadrature | None = None,
    generator: torch.Generator | None = None,
) -> Estimate:
    """The loss at scale `eps` (book: eq-nfm-loss): NFM's of a `Problem`, stability or NoisyMix loss of `Branches`.

    Args:
        problem: the setting; a list is averaged over.
        eps: scale of mixing and noise, ≥ 0; several values share the draws and give a `(num_eps,)` estimate.
        method: `"exact"` is a deterministic quadrature, differentiable, whose error is in the result; `"monte_carlo"`
            samples with a control variate; `"as_trained"` samples minibatches with mixed labels; `"auto"` is a
            quadrature if that takes at most 500,000 evaluations of the head, and Monte Carlo otherwise, and also where
            the quadrature has a relative error above 1e-4 and Monte Carlo a smaller one.
        form: `"unmixed"` has the label of the first sample and exists at every ε; `"mixed"` has the mixed label, at
            ε = 1 only. `None` is unmixed, and mixed as trained.
        samples: evaluations of the head per ε for sampling, 200,000 if `None`.
        target_stderr: stop Monte Carlo as soon as the largest standard error is below this.
        control_variate: Taylor polynomial that Monte Carlo subtracts from each row, `"none"`, `"linear"`,
            `"quadratic"`, `"cubic"`; `None` or `"auto"` takes the best by a pilot run.
        batch_size: size of the minibatches as trained; `None` for all samples.
        quadrature: rule and nodes of the deterministic method; `None` refines the rule until its relative error is
            below 1e-6, or a finer one takes more than a million evaluations.
        generator: random generator of the draws; the global one if `None`.

    Returns:
        `Estimate`. `stderr` is zero for `"exact"`; `error` says how far each value may be off, for every method. It is
        far below 1e-8 for a smooth head, and larger for one with kinks, such as ReLU, under noise.

    Raises:
        ValueError: if something does not fit, or an option does not belong to the method; `GridTooLargeError`, which
            is one, if the deterministic rule would explode; for a sampled loss within a transform of `torch.func`.
        TypeError: for anything but problems.

    Example:
        >>> from nfm_theory import Law
        >>> x, y = torch.tensor([[0.0], [2.0]]), torch.tensor([0.0, 0.0])
        >>> loss(Problem(lambda u: u, x, y, law=Law(), loss="square")).value
        tensor(0.8333)
    """
    problems = as_problems(problem)
    one_of("method", method, ("auto", "exact", "monte_carlo", "as_trained"))
    sampling = {"samples": samples, "target_stderr": target_stderr, "control_variate": control_variate}
    if method == "exact":
        _refuse(f"method={method!r}", **sampling, batch_size=batch_size, generator=generator)
    elif method == "as_trained":
        _refuse(
            f"method={method!r}", target_stderr=target_stderr, control_variate=control_variate, quadrature=quadrature
        )
    elif method == "monte_carlo":
        _refuse(f"method={method!r}", batch_size=batch_size, quadrature=quadrature)
    else:
        _refuse(f"method={method!r}", batch_size=batch_size)
    form = form or ("mixed" if method == "as_trained" else "unmixed")
    one_of("form", form, ("unmixed", "mixed"))
    scales = torch.as_tensor(eps, dtype=problems[0].features.dtype, device=problems[0].features.device)
    if not (scales.isfinite() & (scales >= 0)).all():
        raise ValueError(f"eps: expected finite numbers >= 0, got {eps!r}.")
    if form == "mixed" and not (scales == 1).all():
        raise ValueError("The mixed-label form exists at eps = 1 only; use form='unmixed' for other scales.")
    if method == "as_trained" and form == "unmixed":
        raise ValueError("method='as_trained' has mixed labels; use method='monte_carlo' for form='unmixed'.")
    points, by_rule = scales.reshape(-1), None
    if method in ("auto", "exact"):
        rule = quadrature or Quadrature(max_rows=AUTO_ROWS if method == "auto" else MAX_ROWS, rtol=RTOL)
        try:
            with explained():
                by_rule = average_over_layers([exact_loss(p, points, form, rule) for p in problems])
        except GridTooLargeError:
            if method == "exact":
                raise
        else:
            settled = form == "mixed" or bool((by_rule.error <= AUTO_RTOL * by_rule.value.abs()).all())
            if method == "exact" or settled:
                return _shaped(by_rule, scales)
    if peek_interpreter_stack() is not None:
        raise ValueError(
            "method: expected a quadrature within torch.func, which would take the missing gradients of a sampled loss "
            "for 0; use method='exact' with fewer samples or a quadrature= that fits."
        )
    if form == "mixed":
        _refuse("form='mixed'", target_stderr=target_stderr, control_variate=control_variate)
        found = training_loss(
            problems, samples=samples or DEFAULT_SAMPLES, batch_size=batch_size, permute=method == "as_trained",
            generator=generator,
        )  # fmt: skip
        return _shaped(found, scales)
    options = {"samples": samples or DEFAULT_SAMPLES, "target_stderr": target_stderr, "generator": generator}
    parts = [monte_carlo_loss(p, points, control_variate=_variate(p, control_variate), **options) for p in problems]
    sampled = average_over_layers(parts)
    better = by_rule is None or bool(sampled.error.max() < by_rule.error.max())
    return _shaped(sampled if better or by_rule is None else by_rule, scales)


def _refuse(choice: str, **options) -> None:
    """Refuse options that would be ignored with this choice."""
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ValueError(f"{given[0]}: does not belong to {choice}; leave it out, or make another choice.")


def _variate(problem: Problem, control_variate: ControlVariate | None) -> ControlVariate:
    """The control variate; there is none with shared noise, and none by itself if the loss has no derivative."""
    if not (isinstance(problem, Branches) and problem.shared_noise):
        if control_variate == "none":
            return control_variate
        usual = control_variate in (None, "auto")
        try:
            check_problem(problem, 3)
        except DerivativeError:  # the loss itself needs no derivative
            if not usual:
                raise
            return "none"
        return "none" if usual and not _has_gradient(problem) else control_variate or "auto"
    if control_variate not in (None, "auto", "none"):
        raise ValueError("shared_noise: expected control_variate='none', the others need independent elements.")
    return "none"


def _has_gradient(problem: Problem) -> bool:
    """True if automatic differentiation knows how the loss depends on the features."""
    with torch.enable_grad():
        first = problem.features[:1].detach().requires_grad_()
        return problem.losses(first, torch.zeros(1, dtype=torch.long, device=first.device)).requires_grad


def _shaped(found: Estimate, scales: Tensor) -> Estimate:
    error = found.quadrature_error
    return replace(
        found, value=found.value.reshape(scales.shape), stderr=found.stderr.reshape(scales.shape),
        quadrature_error=None if error is None else error.reshape(scales.shape),
    )  # fmt: skip


def average_over_layers(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of several estimates; sampling errors add in quadrature, errors of rules add up."""
    converged = [e.converged for e in estimates if e.converged is not None]
    errors = [e.quadrature_error for e in estimates if e.quadrature_error is not None]
    return Estimate(
        value=torch.stack([e.value for e in estimates]).mean(0),
        stderr=torch.stack([e.stderr**2 for e in estimates]).sum(0).sqrt() / len(estimates),
        samples=sum(e.samples for e in estimates),
        method=estimates[0].method,
        converged=all(converged) if converged else None,
        quadrature_error=torch.stack(errors).sum(0) / len(estimates) if errors else None,
    )
