"""A comparison as ``table.md``, ``.csv``, ``.json``, ``.tex`` and ``.html``, with the same numbers in each.

Nothing in them depends on the machine or the clock: seconds and memory are in ``costs.csv``.
"""

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kdcli.comparison.records import Comparison, ComparisonRow, Failure, ReferenceRow
from kdcli.evaluation.records import ScoreInfo
from kdcli.report.latex import latex
from kdcli.report.table_view import (
    PLAIN,
    SPARSE,
    TableCell,
    TableRow,
    TableStyle,
    TableView,
    blocks,
    caption,
    make_table_view,
)
from kdcli.statistics import Estimate
from kdcli.statistics.rounding import ABSENT
from kdcli.storage import atomic
from kdcli.text import csv_cell, html_cell, markdown_cell, one_line

# A comparison as a fragment of HTML: a style, tables and notes, no script.


STYLE = """table.kd { border-collapse: collapse; margin: 1.2rem 0; font: 0.9rem/1.4 system-ui, sans-serif; }
table.kd caption { text-align: left; max-width: 46rem; padding-bottom: 0.4rem; }
table.kd th, table.kd td { padding: 0.25rem 0.8rem; border-bottom: 1px solid #8884; text-align: right; }
table.kd th { font-weight: 600; vertical-align: bottom; }
table.kd tr > :first-child { text-align: left; padding-left: 0; }
table.kd thead tr:last-child th { border-bottom: 1px solid currentColor; }
table.kd tbody + tbody tr:first-child > * { border-top: 1px solid currentColor; }
table.kd td { white-space: nowrap; font-variant-numeric: tabular-nums; }
table.kd u { text-underline-offset: 0.2em; }
table.kd + ul { max-width: 46rem; font: 0.9rem/1.4 system-ui, sans-serif; }
"""


def html_fragment(comparison: Comparison, sheet: TableView, style: TableStyle = PLAIN) -> str:
    """Return the tables of scores, differences and costs, and the notes; with a layout, that table alone.

    Args:
        comparison: where the notes are.
        sheet: the strings.
        style: layout and caption.
    """
    first = style.caption or caption(comparison)
    parts = ["<style>", STYLE.rstrip(), "</style>"]
    for number, block in enumerate(blocks(sheet, style.layout)):
        heads = ["objective", *(one.heading if one.part in ("", "value") else one.part for one in block.columns)]
        rows = [[_html_table_line(line, sheet) for line in group] for group in block.rows]
        parts += _table(first if number == 0 else block.title, heads, rows)
    if not style.layout:
        costs = [[html_cell(sheet.called(label)), *map(html_cell, cells)] for label, cells in sheet.costs]
        parts += _table("Cost of one run", ["objective", *sheet.cost_names], [costs])
        said = [*comparison.notes, *(_failure(one) for one in comparison.failed)]
        parts += ["<ul>", *(f"<li>{html_cell(note, 1000)}</li>" for note in said), "</ul>"]
    return "\n".join(parts) + "\n"


def _table(text: str, heads: Sequence[str], groups: Iterable[Iterable[Sequence[str]]]) -> list[str]:
    head = "".join(f'<th scope="col">{html_cell(text)}</th>' for text in heads)
    top = [
        '<table class="kd">',
        f"<caption>{html_cell(text, 2000)}</caption>",
        f"<thead><tr>{head}</tr></thead>",
    ]
    body: list[str] = []
    for lines in groups:
        body += ["<tbody>"]
        body += [
            f'<tr><th scope="row">{label}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
            for label, *cells in lines
        ]
        body += ["</tbody>"]
    return [*top, *body, "</table>"]


def _html_table_line(line: TableRow, sheet: TableView) -> list[str]:
    return [html_cell(sheet.called(line.label)), *(_cell(cell) for cell in line.cells)]


def _cell(cell: TableCell) -> str:
    mean = html_cell(cell.mean)
    mean = f"<strong>{mean}</strong>" if cell.best else f"<u>{mean}</u>" if cell.tied else mean
    return " ".join(part for part in (mean, html_cell(cell.interval), "*" if cell.sure else "") if part)


