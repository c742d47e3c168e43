"""Sphinx extension of the book: switch off what would ask the network for something at view time."""

THEBE = ("init_thebe_core", "update_thebe_context")


def setup(app):
    """Take sphinx-thebe's script off the pages; Jupyter Book always loads it.

    Thebe runs cells on a remote Binder and is fetched from a CDN. Its configuration is also written twice into each
    page as a `const`, which is a script error in every browser.
    """
    app.setup_extension("sphinx_thebe")
    for listeners in app.events.listeners.values():
        listeners[:] = [
            listener
            for listener in listeners
            if not (listener.handler.__module__ == "sphinx_thebe" and listener.handler.__name__ in THEBE)
        ]
    app.registry.css_files[:] = [file for file in app.registry.css_files if "thebe" not in file[0]]
    return {"parallel_read_safe": True, "parallel_write_safe": True}
