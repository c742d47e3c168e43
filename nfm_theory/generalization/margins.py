r"""Classification margins from Jacobian norms, and the accuracy of the expansion of Mixup along a training run.

The difference of two scores has the gradient $J^\top(e_y - e_k)$, whose norm is at most $\sqrt2\,\lVert J\rVert$. Along
a segment that starts at x the decision therefore cannot change before the distance (book: eq-margin)

$$ \text{margin} \ge \frac{\min_{k \ne y}\,(f_y(x) - f_k(x))}{\sqrt2\;\sup_z \lVert J(z)\rVert_2},
   \qquad z \text{ on the segment}, $$

so that a small $\lVert J\rVert$ makes the margin large. R2 of Mixup and noise is a penalty of J (book: eq-expansion).

| symbol | here |
|---|---|
| $\min_{k \ne y} (f_y - f_k)$; a single output f stands for the scores 0 and f | `score_gap` |
| $\lVert J\rVert_2,\ \lVert J\rVert_F$ at every example | `jacobian_norms` |
| $\sup_z \lVert J(z)\rVert_2$, the bound, the first change of decision | `segment_margins` |
| $L_{NFM}(\varepsilon)$, $Q = L_{std} + \varepsilon R_1 + \varepsilon^2 (R_2 + R_3 + \dots)$ | `quadratic_gap_along` |

Source: L. Zhang, Z. Deng, K. Kawaguchi, A. Ghorbani, J. Zou, *How does Mixup help with robustness and generalization?*,
arXiv 2010.04819; the margin is in the notation of this package.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ..calculus.cuts import check_problem
from ..calculus.engine import linearize
from ..expansion.terms import terms
from ..losses.loss import loss
from ..setting.ambient import undisturbed
from ..setting.branches import as_problem
from ..setting.options import progress_bar
from ..setting.problem import Problem
from ..setting.quadrature import Quadrature
from ..setting.results import Record

#: Memory that the Jacobians of a block of examples may take, in bytes.
BLOCK_BYTES = 2**25


def score_gap(outputs: Tensor, labels: Tensor) -> Tensor:
    """Score of the right class minus the best other score; positive if the decision is right (book: eq-margin).

    The gap is differentiable in `outputs`, except at ties.

    Args:
        outputs: scores `(n, K)`; a single output f, `(n, 1)` or `(n,)`, stands for the scores 0 and f of two classes.
        labels: class indices, `(n,)`; 0 or 1 for a single output.

    Returns:
        The gap of each example, `(n,)`.

    Raises:
        ValueError: for outputs of another shape, and labels that are no class indices.

    Example:
        >>> score_gap(torch.tensor([[3.0, 1.0, 2.5], [0.0, 1.0, 4.0]]), torch.tensor([0, 1]))
        tensor([ 0.5000, -3.0000])
    """
    scores = outputs.unsqueeze(-1) if outputs.ndim == 1 else outputs
    if scores.ndim != 2 or 0 in scores.shape:
        raise ValueError(f"outputs: expected (n, K) or (n,), not empty, got {tuple(outputs.shape)}.")
    if scores.shape[1] == 1:
        scores = torch.cat([torch.zeros_like(scores), scores], dim=1)
    if labels.shape != scores.shape[:1]:
        raise ValueError(f"labels: expected class indices ({len(scores)},), got shape {tuple(labels.shape)}.")
    index = labels.to(scores.device).long()
    if (index != labels.to(scores.device)).any() or int(index.min()) < 0 or int(index.max()) >= scores.shape[1]:
        raise ValueError(f"labels: expected class indices in 0..{scores.shape[1] - 1}, got {labels.unique().tolist()}.")
    index = index.unsqueeze(1)
    return scores.gather(1, index).squeeze(1) - scores.scatter(1, index, -math.inf).amax(1)


@dataclass(frozen=True)
class JacobianNorms(Record):
    """Norms of the Jacobian of the outputs at every example.

    Attributes:
        spectral: spectral norm, the largest singular value, `(n,)`.
        frobenius: Frobenius norm, the root of the sum of squares, `(n,)`.
    """

    spectral: Tensor
    frobenius: Tensor


def _at(head: Callable[[Tensor], Tensor], h: Tensor) -> tuple[Tensor, JacobianNorms]:
    """Outputs and Jacobian norms at a block of features."""
    at = linearize(head, h, differentiable=False)
    if at.width != h[0].numel():  # these rows would be those behind the first linear operations
        at = linearize(head, h, engine="nested", differentiable=False)
    rows = at.rows()
    frobenius = torch.linalg.vector_norm(rows, dim=(1, 2))
    # For a Jacobian of norm 1 the largest eigenvalue lies in [1/K, 1], so that its root loses no digits
    unit = rows / frobenius.clamp_min(torch.finfo(rows.dtype).tiny)[:, None, None]
    share = torch.linalg.eigvalsh(unit @ unit.mT)[:, -1].clamp(0, 1)
    return at.outputs, JacobianNorms(frobenius * share.sqrt(), frobenius)


def _stream(head: Callable, points: Callable[[Tensor], Tensor], count: int) -> Iterator[tuple[Tensor, JacobianNorms]]:
    """Outputs and Jacobian norms at the features `points(index)`, block by block."""
    with torch.no_grad():
        probe = points(torch.zeros(1, dtype=torch.long))
        each = head(probe).numel() * probe.nbytes
    blocks = torch.arange(count).split(max(1, BLOCK_BYTES // each))
    for index in progress_bar(blocks, title="Jacobians"):
        yield _at(head, points(index))


@torch.no_grad()
@undisturbed()
def jacobian_norms(problem: Problem) -> JacobianNorms:
    """Spectral and Frobenius norm of the Jacobian of the outputs at every example (book: eq-margin).

    The norms are exact: they are computed from the K rows of each Jacobian, with one vector-Jacobian product for each
    output. They are not differentiable.

    Args:
        problem: network, layer and data; no law is needed. The Jacobian is that in the features of the layer.

    Returns:
        `JacobianNorms`, two tensors `(n,)`.

    Raises:
        TypeError: for anything but one `Problem`.

    Example:
        >>> head = lambda u: u * torch.tensor([3.0, 4.0])
        >>> norms = jacobian_norms(Problem(head, torch.ones(1, 2), torch.tensor([0])))
        >>> norms.spectral, norms.frobenius
        (tensor([4.]), tensor([5.]))
    """
    features = as_problem(problem).features
    check_problem(problem, 1)
    blocks = _stream(problem.head, lambda index: features[index.to(features.device)], len(features))
    found = [norms for _, norms in blocks]
    return JacobianNorms(torch.cat([f.spectral for f in found]), torch.cat([f.frobenius for f in found]))


@dataclass(frozen=True)
class SegmentMargins(Record):
    """Margins along segments, from `segment_margins`; distances are measured in the features of the layer.

    Attributes:
        gap: score gap at the start of the segment, `(n,)`; negative if the decision is wrong there.
        jacobian: largest spectral norm of the Jacobian at the points of the segment, `(n,)`; the supremum over the
            segment may be larger.
        length: length of the segment, `(n,)`.
        bound: lower bound `gap / (√2 jacobian)` of the margin, `(n,)`; 0 if the decision is wrong at the start. A bound
            larger than `length` says that the decision does not change on the segment, and no more. The bound is an
            estimate if `jacobian` is smaller than the supremum.
        crossing: distance at which the decision changes, `(n,)`; 0 if it is wrong at the start, infinite if it is the
            same at all points. An earlier change between two points may be missed.
        points: number of points on the segment, including its ends.
    """

    gap: Tensor
    jacobian: Tensor
    length: Tensor
    bound: Tensor
    crossing: Tensor
    points: int

    @property
    def consistent(self) -> Tensor:
        """True if `bound ≤ crossing` up to rounding, `(n,)`; otherwise the points are too few for the supremum."""
        return self.bound * (1 - torch.finfo(self.bound.dtype).eps ** 0.5) <= self.crossing


def _first_change(gap_at: Callable[[Tensor], Tensor], times: Tensor, gaps: Tensor) -> Tensor:
    """The time in [0, 1] at which the decision first changes, `(n,)`: seen at `times`, refined by bisection.

    Args:
        gap_at: function from times `(n,)` to score gaps `(n,)`.
        times: increasing times, `(points,)`.
        gaps: score gaps at these times, `(points, n)`.

    Returns:
        The times, `(n,)`; infinite if the decision does not change.
    """
    changed = ~(gaps > 0)
    found, first = changed.any(0), changed.int().argmax(0)
    low, high = times[(first - 1).clamp_min(0)], times[first]
    for _ in range(-int(math.log2(torch.finfo(times.dtype).eps)) if found.any() else 0):
        middle = (low + high) / 2
        over = ~(gap_at(middle) > 0)
        low, high = torch.where(over, low, middle), torch.where(over, middle, high)
    return torch.where(found, high, math.inf)


@torch.no_grad()
@undisturbed()
def segment_margins(problem: Problem, ends: Tensor, *, num_points: int = 33) -> SegmentMargins:
    r"""A lower bound of the margin of every example along the segment from its input to `ends` (book: eq-margin).

    $$ \text{margin}_i \ge \frac{\text{gap}_i}{\sqrt2\;\sup_{0 \le t \le 1} \lVert J(g_i + t (g'_i - g_i))\rVert_2} $$

    The supremum is taken over `num_points` equidistant points. It is exact if the Jacobian is constant, as for a linear
    model. Otherwise it may be too small, and **the bound is then an estimate, not a certificate**. The result also has
    the first change of the decision that was seen, which refutes a bound that is too large. Certificates are in
    `nfm_theory.adversarial`. For a single output the factor $\sqrt2$ is not needed, and the bound is that much smaller.

    Args:
        problem: network, layer and data; each label is one class, and no law is needed. The segment is straight in the
            features of the layer, from g = g_k(x) to g' = g_k(ends), and distances are measured there.
        ends: inputs at which the segments end, in the shape of `x`; for example other samples.
        num_points: number of points on every segment, ≥ 2.

    Returns:
        `SegmentMargins`.

    Raises:
        ValueError: for ends that have another shape or are not finite, for fewer than two points, and for labels that
            are no single class.
        TypeError: for anything but one `Problem`.

    Example:
        >>> weight = torch.tensor([[1.0, -1.0]])
        >>> problem = Problem(lambda u: u @ weight, torch.ones(1, 1), torch.tensor([0]))
        >>> found = segment_margins(problem, -torch.ones(1, 1))
        >>> round(float(found.bound), 4), round(float(found.crossing), 4)  # gap 2, ‖J‖ = √2; the scores meet at 0
        (1.0, 1.0)
    """
    start, head, y = as_problem(problem).features, problem.head, class_labels(problem)
    check_problem(problem, 1)
    n = len(start)
    if num_points < 2:
        raise ValueError(f"num_points: expected >= 2, got {num_points}.")
    reach = problem.encode(ends.to(start)) if len(ends) == n else start[:0]
    if reach.shape != start.shape:
        raise ValueError(f"ends: expected one input for each of the {n} samples, got shape {tuple(ends.shape)}.")
    reach = reach - start
    if not reach.isfinite().all():
        raise ValueError("ends: expected finite inputs and features.")
    # As quotients of integers the points of a coarse division are, bit by bit, among those of a finer one
    times = torch.arange(num_points, dtype=start.dtype, device=start.device) / (num_points - 1)

    def at(t: Tensor, i: Tensor | slice) -> Tensor:
        return start[i] + t.reshape(-1, *[1] * (start.ndim - 1)) * reach[i]

    def points(index: Tensor) -> Tensor:
        index = index.to(start.device)
        return at(times[index // n], index % n)

    score_gap(head(start), y)  # labels that do not fit are refused before the work
    found = list(_stream(head, points, num_points * n))
    outputs = torch.cat([f[0] for f in found])
    gaps = score_gap(outputs, y.repeat(num_points)).reshape(num_points, n)
    jacobian = torch.cat([f[1].spectral for f in found]).reshape(num_points, n).amax(0)
    length = torch.linalg.vector_norm(reach.flatten(1), dim=1)
    time = _first_change(lambda t: score_gap(head(at(t, slice(None))), y), times, gaps)
    return SegmentMargins(
        gap=gaps[0],
        jacobian=jacobian,
        length=length,
        bound=torch.where(gaps[0] > 0, gaps[0] / (math.sqrt(2) * jacobian), 0.0),
        crossing=torch.where(time.isfinite(), time * length, math.inf),
        points=num_points,
    )


def _ratio(gap: float, base: float) -> float:
    if base == 0:
        return math.nan if gap == 0 else math.inf
    return gap / abs(base)


@dataclass(frozen=True)
class QuadraticGap:
    """The exact loss and its expansion at one snapshot, from `quadratic_gap_along`.

    Attributes:
        step: position of the snapshot in the sequence.
        standard: loss L_std without mixing and noise.
        exact: loss L_NFM(ε).
        quadratic: expansion of L_NFM(ε) to second order.
        R3: residual term of `TaylorTerms`; it is 0 for a linear or piecewise linear model, whose kinks the expansion
            does not see.
    """

    step: int
    standard: float
    exact: float
    quadratic: float
    R3: float

    @property
    def relative(self) -> float:
        """The gap |exact - quadratic| as a fraction of the loss |exact|."""
        return _ratio(abs(self.exact - self.quadratic), self.exact)

    @property
    def of_regularization(self) -> float:
        """The gap as a fraction of what Mixup adds, |exact - standard|; NaN if both are 0."""
        return _ratio(abs(self.exact - self.quadratic), self.exact - self.standard)

    def to_dict(self) -> dict[str, float | None]:
        """The numbers and both fractions, for JSON; `None` for fractions that are not finite."""
        values = asdict(self) | {"relative": self.relative, "of_regularization": self.of_regularization}
        return {name: value if math.isfinite(value) else None for name, value in values.items()}


def class_labels(problem: Problem) -> Tensor:
    """The class indices of labels that are one class each, `(n,)`.

    Raises:
        ValueError: for other labels and other losses.
    """
    labels = problem.labels
    if problem.loss.name not in ("cross_entropy", "logistic") or not ((labels == 0) | (labels == 1)).all():
        raise ValueError("labels: expected one class for each example, with cross_entropy or logistic loss.")
    return (labels[:, 0] if labels.shape[1] == 1 else labels.argmax(1)).long()


@torch.no_grad()
@undisturbed()
def quadratic_gap_along(
    snapshots: Iterable[Problem], *, eps: float = 1.0, quadrature: Quadrature | None = None
) -> list[QuadraticGap]:
    r"""The exact loss against its second-order expansion for every snapshot of a training run (book: eq-expansion).

    $$ \text{relative} = \frac{|L(\varepsilon) - Q(\varepsilon)|}{|L(\varepsilon)|}, \qquad
       \text{of regularization} = \frac{|L(\varepsilon) - Q(\varepsilon)|}{|L(\varepsilon) - L_{std}|}, \qquad
       Q = L_{std} + \varepsilon R_1 + \varepsilon^2 (R_2 + R_3 + \dots) $$

    With a small relative gap the expansion may still miss most of what Mixup adds; the second fraction shows this. The
    loss is summed over all pairs, without sampling.

    Args:
        snapshots: one problem for each snapshot, in order. A generator can load them one by one, such as
            `(Problem(model, x, y, law=law, params=state) for state in states)`.
        eps: scale ε; the loss of training is that at 1.
        quadrature: rule and nodes of the exact loss; `None` means `Quadrature()`.

    Returns:
        A `QuadraticGap` for each snapshot.

    Raises:
        ValueError: if there is no snapshot, and if the exact loss would need too many evaluations.

    Example:
        >>> from nfm_theory import Law
        >>> x, y = torch.tensor([[0.0], [2.0]]), torch.tensor([0.0, 0.0])
        >>> problem = Problem(lambda u: u, x, y, law=Law(), loss="square")
        >>> (record,) = quadratic_gap_along([problem])
        >>> round(record.exact, 4), record.relative < 1e-6  # a quadratic loss is its own expansion
        (0.8333, True)
    """
    records = []
    for step, problem in enumerate(progress_bar(snapshots, title="snapshots")):
        exact = loss(problem, float(eps), "exact", quadrature=quadrature)
        known = terms(problem, remainder=False)
        records.append(
            QuadraticGap(
                step=step, standard=float(known.standard), exact=float(exact), quadratic=float(known.polynomial(eps)),
                R3=float(known.R3),
            )
        )  # fmt: skip
    if not records:
        raise ValueError("snapshots: expected at least one.")
    return records
