r"""The SymPy derivations, against quadrature, hand-written terms, SymPy's own `diff`, and exact finite sums.

The expected loss at a complex scale is a finite sum: all pairs, Gauss-Jacobi nodes in lambda and a rule for the noise
that is exact to the degree needed. Its Taylor coefficients come from a contour (or `mpmath.taylor`), so nothing here
differentiates a network and nothing is sampled.
"""

import ast
import itertools
import math
from dataclasses import replace
from pathlib import Path

import mpmath
import numpy as np
import pytest
import sympy as sp
import torch
from scipy import integrate, special, stats
from tiers import slow, some_slow

import nfm_theory.symbolic as sym
from nfm_theory import Law, NoiseLaw
from nfm_theory.setting.noise import noise_pair
from nfm_theory.symbolic.derivation import NAMES, parse

BETA_LAWS = [(1, 1), (0.5, 0.5), (2, 0.7), (0.3, 4), (8, 8)]
SIZES = [(1, 1), (2, 1), (1, 3), (2, 2), (2, 3)]


# --- the law of lambda -------------------------------------------------------------------------------------------


def test_unmixed_density_is_the_beta_mixture():
    assert sym.prove_beta_mixture() is True


@pytest.mark.parametrize(("alpha", "beta"), BETA_LAWS)
def test_unmixed_density_values(alpha, beta):
    lam = np.linspace(0.05, 0.95, 7)
    (name,) = sym.unmixed_density(alpha, beta).free_symbols
    got = sp.lambdify(name, sym.unmixed_density(alpha, beta), modules=["scipy", "numpy"])(lam)
    p = stats.beta(alpha, beta).pdf
    np.testing.assert_allclose(got, lam * (p(lam) + p(1 - lam)), rtol=1e-12)
    mixture = alpha * stats.beta(alpha + 1, beta).pdf(lam) + beta * stats.beta(beta + 1, alpha).pdf(lam)
    np.testing.assert_allclose(got, mixture / (alpha + beta), rtol=1e-12)


@pytest.mark.parametrize(("alpha", "beta"), BETA_LAWS)
@pytest.mark.parametrize("j", range(6))
def test_unmixed_moments_by_quadrature(j, alpha, beta):
    # the endpoint singularities of the Beta density are the weight of QUADPACK's algebraic rule
    def moment(a, b):
        value, _ = integrate.quad(
            lambda x: (1 - x) ** j, 0, 1, weight="alg", wvar=(a - 1, b - 1), epsabs=1e-13, epsrel=1e-13
        )
        return value / special.beta(a, b)

    truth = (alpha * moment(alpha + 1, beta) + beta * moment(beta + 1, alpha)) / (alpha + beta)
    assert math.isclose(float(sym.unmixed_moment(j, alpha, beta)), truth, rel_tol=1e-10)


def test_unmixed_moments_in_closed_form():
    a, b = sp.symbols("alpha beta", positive=True)
    assert [sym.unmixed_moment(j, 1, 1) for j in range(5)] == [1, *(sp.Rational(1, n) for n in (3, 6, 10, 15))]
    for j in range(6):
        stated = (a * sp.rf(b, j) + b * sp.rf(a, j)) / ((a + b) * sp.rf(a + b + 1, j))
        assert sp.cancel(sp.expand_func(sym.unmixed_moment(j, a, b) - stated)) == 0
    assert sp.cancel(sym.unmixed_moment(1, a, b) - 2 * sym.unmixed_moment(2, a, b)) == 0
    swapped = sym.unmixed_moment(3, b, a)
    assert sp.cancel(sym.unmixed_moment(3, a, b) - swapped) == 0


def test_unmixed_law_refuses():
    for bad in (0, -1, float("nan"), float("inf"), None):
        with pytest.raises(ValueError, match="alpha: expected a positive"):
            sym.unmixed_density(bad, 1)
    with pytest.raises(ValueError, match="beta"):
        sym.unmixed_moment(1, 1, -2)
    for j in (-1, 1.0):
        with pytest.raises(ValueError, match="j: expected an integer"):
            sym.unmixed_moment(j, 1, 1)


