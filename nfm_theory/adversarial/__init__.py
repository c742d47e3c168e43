r"""NFM training as adversarial training: attacks, certificates, and the adversarial bound that is checked with them.

| statement | function |
|---|---|
| lower bounds of the largest loss in a ball, by projected gradient ascent | `pgd_attack`, `flip_radius` |
| upper bounds of it, and both together | `certify`, `worst_case` |
| adversarial upper bound, NFM Theorem 2 (book: eq-adversarial-bound, eq-sharp-radius) | `bound` |
| the largest scale at which it holds | `validity_radius` |
| the bound with the stability loss, NoisyMix Theorem 3 (book: eq-noisymix-bound) | `bound` of `Branches` |
"""

from .attacks import Attack, pgd_attack
from .bound_report import Assumption, BoundReport, ValidityRadius
from .bounds import Effort, bound, validity_radius
from .certificates import Certificate, WorstCase, certify, worst_case
from .flips import FlipRadius, flip_radius
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
