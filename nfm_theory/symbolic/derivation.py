r"""The expansion of the Noisy Feature Mixup loss, derived with SymPy from the perturbation alone.

$$ \ell(\varepsilon) = h(f(g + e(\varepsilon))) - y \cdot f(g + e(\varepsilon)), \qquad
   e(\varepsilon) = \varepsilon\,[(1-\lambda) v + \sigma_{\mathrm{mult}}\, \xi_{\mathrm{mult}} \odot g
   + \sigma_{\mathrm{add}}\, \xi_{\mathrm{add}}] + \varepsilon^2 (1-\lambda)\, \sigma_{\mathrm{mult}}\,
   \xi_{\mathrm{mult}} \odot v, \quad v = g_r - g_i $$

`derive_expansion` differentiates in the scale and takes the expectation of each monomial. `table_terms` has the same
terms written by hand, which `prove_expansion` compares with them.

Every quantity is a plain symbol, whose name contains its indices, counted from 1:

| symbol | meaning |
|---|---|
| `h`, `h_1`, `h_1_2` | h and its partial derivatives, at the logits f(g) |
| `f_1`, `f_1_2`, `f_1_2_2` | first logit, its derivative in g_2, its second derivative in g_2 |
| `g_j`, `v_j`, `y_k` | a feature, its difference from the partner, a label |
| `sigma_add`, `sigma_mult` | levels of the noises |
| `m_j` | E (1 - lambda)^j under the unmixed law |
| `add_2`, `add_2_2`, `mult_2` | E xi_j^2, E xi_j^2 xi_k^2 (j != k) of the additive, multiplicative noise |
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

import sympy as sp
from sympy.polys.rings import ring

from .moments import noise_moment, unmixed_moment

EPS = sp.Symbol("varepsilon")
NAMES = (
    *("standard", "R1", "R2", "R3", "R2_add", "R3_add", "R2_mult", "R3_mult"),
    *("C3_data", "C3_add", "C3_mult", "C3_cross", "C3"),
)
"""Names of the terms up to order 3, in the order of the tables."""


@dataclass(frozen=True, eq=False)
class Expansion:
    r"""The expected loss of one example and its partner as a polynomial in the scale (book: eq-expansion).

    Attributes:
        order: highest power of the scale.
        dim: number of features.
        outputs: number of logits.
        coefficients: `order + 1` SymPy expressions, one for each power: its coefficient in expectation over lambda and
            the noise. They are not yet averaged over partners, which occur in `v_j`, and examples.
        terms: dict from names to expressions: `standard`, `R1`, ..., `C3` and its four parts; then `C4`, ... without
            parts.
    """

    order: int
    dim: int
    outputs: int
    coefficients: tuple[sp.Expr, ...]
    terms: Mapping[str, sp.Expr]

    def __getitem__(self, name):
        """Return the term called `name`."""
        return self.terms[name]


def symbol(kind, *index):
    """Return the symbol of a quantity in the module's table: `symbol("f", 1, 2)` is `f_1_2`.

    Args:
        kind: `h`, `f`, `g`, `v`, `y`, `m`, `add`, `mult` or `sigma`.
        index: indices, counted from 1, or `"add"` or `"mult"` for sigma; indices of derivatives are sorted.

    Returns:
        A SymPy Symbol; `parse` is the inverse function.
    """
    if kind == "h":
        index = sorted(index)
    elif kind == "f":
        index = (index[0], *sorted(index[1:]))
    return sp.Symbol("_".join([kind, *map(str, index)]))


def parse(name) -> tuple[str, tuple[Any, ...]]:
    """Return the kind and the indices of a symbol made by `symbol`.

    Args:
        name: the symbol, or its name.

    Returns:
        The kind, and a tuple of integers, or of one string for `sigma`.
    """
    kind, *index = str(name).split("_")
    return kind, tuple(index) if kind == "sigma" else tuple(map(int, index))


@cache
def generic(kind, index) -> Any:
    """Make the SymPy Function class of a partial derivative of a generic function.

    Args:
        kind: `h` or `f`.
        index: indices of the derivative.
    """

    def fdiff(self, argindex=1):
        return generic(kind, parse(symbol(kind, *index, argindex))[1])(*self.args)

    return type(symbol(kind, *index).name, (sp.Function,), {"fdiff": fdiff, "jet": symbol(kind, *index)})


@cache
def _raw_coefficients(order, dim, outputs):
    """Differentiate generic functions: coefficients of eps^0, ..., eps^order for e = eps a + eps^2 b."""
    a, b = sp.symbols(f"a_1:{dim + 1}"), sp.symbols(f"b_1:{dim + 1}")
    features = [symbol("g", j + 1) + EPS * a[j] + EPS**2 * b[j] for j in range(dim)]
    logits = [generic("f", (k,))(*features) for k in range(1, outputs + 1)]
    loss = generic("h", ())(*logits) - sum(symbol("y", k + 1) * u for k, u in enumerate(logits))
    found = []
    for n in range(order + 1):
        loss = loss.diff(EPS) if n else loss
        at_zero = loss.xreplace({EPS: sp.S.Zero})
        at_zero = at_zero.xreplace({fn: fn.jet for fn in at_zero.atoms(sp.Function)})
        found.append(at_zero / sp.factorial(n))
    return found, a, b


def check_sizes(order, dim, outputs):
    """Refuse sizes that are not integers in their range.

    Args:
        order: highest power of the scale, >= 0.
        dim: number of features, >= 1.
        outputs: number of logits, >= 1.
    """
    for name, value, least in (("order", order, 0), ("dim", dim, 1), ("outputs", outputs, 1)):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name}: expected an integer >= {least}, got {value!r}.")


def _term_name(n, feature_order, second_h, add, mult):
    """Name the term of a monomial of the coefficient of eps^n, by its derivatives and its noise."""
    if n < 2:
        return ("standard", "R1")[n]
    if n == 2:
        return ("R2" if second_h else "R3") + ("_add" if add else "_mult" if mult else "")
    if n == 3:
        return "C3_" + ("add" if add else "data" if not mult else "mult" if feature_order == 3 else "cross")
    return f"C{n}"


@cache
def derive_expansion(order=3, dim=1, outputs=1):
    r"""Expand the expected loss in the scale, for generic h and f, into coefficients and named parts.

    $$ \mathbb{E}\,\ell(\varepsilon) = c_0 + \varepsilon c_1 + \dots + \varepsilon^p c_p + O(\varepsilon^{p+1}), \quad
       c_1 = R_1, \quad c_2 = R_2 + R_3 + R_2^{\mathrm{add}} + R_3^{\mathrm{add}}
       + R_2^{\mathrm{mult}} + R_3^{\mathrm{mult}}, \quad c_3 = C_3 \qquad \text{(book: eq-expansion)} $$

    The function differentiates the loss in the scale at 0, for generic SymPy functions. It splits the coefficients into
    monomials in (1 - lambda) and the noise, and replaces each monomial by its expectation. It assumes that lambda and
    both noises are independent, and that the coordinates of a noise are exchangeable with a law that is even in each
    coordinate, so that odd moments vanish. Coordinates may depend on each other: E xi_1^2 xi_2^2 has its own symbol.
    Parts with a second derivative of h are Gauss-Newton terms (R2), all others are residual terms (R3).

    Source: NFM Theorem 1 for the second order, as the book's page on notation states it; the rest is derived here.

    Args:
        order: highest power of the scale, >= 0.
        dim: number of features, >= 1.
        outputs: number of logits, >= 1.

    Returns:
        `Expansion`; `expansion["R2"]` is a term, `expansion.coefficients[n]` a coefficient. The result is cached.

    Raises:
        ValueError: if an argument is not an integer in its range.

    Example:
        >>> print(derive_expansion(2)["R2"])
        f_1_1**2*h_1_1*m_2*v_1**2/2
    """
    check_sizes(order, dim, outputs)
    raw, a, b = _raw_coefficients(order, dim, outputs)
    t, *xi = random = sp.symbols(f"t xiadd_1:{dim + 1} ximult_1:{dim + 1}")
    s_add, s_mult = symbol("sigma", "add"), symbol("sigma", "mult")
    law = {}
    for j in range(dim):
        g, v, add, mult = symbol("g", j + 1), symbol("v", j + 1), xi[j], xi[dim + j]
        law[a[j]] = t * v + s_mult * mult * g + s_add * add
        law[b[j]] = t * s_mult * mult * v

    coefficients, terms = [], {}
    for n, expr in enumerate(raw):
        expr = expr.xreplace(law)
        kept = sorted(expr.free_symbols - set(random), key=str)
        jets = [parse(x) for x in kept]
        polynomial = ring([*random, *kept], sp.QQ)[0].from_expr(expr)
        parts = defaultdict(list)
        for powers, number in polynomial.terms():
            noise, rest = powers[1 : 2 * dim + 1], powers[2 * dim + 1 :]
            if any(q % 2 for q in noise):
                continue
            add, mult = ([q for q in half if q] for half in (noise[:dim], noise[dim:]))
            factors = [symbol("m", powers[0])] if powers[0] else []
            factors += [symbol("add", *sorted(add, reverse=True))] if add else []
            factors += [symbol("mult", *sorted(mult, reverse=True))] if mult else []
            factors += [x**q for x, q in zip(kept, rest, strict=True) if q]
            feature_order = sum(q * (len(i) - 1) for q, (kind, i) in zip(rest, jets, strict=True) if kind == "f")
            second_h = any(q and kind == "h" and len(i) == 2 for q, (kind, i) in zip(rest, jets, strict=True))
            parts[_term_name(n, feature_order, second_h, add, mult)].append(sp.Mul(number, *factors))
        sums = {name: sp.Add(*monomials) for name, monomials in parts.items()}
        coefficients.append(sp.Add(*sums.values()))
        terms.update(sums)
    if order >= 3:
        terms["C3"] = coefficients[3]
    later = [f"C{n}" for n in range(4, order + 1)]
    ordered = {name: terms[name] for name in [*NAMES, *later] if name in terms}
    return Expansion(order, dim, outputs, tuple(coefficients), MappingProxyType(ordered))


def substitute_moments(expr, *, alpha=None, beta=None, noise=None, sparsity=0) -> Any:
    r"""Replace the symbols of moments by values: `m_j` of the Beta law, and `add_2`, `mult_2_2`, ... of the noise.

    Args:
        expr: SymPy expression in the symbols of `derive_expansion`.
        alpha: first parameter of the Beta law; `None` keeps the symbols `m_j`.
        beta: second parameter; `None` takes the value of `alpha`.
        noise: `normal`, `uniform`, `rademacher` or `released`; `None` keeps the symbols of the noise moments.
        sparsity: probability that a coordinate of the noise is zeroed.

    Returns:
        SymPy expression.

    Raises:
        ValueError: if a parameter is outside its range.

    Example:
        >>> print(substitute_moments(derive_expansion(2)["R2"], alpha=1))
        f_1_1**2*h_1_1*v_1**2/12
    """
    values = {}
    for sym in expr.free_symbols:
        if sym.name.split("_")[0] not in ("m", "add", "mult"):
            continue
        kind, index = parse(sym)
        if kind == "m" and alpha is not None:
            values[sym] = unmixed_moment(index[0], alpha, alpha if beta is None else beta)
        elif kind in ("add", "mult") and noise is not None:
            values[sym] = noise_moment(noise, index, kind=kind, sparsity=sparsity)
    return expr.xreplace(values)
