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
| the regularizers as estimators (book: eq-second-moment) | `regularizers` |
| the regularizers as a penalty | `TaylorRegularizer` |
| training with NFM | `NoisyFeatureMixup` |
| stability loss of NoisyMix | `jensen_shannon`, `JSDConsistency` |
| second derivatives without nesting (book: eq-tangent-adjoint) | `linearize` |
| adversarial upper bound, attacks, certificates: NFM Theorem 2, NoisyMix Theorem 3 | `adversarial` |
| stability expansion: NoisyMix Theorem 2, Proposition 1 | `stability` |
| generalisation, margins, relatives of Mixup | `generalization` |
| verdict on a network | `verify_expansion`, `expansion_error` |
| derivation in SymPy | `symbolic` |
"""

from . import adversarial, generalization, stability, symbolic
from .calculus.engine import linearize
from .calculus.replacements import exact_derivatives
from .estimators.regularizers import Regularizers, regularizers
from .expansion.paths import integral_remainder, lagrange_interval
from .expansion.terms import expansion_coefficients, taylor_terms
from .losses.nfm_loss import nfm_loss
from .setting.draws import Draw, antithetic, sample_draw
from .setting.laws import MixingLaw, NoiseLaw, released_noise
from .setting.layers import layer_names, split
from .setting.pointwise import PointwiseLoss
from .setting.problem import build_problem, perturb
from .setting.quadrature import GridTooLargeError
from .setting.results import Estimate, Interval, TaylorTerms
from .stability import JSDConsistency, jensen_shannon
from .training.mixup import NoisyFeatureMixup
from .training.penalty import TaylorRegularizer
from .verification.error_curve import ErrorCurve, expansion_error
from .verification.report import ExpansionReport, observed_order
from .verification.verify import verify_expansion

__version__ = "0.1.0"
__all__ = [
    "Draw",
    "ErrorCurve",
    "Estimate",
    "ExpansionReport",
    "GridTooLargeError",
    "Interval",
    "JSDConsistency",
    "MixingLaw",
    "NoiseLaw",
    "NoisyFeatureMixup",
    "PointwiseLoss",
    "Regularizers",
    "TaylorRegularizer",
    "TaylorTerms",
    "adversarial",
    "antithetic",
    "build_problem",
    "exact_derivatives",
    "expansion_coefficients",
    "expansion_error",
    "generalization",
    "integral_remainder",
    "jensen_shannon",
    "lagrange_interval",
    "layer_names",
    "linearize",
    "nfm_loss",
    "observed_order",
    "perturb",
    "regularizers",
    "released_noise",
    "sample_draw",
    "split",
    "stability",
    "symbolic",
    "taylor_terms",
    "verify_expansion",
]
