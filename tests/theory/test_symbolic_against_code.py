"""The terms derived by SymPy, evaluated on data, against the torch code, term by term."""

import pytest
import sympy as sp
import torch
from building import build_problem
from problems import randn

import nfm_theory as nt
from nfm_theory.setting.noise import released_noise

NAMES = ("standard", "R1", "R2", "R3", "R2_add", "R3_add", "R2_mult", "R3_mult", "C3")
HALF = sp.Rational(1, 2)


def softplus(u):
    return sp.log(1 + sp.exp(u))


def logsumexp(*u):
    return sp.log(sum(map(sp.exp, u)))


# Heads are written twice: for SymPy (a list of outputs, or one) and for torch.
CASES = {
    "scalar-logistic": (
        lambda g: sp.tanh(sp.Rational(7, 5) * g) + g**2 / 5,
        lambda h: torch.tanh(1.4 * h) + h**2 / 5,
        softplus, "logistic", 1, 1,
    ),
    "scalar-square": (
        lambda g: sp.sin(g) + g / 3,
        lambda h: torch.sin(h) + h / 3,
        lambda u: u**2 / 2, "square", 1, 1,
    ),
    "two-features-two-classes": (
        lambda a, b: [sp.tanh(a - b), sp.sin(a * b)],
        lambda h: torch.stack([torch.tanh(h[:, 0] - h[:, 1]), torch.sin(h[:, 0] * h[:, 1])], -1),
        logsumexp, "cross_entropy", 2, 2,
    ),
    "two-features-three-classes": (
        lambda a, b: [sp.tanh(a - b), sp.sin(a * b), a**2 * HALF + b],
        lambda h: torch.stack(
            [torch.tanh(h[:, 0] - h[:, 1]), torch.sin(h[:, 0] * h[:, 1]), h[:, 0] ** 2 / 2 + h[:, 1]], -1
        ),
        logsumexp, "cross_entropy", 2, 3,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("noise", ["normal", "uniform", "released"])
def test_derived_terms_are_the_terms_of_the_code(name, noise):
    symbolic_head, head, potential, loss, dim, outputs = CASES[name]
    x = randn(0, 4, dim)
    if loss == "cross_entropy":
        y = torch.tensor([0, 1, outputs - 1, 0])
        labels = torch.nn.functional.one_hot(y, outputs).tolist()
    else:
        y = torch.tensor([[0.0], [1.0], [1.0], [0.0]], dtype=torch.float64)
        labels = y.tolist()
    laws = {"alpha": 0.7, "beta": 2.0, "add_noise": 0.4, "mult_noise": 0.3, "noise": noise}
    derived = nt.symbolic.evaluate_terms(symbolic_head, potential, x.tolist(), labels, nt.Law(**laws))
    terms = nt.terms(build_problem(head, x, y, loss=loss, **laws)).to_dict()
    for term in NAMES:
        assert terms[term] == pytest.approx(derived[term], rel=1e-10, abs=1e-12), term


def test_moments_of_the_laws_are_the_symbolic_ones():
    for alpha, beta in [(1, 1), (2, 5), (sp.Rational(1, 5), sp.Rational(1, 5))]:
        law = nt.MixingLaw(float(alpha), float(beta))
        for j in (1, 2, 3, 4):
            assert law.moment(j) == pytest.approx(float(nt.symbolic.unmixed_moment(j, alpha, beta)), rel=1e-13)
    for noise in ("normal", "uniform", "rademacher", "released"):
        exact = nt.symbolic.noise_moments(noise, sparsity=0)
        add, mult = released_noise() if noise == "released" else (nt.NoiseLaw(noise),) * 2
        for kind, law in (("add", add), ("mult", mult)):
            found = (law.second, law.fourth, law.mixed_fourth)
            expected = [float(getattr(exact, f"{m}_{kind}")) for m in ("M2", "M4", "M22")]
            assert found == pytest.approx(expected, rel=1e-13)
