"""A comparison on disk as ``table.md``, ``.csv``, ``.json``, ``.tex`` and ``.html``: the same numbers in each.

Nothing in them depends on the machine or the clock: seconds and memory are in ``costs.csv``.
"""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kdcli import durable
from kdcli.digits import decimals, with_interval
from kdcli.runs.html_table import html_fragment
from kdcli.runs.latex_table import latex
from kdcli.runs.records import CONTENDER, Comparison, ComparisonRow, ReferenceRow, ScoreInfo
from kdcli.runs.sheet import ABSENT, ARROWS, BEFORE_TITLE, CLOSED_TITLE, Entry, Line, Sheet, make_sheet
from kdcli.statistics import Estimate
from kdcli.text import csv_cell, markdown_cell, one_line

FORMS = ("md", "csv", "json", "tex", "html")
_MACHINE = ("seconds", "seconds_range", "peak_bytes")
_LEGEND = (
    "± and [ ] are 95 % intervals; bold is best, underlined cannot be told from it, among the objectives trained here; "
    "\\* marks p < 0.05 after Holm's rule. Seconds and memory are in costs.csv."
)
_ESTIMATE = ("mean", "low", "high", "count", "unit")


def write_tables(folder: Path, comparison: Comparison) -> None:
    """Write every form of a comparison into a folder that is there."""
    for form in FORMS:
        durable.write_file(folder / f"table.{form}", render(comparison, form))


def render(comparison: Comparison, form: str, *, digits: int | None = None, caption: str = "", label: str = "") -> str:
    """Return one form of a comparison's table.

    Args:
        comparison: the numbers.
        form: one of ``FORMS``.
        digits: decimals of the printed numbers; csv and json hold them unrounded beside.
        caption: of a LaTeX or HTML table.
        label: of a LaTeX table.
    """
    sheet = make_sheet(comparison, digits)
    if form == "md":
        return markdown(comparison, sheet)
    if form == "csv":
        return comma_separated(comparison, sheet)
    if form == "json":
        return as_json(comparison, sheet)
    return latex(sheet, caption, label) if form == "tex" else html_fragment(comparison, sheet, caption)


def markdown(comparison: Comparison, sheet: Sheet) -> str:
    """Return the tables of scores, differences and costs, and the notes, as Markdown."""
    heads = ["objective", *(f"{markdown_cell(info.name)} {ARROWS[info.better]}".strip() for info in sheet.scores)]
    parts = ["## Scores", "", *_grid(heads, [_line(line) for line in (*sheet.references, *sheet.means)]), ""]
    if sheet.differences:
        head = f"## Difference to {markdown_cell(sheet.baseline)}, paired"
        parts += [head, "", *_grid(heads, [_line(line) for line in sheet.differences]), ""]
    if sheet.before:
        parts += [f"## {BEFORE_TITLE}", "", *_grid(heads, [_line(line) for line in sheet.before]), ""]
    if sheet.closed:
        parts += [f"## {CLOSED_TITLE}", "", *_grid(heads, [_line(line) for line in sheet.closed]), ""]
    costs = [[markdown_cell(label), *cells] for label, cells in sheet.costs]
    parts += ["## Cost of one run", "", *_grid(["objective", *sheet.cost_names], costs), ""]
    parts += [_LEGEND, ""]
    parts += [f"- {markdown_cell(note, 1000)}" for note in comparison.notes]
    parts += [
        f"- failed: {markdown_cell(one.loss)} seed {one.seed}: {markdown_cell(one.message, 500)}"
        for one in comparison.failed
    ]
    parts += ["", "How each score was taken:", ""]
    parts += [
        f"- {markdown_cell(info.name)}: `{one_line(info.settings, 500).replace('`', '')}`" for info in sheet.scores
    ]
    return "\n".join(parts) + "\n"


def comma_separated(comparison: Comparison, sheet: Sheet) -> str:
    """Return one line per objective and score as CSV: unrounded numbers, and the cell as it is printed."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    changes = ["difference", "difference_low", "difference_high", "p"]
    models = ["models_low", "models_high", "models_p"]
    shown = ["shown", "shown_difference"]
    costs = ["steps", "tokens", "teacher_passes", "parameters", "flops", "generated_tokens"]
    start = ["before_difference", "before_low", "before_high", "before_p", "gap_closed", "gap_low", "gap_high"]
    heads = ["objective", "seeds", "score", "better", *_ESTIMATE, *changes, *models, "best", "tied", *shown, *costs]
    heads += ["role", *start]
    writer.writerow(heads)
    changed = {line.label: line for line in sheet.differences}
    lines = zip((*comparison.rows, *comparison.references), (*sheet.means, *sheet.references), strict=True)
    for row, line in lines:
        role = row.role if isinstance(row, ReferenceRow) else CONTENDER
        for index, info in enumerate(sheet.scores):
            if info.name not in row.scores and role != CONTENDER:
                continue
            seeds = " ".join(map(str, row.seeds))
            texts = [line.cells[index].text, changed[row.label].cells[index].text if row.label in changed else ""]
            spent = [getattr(row, name, None) for name in costs]
            name, numbers = csv_cell(info.name), _numbers(row, info)
            after = [role, *_against_start(row, info)]
            cells = [*numbers, *map(csv_cell, texts), *spent, *after]
            writer.writerow([csv_cell(row.label), seeds, name, info.better, *cells])
    return buffer.getvalue()


def as_json(comparison: Comparison, sheet: Sheet) -> str:
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
        "scores": [asdict(info) for info in comparison.scores],
        "rows": rows,
        "references": references,
        "detectable": {name: one and asdict(one) for name, one in comparison.detectable.items()},
        "variance": {name: asdict(shares) for name, shares in comparison.variance.items()},
        "pareto": {score: costs for score, costs in fronts.items() if costs},
        "notes": list(comparison.notes),
        "failed": [asdict(one) | {"log": str(one.log)} for one in comparison.failed],
    }
    return json.dumps(_finite(document), indent=1) + "\n"


def number(estimate: Estimate | None, *, signed: bool = False) -> str:
    """Return one number alone with its interval, rounded to what its own interval supports.

    >>> number(Estimate(12.3456, 12.0, 12.7, 5, "seeds", error=0.126))
    '12.35 ± 0.35'
    """
    if estimate is None or math.isnan(estimate.mean):
        return ABSENT
    places = decimals([estimate.mean], [estimate.half_width])
    return with_interval(estimate.mean, estimate.low, estimate.high, places, signed=signed)


def _line(line: Line) -> list[str]:
    return [markdown_cell(line.label), *(_marked(cell) for cell in line.cells)]


def _marked(cell: Entry) -> str:
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
    if isinstance(row, ReferenceRow):
        changes = _fields(row.differences.get(info.name), ("mean", "low", "high", "p_value"))
        return [*_fields(row.scores[info.name], _ESTIMATE), *changes, None, None, None, 0, 0]
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


def _shown(infos: Sequence[ScoreInfo], line: Line) -> dict[str, str]:
    return {info.name: cell.text for info, cell in zip(infos, line.cells, strict=True) if cell.mean != ABSENT}


def _finite(value: Any) -> Any:
    """Replace what JSON cannot hold by None."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
