r"""The Mixup-optimal classifier: the limit of Mixup training if the classifier can be any function.

Every pair (i, r) gives mixed points on its segment, with labels `λ y_i + (1 - λ) y_r` and with the law of λ. At each
point the loss with mixed labels is smallest if the classifier gives the mean label of all mixed points near it (book:
eq-mixup-optimal):

$$ p(z) = \frac{\sum_{i,r} E[(\lambda y_i + (1-\lambda) y_r)\, 1\{\lVert \lambda x_i + (1-\lambda) x_r - z \rVert
   \le \rho\}]}{\sum_{i,r} P(\lVert \lambda x_i + (1-\lambda) x_r - z \rVert \le \rho)} $$

| resolution | the function p | here |
|---|---|---|
| ρ > 0 | the best function that is constant on the ball around z; any dimension | `mixup_optimal` |
| ρ → 0, on a line | the best function between the data, from the densities of the segments | `line_optimal` |

Both are finite sums, of incomplete Beta functions or of Beta densities, and they are the same for cross entropy and
square loss. Each pair (i, i) puts an atom of mass 1/n² on its sample. At ρ = 0 this atom alone decides, and the sample
gets its label; with ρ > 0 the segments that pass near the sample count as well. In general position no segment passes
near another sample, and p interpolates the labels linearly. On a line of alternating classes (`alternating_line`) the
passing segments can outweigh the atom: of the three points 0, 1, 2 the middle one is misclassified if α is large.

Source: M. Chidambaram, X. Wang, Y. Hu, C. Wu, R. Ge, *Towards understanding the data dependency of Mixup-style
training*, arXiv 2110.07647; the formulas are derived here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import scipy
import torch
from torch import Tensor

#: Number of Gauss-Legendre nodes on each half of an interval between neighboring data.
LINE_NODES = 80


def alternating_line(num_points: int = 3) -> tuple[Tensor, Tensor]:
    """Points 0, 1, 2, ... on a line with the classes 0, 1, 0, ...: `(n, 1)` and `(n,)` (book: eq-mixup-optimal).

    Args:
        num_points: number n ≥ 3 of points.

    Raises:
        ValueError: for fewer than three points.

    Example:
        >>> alternating_line()[1].tolist()
        [0, 1, 0]
    """
    if num_points < 3:
        raise ValueError(f"num_points: expected >= 3, got {num_points}.")
    index = torch.arange(num_points)
    return index.double().unsqueeze(1), index % 2


def _check(x: Tensor, y: Tensor, alpha: float, beta: float | None, *, infinite: bool) -> tuple:
    """Data `(n, d)` and labels `(n, K)` as NumPy arrays, and both parameters of the Beta law."""
    if x.ndim > 2 or len(x) != len(y) or len(x) < 2:
        raise ValueError(f"x, y: expected (n, d) and n labels with n >= 2, got {tuple(x.shape)} and {tuple(y.shape)}.")
    beta = alpha if beta is None else beta
    if not min(alpha, beta) > 0 or (math.isinf(max(alpha, beta)) and (alpha != beta or not infinite)):
        allowed = "finite numbers > 0, or alpha = inf for λ = 1/2" if infinite else "finite numbers > 0"
        raise ValueError(f"alpha, beta: expected {allowed}, got {alpha} and {beta}.")
    labels = y if y.ndim == 2 else torch.nn.functional.one_hot(y.long())
    data = x.detach().double().cpu().numpy().reshape(len(x), -1)
    return data, labels.detach().double().cpu().numpy(), float(alpha), float(beta)


@dataclass(frozen=True)
class MixupOptimal:
    """The Mixup-optimal classifier at some points.

    Attributes:
        probabilities: probabilities p(z) of the classes, `(q, K)`; NaN if no mixed point falls near z.
        mass: probability that a mixed point falls into the ball around z, `(q,)`.
    """

    probabilities: Tensor
    mass: Tensor

    @property
    def decision(self) -> Tensor:
        """The class with the largest probability, `(q,)`; -1 if no mixed point falls near z."""
        known = self.mass > 0
        return torch.where(known, self.probabilities.nan_to_num().argmax(1), -1)


def _shares(low: np.ndarray, high: np.ndarray, a: float, b: float) -> tuple[np.ndarray, np.ndarray]:
    """The probability `P(low ≤ λ ≤ high)` and the mean `E[λ; low ≤ λ ≤ high]` for λ ~ Beta(a, b)."""
    if math.isinf(a):
        inside = ((low <= 0.5) & (high >= 0.5)).astype(float)
        return inside, inside / 2
    low, high = np.clip(low, 0, 1), np.clip(high, 0, 1)
    part = lambda p: scipy.special.betainc(p, b, high) - scipy.special.betainc(p, b, low)  # noqa: E731
    return part(a), a / (a + b) * part(a + 1)


def mixup_optimal(
    points: Tensor,
    x: Tensor,
    y: Tensor,
    *,
    radius: float,
    alpha: float = 1.0,
    beta: float | None = None,
    self_pairs: bool = True,
) -> MixupOptimal:
    """The Mixup-optimal classifier at resolution `radius`, in closed form (book: eq-mixup-optimal).

    Args:
        points: points z at which it is evaluated, `(q, d)`, or `(q,)` on a line.
        x: data, `(n, d)` or `(n,)`.
        y: class indices `(n,)` or distributions `(n, K)`.
        radius: radius ρ > 0 of the ball on which the function is constant.
        alpha: first parameter of the Beta law of λ; infinite for midpoint Mixup, λ = 1/2.
        beta: second parameter; `None` takes the value of `alpha`.
        self_pairs: True if a sample can be its own partner, as in the theory.

    Raises:
        ValueError: for data and parameters that do not fit, and for ρ ≤ 0.

    Example:
        >>> x, y = alternating_line()
        >>> found = mixup_optimal(x, x, y, radius=0.1, alpha=math.inf)  # λ = 1/2: (0, 2), (2, 0) and (1, 1) fall on 1
        >>> [round(p, 4) for p in found.probabilities[1].tolist()], found.decision.tolist()
        ([0.6667, 0.3333], [0, 0, 0])
    """
    data, labels, a, b = _check(x, y, alpha, beta, infinite=True)
    if not 0 < radius < math.inf:
        raise ValueError(f"radius: expected a finite number > 0, got {radius!r}; line_optimal(...) is the limit ρ → 0.")
    at = points.detach().double().cpu().numpy().reshape(len(points), -1)
    if at.shape[1] != data.shape[1]:
        raise ValueError(f"points: expected dimension {data.shape[1]}, got {at.shape[1]}.")
    n = len(data)
    along = data[:, None] - data[None]  # from r to i, (i, r, d)
    square = (along**2).sum(-1)
    moves = square > 0
    mass, label = np.zeros(len(at)), np.zeros((len(at), labels.shape[1]))
    for q, z in enumerate(at):
        offset = data - z  # of r
        slope = np.einsum("ird,rd->ir", along, offset)
        constant = (offset**2).sum(-1)[None] - radius**2
        root = np.sqrt(np.maximum(slope**2 - square * constant, 0))
        hit = np.where(moves, slope**2 - square * constant > 0, constant <= 0)
        size = np.where(moves, square, 1)
        low, high = (np.where(moves, (-slope + sign * root) / size, end) for sign, end in ((-1, 0.0), (1, 1.0)))
        probability, first = _shares(low, high, a, b)
        weight = hit * (1 / n**2)
        if not self_pairs:
            weight[np.diag_indices(n)] = 0
            weight *= n / (n - 1)
        mass[q] = (weight * probability).sum()
        label[q] = (weight * first).sum(1) @ labels + (weight * (probability - first)).sum(0) @ labels
    with np.errstate(invalid="ignore", divide="ignore"):
        found = label / mass[:, None]
    return MixupOptimal(*(torch.from_numpy(part).to(x.device) for part in (found, mass)))


def _line_density(data, labels, base, offset, a: float, b: float) -> tuple[np.ndarray, np.ndarray]:
    """Density of the mixed points and of their labels at `base + offset`, `(q,)` and `(q, K)`.

    `base` is a data point. Near it both λ and 1 - λ are computed without cancellation, however small `offset` is.
    """
    n = len(data)
    mass, label = np.zeros(len(offset)), np.zeros((len(offset), labels.shape[1]))
    for i in range(n):
        for r in range(n):
            span = data[i] - data[r]
            if span == 0:
                continue
            lam = ((base - data[r]) + offset) / span
            rest = ((data[i] - base) - offset) / span
            inside = (lam > 0) & (rest > 0)
            logs = (a - 1) * np.log(np.where(inside, lam, 1)) + (b - 1) * np.log(np.where(inside, rest, 1))
            density = inside * np.exp(logs - scipy.special.betaln(a, b)) / abs(span) / n**2
            mass += density
            label += density[:, None] * (lam[:, None] * labels[i] + rest[:, None] * labels[r])
    return mass, label


def _line_data(x: Tensor, y: Tensor, alpha: float, beta: float | None) -> tuple:
    data, labels, a, b = _check(x, y, alpha, beta, infinite=False)
    if data.shape[1] != 1:
        raise ValueError(f"x: expected data on a line, (n,) or (n, 1), got dimension {data.shape[1]}.")
    return data[:, 0], labels, a, b


def line_optimal(
    points: Tensor, x: Tensor, y: Tensor, *, alpha: float = 1.0, beta: float | None = None
) -> MixupOptimal:
    """The Mixup-optimal classifier between data on a line, in the limit of resolution 0 (book: eq-mixup-optimal).

    At the data the atoms of the pairs (i, i) decide; a continuous function has the limit of the values beside them.

    Args:
        points: points at which it is evaluated, `(q,)` or `(q, 1)`; none of them is a data point.
        x: data, `(n,)` or `(n, 1)`.
        y: class indices `(n,)` or distributions `(n, K)`.
        alpha: first parameter of the Beta law of λ.
        beta: second parameter; `None` takes the value of `alpha`.

    Returns:
        `MixupOptimal`, with the density of the mixed points as `mass`.

    Raises:
        ValueError: for data and parameters that do not fit, and for points that are data points.

    Example:
        >>> x, y = torch.tensor([0.0, 1.0]), torch.tensor([0, 1])
        >>> line_optimal(torch.tensor([0.25]), x, y).probabilities
        tensor([[0.7500, 0.2500]], dtype=torch.float64)
    """
    data, labels, a, b = _line_data(x, y, alpha, beta)
    at = points.detach().double().cpu().numpy().reshape(-1)
    if np.isin(at, data).any():
        raise ValueError(
            "points: expected none of the data, where the atoms decide; mixup_optimal(...) takes any point."
        )
    mass, label = _line_density(data, labels, 0.0, at, a, b)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = label / mass[:, None]
    return MixupOptimal(*(torch.from_numpy(part).to(x.device) for part in (found, mass)))


def _entropy(p: np.ndarray) -> np.ndarray:
    return scipy.special.entr(p).sum(-1)


def minimal_mixup_loss(x: Tensor, y: Tensor, *, alpha: float = 1.0, beta: float | None = None) -> float:
    r"""The smallest cross entropy with mixed labels of any function, for data on a line (book: eq-mixup-optimal).

    It is the mean entropy of `line_optimal` over the segments plus that of the atoms at the data. No network can train
    below it, whatever its size.

    Args:
        x: data, `(n,)` or `(n, 1)`.
        y: class indices `(n,)` or distributions `(n, K)`.
        alpha: first parameter of the Beta law of λ.
        beta: second parameter; `None` takes the value of `alpha`.

    Raises:
        ValueError: for data and parameters that do not fit.

    Example:
        >>> round(minimal_mixup_loss(torch.tensor([0.0, 1.0]), torch.tensor([0, 1])), 6)  # half of ∫ H(λ) dλ = 1/4
        0.25
    """
    data, labels, a, b = _line_data(x, y, alpha, beta)
    knots, n, total = np.unique(data), len(data), 0.0
    for knot in knots:  # the atom: all pairs of samples that coincide here, with their mean label
        here = labels[data == knot]
        total += len(here) ** 2 / n**2 * float(_entropy(here.mean(0)))
    nodes, weights = scipy.special.roots_legendre(LINE_NODES)
    s, weights = (nodes + 1) / 2, weights / 2
    power = math.ceil(4 / min(a, b, 1.0))  # smooths the poles of the Beta density at the data
    for left, right in pairwise(knots):
        half = (right - left) / 2
        for base, sign in ((left, 1.0), (right, -1.0)):
            mass, label = _line_density(data, labels, base, sign * half * s**power, a, b)
            entropy = _entropy(label / np.where(mass > 0, mass, 1)[:, None])
            total += float((weights * power * s ** (power - 1) * half * mass * entropy).sum())
    return total


@dataclass(frozen=True)
class EmpiricalReport:
    """The Mixup-optimal classifier on its own data.

    Attributes:
        probabilities: probabilities p of the classes at the data, `(n, K)`.
        wrong: True for samples that are misclassified, `(n,)`.
        loss: mean cross entropy on the data; other functions reach 0 if all samples are different.
    """

    probabilities: Tensor
    wrong: Tensor
    loss: float

    @property
    def error(self) -> float:
        """Fraction of the samples that are misclassified."""
        return float(self.wrong.double().mean())


def empirical_report(
    x: Tensor, y: Tensor, *, radius: float, alpha: float = 1.0, beta: float | None = None, self_pairs: bool = True
) -> EmpiricalReport:
    """Test if the minimum of the Mixup loss also minimizes the loss on the data (book: eq-mixup-optimal).

    Args:
        x: data, `(n, d)` or `(n,)`.
        y: class indices, `(n,)`.
        radius: resolution ρ > 0.
        alpha: first Beta parameter of λ, > 0.
        beta: second Beta parameter; `None` takes the value of `alpha`.
        self_pairs: True if a sample may be its own partner.

    Raises:
        ValueError: for everything that `mixup_optimal` refuses, and for labels that are no class indices.

    Example:
        >>> empirical_report(*alternating_line(), radius=0.1, alpha=1.0).wrong.tolist()
        [False, False, False]
        >>> empirical_report(*alternating_line(), radius=0.1, alpha=128.0).wrong.tolist()
        [False, True, False]
    """
    if y.ndim != 1:
        raise ValueError(f"y: expected class indices (n,), got {tuple(y.shape)}.")
    found = mixup_optimal(x, x, y, radius=radius, alpha=alpha, beta=beta, self_pairs=self_pairs)
    right = found.probabilities.gather(1, y.long().unsqueeze(1))[:, 0]
    return EmpiricalReport(found.probabilities, found.decision != y, float(-right.log().mean()))
