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
from ..setting.options import progress_bar
from ..setting.pointwise import PointwiseLoss
from ..setting.problem import Problem
from ..setting.random_numbers import home_of
from ..setting.results import Record
from .balls import Ball, Norm, check_ball
from .guards import attackable, columns, input_gradient, raise_if_cut
from .label_margins import deficit_gradient, hard_labels, margin_deficit
from .rounding import in_double

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


def length(z: Tensor, norm: str) -> Tensor:
    """The norm of each row, `(b,)`."""
    return z.flatten(1).norm(dim=1) if norm == "l2" else z.flatten(1).abs().amax(1)


def per_row(value: Tensor, like: Tensor) -> Tensor:
    """One number for each row `(b,)`, in a shape that broadcasts with `like`."""
    return value.reshape(-1, *[1] * (like.ndim - 1))


def project(h: Tensor, ball: Ball) -> Tensor:
    """Project points onto the ball and then onto the box, `(b, *feature)`; the results lie in both."""
    delta = h - ball.center
    radius = per_row(ball.radius, h)
    if ball.norm == "l2":  # in double precision, so that the points stay in the ball of a certificate
        size = per_row(length(in_double(delta), "l2"), h)
        delta = delta * (radius / size.clamp(min=torch.finfo(h.dtype).tiny)).clamp(max=1).to(h)
    else:
        delta = torch.minimum(torch.maximum(delta, -radius), radius)
    h = ball.center + delta
    return h if ball.box is None else h.clamp(*ball.box)


def _ascent(gradient: Tensor, norm: str) -> Tensor:
    """The direction of steepest ascent, of length 1 in the norm."""
    if norm == "linf":
        return gradient.sign()
    scaled = gradient / per_row(gradient.flatten(1).abs().amax(1), gradient).clamp(min=torch.finfo(gradient.dtype).tiny)
    return scaled / per_row(length(scaled, "l2"), scaled).clamp(min=torch.finfo(gradient.dtype).tiny)


def _random_start(ball: Ball, generator: torch.Generator | None) -> Tensor:
    """Random points, uniform in the ball and then projected onto the box."""
    h = ball.center
    device = home_of(generator, h.device)
    options = {"generator": generator, "dtype": h.dtype, "device": device}
    if ball.norm == "linf":
        delta = 2 * torch.rand(h.shape, **options).to(h.device) - 1
    else:
        delta = torch.randn(h.shape, **options).to(h.device)
        part = torch.rand((len(h),), **options).to(h.device) ** (1 / h[0].numel())
        delta = delta * per_row(part / length(delta, "l2"), delta)
    return project(h + per_row(ball.radius, h) * delta, ball)


class _Aim:
    """What an attack increases: the loss, or the margin deficit, which never saturates, if the label is one class."""

    def __init__(self, labels: Tensor, loss: PointwiseLoss, target: Tensor):
        self.labels, self.loss, self.target = labels, loss, target
        self.hard = hard_labels(labels, loss)
        self.all_hard = bool(self.hard.all())

    def score(self, outputs: Tensor) -> Tensor:
        """A number that grows with the loss, also where the loss rounds to a constant, `(b,)`."""
        return margin_deficit(outputs, self.target)

    def slopes(self, outputs: Tensor) -> Tensor:
        """The direction in which the outputs should move, `(b, K)`; its largest entry has the size 1."""
        if self.all_hard:
            return deficit_gradient(outputs, self.target)
        if self.loss.closed_gradient is not None:
            slopes = self.loss.closed_gradient(outputs, self.labels)
        else:
            with torch.enable_grad():
                leaf = outputs.detach().requires_grad_()
                (slopes,) = torch.autograd.grad(self.loss(leaf, self.labels).sum(), leaf)
        size = slopes.abs().amax(1, keepdim=True)
        usable = size.isfinite() & (size > 0) & ~self.hard.unsqueeze(1)
        if usable.all():
            return slopes / size
        towards = deficit_gradient(outputs, self.target)
        return torch.where(usable, slopes / torch.where(usable, size, 1), towards)


