"""Matplotlib figures as SVG inside a page: in the page's text colour and the colours of its series, light or dark."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterable
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.figure import Figure

_SVG, _LINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_INK = "#010203"  # stands for the text colour until the figure is in the page
SERIES = 8  # colours --series-0 to --series-7, which the page defines
_COLORS = {_INK: "currentColor", **{f"#0a0b{n:02x}": f"var(--series-{n})" for n in range(SERIES)}}
_STYLE: Any = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor", "legend.labelcolor"), _INK),
    **dict.fromkeys(("xtick.color", "ytick.color", "grid.color"), _INK),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "font.size": 10,
    "svg.fonttype": "none",  # text remains text, which can be read aloud and found
    "text.parse_math": False,  # a class may be called $x$
}


def style() -> Any:
    """A context in which figures for :func:`inline_svg` are drawn."""
    return matplotlib.rc_context(_STYLE)


def series_color(number: int) -> str:
    """The colour of the n-th series, to be replaced by the page's."""
    return f"#0a0b{number % SERIES:02x}"


def ink() -> str:
    """The colour of text and axes, likewise."""
    return _INK


def inline_svg(figure: Figure, name: str, description: str) -> str:
    """An ``<svg>`` element as wide as its place.

    Args:
        figure: Drawn in :func:`style`.
        name: Of the figure, unique in its page: prefix of all ids.
        description: What it shows, for those who do not see it.
    """
    buffer = io.BytesIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the browser has its own fonts
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    for prefix, space in (("", _SVG), ("xlink", _LINK)):
        ElementTree.register_namespace(prefix, space)
    root = ElementTree.fromstring(buffer.getvalue())
    _remove(root, (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"))
    for element in root.iter():
        for key, value in element.items():
            element.set(key, _in_page(key, value, name))
        if element.tag == f"{{{_SVG}}}text":  # the page's fonts
            element.set("style", re.sub(r"font: ([\d.]+px)[^;]*", r"font-size: \1", element.get("style", "")))
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib.update({"role": "img", "aria-label": description, "stroke-linejoin": "round"})
    return ElementTree.tostring(root, encoding="unicode")


def _in_page(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key.endswith("href") and value.startswith("#"):
        return f"#{name}-{value[1:]}"
    for color, page_color in _COLORS.items():
        value = value.replace(color, page_color)
    return value.replace("url(#", f"url(#{name}-")


def _remove(root: ElementTree.Element, tags: Iterable[str]) -> None:
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in tags:
                parent.remove(child)
