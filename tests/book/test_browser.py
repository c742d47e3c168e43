"""What the look at the book in a browser finds: pages with one fault each, fed to a real browser."""

import asyncio
import importlib.util
import shutil
import sys
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

BOOK = Path(__file__).resolve().parents[2] / "book"


def script(stem: str):
    """A script of the book as a module."""
    spec = importlib.util.spec_from_file_location(f"book_{stem}", BOOK / f"{stem}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CHECK = script("check_browser")

PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
GOOD = f"""<!doctype html><html lang="en"><head><title>t</title><meta name="viewport" content="width=device-width">
<style>.scroll {{ overflow-x: auto; }} .wide {{ width: 200px; }}
.skip {{ position: absolute; top: -9em; }} .skip:focus {{ top: 0; }}
@media (prefers-color-scheme: dark) {{ body {{ background: #111; color: #eee; }} a {{ color: #9cf; }} }}</style>
<script>window.MathJax = {{startup: {{promise: Promise.resolve()}}}}</script></head>
<body><a class="skip" href="#main-content">Skip</a><a href="#x">before</a>
<main id="main-content" tabindex="-1"><p id="x">Text with <a href="#x">a link</a> and a <button>button</button>.</p>
<span class="math"><mjx-container>x</mjx-container></span>
<div class="scroll" tabindex="0"><div class="wide">in a box of its own</div></div>
<img src="{PIXEL}" alt="a dot"><code>\\(as written\\)</code></main></body></html>"""

# name of the page: what is replaced by what, and the fault that must be told (none, for good pages)
PAGES = {
    "good": ("", "", None),
    "good_decorative_image": ('alt="a dot"', 'alt="" role="presentation"', None),
    "good_hidden_link": ("</main>", '<a href="#x" hidden>h</a></main>', None),
    "console_error": ("</main>", "<script>console.error('wrong')</script></main>", "console: wrong"),
    "script_error": ("</main>", "<script>undefined.x</script></main>", "script error"),
    "failed_request": ("</main>", "<script src='gone.js'></script></main>", "request failed: gone.js"),
    "remote": ("</main>", "<img src='http://127.0.0.1:9/x.png' alt='x'></main>", "asks for http://127.0.0.1:9/x.png"),
    "broken_image": (PIXEL, "data:image/gif;base64,AAAA", "broken image"),
    "no_alt": ('alt="a dot"', "", "image without alt text"),
    "address_as_alt": ("a dot", PIXEL, "image without alt text"),
    "not_rendered": ("<mjx-container>x</mjx-container>", "\\(x\\)", "formula not rendered"),
    "formula_error": ("<mjx-container>x", "<mjx-container><mjx-merror>Undefined</mjx-merror>", "formula with an error"),
    "raw_tex": ("Text with", "Text with \\(x\\)", "raw TeX"),
    "raw_dollars": ("Text with", "Text with $\\alpha$", "raw TeX"),
    "sideways": ("</main>", '<div style="width: 2000px">w</div></main>', "1300 px: the page scrolls sideways"),
    "sideways_phone": ("</main>", '<div style="width: 600px">w</div></main>', "390 px: the page scrolls sideways"),
    "wider_than_its_column": (".wide { width: 200px; }", ".wide { width: 2000px; }", "1300 px: 2000 px in "),
    "wider_on_a_phone": (".wide { width: 200px; }", ".wide { width: 600px; }", "390 px: 600 px in "),
    "cut_off": (
        ".scroll { overflow-x: auto; } .wide { width: 200px; }",
        ".scroll { overflow-x: hidden; } .wide { width: 2000px; }", "sticks out of the page",
    ),
    "pale": ("Text with", '<span style="color: #aaa">Text</span> with', "contrast 2.32, needed 4.5"),
    "pale_dark": ("color: #9cf", "color: #345", "dark: contrast"),
    "always_light": ("<html lang", '<html data-theme="light" lang', "dark mode does not come on"),
    "not_reached": ("<button>", '<span role="button">b</span><button>', "Tab does not reach span"),
    "trap": ("<button>", "<button onkeydown='event.preventDefault()'>", "Tab does not reach div.scroll"),
    "order": ("<button>", '<button tabindex="3">', "tabindex 3"),
    "focus_not_seen": ("<button>", '<button style="outline: none">', "focus cannot be seen on button"),
    "no_skip_link": ('<a class="skip" href="#main-content">Skip</a>', "", "does not reach a skip link"),
    "hidden_skip_link": (".skip:focus { top: 0; }", "", "not in view"),
    "skip_link_astray": (
        'href="#main-content">', 'href="#main-content" onclick="event.preventDefault()">', "does not lead to the",
    ),
    "heavy": ("", "", "weighs 2.1"),
}  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        if CHECK.find_browser(playwright) is None:
            pytest.skip("no Chromium or Chrome: install one, or `python -m playwright install chromium`")


def small_book(folder: Path, pages: dict[str, str]) -> Path:
    """A built book with these pages."""
    html = folder / "_build" / "html"
    html.mkdir(parents=True)
    for name, text in pages.items():
        (html / f"{name}.html").write_text(text, encoding="utf-8")
    root, *others = pages
    chapters = "".join(f"  - file: {name}\n" for name in others)
    (folder / "_toc.yml").write_text(f"root: {root}\n" + (f"chapters:\n{chapters}" if others else ""), encoding="utf-8")
    return folder


def look_at(book: Path, only: list[str] | None = None) -> list[str] | None:
    """The faults of a book, or of some of its pages."""
    return asyncio.run(CHECK.check(book, only))


def bitmap(width: int, height: int) -> bytes:
    """A black picture of three bytes a pixel, which no server compresses."""
    size = 3 * width * height
    head = b"BM" + (54 + size).to_bytes(4, "little") + bytes(4) + (54).to_bytes(4, "little")
    fields = [(40, 4), (width, 4), (height, 4), (1, 2), (24, 2), (0, 4), (size, 4), (0, 16)]
    return head + b"".join(value.to_bytes(length, "little") for value, length in fields) + bytes(size)


#: Faults that do not hide each other, each group on a page of its own; the good pages stand alone.
TOGETHER = (
    ("good",), ("good_decorative_image",), ("good_hidden_link",), ("trap",),
    ("console_error", "broken_image", "not_rendered", "raw_tex", "sideways", "always_light", "not_reached"),
    ("script_error", "no_alt", "formula_error", "raw_dollars", "sideways_phone", "pale_dark", "order"),
    ("failed_request", "address_as_alt", "pale", "wider_than_its_column", "focus_not_seen"),
    ("remote", "wider_on_a_phone", "no_skip_link"), ("cut_off", "hidden_skip_link"), ("skip_link_astray", "heavy"),
)  # fmt: skip


@pytest.mark.parametrize("groups", [TOGETHER, pytest.param([(name,) for name in PAGES], marks=pytest.mark.slow)])
def test_browser_sees_every_fault_and_no_other_page_has_any(browser, tmp_path, groups):
    """One look at all pages: most of the time goes into starting the browser."""
    assert sorted(name for group in groups for name in group) == sorted(PAGES)
    pages, page_of = {}, {}
    for group in groups:
        text = GOOD
        for name in group:
            old, new, _ = PAGES[name] if name != "heavy" else (PIXEL, "heavy.bmp", None)
            assert old in text, name
            text = text.replace(old, new) if old else text
            page_of[name] = group[0]
        pages[group[0]] = text
    book = small_book(tmp_path, pages)
    (book / "_build" / "html" / "heavy.bmp").write_bytes(bitmap(836, 836))
    found = look_at(book)
    for name, (_, _, expected) in PAGES.items():
        page = f"{page_of[name]}.html at"
        of_page = [line for line in found if line.startswith((f"{page} 1300 px: ", f"{page} 390 px: "))]
        if expected is None:
            assert not of_page
        else:
            assert any(expected in line for line in of_page), (name, of_page)


def test_one_page_can_be_asked_for_and_a_good_book_has_no_fault(browser, tmp_path, capsys):
    book = small_book(tmp_path, {"good": GOOD, "bad": GOOD.replace('alt="a dot"', "")})
    assert look_at(book, ["good"]) == []
    assert "1 pages looked at" in capsys.readouterr().out
    assert len(look_at(book)) == 1
    with pytest.raises(ValueError, match="pages: expected some of good, bad, got none"):
        look_at(book, ["good", "none"])


def test_what_a_fresh_browser_does_not_see_again_is_no_fault_but_is_told(browser, tmp_path, monkeypatch, capsys):
    book, calls = small_book(tmp_path, {"late": GOOD, "crash": GOOD, "after": GOOD}), []

    async def on_a_desk(page, watch):
        calls.append(watch.urls[0])
        if len(calls) == 2:
            await page.context.browser.close()
        return ["styles come late"] if len(calls) == 1 else await CHECK.ask(page, "images")

    monkeypatch.setattr(CHECK, "on_a_desk", on_a_desk)
    assert look_at(book) == []
    said = capsys.readouterr().out
    assert "seen once, not again: late.html at 1300 px: styles come late" in said
    assert "seen once, not again: after.html: the browser is gone" in said
    assert "3 pages looked at" in said


def test_weight_counts_each_file_once_and_text_compressed(tmp_path):
    text, image = tmp_path / "a.js", tmp_path / "b.png"
    text.write_text("x" * 100_000, encoding="utf-8")
    image.write_bytes(bytes(5_000))
    urls = [text.as_uri(), image.as_uri(), f"{image.as_uri()}?v=2", "data:image/png;base64,AAAA"]
    assert 5_000 < CHECK.weigh(urls) < 6_000


def test_without_a_browser_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(CHECK, "find_browser", lambda playwright: None)
    monkeypatch.setattr(sys, "argv", ["check_browser.py"])
    assert CHECK.main() == 0
    said = capsys.readouterr().err
    assert "NOT RUN" in said
    assert "playwright install chromium" in said
    monkeypatch.setattr(sys, "argv", ["check_browser.py", "--require"])
    assert CHECK.main() == 2


def test_browser_asked_for_is_taken_or_missed(monkeypatch):
    monkeypatch.setenv("BOOK_BROWSER", sys.executable)
    assert CHECK.find_browser(None) == sys.executable
    monkeypatch.setenv("BOOK_BROWSER", "/nowhere/chrome")
    assert shutil.which("/nowhere/chrome") is None
    with pytest.raises(FileNotFoundError, match="BOOK_BROWSER"):
        CHECK.find_browser(None)
