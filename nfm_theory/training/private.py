r"""Differentially private training with several views of each sample: gradients, mixing, and what it costs in privacy.

A step of DP-SGD clips the gradient of every sample to the norm C, adds the gradients, and adds normal noise of standard
deviation σC to the sum. All views of a sample go into one gradient before it is clipped, and a view is mixed with views
of the same sample only, so that one sample still changes the sum by at most C. Plain Mixup combines two samples in a
row: each sample is in two rows, and the sum changes by 2C.

| method | here |
|---|---|
| DP-Mix self | `private_gradient(model, *self_mixed(views, targets, 4), ...)` |
| DP-Mix with outside images | the same with `outside=(images, targets)`, images that nobody's privacy depends on |
| what the noise guarantees | `privacy_spent`, `noise_for_privacy` |

Sources: M. Abadi et al., *Deep learning with differential privacy* (2016); W. Bao et al., *DP-Mix: Mixup-based data
augmentation for differentially private learning*; I. Mironov et al., *Rényi differential privacy of the sampled
Gaussian mechanism* (2019), for whole orders; B. Balle et al., *Hypothesis testing interpretations and Rényi
differential privacy* (2020), for the conversion.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from ..setting.law import Law
from ..setting.random_numbers import home_of, uniform

#: Rényi orders at which the privacy is counted.
ORDERS = tuple(range(2, 129))


def self_mixed(
    views: Tensor,
    targets: Tensor,
    count: int,
    *,
    law: Law | None = None,
    outside: tuple[Tensor, Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """The views of each sample, and mixtures of them (DP-Mix self), or of them with outside images (DP-Mix).

    Each mixture has its own λ, its own first view and its own partner, both uniform. A view can be its own partner.

    Args:
        views: K augmented views of each sample, `(n, K, *input)`.
        targets: label weights of the samples, `(n, classes)`.
        count: number of mixtures of each sample.
        law: law of λ; Beta(1, 1) if `None`. Its noise plays no part.
        outside: images `(m, *input)` and their label weights `(m, classes)`. They are partners besides the views. They
            must not depend on the private data, as images of a generative model that was trained on other data.
        generator: random generator; the global one if `None`.

    Returns:
        Inputs `(n, K + count, *input)`, the views first, and targets `(n, K + count, classes)`.

    Raises:
        ValueError: for shapes that do not fit, and a negative number of mixtures.

    Example:
        >>> x, y = self_mixed(torch.rand(5, 3, 8), torch.eye(5), 2)
        >>> x.shape, bool((y == torch.eye(5)[:, None]).all())
        (torch.Size([5, 5, 8]), True)
    """
    n = len(views)
    if views.ndim < 3 or targets.ndim != 2 or len(targets) != n or count < 0:
        raise ValueError(
            f"views, targets and count: expected (n, K, *input), (n, classes) and a count >= 0, got "
            f"{tuple(views.shape)}, {tuple(targets.shape)} and {count}."
        )
    k, labels = views.shape[1], targets[:, None].expand(-1, views.shape[1], -1)
    pool, pool_labels = views, labels
    if outside is not None:
        if outside[0].shape[1:] != views.shape[2:] or outside[1].shape != (len(outside[0]), targets.shape[1]):
            raise ValueError(
                f"outside: expected images (m, {', '.join(map(str, views.shape[2:]))}) and label weights (m, "
                f"{targets.shape[1]}), got {tuple(outside[0].shape)} and {tuple(outside[1].shape)}."
            )
        pool, pool_labels = (
            torch.cat([own, other.to(own).expand(n, *other.shape)], 1)
            for own, other in zip((views, labels), outside, strict=True)
        )
    place = {"generator": generator, "device": views.device}
    lam = (law or Law()).mixing.sample((n, count), unmixed=False, dtype=views.dtype, **place)
    first, second = ((uniform((n, count), **place) * size).long() for size in (k, pool.shape[1]))
    row = torch.arange(n, device=views.device)[:, None]

    def mix(own: Tensor, others: Tensor) -> Tensor:
        weight = lam.reshape(n, count, *[1] * (own.ndim - 2)).to(own)
        return torch.cat([own, weight * own[row, first] + (1 - weight) * others[row, second]], 1)

    return mix(views, pool), mix(labels, pool_labels)


def gradients_by_sample(model: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[list[Tensor], Tensor]:
    """The gradient of the cross entropy of every sample, the mean over its views, and the losses.

    Args:
        model: network in which samples do not meet; batch normalization in training mode is refused by PyTorch.
        inputs: views of the samples, `(n, K, *input)`.
        targets: label weights of the views, `(n, K, classes)`.

    Returns:
        For each parameter that is trained a tensor `(n, *parameter)`, and the losses `(n,)`.
    """
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    fixed = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}
    fixed |= dict(model.named_buffers())

    def one(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        logits = functional_call(model, {**parameters, **fixed}, (x,))
        loss = nn.functional.cross_entropy(logits, y)
        return loss, loss

    found, losses = vmap(grad(one, has_aux=True), in_dims=(None, 0, 0), randomness="different")(
        trained, inputs, targets
    )
    return list(found.values()), losses


def private_gradient(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    clip_norm: float,
    noise_multiplier: float,
    batch_size: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Write the private gradient of a batch into the parameters' `grad`, for any optimizer.

    $$ \frac1B\Big(\sum_i g_i\min\{1, C/\lVert g_i\rVert\} + \sigma C\,\xi\Big), \qquad \xi\sim N(0, I) $$

    Args:
        model: network in which samples do not meet.
        inputs: views of the samples, `(n, K, *input)`.
        targets: label weights of the views, `(n, K, classes)`.
        clip_norm: C > 0.
        noise_multiplier: σ ≥ 0. If the sum changes by cC when one sample leaves, give c times the σ of the accounting.
        batch_size: B, the expected number of samples in a batch, since the true one is private.
        generator: random generator of the noise; the global one if `None`.

    Returns:
        The losses of the samples before the step, `(n,)`; they are not private.

    Raises:
        ValueError: for a norm or a batch size that is not positive, and negative noise.
    """
    if not (clip_norm > 0 and noise_multiplier >= 0 and batch_size > 0):
        raise ValueError(
            f"expected clip_norm > 0, noise_multiplier >= 0 and batch_size > 0, got {clip_norm}, {noise_multiplier} "
            f"and {batch_size}."
        )
    found, losses = gradients_by_sample(model, inputs, targets)
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in found]).norm(dim=0)
    factors = (clip_norm / norms.clamp(min=clip_norm)).to(norms)
    source = home_of(generator, None)
    for parameter, g in zip((p for p in model.parameters() if p.requires_grad), found, strict=True):
        noise = torch.randn(parameter.shape, generator=generator, dtype=g.dtype, device=source or g.device).to(g)
        total = torch.einsum("i,i...->...", factors, g) + noise_multiplier * clip_norm * noise
        parameter.grad = total / batch_size
    return losses


