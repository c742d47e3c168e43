"""Notebooks that the book offers: plain Markdown, cells that need nothing of the book's tools."""

import importlib.util
from pathlib import Path

import nbformat
import pytest

PATH = Path(__file__).resolve().parents[2] / "book" / "_ext" / "notebooks.py"
SPEC = importlib.util.spec_from_file_location("book_notebooks", PATH)
NOTEBOOKS = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(NOTEBOOKS)


@pytest.mark.parametrize(
    ("myst", "markdown"),
    [
        ("{glue:text}`n` of {glue:text}`gone`", "7 of `gone`"),
        ("see {doc}`page` and {doc}`there <page>`", "see “Title” and “there”"),
        ("by {eq}`eq-sum` {cite}`a,b` {prf:ref}`thm-x`", "by (sum) [a,b] `thm-x`"),
        ("$$\nx\n$$ (eq-sum)", "$$\nx\n\\tag{sum}\n$$"),
        ("```{math}\n:label: eq-sum\n\nx\n```", "$$\nx\n\\tag{sum}\n$$"),
        (
            "````{prf:theorem} Name\n:label: thm-x\n\n$$\ny\n$$ (eq-y)\n````",
            "**Theorem (Name).** `thm-x`\n\n$$\ny\n\\tag{y}\n$$",
        ),
        ("````{prf:proof}\nIt is {eq}`eq-y`.\n````", "**Proof.**\n\nIt is (y)."),
        ("```python\nx = 1\n```", "```python\nx = 1\n```"),
        ("(here)=\n# Heading", "# Heading"),
    ],
    ids=["glue", "doc", "references", "dollars", "math", "theorem", "proof", "code", "target"],
)  # fmt: skip
def test_myst_becomes_plain_markdown(myst, markdown):
    assert NOTEBOOKS.plain(myst, {"n": "7"}, {"page": "Title"}) == markdown


def test_cells_need_no_tool_of_the_book_and_carry_no_output(capsys):
    code = nbformat.v4.new_code_cell("import math\nfrom myst_nb import glue\nglue('n', math.pi > 3, display=False)")
    code.outputs = [nbformat.v4.new_output("stream", text="True")]
    made = NOTEBOOKS.portable(nbformat.v4.new_notebook(cells=[code]), {}, {}, "Book")
    nbformat.validate(made)
    assert "Book" in made.cells[0].source
    assert made.cells[1].outputs == []
    assert "myst_nb" not in made.cells[1].source
    exec(made.cells[1].source, {})
    assert capsys.readouterr().out == "n: True\n"
