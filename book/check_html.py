"""Look at the built book: `python book/check_html.py`. Exit status 1 and one line per fault if a page is not right.

Checked: a page for every entry of the table of contents, linked from the first page; no traceback; no script, style,
image or font that comes from elsewhere or is missing on disk; links between pages; the figures that the cells of a page
drew; mathematics and search; that each chapter ends with what a reader takes away and what he may try, in a cell that
was executed; that a value which several pages state is the same on all of them.
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent / "_ext"))
from notebooks import glued

BOOK = Path(__file__).resolve().parent
HTML = BOOK / "_build" / "html"
EXECUTED = BOOK / "_build" / "jupyter_execute"

# Pages that show nothing without a figure; any other page must hold one if its cells import matplotlib.
WITH_FIGURES = ("expansion", "regularizers")
#: Parts of the table of contents whose pages are no chapters.
NO_CHAPTERS = ("Overview", "Use it", "Reference")
TRY_LINES = 8
TROUBLE = ("Traceback (most recent call last)", "MissingReference", "system-message", "$$", "&lt;Figure size")
REMOTE = re.compile(r"^(https?:)?//", re.IGNORECASE)
STYLE_LOADS = re.compile(r"""(?:@import\s+|url\(\s*)["']?((?:https?:)?//[^"')\s]+)""", re.IGNORECASE)
SCRIPT_LOADS = re.compile(r"""["'](?:https?:)?//[^"']+\.(?:m?js|css|woff2?)\b[^"']*["']""", re.IGNORECASE)


class Page(HTMLParser):
    """What a page loads, shows and links to."""

    def __init__(self, path: Path):
        super().__init__()
        self.path = path
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.figures = 0
        self.formulas = 0
        self.inline: list[str] = []  # text of <script> and <style>
        self._inside = ""
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag, attrs):
        attributes = {name: value or "" for name, value in attrs}
        self._inside = tag if tag in ("script", "style") else ""
        self.ids.add(attributes.get("id", ""))
        if tag == "a" and "href" in attributes:
            self.links.append(attributes["href"])
        if tag == "link" and {"stylesheet", "preload", "icon"} & set(attributes.get("rel", "").split()):
            self.loads.append(attributes.get("href", ""))
        if tag in ("script", "img", "iframe", "source", "video", "audio", "embed"):
            self.loads.append(attributes.get("src", ""))
        if tag == "object":
            self.loads.append(attributes.get("data", ""))
        if tag == "img" and ("_images/" in attributes.get("src", "") or attributes.get("src", "").startswith("data:")):
            self.figures += 1
        if "math" in attributes.get("class", "").split():
            self.formulas += 1

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside:
            self.inline.append(data)


def toc_pages(node) -> list[str]:
    """Every page that a table of contents names, in its order."""
    if isinstance(node, list):
        return [page for item in node for page in toc_pages(item)]
    if not isinstance(node, dict):
        return []
    here = [node[key] for key in ("root", "file") if key in node]
    return here + [page for key in ("parts", "chapters", "sections") for page in toc_pages(node.get(key))]


def chapters(toc: dict) -> list[str]:
    """The pages that are chapters: those of the parts between the overview and the reference."""
    return [page for part in toc["parts"] if part["caption"] not in NO_CHAPTERS for page in toc_pages(part)]


def section(source: str, title: str) -> str | None:
    """The text of a section with this title, `None` without one."""
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", source, re.DOTALL | re.MULTILINE)
    return found and found[1]


def chapter_faults(source: str) -> list[str]:
    """What the end of a chapter lacks."""
    faults = [] if section(source, "Takeaway") else ["has no section Takeaway"]
    trial = section(source, "Try it")
    if trial is None:
        return [*faults, "has no section Try it"]
    cells = re.findall(r"^```\{code-cell\}[^\n]*\n(.*?)^```$", trial, re.DOTALL | re.MULTILINE)
    lines = [[line for line in cell.splitlines() if line.strip()] for cell in cells if "remove-" not in cell]
    if not lines or min(map(len, lines)) > TRY_LINES:
        faults.append(f"its section Try it has no cell of at most {TRY_LINES} lines")
    return faults


def facts_with_two_values(glued: dict[str, dict[str, str]]) -> list[str]:
    """Faults for values that differ between pages.

    Args:
        glued: for each page what its cells put into its text, by name.
    """
    values: dict[str, dict[str, list[str]]] = {}
    for page, found in glued.items():
        for name, value in found.items():
            values.setdefault(name, {}).setdefault(value, []).append(page)
    return [
        f"{name}: " + ", but ".join(f"{value!r} on {', '.join(pages)}" for value, pages in found.items())
        for name, found in values.items() if len(found) > 1
    ]  # fmt: skip


def page_faults(page: Page, source: str) -> list[str]:
    """Faults of one page of the table of contents."""
    faults = [f"holds {word!r}" for word in TROUBLE if word in visible(page.text)]
    drawn = "matplotlib" in source or ".plot(" in source
    if page.figures == 0 and (page.path.stem in WITH_FIGURES or drawn):
        faults.append("holds no figure (was MPLBACKEND set?)")
    if page.formulas == 0 and "$" in prose(source):
        faults.append("holds no formula")
    return faults


def prose(source: str) -> str:
    """A page's source without code, in which a dollar begins the name of a variable and no formula."""
    source = re.sub(r"^(```+)(?:\{code-cell\}.*?|\w+)\n.*?^\1$", "", source, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]+`", "", source)


def visible(text: str) -> str:
    """The page without scripts and without the source of its cells, which may quote anything."""
    text = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    return re.sub(r'<div class="cell_input.*?</pre>', "", text, flags=re.DOTALL)


def load_faults(page: Page) -> list[str]:
    """What the page would load from elsewhere, or from a file that is not there."""
    faults = []
    for url in page.loads:
        if not url or url.startswith("data:"):
            continue
        if REMOTE.match(url):
            faults.append(f"loads {url}")
        elif not (page.path.parent / unquote(urlsplit(url).path)).is_file():
            faults.append(f"loads {url}, which does not exist")
    for text in page.inline:
        faults += [f"loads {url}" for url in STYLE_LOADS.findall(text) + SCRIPT_LOADS.findall(text)]
    return faults


def link_faults(pages: dict[str, Page]) -> list[str]:
    """Links between pages that lead nowhere."""
    faults = []
    for name, page in pages.items():
        for link in page.links:
            target = urlsplit(link)
            if target.scheme or target.netloc or not (target.path or target.fragment):
                continue
            path = (page.path.parent / unquote(target.path)).resolve() if target.path else page.path
            if not path.exists():
                faults.append(f"{name}.html: link to {link}, which does not exist")
            other = pages.get(path.stem)
            if other and other.path == path and target.fragment and unquote(target.fragment) not in other.ids:
                faults.append(f"{name}.html: link to {link}, which has no such place")
    return faults


def check() -> list[str]:
    """All faults, one line each."""
    contents = yaml.safe_load((BOOK / "_toc.yml").read_text(encoding="utf-8"))
    toc, in_chapters = toc_pages(contents), chapters(contents)
    faults = [f"{name}.html: not built" for name in toc if not (HTML / f"{name}.html").is_file()]
    if not (HTML / "index.html").is_file() or faults:
        return [*faults, *([] if (HTML / "index.html").is_file() else ["index.html: not built"])]
    pages = {path.stem: Page(path) for path in sorted(HTML.glob("*.html"))}
    for name in toc:
        source = (BOOK / f"{name}.md").read_text(encoding="utf-8")
        found = page_faults(pages[name], source) + (chapter_faults(source) if name in in_chapters else [])
        faults += [f"{name}.html: {fault}" for fault in found]
    faults += facts_with_two_values({name: glued(EXECUTED / f"{name}.glue.json") for name in toc})
    faults += [f"{name}.html: {fault}" for name, page in pages.items() for fault in load_faults(page)]
    faults += link_faults(pages)
    reachable = {urlsplit(link).path for link in pages[toc[0]].links} | {f"{toc[0]}.html", "", "#"}
    faults += [f"{name}.html: not linked from {toc[0]}.html" for name in toc if f"{name}.html" not in reachable]
    for style in HTML.rglob("*.css"):
        text = style.read_text(encoding="utf-8", errors="replace")
        faults += [f"{style.relative_to(HTML)}: loads {url}" for url in STYLE_LOADS.findall(text)]
    for needed in ("searchindex.js", "_static/mathjax/tex-chtml.js"):
        if not (HTML / needed).is_file():
            faults.append(f"{needed}: not built")
    if not faults:
        print(f"{len(toc)} pages, {sum(pages[name].figures for name in toc)} figures, nothing from elsewhere")
    return faults


if __name__ == "__main__":
    found = check()
    print("\n".join(found), file=sys.stderr, end="\n" if found else "")
    sys.exit(1 if found else 0)
