"""The law of each layer that is trained with noise and mixing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..setting.law import Law


def laws_of(layers: str | Sequence[str] | Mapping[str, Law], law: Law | None) -> dict[str, Law]:
    """The law of every eligible layer.

    Raises:
        TypeError: if layers or laws are missing or of the wrong kind.
        ValueError: for a law beside a mapping of laws, and repeated layers.
    """
    if isinstance(layers, Mapping):
        if law is not None:
            raise ValueError("law: expected none beside a mapping of layers to laws; leave it out.")
        laws = dict(layers)
    else:
        if layers is None:
            raise TypeError(
                "layers: expected names of layers such as ('', 'layer1'), got None; layer_names(model) lists them "
                "all, layer_names(model.eval(), x) those to which the theory applies."
            )
        names = [layers] if isinstance(layers, str) else list(layers)
        if len(set(names)) != len(names):
            raise ValueError(f"layers: expected one or more different names, got {names}.")
        laws = dict.fromkeys(names, law)
    wrong = [one for one in laws.values() if not isinstance(one, Law)]
    if wrong:
        raise TypeError(
            f"law: expected an nfm_theory.Law, got {type(wrong[0]).__name__}; for example Law(add_noise=0.4, "
            "mult_noise=0.2), or Law.released(...) for the noise of the papers' code."
        )
    return laws
