"""A comparison as a LaTeX table that fits a column or a page: booktabs, best in bold, ties underlined."""

from collections.abc import Iterable, Sequence

from kdcli.comparison.records import Comparison
from kdcli.report.table_view import PLAIN, Block, Column, TableCell, TableRow, TableStyle, TableView, blocks, caption
from kdcli.text import latex_cell

COLUMN, PAGE = 219.0, 345.0
"""Widths in points that are safe everywhere: a column of a two-column page, and the page of ``article`` at 10 pt."""

SIZES = {r"\small": 9.0, r"\footnotesize": 8.0, r"\scriptsize": 7.0}
"""Fonts that are tried; the smallest only where a table is as wide as the page."""

_GAP = 6.0  # between two columns, in points
_NAME = 90.0  # longest name of a line that is not broken, in points
_ARROWS = {"↑": r"$\uparrow$", "↓": r"$\downarrow$"}
_INFINITE = {"inf": r"$\infty$", "-inf": r"$-\infty$"}


def latex(comparison: Comparison, sheet: TableView, style: TableStyle = PLAIN) -> str:
    r"""Return a table for ``\input``; the document needs ``\usepackage{booktabs}``.

    It is a ``table`` where it fits a column, else a ``table*``, which is as wide as the page. Scores that do not fit
    side by side stand in several tables below each other.

    Args:
        comparison: what the caption says is taken from here.
        sheet: the strings.
        style: layout, caption and label.
    """
    parts = blocks(sheet, style.layout)
    lines = [line for block in parts for group in block.rows for line in group]
    size, most, groups = _fitted(sheet, parts, lines)
    wide = "*" if most > COLUMN else ""
    made = [rf"\begin{{table{wide}}}", r"\centering"]
    made += [rf"\caption{{{latex_cell(style.caption or caption(comparison), 2000)}}}"]
    made += [rf"\label{{{_reference(style.label)}}}"] if style.label else []
    made += [r"\par\medskip", size, rf"\setlength{{\tabcolsep}}{{{_GAP / 2:g}pt}}"]
    tables = ["\n".join(_tabular(sheet, parts, group)) for group in groups]
    return "\n".join([*made, "\n\n\\medskip\n".join(tables), rf"\end{{table{wide}}}"]) + "\n"


def _fitted(sheet: TableView, parts: Sequence[Block], lines: Sequence[TableRow]) -> tuple[str, float, list[list[int]]]:
    """Return font size, width to stay within, and which columns stand side by side."""
    units = _units(parts[0].columns)
    every = [index for unit in units for index in unit]
    for most in (COLUMN, PAGE):
        for name, size in list(SIZES.items())[: 2 if most == COLUMN else 3]:
            if width(sheet, parts, every, size) <= most:
                return name, most, [every]
    name, size = list(SIZES.items())[-1]
    groups: list[list[int]] = [[]]
    for unit in units:
        if groups[-1] and width(sheet, parts, [*groups[-1], *unit], size) > PAGE:
            groups.append([])
        groups[-1] += unit
    return name, PAGE, groups


def _units(columns: Sequence[Column]) -> list[list[int]]:
    """Return the columns that stand together: a value and its difference."""
    units: list[list[int]] = []
    for index, column in enumerate(columns):
        if index and column.part and column.heading == columns[index - 1].heading:
            units[-1].append(index)
        else:
            units.append([index])
    return units


def width(sheet: TableView, parts: Sequence[Block], chosen: Sequence[int], size: float) -> float:
    """Return at most how wide a table will be, in points.

    Args:
        sheet: the strings.
        parts: its blocks.
        chosen: the columns.
        size: of the font, in points.
    """
    lines = [line for block in parts for group in block.rows for line in group]
    names = [min(text_width(sheet.called(line.label), size), _NAME) + 1.1 * size * line.below for line in lines]
    total = max([text_width("objective", size), *names])
    for unit in _units(parts[0].columns):
        inside = [index for index in unit if index in chosen]
        if inside:
            columns = [_column_width(parts[0].columns[index], lines, index, size) for index in inside]
            title = text_width(parts[0].columns[inside[0]].heading, size) if len(inside) > 1 else 0.0
            total += _GAP + max(sum(columns) + _GAP * (len(columns) - 1), title)
    return max(total, *(text_width(block.title, size) for block in parts))


def _column_width(column: Column, lines: Sequence[TableRow], index: int, size: float) -> float:
    cells = [text_width(line.cells[index].text, size, bold=line.cells[index].best) for line in lines]
    heads = [text_width(part, size) for part in ([column.part] if column.part else _broken(column.heading))]
    return max(*cells, *heads)


_LOWER = dict(
    zip(
        "abcdefghijklmnopqrstuvwxyz",
        (5, 5.56, 4.45, 5.56, 4.45, 3.06, 5, 5.56, 2.78, 3.06, 5.28, 2.78, 8.34, 5.56, 5, 5.56, 5.28, 3.92, 3.95, 3.89,
         5.56, 5.28, 7.23, 5.28, 5.28, 4.45),
        strict=True,
    )
)  # fmt: skip
_OTHERS = {" ": 3.34, **dict.fromkeys(".,:;[]|'!", 2.78), **dict.fromkeys("+-±=→", 7.78), "(": 3.89, ")": 3.89}
_OTHERS |= {"%": 10.0, "Δ": 8.34, "I": 3.62, **dict.fromkeys("MW@", 10.3), **dict.fromkeys("↑↓/*0123456789", 5.01)}
_DESIGN = {9.0: 1.028, 8.0: 1.063, 7.0: 1.16}


