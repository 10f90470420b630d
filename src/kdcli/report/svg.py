"""Matplotlib figures as inline SVG without scripts, style sheets or repeated ids."""

import io
import re
import warnings
from xml.etree import ElementTree

from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.text import Text

from kdcli.plots import fix_layout
from kdcli.text import one_line

_LINKS = ("href", "clip-path", "fill", "mask")
_DIGITS = re.compile(r"-?\d+\.\d{3,}")
_ROUNDED = ("d", "points", "x", "y", "width", "height", "cx", "cy", "r")
_WIDEST = 60
"""Letters of a line in a picture."""

_DROPPED = ("metadata", "style", "script", "title")


def inline(figure: Figure, key: str, title: str) -> Markup:
    """Return a figure as an ``<svg>`` element that can stand in a page beside others.

    Text is drawn as paths; style attributes become presentation attributes, so that the page may
    forbid inline style; ids that nothing refers to are left out, the others begin with the key.

    Args:
        figure: drawn in the common look.
        key: letters and digits, different for every figure of a page.
        title: what the figure shows, for those who cannot see it.
    """
    for text in figure.findobj(Text):
        text.set_text("\n".join(one_line(line, _WIDEST) for line in text.get_text().split("\n")))
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        warnings.filterwarnings("ignore", message="constrained_layout not applied")
        fix_layout(figure)
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(buffer.getvalue())
    names = {name for element in root.iter() for name in _references(element)}
    _clean(root, key, {name: f"{key}-{index}" for index, name in enumerate(sorted(names))})
    box = root.get("viewBox", "0 0 1 1")
    wide = f"{float(box.split()[2]) * 4 / 3:.0f}"
    tall = f"{float(box.split()[3]) * 4 / 3:.0f}"
    named = {"viewBox": box, "width": wide, "height": tall, "role": "img", "aria-label": one_line(title, 300)}
    root.attrib = {**named, "stroke-linejoin": "round", "stroke-linecap": "butt", "fill": "black"}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _references(element: ElementTree.Element) -> list[str]:
    """Return the ids that an element refers to."""
    found = []
    for name, value in element.attrib.items():
        if _local(name) == "href":
            found.append(value.removeprefix("#"))
        found += re.findall(r"url\(#([^)]+)\)", value)
    return found


def _clean(element: ElementTree.Element, key: str, ids: dict[str, str]) -> None:
    """Rewrite an element and all below it in place."""
    element.tag = _local(element.tag)
    element.attrib = _attributes(element, ids)
    for child in list(element):
        if not isinstance(child.tag, str) or _local(child.tag) in _DROPPED:
            element.remove(child)
        else:
            _clean(child, key, ids)
    element.tail = None
    if element.text is not None and not element.text.strip():
        element.text = None


def _attributes(element: ElementTree.Element, ids: dict[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in element.attrib.items():
        short = _local(name)
        if short == "id":
            if value in ids:
                found["id"] = ids[value]
        elif short == "href":
            found["href"] = f"#{ids[value.removeprefix('#')]}"
        elif short == "style":
            found |= _declarations(value)
        else:
            found[short] = _rounded(value) if short in _ROUNDED else value
    return {name: _relinked(value, ids) for name, value in found.items()}


def _declarations(style: str) -> dict[str, str]:
    pairs = (part.split(":", 1) for part in style.split(";") if ":" in part)
    return {name.strip(): value.strip() for name, value in pairs}


def _relinked(value: str, ids: dict[str, str]) -> str:
    return re.sub(r"url\(#([^)]+)\)", lambda found: f"url(#{ids[found[1]]})", value)


def _rounded(text: str) -> str:
    """Two decimals of a point are finer than any screen or printer.

    >>> _rounded("M 1.23456 -0.00001")
    'M 1.23 0'
    """
    return _DIGITS.sub(lambda found: f"{round(float(found[0]), 2) + 0.0:g}", text)


def _local(name: str) -> str:
    return name.rpartition("}")[2]
