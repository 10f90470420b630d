"""A comparison as ``table.md``, ``.csv``, ``.json``, ``.tex`` and ``.html``, with the same numbers in each.

Nothing in them depends on the machine or the clock: seconds and memory are in ``costs.csv``.
"""

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kdcli.comparison.against_start import percent_parts
from kdcli.comparison.records import Comparison, ComparisonRow, ReferenceRow
from kdcli.distill.records import BEFORE, CONTENDER
from kdcli.evaluation.records import ScoreInfo
from kdcli.statistics import LEVEL, Estimate
from kdcli.statistics.rounding import ABSENT, bracketed, decimals, interval, plain
from kdcli.storage import atomic
from kdcli.text import csv_cell, html_cell, latex_cell, markdown_cell, one_line

# What every form of a table prints: the same strings, rounded once.


ARROWS = {"higher": "↑", "lower": "↓", "neither": ""}
SURE = "*"
COSTS = ("seeds", "steps", "response tokens", "teacher passes", "parameters", "FLOPs")
GENERATED = "generated tokens"
BEFORE_TITLE = "Difference to the student before training, paired"
CLOSED_TITLE = "Share of the gap from the student before training to the teacher that was closed"


@dataclass(frozen=True)
class TableCell:
    """One cell.

    Args:
        mean: the number.
        interval: half its interval, or both ends of it; empty if there is none.
        best: whether no other line is better.
        tied: whether it cannot be told from the best.
        sure: whether it is a difference with p < 0.05.
    """

    mean: str
    interval: str = ""
    best: bool = False
    tied: bool = False
    sure: bool = False

    @property
    def text(self) -> str:
        """The cell without emphasis."""
        return " ".join(part for part in (self.mean, self.interval, SURE if self.sure else "") if part)


@dataclass(frozen=True)
class TableRow:
    """One objective's cells.

    Args:
        label: as it came, not yet made safe.
        cells: one per score.
    """

    label: str
    cells: tuple[TableCell, ...]


@dataclass(frozen=True)
class TableView:
    """A comparison as strings.

    Args:
        scores: the columns.
        means: mean with its 95 % interval, as ± or with both ends where it is lopsided.
        differences: paired difference to the baseline with its 95 % interval, without the baseline's line.
        costs: label and one string per name in ``cost_names``.
        baseline: as it came.
        references: the student before training, the teacher, and models trained elsewhere: as ``means``.
        before: paired difference to the student before training, as ``differences``; empty where that was not measured.
        closed: share of the gap from there to the teacher that was closed; empty where there is none.
    """

    scores: tuple[ScoreInfo, ...]
    means: tuple[TableRow, ...]
    differences: tuple[TableRow, ...]
    costs: tuple[tuple[str, tuple[str, ...]], ...]
    baseline: str
    cost_names: tuple[str, ...] = COSTS
    references: tuple[TableRow, ...] = ()
    before: tuple[TableRow, ...] = ()
    closed: tuple[TableRow, ...] = ()


def make_table_view(comparison: Comparison, digits: int | None = None) -> TableView:
    """Round a comparison to what its intervals support.

    Args:
        comparison: the numbers.
        digits: decimals of every number; by default those that show two digits of the median interval.
    """
    rows, others = comparison.rows, comparison.references
    generates = any(row.generated_tokens for row in rows)
    places = {info.name: digits if digits is not None else _places(rows, info.name) for info in comparison.scores}

    def changes(lines: Iterable[ComparisonRow | ReferenceRow], field: str) -> tuple[TableRow, ...]:
        return tuple(
            TableRow(row.label, tuple(_difference(getattr(row, field).get(name), places[name]) for name in places))
            for row in lines
        )

    outside = [row for row in others if row.differences]
    start = any(row.role == BEFORE for row in others)
    closed = [row for row in (*outside, *rows) if any(row.closed.values())]
    return TableView(
        scores=comparison.scores,
        means=tuple(TableRow(row.label, tuple(_mean(row, name, places[name]) for name in places)) for row in rows),
        differences=changes([*outside, *(row for row in rows if row.label != comparison.baseline)], "differences"),
        costs=(
            *((row.label, _size(row) + (ABSENT,) * generates) for row in others),
            *((row.label, _costs(row) + _generated(row) * generates) for row in rows),
        ),
        baseline=comparison.baseline,
        cost_names=COSTS + (GENERATED,) * generates,
        references=tuple(
            TableRow(row.label, tuple(_mean(row, name, places[name]) for name in places)) for row in others
        ),
        before=changes([*outside, *rows], "before") if start else (),
        closed=tuple(TableRow(row.label, tuple(_share(row.closed.get(name)) for name in places)) for row in closed),
    )


