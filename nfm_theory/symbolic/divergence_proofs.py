r"""The expansion of the stability loss in SymPy: the chain rule of several branches, the divergence, and an example.

| statement | function |
|---|---|
| Proposition 1 of NoisyMix, the chain rule, here for any number of branches | `prove_chain_rule` |
| gradient and Hessian of the Jensen-Shannon divergence (book: eq-jsd-second) | `prove_divergence` |
| the Hessian `(π_j δ_jl - π_j π_l) F` if all branches are equal (book: eq-jsd-equal) | `prove_equal_branches` |
| S0, S1, S2 and C3 for a scalar head (book: eq-jsd-expansion) | `derive_stability`, `prove_stability` |
| these terms as numbers, for a given head and data | `evaluate_stability` |

The symbols are those of `derivation`. Here `h` stands for Φ, the function of all logits, and a suffix names the branch:
`h_1_2` is ∂²Φ/∂u_1∂u_2, and `f_1_1__2` is the derivative of the first logit at the features of branch 2.
"""

from dataclasses import dataclass
from functools import cache
from itertools import chain, combinations_with_replacement, product
from math import fsum
from typing import Any

import sympy as sp
from sympy.polys.rings import ring

from .derivation import EPS, generic, substitute_moments, symbol
from .moments import law_options

#: Names of the parts of the coefficients up to order 3.
PARTS = ("S0", "S1", *(f"S2_{s}_{c}" for s in ("data", "add", "mult") for c in ("curvature", "residual")), "C3")


def _at(kind, j, *index):
    """Return the symbol of a quantity that belongs to branch j."""
    return sp.Symbol(f"{symbol(kind, *index)}__{j}")


def _check(**values):
    """Refuse values that are not integers in their range."""
    for name, (value, least) in values.items():
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name}: expected an integer >= {least}, got {value!r}.")


@cache
def _raw_coefficients(order, branches, dim, outputs):
    """Coefficients of powers of eps in Φ(f(g^1 + e^1), ...), for generic Φ and f and `e^j = eps a^j + eps^2 b^j`."""
    where, logits = {}, []
    for j in range(1, branches + 1):
        start = [_at("g", j, i + 1) for i in range(dim)]
        where[tuple(start)] = j
        moved = [x + EPS * _at("a", j, i + 1) + EPS**2 * _at("b", j, i + 1) for i, x in enumerate(start)]
        logits += [generic("f", (k + 1,))(*moved) for k in range(outputs)]
    value = generic("h", ())(*logits)
    found = []
    for n in range(order + 1):
        value = value.diff(EPS) if n else value
        here = value.xreplace({EPS: sp.S.Zero})
        names = {fn: sp.Symbol(f"{fn.jet}__{where[fn.args]}") if fn.args in where else fn.jet
                 for fn in here.atoms(sp.Function)}  # fmt: skip
        found.append(here.xreplace(names) / sp.factorial(n))
    return found


def prove_chain_rule(branches=2, dim=2, outputs=2):
    r"""Prove the chain rule of several branches, for a generic loss Φ of all logits and one generic head f.

    $$ \frac{d}{d\varepsilon} = \sum_j \partial_j\Phi \cdot J_j a^j, \qquad
       \frac12 \frac{d^2}{d\varepsilon^2} = \frac12 \sum_{j,l} (J_j a^j)^\top \partial^2_{jl}\Phi\, (J_l a^l)
       + \frac12 \sum_j \partial_j\Phi \cdot \nabla^2 f(g^j)[a^j, a^j] + \sum_j \partial_j\Phi \cdot J_j b^j $$

    The derivatives are those of `Φ(f(g^1 + e^1), ..., f(g^m + e^m))` at ε = 0, with `e^j = ε a^j + ε² b^j` (book:
    eq-jsd-second). On the left SymPy differentiates generic functions; the right sides are written by hand.

    Source: NoisyMix, Proposition 1 for m = 2, as the book's page on notation states it.

    Args:
        branches: number m >= 1 of branches.
        dim: number of features of a branch.
        outputs: number of logits of a branch.

    Returns:
        True if both sides agree identically.

    Raises:
        ValueError: if an argument is not an integer >= 1.

    Example:
        >>> prove_chain_rule(2, dim=1, outputs=1)
        True
    """
    _check(branches=(branches, 1), dim=(dim, 1), outputs=(outputs, 1))
    logits = list(product(range(1, branches + 1), range(1, outputs + 1)))
    slope = sp.Matrix([symbol("h", k + 1) for k in range(len(logits))])
    curvature = sp.Matrix(len(logits), len(logits), lambda k, l: symbol("h", k + 1, l + 1))
    a, b = ({j: sp.Matrix([_at(e, j, i + 1) for i in range(dim)]) for j in range(1, branches + 1)} for e in "ab")
    jac = {(j, k): sp.Matrix([_at("f", j, k, i + 1) for i in range(dim)]) for j, k in logits}
    hess = {(j, k): sp.Matrix(dim, dim, lambda r, c, j=j, k=k: _at("f", j, k, r + 1, c + 1)) for j, k in logits}
    stacked = sp.Matrix([jac[j, k].dot(a[j]) for j, k in logits])
    quadratic = sp.Matrix([a[j].dot(hess[j, k] * a[j]) / 2 + jac[j, k].dot(b[j]) for j, k in logits])
    _, once, twice = _raw_coefficients(2, branches, dim, outputs)
    second = stacked.dot(curvature * stacked) / 2 + slope.dot(quadratic)
    return sp.expand(once - slope.dot(stacked)) == 0 and sp.expand(twice - second) == 0


