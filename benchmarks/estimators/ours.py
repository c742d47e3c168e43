"""The methods of this library in the comparison; `method.py` has the format."""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from nfm_theory import Law, NoisyFeatureMixup, Problem, TaylorRegularizer, linearize, regularizers
from nfm_theory.calculus.derivatives import gauss_newton_forms
from nfm_theory.expansion.second_order import exact_terms
from nfm_theory.expansion.third_order import LossDerivatives

from .cases import DENSE, Case
from .method import Method

NAME = "nfm_theory"
#: Third derivatives along the directions of "R3, data, exact", without the mean direction of each sample.
CUBES = "C3, data directions"


def _sum(terms: dict[str, Tensor], *orders: str) -> Tensor:
    return sum(value for name, value in terms.items() if name[:2] in orders)


def _exact(problem: Problem, orders: tuple[str, ...], *, engine: str = "auto") -> Tensor:
    """The sum of the exact terms of these orders, `"R2"` and `"R3"`."""
    with torch.no_grad():
        at = linearize(problem.head, problem.features, engine=engine)
        none = {"gauss_newton": () if "R2" not in orders else None, "residual": () if "R3" not in orders else None}
        return _sum(exact_terms(problem, at, **none), *orders)


def _along(problem: Problem, directions: Tensor) -> Tensor:
    """R2 + R3 along given directions."""
    at = linearize(problem.head, problem.features)
    slope = problem.loss.gradient(at.outputs, problem.labels)
    tangents, hessian_forms = at.sweep(directions, slope)
    curvature = problem.loss.hessian(at.outputs, problem.labels)
    return (gauss_newton_forms(curvature, tangents.permute(1, 2, 0)).sum() + hessian_forms.sum()) / 2 / len(slope)


def _value_along(problem: Problem, directions: Tensor) -> Tensor:
    with torch.no_grad():
        return _along(problem, directions)


def _cubes(problem: Problem, directions: Tensor) -> Tensor:
    """`Σ_j D³ℓ[v_j, v_j, v_j] / 6` over directions that all samples share, averaged over the samples."""
    with torch.no_grad():
        found = LossDerivatives(problem)
        return found.along(found.at.propagate(directions))[1].sum() / 6 / len(problem.features)


def train_penalised(case: Case, probes: Tensor) -> tuple[Tensor, ...]:
    """Penalty R2 + R3 along probes, and the parameter gradient of mean loss + penalty, from one recording."""
    trained = case.trained
    problem, parameters = trained.problem, list(trained.model.parameters())
    at = linearize(trained.plain_head, problem.features)
    labels = problem.labels
    slope, curvature = problem.loss.gradient(at.outputs, labels), problem.loss.hessian(at.outputs, labels)
    tangents, hessian_forms = at.sweep(probes, slope)
    penalty = (gauss_newton_forms(curvature, tangents.permute(1, 2, 0)).sum() + hessian_forms.sum()) / 2 / len(slope)
    total = problem.loss(at.outputs, labels).mean() + penalty
    return penalty.detach(), *torch.autograd.grad(total, parameters)


def _regularizer_step(case: Case, penalty: TaylorRegularizer) -> Tensor:
    """A training step as a user writes it: the loss, and the penalty of its own forward pass."""
    trained = case.trained
    loss = trained.problem.loss(trained.model(case.x).reshape(len(case.x), -1), trained.problem.labels).mean()
    value = penalty(trained.model, case.x, case.y)
    torch.autograd.grad(loss + value, list(trained.model.parameters()))
    return value.detach()


def _train_step(case: Case, mixup: NoisyFeatureMixup | None) -> Tensor:
    """A step in training mode (batch norm on the batch), with NFM or plain: eval-mode passes are never mixed."""
    trained = case.trained
    trained.model.train()
    inputs, targets = case.x, case.trained.problem.labels
    if mixup is not None:
        inputs, targets = mixup(case.x, case.y.float() if mixup.num_classes is None else case.y)
    outputs = trained.model(inputs).reshape(len(case.x), -1)
    loss = trained.problem.loss(outputs, targets.reshape(outputs.shape)).mean()
    torch.autograd.grad(loss, list(trained.model.parameters()))
    trained.model.eval()
    return loss.detach()


