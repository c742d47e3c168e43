"""Accuracy under FGSM and PGD at several radii (NFM Figure 5), fast enough for whole test sets.

Radii refer to pixels in [0, 1], in the maximum norm, for every normalisation: the attack acts on pixels and stays in
the box [0, 1]. `nfm_theory.adversarial.pgd_attack` searches more thoroughly (restarts, best point of every run, other
norms) and is slower. Here a step is one forward and one backward pass, and the last point counts, as is usual for
PGD-k. The papers do not state the norm, radii, number and length of steps, and starting point of their figure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from nfm_theory.adversarial.attacks import project
from nfm_theory.adversarial.guards import input_gradient, raise_if_cut
from nfm_theory.adversarial.label_margins import deficit_gradient
from nfm_theory.adversarial.linear_bounds import check_ball

from ..data.images import ImageData
from .accuracy import Predict, check_evaluating, device_of, logits_of
from .streams import CHUNK, chunk_generator, uniform_like

#: Default step length, as a multiple of the radius divided by the number of steps (Madry et al. 2018, section 5).
REACH = 2.5
BOX = (0.0, 1.0)


def ascend(
    head: Callable[[Tensor], Tensor],
    pixels: Tensor,
    labels: Tensor,
    *,
    radius: float,
    steps: int = 7,
    step_size: float | None = None,
    start: Tensor | None = None,
) -> Tensor:
    r"""The last point of projected gradient ascent on the cross entropy, inside the ball and the box [0, 1].

    $$ x \leftarrow \Pi\big(x + s\,\rho\,\mathrm{sign}\,\nabla\ell\big) $$

    The ball is that of the maximum norm. The direction of ∇ℓ is that of the gradient of
    `label_margins.margin_deficit`, which does not round to 0 where the network is confident.

    Args:
        head: maps pixels `(b, C, H, W)` in [0, 1] to logits `(b, K)`, each image independently of the others.
        pixels: clean images.
        labels: class indices, `(b,)`.
        radius: ρ ≥ 0, for pixels in [0, 1].
        steps: number of steps, at least 1.
        step_size: s, step length as a fraction of the radius; `None` for 2.5 / steps.
        start: first displacement as a fraction of the radius, `(b, C, H, W)`; `None` starts at the image itself.

    Raises:
        ValueError: if the logits change with the pixels, but no gradient says so.
    """
    check_steps(steps, step_size)
    part = REACH / steps if step_size is None else step_size
    ball = check_ball(pixels, radius, "linf", BOX)
    x = pixels if start is None else project(pixels + radius * start, ball)
    slopes = partial(deficit_gradient, own=labels)
    for _ in range(steps):
        _, gradient = input_gradient(head, x, slopes)
        if gradient is None or not gradient.any():
            raise_if_cut(head, x, _away(x, radius), slopes)
            break
        x = project(x + part * radius * gradient.sign(), ball)
    return x.detach()


def _away(x: Tensor, radius: float) -> Tensor:
    """Points at the distance ρ in the maximum norm, in directions that are always the same."""
    signs = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)).to(x) - 0.5
    return x + radius * signs.sign()


def check_steps(steps: int, step_size: float | None) -> None:
    """Refuse a number of steps below 1 and a step length that is not positive."""
    if steps < 1:
        raise ValueError(f"steps: expected >= 1, got {steps}.")
    if step_size is not None and not 0 < step_size < math.inf:
        raise ValueError(f"step_size: expected a number > 0 (a fraction of the radius), got {step_size!r}.")


def attack_curve(
    model: Predict,
    data: ImageData,
    radii: Sequence[float],
    *,
    steps: int = 7,
    step_size: float | None = None,
    random_start: bool = True,
    seed: int = 0,
    limit: int | None = None,
    batch_size: int = 256,
    device: str | torch.device | None = None,
) -> dict[float, float]:
    """Accuracy under PGD at each radius. It is an upper bound of the accuracy in the worst case.

    Misclassified clean images count as wrong and are not attacked. Every radius is attacked separately. The random
    starts depend only on the seed, the radius and the index of the image in the test set.

    Args:
        model: network in evaluation mode; maps normalized images to logits.
        data: data set whose test images are attacked.
        radii: ρ ≥ 0, for pixels in [0, 1]; 0 gives the clean accuracy.
        steps: number of steps, at least 1.
        step_size: step length as a fraction of the radius; `None` for 2.5 / steps.
        random_start: True to start at a random point of the ball, clipped to the box; False to start at the image.
        seed: random seed of the starts, ≥ 0.
        limit: number of test images, counted from the first; `None` for all.
        batch_size: number of images in a forward pass.
        device: device of the model; `None` for the device of its parameters.
    """
    check_evaluating(model)
    check_steps(steps, step_size)
    device, test = device_of(model, device), data.test.first(limit)

    def head(pixels: Tensor) -> Tensor:
        return model(data.normalize(pixels))

    clean = logits_of(model, test, data, batch_size=batch_size, device=device).argmax(1) == test.labels
    curve = {}
    for radius in radii:
        if not 0 <= radius < math.inf:
            raise ValueError(f"radius: expected a finite number >= 0, got {radius!r}.")
        if radius == 0:
            curve[radius] = int(clean.sum()) / len(test)
            continue
        kept = 0
        for chunk, members in enumerate(torch.arange(len(test)).split(CHUNK)):
            generator = chunk_generator(seed, "attack", "linf", radius, chunk)
            for rows in members.split(batch_size):
                # drawn for all images, so that every network gets the same starts
                like = torch.empty(test.images[rows].shape, device="cpu")
                start = (2 * uniform_like(like, generator) - 1)[clean[rows]] if random_start else None
                rows = rows[clean[rows]]
                if len(rows) == 0:
                    continue
                pixels, labels = test.images[rows].to(device).float() / 255, test.labels[rows].to(device)
                found = ascend(
                    head, pixels, labels, radius=radius, steps=steps, step_size=step_size,
                    start=None if start is None else start.to(device),
                )  # fmt: skip
                with torch.no_grad():
                    kept += int((head(found).argmax(1) == labels).sum())
        curve[radius] = kept / len(test)
    return curve


def fgsm_curve(model: Predict, data: ImageData, radii: Sequence[float], **options) -> dict[float, float]:
    """Accuracy under the fast gradient sign method: one step of full radius from the image itself.

    (Goodfellow, Shlens and Szegedy 2015.) Arguments as in `attack_curve`.
    """
    return attack_curve(model, data, radii, steps=1, step_size=1.0, random_start=False, **options)