def text_width(text: str, size: float, *, bold: bool = False) -> float:
    """Return at most how wide a text is in Computer Modern, in points.

    Args:
        text: as it is read, without commands.
        size: of the font, in points.
        bold: whether it is bold.

    >>> round(text_width("4.97 ± 0.21", 8.0), 1)
    42.6
    """
    found = sum(_LOWER.get(letter) or _OTHERS.get(letter, 7.9) for letter in text)
    return found * size / 10 * _DESIGN[size] * (1.16 if bold else 1.0)


def _tabular(sheet: TableView, parts: Sequence[Block], chosen: Sequence[int]) -> Iterable[str]:
    columns = [parts[0].columns[index] for index in chosen]
    yield rf"\begin{{tabular}}{{@{{}}l{'r' * len(chosen)}@{{}}}}"
    yield r"\toprule"
    yield from _heads(columns)
    for number, block in enumerate(parts):
        if number:
            yield r"\midrule"
            yield rf"\multicolumn{{{len(chosen) + 1}}}{{@{{}}l@{{}}}}{{\emph{{{latex_cell(block.title)}}}}} \\"
        for group in block.rows:
            if number == 0:
                yield r"\midrule"
            for line in group:
                name = r"\quad " * line.below + _name(sheet.called(line.label))
                yield _row([name, *(_number_cell(line.cells[index]) for index in chosen)])
    yield r"\bottomrule"
    yield r"\end{tabular}"


def _heads(columns: Sequence[Column]) -> Iterable[str]:
    """Yield two lines of headings: a score over its parts, or a heading broken in two; one where neither is needed."""
    if any(column.part for column in columns):
        units = _units(columns)
        titles = [rf"\multicolumn{{{len(unit)}}}{{c}}{{{_head(columns[unit[0]].heading)}}}" for unit in units]
        yield _row(["", *titles])
        ends = [(unit[0] + 2, unit[-1] + 2) for unit in units]
        yield " ".join(rf"\cmidrule(lr){{{first}-{last}}}" for first, last in ends)
        yield _row(["objective", *(_head(column.part) for column in columns)])
        return
    halves = [_broken(column.heading) for column in columns]
    if any(len(half) > 1 for half in halves):
        yield _row(["", *(_head(half[0]) if len(half) > 1 else "" for half in halves)])
    yield _row(["objective", *(_head(half[-1]) for half in halves)])


def _broken(heading: str) -> list[str]:
    """Break a long heading in two, where a word ends.

    >>> _broken("KL from teacher (nats) ↓"), _broken("perplexity ↓")
    (['KL from', 'teacher (nats) ↓'], ['perplexity ↓'])
    """
    if len(heading) <= 14 or " " not in heading:
        return [heading]
    places = [index for index, letter in enumerate(heading) if letter == " "]
    cut = min(places, key=lambda place: abs(place - (len(heading) - 1) / 2 + 2))
    return [heading[:cut], heading[cut + 1 :]]


def _head(text: str) -> str:
    arrow = _ARROWS.get(text[-1:], "")
    return f"{latex_cell(text[:-2])} {arrow}" if arrow and text[-2:-1] == " " else arrow or latex_cell(text)


def _name(text: str) -> str:
    """Return the name of a line, broken after a sign that ends a part where it is long."""
    if text_width(text, SIZES[r"\footnotesize"]) <= _NAME:
        return latex_cell(text)
    cut = latex_cell(text)
    for sign in "+,:@(":
        cut = cut.replace(sign, rf"{sign}\allowbreak{{}}")
    return rf"\parbox[t]{{{_NAME:g}pt}}{{\raggedright {cut}}}"


def _row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _number_cell(cell: TableCell) -> str:
    mean = _number(cell.mean)
    mean = rf"\textbf{{{mean}}}" if cell.best else rf"\underline{{{mean}}}" if cell.tied else mean
    half = cell.interval.removeprefix("± ")
    if half != cell.interval:
        mean += rf" $\pm$ {half}"
    elif half:
        low, _, high = half.strip("[]").partition(", ")
        mean += f" {{[}}{_number(low)}, {_number(high)}{{]}}"
    return (mean + (r" $\ast$" if cell.sure else "")).strip()


def _number(text: str) -> str:
    """Write minus signs as such, and what is no number as LaTeX can."""
    if text in _INFINITE:
        return _INFINITE[text]
    return text.replace("-", "$-$").replace("+", "$+$").replace("–", "--").replace(" %", r"\,\%")


def _reference(label: str) -> str:
    """Keep what is safe inside a label."""
    return "".join(letter for letter in label if letter.isascii() and (letter.isalnum() or letter in ":-_."))
