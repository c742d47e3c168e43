"""Print the whole book: `python book/pdf.py`; the last line printed is the path of the PDF.

The pages are those of `book/build.py`, from the same sources and the same executed notebooks, as one document. A
browser prints it, so formulas and figures look as they do on the screen. It needs Chromium, Chrome or Edge, like
`book/check_browser.py`.
"""

import subprocess
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parent))
import build
from check_browser import NOT_RUN, PATIENCE, find_browser

ONE_PAGE = build.BUILD / "singlehtml" / "intro.html"
PDF = build.BUILD / "pdf" / "nfm_theory.pdf"
#: What is of use on a screen only.
STYLE = """
.bd-header, .bd-header-article, .bd-sidebar-primary, .bd-sidebar-secondary, .prev-next-area, .bd-footer, .headerlink,
.copybtn, .pst-back-to-top, #pst-back-to-top { display: none !important; }
.bd-main, .bd-content, .bd-article-container { max-width: none !important; }
pre, pre span { white-space: pre-wrap !important; overflow-wrap: anywhere; }
img, table, .math { break-inside: avoid; max-width: 100% !important; }
h1 { break-before: page; }
h1, h2, h3 { break-after: avoid; }
"""


def make_one_page() -> int:
    """Put all pages into one, from the notebooks that were executed; returns the exit status."""
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", str(build.BOOK)]
    command += ["--builder", "singlehtml", "--all"]
    return subprocess.run(command, env=build.environment(), stdin=subprocess.DEVNULL, check=False).returncode


def print_page(page: Path, pdf: Path) -> bool:
    """Print a page to a PDF on A4; returns `False` if there is no browser."""
    with sync_playwright() as playwright:
        program = find_browser(playwright)
        if program is None:
            return False
        browser = playwright.chromium.launch(executable_path=program)
        sheet = browser.new_page(color_scheme="light", viewport={"width": 900, "height": 1200})
        sheet.set_default_timeout(10 * PATIENCE)
        sheet.goto(page.resolve().as_uri(), wait_until="load")
        sheet.evaluate("() => window.MathJax?.startup?.promise?.then(() => null)")
        sheet.add_style_tag(content=STYLE)
        sheet.evaluate("() => document.querySelectorAll('details').forEach((one) => (one.open = true))")
        pdf.parent.mkdir(parents=True, exist_ok=True)
        margin = dict.fromkeys(("top", "bottom", "left", "right"), "16mm")
        sheet.pdf(path=pdf, format="A4", margin=margin, print_background=True, outline=True, tagged=True)
        browser.close()
    return True


def main() -> int:
    """Print the book; returns the exit status."""
    if not build.INDEX.is_file():
        print("The book is not built yet. Run `make book` first.", file=sys.stderr)
        return 2
    status = make_one_page()
    if status:
        return status
    if not print_page(ONE_PAGE, PDF):
        print(NOT_RUN.replace("check_browser.py", "pdf.py"), file=sys.stderr)
        return 2
    print(PDF, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
