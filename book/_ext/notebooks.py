"""Sphinx extension of the book: every page with cells as a notebook to download, which runs anywhere.

A page is written in MyST, which Jupyter shows only in part. So a notebook gets its theorems as bold headings, labels as
`\\tag`, references as names, the book's numbers where a cell glues one into the text, and no outputs: it is there to be
run. Its cells need `pip install "nfm_theory[experiments]"` and no copy of the repository.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import nbformat

NOTE = (
    '*A page of the book “{book}” as a notebook. Its cells need* `pip install "nfm_theory[experiments]" jupyter`'
    "*; numbers within the text are those of the book.*\n\n"
)
#: What the book puts into its text, a reader sees below the cell.
GLUE = '''def glue(name, value, display=False):
    """Show a value that stands in the text of the book."""
    print(f"{name}: {value}")
'''
KINDS = {"prf:proof": "Proof"}

_IMPORT_GLUE = re.compile(r"^from myst_nb import glue$", re.MULTILINE)
_BLOCK = re.compile(
    r"^(?P<fence>`{3,}|:{3,})\{(?P<kind>[\w:-]+)\}[ \t]*(?P<title>[^\n]*)\n(?P<body>.*?)^(?P=fence)[ \t]*$",
    re.DOTALL | re.MULTILINE,
)
_OPTION = re.compile(r"\A(?:\s*:(?P<name>[\w-]+):[ \t]*(?P<value>[^\n]*)\n)")
_LABELLED = re.compile(r"^\$\$\s*\n(?P<tex>.*?)^\$\$[ \t]*\((?P<label>[\w-]+)\)[ \t]*$", re.DOTALL | re.MULTILINE)
_ROLE = re.compile(r"\{(?P<role>[\w:-]+)\}`(?P<text>[^`]+)`")
_EXPLICIT = re.compile(r"\A(?P<text>.+?)\s*<(?P<target>[^<>]+)>\Z", re.DOTALL)


def _equation(tex: str, label: str | None) -> str:
    tag = f"\\tag{{{label.removeprefix('eq-')}}}\n" if label else ""
    return f"$$\n{tex.strip()}\n{tag}$$"


def _block(match: re.Match) -> str:
    """A directive as plain Markdown; what Jupyter has nothing for becomes its content under a bold title."""
    kind, title, body = match["kind"], match["title"].strip(), match["body"]
    options = {}
    while option := _OPTION.match(body):
        options[option["name"]] = option["value"].strip()
        body = body[option.end() :]
    if kind == "math":
        return _equation(body, options.get("label"))
    if kind in ("bibliography", "eval-rst", "toctree"):
        return ""
    if kind == "raw":
        return body if title == "html" else ""
    name = KINDS.get(kind, kind.split(":")[-1].capitalize())
    label = f" `{options['label']}`" if "label" in options else ""
    head = f"**{name}{f' ({title})' if title else ''}.**{label}"
    return f"{head}\n\n{_BLOCK.sub(_block, body).strip()}"


def _role(match: re.Match, values: dict[str, str], titles: dict[str, str]) -> str:
    role, text = match["role"], match["text"]
    explicit = _EXPLICIT.match(text)
    target, shown = (explicit["target"], explicit["text"]) if explicit else (text, None)
    if role == "glue:text" or role == "glue":
        return values.get(text.split(":")[0], f"`{text}`")
    if role in ("eq", "numref") and not shown:
        return f"({target.removeprefix('eq-')})"
    if role.startswith("cite"):
        return f"[{text}]"
    if role == "doc":
        return f"“{shown or titles.get(target, target)}”"
    return shown or f"`{target}`"


def plain(markdown: str, values: dict[str, str], titles: dict[str, str]) -> str:
    """MyST as the Markdown that Jupyter shows.

    Args:
        markdown: text of a cell.
        values: what the cells of the page glue into its text.
        titles: title of every page.
    """
    markdown = _BLOCK.sub(_block, markdown)
    markdown = _LABELLED.sub(lambda m: _equation(m["tex"], m["label"]), markdown)
    markdown = re.sub(r"^\((?:[\w:-]+)\)=\s*\n", "", markdown, flags=re.MULTILINE)
    return _ROLE.sub(lambda match: _role(match, values, titles), markdown)


def portable(notebook: nbformat.NotebookNode, values: dict[str, str], titles: dict[str, str], book: str):
    """A notebook of the build as one to run elsewhere: plain Markdown, no outputs, nothing of the book's tools.

    Args:
        notebook: the notebook that the build has executed.
        values: what its cells glue into the text.
        titles: title of every page.
        book: title of the book.
    """
    cells = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            made = nbformat.v4.new_code_cell(_IMPORT_GLUE.sub(lambda _: f"\n\n{GLUE}", cell.source, count=1))
        else:
            made = nbformat.v4.new_markdown_cell(plain(cell.source, values, titles))
        made.id = f"cell-{len(cells)}"  # the same file from the same page
        cells.append(made)
    cells.insert(0, nbformat.v4.new_markdown_cell(NOTE.format(book=book), id="note"))
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return nbformat.v4.new_notebook(cells=cells, metadata=kernel)


def glued(path: Path) -> dict[str, str]:
    """What a page's cells glue into its text, from the file that the build leaves.

    Args:
        path: that file; nothing is glued if there is none.
    """
    if not path.is_file():
        return {}
    outputs = json.loads(path.read_text(encoding="utf-8"))
    texts = {name: output.get("data", {}).get("text/plain") for name, output in outputs.items()}
    return {name: text.strip("'\"") for name, text in texts.items() if isinstance(text, str)}


def executed(app, page: str) -> Path:
    """Where the build leaves the executed notebook of a page."""
    return Path(app.outdir).parent / "jupyter_execute" / f"{page}.ipynb"


def _read(path: Path):
    notebook = nbformat.read(path, as_version=4) if path.is_file() else None
    return notebook if notebook and any(cell.cell_type == "code" for cell in notebook.cells) else None


def offer(app, page, template, context, doctree):
    """Tell the theme's download button of the notebook."""
    del template
    if doctree is not None and _read(executed(app, page)):
        context["ipynb_source"] = f"{page}.ipynb"


def write(app, exception):
    """Write the notebooks beside the sources of the pages."""
    if exception or app.builder.format != "html":
        return
    titles = {page: title.astext() for page, title in app.env.titles.items()}
    for page in app.env.found_docs:
        if notebook := _read(executed(app, page)):
            values = glued(executed(app, page).with_suffix(".glue.json"))
            target = Path(app.outdir) / "_sources" / f"{page}.ipynb"
            target.parent.mkdir(parents=True, exist_ok=True)
            nbformat.write(portable(notebook, values, titles, app.config.html_title or app.config.project), target)


def setup(app):
    """Join the build; the theme looks for the name of the notebook after `offer`."""
    app.connect("html-page-context", offer, priority=400)
    app.connect("build-finished", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
