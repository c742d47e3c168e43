"""The report as one page of HTML that needs no other file, for a wide screen and a phone, in light and dark."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from ..setting.results import SECOND_ORDER, STDERRS
from .plots import PLOTS, draw, plot_added, plot_radii
from .words import MEANINGS, PARAGRAPHS, TITLES, heading, number, overview, percent

if TYPE_CHECKING:
    from .report import LayerReport, NetworkReport

_STYLE = """
.nfm-report { --line: #d0d4da; --soft: #f3f5f8; --ink: #1c2733; --holds: #00795a; --refuted: #b3400a; color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 0 auto; }
.nfm-report h1 { font-size: 1.5rem; } .nfm-report h2 { font-size: 1.25rem; margin-top: 2.5rem;
  border-bottom: 1px solid var(--line); } .nfm-report h3 { font-size: 1.05rem; margin: 0 0 .5rem; }
.nfm-report p { margin: .5rem 0; } .nfm-report .facts { font-size: .9rem; opacity: .8; }
.nfm-report .parts { display: grid; gap: 1.25rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); }
.nfm-report .part { background: var(--soft); border-radius: .5rem; padding: 1rem; min-width: 0; }
.nfm-report svg { width: 100%; height: auto; max-width: 30rem; display: block; }
.nfm-report .scroll { overflow-x: auto; }
.nfm-report table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; margin: .5rem 0; }
.nfm-report th, .nfm-report td { text-align: left; padding: .2rem .7rem .2rem 0; border-bottom: 1px solid var(--line);
  color: inherit; background: none; white-space: nowrap; }
