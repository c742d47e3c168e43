"""The stability expansion in SymPy: proofs, and that what is false is not proved."""

import math
import re

import mpmath
import pytest
import sympy as sp
import torch
from problems import randn
from tiers import slow
from torch.testing import assert_close

import nfm_theory.symbolic.divergence_proofs as sym
from nfm_theory import Branches, Law, terms
from nfm_theory.symbolic.derivation import derive_expansion, parse, symbol

FEATURES = [[0.3, -1.0, 0.7], [0.5, -0.8, 1.2]]
NAMES = {"S0": "S0", "S1": "S1", "C3": "C3"} | {
    f"S2_{source}_{kind}": f"{r}{suffix}"
    for source, suffix in (("data", ""), ("add", "_add"), ("mult", "_mult"))
    for kind, r in (("curvature", "R2"), ("residual", "R3"))
}


@pytest.mark.parametrize("sizes", [(1, 2, 2), (2, 1, 1), (2, 2, 2), (2, 1, 3), (3, 2, 1)])
def test_the_chain_rule_of_branches(sizes):
    assert sym.prove_chain_rule(*sizes) is True


def test_a_wrong_chain_rule_is_not_proved(monkeypatch):
    symmetric = sym.symbol
    # forget that the blocks across branches are symmetric: ∂²Φ/∂u_1∂u_2 counted once instead of twice
    monkeypatch.setattr(sym, "symbol", lambda kind, *i: sp.S.Zero if (kind, *i) == ("h", 2, 1) else symmetric(kind, *i))
    assert sym.prove_chain_rule(2, 1, 1) is False


@pytest.mark.parametrize("sizes", [(2, 2), *slow([((3, 2),)])])
def test_gradient_and_hessian_of_the_divergence(sizes):
    assert sym.prove_divergence(*sizes) is True


def test_a_wrong_hessian_is_not_proved(monkeypatch):
    monkeypatch.setattr(sym, "_fisher", lambda p: sp.diag(*p))
    assert sym.prove_divergence() is False
    assert sym.prove_equal_branches() is False


@pytest.mark.parametrize("sizes", [(2, 2), *slow([((3, 2),)])])
def test_equal_branches_have_fisher_blocks(sizes):
    assert sym.prove_equal_branches(*sizes) is True


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("branches", [1, 2, 3])
def test_the_table_of_the_scalar_example(branches, shared):
    assert sym.prove_stability(branches, shared) is True


def test_a_wrong_term_of_the_table_is_not_proved(monkeypatch):
    derived = dict(sym.derive_stability(2))
    derived["S2_add_curvature"] *= sp.Rational(101, 100)
    monkeypatch.setattr(sym, "derive_stability", lambda *args: derived)
    assert sym.prove_stability(2) is False


def test_the_noise_crosses_branches_only_if_shared():
    own, shared = sym.derive_stability(2), sym.derive_stability(2, shared_noise=True)
    cross = symbol("h", 1, 2)
    assert not own["S2_add_curvature"].has(cross)
    assert shared["S2_add_curvature"].has(cross)
    assert own["S2_data_curvature"].has(cross)
    assert sp.expand(own["S2_data_curvature"] - shared["S2_data_curvature"]) == 0


def test_one_branch_is_the_expansion_of_the_nfm_loss():
    """With m = 1 every part is that of `derive_expansion` at y = 0, where the loss is h alone."""
    ours, theirs = sym.derive_stability(1), derive_expansion(3, 1, 1)
    rename = {s: sp.Symbol(str(s).removesuffix("__1")) for expr in ours.values() for s in sp.sympify(expr).free_symbols}
    table = NAMES | {"S0": "standard", "S1": "R1"}
    for name, value in ours.items():
        expected = theirs[table[name]].subs(symbol("y", 1), 0)
        assert sp.expand(value.xreplace(rename) - expected) == 0, name


def head(z):
    return 2 * sp.tanh(z) + z / 3


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"weights": [0.3, 0.7], "add_noise": 0.3, "mult_noise": 0.4, "alpha": 0.7, "beta": 1.2, "noise": "uniform"},
        {"weights": [0.5, 0.5], "add_noise": 0.5, "mult_noise": 0.2, "noise": "released"},
    ],
    ids=["uniform", "released"],
)
def test_the_library_computes_what_sympy_derives(options, shared):
    xs = torch.tensor(FEATURES, dtype=torch.float64).unsqueeze(-1)
    weights, law = options["weights"], Law(**{name: value for name, value in options.items() if name != "weights"})
    exact = sym.evaluate_stability(head, FEATURES, law, weights=weights, shared_noise=shared)
    branches = Branches(lambda u: 2 * u.tanh() + u / 3, xs, weights=weights, law=law, shared_noise=shared)
    found = terms(branches)
    for name, value in exact.items():
        assert_close(getattr(found, NAMES[name]).item(), value, rtol=1e-11, atol=1e-15)


