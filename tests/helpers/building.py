"""Problems and branches from one flat set of options: those of the law are taken by `Law`, the others as they are."""

from dataclasses import fields

import nfm_theory as nt

LAW = {field.name for field in fields(nt.Law)}
PROBLEM = LAW | {"layer", "loss", "params", "output", "partners", "weights", "gamma", "shared_noise"}


def parted(options):
    """Options of the problem, and those of the verb that takes it."""
    own = {name: value for name, value in options.items() if name in PROBLEM}
    return own, {name: value for name, value in options.items() if name not in PROBLEM}


def _with_law(options):
    law = {name: value for name, value in options.items() if name in LAW}
    return {"law": nt.Law(**law), **{name: value for name, value in options.items() if name not in LAW}}


def build_problem(model, x, y, *, layer="", **options):
    """A problem; several layers give a list."""
    if isinstance(layer, (list, tuple)):
        return nt.Problem.at_layers(model, x, y, layers=layer, **_with_law(options))
    return nt.Problem(model, x, y, layer=layer, **_with_law(options))


def build_branches(model, xs, y=None, *, layer="", **options):
    """Branches; several layers give a list."""
    if isinstance(layer, (list, tuple)):
        return nt.Branches.at_layers(model, xs, y, layers=layer, **_with_law(options))
    return nt.Branches(model, xs, y, layer=layer, **_with_law(options))
