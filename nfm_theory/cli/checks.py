"""The calls of the library that the command makes: verifying the expansion, checking the bound, reporting.

The library's own errors about what it was given are passed on to the user as sentences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, cast

import torch

import nfm_theory as nt
from nfm_theory.adversarial import BoundReport, Effort, NoisyMixBoundReport, bound
from nfm_theory.adversarial.bounds import CertificateName, Radius

from ..setting.pointwise import LossName
from ..verification.effort import Budget
from .errors import UsageError
from .subject import Subject
from .user_code import told_plainly

Method = Literal["auto", "exact", "monte_carlo"]
#: The scale at which the bound is checked unless the user names others.
BOUND_EPS = 0.05
#: Hidden layers that a report is about unless the user names others.
_HIDDEN = 3


@dataclass(frozen=True)
class Setting:
    """The law of the perturbation, the loss, and how the loss of NFM is computed.

    The names are what the user wrote; the library says which ones it knows.

    Attributes:
        law: law of mixing and noise.
        loss: name of the loss.
        method: how the exact loss is computed.
        budget: what each layer may take, a number of evaluations or words; `None` for the library's own choice.
        seed: random seed.
    """

    law: nt.Law
    loss: str
    method: str
    budget: int | str | None
    seed: int

    @property
    def generator(self) -> torch.Generator:
        """A random generator with the seed."""
        return torch.Generator().manual_seed(self.seed)


def verify_expansion(
    subject: Subject, layers: Sequence[str], setting: Setting, *, order: int, eps: Sequence[float] | None
) -> list[nt.ExpansionReport]:
    """Verify the expansion at each layer.

    Args:
        subject: the network and its data.
        layers: layers by dotted name; `""` is the input.
        setting: law, loss and method.
        order: order of the expansion.
        eps: scales; `None` for those of the library.

    Raises:
        UsageError: if the network, the data or an option does not fit.
    """
    method = cast(Method, setting.method)
    with told_plainly():
        return [
            nt.verify(problem, order, eps, setting.budget, setting.generator, method=method)
            for problem in _problems(subject, layers, setting)
        ]


def check_bound(
    subject: Subject,
    layers: Sequence[str],
    setting: Setting,
    *,
    eps: Sequence[float] | None,
    radius: str,
    certificate: str,
) -> list[BoundReport | NoisyMixBoundReport]:
    """Check the adversarial bound at each layer and scale.

    Args:
        subject: the network and its data.
        layers: layers by dotted name; `""` is the input.
        setting: law, loss and method.
        eps: scales; `None` for `BOUND_EPS`.
        radius: name of the radius of the attack.
        certificate: name of the method that bounds the attacked loss from above.

    Raises:
        UsageError: if the network, the data or an option does not fit.
    """
    limit = Budget.of(setting.budget, len(subject.x))
    if limit.seconds is not None:
        raise UsageError(f"--budget: with --bound expected passes or a number of evaluations, got {setting.budget!r}.")
    effort = Effort() if limit.evaluations is None else Effort(samples=limit.evaluations)
    kind, method, above = cast(Radius, radius), cast(Method, setting.method), cast(CertificateName, certificate)
    check = partial(bound, radius=kind, method=method, certificate=above, effort=effort)
    with told_plainly():
        return [
            check(problem, scale, generator=setting.generator)
            for problem in _problems(subject, layers, setting)
            for scale in eps or [BOUND_EPS]
        ]


def report_network(subject: Subject, layers: Sequence[str], setting: Setting, *, eps: float) -> nt.NetworkReport:
    """Report on the network, layer by layer.

    Args:
        subject: the network and its data.
        layers: layers by dotted name; none for the input and up to three layers that lie between input and output.
        setting: law, loss and budget.
        eps: scale at which the bound is checked.

    Raises:
        UsageError: if the network, the data or an option does not fit.
    """
    with told_plainly():
        problems = _problems(subject, layers or _spread_layers(subject), setting)
        title = f"{subject.model_name} on {subject.data_name}"
        return nt.report(problems, setting.budget, setting.generator, eps=eps, title=title)


def _spread_layers(subject: Subject) -> list[str]:
    """The input and up to three of the network's children between input and output that can be perturbed."""
    names = [name for name, _ in subject.model.named_children()][:-1]
    while True:
        chosen = [names[round(k * (len(names) - 1) / (_HIDDEN - 1))] for k in range(_HIDDEN)] if names else []
        chosen = list(dict.fromkeys(chosen))
        refused = []
        for name in chosen:
            try:
                nt.split(subject.model, subject.x, layer=name)
            except (ValueError, TypeError):
                refused.append(name)
        if not refused:
            return ["", *chosen]
        names = [name for name in names if name not in refused]


def _problems(subject: Subject, layers: Sequence[str], setting: Setting) -> list[nt.Problem]:
    loss = cast(LossName, setting.loss)
    return nt.Problem.at_layers(subject.model, subject.x, subject.y, layers=layers, law=setting.law, loss=loss)


def layer_names(subject: Subject) -> list[str]:
    """List the layers that can be verified, by dotted name; `""` is the input.

    Args:
        subject: the network and its data.

    Raises:
        UsageError: if the network does not take the data.
    """
    with told_plainly():
        return nt.layer_names(subject.model, subject.x)
