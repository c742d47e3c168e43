"""The book's sources fit the library and each other, and the scripts that build and check it see what they must."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest
import yaml

import nfm_theory as nt

BOOK = Path(__file__).resolve().parents[2] / "book"
LIBRARY = Path(nt.__file__).resolve().parent
LABEL = re.compile(r"^(?::label:\s*|\$\$\s*\()(eq-[a-z0-9-]+)\)?\s*$", re.MULTILINE)


def script(stem: str):
    """A script of the book as a module."""
    spec = importlib.util.spec_from_file_location(f"book_{stem}", BOOK / f"{stem}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CHECK_HTML, BUILD = script("check_html"), script("build")
PAGES = sorted(BOOK.glob("*.md"))


def code(page: Path) -> str:
    """The cells of a page as one Python program."""
    cells = re.findall(r"```\{code-cell\}[^\n]*\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line for line in "\n".join(cells).splitlines() if not re.match(r"\s*[%!:]|---$", line)]
    return "\n".join(lines)


def dotted(node: ast.AST) -> list[str] | None:
    """`a.b.c` as its parts, `None` for anything else."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute) and (rest := dotted(node.value)):
        return [*rest, node.attr]
    return None


def missing(parts: list[str]) -> str | None:
    """The first part of `nt.…` that does not exist, as far as modules and classes go."""
    here = nt
    for part in parts[1:]:
        if not (isinstance(here, type) or hasattr(here, "__path__") or type(here).__name__ == "module"):
            return None
        if not hasattr(here, part):
            return ".".join(parts)
        here = getattr(here, part)
    return None