@dataclass(frozen=True, eq=False)
class _Divergence:
    """The divergence `sum pi_j p_jk L_jk`, with `L_jk = log(p_jk / M_k)`, and its derivatives in the logits.

    Probabilities p, mixture M, logarithms L and weights pi are symbols. `slope` relates them by the chain rule;
    `vanishes` uses `M = sum_j pi_j p_j`, `sum_k p_jk = 1` and `sum_j pi_j = 1`.
    """

    p: list
    mixture: list
    logs: list
    pi: list

    @classmethod
    def of(cls, branches, outputs):
        mm, kk = range(branches), range(outputs)
        p, logs = ([[sp.Symbol(f"{name}_{j}_{k}") for k in kk] for j in mm] for name in "pL")
        return cls(p, [sp.Symbol(f"M_{k}") for k in kk], logs, [sp.Symbol(f"pi_{j}") for j in mm])

    def slope(self, expr, j, c):
        """Differentiate in the logit u_jc, by `dp_k/du_c = p_k (delta_kc - p_c)`."""
        total = 0
        for k, (p, mixture) in enumerate(zip(self.p[j], self.mixture, strict=True)):
            along = sp.diff(expr, p) + self.pi[j] * sp.diff(expr, mixture) + sp.diff(expr, self.logs[j][k]) / p
            along -= self.pi[j] / mixture * sum(sp.diff(expr, row[k]) for row in self.logs)
            total += p * (int(k == c) - self.p[j][c]) * along
        return sp.expand(total)

    def derivatives(self):
        """Return gradient and Hessian in all logits, in one list."""
        at = list(product(range(len(self.p)), range(len(self.mixture))))
        value = sum(self.pi[j] * self.p[j][k] * self.logs[j][k] for j, k in at)
        gradient = sp.Matrix([self.slope(value, *where) for where in at])
        return gradient, sp.Matrix(len(at), len(at), lambda r, s: self.slope(gradient[r], *at[s]))

    def vanishes(self, matrix):
        """Return True if every entry is 0 as a polynomial in the free probabilities and weights."""
        symbols = [*chain(*self.p), *self.mixture, *chain(*self.logs), *self.pi]
        free = [*(q for row in self.p for q in row[:-1]), *chain(*self.logs), *self.pi[:-1]]
        elements: dict[Any, Any] = dict(zip(free, ring(free, sp.QQ)[1:], strict=True))
        elements[self.pi[-1]] = 1 - sum(elements[w] for w in self.pi[:-1])
        for row in self.p:
            elements[row[-1]] = 1 - sum(elements[q] for q in row[:-1])
        for k, mixture in enumerate(self.mixture):
            elements[mixture] = sum(elements[w] * elements[row[k]] for w, row in zip(self.pi, self.p, strict=True))
        clear = sp.Mul(*(mixture**2 for mixture in self.mixture))
        values = [elements[x] for x in symbols]
        return all(sp.lambdify(symbols, sp.expand(entry * clear), modules=[{}])(*values) == 0 for entry in matrix)