def _failure(one: Failure) -> str:
    return f"failed: {one.loss} seed {one.seed}: {one.message}"


FORMS = ("md", "csv", "json", "tex", "html")
_MACHINE = ("seconds", "seconds_range", "peak_bytes")
_LEGEND = (
    "± and [ ] are 95 % intervals; bold is best, underlined does not differ significantly from it, among the "
    "objectives trained here; "
    "\\* marks p < 0.05 after Holm's rule. Seconds and memory are in costs.csv."
)
_ESTIMATE = ("mean", "low", "high", "count", "unit")


def write_tables(folder: Path, comparison: Comparison) -> None:
    """Write every form of a comparison into a folder that is there."""
    for form in FORMS:
        atomic.write_file(folder / f"table.{form}", render(comparison, form))


def render(comparison: Comparison, form: str, style: TableStyle = PLAIN) -> str:
    """Return one form of a comparison's table.

    Args:
        comparison: the numbers.
        form: one of ``FORMS``.
        style: scores, layout, titles and digits; csv and json hold the numbers unrounded beside.
    """
    sheet = make_table_view(comparison, style)
    if form == "md":
        return markdown(comparison, sheet, style)
    if form == "csv":
        return comma_separated(comparison, sheet)
    if form == "json":
        return as_json(comparison, sheet)
    return latex(comparison, sheet, style) if form == "tex" else html_fragment(comparison, sheet, style)


def markdown(comparison: Comparison, sheet: TableView, style: TableStyle = PLAIN) -> str:
    """Return the tables of scores, differences and costs, and the notes, as Markdown; with a layout, that table alone.

    Args:
        comparison: where the notes are.
        sheet: the strings.
        style: layout and caption.
    """
    parts: list[str] = []
    for number, block in enumerate(blocks(sheet, style.layout)):
        heads = ["objective", *(one.heading if one.part in ("", "value") else one.part for one in block.columns)]
        lines = [_line(line, sheet) for group in block.rows for line in group]
        if not style.layout or number:
            parts += [f"## {markdown_cell(block.title)}" if not style.layout else f"{markdown_cell(block.title)}:", ""]
        parts += [*_grid([markdown_cell(head) for head in heads], lines), ""]
    if style.layout:
        return "\n".join([*parts, markdown_cell(style.caption or caption(comparison), 2000)]) + "\n"
    costs = [[markdown_cell(sheet.called(label)), *cells] for label, cells in sheet.costs]
    parts += ["## Cost of one run", "", *_grid(["objective", *sheet.cost_names], costs), ""]
    parts += [markdown_cell(style.caption, 2000), ""] if style.caption else []
    parts += [_LEGEND, ""]
    parts += [f"- {markdown_cell(note, 1000)}" for note in comparison.notes]
    parts += [f"- {markdown_cell(_failure(one), 600)}" for one in comparison.failed]
    parts += ["", "How each score was computed:", ""]
    parts += [
        f"- {markdown_cell(sheet.titles.get(info.name, info.title))}: `{one_line(info.settings, 500).replace('`', '')}`"
        for info in sheet.scores
    ]
    return "\n".join(parts) + "\n"