def count(value: int | float | None) -> str:
    """Return a count: whole numbers in full, others, such as FLOPs, in three digits.

    >>> count(469_875_223_680.0), count(1234), count(None)
    ('4.7e+11', '1,234', '–')
    """
    if value is None:
        return ABSENT
    return f"{value:.3g}" if isinstance(value, float) else f"{value:,}"


def _places(rows: Sequence[ComparisonRow], name: str) -> int:
    means = [row.scores[name] for row in rows if name in row.scores]
    changes = [change for row in rows if (change := row.differences.get(name)) is not None]
    return decimals(_values(means), [one.half_width for one in [*means, *changes]])


def _values(estimates: Iterable[Estimate]) -> list[float]:
    return [one.mean for one in estimates]


def _mean(row: ComparisonRow | ReferenceRow, name: str, places: int) -> TableCell:
    one = row.scores.get(name)
    if one is None or one.mean != one.mean:
        return TableCell(ABSENT)
    mean, shown = plain(one.mean, places), interval(one.mean, one.low, one.high, places)
    if isinstance(row, ReferenceRow):
        return TableCell(mean, shown)
    return TableCell(mean, shown, best=name in row.best, tied=name in row.tied)


def _share(one: Estimate | None) -> TableCell:
    if one is None:
        return TableCell(ABSENT)
    return TableCell(*percent_parts(one))


def _size(row: ReferenceRow) -> tuple[str, ...]:
    """Return the costs of a model that was not trained here: its size alone."""
    return tuple(count(row.parameters) if name == "parameters" else ABSENT for name in COSTS)


def _difference(one: Estimate | None, places: int) -> TableCell:
    if one is None or one.mean != one.mean:
        return TableCell(ABSENT)
    sure = one.p_value is not None and one.p_value < LEVEL
    ends = bracketed(one.low, one.high, places, signed=True)
    return TableCell(plain(one.mean, places, signed=True), ends, sure=sure)


def _costs(row: ComparisonRow) -> tuple[str, ...]:
    passes = ABSENT if row.teacher_passes is None else f"{row.teacher_passes:.2f}"
    seeds = ",".join(map(str, row.seeds))
    return seeds, f"{row.steps:,}", f"{row.tokens:,}", passes, count(row.parameters), count(row.flops)


def _generated(row: ComparisonRow) -> tuple[str, ...]:
    return (count(row.generated_tokens),)


# A comparison as a fragment of HTML: tables and notes, no script, no style of its own.


def html_fragment(comparison: Comparison, sheet: TableView, caption: str = "") -> str:
    """Return the tables of scores, differences and costs, and the notes.

    Args:
        comparison: where the notes are.
        sheet: the strings.
        caption: of the first table.
    """
    heads = ["objective", *(f"{info.name} {ARROWS[info.better]}".strip() for info in sheet.scores)]
    first = caption or "Scores with their 95 % intervals, ± or [ ]; bold is best, underlined cannot be told from it"
    parts = [*_table(first, heads, [_html_table_line(line) for line in (*sheet.references, *sheet.means)])]
    if sheet.differences:
        text = f"Difference to {sheet.baseline}, paired, with its 95 % interval; * is p < 0.05 after Holm's rule"
        parts += _table(text, heads, [_html_table_line(line) for line in sheet.differences])
    if sheet.before:
        text = f"{BEFORE_TITLE}, with its 95 % interval; * is p < 0.05 after Holm's rule over the contenders"
        parts += _table(text, heads, [_html_table_line(line) for line in sheet.before])
    if sheet.closed:
        parts += _table(
            f"{CLOSED_TITLE}, with its 95 % interval", heads, [_html_table_line(line) for line in sheet.closed]
        )
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


