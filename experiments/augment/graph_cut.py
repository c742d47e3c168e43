r"""Labels on grids by graph cuts: the alpha-beta swap, for a whole batch of grids at once.

$$ E(\ell) = \sum_i U_{i}(\ell_i) + \sum_{i \sim j} w_{ij} \left( \frac{\ell_i - \ell_j}{L - 1} \right)^2, \qquad
   \ell_i \in \{0, \dots, L - 1\}, \; w_{ij} \ge 0 $$

where the second sum is over pairs of nearest neighbors. A swap move for two labels lets every place with one of them
choose between the two. A minimum cut finds the best such choice exactly (Boykov, Veksler and Zabih 2001). Moves are
repeated until none lowers the energy. For two labels the first move is the global optimum. The grids of a batch are
not connected, so they form one graph with one maximum flow. Costs are rounded to integers, multiples of 2^-29 of an
upper bound of the batch's energy.

The functions have these arguments: `labels` `(n, g, h)`, integers; `unary` U, `(n, L, g, h)`; `down`, weights between a
place and the one below it, `(n, g - 1, h)`; `right`, weights between a place and the one on its right, `(n, g, h - 1)`.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import scipy

#: Costs are scaled and rounded so that their sum over the batch fits into 32 bits.
_CAPACITY = 2**29
MAX_SWEEPS = 50


def energy(labels: np.ndarray, unary: np.ndarray, down: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Energy E of every grid, `(n,)`."""
    steps = max(unary.shape[1] - 1, 1)
    data = np.take_along_axis(unary, labels[:, None], axis=1).sum((1, 2, 3))
    rows = (down * (np.diff(labels, axis=1) / steps) ** 2).sum((1, 2))
    columns = (right * (np.diff(labels, axis=2) / steps) ** 2).sum((1, 2))
    return data + rows + columns


def _minimum_cut(gain: np.ndarray, i: np.ndarray, j: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Minimise `sum gain_i s_i + sum weight_ij [s_i != s_j]` over s in {0, 1}. Returns True where s is 1."""
    n = len(gain)
    source, sink = n, n + 1
    keep = weight > 0
    i, j, weight = i[keep], j[keep], weight[keep]
    places = np.arange(n)
    to_one, to_zero = gain < 0, gain > 0
    start = np.concatenate([i, j, np.full(to_one.sum(), source), places[to_zero]])
    end = np.concatenate([j, i, places[to_one], np.full(to_zero.sum(), sink)])
    capacity = np.concatenate([weight, weight, -gain[to_one], gain[to_zero]]).astype(np.int32)
    graph = scipy.sparse.csr_array((capacity, (start, end)), shape=(n + 2, n + 2))
    rest = graph - scipy.sparse.csgraph.maximum_flow(graph, source, sink).flow
    rest.eliminate_zeros()
    reached = scipy.sparse.csgraph.breadth_first_order(rest, source, return_predecessors=False)
    chosen = np.zeros(n + 2, dtype=bool)
    chosen[reached] = True
    return chosen[:n]


def swap(
    labels: np.ndarray, unary: np.ndarray, down: np.ndarray, right: np.ndarray, pair: tuple[int, int]
) -> np.ndarray:
    """Labels after the best swap move between a pair of labels, for integer costs and weights."""
    a, b = pair
    steps = max(unary.shape[1] - 1, 1)
    member = (labels == a) | (labels == b)
    gain = (unary[:, b] - unary[:, a]).astype(np.float64)
    place = np.arange(labels.size).reshape(labels.shape)
    edges = []
    for axis, weight in ((1, down), (2, right)):
        first, second = (np.delete(place, k, axis=axis).ravel() for k in (-1, 0))
        weight = weight.ravel()
        here, there = (member.ravel()[k] for k in (first, second))
        both = here & there
        edges.append((first[both], second[both], weight[both] * ((a - b) / steps) ** 2))
        # A neighbor with another label favors the nearer one of the two labels.
        for mine, other, lone in ((first, second, here & ~there), (second, first, there & ~here)):
            fixed = labels.ravel()[other[lone]]
            pull = weight[lone] * ((b - fixed) ** 2 - (a - fixed) ** 2) / steps**2
            np.add.at(gain.reshape(-1), mine[lone], pull)
    i, j, weight = (np.concatenate(part) for part in zip(*edges, strict=True))
    # Only these places are vertices of the graph.
    members = np.flatnonzero(member)
    number = np.full(labels.size, -1)
    number[members] = np.arange(len(members))
    cut = _minimum_cut(np.rint(gain.ravel()[members]), number[i], number[j], np.rint(weight))
    moved = labels.ravel().copy()
    moved[members] = np.where(cut, b, a)
    return moved.reshape(labels.shape)


def swap_cut(unary: np.ndarray, down: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Labels that no swap move improves, int64, starting from the best label of each place alone.

    Costs must be finite, and weights not negative.
    """
    if not (np.isfinite(unary).all() and (down >= 0).all() and (right >= 0).all()):
        raise ValueError("expected finite costs, and weights >= 0, since a cut needs capacities that are not negative.")
    shifted = unary - unary.min(axis=1, keepdims=True)
    total = shifted.max(axis=1).sum() + 4 * (down.sum() + right.sum())
    scale = _CAPACITY / total if total > 0 else 1.0
    unary, down, right = (np.rint(scale * part).astype(np.int64) for part in (shifted, down, right))
    labels = unary.argmin(axis=1)
    best = energy(labels, unary, down, right)
    for _ in range(MAX_SWEEPS):
        improved = False
        for pair in combinations(range(unary.shape[1]), 2):
            moved = swap(labels, unary, down, right, pair)
            cost = energy(moved, unary, down, right)
            better = cost < best
            labels = np.where(better[:, None, None], moved, labels)
            best = np.where(better, cost, best)
            improved |= bool(better.any())
        if not improved:
            break
    return labels
