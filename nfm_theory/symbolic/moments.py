r"""Exact laws behind Noisy Feature Mixup, derived with SymPy: lambda with unmixed labels, noise moments.

| formula | function |
|---|---|
| $\lambda\,(p(\lambda) + p(1-\lambda))$, the law of lambda once labels are unmixed | `unmixed_density` |
| $m_j = \mathbb{E}(1-\lambda)^j$ under it | `unmixed_moment` |
| mixed-label loss = unmixed loss | `prove_label_unmixing` |
| $\mathbb{E}\xi^2, \mathbb{E}\xi^4, \mathbb{E}\xi_j^2\xi_k^2$ | `noise_moments` |
"""

from dataclasses import dataclass
from functools import cache

import sympy as sp

LAM = sp.Symbol("lambda", positive=True)
#: Names of the noise laws whose moments are known in closed form.
LAWS = ("normal", "uniform", "rademacher", "released")


def _positive(**values):
    """Sympify the parameters of a Beta law, refusing those that are not positive."""
    out = []
    for name, value in values.items():
        expr = sp.sympify(value)
        if not isinstance(expr, sp.Expr) or expr.is_positive is False or expr in (sp.nan, sp.oo):
            raise ValueError(f"{name}: expected a positive finite number or symbol, got {value!r}.")
        out.append(expr)
    return out


def _unmix(p, lam):
    """Relabel: a loss affine in the label puts weight lambda on y_i, 1 - lambda on y_r.

    In the second part exchange the names i and r, then lambda and 1 - lambda: the features are unchanged.
    """
    own = lam * p(lam)
    partner = ((1 - lam) * p(lam)).subs(lam, 1 - lam)
    return own + partner


