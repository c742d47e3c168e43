r"""The exact NFM loss, in three ways (book: eq-nfm-loss): deterministic, Monte Carlo, and as it is trained.

$$ L_{NFM}(\varepsilon) = \frac1n \sum_i \mathbb E_{\lambda \sim \tilde D}\, \frac1n \sum_r\,
   \mathbb E_\xi\; \ell\big(f_k(g_i + e_i(\varepsilon)), y_i\big), $$

averaged over the layers k. At ε = 1 it equals the loss with mixed labels and λ ~ Beta(α, β) that is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

from ..expansion.terms import problem_grid, rule_sum
from ..setting.draws import Draw
from ..setting.laws import NoiseLaw
from ..setting.pointwise import PointwiseLoss
from ..setting.problem import Problem, build_problems
from ..setting.quadrature import MAX_ROWS, Grid
from ..setting.results import Estimate
from .monte_carlo import RunningMoments, monte_carlo_loss

#: Head evaluations that Monte Carlo spends per ε unless told otherwise.
DEFAULT_SAMPLES = 200_000


def grid_loss(
    problem: Problem,
    grid: Grid,
    eps: Tensor,
    *,
    memory_limit: int | None = None,
    progress: bool | None = None,
) -> Tensor:
    """The loss at every ε of `eps` `(E,)` by a deterministic rule, in float64, `(E,)`.

    With gradients enabled each block is recomputed in the backward pass, so that memory does not grow with the grid.
    """

    def rows(draw: Draw) -> Tensor:
        if not grid.unmixed:
            return problem.mixed_label_losses(draw).unsqueeze(-1)
        path = problem.path(draw)
        return torch.stack([path(e) for e in eps], dim=-1)

    def function(draw: Draw) -> Tensor:
        return checkpoint(rows, draw, use_reentrant=False) if torch.is_grad_enabled() else rows(draw)

    return rule_sum(problem, grid, function, passes=1, memory_limit=memory_limit, progress=progress, title="exact loss")


def exact_loss(
    problem: Problem,
    eps: Tensor,
    form: str,
    *,
    rule: str = "tensor",
    num_lam: int = 16,
    num_noise: int = 12,
    max_rows: int = MAX_ROWS,
    memory_limit: int | None = None,
    progress: bool | None = None,
) -> Estimate:
    """`nfm_loss(method="exact")` of one `Problem` at every ε of `eps` `(E,)`."""
    grid = problem_grid(
        problem,
        rule=rule,
        degree=3,
        num_lam=num_lam,
        num_noise=num_noise,
        max_rows=max_rows,
        unmixed=form == "unmixed",
    )
    value = grid_loss(problem, grid, eps, memory_limit=memory_limit, progress=progress).to(problem.features.dtype)
    return Estimate(value, torch.zeros_like(value), grid.rows, f"deterministic, {grid.rule.name}")


def _monte_carlo(problem: Problem, eps: Tensor, form: str, *, samples: int = DEFAULT_SAMPLES, **options) -> Estimate:
    if form == "unmixed":
        return monte_carlo_loss(problem, eps, samples=samples, **options)
    if "control_variate" in options or "target_stderr" in options or "antithetic_noise" in options:
        raise ValueError("form='mixed' by Monte Carlo is plain: drop the variance options, or use form='unmixed'.")
    return training_loss([problem], samples=samples, permute=False, **options)


def _into_minibatches(draw: Draw, num_samples: int, batch: int, generator: torch.Generator | None) -> Draw:
    """Re-index sweeps over 0..batch-1 as sweeps over random subsets of the samples, without replacement."""
    device = draw.index.device
    sweeps = len(draw) // batch
    source = generator.device if generator is not None else device
    order = torch.rand((sweeps, num_samples), generator=generator, device=source).argsort(1)[:, :batch].to(device)
    start = torch.arange(sweeps, device=device).repeat_interleave(batch) * batch
    return replace(draw, anchor=order.flatten()[start + draw.anchor], index=order.flatten()[start + draw.index])


@torch.no_grad()
def training_loss(
    problems: Sequence[Problem],
    *,
    samples: int = DEFAULT_SAMPLES,
    batch_size: int | None = None,
    permute: bool = True,
    generator: torch.Generator | None = None,
    memory_limit: int | None = None,
    progress: bool | None = None,
) -> Estimate:
    """Mean mixed-label loss over random minibatches at ε = 1, each at one layer drawn uniformly.

    With `permute` a minibatch has one λ, one permutation and one noise scale, as in training; its self-pairs weigh
    1/batch_size instead of 1/n, so that the mean equals the exact loss for `batch_size = n` only. Otherwise every row
    has its own λ and partner.

    Args:
        problems: one per layer.
        samples: evaluations of the head.
        batch_size: size of the minibatches, `None` for all samples.
        permute: draw as in training.
        generator: seeds the draws.
        memory_limit: bytes per block.
        progress: show a bar; `None` for long runs on a terminal only.

    Raises:
        ValueError: for a batch size outside 1..n, or fewer than two batches.
    """
    n = len(problems[0].features)
    batch = n if batch_size is None else batch_size
    if not 1 <= batch <= n:
        raise ValueError(f"batch_size: expected 1 <= batch_size <= n = {n}, got {batch_size}.")
    steps = samples // batch
    if steps < 2:
        raise ValueError(f"samples: expected at least two batches of {batch}, got {samples}.")
    device = generator.device if generator is not None else problems[0].features.device
    layers = torch.randint(len(problems), (steps,), generator=generator, device=device)
    moments = RunningMoments()
    disable = None if progress is None else not progress
    with tqdm(total=steps, desc="minibatches", unit="step", disable=disable, delay=2, leave=False) as bar:
        for problem, count in zip(problems, layers.bincount(minlength=len(problems)).tolist(), strict=True):
            block = max(1, problem.block_rows(memory_limit) // batch)
            for start in range(0, count, block):
                sweeps = min(block, count - start)
                draw = problem.draw(batch, sweeps, unmixed=False, as_trained=permute, generator=generator)
                if batch < n:
                    draw = _into_minibatches(draw, n, batch, generator)
                moments.add(problem.mixed_label_losses(draw).reshape(sweeps, batch).mean(1))
                bar.update(sweeps)
    dtype = problems[0].features.dtype
    method = f"as trained, batches of {batch}" if permute else "Monte Carlo, mixed labels"
    return Estimate(moments.mean.to(dtype), moments.stderr().to(dtype), steps * batch, method)


def average_over_layers(estimates: Sequence[Estimate]) -> Estimate:
    """The mean over layers of independent estimates."""
    converged = [e.converged for e in estimates if e.converged is not None]
    return Estimate(
        value=torch.stack([e.value for e in estimates]).mean(0),
        stderr=torch.stack([e.stderr**2 for e in estimates]).sum(0).sqrt() / len(estimates),
        samples=sum(e.samples for e in estimates),
        method=estimates[0].method,
        converged=all(converged) if converged else None,
    )


def nfm_loss(
    model: nn.Module | Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    *,
    eps: float | Sequence[float] | Tensor = 1.0,
    method: str = "exact",
    form: str | None = None,
    layer: str | Sequence[str] = "",
    params: Mapping[str, Tensor] | None = None,
    alpha: float = 1.0,
    beta: float | None = None,
    add_noise: float = 0.0,
    mult_noise: float = 0.0,
    noise: str | NoiseLaw | tuple[NoiseLaw, NoiseLaw] = "normal",
    loss: str | PointwiseLoss | Callable = "cross_entropy",
    **options,
) -> Estimate:
    """The NFM loss at scale `eps` (book: eq-nfm-loss).

    Args:
        model: network in eval mode, or any callable from inputs to outputs `(n, K)` or `(n,)`.
        x: inputs, `(n, *input)`; fixes device and dtype.
        y: labels: indices `(n,)`, or distributions or targets `(n, K)`.
        eps: scale of mixing and noise, ≥ 0; several values share the draws and give a `(num_eps,)` estimate.
        method: `"exact"` (deterministic quadrature, differentiable), `"monte_carlo"` or `"as_trained"`.
        form: `"unmixed"` (label of the first sample, any ε) or `"mixed"` (mixed label, ε = 1 only);
            `None` is unmixed, and mixed as trained.
        layer: dotted name of the layer that is perturbed, `""` for the input; a sequence averages over layers.
        params: parameters to use instead of the model's own, by name.
        alpha: first Beta parameter of λ; 0 for no mixing.
        beta: second Beta parameter, `None` means `alpha`.
        add_noise: σ_add.
        mult_noise: σ_mult.
        noise: `"normal"`, `"uniform"`, `"rademacher"`, `"released"`, or laws (see `NoiseLaw`).
        loss: `"cross_entropy"`, `"logistic"`, `"square"`, or a smooth callable `(outputs, labels) -> (batch,)`.
        **options: of the method. `"exact"`: `rule="tensor"` (or `"auto"`, `"cubature-3"`, `"cubature-5"`),
            `num_lam=16`, `num_noise=12`, `max_rows`. `"monte_carlo"`: `samples`, `control_variate="auto"`,
            `antithetic_noise=True`, `target_stderr=None`, `generator`. `"as_trained"`: `samples`,
            `batch_size=None` (all), `generator`. All: `memory_limit` in bytes, `progress`.

    Returns:
        `Estimate`; `stderr` is zero for `"exact"`.

    Raises:
        ValueError: if something does not fit; `GridTooLargeError` if the deterministic rule would explode.
        TypeError: for arguments of the wrong kind or options the method does not have.

    Example:
        >>> x, y = torch.tensor([[0.0], [2.0]]), torch.tensor([0.0, 0.0])
        >>> nfm_loss(lambda u: u, x, y, loss="square", alpha=1.0).value
        tensor(0.8333)
    """
    methods = {"exact": exact_loss, "monte_carlo": _monte_carlo, "as_trained": None}
    if method not in methods:
        raise ValueError(f"method: expected one of {list(methods)}, got {method!r}.")
    form = form or ("mixed" if method == "as_trained" else "unmixed")
    if form not in ("unmixed", "mixed"):
        raise ValueError(f"form: expected 'unmixed' or 'mixed', got {form!r}.")
    problems = build_problems(
        model, x, y, layer=layer, params=params, alpha=alpha, beta=beta, add_noise=add_noise,
        mult_noise=mult_noise, noise=noise, loss=loss,
    )  # fmt: skip
    scales = torch.as_tensor(eps, dtype=problems[0].features.dtype, device=x.device)
    if not (scales.isfinite() & (scales >= 0)).all():
        raise ValueError(f"eps: expected finite numbers >= 0, got {eps!r}.")
    if form == "mixed" and not (scales == 1).all():
        raise ValueError("The mixed-label form exists at eps = 1 only; use form='unmixed' for other scales.")
    if method == "as_trained":
        if form == "unmixed":
            raise ValueError("method='as_trained' has mixed labels; use method='monte_carlo' for form='unmixed'.")
        return training_loss(problems, **options)
    result = average_over_layers([methods[method](p, scales.reshape(-1), form, **options) for p in problems])
    return replace(result, value=result.value.reshape(scales.shape), stderr=result.stderr.reshape(scales.shape))
