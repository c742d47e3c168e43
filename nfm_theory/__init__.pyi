"""The public names; `__init__.py` loads each of them at its first use."""

from . import adversarial, generalization, symbolic
from .calculus.engine import linearize
from .calculus.failures import DerivativeError
from .calculus.replacements import exact_derivatives
from .estimators.regularizers import Regularizers, regularizers
from .estimators.streaming import StreamingRegularizers
from .expansion.branch_terms import StabilityTerms, equal_branches_term
from .expansion.paths import integral_remainder, lagrange_interval
from .expansion.terms import coefficients, terms
from .losses.loss import loss
from .reporting.report import LayerReport, NetworkReport, report
from .setting.branches import Branches
from .setting.cross_entropy import CrossEntropy
from .setting.divergence import jensen_shannon
from .setting.draws import Draw, antithetic, sample_draw
from .setting.law import Law
from .setting.layers import layer_names, split
from .setting.mixing import MixingLaw
from .setting.noise import NoiseLaw
from .setting.options import options
from .setting.output_losses import BinaryCrossEntropy, MeanSquaredError
from .setting.perturbation import perturb
from .setting.pointwise import PointwiseLoss
from .setting.problem import Problem
from .setting.quadrature import GridTooLargeError, Quadrature
from .setting.results import Estimate, Interval, TaylorTerms
from .setting.streamed import StreamedProblem
from .training.consistency import JSDConsistency
from .training.layer_draw import LayerDraw
from .training.mixup import NoisyFeatureMixup
from .training.penalty import TaylorRegularizer
from .verification.error_curve import ErrorCurve, error_curve
from .verification.report import ExpansionReport, observed_order
from .verification.verify import verify

__version__: str
__all__ = [
    "BinaryCrossEntropy",
    "Branches",
    "CrossEntropy",
    "DerivativeError",
    "Draw",
    "ErrorCurve",
    "Estimate",
    "ExpansionReport",
    "GridTooLargeError",
    "Interval",
    "JSDConsistency",
    "Law",
    "LayerDraw",
    "LayerReport",
    "MeanSquaredError",
    "MixingLaw",
    "NetworkReport",
    "NoiseLaw",
    "NoisyFeatureMixup",
    "PointwiseLoss",
    "Problem",
    "Quadrature",
    "Regularizers",
    "StabilityTerms",
    "StreamedProblem",
    "StreamingRegularizers",
    "TaylorRegularizer",
    "TaylorTerms",
    "adversarial",
    "antithetic",
    "coefficients",
    "equal_branches_term",
    "error_curve",
    "exact_derivatives",
    "generalization",
    "integral_remainder",
    "jensen_shannon",
    "lagrange_interval",
    "layer_names",
    "linearize",
    "loss",
    "observed_order",
    "options",
    "perturb",
    "regularizers",
    "report",
    "sample_draw",
    "split",
    "symbolic",
    "terms",
    "verify",
]
