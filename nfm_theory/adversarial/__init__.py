r"""NFM training as adversarial training: attacks from below, certificates from above, the bound between them.

| statement | function |
|---|---|
| inner maximum from below, PGD | `pgd_attack`, `flip_radius` |
| inner maximum from above, and both together | `certify`, `worst_case` |
| adversarial upper bound, NFM Theorem 2 (book: eq-adversarial-bound, eq-sharp-radius) | `adversarial_bound` |
| the largest scale at which it holds | `validity_radius` |
| the same with the stability loss, NoisyMix Theorem 3 (book: eq-noisymix-bound) | `noisymix_bound` |
"""

from .attacks import Attack, FlipRadius, flip_radius, pgd_attack
from .bound_report import Assumption, BoundReport, ValidityRadius
from .bounds import adversarial_bound, validity_radius
from .certificates import Certificate, WorstCase, certify, worst_case
from .noisymix_bound import NoisyMixBoundReport, noisymix_bound

__all__ = [
    "Assumption",
    "Attack",
    "BoundReport",
    "Certificate",
    "FlipRadius",
    "NoisyMixBoundReport",
    "ValidityRadius",
    "WorstCase",
    "adversarial_bound",
    "certify",
    "flip_radius",
    "noisymix_bound",
    "pgd_attack",
    "validity_radius",
    "worst_case",
]