def unmixed_density(alpha, beta):
    r"""Density of the law of lambda under which the loss carries the label of the first example only.

    $$ \tilde p(\lambda) = \lambda\,(p(\lambda) + p(1-\lambda))
       = \tfrac{\alpha}{\alpha+\beta}\,\mathrm{Beta}(\alpha+1, \beta)
       + \tfrac{\beta}{\alpha+\beta}\,\mathrm{Beta}(\beta+1, \alpha) \qquad \text{(book: eq-unmixing)} $$

    The first form comes from relabelling the mixed-label loss, the second is `prove_beta_mixture`. The two
    weights are E lambda and E (1 - lambda): lambda p(lambda) integrates to alpha/(alpha+beta).

    Source: Mixup theory and NFM, as stated in `notation`.

    Args:
        alpha: first parameter of the Beta law, positive number or SymPy expression.
        beta: second parameter, likewise.

    Returns:
        SymPy expression in the positive symbol `lambda`, on 0 < lambda < 1.

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


def prove_beta_mixture():
    r"""Prove that the unmixed law is the mixture of two Beta laws, for symbolic positive parameters.

    Source: as stated in `notation` (book: eq-unmixing).

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
    gap = sp.expand(sp.gammasimp(unmixed_density(a, b)) - sp.gammasimp(mixture))
    return sp.simplify(gap) == 0


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
    r"""Moment of 1 - lambda under the unmixed law, in closed form.

    $$ m_j = \mathbb{E}(1-\lambda)^j
       = \frac{\alpha\,(\beta)_j + \beta\,(\alpha)_j}{(\alpha+\beta)\,(\alpha+\beta+1)_j}, \qquad
       (x)_j = x (x+1) \cdots (x+j-1) \qquad \text{(book: eq-moments)} $$

    Note m_2 = m_1 / 2 = E lambda (1 - lambda) under the Beta law, for all parameters.

    Source: as stated in `notation`; obtained here by integrating `unmixed_density`.

    Args:
        j: order, integer >= 0.
        alpha: first parameter of the Beta law, positive number or SymPy expression.
        beta: second parameter, likewise.

    Returns:
        SymPy expression, rational in the parameters.

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
    r"""Prove the label-unmixing lemma for any loss affine in the label, any law of lambda and any noise.

    $$ \int p(\lambda) \sum_{i,r} \ell(z_{ir}(\lambda), \lambda y_i + (1-\lambda) y_r)\, d\lambda
       = \int \lambda\,(p(\lambda) + p(1-\lambda)) \sum_{i,r} \ell(z_{ir}(\lambda), y_i)\, d\lambda
       \qquad \text{(book: eq-unmixing)} $$

    with $\ell(z, y) = a(z) - y\,b(z)$, $a$, $b$, $p$ generic functions and
    $z_{ir} = (1 + \sigma_{\mathrm{mult}}\xi_{\mathrm{mult}})(\lambda g_i + (1-\lambda) g_r)
    + \sigma_{\mathrm{add}}\xi_{\mathrm{add}}$ at fixed noise. The difference of the integrands is shown to
    change sign under lambda -> 1 - lambda, so it integrates to 0 over (0, 1).

    Source: Mixup theory and NFM, as stated in `notation`.

    Args:
        points: number n of examples; pairs run over all n^2, self-pairs included.
        reweight: `reweight(p, lam)` is the weight of the unmixed loss; replace it to see a wrong one refused.

    Returns:
        True if the identity holds.

    Raises:
        ValueError: if `points` is not an integer >= 1.
    """
    if not isinstance(points, int) or points < 1:
        raise ValueError(f"points: expected an integer >= 1, got {points!r}.")
    a, b, p = sp.symbols("a b p", cls=sp.Function)
    g, y = sp.symbols(f"g_:{points}"), sp.symbols(f"y_:{points}")
    s_add, s_mult, xi_add, xi_mult = sp.symbols("s_add s_mult xi_add xi_mult")
    difference = 0
    for i in range(points):
        for r in range(points):
            z = sp.expand((1 + s_mult * xi_mult) * (LAM * g[i] + (1 - LAM) * g[r]) + s_add * xi_add)
            difference += p(LAM) * (a(z) - (LAM * y[i] + (1 - LAM) * y[r]) * b(z))
            difference -= reweight(p, LAM) * (a(z) - y[i] * b(z))
    return sp.expand(difference + difference.subs(LAM, 1 - LAM)) == 0


@dataclass(frozen=True)
class NoiseMoments:
    r"""Exact moments of one coordinate, and of two different ones, of additive and multiplicative noise.

    Attributes:
        M2_add: E xi^2 of the additive noise, at level 1.
        M4_add: E xi^4.
        M22_add: E xi_j^2 xi_k^2, j != k; differs from `M2_add**2` where coordinates depend on each other.
        M2_mult: the same for the multiplicative noise.
        M4_mult: likewise.
        M22_mult: likewise.
    """

    M2_add: sp.Expr
    M4_add: sp.Expr
    M22_add: sp.Expr
    M2_mult: sp.Expr
    M4_mult: sp.Expr
    M22_mult: sp.Expr


@cache
def _base_moment(law, q):
    """Moment of order q of one scalar law, by integration or summation."""
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
    r"""Mixed moment of different coordinates of the noise, $\mathbb{E}\,\xi_1^{q_1} \cdots \xi_k^{q_k}$.

    Laws, at level 1: `normal` N(0, 1); `uniform` on (-1, 1), variance 1/3; `rademacher`, signs; `released`,
    what the published code draws: one Beta(2, 5) scalar per call times normal (additive) or uniform on
    (-1, 1) (multiplicative) coordinates, which are thus uncorrelated but dependent. With `sparsity` s, each
    is set to zero independently with probability s.

    Source: the released code, as stated in `notation` (book: eq-noise-moments).

    Args:
        law: `normal`, `uniform`, `rademacher` or `released`.
        exponents: the positive integers q_1..q_k; empty gives 1.
        kind: `add` or `mult`; matters for `released` only.
        sparsity: probability of a zero, in [0, 1], or a SymPy expression.

    Returns:
        Exact SymPy number, or expression in `sparsity`.

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
    r"""Collect the second, fourth and mixed fourth moments of a noise law, exactly.

    Source: see `noise_moment` (book: eq-noise-moments).

    Args:
        law: `normal`, `uniform`, `rademacher` or `released`; see `noise_moment`.
        sparsity: probability that a coordinate is zeroed, in [0, 1], or a SymPy expression.

    Returns:
        NoiseMoments, of SymPy numbers.

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