def test_table_of_contents_lists_every_page_once():
    listed = CHECK_HTML.toc_pages(yaml.safe_load((BOOK / "_toc.yml").read_text(encoding="utf-8")))
    assert len(set(listed)) == len(listed)
    assert set(listed) == {page.stem for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_names_used_by_a_page_exist(page):
    wrong = {missing(p) for node in ast.walk(ast.parse(code(page))) if (p := dotted(node)) and p[0] == "nt"}
    prose = re.findall(r"`(nt(?:\.\w+)+)", page.read_text(encoding="utf-8"))
    wrong |= {missing(name.split(".")) for name in prose}
    assert wrong <= {None}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_citations_are_in_the_bibliography(page):
    known = set(re.findall(r"^@\w+\{([^,]+),", (BOOK / "references.bib").read_text(encoding="utf-8"), re.MULTILINE))
    cited = re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", page.read_text(encoding="utf-8"))
    assert {key.strip() for keys in cited for key in keys.split(",")} <= known


def test_equations_named_in_docstrings_stand_in_the_book():
    labels = [label for page in PAGES for label in LABEL.findall(page.read_text(encoding="utf-8"))]
    assert sorted(set(labels)) == sorted(labels)
    text = "\n".join(path.read_text(encoding="utf-8") for path in LIBRARY.rglob("*.py"))
    named = {label for group in re.findall(r"book: ((?:eq-[a-z0-9-]+(?:, )?)+)", text) for label in group.split(", ")}
    assert named - {""} <= set(labels)


def test_cache_key_follows_sources_and_results(tmp_path, monkeypatch):
    monkeypatch.setattr(BUILD, "ROOT", tmp_path)
    keys = [BUILD.cache_key()]
    for path, text in [
        ("nfm_theory/a.py", "x = 1\n"),
        ("nfm_theory/a.py", "x = 2\n"),
        ("nfm_theory/b.py", "x = 2\n"),
        ("experiments/results/digits.json", "{}"),
    ]:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
        keys.append(BUILD.cache_key())
    assert len(set(keys)) == len(keys)
    (tmp_path / "nfm_theory" / "notes.txt").write_text("not read by any cell")
    assert BUILD.cache_key() == keys[-1]


@pytest.mark.parametrize(
    "name", ["nfm_theory/setting/law.py", "experiments/published/nfm_table1.csv", "figures/style.py"]
)
def test_cache_key_follows_what_the_cells_read(name, tmp_path, monkeypatch):
    monkeypatch.setattr(BUILD, "ROOT", tmp_path)
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    path.write_bytes((BOOK.parent / name).read_bytes())
    before = BUILD.cache_key()
    path.write_bytes(path.read_bytes() + b"\n")
    assert BUILD.cache_key() != before


@pytest.mark.parametrize("name", ["torch", "numpy", "opencv-python-headless", "Pillow", "mpmath", "typing_extensions"])
def test_cache_key_follows_every_package(name, tmp_path, monkeypatch):
    monkeypatch.setattr(BUILD, "ROOT", tmp_path)
    before, version = BUILD.cache_key(), BUILD.metadata.version
    found = {other.lower() for other in BUILD.installed()}
    assert name.lower() in found
    monkeypatch.setattr(BUILD.metadata, "version", lambda n: "0" if n.lower() == name.lower() else version(n))
    assert BUILD.cache_key() != before


def test_build_environment_keeps_figures(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    assert "MPLBACKEND" not in BUILD.environment()


def test_dollars_of_code_are_no_formulas():
    code_only = "Set `$NFM_DATA`.\n\n```sh\necho $HOME\n```\n\n```{code-cell} ipython3\nx = '$y$'\n```\n"
    assert "$" not in CHECK_HTML.prose(code_only)
    for text in ("so $x$ is", "```{math}\n$x$\n```", "````{prf:theorem}\n$$\nx\n$$\n````"):
        assert "$" in CHECK_HTML.prose(code_only + text + "\n" + code_only)


END = "## Takeaway\n\nOne.\n\n## Try it\n\n```{code-cell} ipython3\nx = 1\n```\n"
GOOD = """<html><head><link rel="stylesheet" href="_static/a.css"></head><body id="top">
<a href="p.html">p</a><a href="intro.html">i</a><span class="math">x</span>
<img src="_images/f.png"><a href="https://example.org">elsewhere</a></body></html>"""


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ((), None),
        (("_static/a.css", "https://cdn.example.org/a.css"), "loads https://cdn"),
        (("_static/a.css", "_static/b.css"), "does not exist"),
        (("</head>", "<script src='//cdn.example.org/x.js'></script></head>"), "loads //cdn"),
        (("</head>", "<script>const u = 'https://cdn.example.org/x.js'</script></head>"), "x.js"),
        (("</head>", "<style>@import 'https://cdn.example.org/x.css';</style></head>"), "x.css"),
        (('<img src="_images/f.png">', ""), "no figure"),
        (('class="math"', ""), "no formula"),
        (("</body>", "<p>Traceback (most recent call last)</p></body>"), "Traceback"),
        (("</body>", '<a href="gone.html">x</a></body>'), "gone.html"),
        (("</body>", '<a href="#gone">x</a></body>'), "no such place"),
        (None, "not built"),
    ],
    ids=lambda value: str(value)[:40] if not isinstance(value, tuple) else None,
)
def test_check_html_sees_faults(tmp_path, monkeypatch, change, fault):
    html = tmp_path / "html"
    for folder in ("_static/mathjax", "_images"):
        (html / folder).mkdir(parents=True)
    for file in ("_static/a.css", "_images/f.png", "searchindex.js", "_static/mathjax/tex-chtml.js"):
        (html / file).touch()
    (tmp_path / "_toc.yml").write_text("root: intro\nparts:\n  - caption: The theory\n    chapters:\n      - file: p\n")
    (tmp_path / "intro.md").write_text("# I")
    (tmp_path / "p.md").write_text(f"# P $x$\nimport matplotlib\n\n{END}")
    for page in ("index", "intro"):
        (html / f"{page}.html").write_text(GOOD)
    if change is not None:
        (html / "p.html").write_text(GOOD.replace(*change) if change else GOOD)
    monkeypatch.setattr(CHECK_HTML, "BOOK", tmp_path)
    monkeypatch.setattr(CHECK_HTML, "HTML", html)
    monkeypatch.setattr(CHECK_HTML, "EXECUTED", tmp_path)
    faults = CHECK_HTML.check()
    if fault is None:
        assert not faults
    else:
        assert any(fault in line for line in faults), faults


