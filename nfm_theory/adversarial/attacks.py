r"""Attacks: the inner maximum `max_{‖δ‖ <= ρ_i} ℓ(f(h_i + δ), y_i)` from below (theory §5).

Projected gradient ascent with restarts searches the ball for points with a large loss. What it finds is a lower bound
of the maximum, and an upper bound of the radius at which the prediction changes. An attack can refute that a model is
robust, but never confirm it; see `certificates` for that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..calculus.cuts import check_problem
from ..setting.ambient import undisturbed
from ..setting.branches import as_problem
from ..setting.options import progress_bar
from ..setting.pointwise import PointwiseLoss
from ..setting.problem import Problem
from ..setting.results import Record
from .linear_bounds import Ball, Norm, check_ball

#: Length of the first step, as a part of the radius; the steps then shrink to 0 along half a cosine.
FIRST_STEP = 0.5


@dataclass(frozen=True)
class Attack(Record):
    """The worst points that `pgd_attack` found.

    Attributes:
        features: the points with the largest loss, `(b, *feature)`.
        losses: the losses at these points, `(b,)`.
        clean_losses: the losses at the centers of the balls, `(b,)`.
        flipped: True if the attack met a point whose prediction is not the label, `(b,)`.
        flip_features: the nearest such point, `(b, *feature)`; the center if there is none.
        flip_distance: the distance of that point in the norm of the ball, `(b,)`; infinite if there is none.
        evaluations: number of points at which the head was evaluated.
    """

    features: Tensor
    losses: Tensor
    clean_losses: Tensor
    flipped: Tensor
    flip_features: Tensor
    flip_distance: Tensor
    evaluations: int


@dataclass(frozen=True)
class FlipRadius(Record):
    """The nearest change of the prediction that `flip_radius` found.

    Attributes:
        radius: distance of the nearest point with another prediction, `(b,)`. The true distance is not larger. It is 0
            for examples that are misclassified already, and infinite if no such point was found.
        features: these points, `(b, *feature)`; the center if there is none.
        evaluations: number of points at which the head was evaluated.
    """

    radius: Tensor
    features: Tensor
    evaluations: int


def _columns(outputs: Tensor) -> Tensor:
    return outputs.unsqueeze(-1) if outputs.ndim == 1 else outputs


def predicted_class(outputs: Tensor) -> Tensor:
    """Index of the largest output, `(b,)`; with a single output, 1 if it is positive and 0 otherwise."""
    return (outputs[:, 0] > 0).long() if outputs.shape[1] == 1 else outputs.argmax(1)


def label_class(labels: Tensor, outputs: Tensor, loss: PointwiseLoss) -> Tensor:
    """The class with which a prediction is compared, `(b,)`: the label, or the clean prediction if it has none."""
    if loss.name == "logistic":
        return (labels[:, 0] > 0.5).long()
    if labels.shape == outputs.shape and outputs.shape[1] > 1:
        return labels.argmax(1)
    return predicted_class(outputs)


def _length(z: Tensor, norm: str) -> Tensor:
    return z.flatten(1).norm(dim=1) if norm == "l2" else z.flatten(1).abs().amax(1)


def _per_row(value: Tensor, like: Tensor) -> Tensor:
    return value.reshape(-1, *[1] * (like.ndim - 1))


def project(h: Tensor, ball: Ball) -> Tensor:
    """Project points onto the ball and then onto the box, `(b, *feature)`; the results lie in both."""
    delta = h - ball.center
    radius = _per_row(ball.radius, h)
    if ball.norm == "l2":
        size = _per_row(_length(delta, "l2"), h)
        delta = delta * (radius / size.clamp(min=torch.finfo(h.dtype).tiny)).clamp(max=1)
    else:
        delta = torch.minimum(torch.maximum(delta, -radius), radius)
    h = ball.center + delta
    return h if ball.box is None else h.clamp(*ball.box)


def _ascent(gradient: Tensor, norm: str) -> Tensor:
    """The direction of steepest ascent, of length 1 in the norm."""
    if norm == "linf":
        return gradient.sign()
    scaled = gradient / _per_row(gradient.flatten(1).abs().amax(1), gradient).clamp(
        min=torch.finfo(gradient.dtype).tiny
    )
    return scaled / _per_row(_length(scaled, "l2"), scaled).clamp(min=torch.finfo(gradient.dtype).tiny)


def _random_start(ball: Ball, generator: torch.Generator | None) -> Tensor:
    """Random points, uniform in the ball and then projected onto the box."""
    h = ball.center
    device = generator.device if generator is not None else h.device
    options = {"generator": generator, "dtype": h.dtype, "device": device}
    if ball.norm == "linf":
        delta = 2 * torch.rand(h.shape, **options).to(h.device) - 1
    else:
        delta = torch.randn(h.shape, **options).to(h.device)
        part = torch.rand((len(h),), **options).to(h.device) ** (1 / h[0].numel())
        delta = delta * _per_row(part / _length(delta, "l2"), delta)
    return project(h + _per_row(ball.radius, h) * delta, ball)


class _Best:
    """The best points that the attack has met so far."""

    def __init__(self, ball: Ball, losses: Tensor, flipped: Tensor, target: Tensor):
        self.ball, self.target = ball, target
        self.features, self.losses = ball.center.clone(), losses.clone()
        self.flip_features = ball.center.clone()
        self.flip_distance = torch.where(flipped, torch.zeros_like(losses), torch.full_like(losses, torch.inf))

    def see(self, h: Tensor, outputs: Tensor, losses: Tensor) -> None:
        """Keep each of the points that is better than the best one so far."""
        better = losses > self.losses
        self.losses = torch.where(better, losses, self.losses)
        self.features = torch.where(_per_row(better, h), h, self.features)
        distance = _length(h - self.ball.center, self.ball.norm)
        nearer = (predicted_class(outputs) != self.target) & (distance < self.flip_distance)
        self.flip_distance = torch.where(nearer, distance, self.flip_distance)
        self.flip_features = torch.where(_per_row(nearer, h), h, self.flip_features)


@undisturbed()
def pgd_attack(
    problem: Problem,
    radius: float | Tensor,
    *,
    norm: Norm = "l2",
    steps: int = 40,
    step_size: float | None = None,
    restarts: int = 4,
    box: tuple[float, float] | None = None,
    generator: torch.Generator | None = None,
) -> Attack:
    r"""Projected gradient ascent on the loss in l2 or l∞ balls around the features (theory §5, from below).

    $$ h \leftarrow \Pi\Big(h + s_t\,\rho\, \frac{\nabla \ell}{\|\nabla \ell\|_2}\Big) \quad (l_2), \qquad
       h \leftarrow \Pi\big(h + s_t\,\rho\, \mathrm{sign}\,\nabla \ell\big) \quad (l_\infty) $$

    The first run starts at the center, the others start at random points. The attack keeps the best point of all runs,
    so that the loss that it returns is never below the clean one. (Madry et al. 2018.)

    Args:
        problem: network, layer, data and loss; the attack needs no law.
        radius: ρ ≥ 0, one number for all examples or one for each, `(n,)`.
        norm: norm that defines the balls, `"l2"` or `"linf"`.
        steps: number of gradient steps of each run, ≥ 1.
        step_size: constant length of a step, as a fraction of the radius; `None` starts with half the radius and lets
            the length shrink to 0.
        restarts: number of runs, ≥ 1.
        box: smallest and largest value of a feature; the features must lie in it.
        generator: random generator of the starting points; the global one if `None`.

    Raises:
        ValueError: for radii, norms, boxes or numbers of steps that are not allowed.
        TypeError: for anything but one `Problem`.

    Example:
        >>> head = lambda u: u @ torch.tensor([[3.0], [4.0]])
        >>> problem = Problem(head, torch.ones(1, 2), torch.tensor([1.0]), loss="logistic")
        >>> found = pgd_attack(problem, radius=2.0)
        >>> round(float(head(found.features)), 3), bool(found.flipped)  # 7 - 2 ‖(3, 4)‖
        (-3.0, True)
    """
    ball = check_ball(as_problem(problem).features.detach(), radius, norm, box)
    check_problem(problem, 1)
    with progress_bar(title="attack", total=restarts * steps) as bar:
        return ascend(
            problem.head, ball, problem.labels, problem.loss, steps=steps, restarts=restarts, step_size=step_size,
            generator=generator, after_step=bar.update,
        )  # fmt: skip


def ascend(
    head: Callable[[Tensor], Tensor],
    ball: Ball,
    labels: Tensor,
    loss: PointwiseLoss,
    *,
    steps: int,
    restarts: int,
    step_size: float | None = None,
    generator: torch.Generator | None = None,
    after_step: Callable[[], object] = lambda: None,
) -> Attack:
    """Attack a head, a function from features `(b, *feature)` to outputs `(b, K)`.

    Args:
        head: the function that is attacked.
        ball: the balls that the attack searches.
        labels: labels in the form that the loss expects.
        loss: the loss that the attack maximizes.
        steps: number of gradient steps of each run.
        restarts: number of runs.
        step_size: constant length of a step, as a fraction of the radius; `None` starts with half the radius and lets
            the length shrink to 0.
        generator: random generator of the starting points; the global one if `None`.
        after_step: function that is called after each step, for a progress bar.

    Raises:
        ValueError: for numbers of steps and step sizes that are not allowed.
    """
    if steps < 1 or restarts < 1:
        raise ValueError(f"steps and restarts: expected >= 1, got {steps} and {restarts}.")
    if step_size is not None and not 0 < step_size < math.inf:
        raise ValueError(f"step_size: expected a number > 0, a fraction of the radius, got {step_size!r}.")
    h = ball.center
    with torch.no_grad():
        outputs = _columns(head(h))
        clean = loss(outputs, labels)
        target = label_class(labels, outputs, loss)
        best = _Best(ball, clean, predicted_class(outputs) != target, target)
    for run in range(restarts):
        at = h if run == 0 else _random_start(ball, generator)
        for t in range(steps + 1):
            with torch.enable_grad():
                leaf = at.detach().requires_grad_()
                outputs = _columns(head(leaf))
                losses = loss(outputs, labels)
                (gradient,) = torch.autograd.grad(losses.sum(), leaf, allow_unused=True)
            with torch.no_grad():
                best.see(at, outputs, losses)
                if t == steps:
                    break
                part = FIRST_STEP * (1 + math.cos(math.pi * t / steps)) / 2 if step_size is None else step_size
                if gradient is not None:
                    at = project(at + part * _per_row(ball.radius, at) * _ascent(gradient, ball.norm), ball)
            after_step()
    return Attack(
        features=best.features,
        losses=best.losses.detach(),
        clean_losses=clean,
        flipped=best.flip_distance.isfinite(),
        flip_features=best.flip_features,
        flip_distance=best.flip_distance,
        evaluations=len(h) * (1 + restarts * (steps + 1)),
    )


def _margin_deficit(target: Tensor) -> PointwiseLoss:
    """The largest other output minus the output of the class; it is positive if the prediction is another class."""

    def deficit(outputs: Tensor, labels: Tensor) -> Tensor:
        if outputs.shape[1] == 1:
            return (1 - 2 * labels.to(outputs)) * outputs[:, 0]
        own = torch.nn.functional.one_hot(labels, outputs.shape[1]).bool()
        others = outputs.masked_fill(own, -torch.inf).amax(1)
        return others - outputs.gather(1, labels.unsqueeze(1))[:, 0]

    return PointwiseLoss("margin", deficit, lambda outputs, labels: target)


def _shorten(head, h: Tensor, flip: Tensor, target: Tensor, halvings: int) -> Tensor:
    """Bisect the segments from `h` to points of another prediction: the nearest such points on the segments."""
    low, high = h.new_zeros(len(h)), h.new_ones(len(h))
    for _ in range(halvings):
        middle = (low + high) / 2
        changed = predicted_class(_columns(head(h + _per_row(middle, h) * (flip - h)))) != target
        high, low = torch.where(changed, middle, high), torch.where(changed, low, middle)
    return h + _per_row(high, h) * (flip - h)


@undisturbed()
def flip_radius(
    problem: Problem,
    max_radius: float | Tensor | None = None,
    *,
    norm: Norm = "l2",
    bisections: int = 12,
    steps: int = 40,
    restarts: int = 2,
    box: tuple[float, float] | None = None,
    generator: torch.Generator | None = None,
) -> FlipRadius:
    """The smallest radius at which the attack changes the prediction: an upper bound of the true one (theory §5).

    The function bisects the radius, for all examples at once. Each attack maximizes the margin of the wrong classes,
    and every point that it finds is moved back towards the example until it meets the decision boundary.

    Args:
        problem: network, layer, data and loss, which says how labels are read; the search needs no law.
        max_radius: largest radius that is searched, one number for all examples or one for each, `(n,)`; `None` takes
            the norm of the features of each example.
        norm: norm that defines the balls, `"l2"` or `"linf"`.
        bisections: number of attacks after the first one.
        steps: number of gradient steps of each run of an attack.
        restarts: number of runs of each attack.
        box: smallest and largest value of a feature; the features must lie in it.
        generator: random generator of the starting points; the global one if `None`.

    Raises:
        ValueError: for radii, norms, boxes or numbers of steps that are not allowed.
        TypeError: for anything but one `Problem`.

    Example:
        >>> head = lambda u: u @ torch.tensor([[3.0], [4.0]])
        >>> problem = Problem(head, torch.ones(1, 2), torch.tensor([1.0]), loss="logistic")
        >>> round(float(flip_radius(problem, 9.0).radius), 3)  # 7 / ‖(3, 4)‖
        1.4
    """
    head, loss, h = as_problem(problem).head, problem.loss, problem.features.detach()
    check_problem(problem, 1)
    high = check_ball(h, _length(h, norm) if max_radius is None else max_radius, norm, box).radius
    with torch.no_grad():
        outputs = _columns(head(h))
        target = label_class(problem.labels, outputs, loss)
        wrong = predicted_class(outputs) != target
    margin = _margin_deficit(target)
    best, nearest = torch.where(wrong, torch.zeros_like(high), torch.full_like(high, torch.inf)), h.clone()
    low, high, evaluations = torch.zeros_like(high), torch.where(wrong, torch.zeros_like(high), high), len(h)
    for turn in progress_bar(range(bisections + 1), title="flip radius"):
        trial = high if turn == 0 else (low + high) / 2
        found = ascend(
            head, check_ball(h, trial, norm, box), target, margin, steps=steps, restarts=restarts, generator=generator
        )
        with torch.no_grad():
            changed = found.losses > 0
            points = torch.where(_per_row(changed, h), found.features, h)
            nearer = (found.flip_distance < _length(points - h, norm)) | ~changed
            points = torch.where(_per_row(nearer, h), found.flip_features, points)
            changed = changed | found.flipped
            points = _shorten(head, h, points, target, 40)
            distance = _length(points - h, norm)
            improved = changed & ~wrong & (distance < best)
            best = torch.where(improved, distance, best)
            nearest = torch.where(_per_row(improved, h), points, nearest)
        evaluations += found.evaluations + 40 * len(h)
        high = torch.where(changed, torch.minimum(high, best), high)
        low = torch.where(changed, torch.minimum(low, high), trial)
    return FlipRadius(best, nearest, evaluations)
