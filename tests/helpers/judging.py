"""Many claims, one verification: its evidence does not depend on the terms. `test_verify_values.py` checks that."""

import torch

import nfm_theory as nt
from nfm_theory.verification.verify import prepared


def judging(problem, eps, budget=None):
    """The report on the terms of the library, and a function that gives the report on others by the same evidence."""
    run, scales = prepared(problem, 2, eps, budget, None, "auto", "auto", given=False)
    with torch.no_grad(), nt.options(check_derivatives=False), run.meter:
        run.check_coefficients(None)
        return run.check_remainders(scales, halve=False), lambda terms: run.judged(terms, scales)