def _values(case: Case) -> list[Method]:
    problem, probes = case.problem, case.probes(4)
    dim, rank = problem.features[0].numel(), min(problem.features[0].numel(), len(case.x) - 1)
    data = problem.with_law(replace(case.law, add_noise=0.0, mult_noise=0.0))
    both = problem.with_law(replace(case.law, mult_noise=0.0))
    found = [
        Method(NAME, "R2+R3, 4 probes", partial(_value_along, problem, probes), passes=8),
        Method(NAME, "R2+R3, data, exact", partial(_exact, data, ("R2", "R3")), passes=rank),
        Method(NAME, "R3, data, exact", partial(_exact, data, ("R3",)), passes=rank),
        Method(NAME, "R2, data, exact", partial(_exact, data, ("R2",)), passes=15),
        Method(NAME, CUBES, partial(_cubes, problem, case.data_directions[0]), passes=3 * rank),
    ]
    if dim <= 4 * DENSE:
        found.append(Method(NAME, "R2, data + additive, exact", partial(_exact, both, ("R2",)), passes=15))
    if dim <= DENSE:
        found += [
            Method(NAME, "R2+R3, data + additive, exact", partial(_exact, both, ("R2", "R3")), passes=dim),
            Method(NAME, "R3, data + additive, exact", partial(_exact, both, ("R3",)), passes=dim),
            Method(NAME, "all six exact", partial(_exact, problem, ("R2", "R3")), passes=2 * dim),
            *_to_one_percent(both),
        ]
    return found


def _gradients(case: Case) -> list[Method]:
    _ = case.trained.problem  # built once, outside what is measured
    setting, found = case.setting, []
    for count in (1, 8):
        quantity = f"training, {count} probe{'s' * (count > 1)}"
        call = partial(lambda probes: train_penalised(case, probes)[0], case.probes(count))
        found.append(Method(NAME, quantity, call, kind="gradient", passes=2 + count))
        penalty = TaylorRegularizer("", Law(), loss=setting.loss, terms=["R2", "R3"], num_probes=count)
        step = partial(_regularizer_step, case, penalty)
        found.append(Method("TaylorRegularizer beside the loss", quantity, step, kind="gradient", passes=3 + count))
    classes = {} if setting.classes == 1 else {"num_classes": setting.classes}
    law = Law.released(add_noise=case.sigma, mult_noise=case.sigma)
    mixup = NoisyFeatureMixup(case.trained.model, "", law, **classes)
    for name, mixing in ((NAME, mixup), ("plain", None)):
        step = partial(_train_step, case, mixing)
        found.append(Method(name, "step in training mode, NFM at the input", step, kind="gradient"))
    return found


def _accurate(problem: Problem, **options) -> Tensor:
    with torch.no_grad():
        found = regularizers(problem, generator=torch.Generator().manual_seed(0), **options)
    return sum(found[name].value for name in ("R3", "R3_add"))


def _to_one_percent(problem: Problem) -> list[Method]:
    """R3, data and additive, to a relative standard error of 1 %: what is chosen by itself, and the alternatives."""
    methods = {"R2": "exact", "R2_add": "exact"}

    def probes(deflate: int):
        options = {"method": methods | {"R3": "probes", "R3_add": "probes"}, "deflate": deflate}
        with torch.no_grad():
            pilot = regularizers(problem, num_probes=64, **options)
        terms = [pilot[name] for name in ("R3", "R3_add")]
        needed = int(max(64 * float(term.stderr / (0.01 * term.value)) ** 2 for term in terms))
        if needed > 2_000:
            raise NotImplementedError(f"about {needed} probes needed")
        return partial(_accurate, problem, num_probes=max(2, needed), **options)

    quantity = "R3 to 1 %, data + additive"
    exact = methods | {"R3": "exact", "R3_add": "exact"}
    return [
        Method(f"{NAME}, auto", quantity, partial(_accurate, problem, method="auto", rtol=0.01), passes=300),
        Method(f"{NAME}, exact", quantity, partial(_accurate, problem, method=exact), passes=300),
        Method(f"{NAME}, probes", quantity, prepare=partial(probes, 0), passes=300),
        Method(f"{NAME}, probes, 32 deflated", quantity, prepare=partial(probes, 32), passes=300),
    ]


def ours(case: Case) -> list[Method]:
    """What is measured on this case; quantities are named as those of the peers."""
    return _values(case) + ([] if case.setting.layer else _gradients(case))