def test_the_loss_itself_has_these_coefficients():
    """E Φ at scale ε as a finite sum (Gauss nodes for λ, two signs for each noise), differentiated by mpmath."""
    weights, levels = (0.3, 0.7), (0.5, 0.4)
    exact = sym.evaluate_stability(
        head, [row[:2] for row in FEATURES], Law(1.0, None, *levels, noise="rademacher"), weights=weights
    )
    # Under Beta(1, 1) the unmixed law has density 2 λ: its two Gauss nodes, exact to degree 3 in λ
    nodes = [(6 - mpmath.sqrt(6)) / 10, (6 + mpmath.sqrt(6)) / 10]
    share = [mpmath.mpf(1) / 2 - mpmath.sqrt(6) / 18, mpmath.mpf(1) / 2 + mpmath.sqrt(6) / 18]

    def phi(logits):
        p = [(1 / (1 + mpmath.exp(x)), 1 / (1 + mpmath.exp(-x))) for x in logits]
        total = 0
        for c in range(2):
            mixture = sum(w * q[c] for w, q in zip(weights, p, strict=True))
            total += sum(w * q[c] * mpmath.log(q[c] / mixture) for w, q in zip(weights, p, strict=True))
        return total

    def loss(eps):
        total = 0
        rows = list(zip(*[row[:2] for row in FEATURES], strict=True))
        signs = [(a, b, c, d) for a in (-1, 1) for b in (-1, 1) for c in (-1, 1) for d in (-1, 1)]
        for own in rows:
            for partner in rows:
                for lam, weight in zip(nodes, share, strict=True):
                    for a, b, c, d in signs:
                        logits = []
                        for g, other, add, mult in zip(own, partner, (a, b), (c, d), strict=True):
                            mixed = g + eps * (1 - lam) * (other - g)
                            z = (1 + eps * levels[1] * mult) * mixed + eps * levels[0] * add
                            logits.append(2 * mpmath.tanh(z) + z / 3)
                        total += weight * phi(logits)
        return total / len(rows) ** 2 / 16

    with mpmath.workdps(40):
        found = [float(c) for c in mpmath.taylor(loss, 0, 3)]
    second = math.fsum(value for name, value in exact.items() if name.startswith("S2"))
    for got, value in zip(found, (exact["S0"], exact["S1"], second, exact["C3"]), strict=True):
        assert math.isclose(got, value, rel_tol=1e-9)


@pytest.mark.parametrize("weights", [(0.3, 0.7), *slow([((0.5, 0.2, 0.3),)])])
def test_a_random_scalar_network(weights):
    a, b, c = randn(3, 3, 2).tolist()
    features = randn(4, len(weights), 2)

    def net(z):
        return sum(w * sp.tanh(u * z + v) for u, v, w in zip(a, b, c, strict=True))

    def layer(z):
        return sum(w * torch.tanh(u * z + v) for u, v, w in zip(a, b, c, strict=True))

    levels = {"add_noise": 0.3, "mult_noise": 0.4}
    exact = sym.evaluate_stability(net, features.tolist(), Law(**levels), weights=weights)
    found = terms(Branches(layer, features.unsqueeze(-1), weights=weights, law=Law(**levels)))
    for name, value in exact.items():
        assert_close(getattr(found, NAMES[name]).item(), value, rtol=1e-10, atol=1e-15)


def test_symbols_name_their_branch():
    found = {str(s) for expr in sym.derive_stability(2).values() for s in sp.sympify(expr).free_symbols}
    assert {"f_1_1__1", "f_1_1__2", "h_1_2", "v_1__2", "m_3", "sigma_add", "add_2"} <= found
    assert all(parse(re.sub(r"__\d$", "", name)) for name in found)


BAD = [
    (lambda: sym.prove_chain_rule(0), "branches: expected an integer >= 1"),
    (lambda: sym.prove_chain_rule(2, 0), "dim: expected"),
    (lambda: sym.prove_divergence(1), "branches: expected an integer >= 2"),
    (lambda: sym.prove_equal_branches(2, 1), "outputs: expected an integer >= 2"),
    (lambda: sym.derive_stability(1.5), "branches: expected an integer"),
    (lambda: sym.evaluate_stability(head, FEATURES, Law(), weights=[1.0]), "expected 1 branches"),
    (lambda: sym.evaluate_stability(head, [[], []], Law(), weights=[0.5, 0.5]), "n >= 1"),
]


@pytest.mark.parametrize(("call", "match"), BAD)
def test_unfit_arguments_are_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()