@pytest.mark.parametrize("points", [1, 2, 3])
def test_label_unmixing_lemma(points):
    assert sym.prove_label_unmixing(points) is True


@pytest.mark.parametrize(
    "reweight",
    [
        lambda p, lam: p(lam),
        lambda p, lam: 2 * lam * p(lam),  # true for symmetric laws only
        lambda p, lam: lam * (p(lam) + p(1 - lam)) * sp.Rational(101, 100),
        lambda p, lam: (1 - lam) * (p(lam) + p(1 - lam)),
    ],
    ids=["not reweighted", "symmetric only", "1 % off", "other label"],
)
def test_label_unmixing_refuses_wrong_weights(reweight):
    assert sym.prove_label_unmixing(2, reweight=reweight) is False


def test_label_unmixing_refuses_no_points():
    with pytest.raises(ValueError, match="points"):
        sym.prove_label_unmixing(0)


# --- noise -------------------------------------------------------------------------------------------------------


def noise_table(law, kind):
    """E B^q and E of powers of one coordinate given B, by scipy."""
    base = {
        "normal": stats.norm(),
        "uniform": stats.uniform(-1, 2),
        "rademacher": stats.rv_discrete(values=([-1, 1], [0.5, 0.5])),
        "released": stats.norm() if kind == "add" else stats.uniform(-1, 2),
    }[law]
    # scipy integrates moments above the fourth to 1e-10 only
    return base.moment, lambda q: special.beta(2 + q, 5) / special.beta(2, 5) if law == "released" else 1.0


@pytest.mark.parametrize("sparsity", [0, sp.Rational(13, 20)])
@pytest.mark.parametrize("law", sym.LAWS)
def test_noise_moments_against_scipy(law, sparsity):
    record = sym.noise_moments(law, sparsity=sparsity)
    keep = 1 - float(sparsity)
    for kind in ("add", "mult"):
        base, scale = noise_table(law, kind)
        truth = (keep * base(2) * scale(2), keep * base(4) * scale(4), (keep * base(2)) ** 2 * scale(4))
        for name, value in zip(("M2", "M4", "M22"), truth, strict=True):
            exact = getattr(record, f"{name}_{kind}")
            assert exact.is_Rational
            assert math.isclose(float(exact), value, rel_tol=1e-12)
        six = sym.noise_moment(law, (4, 2), kind=kind, sparsity=sparsity)
        assert math.isclose(float(six), keep**2 * base(4) * base(2) * scale(6), rel_tol=1e-12)
        for odd in ((1,), (3,), (1, 1), (2, 1), (3, 1)):
            assert sym.noise_moment(law, odd, kind=kind) == 0


def test_released_noise_is_what_the_theory_states():
    s = sp.Symbol("s")
    record = sym.noise_moments("released", sparsity=s)
    assert sp.expand(record.M2_add - sp.Rational(3, 28) * (1 - s)) == 0
    assert sp.expand(record.M2_mult - sp.Rational(1, 28) * (1 - s)) == 0
    dense = sym.noise_moments("released")
    assert dense.M22_add == sp.Rational(1, 42) != dense.M2_add**2  # uncorrelated, not independent


def test_noise_refuses():
    with pytest.raises(ValueError, match="law: expected one of normal"):
        sym.noise_moments("cauchy")
    with pytest.raises(ValueError, match="kind"):
        sym.noise_moment("normal", (2,), kind="both")
    with pytest.raises(ValueError, match="exponents"):
        sym.noise_moment("normal", (0,))
    with pytest.raises(ValueError, match="sparsity"):
        sym.noise_moments("normal", sparsity=2)


# --- the expansion -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dim", "outputs"), [*SIZES[:4], *slow([(2, 3), (3, 2)])])
def test_derived_terms_are_the_table(dim, outputs):
    proof = sym.prove_expansion(dim=dim, outputs=outputs)
    assert set(proof) == set(NAMES)
    assert all(proof.values())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("dim", "outputs"), [(1, 1), (2, 2)])
def test_a_table_term_one_percent_off_is_found(name, dim, outputs):
    wrong = sym.table_terms(dim, outputs)
    wrong[name] = wrong[name] * sp.Rational(101, 100)
    with pytest.raises(ArithmeticError, match=rf"differ in {name}\.$"):
        sym.prove_expansion(dim=dim, outputs=outputs, table=wrong)


