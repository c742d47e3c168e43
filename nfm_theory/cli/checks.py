"""The two calls of the library that the command makes: verifying the expansion, and checking the adversarial bound.

The library's own errors about what it was given are passed on to the user as sentences.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import nfm_theory as nt
from nfm_theory.adversarial import BoundReport, adversarial_bound

from .errors import UsageError
from .subject import Subject

#: The scale at which the bound is checked unless the user names others.
BOUND_EPS = 0.05


@dataclass(frozen=True)
class Setting:
    """The law of the perturbation, the loss, and how the loss of NFM is computed.

    Attributes:
        alpha: first parameter of the Beta law of the mixing weight; 0 for no mixing.
        beta: second parameter; `None` for `alpha`.
        add_noise: level of the additive noise.
        mult_noise: level of the multiplicative noise.
        noise: name of the noise law.
        loss: name of the loss.
        method: how the exact loss is computed.
        samples: number of evaluations if it is computed by Monte Carlo.
        seed: random seed.
    """

    alpha: float
    beta: float | None
    add_noise: float
    mult_noise: float
    noise: str
    loss: str
    method: str
    samples: int
    seed: int


@contextmanager
def told_plainly() -> Iterator[None]:
    """Turn what the library says about its arguments into a sentence for the user."""
    try:
        yield
    except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        raise UsageError(str(error)) from error


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
    with told_plainly():
        return [
            nt.verify_expansion(
                subject.model, subject.x, subject.y, layer=layer, order=order, eps=eps, **asdict(setting)
            )
            for layer in layers
        ]


def check_bound(
    subject: Subject,
    layers: Sequence[str],
    setting: Setting,
    *,
    eps: Sequence[float] | None,
    radius: str,
    certificate: str,
) -> list[BoundReport]:
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
    chosen = {"radius": radius, "certificate": certificate, **asdict(setting)}
    with told_plainly():
        return [
            adversarial_bound(subject.model, subject.x, subject.y, layer=layer, eps=scale, **chosen)
            for layer in layers
            for scale in eps or [BOUND_EPS]
        ]


def layer_names(subject: Subject) -> list[str]:
    """List the layers that can be verified, by dotted name; `""` is the input.

    Args:
        subject: the network and its data.

    Raises:
        UsageError: if the network does not take the data.
    """
    with told_plainly():
        return nt.layer_names(subject.model, subject.x)
