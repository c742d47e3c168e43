"""The methods of this library in the comparison; `method.py` has the format."""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from nfm_theory.expansion import problem_terms
from nfm_theory.problem import Problem

from .cases import DENSE, Case
from .method import Method


def _second_order(problem: Problem) -> Tensor:
    with torch.no_grad():
        return problem_terms(problem, remainder=False).second


def ours(case: Case) -> list[Method]:
    """What is measured on this case; further methods go into this list, quantities named as those of the peers."""
    problem = case.problem
    dim, rank = problem.features[0].numel(), min(problem.features[0].numel(), len(case.x) - 1)
    data = replace(problem, add_noise=0.0, mult_noise=0.0)
    found = [Method("nfm_theory, exact", "R2+R3, data, exact", partial(_second_order, data), passes=rank)]
    if dim <= DENSE:
        both = partial(_second_order, replace(problem, mult_noise=0.0))
        found.append(Method("nfm_theory, exact", "R2+R3, data + additive, exact", both, passes=dim))
        found.append(Method("nfm_theory, exact", "all six exact", partial(_second_order, problem), passes=2 * dim))
    return found