@cache
def _divergence(branches, outputs):
    given = _Divergence.of(branches, outputs)
    return given, *given.derivatives()


def _fisher(p):
    return sp.diag(*p) - sp.Matrix(p) * sp.Matrix(p).T


def prove_divergence(branches=2, outputs=2):
    r"""Prove the closed forms of gradient and Hessian of the Jensen-Shannon divergence (book: eq-jsd-second).

    $$ \partial_{u_j} = \pi_j\, p_j c_j, \qquad
       \nabla^2_{jl} = \delta_{jl} \pi_j \big(F_j + \operatorname{diag}(p_j c_j)
       - p_j (p_j c_j)^\top - (p_j c_j) p_j^\top\big)
       - \pi_j \pi_l F_j \operatorname{diag}(1/\bar p) F_l $$

    with `c_jk = log(p_jk / p̄_k) - Σ_k p_jk log(p_jk / p̄_k)`, for symbolic weights and probabilities.

    The library computes with these forms in `jsd_gradient` and `jsd_hessian` of `setting.branches`.

    Args:
        branches: number m >= 2 of branches.
        outputs: number of classes, >= 2.

    Returns:
        True if both sides agree identically.

    Raises:
        ValueError: if an argument is not an integer in its range.

    Example:
        >>> prove_divergence()
        True
    """
    _check(branches=(branches, 2), outputs=(outputs, 2))
    given, gradient, hessian = _divergence(branches, outputs)
    slopes, blocks = [], []
    for p, logs, pi in zip(given.p, given.logs, given.pi, strict=True):
        mean = sum(q * log for q, log in zip(p, logs, strict=True))
        own, column = sp.Matrix([q * (log - mean) for q, log in zip(p, logs, strict=True)]), sp.Matrix(p)
        slopes.append(pi * own)
        inverse = sp.diag(*(1 / q for q in given.mixture))
        row = [-pi * w * _fisher(p) * inverse * _fisher(q) for w, q in zip(given.pi, given.p, strict=True)]
        row[len(blocks)] += pi * (_fisher(p) + sp.diag(*own) - column * own.T - own * column.T)
        blocks.append(sp.Matrix.hstack(*row))
    return given.vanishes(gradient - sp.Matrix.vstack(*slopes)) and given.vanishes(hessian - sp.Matrix.vstack(*blocks))


def prove_equal_branches(branches=2, outputs=2):
    r"""Prove that the divergence of equal branches has gradient 0 and the Hessian `(π_j δ_jl - π_j π_l) F`.

    So a perturbation that all branches share does not change the divergence to second order. Independent noise adds
    `½ Σ_j π_j (1 - π_j) tr(JᵀFJ) σ²`, which is `π1 π2 tr(JᵀFJ) σ²` for two branches (book: eq-jsd-equal).

    Source: the book's page on notation for m = 2; larger m are derived here.

    Args:
        branches: number m >= 2 of branches.
        outputs: number of classes, >= 2.

    Returns:
        True if the Hessian has these blocks identically.

    Raises:
        ValueError: if an argument is not an integer in its range.

    Example:
        >>> prove_equal_branches()
        True
    """
    _check(branches=(branches, 2), outputs=(outputs, 2))
    given, gradient, hessian = _divergence(branches, outputs)
    same = dict.fromkeys(chain(*given.logs), sp.S.Zero) | dict(zip(given.mixture, given.p[0], strict=True))
    same |= {q: common for row in given.p for q, common in zip(row, given.p[0], strict=True)}
    pi = given.pi
    weights = sp.Matrix(branches, branches, lambda j, l: (pi[j] if j == l else 0) - pi[j] * pi[l])
    expected = sp.kronecker_product(weights, _fisher(given.p[0]))
    return given.vanishes(gradient.xreplace(same)) and given.vanishes(hessian.xreplace(same) - expected)


def _name(power, generators, second_phi):
    """Name the part of a monomial of the coefficient of a power of the scale, by its noise and its derivatives."""
    if power != 2:
        return {0: "S0", 1: "S1", 3: "C3"}[power]
    source = "add" if "A" in generators else "mult" if "X" in generators else "data"
    return f"S2_{source}_{'curvature' if second_phi else 'residual'}"