def _unstuck(gradient: Tensor | None, at: Tensor, generator: torch.Generator) -> Tensor:
    """The gradient, with random directions where it is zero or not finite."""
    gradient = torch.zeros_like(at) if gradient is None else gradient
    stuck = (gradient == 0).flatten(1).all(1) | ~gradient.isfinite().flatten(1).all(1)
    if not stuck.any():
        return gradient
    random = torch.randn(at.shape, generator=generator, dtype=at.dtype).to(at.device)
    return torch.where(per_row(stuck, at), random, gradient)


def _check_repeatable(outputs: Tensor, again: Tensor) -> None:
    """Refuse a network that gives other outputs in a second call."""
    if (outputs - again).abs().max() > 3 * torch.finfo(outputs.dtype).eps ** 0.5 * again.abs().max():
        raise ValueError("model: the outputs differ from call to call, the network is random; call model.eval().")


class _Best:
    """The best points that the attack has met so far."""

    def __init__(self, ball: Ball, losses: Tensor, flipped: Tensor, target: Tensor):
        self.ball, self.target = ball, target
        self.scores = torch.full_like(losses, -torch.inf)
        self.features, self.losses = ball.center.clone(), losses.clone()
        self.flip_features = ball.center.clone()
        self.flip_distance = torch.where(flipped, torch.zeros_like(losses), torch.full_like(losses, torch.inf))

    def see(self, h: Tensor, outputs: Tensor, losses: Tensor, scores: Tensor) -> None:
        """Keep each of the points that is better than the best one so far; scores decide between equal losses."""
        better = (losses > self.losses) | ((losses == self.losses) & (scores > self.scores))
        self.losses = torch.where(better, losses, self.losses)
        self.scores = torch.where(better, scores, self.scores)
        self.features = torch.where(per_row(better, h), h, self.features)
        distance = length(h - self.ball.center, self.ball.norm)
        nearer = (predicted_class(outputs) != self.target) & (distance < self.flip_distance)
        self.flip_distance = torch.where(nearer, distance, self.flip_distance)
        self.flip_features = torch.where(per_row(nearer, h), h, self.flip_features)


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

    If the label is one class, the gradient is that of `label_margins.margin_deficit`, which has the direction of ∇ℓ and
    does not round to 0 where the network is confident. Where the gradient is zero, the step has a random direction.

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
        ValueError: for radii, norms, boxes or numbers of steps that are not allowed; for a network in training mode, a
            network that is random, and a network whose derivative is cut.
        TypeError: for anything but one `Problem`.

    Example:
        >>> head = lambda u: u @ torch.tensor([[3.0], [4.0]])
        >>> problem = Problem(head, torch.ones(1, 2), torch.tensor([1.0]), loss="logistic")
        >>> found = pgd_attack(problem, radius=2.0)
        >>> round(float(head(found.features)), 3), bool(found.flipped)  # 7 - 2 ‖(3, 4)‖
        (-3.0, True)
    """
    with attackable(problem), progress_bar(title="attack", total=restarts * steps) as bar:
        check_problem(problem, 1)
        ball = check_ball(problem.features.detach(), radius, norm, box)
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
        center = columns(head(h))
        clean = loss(center, labels)
        target = label_class(labels, center, loss)
        best = _Best(ball, clean, predicted_class(center) != target, target)
    aim, spare = _Aim(labels, loss, target), torch.Generator().manual_seed(0)
    for run in range(restarts):
        at = h if run == 0 else _random_start(ball, generator)
        for t in range(steps + 1):
            outputs, gradient = input_gradient(head, at, aim.slopes)
            if run == t == 0:
                _check_repeatable(outputs, center)
                if gradient is None or not gradient.any():
                    raise_if_cut(head, h, _random_start(ball, spare), aim.slopes)
            with torch.no_grad():
                best.see(at, outputs, loss(outputs, labels), aim.score(outputs))
                if t == steps:
                    break
                part = FIRST_STEP * (1 + math.cos(math.pi * t / steps)) / 2 if step_size is None else step_size
                direction = _ascent(_unstuck(gradient, at, spare), ball.norm)
                at = project(at + part * per_row(ball.radius, at) * direction, ball)
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
