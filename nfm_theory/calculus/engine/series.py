r"""Arithmetic with truncated Taylor series: coefficients 1, .., p of results from those of their arguments.

A series is the list `[x1, .., xp]` of its coefficients without the constant one, which is known from the recording.
Each coefficient has a dimension for the directions before those of the constant; `None` stands for 0.

| function | recurrence |
|---|---|
| product | Cauchy's product |
| σ(x) | Horner's scheme with the Taylor coefficients of σ |
| softmax y, log-sum-exp K | `j K_j = Σ i ⟨y_(j-i), x_i⟩`, `k y_k = Σ j y_(k-j) (x_j - K_j)` |
| power `q^α` | `k q₀ r_k = Σ (αj - (k - j)) q_j r_(k-j)` |

Source: Griewank and Walther, Evaluating Derivatives, chapter 13.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

Series = list[Tensor | None]


def added(parts: Iterable[Tensor | None]) -> Tensor | None:
    """The sum of those parts that are not 0."""
    total = None
    for part in parts:
        if part is not None:
            total = part if total is None else total + part
    return total


def _multiplied(pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The sum of elementwise products."""
    total = pairs[0][0] * pairs[0][1]
    for a, b in pairs[1:]:
        fresh = torch.is_grad_enabled() or total.shape != torch.broadcast_shapes(total.shape, a.shape, b.shape)
        total = torch.addcmul(total, a, b) if fresh else total.addcmul_(a, b)
    return total


def product(
    x0: Tensor, x: Series, y0: Tensor | None, y: Series, times: Callable[[Tensor, Tensor], Tensor] | None = None
) -> Series:
    """The series of a product, elementwise or by any bilinear function `times`."""
    xs, ys, found = [x0, *x], [y0, *y], []
    for k in range(1, len(xs)):
        pairs = [(a, b) for a, b in zip(xs[: k + 1], ys[k::-1], strict=True) if a is not None and b is not None]
        if times is None:
            found.append(_multiplied(pairs) if pairs else None)
        else:
            found.append(added(times(a, b) for a, b in pairs))
    return found


def composed(derivatives: list[Tensor], x: Series) -> Series:
    """The series of σ(x), from the Taylor coefficients `σ^(k) / k!` at the constant, k = 1, .., p."""
    order = len(x)
    inner: Series = []  # σ_k + X (σ_(k+1) + X (..)) without its constant, to as many coefficients as matter
    for k in range(order - 1, -1, -1):
        inner = product(derivatives[k], [*inner, None], None, x[: order - k])
    return inner


def softmax(y0: Tensor, x: Series, dim: int) -> tuple[Series, Series]:
    """The Taylor series of the softmax y of x and of log-sum-exp, along a dimension counted from the end."""
    y: list[Tensor | None] = [y0]
    moved: Series = []  # j (x_j - K_j)
    sums: Series = []
    for k in range(1, len(x) + 1):
        weighted = [None if z is None else i * z for i, z in enumerate(x[:k], 1)]
        raised = product(y0, [*y[1:], None], None, weighted, lambda a, b: (a * b).sum(dim, keepdim=True))[-1]
        sums.append(None if raised is None else raised / k)
        own = x[k - 1]
        moved.append(added([None if own is None else k * own, None if raised is None else -raised]))
        found = product(y0, [*y[1:], None], None, moved)[-1]
        y.append(None if found is None else found / k)
    return y[1:], sums


def power(r0: Tensor, q0: Tensor, q: Series, exponent: float) -> Series:
    """The series of `q ** exponent`, from its constant r0."""
    r: list[Tensor | None] = [r0]
    for k in range(1, len(q) + 1):
        weighted = [None if z is None else (exponent * j - (k - j)) * z for j, z in enumerate(q[:k], 1)]
        found = product(r0, [*r[1:], None], None, weighted)[-1]
        r.append(None if found is None else found / (k * q0))
    return r[1:]
