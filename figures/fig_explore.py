"""Claim: where the expansion is good, and what each term of it adds, can be tried out at every α and σ.

The still image of the book's interactive figure, and the data for its script (`_static/explore.js`).
"""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from experiments.studies.explore import terms_at
from nfm_theory.verification.error_curve import crossing

from . import embed, style
from .fig_validity import ORDERS

NETWORKS = {"plain": "plain training", "nfm": "trained with NFM"}
#: Laws that are shown first: those of the paper.
START = {"alpha": 1.0, "add_noise": 0.4, "mult_noise": 0.2}


def title(record: dict) -> str:
    """Network and layer in words."""
    return f"{NETWORKS[record['network']]}, {style.layer_kind(record)}"


def curves(record: dict, **laws: float) -> dict[str, np.ndarray]:
    """Exact loss, its standard error and the polynomials of order 0..3 at the scales of a record.

    Args:
        record: the record of the study `explore`.
        **laws: `alpha`, `add_noise`, `mult_noise`, each on the grid of the record.

    Returns:
        `eps`, `loss`, `stderr`, each `(E,)`, and `polynomials`, `(4, E)`.
    """
    grid = record["grid"]
    a, s, t = (grid[name].index(laws[name]) for name in START)
    terms = terms_at(record["coefficients"], record["moments"][a], laws["add_noise"], laws["mult_noise"])
    eps = np.array(grid["eps"])
    polynomials = np.stack([np.polyval([float(c) for c in terms.coefficients(p)][::-1], eps) for p in range(4)])
    loss = polynomials[2] + np.array(record["excess"][a][s][t])
    return {"eps": eps, "loss": loss, "stderr": np.array(record["stderr"][a][s][t]), "polynomials": polynomials}


def radius(found: dict[str, np.ndarray], order: int, *, tolerance: float = 0.1) -> float:
    """The scale up to which a polynomial is within the tolerance, interpolated between those of the grid; 1 at most.

    Args:
        found: the result of `curves`.
        order: the order of the polynomial.
        tolerance: relative error.
    """
    errors = np.abs(found["loss"] - found["polynomials"][order]) / np.abs(found["loss"])
    return min(1.0, crossing(found["eps"].tolist(), errors.tolist(), tolerance))


def draw(record: dict, **laws: float) -> Figure:
    """Loss and polynomials, and what the polynomials leave, against ε.

    Args:
        record: the record of the study `explore`.
        **laws: as `curves`.
    """
    found = curves(record, **laws)
    eps = found["eps"]
    with style.style():
        figure = Figure(figsize=(7.2, 3.3), layout="constrained", facecolor="white")
        left, right = figure.subplots(1, 2)
        left.plot(eps, found["loss"], "o-", color="black", ms=3, label="exact")
        for order, (color, dash) in ORDERS.items():
            polynomial = found["polynomials"][int(order)]
            left.plot(eps, polynomial, dash, color=color, label=f"order {order}")
            right.plot(eps, np.abs(found["loss"] - polynomial), dash, color=color)
        left.set(xlabel=r"scale $\varepsilon$", ylabel="loss", xlim=(0, 1))
        right.set(xlabel=r"scale $\varepsilon$", ylabel="|exact − polynomial|", xscale="log", yscale="log")
        left.legend()
    return figure


def content(records: list[dict]) -> dict:
    """What the script needs of the records."""
    first = records[0]
    return {
        "grid": {name: first["grid"][name] for name in ("eps", *START)},
        "start": START,
        "moments": first["moments"],
        "records": [
            {"title": title(record), **{name: record[name] for name in ("coefficients", "excess", "stderr")}}
            for record in records
        ],
    }


def figure(records: list[dict]) -> str:
    """HTML of the interactive figure.

    Args:
        records: the records of the study `explore`.
    """
    signs = zip(("α", "σ_add", "σ_mult"), START.values(), strict=True)
    laws = ", ".join(f"{sign} = {value:g}" for sign, value in signs)
    text = f"Exact NFM loss and its polynomials of order 1 to 3 against ε, and what they leave; {laws}"
    return embed.widget("explore", embed.small_png(draw(records[0], **START)), text, content(records))
