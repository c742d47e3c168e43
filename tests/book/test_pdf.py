"""The printed book: contents with page numbers, chapters on pages of their own, and a fault for what is too wide."""

import asyncio
import re

import pytest
from playwright.async_api import async_playwright
from playwright.sync_api import sync_playwright
from test_browser import CHECK, script

PDF = script("pdf")
PARTS = ["Overview", "The theory"]
BOOK = """<!doctype html><html><head><title>t</title>
<script>window.MathJax = {startup: {promise: Promise.resolve()}}</script></head><body><main><article class="bd-article">
<section id="book"><h1>The book<a class="headerlink" href="#book">#</a></h1><p>Preface</p>
<div class="toctree-wrapper"><span id="document-one"></span>
<section><h2>A chapter</h2><p style="height: 2000px">two pages</p>
</section></div>
<div class="toctree-wrapper"><span id="document-two"></span>
<section><h2>Another</h2><div style="overflow-x: auto"><p id="box">text</p>
</div>
<div class="toctree-wrapper"><span id="document-three"></span>
<section><h3>Within it</h3></section></div></section></div>
</section></article></main></body></html>"""


@pytest.fixture(scope="module", autouse=True)
def program():
    with sync_playwright() as playwright:
        found = CHECK.find_browser(playwright)
    if found is None:
        pytest.skip("no Chromium or Chrome: install one, or `python -m playwright install chromium`")
    return found


@pytest.mark.parametrize("wide", [False, True])
def test_the_book_is_printed(tmp_path, wide):
    page, pdf = tmp_path / "book.html", tmp_path / "out" / "book.pdf"
    page.write_text(BOOK.replace('id="box"', 'id="box" style="width: 2000px"') if wide else BOOK)
    faults = asyncio.run(PDF.print_page(page, pdf, PARTS))
    assert [re.match(r"2000 px in \d+ px", fault) is not None for fault in faults] == [True] * wide
    content = pdf.read_bytes()
    # The contents, the preface, a chapter of two pages, another one, and a page within it
    places = PDF.page_numbers(content)
    assert [places[f"document-{name}"] for name in ("one", "two", "three")] == [3, 5, 6]
    assert len(re.findall(rb"/Type /Page\s", content)) == 6


async def contents_of(program):
    """The places, words and links of the contents of the small book, with made-up page numbers."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program)
        sheet = await browser.new_page()
        await sheet.set_content(BOOK)
        places = await PDF.lay_out(sheet, PARTS)
        await sheet.evaluate(PDF.NUMBERS, {"document-one": 3, "document-two": 5, "document-three": 6})
        words = (await sheet.locator("#contents-printed").inner_text()).split()
        hrefs = "all => all.map((a) => a.getAttribute('href'))"
        links = await sheet.eval_on_selector_all("#contents-printed a", hrefs)
        await browser.close()
    return places, words, links


def test_the_contents_lead_to_every_chapter(program):
    places, words, links = asyncio.run(contents_of(program))
    assert places == ["document-one", "document-two", "document-three"]
    assert " ".join(words) == "The book Overview A chapter 3 The theory Another 5 Within it 6"
    assert links == ["#document-one", "#document-two", "#document-three"]


def test_a_book_that_is_not_built_is_not_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(PDF.build, "INDEX", tmp_path / "index.html")
    assert PDF.main() == 2
    assert "make book" in capsys.readouterr().err