def comma_separated(comparison: Comparison, sheet: TableView) -> str:
    """Return one line per objective and score as CSV: unrounded numbers, and the cell as it is printed."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    changes = ["difference", "difference_low", "difference_high", "p"]
    models = ["models_low", "models_high", "models_p"]
    shown = ["shown", "shown_difference"]
    costs = ["steps", "tokens", "teacher_passes", "parameters", "flops", "generated_tokens"]
    sparse = ["zeros", "compressed_bytes"] if set(SPARSE) <= set(sheet.cost_names) else []
    start = ["before_difference", "before_low", "before_high", "before_p", "gap_closed", "gap_low", "gap_high"]
    heads = ["objective", "seeds", "score", "better", *_ESTIMATE, *changes, *models, "best", "tied", *shown, *costs]
    heads += ["role", *start, *sparse]
    writer.writerow(heads)
    changed = {line.label: line for line in sheet.differences}
    lines = zip((*comparison.rows, *comparison.references), (*sheet.means, *sheet.references), strict=True)
    for row, line in lines:
        for index, info in enumerate(sheet.scores):
            if info.name not in row.scores and row.is_reference:
                continue
            seeds = " ".join(map(str, row.seeds))
            texts = [line.cells[index].text, changed[row.label].cells[index].text if row.label in changed else ""]
            spent = [getattr(row, name, None) for name in costs]
            name, numbers = csv_cell(info.name), _numbers(row, info)
            after = [row.role, *_against_start(row, info), *(getattr(row, one, None) for one in sparse)]
            cells = [*numbers, *map(csv_cell, texts), *spent, *after]
            writer.writerow([csv_cell(row.label), seeds, name, info.better, *cells])
    return buffer.getvalue()


def as_json(comparison: Comparison, sheet: TableView) -> str:
    """Return everything a comparison holds but what depends on the machine."""
    changed = {line.label: line for line in sheet.differences}
    rows = []
    for row, line in zip(comparison.rows, sheet.means, strict=True):
        fields = {name: value for name, value in asdict(row).items() if name not in _MACHINE}
        fields["teacher_passes"] = row.teacher_passes
        fields["shown"] = _shown(sheet.scores, line)
        fields["shown_differences"] = _shown(sheet.scores, changed[row.label]) if row.label in changed else {}
        rows.append(fields)
    fronts = {
        score: {cost: labels for cost, labels in costs.items() if cost not in _MACHINE}
        for score, costs in comparison.pareto.items()
    }
    references = [
        asdict(row) | {"shown": _shown(sheet.scores, line)}
        for row, line in zip(comparison.references, sheet.references, strict=True)
    ]
    document = {
        "baseline": comparison.baseline,
        "setup": asdict(comparison.setup),
        "scores": [asdict(info) for info in sheet.scores],
        "rows": rows,
        "references": references,
        "detectable": {name: one and asdict(one) for name, one in comparison.detectable.items()},
        "variance": {name: asdict(shares) for name, shares in comparison.variance.items()},
        "pareto": {score: costs for score, costs in fronts.items() if costs},
        "notes": list(comparison.notes),
        "failed": [asdict(one) | {"log": str(one.log)} for one in comparison.failed],
    }
    return json.dumps(_finite(document), indent=1) + "\n"


def _line(line: TableRow, sheet: TableView) -> list[str]:
    return [markdown_cell(sheet.called(line.label)), *(_marked(cell) for cell in line.cells)]


def _marked(cell: TableCell) -> str:
    mean = f"**{cell.mean}**" if cell.best else f"<u>{cell.mean}</u>" if cell.tied else cell.mean
    text = " ".join(part for part in (mean, markdown_cell(cell.interval)) if part)
    return f"{text} \\*" if cell.sure else text


def _grid(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    ruler = ["---", *["---:"] * (len(heads) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (heads, ruler, *lines)]


def _against_start(row: ComparisonRow | ReferenceRow, info: ScoreInfo) -> list[Any]:
    change, share = row.before.get(info.name), row.closed.get(info.name)
    return [*_fields(change, ("mean", "low", "high", "p_value")), *_fields(share, ("mean", "low", "high"))]


def _numbers(row: ComparisonRow | ReferenceRow, info: ScoreInfo) -> list[Any]:
    found, change, models = (side.get(info.name) for side in (row.scores, row.differences, row.models))
    return [
        *_fields(found, _ESTIMATE),
        *_fields(change, ("mean", "low", "high", "p_value")),
        *_fields(models, ("low", "high", "p_value")),
        int(info.name in row.best),
        int(info.name in row.tied),
    ]


def _fields(estimate: Estimate | None, names: Sequence[str]) -> list[Any]:
    return [getattr(estimate, name) if estimate else None for name in names]


def _shown(infos: Sequence[ScoreInfo], line: TableRow) -> dict[str, str]:
    return {info.name: cell.text for info, cell in zip(infos, line.cells, strict=True) if cell.mean != ABSENT}


def _finite(value: Any) -> Any:
    """Replace what JSON cannot hold by None."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
