r"""The theory of Noisy Feature Mixup in SymPy: everything symbolic under one name, as numbers and as LaTeX.

| formula | function |
|---|---|
| $\lambda\,(p(\lambda) + p(1-\lambda))$, the law of lambda once labels are unmixed | `unmixed_density` |
| $m_j = \mathbb{E}(1-\lambda)^j$ under it | `unmixed_moment` |
| mixed-label loss = unmixed loss | `prove_label_unmixing` |
| $\mathbb{E}\xi^2, \mathbb{E}\xi^4, \mathbb{E}\xi_j^2\xi_k^2$ | `noise_moments` |
| coefficients of the expected loss, generic h and f | `derive_expansion`, `table_terms`, `prove_expansion` |
| the same for a concrete head and data | `evaluate_terms` |
| the same on a page | `latex_terms`, `latex_expansion` |

`derivation` has a table of the symbols. The stability loss of NoisyMix has its proofs in `divergence_proofs`.
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
