r"""Accuracy under FGSM and PGD by radius (NFM Figure 5), lean enough for whole test sets.

Radii are in [0, 1] pixel units, whatever the normalisation: the attacked function is pixels -> logits, its box [0, 1].
`nfm_theory.adversarial.pgd_attack` searches harder (restarts, the best point of every run) and pays for it; here a
step is one forward and one backward pass and the last point counts, as is usual for PGD-k. Norm, radii, steps, step
and start of the paper's figure are nowhere stated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from nfm_theory.adversarial.attacks import project
from nfm_theory.adversarial.linear_bounds import Ball, check_ball

from ..data.images import ImageData
from .accuracy import Predict, check_evaluating, device_of, logits_of
from .streams import CHUNK, chunk_generator, normal_like, uniform_like

#: Default step in parts of the radius, divided by the number of steps (Madry et al. 2018, section 5).
REACH = 2.5
BOX = (0.0, 1.0)


def _per_row(value: Tensor, like: Tensor) -> Tensor:
    return value.reshape(-1, *[1] * (like.ndim - 1))


def _unit(v: Tensor) -> Tensor:
    """Rows divided by their l2 length, zeros left; divided first by the largest entry, whose square may underflow."""
    tiny = torch.finfo(v.dtype).tiny
    v = v / _per_row(v.flatten(1).abs().amax(1), v).clamp(min=tiny)
    return v / _per_row(v.flatten(1).norm(dim=1), v).clamp(min=tiny)


def unit_ball_like(x: Tensor, norm: str, generator: torch.Generator) -> Tensor:
    """Points uniform in the ball of radius 1, `(b, ...)`; drawn image by image.

    Args:
        x: of this shape.
        norm: `"linf"` or `"l2"`.
        generator: of the draws.
    """
    if norm == "linf":
        return 2 * uniform_like(x, generator) - 1
    points = []
    for row in x.split(1):  # one generator for both draws: image by image, or the batch size would matter
        direction, part = _unit(normal_like(row, generator)), uniform_like(row.new_empty(1), generator)
        points.append(direction * _per_row(part ** (1 / row.numel()), row))
    return torch.cat(points)


def ascend(
    head: Callable[[Tensor], Tensor],
    pixels: Tensor,
    labels: Tensor,
    *,
    radius: float,
    norm: str = "linf",
    steps: int = 7,
    step_size: float | None = None,
    start: Tensor | None = None,
) -> Tensor:
    r"""The last point of projected gradient ascent on the cross entropy, inside the ball and the box [0, 1].

    $$ x \leftarrow \Pi\big(x + s\,\rho\,\mathrm{sign}\,\nabla\ell\big) \quad (l_\infty), \qquad
       x \leftarrow \Pi\big(x + s\,\rho\,\nabla\ell/\|\nabla\ell\|_2\big) \quad (l_2) $$

    Args:
        head: maps pixels `(b, C, H, W)` in [0, 1] to logits `(b, K)`; images must not interact.
        pixels: the clean images.
        labels: class indices, `(b,)`.
        radius: ρ ≥ 0 in pixel units.
        norm: `"linf"` or `"l2"`.
        steps: ≥ 1.
        step_size: s, a part of the radius; `None` for 2.5 / steps.
        start: first displacement in parts of the radius, `(b, C, H, W)`; `None` for the image itself.
    """
    check_steps(steps, step_size)
    part = REACH / steps if step_size is None else step_size
    ball: Ball = check_ball(pixels, radius, norm, BOX)
    x = pixels if start is None else project(pixels + radius * start, ball)
    for _ in range(steps):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            loss = F.cross_entropy(head(leaf), labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, leaf)
        x = project(x + part * radius * (gradient.sign() if norm == "linf" else _unit(gradient)), ball)
    return x.detach()


def check_steps(steps: int, step_size: float | None) -> None:
    """Refuse impossible numbers and lengths of steps."""
    if steps < 1:
        raise ValueError(f"steps: expected >= 1, got {steps}.")
    if step_size is not None and not 0 < step_size < math.inf:
        raise ValueError(f"step_size: expected a number > 0 (a part of the radius), got {step_size!r}.")


def attack_curve(
    model: Predict,
    data: ImageData,
    radii: Sequence[float],
    *,
    norm: str = "linf",
    steps: int = 7,
    step_size: float | None = None,
    random_start: bool = True,
    seed: int = 0,
    limit: int | None = None,
    batch_size: int = 256,
    device: str | torch.device | None = None,
) -> dict[float, float]:
    """Accuracy under PGD by radius: an upper bound of the accuracy in the worst case.

    Images that are misclassified without an attack count as wrong and are not attacked. Each radius is attacked on its
    own. The random starts depend on the seed, the norm, the radius and the place of the image in the test set only.

    Args:
        model: maps normalised images to logits; in evaluation mode.
        data: whose test images are used.
        radii: ρ ≥ 0 in [0, 1] pixel units; 0 gives the clean accuracy.
        norm: `"linf"` or `"l2"`.
        steps: as `ascend`.
        step_size: as `ascend`.
        random_start: start at a uniform point of the ball, cut by the box, instead of at the image.
        seed: of the starts, ≥ 0.
        limit: only the first images; `None` for all.
        batch_size: images of one pass.
        device: where the model lives; `None` for the device of its parameters.
    """
    check_evaluating(model)
    check_steps(steps, step_size)
    device, test = device_of(model, device), data.test.first(limit)

    def head(pixels: Tensor) -> Tensor:
        return model(data.normalise(pixels))

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
            generator = chunk_generator(seed, "attack", norm, radius, chunk)
            for rows in members.split(batch_size):
                # starts are drawn for all images, so that another network sees the same ones
                like = torch.empty(test.images[rows].shape, device="cpu")
                start = unit_ball_like(like, norm, generator)[clean[rows]] if random_start else None
                rows = rows[clean[rows]]
                if len(rows) == 0:
                    continue
                pixels, labels = test.images[rows].to(device).float() / 255, test.labels[rows].to(device)
                found = ascend(
                    head, pixels, labels, radius=radius, norm=norm, steps=steps, step_size=step_size,
                    start=None if start is None else start.to(device),
                )  # fmt: skip
                with torch.no_grad():
                    kept += int((head(found).argmax(1) == labels).sum())
        curve[radius] = kept / len(test)
    return curve


def fgsm_curve(model: Predict, data: ImageData, radii: Sequence[float], **options) -> dict[float, float]:
    """Accuracy under the fast gradient sign method: one step of the whole radius from the image itself.

    (Goodfellow, Shlens and Szegedy 2015; with `norm="l2"` the fast gradient method.)

    Args:
        model: as `attack_curve`.
        data: as `attack_curve`.
        radii: as `attack_curve`.
        **options: `norm`, `limit`, `batch_size`, `device` of `attack_curve`.
    """
    return attack_curve(model, data, radii, steps=1, step_size=1.0, random_start=False, **options)
