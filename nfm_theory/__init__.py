r"""The theory of Noisy Feature Mixup, NoisyMix and Mixup, to compute with.

| statement | function |
|---|---|
| NFM features, NFM paper §3 (book: eq-perturbation) | `perturb`, `sample_draw`, `antithetic` |
| label-unmixing lemma (book: eq-unmixing) | `MixingLaw`, `symbolic.unmixed_density` |
| NFM loss, exact, Monte Carlo, as trained (book: eq-nfm-loss) | `nfm_loss` |
| NFM Theorem 1, Mixup lemma (book: eq-expansion) | `taylor_terms` |
| predicted remainder C3 (book: eq-remainder) | `taylor_terms(...).C3` |
| expansion of any order (book: eq-order-p) | `expansion_coefficients` |
| remainder without cancellation (book: eq-integral-remainder) | `integral_remainder` |
| pathwise interval (book: eq-lagrange) | `lagrange_interval` |
| verdict on a network | `verify_expansion`, `expansion_error` |
| derivation in SymPy | `symbolic` |
"""

from . import symbolic
from .draws import Draw, antithetic, sample_draw
from .expansion import expansion_coefficients, taylor_terms
from .laws import MixingLaw, NoiseLaw, released_noise
from .layers import layer_names, split
from .losses import PointwiseLoss
from .nfm import nfm_loss
from .paths import integral_remainder, lagrange_interval
from .primitives import exact_derivatives
from .problem import build_problem, perturb
from .quadrature import GridTooLargeError
from .report import ExpansionReport, observed_order
from .results import Estimate, Interval, TaylorTerms
from .validity import ErrorCurve, expansion_error
from .verification import verify_expansion

__version__ = "0.1.0"
__all__ = [
    "Draw",
    "ErrorCurve",
    "Estimate",
    "ExpansionReport",
    "GridTooLargeError",
    "Interval",
    "MixingLaw",
    "NoiseLaw",
    "PointwiseLoss",
    "TaylorTerms",
    "antithetic",
    "build_problem",
    "exact_derivatives",
    "expansion_coefficients",
    "expansion_error",
    "integral_remainder",
    "lagrange_interval",
    "layer_names",
    "nfm_loss",
    "observed_order",
    "perturb",
    "released_noise",
    "sample_draw",
    "split",
    "symbolic",
    "taylor_terms",
    "verify_expansion",
]
