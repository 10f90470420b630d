"""A comparison as a fragment of HTML: tables and notes, no script, no style of its own."""

from collections.abc import Iterable, Sequence

from kdcli.runs.records import Comparison
from kdcli.runs.sheet import ARROWS, BEFORE_TITLE, CLOSED_TITLE, Entry, Line, Sheet
from kdcli.text import html_cell


def html_fragment(comparison: Comparison, sheet: Sheet, caption: str = "") -> str:
    """Return the tables of scores, differences and costs, and the notes.

    Args:
        comparison: where the notes are.
        sheet: the strings.
        caption: of the first table.
    """
    heads = ["objective", *(f"{info.name} {ARROWS[info.better]}".strip() for info in sheet.scores)]
    first = caption or "Scores with their 95 % intervals, ± or [ ]; bold is best, underlined cannot be told from it"
    parts = [*_table(first, heads, [_line(line) for line in (*sheet.references, *sheet.means)])]
    if sheet.differences:
        text = f"Difference to {sheet.baseline}, paired, with its 95 % interval; * is p < 0.05 after Holm's rule"
        parts += _table(text, heads, [_line(line) for line in sheet.differences])
    if sheet.before:
        text = f"{BEFORE_TITLE}, with its 95 % interval; * is p < 0.05 after Holm's rule over the contenders"
        parts += _table(text, heads, [_line(line) for line in sheet.before])
    if sheet.closed:
        parts += _table(f"{CLOSED_TITLE}, with its 95 % interval", heads, [_line(line) for line in sheet.closed])
    costs = [[html_cell(label), *map(html_cell, cells)] for label, cells in sheet.costs]
    parts += _table("Cost of one run", ["objective", *sheet.cost_names], costs)
    said = [*comparison.notes, *(f"failed: {one.loss} seed {one.seed}: {one.message}" for one in comparison.failed)]
    parts += ["<ul>", *(f"<li>{html_cell(note, 1000)}</li>" for note in said), "</ul>"]
    return "\n".join(parts) + "\n"


def _table(caption: str, heads: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    head = "".join(f'<th scope="col">{html_cell(text)}</th>' for text in heads)
    body = [
        f'<tr><th scope="row">{label}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for label, *cells in lines
    ]
    top = ['<table class="kd">', f"<caption>{html_cell(caption, 2000)}</caption>", f"<thead><tr>{head}</tr></thead>"]
    return [*top, "<tbody>", *body, "</tbody>", "</table>"]


def _line(line: Line) -> list[str]:
    return [html_cell(line.label), *(_cell(cell) for cell in line.cells)]


def _cell(cell: Entry) -> str:
    mean = html_cell(cell.mean)
    mean = f"<strong>{mean}</strong>" if cell.best else f"<u>{mean}</u>" if cell.tied else mean
    return " ".join(part for part in (mean, html_cell(cell.interval), "*" if cell.sure else "") if part)