@cache
def derive_stability(branches=2, shared_noise=False):
    r"""Expand the expected loss of several branches with a scalar head in the scale, up to order 3.

    The function inserts `e^j = ε [(1-λ) v^j + σ_mult X^j g^j + σ_add A^j] + ε² (1-λ) σ_mult X^j v^j` into the
    derivatives of generic functions, and takes the expectation of each monomial. All branches have the same λ; their
    noises are independent, or the same.

    Source: NoisyMix Theorem 2 to second order, as the book's page on notation states it (book: eq-jsd-expansion); C3 is
    derived here.

    Args:
        branches: number m >= 1 of branches.
        shared_noise: True if A^j and X^j are the same for all branches.

    Returns:
        dict from the names in `PARTS` to SymPy expressions, which are not averaged over partners and examples.

    Raises:
        ValueError: if `branches` is not an integer >= 1.

    Example:
        >>> print(derive_stability(1)["S2_data_curvature"])
        f_1_1__1**2*h_1_1*m_2*v_1__1**2/2
    """
    _check(branches=(branches, 1))
    t, law, noises = sp.Symbol("t"), {}, {}
    for j in range(1, branches + 1):
        g, v = _at("g", j, 1), _at("v", j, 1)
        add, mult = (noises.setdefault(n, sp.Symbol(n)) for n in (("A", "X") if shared_noise else (f"A{j}", f"X{j}")))
        law[_at("a", j, 1)] = t * v + symbol("sigma", "mult") * mult * g + symbol("sigma", "add") * add
        law[_at("b", j, 1)] = t * symbol("sigma", "mult") * mult * v
    terms = dict.fromkeys(PARTS, sp.S.Zero)
    random = [t, *noises.values()]
    for power, raw in enumerate(_raw_coefficients(3, branches, 1, 1)):
        for part in sp.Add.make_args(sp.expand(raw.xreplace(law))):
            ((degrees, rest),) = sp.Poly(part, *random).terms()
            if any(degree % 2 for degree in degrees[1:]):
                continue
            moments = symbol("m", degrees[0]) if degrees[0] else sp.S.One
            held = ""
            for name, degree in zip(noises, degrees[1:], strict=True):
                if degree:  # at most the second moment of one noise up to order 3
                    moments, held = moments * symbol("add" if name[0] == "A" else "mult", degree), name[0]
            second_phi = any(str(s).startswith("h_") and str(s).count("_") == 2 for s in rest.free_symbols)
            terms[_name(power, held, second_phi)] += rest * moments
    return terms


def prove_stability(branches=2, shared_noise=False):
    r"""Prove the formulas of S0, S1 and S2 for a scalar head, which are written by hand (book: eq-jsd-second).

    $$ S_2 = \tfrac12 \sum_{j,l} \partial^2_{jl}\Phi\, f'_j f'_l\, C_{jl}
       + \tfrac12 \sum_j \partial_j\Phi\, f''_j C_{jj}, \qquad
       C_{jl} = m_2 v^j v^l + [j = l \text{ or shared}]\, (\sigma_{add}^2 + \sigma_{mult}^2 g^j g^l) $$

    The formula leaves out the second moments of the noises. The blocks j ≠ l contain the noise only if it is shared.

    Source: the book's page on notation.

    Args:
        branches: number m >= 1 of branches.
        shared_noise: True if all branches have the same noise.

    Returns:
        True if every part equals the part that `derive_stability` finds.

    Raises:
        ValueError: if `branches` is not an integer >= 1.

    Example:
        >>> prove_stability(2, shared_noise=True)
        True
    """
    derived, mm = derive_stability(branches, shared_noise), range(1, branches + 1)
    f1, f2 = ({j: _at("f", j, 1, *[1] * n) for j in mm} for n in (1, 2))
    g, v = ({j: _at(kind, j, 1) for j in mm} for kind in "gv")
    moment = {
        "data": lambda j, l: symbol("m", 2) * v[j] * v[l],
        "add": lambda j, l: symbol("sigma", "add") ** 2 * symbol("add", 2),
        "mult": lambda j, l: symbol("sigma", "mult") ** 2 * symbol("mult", 2) * g[j] * g[l],
    }
    expected = {"S0": symbol("h"), "S1": symbol("m", 1) * sum(symbol("h", j) * f1[j] * v[j] for j in mm)}
    for source, c in moment.items():
        pairs = [(j, l) for j in mm for l in mm if j == l or source == "data" or shared_noise]
        expected[f"S2_{source}_curvature"] = sum(symbol("h", j, l) * f1[j] * f1[l] * c(j, l) for j, l in pairs) / 2
        expected[f"S2_{source}_residual"] = sum(symbol("h", j) * f2[j] * c(j, j) for j in mm) / 2
    return all(sp.expand(derived[name] - value) == 0 for name, value in expected.items())


