r"""The stability loss and the NoisyMix loss at any scale: deterministic, or by Monte Carlo with a standard error.

| loss | function |
|---|---|
| $L_{JSD}(\varepsilon)$ (book: eq-jsd) | `stability_loss` |
| $L_{NFM}(\varepsilon) + \gamma L_{JSD}(\varepsilon)$ (book: eq-noisymix) | `noisymix_loss` |

Rules and estimators are those of the NFM loss, on the stacked branches (`branches`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..setting.branches import GAMMA, build_layers
from ..setting.results import Estimate
from .monte_carlo import monte_carlo_loss
from .nfm_loss import DEFAULT_SAMPLES, average_over_layers, exact_loss


def stability_loss(
    model: nn.Module | Callable[[Tensor], Tensor],
    xs: Tensor | Sequence[Tensor],
    y: Tensor | None = None,
    *,
    eps: float | Sequence[float] | Tensor = 1.0,
    method: str = "exact",
    form: str = "unmixed",
    layer: str | Sequence[str] = "",
    evaluation: Mapping | None = None,
    **options,
) -> Estimate:
    r"""The expected stability loss at scale `eps` (book: eq-jsd).

    $$ L_{JSD}(\varepsilon) = \frac1n \sum_i \mathbb E_{\lambda \sim \tilde D}\, \frac1n \sum_r \mathbb E_\xi\,
       \mathrm{JSD}_\pi\big(f_k(g_i^1 + e_i^1(\varepsilon)), \dots, f_k(g_i^m + e_i^m(\varepsilon))\big) $$

    The divergence has no label, so that λ + (1 - λ) = 1 moves it to the unmixed law D̃ as the mixed label does for the
    NFM loss.

    Source: NoisyMix, Lemma 2, as stated in `notation`.

    Args:
        model: network in eval mode, or any callable from inputs to outputs.
        xs: branches `(m, n, *input)`, or m tensors: clean inputs, then augmented copies.
        y: labels, for `loss="noisymix"`.
        eps: scale of mixing and noise, ≥ 0; several values share the draws.
        method: `"exact"` (deterministic quadrature, differentiable) or `"monte_carlo"`.
        form: `"unmixed"` (λ from D̃), or `"mixed"` (λ from Beta(α, β), as trained; ε = 1 and `"exact"` only).
        layer: layer that is perturbed; a sequence averages over layers.
        evaluation: options of the method, as those of `nfm_loss`: for `"exact"` `rule="tensor"`, `num_lam`,
            `num_noise`, `max_rows`; for `"monte_carlo"` `samples`, `generator`, `control_variate` (shared noise:
            `"none"` only), `target_stderr`; for both `memory_limit`, `progress`.
        **options: as `build_branches`.

    Returns:
        `Estimate`; `stderr` is zero for `"exact"`.

    Raises:
        ValueError: if something does not fit; `GridTooLargeError` if the deterministic rule would explode.
        TypeError: for arguments of the wrong kind or options the method does not have.

    Example:
        >>> certain = torch.tensor([[[50.0, 0.0]], [[0.0, 50.0]]])
        >>> round(float(stability_loss(lambda u: u, certain, alpha=0).value), 6)  # log 2, nothing in common
        0.693147
    """
    if method not in ("exact", "monte_carlo"):
        raise ValueError(f"method: expected 'exact' or 'monte_carlo', got {method!r}.")
    if form not in ("unmixed", "mixed"):
        raise ValueError(f"form: expected 'unmixed' or 'mixed', got {form!r}.")
    settings = build_layers(model, xs, y, layer=layer, **options)
    g, evaluation = settings[0].features, dict(evaluation or {})
    scales = torch.as_tensor(eps, dtype=g.dtype, device=g.device)
    if not (scales.isfinite() & (scales >= 0)).all():
        raise ValueError(f"eps: expected finite numbers >= 0, got {eps!r}.")
    if form == "mixed" and (method != "exact" or not (scales == 1).all()):
        raise ValueError("form='mixed' exists for eps = 1 and method='exact'; use form='unmixed' otherwise.")
    points = scales.reshape(-1)
    if method == "exact":
        parts = [exact_loss(b, points, form, **evaluation) for b in settings]
    else:
        evaluation = {"samples": DEFAULT_SAMPLES} | evaluation
        if settings[0].shared_noise and evaluation.setdefault("control_variate", "none") != "none":
            raise ValueError("shared_noise: expected control_variate='none', the others need independent elements.")
        parts = [monte_carlo_loss(b, points, **evaluation) for b in settings]
    result = average_over_layers(parts)
    return replace(result, value=result.value.reshape(scales.shape), stderr=result.stderr.reshape(scales.shape))


def noisymix_loss(model, xs, y: Tensor, *, gamma: float = GAMMA, **options) -> Estimate:
    r"""The NoisyMix loss, `L_NFM + γ L_JSD` (book: eq-noisymix); by default γ = 12 and equal weights, as released.

    The label is that of the clean branch alone, `xs[0]`; all branches share λ and partners. Its expansion is
    `stability_terms(..., loss="noisymix")`, its verification `verify_stability(..., loss="noisymix")`.

    Args:
        model: as `stability_loss`.
        xs: branches, m = 3 as released, any m ≥ 2 here.
        y: labels of the samples.
        gamma: γ ≥ 0.
        **options: as `stability_loss`; `label_loss="logistic"` for one logit.

    Example:
        >>> x = torch.tensor([[[0.0, 2.0], [1.0, 0.0]]]).repeat(3, 1, 1)  # equal branches without noise: no JSD
        >>> y = torch.tensor([0, 1])
        >>> from nfm_theory import nfm_loss
        >>> torch.allclose(noisymix_loss(lambda u: u, x, y).value, nfm_loss(lambda u: u, x[0], y).value)
        True
    """
    return stability_loss(model, xs, y, loss="noisymix", gamma=gamma, **options)
