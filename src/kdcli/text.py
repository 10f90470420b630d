"""Makes text from data and model folders safe to show, in a terminal, a Markdown table or a CSV cell."""

import re
import unicodedata

_HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
_MARKDOWN = re.compile(r"([|\\`*_\[\]~#])")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def visible(text: str) -> str:
    r"""Escape control, bidirectional and zero-width characters; keep line breaks and tabs.

    Args:
        text: anything read from outside.

    Returns:
        the same text, with no character that moves a cursor or hides.

    >>> visible("a\x1b[31mb\u202ec")
    'a\\x1b[31mb\\u202ec'
    """
    if text.isprintable():
        return text
    return "".join(letter if _harmless(letter) else _escape(letter) for letter in text)


def one_line(text: str, width: int = 120) -> str:
    r"""Return visible text on one line, cut to a width.

    Args:
        text: anything read from outside.
        width: characters at most, the dots of the cut included.

    >>> one_line("a\nb", 10)
    'a\\nb'
    >>> one_line("0123456789", 4)
    '012…'
    """
    flat = visible(text).replace("\n", "\\n").replace("\t", " ")
    return flat if len(flat) <= width else flat[: width - 1] + "…"


def markdown_cell(text: str, width: int = 200) -> str:
    r"""Return text for one cell of a Markdown table: no markup, no HTML, no line break.

    >>> markdown_cell("a|b <script>")
    'a\\|b &lt;script&gt;'
    """
    safe = one_line(text, width).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKDOWN.sub(r"\\\1", safe)


def csv_cell(text: str) -> str:
    """Return text that no spreadsheet takes for a formula.

    >>> csv_cell("=1+1"), csv_cell("akl")
    ("'=1+1", 'akl')
    """
    safe = visible(text)
    return f"'{safe}" if safe.startswith(_FORMULA) else safe


def _harmless(letter: str) -> bool:
    return letter in "\n\t" or unicodedata.category(letter) not in _HIDDEN


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape", "surrogatepass").decode("ascii")
