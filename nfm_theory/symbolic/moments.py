r"""The laws of Noisy Feature Mixup, derived exactly with SymPy: the unmixed law of lambda, and moments of the noise.

| formula | function |
|---|---|
| $\lambda\,(p(\lambda) + p(1-\lambda))$, the density of lambda after label unmixing | `unmixed_density` |
| $m_j = \mathbb{E}(1-\lambda)^j$, a moment of this law | `unmixed_moment` |
| the loss with mixed labels equals the unmixed loss | `prove_label_unmixing` |
| $\mathbb{E}\xi^2, \mathbb{E}\xi^4, \mathbb{E}\xi_j^2\xi_k^2$ | `noise_moments` |
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import sympy as sp

LAM = sp.Symbol("lambda", positive=True)
#: Names of the noise laws whose moments are known in closed form.
LAWS = ("normal", "uniform", "rademacher", "released")


def _positive(**values):
    """Turn the parameters of a Beta law into SymPy expressions; those that are not positive are refused."""
    out = []
    for name, value in values.items():
        expr = sp.sympify(value)
        if not isinstance(expr, sp.Expr) or expr.is_positive is False or expr in (sp.nan, sp.oo):
            raise ValueError(f"{name}: expected a positive finite number or symbol, got {value!r}.")
        out.append(expr)
    return out


def _unmix(p, lam) -> Any:
    """The density of lambda after label unmixing, for a density p before it.

    A loss that is affine in the label gives y_i the weight lambda, and y_r the weight 1 - lambda. In the second part we
    exchange i and r, and lambda and 1 - lambda, which leaves the features unchanged.
    """
    own = lam * p(lam)
    partner = ((1 - lam) * p(lam)).subs(lam, 1 - lam)
    return own + partner


def unmixed_density(alpha, beta):
    r"""The density of lambda under which the loss has the label of the first example only.

    $$ \tilde p(\lambda) = \lambda\,(p(\lambda) + p(1-\lambda))
       = \tfrac{\alpha}{\alpha+\beta}\,\mathrm{Beta}(\alpha+1, \beta)
       + \tfrac{\beta}{\alpha+\beta}\,\mathrm{Beta}(\beta+1, \alpha) \qquad \text{(book: eq-unmixing)} $$

    The first form follows from exchanging labels in the loss with mixed labels; `prove_beta_mixture` proves the second.
    The weights of the two Beta laws are E lambda and E (1 - lambda), since lambda p(lambda) integrates to
    alpha / (alpha + beta).

    Source: the theory of Mixup and NFM, as the book's page on notation states it.

    Args:
        alpha: first parameter of the Beta law, a positive number or a SymPy expression.
        beta: second parameter, a positive number or a SymPy expression.

    Returns:
        SymPy expression in the positive symbol `lambda`; it holds for 0 < lambda < 1.

    Raises:
        ValueError: if a parameter is known not to be positive.

    Example:
        >>> print(unmixed_density(1, 1))
        2*lambda
    """
    alpha, beta = _positive(alpha=alpha, beta=beta)
    return _unmix(lambda x: x ** (alpha - 1) * (1 - x) ** (beta - 1), LAM) / _beta(alpha, beta)


def _beta(a, b):
    """Integral of x^(a-1) (1-x)^(b-1) over (0, 1)."""
    return sp.gamma(a) * sp.gamma(b) / sp.gamma(a + b)


def _gammasimp(expr) -> Any:
    return sp.gammasimp(expr)


def prove_beta_mixture():
    r"""Prove that the unmixed law is the mixture of two Beta laws, for symbolic positive parameters.

    Source: the book's page on notation (book: eq-unmixing).

    Returns:
        True if the difference of the two densities simplifies to 0.

    Example:
        >>> prove_beta_mixture()
        True
    """
    a, b = sp.symbols("alpha beta", positive=True)

    def law(p, q):
        return LAM ** (p - 1) * (1 - LAM) ** (q - 1) / _beta(p, q)

    mixture = a / (a + b) * law(a + 1, b) + b / (a + b) * law(b + 1, a)
    derived, stated = (_gammasimp(density) for density in (unmixed_density(a, b), mixture))
    return sp.simplify(sp.expand(derived - stated)) == 0


@cache
def _symbolic_moment(j):
    """Integrate (1 - lambda)^j against each power product of the unmixed density by the Beta integral."""
    a, b = sp.symbols("alpha beta", positive=True)
    total = 0
    for part in sp.Add.make_args(sp.expand((1 - LAM) ** j * unmixed_density(a, b), deep=False)):
        powers = sp.powsimp(part).as_powers_dict()
        x, y = powers.pop(LAM, 0), powers.pop(1 - LAM, 0)
        total += sp.Mul(*(base**q for base, q in powers.items())) * _beta(x + 1, y + 1)
    return sp.factor(sp.gammasimp(total))


def unmixed_moment(j, alpha, beta):
    r"""A moment of 1 - lambda under the unmixed law, in closed form.

    $$ m_j = \mathbb{E}(1-\lambda)^j
       = \frac{\alpha\,(\beta)_j + \beta\,(\alpha)_j}{(\alpha+\beta)\,(\alpha+\beta+1)_j}, \qquad
       (x)_j = x (x+1) \cdots (x+j-1) \qquad \text{(book: eq-moments)} $$

    For all parameters m_2 = m_1 / 2, which is E lambda (1 - lambda) under the Beta law.

    Source: the book's page on notation; the function integrates `unmixed_density`.

    Args:
        j: order of the moment, an integer >= 0.
        alpha: first parameter of the Beta law, a positive number or a SymPy expression.
        beta: second parameter, a positive number or a SymPy expression.

    Returns:
        SymPy expression, a rational function of the parameters.

    Raises:
        ValueError: if `j` is not an integer >= 0 or a parameter is known not to be positive.

    Example:
        >>> unmixed_moment(1, 1, 1), unmixed_moment(2, 1, 1)
        (1/3, 1/6)
    """
    if not isinstance(j, int) or j < 0:
        raise ValueError(f"j: expected an integer >= 0, got {j!r}.")
    alpha, beta = _positive(alpha=alpha, beta=beta)
    a, b = sp.symbols("alpha beta", positive=True)
    return sp.sympify(_symbolic_moment(j)).subs({a: alpha, b: beta}, simultaneous=True)


def prove_label_unmixing(points=2, *, reweight=_unmix):
    r"""Prove the label-unmixing lemma for any loss that is affine in the label, any law of lambda and any noise.

    $$ \int p(\lambda) \sum_{i,r} \ell(z_{ir}(\lambda), \lambda y_i + (1-\lambda) y_r)\, d\lambda
       = \int \lambda\,(p(\lambda) + p(1-\lambda)) \sum_{i,r} \ell(z_{ir}(\lambda), y_i)\, d\lambda
       \qquad \text{(book: eq-unmixing)} $$

    Here $\ell(z, y) = a(z) - y\,b(z)$ with generic functions $a$, $b$ and $p$, and
    $z_{ir} = (1 + \sigma_{\mathrm{mult}}\xi_{\mathrm{mult}})(\lambda g_i + (1-\lambda) g_r)
    + \sigma_{\mathrm{add}}\xi_{\mathrm{add}}$ with fixed noise. The proof shows that the
    difference of the integrands changes its sign under lambda -> 1 - lambda, so that its integral over (0, 1) is 0.

    Source: the theory of Mixup and NFM, as the book's page on notation states it.

    Args:
        points: number n of examples; the sum has all n^2 pairs, including those of an example with itself.
        reweight: function `reweight(p, lam)`, the weight of the unmixed loss; with a wrong one the proof fails.

    Returns:
        True if the identity holds.

    Raises:
        ValueError: if `points` is not an integer >= 1.
    """
    if not isinstance(points, int) or points < 1:
        raise ValueError(f"points: expected an integer >= 1, got {points!r}.")
    a, b, p = (sp.Function(name) for name in "abp")
    g, y = sp.symbols(f"g_:{points}"), sp.symbols(f"y_:{points}")
    s_add, s_mult, xi_add, xi_mult = sp.symbols("s_add s_mult xi_add xi_mult")
    difference: Any = sp.S.Zero
    for i in range(points):
        for r in range(points):
            z = sp.expand((1 + s_mult * xi_mult) * (LAM * g[i] + (1 - LAM) * g[r]) + s_add * xi_add)
            difference += p(LAM) * (a(z) - (LAM * y[i] + (1 - LAM) * y[r]) * b(z))
            difference -= reweight(p, LAM) * (a(z) - y[i] * b(z))
    return sp.expand(difference + difference.subs(LAM, 1 - LAM)) == 0


@dataclass(frozen=True)
class NoiseMoments:
    r"""Exact moments of the coordinates of additive and multiplicative noise of level 1.

    Attributes:
        M2_add: second moment E xi^2 of the additive noise.
        M4_add: fourth moment E xi^4 of the additive noise.
        M22_add: mixed moment E xi_j^2 xi_k^2 of the additive noise, j != k; it differs from `M2_add**2` if the
            coordinates depend on each other.
        M2_mult: second moment of the multiplicative noise.
        M4_mult: fourth moment of the multiplicative noise.
        M22_mult: mixed moment of the multiplicative noise.
    """

    M2_add: sp.Expr
    M4_add: sp.Expr
    M22_add: sp.Expr
    M2_mult: sp.Expr
    M4_mult: sp.Expr
    M22_mult: sp.Expr


def law_options(law):
    """Read alpha, beta, noise and sparsity from an `nfm_theory.Law`, for `substitute_moments`.

    Args:
        law: law with attributes `alpha`, `beta`, `lam` and `noises`.

    Raises:
        ValueError: for a fixed weight, and a pair of noises that has no name here.
    """
    add, mult = law.noises
    bases = ("normal", "uniform") if add.beta_scaled else (add.base, add.base)
    same = (add.beta_scaled, add.sparsity) == (mult.beta_scaled, mult.sparsity)
    if law.lam is not None or not same or (add.base, mult.base) != bases:
        raise ValueError(f"law: expected a Beta law of the weight and one of the noises {LAWS}, got {law!r}.")
    noise = "released" if add.beta_scaled else add.base
    return {"alpha": law.alpha, "beta": law.beta, "noise": noise, "sparsity": add.sparsity}


@cache
def _base_moment(law, q):
    """The moment of order q of a scalar law, by integration or summation."""
    x = sp.Symbol("x", real=True)
    if law == "normal":
        return sp.integrate(x**q * sp.exp(-(x**2) / 2) / sp.sqrt(2 * sp.pi), (x, -sp.oo, sp.oo))
    if law == "uniform":
        return sp.integrate(x**q / 2, (x, -1, 1))
    if law == "beta25":
        weight = x * (1 - x) ** 4
        return sp.integrate(sp.expand(x**q * weight), (x, 0, 1)) / sp.integrate(sp.expand(weight), (x, 0, 1))
    return sp.Rational(1 + (-1) ** q, 2)


def noise_moment(law, exponents, *, kind="add", sparsity=0):
    r"""The mixed moment $\mathbb{E}\,\xi_1^{q_1} \cdots \xi_k^{q_k}$ of different coordinates of the noise.

    The laws of level 1 are `normal`, N(0, 1); `uniform` on (-1, 1), with variance 1/3; `rademacher`, random signs; and
    `released`, the law of the published code: one Beta(2, 5) number for each call times coordinates that are normal
    (additive noise) or uniform on (-1, 1) (multiplicative noise). These coordinates are uncorrelated, but they depend
    on each other. With `sparsity` s each coordinate is set to 0 independently with probability s.

    Source: the released code, as the book's page on notation describes it (book: eq-noise-moments).

    Args:
        law: law of the noise, `normal`, `uniform`, `rademacher` or `released`.
        exponents: positive integers q_1, ..., q_k; without any the moment is 1.
        kind: `add` for the additive noise or `mult` for the multiplicative one; they differ only for `released`.
        sparsity: probability in [0, 1] that a coordinate is set to 0, a number or a SymPy expression.

    Returns:
        An exact SymPy number, or an expression in `sparsity`.

    Raises:
        ValueError: if an argument is outside its range.

    Example:
        >>> noise_moment("released", (2,)), noise_moment("released", (2, 2))
        (3/28, 1/42)
    """
    exponents, sparsity = tuple(exponents), sp.sympify(sparsity)
    if law not in LAWS:
        raise ValueError(f"law: expected one of {', '.join(LAWS)}, got {law!r}.")
    if kind not in ("add", "mult"):
        raise ValueError(f"kind: expected 'add' or 'mult', got {kind!r}.")
    if any(not isinstance(q, int) or q < 1 for q in exponents):
        raise ValueError(f"exponents: expected positive integers, got {exponents!r}.")
    if sparsity.is_number and not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity: expected a probability in [0, 1], got {sparsity}.")
    value = (1 - sparsity) ** len(exponents)
    if law == "released":
        value *= _base_moment("beta25", sum(exponents))
        law = "normal" if kind == "add" else "uniform"
    for q in exponents:
        value *= _base_moment(law, q)
    return value


def noise_moments(law, *, sparsity=0):
    r"""Return the exact second, fourth and mixed fourth moments of a law of the noise.

    Source: the same as for `noise_moment` (book: eq-noise-moments).

    Args:
        law: law of the noise, `normal`, `uniform`, `rademacher` or `released`; see `noise_moment`.
        sparsity: probability in [0, 1] that a coordinate is set to 0, a number or a SymPy expression.

    Returns:
        `NoiseMoments` with SymPy numbers.

    Raises:
        ValueError: if an argument is outside its range.

    Example:
        >>> noise_moments("released").M2_mult
        1/28
    """
    orders = ((2,), (4,), (2, 2))
    return NoiseMoments(
        *(noise_moment(law, q, kind=kind, sparsity=sparsity) for kind in ("add", "mult") for q in orders)
    )