# Rules for the pages ----------------------------------------------------------------------------------------------

#: Characters of a line of code that are seen at once, words of the book without its reference, columns of a table.
WIDTH, WORDS, COLUMNS = 72, 30_000, 5
CONTENTS = yaml.safe_load((BOOK / "_toc.yml").read_text(encoding="utf-8"))
REFERENCE = {
    name for part in CONTENTS["parts"] if part["caption"] == "Reference" for name in CHECK_HTML.toc_pages(part)
}  # fmt: skip
FENCE = re.compile(r"^(?P<fence>`{3,})(?P<kind>[^\n`]*)\n(?P<body>.*?)^(?P=fence)[ ]*$", re.DOTALL | re.MULTILINE)


def shown_code(page):
    """The lines of code that a page shows; cells whose input is hidden are not among them."""
    found = FENCE.finditer(page.read_text(encoding="utf-8"))
    bodies = [m["body"] for m in found if "code-cell" in m["kind"] or re.fullmatch(r"\w*", m["kind"])]
    return [line for body in bodies if "remove-" not in body.split("\n\n")[0] for line in body.splitlines()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_and_tables_fit_the_column(page):
    assert [line for line in shown_code(page) if len(line) > WIDTH and "http" not in line] == []
    rows = re.findall(r"^\|.*\|$", page.read_text(encoding="utf-8"), re.MULTILINE)
    escaped = [re.sub(r"`[^`]*`|\\\\\||\\\|", "", row) for row in rows]
    assert [row for row, text in zip(rows, escaped, strict=True) if text.count("|") > COLUMNS + 1] == []


def test_the_book_is_short_enough_to_be_read():
    texts = [page.read_text(encoding="utf-8") for page in PAGES if page.stem not in REFERENCE]
    prose = [re.sub(r"^```.*?^```$|\A---.*?^---$", "", text, flags=re.DOTALL | re.MULTILINE) for text in texts]
    assert sum(len(text.split()) for text in prose) <= WORDS


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        (END, None),
        (END.replace("Takeaway", "Summary"), "no section Takeaway"),
        (END.replace("Try it", "Trial"), "no section Try it"),
        (END.replace("x = 1\n", "x = 1\n" * 9), "no cell of at most 8 lines"),
        (END.replace("{code-cell} ipython3", "python"), "no cell of at most 8 lines"),
        (END.replace("x = 1", ":tags: [remove-input]\n\nx = 1"), "no cell of at most 8 lines"),
    ],
)
def test_a_chapter_ends_with_a_takeaway_and_something_to_try(source, fault):
    faults = CHECK_HTML.chapter_faults(f"# Chapter\n\n{source}\n## More\n")
    assert [fault in line for line in faults] == ([] if fault is None else [True])


def test_chapters_stand_between_the_overview_and_the_reference():
    parts = [("Overview", "a"), ("The theory", "b"), ("Reference", "c")]
    contents = {"root": "r", "parts": [{"caption": one, "chapters": [{"file": page}]} for one, page in parts]}
    assert CHECK_HTML.chapters(contents) == ["b"]


def test_one_fact_has_one_value():
    same = {"a": {"radius": "0.39"}, "b": {"radius": "0.39", "other": "1"}}
    assert CHECK_HTML.facts_with_two_values(same) == []
    (fault,) = CHECK_HTML.facts_with_two_values(same | {"c": {"radius": "0.34"}})
    assert fault == "radius: '0.39' on a, b, but '0.34' on c"
