"""The plots of a report as SVG that stands inside a page and takes its color of ink from there."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..setting.results import SECOND_ORDER, STDERRS

if TYPE_CHECKING:
    from .report import LayerReport, NetworkReport

BLUE, ORANGE, GREEN, PINK, SKY, YELLOW = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
#: Colors of the terms, the same in every plot.
COLORS: dict[str, str] = dict(zip(SECOND_ORDER, (BLUE, SKY, ORANGE, YELLOW, GREEN, PINK), strict=True))
#: Size of a plot in inches; on a phone it fills the width with letters of about 10 pixels.
SIZE = (4.2, 3.1)
_PARAMETERS: Any = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "svg.hashsalt": "nfm_theory",
    "svg.fonttype": "path",
}


@contextmanager
def _style():
    """One style, whatever the user has set; with matplotlib's default colors, whose ink is black."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        with matplotlib.rc_context(_PARAMETERS):
            yield


def draw(plot: Callable[[Any], object], words: str, prefix: str) -> str:
    """A plot as SVG.

    Args:
        plot: draws into the matplotlib axes that it gets.
        words: what is seen, for readers who do not see it.
        prefix: begins all names in the SVG, which must differ within a page.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with _style():
        figure = Figure(figsize=SIZE, layout="constrained")
        FigureCanvasSVG(figure)
        plot(figure.add_subplot())
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return _inline(stream.getvalue(), words, prefix)


def _inline(svg: str, words: str, prefix: str) -> str:
    """The SVG without its prolog, with dark ink in the color of the text around it, and with names of its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"#(?:000000|333333|4c4c4c|4d4d4d)\b", "currentColor", svg)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    size = re.search(r'viewBox="[^"]+"', svg)
    view = size.group() if size else ""
    return re.sub(
        r"<svg[^>]*>",
        f'<svg role="img" aria-label="{words}" {view} fill="currentColor" '
        'xmlns:xlink="http://www.w3.org/1999/xlink" xmlns="http://www.w3.org/2000/svg">',
        svg,
        count=1,
    )


def plot_terms(one: LayerReport, ax) -> None:
    """The terms as bars, with four standard errors."""
    assert one.terms is not None
    names = [name for name in ("R1", *SECOND_ORDER) if name in one.terms.estimates]
    values = [float(one.terms[name]) for name in names]
    errors = [STDERRS * float(one.terms[name].stderr) for name in names]
    ax.barh(names, values, xerr=errors, color=[COLORS.get(name, "0.5") for name in names], ecolor="0.5")
    ax.invert_yaxis()
    ax.axvline(0, color="0.5", lw=0.8)
    ax.set(xlabel=r"part of the loss at $\varepsilon = 1$")


def plot_reach(one: LayerReport, ax) -> None:
    """The relative error of each order."""
    assert one.reach is not None
    one.reach.plot(ax)


def plot_margins(one: LayerReport, ax) -> None:
    """The score gap of every sample against the norm of its Jacobian, with lines of equal distance."""
    m = one.margins
    assert m is not None
    if m.gap is None:
        ax.hist(m.spectral.tolist(), bins=20, color=BLUE)
        ax.set(xlabel="spectral norm of the Jacobian", ylabel="samples")
        return
    gap, norm = m.gap.detach().cpu(), m.spectral.detach().cpu()
    for mask, color, label in ((gap > 0, BLUE, "right"), (gap <= 0, ORANGE, "wrong")):
        if mask.any():
            ax.scatter(norm[mask], gap[mask], s=14, color=color, label=label, alpha=0.7)
    ax.axhline(0, color="0.5", lw=0.8)
    ax.set(xlabel="spectral norm of the Jacobian", ylabel="score gap")
    ax.legend()


