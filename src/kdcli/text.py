"""Escapes untrusted text for terminals, Markdown, CSV, LaTeX and HTML."""

import html
import re
import shlex
import unicodedata

_HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
_MARKDOWN = re.compile(r"([|\\`*_\[\]~#])")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{letter: f"\\{letter}" for letter in "{}$&#_%"},
    **{letter: f"{{{letter}}}" for letter in "[]*`'-"},
    "±": r"$\pm$",
    "→": r"$\rightarrow$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "Δ": r"$\Delta$",
    "·": r"$\cdot$",
    "–": "--",
}


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


def typed(value: object) -> str:
    """Return a path or another word as it is typed in a shell, in a command that is printed to be pasted.

    >>> typed("runs/a"), typed("a b;$(x)")
    ('runs/a', "'a b;$(x)'")
    """
    return shlex.quote(str(value))


def fold(text: str, width: int) -> str:
    r"""Break a line into lines of a width, after a sign that ends a part where there is one.

    >>> fold("0.5*ce+0.5*akl:mu=0.6", 12)
    '0.5*ce+\n0.5*akl:\nmu=0.6'
    """
    lines, rest = [], text
    while len(rest) > width:
        cut = max((rest.rfind(sign, 0, width) + 1 for sign in "+,:@( "), default=0) or width
        lines.append(rest[:cut])
        rest = rest[cut:]
    return "\n".join([*lines, rest])


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


def latex_cell(text: str, width: int = 200) -> str:
    r"""Return text that LaTeX prints as it is: no command, no comment, no letter that plain LaTeX lacks.

    >>> latex_cell(r"\input{x} 50%"), latex_cell("[/]")
    ('\\textbackslash{}input\\{x\\} 50\\%', '{[}/{]}')
    """
    return "".join(_LATEX.get(letter) or _ascii(letter) for letter in one_line(text, width))


def html_cell(text: str, width: int = 200) -> str:
    """Return text that HTML shows as it is, in an element or a quoted attribute.

    >>> html_cell("<script>&'")
    '&lt;script&gt;&amp;&#x27;'
    """
    return html.escape(one_line(text, width), quote=True)


def _ascii(letter: str) -> str:
    if letter == "…":
        return r"\ldots{}"
    return letter if letter.isascii() else f"U+{ord(letter):04X}"


def _harmless(letter: str) -> bool:
    return letter in "\n\t" or unicodedata.category(letter) not in _HIDDEN


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape", "surrogatepass").decode("ascii")
