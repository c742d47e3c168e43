"""Proofs in SymPy. They take seconds and run whenever a verdict asks for them."""

from __future__ import annotations

import nfm_theory as nt

from .check import Check


def unmixing() -> Check:
    """Proves the label-unmixing lemma, and the mixture of Beta laws."""
    points = 3
    proofs = (nt.symbolic.prove_beta_mixture(), nt.symbolic.prove_label_unmixing(points))
    return Check.of(all(proofs), f"SymPy: generic loss, density and noise, n = {points}; the mixture for all α, β > 0")


def _expansion(cubic: bool, cases: tuple[tuple[int, int], ...] = ((1, 1), (2, 2))) -> Check:
    false, terms = [], set()
    for dim, outputs in cases:
        proof = nt.symbolic.prove_expansion(dim=dim, outputs=outputs)
        chosen = {name: good for name, good in proof.items() if name.startswith("C3") == cubic}
        terms |= chosen.keys()
        false += [f"{name} at d = {dim}, K = {outputs}" for name, good in chosen.items() if not good]
    sizes = " and ".join(f"d = {dim}, K = {outputs}" for dim, outputs in cases)
    words = f"SymPy: {len(terms)} terms for generic f and h at {sizes}"
    return Check.of(not false, words if not false else f"{words}; false: {', '.join(false)}")


def expansion_terms() -> Check:
    """Proves every term of the expansion up to the second order."""
    return _expansion(cubic=False)


def cubic_coefficient() -> Check:
    """Proves every part of C3."""
    return _expansion(cubic=True)


def chain_rule() -> Check:
    """Proves the first and the second derivative along the branches."""
    proofs = (
        nt.symbolic.divergence_proofs.prove_chain_rule(2, dim=2, outputs=2),
        nt.symbolic.divergence_proofs.prove_chain_rule(3, dim=2, outputs=1),
    )
    return Check.of(all(proofs), "SymPy: generic Φ and f; m = 2, d = 2, K = 2 and m = 3, d = 2, K = 1")


def stability_terms() -> Check:
    """Proves the terms in the expansion of the stability loss, and the derivatives of the divergence in them."""
    proofs = [
        nt.symbolic.divergence_proofs.prove_stability(2),
        nt.symbolic.divergence_proofs.prove_stability(2, shared_noise=True),
    ]
    proofs += [nt.symbolic.divergence_proofs.prove_stability(3), nt.symbolic.divergence_proofs.prove_divergence(2, 2)]
    words = "SymPy: scalar head, m = 2 (noise independent or shared) and m = 3; the divergence at m = 2, K = 2"
    return Check.of(all(proofs), words)


def equal_branches() -> Check:
    """Proves the Hessian of the divergence at a point where all branches agree."""
    return Check.of(
        nt.symbolic.divergence_proofs.prove_equal_branches(2, 2),
        "SymPy: symbolic weights and probabilities, m = 2, K = 2",
    )
