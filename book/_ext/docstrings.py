"""Docstrings of this project, Markdown with dollars for formulas, turned into the reStructuredText that autodoc reads.

| in the docstring | on the page |
|---|---|
| `$x$`, `$$ x $$` | formulas; a long one has lines, at its wide spaces and where the docstring breaks it |
| `name` | code; a link where the reference has that name |
| Markdown tables | tables |
| "book: eq-expansion" | a link to the equation |
| "theory §5" | a link to the page of that section |
| Args, Returns, Raises, Attributes, Example | field lists, by napoleon |
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

#: Pages of the book for the sections of the theory that docstrings cite.
THEORY_PAGES = {
    "5": ("the page on the adversarial bound", "bound"),
    "6": ("the page on the stability loss", "stability"),
}

#: Napoleon takes what stands before a colon for a type; ours are sentences. An empty line of markup before one says so.
SENTENCE = "\\ "

# One alternative after the other: what stands in code or in a formula is no markup.
_INLINE = re.compile(
    r"(?P<code>`[^`]+`)|(?P<math>\$[^$]+\$)|(?P<book>\bbook: (?:eq-[a-z0-9-]+(?:,\s+)?)+)"
    r"|(?P<theory>\b[Tt]heory §(?P<no>\d))"
)
_EQUATION = re.compile(r"eq-[a-z0-9-]+")
_NOTE_IN_MATH = re.compile(r"\\q?quad\s*\\text\{\((?P<note>book: [^}]*)\)\}\s*$")
#: What fits on one line of a phone, in signs, a command counting as one.
LONGEST = 100
# What may stand next to inline markup, by the recognition rules of reStructuredText
_MAY_PRECEDE, _MAY_FOLLOW = "-:/'\"<([{–—", "'\")]}>-/\\:.,;!?–—"
_ROW = re.compile(r"^\s*\|.*\|\s*$")
_RULE = re.compile(r"^\s*\|[\s:|-]+\|\s*$")

Link = Callable[[str], "str | None"]


def no_link(name: str) -> None:
    """Links nothing."""


def _escape(text: str) -> str:
    """Text without inline markup: what reStructuredText would read into it is escaped."""
    text = text.replace("\\", "\\\\").replace("|", "\\|")
    text = re.sub(r"(?m)((?:^|: ))([A-Za-z]|\d+)\.$", r"\1\2\\.", text)  # "K." alone is no item of a list
    return re.sub(r"(?<=\w)_(?!\w)", r"\\_", text)


def _code(text: str, link: Link) -> str:
    called = re.fullmatch(r"([A-Za-z_][\w.]*)(\(.*)?", text, re.DOTALL)
    target = link(called[1]) if called else None
    if target is None or "<" in text or "\n" in text:
        return f"``{text}``"
    return f":py:obj:`{text} <{target}>`"


def _role(found: re.Match, link: Link) -> str:
    if found["code"]:
        return _code(found["code"][1:-1], link)
    if found["math"]:
        return f":math:`{found['math'][1:-1].strip()}`"
    if found["theory"]:
        title, page = THEORY_PAGES[found["no"]]
        title = title.capitalize() if found["theory"][0] == "T" else title
        return f":doc:`{title} <{page}>`"
    return _EQUATION.sub(lambda label: f":eq:`{label[0]}`", found["book"])


def inline(text: str, link: Link = no_link) -> str:
    """A paragraph: code, formulas and references become roles.

    Args:
        text: Markdown.
        link: from a name in code to the full name it is documented under, or `None`.
    """
    parts, place = [], 0
    for found in _INLINE.finditer(text):
        parts.append(_escape(text[place : found.start()]))
        before, after = text[: found.start()][-1:], text[found.end() :][:1]
        glued = before and not (before.isspace() or before in _MAY_PRECEDE)
        held = after and not (after.isspace() or after in _MAY_FOLLOW) and not found["book"]
        parts.append("\\ " * bool(glued) + _role(found, link) + "\\ " * bool(held))
        place = found.end()
    return "".join([*parts, _escape(text[place:])])


def _cells(row: str) -> list[str]:
    cells = re.split(r"(?<!\\)\|", row.strip())[1:-1]
    return [cell.strip().replace("\\|", "|") for cell in cells]


def table(rows: Sequence[str], link: Link = no_link) -> list[str]:
    """A Markdown table as a `list-table`.

    Args:
        rows: its lines, of one indentation.
        link: the same as in `inline`.
    """
    indent = " " * (len(rows[0]) - len(rows[0].lstrip()))
    lines = ["", ".. list-table::", "   :header-rows: 1", ""]
    for row in rows:
        if _RULE.match(row):
            continue
        lines += [f"   {'* ' if k == 0 else '  '}- {inline(cell, link)}".rstrip() for k, cell in enumerate(_cells(row))]
    return [indent + line if line else "" for line in [*lines, ""]]


def _signs(formula: str) -> int:
    return len(re.sub(r"\\[A-Za-z]+", "x", " ".join(formula.split())))


def _split(formula: str, place: str) -> list[str]:
    """Parts between the matches of a pattern that stand in no braces."""
    parts, start = [], 0
    for found in re.finditer(place, formula):
        before = re.sub(r"\\[{}]", "", formula[: found.start()])
        if before.count("{") == before.count("}"):
            parts.append(formula[start : found.start()])
            start = found.end()
    return [*parts, formula[start:]]


def _break(formula: str) -> str:
    """A long formula in lines, as its source separates them: by a comma and wide space, or by the end of a line."""
    if _signs(formula) <= LONGEST or "\\begin" in formula or "\\left" in formula:
        return formula
    lines = []
    for part in _split(formula, r"(?<=,)\s*\\q?quad\b\s*"):
        pieces = _split(part, r"\n(?!\s*\\q?quad)") if _signs(part) > LONGEST // 2 else [part]
        lines += ["& " + pieces[0], *("& \\qquad " + piece for piece in pieces[1:])]
    if len(lines) == 1:
        return formula
    return "\n".join(["\\begin{aligned}", " \\\\\n".join(line.strip() for line in lines), "\\end{aligned}"])


def display(lines: Sequence[str]) -> list[str]:
    """A formula between double dollars as a `math` directive; its "(book: ...)" follows as a sentence.

    Args:
        lines: with the dollars.

    Raises:
        ValueError: if something stands behind the closing dollars.
    """
    indent = " " * (len(lines[0]) - len(lines[0].lstrip()))
    text = "\n".join(line.strip() for line in lines if line.strip())
    if not re.fullmatch(r"\$\$[^$]+\$\$", text):
        raise ValueError(f"expected a formula between double dollars and nothing else in these lines, got {text!r}")
    body = text[2:-2].strip()
    note = _NOTE_IN_MATH.search(body)
    body = _break(body[: note.start()].rstrip() if note else body)
    out = ["", ".. math::", "", *(f"   {line}" for line in body.splitlines()), ""]
    if note:
        out += [inline(f"({note['note']})"), ""]
    return [indent + line if line else "" for line in out]


def to_rst(lines: Sequence[str], link: Link = no_link) -> list[str]:
    """A docstring in reStructuredText, its Google sections left as they are.

    Args:
        lines: the lines of the docstring, dedented.
        link: the same as in `inline`.

    Raises:
        ValueError: for double dollars without their counterpart.
    """
    out, text, k = [], [], 0

    def flush() -> None:
        if text:
            out.extend(inline("\n".join(text), link).split("\n"))
            text.clear()

    while k < len(lines):
        stop, line = k + 1, lines[k].strip()
        if line.startswith(">>>"):
            while stop < len(lines) and lines[stop].strip():
                stop += 1
            flush()
            out.extend(lines[k:stop])
        elif line.startswith("$$"):
            while "".join(lines[k:stop]).count("$$") < 2:
                if stop == len(lines):
                    raise ValueError(f"expected $$ at the end of the formula that begins with {lines[k]!r}")
                stop += 1
            flush()
            out.extend(display(lines[k:stop]))
        elif _ROW.match(lines[k]):
            while stop < len(lines) and _ROW.match(lines[stop]):
                stop += 1
            flush()
            out.extend(table(lines[k:stop], link))
        elif line in ("Returns:", "Yields:"):
            flush()
            out.append(lines[k])
            if stop < len(lines) and lines[stop].strip():
                out.append(re.match(r"\s*", lines[stop])[0] + SENTENCE)
        elif not line:
            flush()
            out.append("")
        else:
            text.append(lines[k])
        k = stop
    flush()
    return out
