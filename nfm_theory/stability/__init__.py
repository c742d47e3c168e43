r"""The stability loss of NoisyMix: divergence of several branches, its expansion, and the verdict on it.

| statement | function |
|---|---|
| Jensen-Shannon divergence of the branches (book: eq-jsd) | `jensen_shannon`, `JSDConsistency` |
| stability loss, exact and Monte Carlo | `stability_loss` |
| NoisyMix Theorem 2, S0, S1, S2 and C3 (book: eq-jsd-expansion) | `stability_terms` |
| the closed form for equal branches (book: eq-jsd-equal) | `equal_branches_term` |
| verdict on a network | `verify_stability` |
| NoisyMix loss (book: eq-noisymix) | `noisymix_loss` |
| NoisyMix Theorem 3, on top of the adversarial bound | `adversarial.noisymix_bound` |
| NoisyMix Proposition 1 and the expansion, in SymPy | `symbolic` |
"""

from ..expansion.branch_terms import StabilityTerms, equal_branches_term, stability_terms, verify_stability
from ..losses.noisymix_loss import noisymix_loss, stability_loss
from ..setting.branches import Branches, build_branches
from ..setting.divergence import JSDConsistency, jensen_shannon
from ..symbolic import divergence_proofs as symbolic

__all__ = [
    "Branches",
    "JSDConsistency",
    "StabilityTerms",
    "build_branches",
    "equal_branches_term",
    "jensen_shannon",
    "noisymix_loss",
    "stability_loss",
    "stability_terms",
    "symbolic",
    "verify_stability",
]
