"""Look at the built book in a browser: `python book/check_browser.py`. Exit status 1 and one line per fault.

`check_html.py` reads the files; this opens every page of the table of contents from disk, as a reader does, and checks
what only a browser can tell: no error in the console, no request that fails or leaves the disk; images that decode and
have an alternative text; formulas rendered, without error; no sideways scrolling, and nothing wider than its column, at
1300 and at 390 pixels; text of enough contrast in light and dark mode; every control reached by Tab, with a focus that
can be seen, and a skip link that works; and the weight of a page.

The weight is what a reader's browser fetches from a server that compresses text, as those of static pages do, with
everything that pages share (mathematics, theme, search) counted for every page.

It needs Chromium, Chrome or Edge. The one named by `$BOOK_BROWSER` is taken, else one on the path, else the one that
`python -m playwright install chromium` fetches. Without any, nothing is checked, which is said, and the exit status is
0, or 2 with `--require`.
"""

import argparse
import asyncio
import gzip
import os
import shutil
import sys
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml
from playwright.async_api import BrowserContext, Error, Page, Playwright, TimeoutError, async_playwright

sys.path.insert(0, str(Path(__file__).resolve().parent))
from check_html import toc_pages

BOOK = Path(__file__).resolve().parent
SCRIPT = (BOOK / "check_browser.js").read_text(encoding="utf-8")

DESKTOP, PHONE = (1300, 900), (390, 844)
WEIGHT_LIMIT = 2_000_000
TEXT = {".html", ".js", ".css", ".svg", ".json", ".ttf"}
PATIENCE = 60_000  # milliseconds for anything a page does; a loaded machine is slow, not wrong
BROWSERS = (
    "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge", "msedge",
)  # fmt: skip
EXTRAS = ("search", "genindex")  # made by Sphinx, in no table of contents

NOT_RUN = (
    "book/check_browser.py was NOT RUN: no browser found. Install Chromium or Chrome, or fetch one with\n"
    "    python -m playwright install chromium\n"
    "or name one: BOOK_BROWSER=/path/to/chrome"
)


def find_browser(playwright: Playwright) -> str | None:
    """The browser to use: the one asked for, one on the path, or playwright's own; `None` without any.

    Raises:
        FileNotFoundError: if the one asked for is not there.
    """
    named = os.environ.get("BOOK_BROWSER")
    if named:
        if not shutil.which(named):
            raise FileNotFoundError(f"BOOK_BROWSER: expected a program, got {named!r}.")
        return named
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    own = playwright.chromium.executable_path
    return found or (own if Path(own).is_file() else None)


@cache
def transferred(path: Path) -> int:
    """Bytes of a file as a server sends it."""
    content = path.read_bytes()
    return len(gzip.compress(content, 6)) if path.suffix in TEXT else len(content)


def weigh(urls: list[str]) -> int:
    """Bytes that a browser fetches for these addresses, each once."""
    paths = {Path(unquote(urlsplit(url).path)) for url in urls if url.startswith("file:")}
    return sum(transferred(path) for path in paths if path.is_file())


class Watch:
    """What a page asks for and complains of."""

    def __init__(self, page: Page):
        self.urls: list[str] = []
        self.faults: list[str] = []
        page.on("request", self._request)
        page.on("requestfailed", lambda r: self.faults.append(f"request failed: {short(r.url)} ({r.failure})"))
        page.on("pageerror", lambda error: self.faults.append(f"script error: {error}"))
        page.on("console", self._console)

    def _request(self, request):
        self.urls.append(request.url)
        if urlsplit(request.url).scheme not in ("file", "data", "blob", "about"):
            self.faults.append(f"asks for {short(request.url)}")

    def _console(self, message):
        # A failed request is told by its own event, with the address
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            self.faults.append(f"console: {message.text}")


def short(url: str) -> str:
    """An address without the folders above the book."""
    return url.rsplit("/html/", 1)[-1] if url.startswith("file:") else url[:100]


async def settle(page: Page) -> None:
    """Wait until scripts, formulas, fonts and images are there."""
    await page.evaluate("() => window.MathJax?.startup?.promise?.then(() => null)")
    await page.evaluate("() => document.fonts.ready.then(() => null)")
    await page.evaluate(SCRIPT)
    await page.evaluate("() => bookCheck.loadImages()")


async def ask(page: Page, *questions: str) -> list[str]:
    """The faults that functions of `check_browser.js` find."""
    return [fault for question in questions for fault in await page.evaluate(f"() => bookCheck.{question}()")]


async def walk(page: Page) -> list[str]:
    """Faults of a walk through the page by Tab, and of its skip link."""
    count = await page.evaluate("() => bookCheck.watchFocus()")
    await page.keyboard.press("Tab")
    faults = await ask(page, "skipLink")
    # Boxes that scroll are stops, too, so there may be more stops than controls
    for _ in range(0, 2 * count + 40, 20):
        # All keys are sent before the first is answered: waiting for each took three times as long
        await asyncio.gather(*(page.keyboard.press("Tab") for _ in range(20)))
        if await page.evaluate("() => bookCheck.cameRound()"):
            break
    faults += await ask(page, "keyboard")
    if not faults:
        await page.evaluate('() => document.querySelector(\'a[href="#main-content"], a[href^="#"]\').focus()')
        await page.keyboard.press("Enter")
        await page.keyboard.press("Tab")
        faults += await ask(page, "skipped")
    return faults