@cache
def _divergence_jet(weights):
    """Compile all derivatives of the divergence of sigmoids up to order 3; return their symbols and the function."""
    m = len(weights)
    u = sp.symbols(f"u_1:{m + 1}")
    p = [(1 / (1 + sp.exp(x)), 1 / (1 + sp.exp(-x))) for x in u]
    mixture = [sum(w * q[c] for w, q in zip(weights, p, strict=True)) for c in range(2)]
    found: dict[tuple[int, ...], Any] = {}
    found[()] = sum(w * q[c] * sp.log(q[c] / mixture[c]) for w, q in zip(weights, p, strict=True) for c in range(2))
    for n in range(1, 4):
        for index in combinations_with_replacement(range(1, m + 1), n):
            found[index] = sp.diff(found[index[:-1]], u[index[-1] - 1])
    return [symbol("h", *index) for index in found], sp.lambdify(u, list(found.values()), modules="math", cse=True)


def evaluate_stability(head, features, law, *, weights, shared_noise=False):
    r"""Evaluate the parts of the expansion of the stability loss for a given scalar head, exactly over all pairs.

    SymPy differentiates the head and the divergence of sigmoids, and `derive_stability` gives the parts. So the values
    test the terms of `Branches` without sharing any code with them (book: eq-jsd-expansion).

    Args:
        head: function of one SymPy symbol that returns the logit.
        features: scalar features of all branches, `(m, n)`, as nested sequences.
        law: law of mixing and noise, an `nfm_theory.Law`.
        weights: weights π of the branches.
        shared_noise: True if all branches have the same noise.

    Returns:
        dict from the names in `PARTS` to floats.

    Raises:
        ValueError: if features and weights do not fit together.

    Example:
        >>> from nfm_theory import Law
        >>> values = evaluate_stability(lambda g: 2 * g, [[0.0], [0.0]], Law(add_noise=1.0), weights=[0.5, 0.5])
        >>> round(values["S2_add_curvature"], 12)
        0.25
    """
    m = len(features)
    if len(weights) != m or len({len(row) for row in features}) != 1 or not features[0]:
        raise ValueError(f"features: expected {len(weights)} branches of the same n >= 1 numbers, got {features!r}.")
    terms = derive_stability(m, shared_noise)
    needed = sorted(set().union(*(sp.sympify(expr).free_symbols for expr in terms.values())), key=str)
    known: dict[sp.Basic, float] = {
        symbol("sigma", name): float(getattr(law, f"{name}_noise")) for name in ("add", "mult")
    }
    for sym in needed:
        if str(sym).startswith(("m_", "add_", "mult_")):
            known[sym] = float(substitute_moments(sym, **law_options(law)))
    jet, outer = _divergence_jet(tuple(weights))
    z = sp.Symbol("z")
    inner = sp.lambdify(z, [sp.diff(sp.sympify(head(z)), z, n) for n in range(4)], modules="math", cse=True)
    total = sp.lambdify(needed, [terms[name] for name in PARTS], modules="math", cse=True)
    rows = []
    for own in zip(*features, strict=True):
        here = [inner(x) for x in own]
        values = known | dict(zip(jet, outer(*(d[0] for d in here)), strict=True))
        for j, derivatives in enumerate(here, 1):
            values |= {_at("f", j, 1, *[1] * n): d for n, d in enumerate(derivatives)} | {_at("g", j, 1): own[j - 1]}
        for partner in zip(*features, strict=True):
            values |= {_at("v", j + 1, 1): partner[j] - own[j] for j in range(m)}
            rows.append(total(*(values[sym] for sym in needed)))
    return {name: fsum(column) / len(rows) for name, column in zip(PARTS, zip(*rows, strict=True), strict=True)}
