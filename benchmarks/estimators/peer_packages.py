"""Peers that need another package, imported when they are called; quantities as in `peers`."""

import importlib
import importlib.util
import re
import sys
import types
import warnings
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from .cases import Case

#: Distribution names, for the record of versions.
DISTRIBUTIONS = ("curvlinops-for-pytorch", "jet-for-pytorch")


class MissingPackage(ImportError):
    """A peer cannot be measured because its package is not there, or does not import."""


def _import(name: str) -> types.ModuleType:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MissingPackage(f"not installed: {error.name}") from None
    except Exception as error:
        raise MissingPackage(f"{name} does not import: {type(error).__name__}: {error}") from error


# curvlinops --------------------------------------------------------------------------------------------------


class _Features(nn.Module):
    """The head with the features as its parameter, so that curvature in parameters is curvature in features.

    The rewritten one: the package works under `no_grad`, where PyTorch refuses to differentiate SiLU twice.
    """

    def __init__(self, case: Case):
        super().__init__()
        self.features = nn.Parameter(case.problem.features.detach().clone())
        self.head = case.problem.head

    def forward(self, rows: Tensor) -> Tensor:
        return self.head(self.features[rows])


class _MeanLoss(nn.Module):
    reduction = "mean"

    def __init__(self, case: Case):
        super().__init__()
        self.loss = case.problem.loss

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return self.loss(outputs, labels).mean()


def linear_operator(case: Case, *sets: Tensor, quantity: str = "R2+R3", chunk: int | None = None) -> Tensor:
    """curvlinops: products with the Hessian (`"R2+R3"`) or the Gauss-Newton matrix (`"R2"`) of the whole batch.

    The features of all samples are one parameter, whose curvature is block-diagonal, so that the form of a stacked
    direction is the sum over the samples.
    """
    package = _import("curvlinops")
    kind = {"R2+R3": "HessianLinearOperator", "R2": "GGNLinearOperator"}[quantity]
    model, problem = _Features(case), case.problem
    rows = torch.arange(len(problem.features), device=problem.features.device)
    operator = getattr(package, kind)(
        model, _MeanLoss(case), [model.features], [(rows, problem.labels)], check_deterministic=False
    )
    total = problem.features.new_zeros(())
    for v in sets:
        for part in v.split(chunk or len(v)):
            columns = part.expand(-1, len(rows), *part.shape[2:]).flatten(1).T
            total = total + (columns * (operator @ columns)).sum()
    return total.detach() / 2


# Taylor mode -------------------------------------------------------------------------------------------------


@cache
def taylor_mode() -> types.ModuleType:
    """The package `jet`; before Python 3.12 without its one type alias in newer syntax, which only annotates."""
    spec = importlib.util.find_spec("jet")
    if spec is not None and sys.version_info < (3, 12) and "jet.utils" not in sys.modules:
        source = Path(spec.origin).with_name("utils.py").read_text()
        source = re.sub(r"^type PyTree\[Leaf\] = \(.*?^\)", "PyTree = tuple", source, flags=re.DOTALL | re.MULTILINE)
        module = types.ModuleType("jet.utils")
        exec(compile(source, "jet.utils", "exec"), module.__dict__)
        sys.modules["jet.utils"] = module
    return _import("jet")


class CollapsedTaylorMode:
    """jet-for-pytorch: 2-jets whose second coefficient is summed over the directions as it is propagated.

    Traced once when it is built. R2 from the first coefficients of the outputs, R3 from the collapsed second ones.
    Raises `NotImplementedError` where the package has no rule for an operation.
    """

    def __init__(self, case: Case):
        self.problem = case.problem
        with torch.no_grad():
            self.jet = taylor_mode().jet(case.plain_head, (torch.zeros_like(self.problem.features),), collapsed=True)

    def __call__(self, *sets: Tensor) -> Tensor:
        """`(R2, R3)` along the directions."""
        g, loss, labels = self.problem.features, self.problem.loss, self.problem.labels
        total = g.new_zeros(2)
        with torch.no_grad():
            for v in sets:
                outputs, tangents, second = self.jet((g, v.expand(-1, *g.shape).contiguous(), torch.zeros_like(g)))
                residual = (loss.gradient(outputs, labels) * second).sum()
                gauss_newton = torch.einsum("mbk,bkl,mbl->", tangents, loss.hessian(outputs, labels), tangents)
                total = total + torch.stack([gauss_newton, residual])
        return total / (2 * len(g))