async def on_a_desk(page: Page, watch: Watch) -> list[str]:
    """Everything that is seen at full width, in both color schemes."""
    faults = await ask(page, "images", "mathematics", "overflow", "cut", "contrast")
    if (weight := weigh(watch.urls)) > WEIGHT_LIMIT:
        faults.append(f"weighs {weight / 1e6:.2f} MB, more than {WEIGHT_LIMIT / 1e6:.0f} MB")
    await page.emulate_media(color_scheme="dark")
    try:  # the theme learns of it by an event
        came = "() => (document.documentElement.dataset.theme || 'dark') === 'dark'"
        await page.wait_for_function(came, timeout=5_000)
    except TimeoutError:
        faults.append("dark mode does not come on where the reader's system asks for it")
    faults += [f"dark: {fault}" for fault in await ask(page, "contrast")]
    await page.emulate_media(color_scheme="light")
    return faults + await walk(page)


async def on_a_phone(page: Page, watch: Watch) -> list[str]:
    """What changes with the width."""
    del watch
    return await ask(page, "overflow", "cut") + await walk(page)


async def look(context: BrowserContext, path: Path) -> tuple[list[str], int]:
    """Open a page in a tab of its own, look at it at full width, then make the window as narrow as a phone.

    Args:
        context: a window of a running browser.
        path: the page.

    Returns:
        Faults, and the weight of the page in bytes.

    Raises:
        Error: if the browser is gone.
    """
    page = await context.new_page()
    watch, faults = Watch(page), []
    for (width, height), checks in ((DESKTOP, on_a_desk), (PHONE, on_a_phone)):
        try:
            await page.set_viewport_size({"width": width, "height": height})
            if checks is on_a_desk:
                await page.goto(path.resolve().as_uri(), wait_until="load")
                await settle(page)
            found = await checks(page, watch)
        except Error as error:
            found = [error.message.splitlines()[0]]
        faults += [f"{path.name} at {width} px: {fault}" for fault in dict.fromkeys(watch.faults + found)]
        watch.faults.clear()
    await page.close()
    return faults, weigh(watch.urls)


def pages_of(book: Path) -> list[Path]:
    """The built pages of the table of contents, and those that Sphinx adds."""
    html = book / "_build" / "html"
    toc = toc_pages(yaml.safe_load((book / "_toc.yml").read_text(encoding="utf-8")))
    extras = [name for name in EXTRAS if (html / f"{name}.html").is_file()]
    return [html / f"{name}.html" for name in [*toc, *extras]]


async def survey(
    playwright: Playwright, program: str, paths: Sequence[Path]
) -> tuple[dict[Path, list[str]], dict[Path, int]]:
    """Look at pages with a fresh browser.

    Returns:
        The faults of the pages that have any, and the weights of the pages in bytes.
    """
    # One page at a time: beside a second one the styles of the focus come too late to be seen, and little is gained
    browser = await playwright.chromium.launch(executable_path=program)
    context = await browser.new_context(color_scheme="light")
    context.set_default_timeout(PATIENCE)
    faults, weights = {}, {}
    for path in paths:
        try:
            found, weights[path] = await look(context, path)
        except Error as error:
            found = [f"{path.name}: the browser is gone: {error.message.splitlines()[0]}"]
        if found:
            faults[path] = found
    await browser.close()
    return faults, weights


async def check(book: Path, only: list[str] | None = None) -> list[str] | None:
    """All faults, one line each; `None` if there is no browser.

    A page with faults is looked at again by a fresh browser, and has those it shows then: what comes late on a loaded
    machine is none of the page. Faults seen once only are printed.

    Args:
        book: the folder with `_toc.yml` and `_build/html`.
        only: names of pages, all of them if `None`.

    Raises:
        FileNotFoundError: if `$BOOK_BROWSER` names none.
        ValueError: for a page that the table of contents has not.
    """
    start = time.perf_counter()
    known = {path.stem: path for path in pages_of(book)}
    if unknown := set(only or ()) - known.keys():
        raise ValueError(f"pages: expected some of {', '.join(known)}, got {', '.join(sorted(unknown))}.")
    async with async_playwright() as playwright:
        program = find_browser(playwright)
        if program is None:
            return None
        first, weights = await survey(playwright, program, [known[name] for name in only or known])
        again, more = await survey(playwright, program, list(first)) if first else ({}, {})
    weights |= more
    faults = [fault for found in again.values() for fault in found]
    for fault in (fault for found in first.values() for fault in found):
        if fault not in faults:
            print(f"seen once, not again: {fault}")
    if not faults:
        heaviest = max(weights, key=weights.get)
        print(
            f"{len(weights)} pages looked at in {time.perf_counter() - start:.0f} s; "
            f"the heaviest, {heaviest.stem}, weighs {weights[heaviest] / 1e6:.2f} MB"
        )
    return faults


def main() -> int:
    """Check; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="*", help="names of pages; all of the table of contents by default")
    parser.add_argument("--require", action="store_true", help="fail if there is no browser")
    arguments = parser.parse_args()
    try:
        faults = asyncio.run(check(BOOK, arguments.pages))
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    if faults is None:
        print(NOT_RUN, file=sys.stderr)
        return 2 if arguments.require else 0
    print("\n".join(faults), file=sys.stderr, end="\n" if faults else "")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
