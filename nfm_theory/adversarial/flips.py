"""The nearest change of a prediction that an attack finds: an upper bound of the true distance (theory §5)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..setting.options import progress_bar
from ..setting.pointwise import PointwiseLoss
from ..setting.problem import Problem
from ..setting.results import Record
from .attacks import ascend, label_class, length, per_row, predicted_class
from .guards import attackable, columns
from .linear_bounds import Norm, check_ball


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


def _margin_loss(target: Tensor, classes: int) -> PointwiseLoss:
    """The largest other output minus the output of the class; it is positive if the prediction is another class."""
    own = torch.nn.functional.one_hot(target, max(2, classes))

    def others(outputs: Tensor) -> Tensor:
        return outputs.masked_fill(own.bool(), -torch.inf)

    def deficit(outputs: Tensor, labels: Tensor) -> Tensor:
        if outputs.shape[1] == 1:
            return (1 - 2 * target.to(outputs)) * outputs[:, 0]
        return others(outputs).amax(1) - outputs.gather(1, target.unsqueeze(1))[:, 0]

    def gradient(outputs: Tensor, labels: Tensor) -> Tensor:
        if outputs.shape[1] == 1:
            return (1 - 2 * target.to(outputs)).unsqueeze(1)
        rivals = others(outputs)
        top = (rivals == rivals.amax(1, keepdim=True)).to(outputs)
        return top / top.sum(1, keepdim=True) - own.to(outputs)

    return PointwiseLoss("margin", deficit, lambda outputs, labels: target, closed_gradient=gradient)


def _shorten(head, h: Tensor, flip: Tensor, target: Tensor, halvings: int) -> Tensor:
    """Bisect the segments from `h` to points of another prediction: the nearest such points on the segments."""
    low, high = h.new_zeros(len(h)), h.new_ones(len(h))
    for _ in range(halvings):
        middle = (low + high) / 2
        changed = predicted_class(columns(head(h + per_row(middle, h) * (flip - h)))) != target
        high, low = torch.where(changed, middle, high), torch.where(changed, low, middle)
    return h + per_row(high, h) * (flip - h)


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
        ValueError: for radii, norms, boxes or numbers of steps that are not allowed; for a network in training mode, a
            network that is random, and a network whose derivative is cut.
        TypeError: for anything but one `Problem`.

    Example:
        >>> head = lambda u: u @ torch.tensor([[3.0], [4.0]])
        >>> problem = Problem(head, torch.ones(1, 2), torch.tensor([1.0]), loss="logistic")
        >>> round(float(flip_radius(problem, 9.0).radius), 3)  # 7 / ‖(3, 4)‖
        1.4
    """
    with attackable(problem):
        return _flip_radius(problem, max_radius, norm, bisections, steps, restarts, box, generator)


def _flip_radius(
    problem: Problem, max_radius, norm: Norm, bisections: int, steps: int, restarts: int, box, generator
) -> FlipRadius:
    """The search of `flip_radius`, with its arguments."""
    head, loss, h = problem.head, problem.loss, problem.features.detach()
    high = check_ball(h, length(h, norm) if max_radius is None else max_radius, norm, box).radius
    with torch.no_grad():
        outputs = columns(head(h))
        target = label_class(problem.labels, outputs, loss)
        wrong = predicted_class(outputs) != target
    margin = _margin_loss(target, outputs.shape[1])
    best, nearest = torch.where(wrong, torch.zeros_like(high), torch.full_like(high, torch.inf)), h.clone()
    low, high, evaluations = torch.zeros_like(high), torch.where(wrong, torch.zeros_like(high), high), len(h)
    for turn in progress_bar(range(bisections + 1), title="flip radius"):
        trial = high if turn == 0 else (low + high) / 2
        found = ascend(
            head, check_ball(h, trial, norm, box), target, margin, steps=steps, restarts=restarts, generator=generator
        )
        with torch.no_grad():
            changed = found.losses > 0
            points = torch.where(per_row(changed, h), found.features, h)
            nearer = (found.flip_distance < length(points - h, norm)) | ~changed
            points = torch.where(per_row(nearer, h), found.flip_features, points)
            changed = changed | found.flipped
            points = _shorten(head, h, points, target, 40)
            distance = length(points - h, norm)
            improved = changed & ~wrong & (distance < best)
            best = torch.where(improved, distance, best)
            nearest = torch.where(per_row(improved, h), points, nearest)
        evaluations += found.evaluations + 40 * len(h)
        high = torch.where(changed, torch.minimum(high, best), high)
        low = torch.where(changed, torch.minimum(low, high), trial)
    return FlipRadius(best, nearest, evaluations)
