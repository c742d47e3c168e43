r"""The theory of Noisy Feature Mixup derived with SymPy, as formulas, as numbers and in LaTeX.

| formula | function |
|---|---|
| $\lambda\,(p(\lambda) + p(1-\lambda))$, the density of lambda after label unmixing | `unmixed_density` |
| $m_j = \mathbb{E}(1-\lambda)^j$, a moment of this law | `unmixed_moment` |
| the loss with mixed labels equals the unmixed loss | `prove_label_unmixing` |
| $\mathbb{E}\xi^2, \mathbb{E}\xi^4, \mathbb{E}\xi_j^2\xi_k^2$ | `noise_moments` |
| coefficients of the expected loss, for generic h and f | `derive_expansion`, `table_terms`, `prove_expansion` |
| the terms as numbers, for a given head and data | `evaluate_terms` |
| the terms in LaTeX | `latex_terms`, `latex_expansion` |

The module `derivation` has a table of the symbols; `divergence_proofs` is about the stability loss of NoisyMix.
"""

from . import divergence_proofs
from .derivation import Expansion, derive_expansion, substitute_moments, symbol
from .evaluate import evaluate_terms
from .moments import (
    LAWS,
    NoiseMoments,
    noise_moment,
    noise_moments,
    prove_beta_mixture,
    prove_label_unmixing,
    unmixed_density,
    unmixed_moment,
)
from .term_table import latex_expansion, latex_terms, prove_expansion, table_terms

__all__ = [
    "LAWS",
    "Expansion",
    "NoiseMoments",
    "derive_expansion",
    "divergence_proofs",
    "evaluate_terms",
    "latex_expansion",
    "latex_terms",
    "noise_moment",
    "noise_moments",
    "prove_beta_mixture",
    "prove_expansion",
    "prove_label_unmixing",
    "substitute_moments",
    "symbol",
    "table_terms",
    "unmixed_density",
    "unmixed_moment",
]