def plot_attacks(one: LayerReport, ax) -> None:
    """Samples that keep their class, under attack and by proof, against the radius."""
    a = one.attacks
    assert a is not None
    ax.plot(a.radii, a.attacked, "s-", color=ORANGE, ms=4, label="not changed by the attack")
    if a.certified is not None:
        ax.plot(a.radii, a.certified, "o-", color=BLUE, ms=4, label="proved")
        ax.fill_between(a.radii, a.certified, a.attacked, color="0.5", alpha=0.15, lw=0)
    ax.set(xscale="log", xlabel="radius of the ball", ylabel=f"samples of {a.samples}", ylim=(0, a.samples * 1.25))
    ax.set_xticks(a.radii, [f"{r:.2g}" for r in a.radii])
    ax.minorticks_off()
    ax.legend()


def plot_bound(one: LayerReport, ax) -> None:
    """Both sides of the bound above the loss without perturbation."""
    b = one.bound
    assert b is not None
    base = b.standard_loss
    ax.errorbar([0], [b.left - base], yerr=[b.left_error], fmt="o", color=BLUE, capsize=4)
    low, high = b.right_lower - base, b.right_upper - base
    if high < float("inf"):
        ax.bar([1], [high - low], bottom=[low], width=0.25, color=ORANGE, alpha=0.5)
        ax.plot([1], [high], "v", color=ORANGE)
    ax.plot([1], [low], "^", color=ORANGE)
    ax.set_xticks([0, 1], ["NFM loss", "attacked loss + $L_{reg}$"])
    ax.set(xlim=(-0.5, 1.5), ylabel="above the plain loss")


def plot_verdict(one: LayerReport, ax) -> None:
    """What the expansion leaves out, against ε."""
    assert one.verdict is not None
    one.verdict.plot(ax)


#: The plot of each part.
PLOTS: dict[str, tuple[Callable[..., None], str]] = {
    "terms": (plot_terms, "The terms as bars."),
    "margins": (plot_margins, "Score gaps against Jacobian norms, a point for each sample."),
    "reach": (plot_reach, "Relative error of the expansion against the scale."),
    "attacks": (plot_attacks, "Samples that keep their class against the radius of the ball."),
    "bound": (plot_bound, "Both sides of the adversarial bound."),
    "verdict": (plot_verdict, "What the expansion leaves out against the scale, with the prediction."),
}


def plot_added(found: NetworkReport, ax) -> None:
    """The second-order terms of every layer, one on the other, and what NFM adds by random draws."""
    layers = [one for one in found.layers if one.terms is not None]
    up, down = [0.0] * len(layers), [0.0] * len(layers)
    for name in ("R1", *SECOND_ORDER):
        values = [float(one.terms[name]) if one.terms and name in one.terms.estimates else 0.0 for one in layers]
        if any(values):
            start = [u if v >= 0 else d for v, u, d in zip(values, up, down, strict=True)]
            ax.bar(range(len(layers)), values, bottom=start, color=COLORS.get(name, "0.5"), width=0.6, label=name)
            up = [u + max(v, 0) for u, v in zip(up, values, strict=True)]
            down = [d + min(v, 0) for d, v in zip(down, values, strict=True)]
    for k, one in enumerate(layers):
        if one.added is not None:
            ax.errorbar([k], [one.added[0]], yerr=[one.added[1]], fmt="D", ms=5, color="black", capsize=3,
                        label="measured" if k == 0 else None)  # fmt: skip
    ax.axhline(0, color="0.5", lw=0.8)
    ax.set_xticks(range(len(layers)), [one.layer or "input" for one in layers])
    ax.set(ylabel=r"added to the loss at $\varepsilon = 1$")
    ax.legend(fontsize=8, ncols=2)


def plot_radii(found: NetworkReport, ax) -> None:
    """The relative error of the second order at every layer."""
    for one in found.layers:
        if one.reach is not None:
            ax.loglog(one.reach.eps, one.reach.relative_error(2), "o-", ms=3, label=one.layer or "input")
            tolerance = one.reach.tolerance
            ax.axhline(tolerance, color="0.5", ls=":", lw=0.8)
    ax.set(xlabel=r"scale $\varepsilon$", ylabel="relative error of the second order")
    ax.legend()
