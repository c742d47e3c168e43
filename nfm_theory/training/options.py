"""Options of the step of mixing and noise: the law of each layer, and the form of the labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, get_args

from torch import Tensor

from ..setting.checks import one_of
from ..setting.inputs import Inputs, batch_size
from ..setting.law import Law
from ..setting.network import kind

Form = Literal["mixed", "unmixed"]


def laws_of(layers: str | Sequence[str] | Mapping[str, Law], law: Law | None) -> dict[str, Law]:
    """The law of each eligible layer.

    Args:
        layers: names of the layers, or a mapping from names to laws.
        law: law at every layer; `None` beside a mapping.

    Raises:
        TypeError: if layers or laws are missing or of the wrong kind.
        ValueError: for a law beside a mapping of laws, and repeated layers.
    """
    names = [layers] if isinstance(layers, str) else list(layers) if isinstance(layers, Iterable) else None
    if names is None or not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"layers: expected names of layers such as ('', 'layer1'), got {kind(layers) if names is None else names}; "
            "layer_names(model) lists them all, layer_names(model.eval(), x) those to which the theory applies."
        )
    if len(set(names)) != len(names):
        raise ValueError(f"layers: expected one or more different names, got {names}.")
    if isinstance(layers, Mapping) and law is not None:
        raise ValueError("law: expected none beside a mapping of layers to laws; leave it out.")
    laws: dict[str, Law] = {}
    for name in names:
        one = layers[name] if isinstance(layers, Mapping) else law
        if not isinstance(one, Law):
            raise TypeError(
                f"law: expected an nfm_theory.Law, got {type(one).__name__}; for example Law(add_noise=0.4, "
                "mult_noise=0.2), or Law.released(...) for the noise of the papers' code."
            )
        laws[name] = one
    return laws


def check_form(form: Form, eps: float) -> Form:
    """The form of the labels, refused if it does not exist at the scale.

    Args:
        form: `"mixed"` or `"unmixed"`.
        eps: scale ε.

    Raises:
        ValueError: for another name, and mixed labels at ε ≠ 1.
    """
    one_of("form", form, get_args(Form))
    if form == "mixed" and eps != 1:
        raise ValueError(f"eps: expected 1 with mixed labels, got {eps!r}; use form='unmixed' for other scales.")
    return form


def check_matching(matching: int) -> int:
    """The number of samples that are matched at once in k-mixup.

    Args:
        matching: k.

    Raises:
        ValueError: unless it is a whole number of at least 1.
    """
    if not isinstance(matching, int) or isinstance(matching, bool) or matching < 1:
        raise ValueError(f"matching: expected a whole number k >= 1 (1: Mixup, without matching), got {matching!r}.")
    return matching


def check_batch(x: Inputs, count: int, views: int, layers: Sequence[str], view_noise: Sequence[float] | None) -> None:
    """Refuse a batch that cannot be mixed.

    Args:
        x: the inputs of all views.
        count: number of labels.
        views: number of views of each sample.
        layers: the eligible layers.
        view_noise: factors of the noise of each view.

    Raises:
        TypeError: for several inputs, or inputs that are no floating-point numbers, if the input may be mixed.
        ValueError: unless there is one label for each sample, and one factor for each view.
    """
    if views < 1 or batch_size(x) != views * count:
        raise ValueError(
            f"x and y: expected views * n inputs and n labels, got {batch_size(x)} and {count} with views={views}."
        )
    if view_noise is not None and len(view_noise) != views:
        raise ValueError(f"views: expected {len(view_noise)}, one for each of view_noise, got {views}.")
    if "" in layers and not isinstance(x, Tensor):
        raise TypeError("x: expected one tensor with '' in `layers`; name hidden layers alone for several inputs.")
    if isinstance(x, Tensor) and "" in layers and not x.is_floating_point():
        raise TypeError(
            f"x: expected floating-point inputs, got {x.dtype}; indices cannot be mixed: leave '' out of `layers` "
            "and name the embedding instead, or convert the inputs, x.float()."
        )
