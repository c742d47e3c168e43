r"""Generalization bounds for Mixup, margins, relatives of Mixup, and the Mixup-optimal classifier.

| statement | function |
|---|---|
| regularizer of a generalized linear model (book: eq-glm) | `glm_regularizer`, `glm_mixup_loss` |
| Rademacher bounds (book: eq-rademacher-glm, eq-rademacher-two-layer) | `glm_bound`, `two_layer_bound` |
| the Rademacher complexity (book: eq-empirical-rademacher) | `ellipsoid_rademacher` |
| the ρ-retentive property of data | `retentiveness` |
| upper bound of the expected loss | `generalization_bound` |
| margins and Jacobian norms (book: eq-margin) | `segment_margins`, `jacobian_norms` |
| Mixup loss against its quadratic approximation along a training run | `quadratic_gap_along` |
| other laws of the partner: k-mixup and DP-Mix self | `k_mixup_weights`, `self_weights` |
| the Mixup-optimal classifier (book: eq-mixup-optimal) | `mixup_optimal`, `line_optimal` |
"""

from .glm import generalization_bound, glm_family, glm_mixup_loss, glm_regularizer
from .margins import jacobian_norms, quadratic_gap_along, score_gap, segment_margins
from .mixup_optimal import alternating_line, empirical_report, line_optimal, mixup_optimal
from .partners import direction_moments, k_mixup_weights, self_weights
from .rademacher import (
    compare_glm_bound,
    compare_two_layer_bound,
    ellipsoid_rademacher,
    glm_bound,
    two_layer_bound,
)
from .retention import retentiveness

__all__ = [
    "alternating_line",
    "compare_glm_bound",
    "compare_two_layer_bound",
    "direction_moments",
    "ellipsoid_rademacher",
    "empirical_report",
    "generalization_bound",
    "glm_bound",
    "glm_family",
    "glm_mixup_loss",
    "glm_regularizer",
    "jacobian_norms",
    "k_mixup_weights",
    "line_optimal",
    "mixup_optimal",
    "quadratic_gap_along",
    "retentiveness",
    "score_gap",
    "segment_margins",
    "self_weights",
    "two_layer_bound",
]
