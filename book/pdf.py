"""Print the whole book: `python book/pdf.py`; the last line printed is the path of the PDF.

The pages are those of `book/build.py`, from the same sources and the same executed notebooks, as one document. A
browser prints it, so formulas and figures look as they do on the screen. Contents with page numbers come first. It
needs Chromium, Chrome or Edge, like `book/check_browser.py`. The exit status is 1, with a line for each fault, if
something is wider than the paper.
"""

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import yaml
from playwright.async_api import Page, async_playwright

sys.path.insert(0, str(Path(__file__).resolve().parent))
import build
from check_browser import NOT_RUN, PATIENCE, ask, find_browser, settle

ONE_PAGE = build.BUILD / "singlehtml" / "intro.html"
PDF = build.BUILD / "pdf" / "nfm_theory.pdf"
#: Size of the print against the screen, and the width of the text in pixels of the screen: A4 less the margins.
SCALE = 0.8
WIDTH = int((210 - 2 * 16) / 25.4 * 96 / SCALE)
STYLE = """
@page { size: A4; margin: 16mm; @bottom-center { content: counter(page); font: 9pt sans-serif; } }
/* What is of use on a screen only */
.bd-header, .bd-header-article, .bd-sidebar-primary, .bd-sidebar-secondary, .prev-next-area, .bd-footer, .headerlink,
.copybtn, .onlyprint, #pst-back-to-top, #claims-filter, .toggle-button { display: none !important; }
.bd-main, .bd-content, .bd-article-container, .bd-article {
  display: block !important; max-width: none !important; margin: 0 !important; padding: 0 !important;
}
div.math, div.cell_output, .pst-scrollable-table-container { overflow: visible !important; }
/* A chapter begins on a page of its own; titles, figures and short tables are not torn apart */
.bd-article > section, .toctree-wrapper > section { break-before: page; }
h1 { display: block !important; }
h1, h2, h3, h4, summary, .admonition-title { break-after: avoid; }
img, svg, tr, div.math, table:not(:has(tr:nth-child(7))) { break-inside: avoid; }
details, details table { break-inside: auto !important; }
img, svg, table { max-width: 100% !important; }
table { font-size: 0.8em; }
th, td { padding: 0.2em 0.4em !important; }
td { overflow-wrap: anywhere; }
td code, td code span.pre { overflow-wrap: normal !important; }
#contents-printed li { display: flex; justify-content: space-between; }
#contents-printed ul { padding: 0; }
"""
#: Puts the contents first: every chapter under the title of its part. Returns the places they lead to.
CONTENTS = """(parts) => {
  const make = (name, text = "") => Object.assign(document.createElement(name), { textContent: text });
  const contents = Object.assign(make("nav"), { id: "contents-printed" });
  contents.append(make("h1", document.querySelector(".bd-article h1").firstChild.textContent));
  const wrappers = [...document.querySelectorAll(".toctree-wrapper")];
  const outer = wrappers.filter((one) => !one.parentElement.closest(".toctree-wrapper"));
  const places = [];
  outer.forEach((wrapper, k) => {
    const list = make("ul");
    for (const section of wrapper.querySelectorAll("section")) {
      if (!section.parentElement.matches(".toctree-wrapper")) continue;
      const item = make("li"), page = make("span");
      const link = make("a", section.querySelector("h2, h3, h4").firstChild.textContent);
      // Sphinx names a page in front of it, where it is still on the paper of the page before
      const place = section.previousElementSibling;
      section.prepend(place);
      link.href = page.dataset.place = "#" + place.id;
      item.append(link, page);
      list.append(item);
      places.push(place.id);
    }
    contents.append(make("h2", parts[k]), list);
  });
  document.querySelector(".bd-article").prepend(contents);
  return places;
}"""
NUMBERS = """(numbers) => {
  for (const page of document.querySelectorAll("[data-place]")) page.textContent = numbers[page.dataset.place.slice(1)];
}"""


def make_one_page() -> int:
    """Put all pages into one, from the notebooks that were executed; returns the exit status."""
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", str(build.BOOK)]
    command += ["--builder", "singlehtml"]  # the pages that `build.py` has read
    return subprocess.run(command, env=build.environment(), stdin=subprocess.DEVNULL, check=False).returncode


def page_numbers(pdf: bytes) -> dict[str, int]:
    """The page number of each named place in a PDF by Chromium, which writes pages and places in plain text."""
    pages = re.findall(rb"(\d+) 0 obj\s*<<\s*/Type /Page\s", pdf)
    number = {page: k for k, page in enumerate(pages, 1)}
    places = re.findall(rb"^/(\S+) \[(\d+) 0 R /XYZ", pdf, re.MULTILINE)
    return {name.decode(): number[page] for name, page in places if page in number}


async def lay_out(sheet: Page, parts: list[str]) -> list[str]:
    """Bring a page into the form that is printed, with contents first; returns the places that they lead to."""
    await sheet.add_style_tag(content=STYLE)
    await sheet.evaluate("() => document.querySelectorAll('details').forEach((one) => (one.open = true))")
    places = await sheet.evaluate(CONTENTS, parts)
    await sheet.emulate_media(media="print", color_scheme="light")
    await sheet.evaluate("() => dispatchEvent(new Event('resize'))")  # formulas are fitted to the paper
    return places


async def print_page(page: Path, pdf: Path, parts: list[str]) -> list[str] | None:
    """Print a page to a PDF on A4.

    Args:
        page: the document, all chapters in one.
        pdf: the file to write.
        parts: the titles of its parts.

    Returns:
        What is wider than the paper, one line each; `None` if there is no browser.
    """
    async with async_playwright() as playwright:
        program = find_browser(playwright)
        if program is None:
            return None
        browser = await playwright.chromium.launch(executable_path=program)
        sheet = await browser.new_page(color_scheme="light", viewport={"width": WIDTH, "height": 1200})
        sheet.set_default_timeout(10 * PATIENCE)
        await sheet.goto(page.resolve().as_uri(), wait_until="load")
        await settle(sheet)
        places = await lay_out(sheet, parts)
        faults = await ask(sheet, "overflow", "cut")
        form = {"prefer_css_page_size": True, "print_background": True, "outline": True, "tagged": True, "scale": SCALE}
        numbers = page_numbers(await sheet.pdf(**form))
        await sheet.evaluate(NUMBERS, {place: numbers[place] for place in places})
        pdf.parent.mkdir(parents=True, exist_ok=True)
        await sheet.pdf(path=pdf, **form)
        await browser.close()
    return faults


def main() -> int:
    """Print the book; returns the exit status."""
    if not build.INDEX.is_file():
        print("The book is not built yet. Run `make book` first.", file=sys.stderr)
        return 2
    status = make_one_page()
    if status:
        return status
    contents = yaml.safe_load((build.BOOK / "_toc.yml").read_text(encoding="utf-8"))
    faults = asyncio.run(print_page(ONE_PAGE, PDF, [part["caption"] for part in contents["parts"]]))
    if faults is None:
        print(NOT_RUN.replace("check_browser.py", "pdf.py"), file=sys.stderr)
        return 2
    print("\n".join(faults), file=sys.stderr, end="\n" if faults else "")
    print(PDF, flush=True)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