.nfm-report .holds, .nfm-report .certified { color: var(--holds); font-weight: 600; }
.nfm-report .refuted { color: var(--refuted); font-weight: 600; } .nfm-report a { color: inherit; }
.nfm-report pre { white-space: pre-wrap; font-size: .8rem; }
@media (prefers-color-scheme: dark) { .nfm-report { --line: #3b4450; --soft: #1d252e; --ink: #dbe2ea; --holds: #4ecfa4;
  --refuted: #ff9a66; } }
"""
_PAGE_STYLE = """
body { margin: 0; padding: 1rem; background: #fff; }
@media (prefers-color-scheme: dark) { body { background: #12181f; } }
"""


def whole_page(found: NetworkReport) -> str:
    """The report as a document.

    Args:
        found: the report.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(found.title or 'Noisy Feature Mixup on a network')}</title>\n"
        f"<style>{_PAGE_STYLE}</style>\n</head>\n<body>\n{fragment(found)}\n</body>\n</html>\n"
    )


def fragment(found: NetworkReport) -> str:
    """The report as a part of another page, with its own style.

    Args:
        found: the report.
    """
    plots = importlib.util.find_spec("matplotlib") is not None
    parts = [
        f"<style>{_STYLE}</style>",
        f"<h1>{escape(found.title or 'Noisy Feature Mixup on a network')}</h1>",
        f'<p class="facts">{escape(heading(found))}</p>',
    ]
    if found.interrupted:
        parts.append("<p><b>The report was stopped before its end.</b> It shows what is known so far.</p>")
    if not plots:
        parts.append("<p>There are no plots, because matplotlib is not installed: pip install matplotlib</p>")
    parts += [f"<p>{escape(sentence)}</p>" for sentence in overview(found)]
    parts.append(_summary(found))
    if plots and len(found.layers) > 1:
        wide = [
            _figure(lambda ax: plot_added(found, ax), "What NFM adds at every layer, term by term.", "all-added")
            if any(one.terms for one in found.layers) else "",
            _figure(lambda ax: plot_radii(found, ax), "Error of the second order at every layer.", "all-reach")
            if any(one.reach for one in found.layers) else "",
        ]  # fmt: skip
        parts.append(
            '<div class="parts">' + "".join(f'<div class="part">{svg}</div>' for svg in wide if svg) + "</div>"
        )
    for place, one in enumerate(found.layers):
        parts.append(f'<h2 id="layer-{place}">{escape(one.title[0].upper() + one.title[1:])}</h2>')
        parts.append(f'<p class="facts">Features of one sample: {" × ".join(map(str, one.features)) or "one"}</p>')
        parts.append('<div class="parts">')
        parts += [_part(one, part, f"l{place}", plots) for part in TITLES]
        parts.append("</div>")
    parts.append(
        f"<details><summary>The plan that was made before the start</summary><pre>{escape(str(found.plan))}</pre>"
    )
    return '<div class="nfm-report">' + "\n".join([*parts, "</details>"]) + "</div>"


def _figure(plot: Callable[[Any], object], words: str, prefix: str) -> str:
    return draw(plot, escape(words), prefix)


def _part(one: LayerReport, part: str, prefix: str, plots: bool) -> str:
    """The heading, the plot, the table and the paragraph of one part."""
    plot, words = PLOTS[part]
    known = getattr(one, part) is not None
    svg = _figure(lambda ax: plot(one, ax), words, f"{prefix}-{part}") if known and plots else ""
    rows = _TABLES[part](one) if known and part in _TABLES else ""
    return f'<div class="part"><h3>{TITLES[part]}</h3>{svg}<p>{escape(PARAGRAPHS[part](one))}</p>{rows}</div>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table. Verdicts among its cells are colored.

    Args:
        head: titles of the columns.
        rows: cells, as text.
    """

    def cell(text: str) -> str:
        mark = f' class="{text}"' if text in ("holds", "certified", "refuted") else ""
        return f"<td{mark}>{escape(text)}</td>"

    body = "".join("<tr>" + "".join(map(cell, row)) + "</tr>" for row in rows)
    title = "".join(f"<th>{escape(text)}</th>" for text in head)
    return f'<div class="scroll"><table><thead><tr>{title}</tr></thead><tbody>{body}</tbody></table></div>'


def _summary(found: NetworkReport) -> str:
    """A row for each layer."""
    rows = []
    for one in found.layers:
        reach = None if one.reach is None else one.reach.radius[2]
        largest = max(one.shares, key=lambda name: one.shares[name], default="")
        added = "" if one.added is None else f"{number(one.added[0])} ± {number(one.added[1])}"
        rows.append((
            one.layer or "input", "" if one.predicted is None else number(one.predicted), added,
            f"{largest}, {percent(one.shares[largest])}" if largest else "",
            "" if reach is None else "ε > 1" if reach == float("inf") else f"ε = {number(reach)}",
            "" if one.margins is None else number(float(one.margins.spectral.double().median())),
            "" if one.bound is None else one.bound.verdict, "" if one.verdict is None else one.verdict.verdict,
        ))  # fmt: skip
    head = (
        "layer", "adds, 2nd order", "adds, measured", "largest term", "within 10 % to", "Jacobian, median", "bound",
        "expansion",
    )  # fmt: skip
    return table(head, rows)


def _terms_table(one: LayerReport) -> str:
    assert one.terms is not None
    rows = [
        (
            name, MEANINGS[name], f"{float(e):.4g}",
            "exact" if not float(e.stderr) else number(STDERRS * float(e.stderr)),
            percent(one.shares[name]) if name in one.shares else "",
        )
        for name, e in one.terms.estimates.items()
        if name in ("R1", *SECOND_ORDER)
    ]  # fmt: skip
    return table(("term", "what it measures", "value", "error", "share"), rows)


def _reach_table(one: LayerReport) -> str:
    assert one.reach is not None
    curve = one.reach
    rows = []
    for order in curve.polynomials:
        low, high = curve.radius_range(order)
        ends = [("more than 1" if end == float("inf") else number(end)) for end in (curve.radius[order], low, high)]
        rows.append((str(order), ends[0], f"{ends[1]} to {ends[2]}", percent(curve.relative_error(order)[-1])))
    return table(("order", f"within {percent(curve.tolerance)} up to ε", "by sampling", "error at ε = 1"), rows)


def _attacks_table(one: LayerReport) -> str:
    assert one.attacks is not None
    a = one.attacks
    proved = ["none"] * len(a.radii) if a.certified is None else [str(count) for count in a.certified]
    rows = [(number(r), proof, str(kept)) for r, proof, kept in zip(a.radii, proved, a.attacked, strict=True)]
    return table(("radius", "proved to stay", "not changed by the attack"), rows)


def _bound_table(one: LayerReport) -> str:
    assert one.bound is not None
    rows = [
        (a.name, f"{a.value:.3g}", "holds" if a.holds else "fails" if a.needed else "fails, not needed", a.statement)
        for a in one.bound.assumptions
    ]
    return table(("assumption", "measured", "", "what is measured"), rows)


def _verdict_table(one: LayerReport) -> str:
    assert one.verdict is not None
    rows = [
        (w.term, f"{w.claimed:.5g}", f"{w.measured:.5g}", f"{w.error:.1g}")
        for w in one.verdict.evidence
        if not w.term.startswith("coefficient")
    ]
    return table(("term", "formula", "values", "error"), rows)


_TABLES = {
    "terms": _terms_table,
    "reach": _reach_table,
    "attacks": _attacks_table,
    "bound": _bound_table,
    "verdict": _verdict_table,
}
