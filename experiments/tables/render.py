"""Tables and claims as Markdown, LaTeX (booktabs) and HTML. The same input always gives the same text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from html import escape as escape_html

from .build import OurValue, Table
from .claims import NOT_RUN, Judgement

_LATEX = {
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{character: "\\" + character for character in "&%$#_{}"},
    **{"σ": r"$\sigma$", "γ": r"$\gamma$", "±": r"$\pm$", "∗": r"$\ast$", "<": "$<$", ">": "$>$", "|": r"\textbar{}"},
}


def escape_latex(text: str) -> str:
    """Text for LaTeX, with special characters and the Greek letters of the tables replaced."""
    return "".join(_LATEX.get(character, character) for character in text)


def escape_markdown(text: str) -> str:
    """Text for a cell of a Markdown table."""
    special = "\\`*_|<>[]"
    return "".join("\\" + character if character in special else character for character in " ".join(text.split()))


def format_ours(value: OurValue | None) -> str:
    """Our value as `mean ± standard error (number of seeds)`, or `not run`."""
    if value is None:
        return NOT_RUN
    error = "" if value.stderr is None else f" ± {value.stderr:.1f}"
    return f"{value.mean:.1f}{error} ({value.seeds})"


def _grid(table: Table) -> tuple[list[str], list[list[str]]]:
    """The label and the cells of each row: first the paper's columns, then those of each group."""
    labels = [", ".join(filter(None, (label, row.partition("/")[2]))) for row, label in table.rows]
    lines = []
    for row, _ in table.rows:
        line = [table.printed[row, c.id].text if (row, c.id) in table.printed else "" for c in table.columns]
        for group in table.groups:
            line += ["" if row == c.minus else format_ours(group.cells.get((row, c.id))) for c in table.columns]
        lines.append(line)
    return labels, lines


def _bold(table: Table) -> set[tuple[int, int]]:
    return {
        (i, j)
        for i, (row, _) in enumerate(table.rows)
        for j, column in enumerate(table.columns)
        if (row, column.id) in table.printed and table.printed[row, column.id].bold
    }


def _caption(table: Table) -> str:
    info = table.info
    seeds = {None: "number of seeds not said", 1: "one network per cell"}.get(info.seeds, f"{info.seeds} seeds")
    text = f"{info.title}: {info.columns}; percent. Printed values: {info.paper}, {info.network}, {seeds}."
    text += f" Inferred: {info.inferred}." if info.inferred else ""
    if any(column.metric.startswith("flip_rate") for column in table.columns):
        text += " Our flip rates divide by the flip probabilities of AlexNet as we recall them; they are not verified."
    return text + (" Ours: mean ± standard error (networks)." if table.groups else " Ours: not run.")


def _letters(table: Table) -> list[str]:
    return ["paper", *(chr(ord("A") + i) if i < 26 else f"Z{i}" for i in range(len(table.groups)))]


def _legend(table: Table) -> list[str]:
    return [f"{letter}: {group.heading}." for letter, group in zip(_letters(table)[1:], table.groups, strict=True)]


def table_markdown(table: Table) -> str:
    """A Markdown table. Its headings say whose column it is, a list under it says what was run."""
    labels, lines = _grid(table)
    bold = _bold(table)
    heads = [f"{column.heading} ({letter})" for letter in _letters(table) for column in table.columns]
    text = [f"### {escape_markdown(table.info.id)}", "", escape_markdown(_caption(table)), ""]
    text += [_line(["", *map(escape_markdown, heads)]), _line(["---", *["---:"] * len(heads)])]
    for i, (label, line) in enumerate(zip(labels, lines, strict=True)):
        cells = [f"**{cell}**" if (i, j) in bold else escape_markdown(cell) for j, cell in enumerate(line)]
        text.append(_line([escape_markdown(label), *cells]))
    remarks = [f"- {escape_markdown(remark)}" for remark in _legend(table)]
    return "\n".join([*text, *([""] if remarks else []), *remarks]) + "\n"


def _line(cells: Iterable[str]) -> str:
    return "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|"


