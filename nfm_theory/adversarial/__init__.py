r"""NFM training as adversarial training: attacks from below, certificates from above, the bound between them.

| statement | function |
|---|---|
| inner maximum from below, PGD | `pgd_attack`, `flip_radius` |
| inner maximum from above, and both together | `certify`, `worst_case` |
| adversarial upper bound, NFM Theorem 2 (book: eq-adversarial-bound, eq-sharp-radius) | `bound` |
| the largest scale at which it holds | `validity_radius` |
| the same with the stability loss, NoisyMix Theorem 3 (book: eq-noisymix-bound) | `bound` of `Branches` |
"""

from .attacks import Attack, FlipRadius, flip_radius, pgd_attack
from .bound_report import Assumption, BoundReport, ValidityRadius
from .bounds import Effort, bound, validity_radius
from .certificates import Certificate, WorstCase, certify, worst_case
from .noisymix_bound import NoisyMixBoundReport

__all__ = [
    "Assumption",
    "Attack",
    "BoundReport",
    "Certificate",
    "Effort",
    "FlipRadius",
    "NoisyMixBoundReport",
    "ValidityRadius",
    "WorstCase",
    "bound",
    "certify",
    "flip_radius",
    "pgd_attack",
    "validity_radius",
    "worst_case",
]