def _html_table_line(line: TableRow) -> list[str]:
    return [html_cell(line.label), *(_cell(cell) for cell in line.cells)]


def _cell(cell: TableCell) -> str:
    mean = html_cell(cell.mean)
    mean = f"<strong>{mean}</strong>" if cell.best else f"<u>{mean}</u>" if cell.tied else mean
    return " ".join(part for part in (mean, html_cell(cell.interval), "*" if cell.sure else "") if part)


# A comparison as a LaTeX table: booktabs, best in bold, ties underlined.


_ARROWS = {"higher": r" $\uparrow$", "lower": r" $\downarrow$", "neither": ""}
_INFINITE = {"inf": r"$\infty$", "-inf": r"$-\infty$"}


def latex(sheet: TableView, caption: str = "", label: str = "") -> str:
    r"""Return a table for ``\input``; the document needs ``\usepackage{booktabs}``.

    Args:
        sheet: the strings.
        caption: printed as it is, whatever it holds.
        label: for ``\ref``.
    """
    heads = ["objective", *(latex_cell(info.name) + _ARROWS[info.better] for info in sheet.scores)]
    body = [r"\toprule", _row(heads), r"\midrule", *(_latex_table_line(line) for line in sheet.references)]
    body += [r"\midrule"] if sheet.references else []
    body += [_latex_table_line(line) for line in sheet.means]
    holm = r"paired; $\ast$: $p < 0.05$ after Holm's rule"
    for text, lines in (
        (f"difference to {latex_cell(sheet.baseline)}, {holm}", sheet.differences),
        (f"difference to the student before training, {holm}", sheet.before),
        ("share of the gap from the student before training to the teacher that was closed", sheet.closed),
    ):
        if lines:
            body += [r"\midrule", rf"\multicolumn{{{len(heads)}}}{{l}}{{\emph{{{text}}}}} \\"]
            body += [_latex_table_line(line) for line in lines]
    lines = [r"\begin{table}", r"\centering"]
    lines += [rf"\caption{{{latex_cell(caption, 2000)}}}"] if caption else []
    lines += [rf"\label{{{_reference(label)}}}"] if label else []
    lines += [rf"\begin{{tabular}}{{l{'r' * len(sheet.scores)}}}", *body, r"\bottomrule", r"\end{tabular}"]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def _latex_table_line(line: TableRow) -> str:
    return _row([latex_cell(line.label), *(_latex_table_cell(cell) for cell in line.cells)])


def _row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _latex_table_cell(cell: TableCell) -> str:
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
        atomic.write_file(folder / f"table.{form}", render(comparison, form))


def render(comparison: Comparison, form: str, *, digits: int | None = None, caption: str = "", label: str = "") -> str:
    """Return one form of a comparison's table.

    Args:
        comparison: the numbers.
        form: one of ``FORMS``.
        digits: decimals of the printed numbers; csv and json hold them unrounded beside.
        caption: of a LaTeX or HTML table.
        label: of a LaTeX table.
    """
    sheet = make_table_view(comparison, digits)
    if form == "md":
        return markdown(comparison, sheet)
    if form == "csv":
        return comma_separated(comparison, sheet)
    if form == "json":
        return as_json(comparison, sheet)
    return latex(sheet, caption, label) if form == "tex" else html_fragment(comparison, sheet, caption)


def markdown(comparison: Comparison, sheet: TableView) -> str:
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


def comma_separated(comparison: Comparison, sheet: TableView) -> str:
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


def _line(line: TableRow) -> list[str]:
    return [markdown_cell(line.label), *(_marked(cell) for cell in line.cells)]


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


def _shown(infos: Sequence[ScoreInfo], line: TableRow) -> dict[str, str]:
    return {info.name: cell.text for info, cell in zip(infos, line.cells, strict=True) if cell.mean != ABSENT}


def _finite(value: Any) -> Any:
    """Replace what JSON cannot hold by None."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
