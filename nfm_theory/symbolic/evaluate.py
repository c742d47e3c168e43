"""The terms of the expansion as numbers, for a given head and data, from the symbolic derivation."""

from functools import cache
from itertools import combinations_with_replacement
from math import fsum

import sympy as sp

from .derivation import derive_expansion, parse, substitute_moments, symbol
from .moments import law_options


@cache
def _compiled_terms(order, dim, outputs):
    """Compile all terms into one function of numbers; return it, the symbols of its arguments, and the names."""
    terms = derive_expansion(order, dim, outputs).terms
    symbols = sorted(set().union(*(expr.free_symbols for expr in terms.values())), key=str)
    return sp.lambdify(symbols, list(terms.values()), modules="math"), symbols, list(terms)


def _jet(values, kind, variables, order):
    """Compile all partial derivatives of given functions; return that function and the symbols of its values."""
    found = {}
    for k, expr in enumerate(values, 1):
        prefix = (k,) if kind == "f" else ()
        for n in range(order + 1):
            for index in combinations_with_replacement(range(1, len(variables) + 1), n):
                if n:
                    lower = found[symbol(kind, *prefix, *index[:-1])]
                    found[symbol(kind, *prefix, *index)] = sp.diff(lower, variables[index[-1] - 1])
                else:
                    found[symbol(kind, *prefix)] = sp.sympify(expr)
    return sp.lambdify(variables, list(found.values()), modules="math", cse=True), list(found)


def _rows(values, name, width=None):
    """Read a table of n rows from nested sequences, arrays or tensors; a plain number is a row of length 1."""
    values = values.tolist() if hasattr(values, "tolist") else values
    rows = [[float(v) for v in row] if hasattr(row, "__len__") else [float(row)] for row in values]
    width = len(rows[0]) if rows and width is None else width
    if not width or not rows or any(len(row) != width for row in rows):
        raise ValueError(f"{name}: expected n >= 1 rows of {width or 'd'} numbers, got {values!r}.")
    return rows


def evaluate_terms(head, h, features, labels, law, *, order=3, reduction="mean"):
    r"""Evaluate every term of the expansion for a given head, loss and data set, averaged exactly.

    $$ \frac{1}{n^2} \sum_{i=1}^n \sum_{r=1}^n \text{term}(g_i, \, v = g_r - g_i, \, y_i) $$

    SymPy differentiates the head and the loss, `derive_expansion` gives the terms, and the moments are exact. So the
    values test automatic differentiation without sharing any code with it. The cost grows with n^2: use few points.

    Source: NFM Theorem 1 and its extension, as the book's page on notation states them (book: eq-expansion).

    Args:
        head: function of d SymPy symbols that returns a SymPy expression, or a sequence of K of them, the logits.
        h: function of K SymPy symbols that returns the convex part h of the loss `h(u) - y.u`.
        features: features g_i, `(n, d)`, or `(n,)` for d = 1, as nested sequences, an array or a tensor.
        labels: labels y_i, `(n, K)`, or `(n,)` for K = 1.
        law: law of mixing and noise, an `nfm_theory.Law`.
        order: highest power of the scale.
        reduction: `mean` averages over the examples; `none` returns one value for each, averaged over its partners.

    Returns:
        dict from the names of the terms (`standard`, `R1`, ..., `C3`, `C4`, ...) to floats, or to lists of n floats.

    Raises:
        ValueError: if shapes do not agree, and for unknown options.

    Example:
        >>> from nfm_theory import Law
        >>> values = evaluate_terms(lambda g: 2 * g, lambda u: u**2 / 2, [0.0, 3.0], [0.0, 1.0], Law())
        >>> values["R2"]
        1.5
    """
    if reduction not in ("mean", "none"):
        raise ValueError(f"reduction: expected 'mean' or 'none', got {reduction!r}.")
    points = _rows(features, "features")
    dim, n = len(points[0]), len(points)
    g = [symbol("g", j + 1) for j in range(dim)]
    logits = head(*g)
    logits = list(logits) if hasattr(logits, "__len__") else [logits]
    u = sp.symbols(f"u_1:{len(logits) + 1}")
    targets = _rows(labels, "labels", len(logits))
    if len(targets) != n:
        raise ValueError(f"labels: expected {n} rows, one per feature vector, got {len(targets)}.")

    terms, needed, names = _compiled_terms(order, dim, len(logits))
    fixed: dict[sp.Basic, float] = {
        symbol("sigma", name): float(getattr(law, f"{name}_noise")) for name in ("add", "mult")
    }
    for sym in needed:
        if parse(sym)[0] in ("m", "add", "mult"):
            fixed[sym] = float(substitute_moments(sym, **law_options(law)))
    head_jet, head_symbols = _jet(logits, "f", g, order)
    loss_jet, loss_symbols = _jet([h(*u)], "h", u, order)

    per_example = []
    for point, target in zip(points, targets, strict=True):
        known = dict(fixed)
        known.update(zip(head_symbols, head_jet(*point), strict=True))
        loss_values = loss_jet(*(known[symbol("f", k + 1)] for k in range(len(logits))))
        known.update(zip(loss_symbols, loss_values, strict=True))
        known.update((symbol("y", k + 1), value) for k, value in enumerate(target))
        known.update(zip(g, point, strict=True))
        rows = []
        for partner in points:
            known.update((symbol("v", j + 1), partner[j] - point[j]) for j in range(dim))
            rows.append(terms(*(known[sym] for sym in needed)))
        per_example.append([fsum(column) / n for column in zip(*rows, strict=True)])
    columns = zip(*per_example, strict=True)
    if reduction == "none":
        return {name: list(column) for name, column in zip(names, columns, strict=True)}
    return {name: fsum(column) / n for name, column in zip(names, columns, strict=True)}