def table_latex(table: Table) -> str:
    """A LaTeX `table`; it needs the packages booktabs and graphicx."""
    labels, lines = _grid(table)
    bold, n = _bold(table), len(table.columns)
    letters = _letters(table)
    spans = [rf"\multicolumn{{{n}}}{{c}}{{{escape_latex(letter)}}}" for letter in letters]
    rules = " ".join(rf"\cmidrule(lr){{{2 + i * n}-{1 + (i + 1) * n}}}" for i in range(len(letters)))
    heads = [escape_latex(column.heading) for column in table.columns] * len(letters)
    remarks = " ".join(escape_latex(remark) for remark in (_caption(table), *_legend(table)))
    text = [r"\begin{table}", r"\centering", rf"\caption{{{remarks}}}", rf"\label{{tab:{table.info.id}}}"]
    text += [r"\resizebox{\linewidth}{!}{%", rf"\begin{{tabular}}{{l{'r' * n * len(letters)}}}", r"\toprule"]
    text += [" & ".join(["", *spans]).strip() + r" \\", rules, " & ".join(["", *heads]).strip() + r" \\", r"\midrule"]
    for i, (label, line) in enumerate(zip(labels, lines, strict=True)):
        cells = [rf"\textbf{{{escape_latex(c)}}}" if (i, j) in bold else escape_latex(c) for j, c in enumerate(line)]
        text.append(" & ".join([escape_latex(label), *cells]).rstrip() + r" \\")
    return "\n".join([*text, r"\bottomrule", r"\end{tabular}}", r"\end{table}"]) + "\n"


def table_html(table: Table) -> str:
    """An HTML table with a caption, and headings with a scope."""
    labels, lines = _grid(table)
    bold, n = _bold(table), len(table.columns)
    headings = ["paper", *(group.heading for group in table.groups)]
    text = [f'<table id="{escape_html(table.info.id)}">', f"<caption>{escape_html(_caption(table))}</caption>"]
    text += ["<colgroup></colgroup>", *[f'<colgroup span="{n}"></colgroup>'] * len(headings), "<thead>"]
    spans = [f'<th scope="colgroup" colspan="{n}">{escape_html(heading)}</th>' for heading in headings]
    text.append("".join(["<tr><td></td>", *spans, "</tr>"]))
    heads = [f'<th scope="col">{escape_html(column.heading)}</th>' for column in table.columns] * len(headings)
    text += ["".join(['<tr><th scope="col">Scheme</th>', *heads, "</tr>"]), "</thead>", "<tbody>"]
    for i, (label, line) in enumerate(zip(labels, lines, strict=True)):
        cells = [escape_html(cell) for cell in line]
        cells = [f"<td><strong>{c}</strong></td>" if (i, j) in bold else f"<td>{c}</td>" for j, c in enumerate(cells)]
        text.append("".join([f'<tr><th scope="row">{escape_html(label)}</th>', *cells, "</tr>"]))
    text += ["</tbody>", "</table>"]
    return "\n".join(text) + "\n"


def _claim_rows(judgements: Sequence[Judgement]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for judgement in judgements:
        claim = judgement.claim
        outcomes = list(judgement.ours.items())
        outcomes += [("trained elsewhere", judgement.elsewhere)] if judgement.elsewhere else []
        ours = "; ".join(f"{name}: {outcome.text}" for name, outcome in outcomes)
        published = judgement.published.word
        if claim.count is not None:
            published += f" ({len(judgement.published.items)} counted)"
        rows.append([claim.statement, claim.source, published, ours or NOT_RUN])
    return ["Claim", "Source", "In print", "Ours"], rows


def claims_markdown(judgements: Sequence[Judgement]) -> str:
    """Claims as a Markdown table."""
    heads, rows = _claim_rows(judgements)
    lines = [_line(heads), _line(["---"] * len(heads))]
    return "\n".join(lines + [_line(map(escape_markdown, row)) for row in rows]) + "\n"


def claims_latex(judgements: Sequence[Judgement]) -> str:
    """Claims as a LaTeX `longtable`; it needs the packages booktabs and longtable."""
    heads, rows = _claim_rows(judgements)
    widths = "".join(rf"p{{{width}\linewidth}}" for width in (0.38, 0.18, 0.16, 0.2))
    lines = [rf"\begin{{longtable}}{{{widths}}}", r"\toprule", " & ".join(heads) + r" \\", r"\midrule", r"\endhead"]
    lines += [" & ".join(map(escape_latex, row)) + r" \\" for row in rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{longtable}"]) + "\n"


def claims_html(judgements: Sequence[Judgement]) -> str:
    """Claims as an HTML table."""
    heads, rows = _claim_rows(judgements)
    lines = ['<table id="claims">', "<caption>Published claims, in print and in ours</caption>", "<thead>"]
    lines += ["<tr>" + "".join(f'<th scope="col">{head}</th>' for head in heads) + "</tr>", "</thead>", "<tbody>"]
    for first, *rest in rows:
        cells = "".join(f"<td>{escape_html(cell)}</td>" for cell in rest)
        lines.append(f'<tr><th scope="row">{escape_html(first)}</th>{cells}</tr>')
    return "\n".join([*lines, "</tbody>", "</table>"]) + "\n"


TABLE_FORMATS: dict[str, Callable[[Table], str]] = {"md": table_markdown, "latex": table_latex, "html": table_html}
CLAIM_FORMATS: dict[str, Callable[[Sequence[Judgement]], str]] = {
    "md": claims_markdown,
    "latex": claims_latex,
    "html": claims_html,
}