def _renyi(noise_multiplier: float, rate: float, order: int) -> float:
    """Rényi divergence of one step at a whole order: a finite sum over binomial terms."""
    j = np.arange(order + 1)
    logs = [math.lgamma(order + 1) - math.lgamma(i + 1) - math.lgamma(order - i + 1) for i in j]
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.array(logs) + np.where(j > 0, j * np.log(rate), 0.0)
        terms = terms + np.where(j < order, (order - j) * np.log1p(-rate), 0.0)
    return float(np.logaddexp.reduce(terms + (j * j - j) / (2 * noise_multiplier**2))) / (order - 1)


def privacy_spent(
    noise_multiplier: float, rate: float, steps: int, delta: float, *, orders: Sequence[int] = ORDERS
) -> float:
    """ε of (ε, δ) differential privacy after steps of the sampled Gaussian mechanism.

    Each sample is in a batch with probability `rate`, independently of the others (Poisson sampling). Neighboring data
    sets differ by one sample that is added or removed.

    Args:
        noise_multiplier: σ > 0.
        rate: probability of a sample to be in a batch, in (0, 1].
        steps: number of steps.
        delta: δ in (0, 1).
        orders: whole Rényi orders ≥ 2 over which the bound is minimized.

    Raises:
        ValueError: for numbers out of range.

    Example:
        >>> round(privacy_spent(1.0, 0.01, 1000, 1e-5), 3)
        2.108
    """
    if not (noise_multiplier > 0 and 0 < rate <= 1 and steps >= 1 and 0 < delta < 1):
        raise ValueError(
            f"expected noise_multiplier > 0, 0 < rate <= 1, steps >= 1 and 0 < delta < 1, got {noise_multiplier}, "
            f"{rate}, {steps} and {delta}."
        )
    found = (
        steps * _renyi(noise_multiplier, rate, a) + math.log1p(-1 / a) - (math.log(delta) + math.log(a)) / (a - 1)
        for a in orders
    )
    return max(0.0, min(found))


def noise_for_privacy(epsilon: float, rate: float, steps: int, delta: float) -> float:
    """The smallest noise multiplier σ, to four digits and rounded up, with which `privacy_spent` is at most ε.

    Args:
        epsilon: ε > 0.
        rate: probability of a sample to be in a batch.
        steps: number of steps.
        delta: δ.

    Raises:
        ValueError: if ε is not positive, or no σ below 10⁴ is enough.

    Example:
        >>> sigma = noise_for_privacy(2.0, 0.01, 1000, 1e-5)
        >>> 1.99 < privacy_spent(sigma, 0.01, 1000, 1e-5) <= 2
        True
    """
    low, high = 1e-2, 1e4
    if not epsilon > 0 or privacy_spent(high, rate, steps, delta) > epsilon:
        raise ValueError(f"epsilon: expected a value that noise below {high:g} can reach, got {epsilon}.")
    while high / low > 1 + 1e-5:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if privacy_spent(middle, rate, steps, delta) <= epsilon else (middle, high)
    return float(np.format_float_positional(high * (1 + 5e-5), precision=5, fractional=False))
