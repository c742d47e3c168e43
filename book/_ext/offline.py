"""Sphinx extension of the book: switch off what would ask the network at view time, and what is loaded for nothing."""

import re
from pathlib import Path

THEBE = ("init_thebe_core", "update_thebe_context")
#: Icons as drawings, 1.5 MB of script a page; the style sheet has them as a font, which every page loads anyway.
ICONS = re.compile(r"\s*<(?:script|link)\b[^>]*scripts/fontawesome\.js[^>]*>(?:</script>)?")


def drop_icons(app, exception):
    """Take the script with the icons off the pages, and off the book."""
    if exception or app.builder.format != "html":
        return
    html = Path(app.outdir)
    for path in html.glob("*.html"):
        text = path.read_text(encoding="utf-8")
        path.write_text(ICONS.sub("", text), encoding="utf-8")
    for path in (html / "_static" / "scripts").glob("fontawesome.js*"):
        path.unlink()


def setup(app):
    """Take sphinx-thebe's script off the pages; Jupyter Book always loads it.

    Thebe runs cells on a remote Binder and is fetched from a CDN. Its configuration is also written twice into each
    page as a `const`, which is a script error in every browser.
    """
    app.connect("build-finished", drop_icons)
    app.setup_extension("sphinx_thebe")
    for listeners in app.events.listeners.values():
        listeners[:] = [
            listener
            for listener in listeners
            if not (listener.handler.__module__ == "sphinx_thebe" and listener.handler.__name__ in THEBE)
        ]
    app.registry.css_files[:] = [file for file in app.registry.css_files if "thebe" not in file[0]]
    return {"parallel_read_safe": True, "parallel_write_safe": True}
