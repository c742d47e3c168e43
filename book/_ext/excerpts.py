"""Sphinx extension of the book: search results with excerpts, also where the book is opened from disk.

The search page fetches each page that it found, to show where the words stand. A browser refuses that for files. So the
text of all pages is written into one script, which the search page loads and answers those requests from.
"""

from __future__ import annotations

import json
from html import escape
from html.parser import HTMLParser
from pathlib import Path

SCRIPT = "excerpts.js"
_ANSWER = """
if (location.protocol === "file:") {
  const fetchOverNetwork = window.fetch;
  window.fetch = (request) => {
    const page = decodeURI(String(request).split(/[?#]/)[0]).replace(/^.*\\/html\\/|^\\.\\//, "");
    if (!(page in pages)) return fetchOverNetwork(request);
    return Promise.resolve({ text: () => Promise.resolve(`<div role="main">${pages[page]}</div>`) });
  };
}
"""
_HIDDEN = {"script", "style", "svg", "button"}
_EMPTY = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


class _Text(HTMLParser):
    """The text of a page's content, with the elements that a search result may point to."""

    def __init__(self):
        super().__init__()
        self.parts: list[str] = []
        self.closing: list[str | None] = []  # what ends each open element, `None` for hidden ones
        self.inside = 0  # level of the content within the open elements, 0 outside

    def handle_starttag(self, tag, attrs):
        if tag in _EMPTY:
            return
        found = dict(attrs)
        hidden = tag in _HIDDEN or "headerlink" in (found.get("class") or "").split()
        named = self.inside and found.get("id") and not hidden
        if named:
            self.parts.append(f'<div id="{escape(found["id"] or "")}">')
        self.closing.append(None if hidden else "</div>" if named else "")
        if not self.inside and tag == "article":
            self.inside = len(self.closing)

    def handle_endtag(self, tag):
        if tag in _EMPTY or not self.closing:
            return
        if len(self.closing) == self.inside:
            self.inside = 0
        self.parts.append(self.closing.pop() or "")

    def handle_data(self, data):
        if self.inside and None not in self.closing:
            self.parts.append(escape(" ".join(data.split()) + " ", quote=False) if data.strip() else " ")


def content(html: str) -> str:
    """The text of a built page as HTML with nothing but text and named elements.

    Example:
        >>> content('<nav>x</nav><article class="a"><h1 id="t">One<a class="headerlink">#</a></h1> two</article>')
        '<div id="t">One </div>two '
    """
    parser = _Text()
    parser.feed(html)
    return "".join(parser.parts).replace("  ", " ")


def write(app, exception):
    """Write the script, and let the search page load it."""
    html = Path(app.outdir)
    search = html / "search.html"
    if exception or app.builder.format != "html" or not search.is_file():
        return
    names = sorted(f"{page}.html" for page in app.env.found_docs)
    pages = {name: content((html / name).read_text(encoding="utf-8")) for name in names if (html / name).is_file()}
    script = f"(() => {{\nconst pages = {json.dumps(pages)};{_ANSWER}}})();\n"
    (html / "_static" / SCRIPT).write_text(script, encoding="utf-8")
    text = search.read_text(encoding="utf-8")
    search.write_text(
        text.replace("</head>", f'<script src="_static/{SCRIPT}"></script>\n</head>', 1), encoding="utf-8"
    )


def setup(app):
    """Join the build."""
    app.connect("build-finished", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
