"""A comparison as a LaTeX table: booktabs, best in bold, ties underlined."""

from collections.abc import Sequence

from kdcli.runs.sheet import Entry, Line, Sheet
from kdcli.text import latex_cell

_ARROWS = {"higher": r" $\uparrow$", "lower": r" $\downarrow$", "neither": ""}
_INFINITE = {"inf": r"$\infty$", "-inf": r"$-\infty$"}


def latex(sheet: Sheet, caption: str = "", label: str = "") -> str:
    r"""Return a table for ``\input``; the document needs ``\usepackage{booktabs}``.

    Args:
        sheet: the strings.
        caption: printed as it is, whatever it holds.
        label: for ``\ref``.
    """
    heads = ["objective", *(latex_cell(info.name) + _ARROWS[info.better] for info in sheet.scores)]
    body = [r"\toprule", _row(heads), r"\midrule", *(_line(line) for line in sheet.references)]
    body += [r"\midrule"] if sheet.references else []
    body += [_line(line) for line in sheet.means]
    holm = r"paired; $\ast$: $p < 0.05$ after Holm's rule"
    for text, lines in (
        (f"difference to {latex_cell(sheet.baseline)}, {holm}", sheet.differences),
        (f"difference to the student before training, {holm}", sheet.before),
        ("share of the gap from the student before training to the teacher that was closed", sheet.closed),
    ):
        if lines:
            body += [r"\midrule", rf"\multicolumn{{{len(heads)}}}{{l}}{{\emph{{{text}}}}} \\"]
            body += [_line(line) for line in lines]
    lines = [r"\begin{table}", r"\centering"]
    lines += [rf"\caption{{{latex_cell(caption, 2000)}}}"] if caption else []
    lines += [rf"\label{{{_reference(label)}}}"] if label else []
    lines += [rf"\begin{{tabular}}{{l{'r' * len(sheet.scores)}}}", *body, r"\bottomrule", r"\end{tabular}"]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def _line(line: Line) -> str:
    return _row([latex_cell(line.label), *(_cell(cell) for cell in line.cells)])


def _row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _cell(cell: Entry) -> str:
    mean = _number(cell.mean)
    mean = rf"\textbf{{{mean}}}" if cell.best else rf"\underline{{{mean}}}" if cell.tied else mean
    half = cell.interval.removeprefix("± ")
    if half != cell.interval:
        mean += rf" $\pm$ {half}"
    elif half:
        low, _, high = half.strip("[]").partition(", ")
        mean += f" {{[}}{_number(low)}, {_number(high)}{{]}}"
    return mean + (r" $\ast$" if cell.sure else "")


def _number(text: str) -> str:
    """Write minus signs as such, and what is no number as LaTeX can."""
    if text in _INFINITE:
        return _INFINITE[text]
    return text.replace("-", "$-$").replace("+", "$+$").replace("–", "--").replace(" %", r"\,\%")


def _reference(label: str) -> str:
    """Keep what is safe inside a label."""
    return "".join(letter for letter in label if letter.isascii() and (letter.isalnum() or letter in ":-_."))
