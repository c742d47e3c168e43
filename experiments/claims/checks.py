"""The quick computations by name."""

from __future__ import annotations

from collections.abc import Callable

from . import checks_generalization as generalization
from . import checks_neighbors as neighbors
from . import checks_numeric as numeric
from . import checks_symbolic as symbolic
from .check import Check

CHECKS: dict[str, Callable[[], Check]] = {
    "unmixing": symbolic.unmixing,
    "expansion-terms": symbolic.expansion_terms,
    "cubic-coefficient": symbolic.cubic_coefficient,
    "chain-rule": symbolic.chain_rule,
    "stability-terms": symbolic.stability_terms,
    "equal-branches": symbolic.equal_branches,
    "stability-unmixing": numeric.stability_unmixing,
    "stability-remainder": numeric.stability_remainder,
    "stability-bound": numeric.stability_bound,
    "linear-bound": numeric.linear_bound,
    "slack": numeric.slack,
    "any-order": numeric.any_order,
    "integral-form": numeric.integral_form,
    "telescoping": numeric.telescoping,
    "partners": numeric.partners,
    "margin": numeric.margin,
    "glm-regularizer": generalization.glm_regularizer,
    "rademacher-glm": generalization.rademacher_glm,
    "rademacher-two-layer": generalization.rademacher_two_layer,
    "generalization-gap": generalization.generalization_gap,
    "approximation": generalization.approximation,
    "alternating-line": neighbors.alternating,
    "linear-direction": neighbors.linear_direction,
}