def test_other_mistakes_in_the_table_are_found():
    swapped = sym.table_terms(2, 2)
    swapped["R2"], swapped["R3"] = swapped["R3"], swapped["R2"]
    with pytest.raises(ArithmeticError, match=r"R2, R3\.$"):
        sym.prove_expansion(dim=2, outputs=2, table=swapped)
    without_cross = sym.table_terms()
    without_cross["C3"] -= without_cross["C3_cross"]
    with pytest.raises(ArithmeticError, match=r"differ in C3\.$"):
        sym.prove_expansion(table=without_cross)
    diagonal = sym.table_terms(2, 1)  # one mixed second derivative forgotten
    diagonal["R3"] = diagonal["R3"].subs(sym.symbol("f", 1, 1, 2), 0)
    with pytest.raises(ArithmeticError, match=r"differ in R3\.$"):
        sym.prove_expansion(dim=2, table=diagonal)
    with pytest.raises(KeyError):
        sym.prove_expansion(table={})


@pytest.mark.parametrize("order", range(6))
def test_coefficients_are_sums_of_named_terms(order):
    expansion = sym.derive_expansion(order, 1, 1)
    assert len(expansion.coefficients) == order + 1
    groups = [["standard"], ["R1"], [n for n in NAMES if n[:2] in ("R2", "R3")], ["C3"], ["C4"], ["C5"]]
    for c, group in zip(expansion.coefficients, groups, strict=False):
        assert sp.expand(c - sum(expansion[name] for name in group)) == 0
    if order >= 3:
        assert sp.expand(expansion["C3"] - sum(expansion[n] for n in NAMES if n.startswith("C3_"))) == 0


def test_lower_orders_are_contained_in_higher_ones():
    low, high = sym.derive_expansion(2, 1, 2), sym.derive_expansion(4, 1, 2)
    assert all(high[name] == term for name, term in low.terms.items())
    with pytest.raises(TypeError):
        high.terms["R2"] = 0  # shared through the cache, hence read-only


def test_agrees_with_sympy_diff_of_undefined_functions():
    """SymPy's own derivative of Function('h')(Function('f')(g + e)), without the generic classes of the module."""
    eps, g, v, y, t, xa, xm, sa, sm = sp.symbols("eps g_1 v_1 y_1 t xa xm sigma_add sigma_mult")
    x = sp.Symbol("x")
    f, h = sp.Function("f"), sp.Function("h")
    e = eps * (t * v + sm * xm * g + sa * xa) + eps**2 * t * sm * xm * v
    loss = h(f(g + e)) - y * f(g + e)
    jets = {f(g).diff(g, n): sym.symbol("f", 1, *[1] * n) for n in range(5)}
    jets |= {h(x).diff(x, n).subs(x, f(g)): sym.symbol("h", *[1] * n) for n in range(5)}
    for n, coefficient in enumerate(sym.derive_expansion(4).coefficients):
        derived = loss.diff(eps, n).subs(eps, 0).doit() / sp.factorial(n)
        for old in sorted(jets, key=sp.count_ops, reverse=True):
            derived = derived.xreplace({old: jets[old]})
        assert not derived.has(sp.Derivative, sp.Subs, f, h)
        expected = 0
        for (j, q, r), part in sp.Poly(sp.expand(derived), t, xa, xm).terms():
            if q % 2 == r % 2 == 0:
                factors = [(j, "m"), (q, "add"), (r, "mult")]
                expected += part * sp.Mul(*(sym.symbol(kind, k) for k, kind in factors if k))
        assert sp.expand(expected - coefficient) == 0


@pytest.mark.parametrize("bad", [{"order": -1}, {"dim": 0}, {"outputs": 0}, {"dim": 1.5}])
def test_expansion_refuses_sizes(bad):
    (name,) = bad
    with pytest.raises(ValueError, match=f"{name}: expected an integer"):
        sym.derive_expansion(**bad)


