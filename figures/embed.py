"""Data and images inside a page, so that it works from a file: no script may fetch another one there."""

from __future__ import annotations

import base64
import io
import json
from html import escape

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image


def pixels(figure: Figure, *, dpi: int = 90) -> Image.Image:
    """A figure as an image, RGB."""
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def small_png(figure: Figure, *, colors: int = 64) -> bytes:
    """A figure as a PNG of few colors."""
    content = io.BytesIO()
    pixels(figure).quantize(colors, dither=Image.Dither.NONE).save(content, "png", optimize=True)
    return content.getvalue()


def data_url(png: bytes) -> str:
    """A PNG as an address."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def widget(kind: str, still: bytes, text: str, content: dict) -> str:
    """HTML of an interactive figure: an image that is all there is without a script, and data for the script.

    Args:
        kind: CSS class by which the script finds it.
        still: PNG.
        text: what the image shows.
        content: data.
    """
    data = json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return (
        f'<div class="{kind}"><img class="still" src="{data_url(still)}" alt="{escape(text)}">'
        f'<script type="application/json">{data}</script></div>'
    )
