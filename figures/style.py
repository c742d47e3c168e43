"""One style for every figure.

A figure is a white panel with dark ink, on a light and on a dark page alike. The colors are those of Okabe and Ito that
can be told from white and from each other with any color vision; text is never in one of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

#: Where `python -m figures` writes.
OUT = Path(__file__).parent / "out"
INK = "#333333"
BLUE, ORANGE, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
CYCLE = (BLUE, ORANGE, GREEN, PINK)
MARKERS = ("o", "s", "^", "D")

#: How schemes and layers are called in figures.
SCHEME_TITLES = {"mixup": "Mixup", "noise": "noise only", "nfm": "NFM", "nfm_released": "NFM, released noise"}
MODEL_TITLES = {"mlp": "MLP", "small_cnn": "CNN"}

_PARAMETERS = {
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.labelcolor": INK,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 9,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.18,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.6,
    "svg.hashsalt": "nfm_theory",
    "svg.fonttype": "path",
}


@contextmanager
def style() -> Iterator[None]:
    """The style, for the block only."""
    with matplotlib.rc_context(_PARAMETERS):
        yield


def save(figure: Figure, name: str, out: Path) -> list[Path]:
    """Write `name.svg` and `name.png`, the same bytes for the same data."""
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for suffix, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
        path = out / f"{name}.{suffix}"
        with matplotlib.rc_context({"svg.hashsalt": "nfm_theory"}):
            figure.savefig(path, dpi=160, metadata=metadata)
        written.append(path)
    return written


def layer_kind(record: dict) -> str:
    """Whether a record is about the input or a hidden layer."""
    return "hidden layer" if record["layer"] else "input"


def panels(records: list[dict]) -> tuple[list[str], list[str]]:
    """Schemes (columns) and kinds of layer (rows) that occur, in a fixed order."""
    schemes = {r["scheme"] for r in records}
    kinds = {layer_kind(r) for r in records}
    unknown = schemes - SCHEME_TITLES.keys()
    if unknown:
        raise ValueError(f"scheme: expected {list(SCHEME_TITLES)}, got {sorted(unknown)}.")
    return [s for s in SCHEME_TITLES if s in schemes], [k for k in ("input", "hidden layer") if k in kinds]


def grid(rows: list[str], columns: list[str], **options) -> tuple[Figure, dict]:
    """Small multiples, and the axes by (row, column); columns are titled, rows named at their left."""
    # Figures are made without pyplot: no global state, and nothing to close.
    width, height = 0.9 + 2.35 * max(len(columns), 2), 1.0 + 2.25 * len(rows)
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(len(rows), len(columns), squeeze=False, **options)
    for ax, column in zip(axes[0], columns, strict=True):
        ax.set_title(SCHEME_TITLES[column])
    return figure, {(r, c): axes[i, j] for i, r in enumerate(rows) for j, c in enumerate(columns)}