def test_symbols_and_their_names():
    assert sym.symbol("f", 2, 3, 1) == sym.symbol("f", 2, 1, 3) == sp.Symbol("f_2_1_3")
    assert sym.symbol("h", 2, 1) == sp.Symbol("h_1_2")
    for args in (("h",), ("h", 1, 10), ("f", 12, 1, 11), ("m", 3), ("add", 2, 2), ("sigma", "mult")):
        assert parse(sym.symbol(*args)) == (args[0], args[1:])


# --- concrete heads: finite sums ---------------------------------------------------------------------------------

W = ((0.7, -0.4), (0.3, 0.9), (-0.8, 0.5))


def scalar_head(lib):
    return lambda g: [lib.tanh(g) * 0.9 + 0.3 * g**2 - 0.2]


def plane_head(lib, outputs):
    def head(a, b):
        hidden = [lib.tanh(w[0] * a + w[1] * b + 0.1) for w in W]
        z = [hidden[0] + 0.5 * hidden[1] * hidden[2], hidden[1] - 0.3 * a * b, hidden[2] + 0.2 * b**2]
        return z[:outputs]

    return head


def softplus(lib):
    return lambda u: lib.log(1 + lib.exp(u))


def logsumexp(lib):
    return lambda *u: lib.log(sum(lib.exp(x) for x in u))


def square(lib):
    return lambda *u: sum(x**2 for x in u) / 2


PROBLEMS = {
    "d=1 K=1 softplus": (scalar_head, softplus, [0.5, -0.8, 1.3], [1.0, 0.0, 0.0]),
    "d=2 K=1 softplus": (
        lambda lib: plane_head(lib, 1),
        softplus,
        [[0.5, -0.8], [1.3, 0.2], [-0.4, 0.6]],
        [1.0, 0.0, 1.0],
    ),
    "d=2 K=2 square": (
        lambda lib: plane_head(lib, 2),
        square,
        [[0.5, -0.8], [1.3, 0.2]],
        [[0.2, -1.0], [0.4, 0.3]],
    ),
    "d=2 K=2 logsumexp": (
        lambda lib: plane_head(lib, 2),
        logsumexp,
        [[0.5, -0.8], [1.3, 0.2]],
        [[1.0, 0.0], [0.3, 0.7]],
    ),
    "d=2 K=3 logsumexp": (
        lambda lib: plane_head(lib, 3),
        logsumexp,
        [[0.5, -0.8], [1.3, 0.2]],
        [[1.0, 0.0, 0.0], [0.1, 0.2, 0.7]],
    ),
}


def jacobi(a, b, num):
    nodes, weights = special.roots_jacobi(num, b - 1, a - 1)
    return (nodes + 1) / 2, weights / weights.sum()


def mixing_rule(alpha, beta, num=5):
    """Nodes of the unmixed law, exact for polynomials of degree 9."""
    parts = [(alpha / (alpha + beta), alpha + 1, beta), (beta / (alpha + beta), beta + 1, alpha)]
    rules = [(w, *jacobi(a, b, num)) for w, a, b in parts]
    return np.concatenate([r[1] for r in rules]), np.concatenate([r[0] * r[2] for r in rules])


def noise_rule(law, kind, dim, sparsity=0.0):
    """All points (rows) and weights of a rule exact to degree 5 per coordinate."""
    base = {"released": "normal" if kind == "add" else "uniform"}.get(law, law)
    if base == "rademacher":
        z, w = np.array([-1.0, 1.0]), np.array([0.5, 0.5])
    else:
        z, w = special.roots_hermitenorm(3) if base == "normal" else special.roots_legendre(3)
        w = w / w.sum()
    if sparsity:
        z, w = np.append(z, 0.0), np.append(w * (1 - sparsity), sparsity)
    grid = np.array(list(itertools.product(z, repeat=dim)))
    weight = np.array([math.prod(c) for c in itertools.product(w, repeat=dim)])
    if law == "released":
        b, wb = jacobi(2, 5, 3)
        grid = (b[:, None, None] * grid).reshape(-1, dim)
        weight = (wb[:, None] * weight).reshape(-1)
    return grid, weight


def contour_coefficients(problem, *, alpha, beta, add_noise, mult_noise, noise, sparsity=0.0, order=4):
    """Taylor coefficients of the expected loss, by Cauchy's formula on |eps| = 1/4."""
    head, h, features, labels = PROBLEMS[problem]
    g = np.asarray(features, dtype=float).reshape(len(features), -1)
    y = np.asarray(labels, dtype=float).reshape(len(labels), -1)
    dim, num, radius = g.shape[1], 48, 0.25
    eps = radius * np.exp(2j * np.pi * np.arange(num) / num)
    lam, w_lam = mixing_rule(alpha, beta)
    add, w_add = noise_rule(noise, "add", dim, sparsity) if add_noise else (np.zeros((1, dim)), np.ones(1))
    mult, w_mult = noise_rule(noise, "mult", dim, sparsity) if mult_noise else (np.zeros((1, dim)), np.ones(1))
    weight = w_lam[:, None, None] * w_add[:, None] * w_mult
    total = np.zeros(num, dtype=complex)
    for k, e in enumerate(eps):
        for (gi, yi), gr in itertools.product(zip(g, y, strict=True), g):
            z = [
                (1 + e * mult_noise * mult[:, j]) * (gi[j] + e * (1 - lam[:, None, None]) * (gr[j] - gi[j]))
                + e * add_noise * add[:, j][:, None]
                for j in range(dim)
            ]
            u = head(np)(*z)
            total[k] += (weight * (h(np)(*u) - sum(a * b for a, b in zip(yi, u, strict=True)))).sum()
    total /= len(g) ** 2
    return [(total * eps ** (-n)).mean().real for n in range(order + 1)]


def coefficients(values):
    second = sum(values[n] for n in NAMES if n[:2] in ("R2", "R3"))
    return [values["standard"], values["R1"], second, values["C3"], values["C4"]]


CASES = [
    ("d=1 K=1 softplus", "rademacher", 1, 1, 0.6, 0.5, 0.0),
    ("d=1 K=1 softplus", "normal", 0.5, 2, 0.6, 0.5, 0.0),
    ("d=1 K=1 softplus", "uniform", 2, 2, 0.6, 0.5, 0.4),
    ("d=1 K=1 softplus", "released", 1, 1, 1.2, 1.5, 0.65),
    ("d=2 K=1 softplus", "rademacher", 1, 1, 0.4, 0.5, 0.0),
    ("d=2 K=1 softplus", "released", 1, 3, 1.2, 0.0, 0.0),
    ("d=2 K=2 square", "normal", 1, 1, 0.4, 0.0, 0.0),
    ("d=2 K=2 square", "rademacher", 0.7, 0.7, 0.4, 0.5, 0.0),
    ("d=2 K=3 logsumexp", "rademacher", 1, 1, 0.4, 0.5, 0.0),
    ("d=2 K=2 logsumexp", "uniform", 2, 0.6, 0.5, 0.6, 0.0),
    ("d=2 K=3 logsumexp", "released", 1, 1, 0.0, 1.5, 0.3),
]


def evaluated(problem, **options):
    head, h, features, labels = PROBLEMS[problem]
    order = options.pop("order", 3)
    noise, sparsity = options.pop("noise", "normal"), options.pop("sparsity", 0.0)
    if sparsity:
        laws = noise_pair(noise)
        noise = tuple(replace(one, sparsity=sparsity) for one in laws)
    return sym.evaluate_terms(head(sp), h(sp), features, labels, Law(noise=noise, **options), order=order)


@pytest.mark.parametrize(
    ("problem", "noise", "alpha", "beta", "add_noise", "mult_noise", "sparsity"),
    some_slow(CASES, lambda case: case in CASES[1:10:2]),
)
def test_terms_are_the_taylor_coefficients_of_the_exact_loss(
    problem, noise, alpha, beta, add_noise, mult_noise, sparsity
):
    options = {"alpha": alpha, "beta": beta, "add_noise": add_noise, "mult_noise": mult_noise}
    options |= {"noise": noise, "sparsity": sparsity, "order": 4}
    got = coefficients(evaluated(problem, **options))
    np.testing.assert_allclose(got, contour_coefficients(problem, **options), rtol=1e-10, atol=1e-11)


def test_terms_against_mpmath_taylor():
    """A second way to the coefficients: 30-digit finite differences of a finite sum of a scalar problem."""
    features, labels, sa, sm = [0.5, -0.8, 1.3], [1.0, 0.0, 0.0], 0.6, 0.5
    lam, weight = mixing_rule(0.5, 2)

    def expected_loss(eps):
        total = 0
        for gi, yi in zip(features, labels, strict=True):
            for gr, (one, w), a, m in itertools.product(features, zip(lam, weight, strict=True), (-1, 1), (-1, 1)):
                one, w = mpmath.mpf(float(one)), mpmath.mpf(float(w))
                z = (1 + eps * sm * m) * (gi + eps * (1 - one) * (gr - gi)) + eps * sa * a
                u = scalar_head(mpmath)(z)[0]
                total += w / 4 * (softplus(mpmath)(u) - yi * u)
        return total / 9

    with mpmath.workdps(30):
        truth = [float(c) for c in mpmath.taylor(expected_loss, 0, 4)]
    values = evaluated("d=1 K=1 softplus", alpha=0.5, beta=2, add_noise=sa, mult_noise=sm, noise="rademacher", order=4)
    np.testing.assert_allclose(coefficients(values), truth, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("outputs", [2, *slow([3])])
@pytest.mark.parametrize("name", ["R2", "R3", "R2_add", "R3_add", "R2_mult", "R3_mult"])
def test_each_second_order_term_against_the_exact_loss(name, outputs):
    """Switch laws and head so that one named term is alone in the coefficient of eps^2."""
    base, _, part = name.partition("_")
    keep = {"add_noise": 0.6 * (part == "add"), "mult_noise": 0.5 * (part == "mult")}
    options = {"noise": "rademacher", "alpha": 1, "beta": 1, **keep}
    problem = f"d=2 K={outputs} logsumexp"
    values = evaluated(problem, **options)
    only_data = evaluated(problem, **(options | {"add_noise": 0.0, "mult_noise": 0.0}))
    # the residual part is what changes when h is replaced by its tangent: compare with the loss linear in u
    head, h, features, labels = PROBLEMS[problem]
    total = 0.0
    for g, y in zip(features, labels, strict=True):
        symbols = sp.symbols("a b")
        logits = head(sp)(*symbols)
        at = dict(zip(symbols, g, strict=True))
        u = sp.symbols(f"u_1:{outputs + 1}")
        at_u = {x: out.subs(at) for x, out in zip(u, logits, strict=True)}
        slope = [float(sp.diff(h(sp)(*u), x).subs(at_u)) - t for x, t in zip(u, y, strict=True)]
        hess = np.array(sp.hessian(sum(c * o for c, o in zip(slope, logits, strict=True)), symbols).subs(at))
        if base == "R2":
            jac = np.array(sp.Matrix(logits).jacobian(symbols).subs(at), dtype=float)
            hess = jac.T @ np.array(sp.hessian(h(sp)(*u), u).subs(at_u), dtype=float) @ jac
        hess, g = hess.astype(float), np.array(g)
        v = np.array(features) - g
        second = {"": v.T @ v / len(v) / 6, "add": 0.36 * np.eye(2), "mult": 0.25 * np.diag(g**2)}[part]
        total += np.trace(hess @ second) / 2 / len(features)
    assert math.isclose(values[name], total, rel_tol=1e-10)
    assert (only_data[name] == 0) == bool(part)


def test_terms_that_must_vanish():
    linear = sym.evaluate_terms(
        lambda a, b: 2 * a - b,
        lambda u: sp.log(1 + sp.exp(u)),
        [[1, 2], [0, 1]],
        [0, 1],
        Law(add_noise=1, mult_noise=1),
    )
    assert all(linear[name] == 0 for name in ("R3", "R3_add", "R3_mult"))
    assert all(linear[name] > 0 for name in ("R2", "R2_add", "R2_mult"))
    flat = sym.evaluate_terms(lambda a: a**3, lambda u: u, [1.0, 2.0], [0, 0], Law(add_noise=1, mult_noise=1))
    assert all(flat[name] == 0 for name in ("R2", "R2_add", "R2_mult"))
    single = sym.evaluate_terms(lambda a: a**3, lambda u: u**2, [1.5], [0.2], Law())
    assert all(value == 0 for name, value in single.items() if name != "standard")


def test_quadratic_loss_by_hand():
    """h = u^2/2, f = w g: R1 = m1 (w g - y) w (mean - g), R2 = m2 w^2 v^2 / 2, noise w^2 sigma^2 M2 / 2."""
    w, g, y = 3.0, np.array([0.0, 1.0, 5.0]), np.array([1.0, 0.0, 2.0])
    values = sym.evaluate_terms(
        lambda x: 3 * x, lambda u: u**2 / 2, g, y, Law.released(alpha=2.0, add_noise=0.5, mult_noise=0.2)
    )
    m1 = 2 * 2 * 2 / (4 * 5)
    truth = {
        "standard": np.mean((w * g) ** 2 / 2 - y * w * g),
        "R1": m1 * np.mean((w * g - y) * w * (g.mean() - g)),
        "R2": m1 / 4 * w**2 * np.mean((g[:, None] - g) ** 2),
        "R2_add": w**2 / 2 * 0.25 * 3 / 28,
        "R2_mult": w**2 / 2 * 0.04 / 28 * np.mean(g**2),
        "C3": m1 * 0.04 / 28 * w**2 * np.mean(g * (g.mean() - g)),
    }
    for name, value in truth.items():
        assert math.isclose(values[name], value, rel_tol=1e-12), name
    assert values["C3"] == values["C3_cross"]


def test_evaluate_terms_reads_arrays_tensors_and_reduces():
    head, h = lambda a, b: sp.Matrix([a * b, sp.sin(a)]), lambda u, v: u**2 + sp.exp(v)
    features, labels = [[1.0, 2.0], [0.5, -1.0], [0.0, 0.3]], [[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]
    plain = sym.evaluate_terms(head, h, features, labels, Law(add_noise=0.3))
    for convert in (np.array, lambda x: torch.tensor(x, dtype=torch.float64), tuple):
        assert sym.evaluate_terms(head, h, convert(features), convert(labels), Law(add_noise=0.3)) == plain
    each = sym.evaluate_terms(head, h, features, labels, Law(add_noise=0.3), reduction="none")
    for name, column in each.items():
        assert len(column) == 3
        assert math.isclose(math.fsum(column) / 3, plain[name], rel_tol=1e-14, abs_tol=1e-16)


def test_evaluate_terms_refuses():
    head, h = lambda a, b: a * b, lambda u: u**2
    with pytest.raises(ValueError, match="reduction"):
        sym.evaluate_terms(head, h, [[1, 2]], [0], Law(), reduction="sum")
    with pytest.raises(ValueError, match="features: expected n >= 1 rows of 2"):
        sym.evaluate_terms(head, h, [[1, 2], [1]], [0, 0], Law())
    for empty in ([], [[]]):
        with pytest.raises(ValueError, match="features"):
            sym.evaluate_terms(head, h, empty, [], Law())
    with pytest.raises(ValueError, match="labels: expected n >= 1 rows of 1"):
        sym.evaluate_terms(head, h, [[1, 2]], [[0, 1]], Law())
    with pytest.raises(ValueError, match="labels: expected 1 rows"):
        sym.evaluate_terms(head, h, [[1, 2]], [0, 1], Law())
    odd = (NoiseLaw("normal"), NoiseLaw("uniform"))
    for law in (Law(lam=0.5), Law(noise=odd)):
        with pytest.raises(ValueError, match="law: expected a Beta law"):
            sym.evaluate_terms(head, h, [[1, 2]], [0], law)


# --- LaTeX, and manners ------------------------------------------------------------------------------------------


def test_latex_of_the_scalar_terms():
    text = sym.latex_terms()
    assert list(text) == list(NAMES)
    third = r"\left( h''' (f')^{3} + 3 h'' f' f'' + (h' - y) f''' \right)"
    assert text["standard"] == "h - y f"
    assert text["R1"] == "m_{1} (h' - y) f' v"
    assert text["R2"] == r"\tfrac{1}{2} m_{2} h'' (f')^{2} v^{2}"
    assert text["R3"] == r"\tfrac{1}{2} m_{2} (h' - y) f'' v^{2}"
    assert text["C3_data"] == rf"\tfrac{{1}}{{6}} m_{{3}} v^{{3}} {third}"
    released = sym.latex_terms(noise="released", alpha=1)
    assert released["R2"] == r"\tfrac{1}{12} h'' (f')^{2} v^{2}"
    assert released["R2_add"] == r"\tfrac{3}{56} \sigma_{\mathrm{add}}^{2} h'' (f')^{2}"
    assert released["R3_mult"] == r"\tfrac{1}{56} \sigma_{\mathrm{mult}}^{2} (h' - y) f'' g^{2}"
    assert sym.latex_terms(noise="normal", sparsity=1)["R2_add"] == "0"


@pytest.mark.parametrize(("order", "dim", "outputs"), [(2, 1, 1), (4, 1, 1), (3, 2, 2), (2, 10, 1)])
def test_latex_is_well_formed(order, dim, outputs):
    terms = sym.latex_terms(order, dim, outputs)
    whole = sym.latex_expansion(order, dim, outputs)
    for text in [*terms.values(), whole]:
        assert text.count("{") == text.count("}")
        assert text.count(r"\left") == text.count(r"\right")
        assert not any(word in text for word in ("Derivative", "Subs", "rho", "_1_1", "+ -", "  ", "''''"))
    assert whole.startswith("\\begin{aligned}\n")
    assert whole.count(r"\underbrace") == len(terms) - ("C3" in terms)
    assert rf"O(\varepsilon^{{{order + 1}}})" in whole
    if dim == 10:
        assert r"\partial_{1,10} f_{1}" in terms["R3"]


def read_latex(text):
    """Read the scalar LaTeX back into SymPy, independently of how it was written."""
    for kind in ("add", "mult"):
        for q in (2, 4):
            text = text.replace(rf"\mathbb{{E}}[\xi_{{\mathrm{{{kind}}}}}^{{{q}}}]", f"{kind}_{q}")
        text = text.replace(rf"\sigma_{{\mathrm{{{kind}}}}}", f"sigma_{kind}")
    text = text.replace(r"\left(", "(").replace(r"\right)", ")").replace("^{(4)}", "''''")
    for n in range(4, 0, -1):
        for fn in "hf":
            text = text.replace(fn + "'" * n, "_".join([fn.upper(), *"1" * n]))
    text = text.replace("H_", "h_").replace("F_", "f_1_")
    text = text.replace(r"\tfrac{1}{", "1/{").replace("^{", "**{").replace("m_{", "m_")
    words = text.replace("{", "").replace("}", "").replace("- ", "-").replace("+ ", "+").split()
    text = "".join(w if w[0] in "+-)" or prev in "(" else "*" + w for prev, w in itertools.pairwise(["(", *words]))
    names = {str(s): s for e in sym.derive_expansion(4).coefficients for s in e.free_symbols}
    rename = {"f": names["f_1"], "y": names["y_1"], "g": names["g_1"], "v": names["v_1"], "h": names["h"]}
    return sp.sympify(text, locals=names | rename)


def test_latex_reads_back_as_the_terms():
    for name, text in sym.latex_terms(4).items():
        assert sp.expand(read_latex(text) - sym.derive_expansion(4)[name]) == 0, name


def test_modules_import_sympy_only_and_stay_short():
    allowed = {"sympy", "collections", "dataclasses", "functools", "itertools", "math", "types", "typing"}
    folder = Path(sym.__file__).parent
    for path in sorted(folder.glob("*.py")):
        source = path.read_text(encoding="utf-8")
        assert len(source.splitlines()) <= 400, path.name
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= allowed, path.name
            elif isinstance(node, ast.ImportFrom):
                inside = node.level == 1 and (node.module or "").split(".")[0] in {
                    path.stem for path in folder.glob("*.py")
                } | {""}
                assert inside or node.module.split(".")[0] in allowed, path.name
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("print", "open"), path.name
    assert all(getattr(sym, name).__doc__ for name in sym.__all__ if name != "LAWS")
